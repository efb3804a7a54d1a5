"""What read_metadata makes of tables of every kind, and what it says of every fault."""

import warnings
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data.files import InputError
from helpers.data.metadata import (
    CLASS_NAMES,
    CLASSES,
    DUPLICATE_PAIRS,
    find_class,
    read_metadata,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
ROWS = [
    "HAM_3,ISIC_0000003,mel,histo,80.5,male,scalp,rosendahl",
    "HAM_1,ISIC_0000001,nv,follow_up,,female,back,vidir_molemax",
    "HAM_1,ISIC_0000002,nv,follow_up,0,female,trunk,vidir_molemax",
    "HAM_4,ISIC_0000004,akiec,histo,65.0,unknown,face,rosendahl",
]
TEXT = "\n".join([HEADER, *ROWS, ""])
TRUTH = """image,MEL,NV,BCC,AKIEC,BKL,DF,VASC
ISIC_0000003,1.0,0.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000001,0.0,1.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000002,0.0,1.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000004,0.0,0.0,0.0,1.0,0.0,0.0,0.0
"""
GROUPS = """image,lesion_id,diagnosis_confirm_type
ISIC_0000004,HAM_4,histopathology
ISIC_0000002,HAM_1,serial imaging showing no change
ISIC_0000001,HAM_1,serial imaging showing no change
ISIC_0000003,HAM_3,clinical
"""
COUNTS = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}


def read(folder, text, groups=None):
    """Reads texts or bytes as files; any warning is an error."""
    paths = [folder / "table.csv", folder / "groups.csv"][: 1 if groups is None else 2]
    for path, content in zip(paths, (text, groups), strict=False):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings(action="error"):
        return read_metadata(*paths)


def find_problems(folder, text, groups=None):
    with pytest.raises(InputError, match=r"table\.csv") as caught:
        read(folder, text, groups)
    return caught.value.problems


def change(old, new, text=TEXT):
    assert old in text
    return text.replace(old, new, 1)


def test_values_and_types(tmp_path):
    table = read(tmp_path, TEXT)
    assert list(table) == ["image_id", "lesion_id", *HEADER.split(",")[2:], "label", "group"]
    assert list(table["image_id"]) == [f"ISIC_000000{n}" for n in (1, 2, 3, 4)]
    assert list(table["dx"]) == ["nv", "nv", "mel", "akiec"]
    assert list(table["label"]) == [5, 5, 4, 0] and table["label"].dtype == "int64"
    assert table["age"].isna().tolist() == [True, False, False, False]
    assert table["age"].tolist()[1:] == [0, 80.5, 65] and table["age"].dtype == float
    assert list(table["sex"]) == ["female", "female", "male", "unknown"]
    assert list(table["group"]) == list(table["lesion_id"]) == ["HAM_1", "HAM_1", "HAM_3", "HAM_4"]
    assert tuple(CLASS_NAMES) == CLASSES == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@pytest.mark.parametrize(
    "content",
    [
        TEXT.replace(",", ";").replace("80.5", "80,5"),
        TEXT.replace(",", "\t").encode("utf-16"),
        TEXT.encode("utf-8-sig"),
        "sep=;\r\n" + TEXT.replace(",", ";").replace("\n", "\r\n"),
        '"sep=\t"\n' + TEXT.replace(",", "\t"),
        TEXT.replace("\n", "\r"),
        TEXT.replace("\n", ",,\n"),
        TEXT.replace("\n", "\n\n,,,,,,,\n").replace(",", " , ").replace("scalp", '"scalp"'),
        TEXT.replace("dx,", "dx,note,").replace(",histo", ",x,histo").replace(",foll", ",,foll"),
        "\n".join([HEADER, *ROWS[::-1]]),
    ],
)
def test_exports_of_spreadsheets_read_to_the_same_table(tmp_path, content):
    pd.testing.assert_frame_equal(read(tmp_path, content), read(tmp_path, TEXT))


@pytest.mark.parametrize(
    "word",
    [
        "",
        "NA",
        "n/a",
        "NaN",
        "None",
        "unknown",
        "-",
        "#N/A",
        "\u2013",
        "--",
        "N\\A",
        "not specified",
        "Not_available",
        "(null)",
        "NaT",
        "-1",
    ],
)
def test_missing_in_every_spelling_and_column(tmp_path, word):
    row = f"HAM_3,ISIC_0000003,mel,{word},{word},{word},{word},{word}"
    values = read(tmp_path, change(ROWS[0], row)).set_index("image_id").loc["ISIC_0000003"]
    assert set(values[["dx_type", "sex", "localization", "dataset"]]) == {"unknown"}
    assert pd.isna(values["age"])


@pytest.mark.parametrize("word", ["", "NA", "none", "not known", "undefined", "-1"])
def test_a_missing_lesion_id_is_a_lesion_of_its_own(tmp_path, word):
    (tmp_path / "a.csv").write_text(TEXT.replace("HAM_1", word).replace("HAM_4", word))
    with pytest.warns(UserWarning, match=r"a\.csv: lesion_id is missing in 3 of 4 rows.*leaks"):
        table = read_metadata(tmp_path / "a.csv")
    expected = ["ISIC_0000001", "ISIC_0000002", "HAM_3", "ISIC_0000004"]
    assert list(table["lesion_id"]) == list(table["group"]) == expected


WORDS = """
sex: M = male, Male = male, F = female
localization: anterior torso = trunk, Posterior Torso = back, palms/soles = acral, FACE = face
dx_type: histopathology = histo, biopsy = biopsy
dx: MEL = mel, Malignant melanoma = mel, melanocytic_nevi = nv, Seborrheic keratosis = bkl
dx: Bowen's disease = akiec, Actinic keratoses and intraepithelial carcinoma = akiec
"""


@pytest.mark.parametrize("line", WORDS.strip().splitlines())
def test_other_words(tmp_path, line):
    column, words = line.split(": ")
    old = dict(zip(HEADER.split(","), ROWS[0].split(","), strict=True))[column]
    for word, right in (pair.split(" = ") for pair in words.split(", ")):
        table = read(tmp_path, change(f",{old},", f",{word},")).set_index("image_id")
        assert table.loc["ISIC_0000003", column] == right


def test_words_and_columns_that_are_not_known_are_kept_and_named(tmp_path):
    (tmp_path / "a.csv").write_text(TEXT.replace("scalp", "head/neck").replace("sex", "s"))
    with pytest.warns(UserWarning) as caught:
        table = read_metadata(tmp_path / "a.csv")
    missing, words = (str(warning.message) for warning in caught)
    assert "a.csv: it has no sex among lesion_id, image_id" in missing
    assert "a.csv: localization is head/neck in 1 of 4 rows" in words
    assert list(table["localization"]) == ["back", "trunk", "head/neck", "face"]


@pytest.mark.parametrize("id", ["ISIC_0000003.jpg", "isic_0000003.PNG", "images/ISIC_0000003.jp2"])
def test_columns_and_ids_in_other_words(tmp_path, id):
    text = change("image_id,dx,dx_type,age", "isic_id,diagnosis,diagnosis_confirm_type,age_approx")
    text = change("ISIC_0000003", id, change("localization", "anatom_site_general", text))
    pd.testing.assert_frame_equal(read(tmp_path, text), read(tmp_path, TEXT))


def test_the_split_is_kept_in_any_spelling(tmp_path):
    words = ["split", "train", "valid", "TESTING", "Training"]
    text = "\n".join(f"{line},{word}" for line, word in zip([HEADER, *ROWS], words, strict=True))
    assert list(read(tmp_path, text)["split"]) == ["val", "test", "train", "train"]


def test_the_challenge_reads_to_the_same_table(tmp_path):
    columns = ["image_id", "lesion_id", "dx", "label", "group"]
    table = read(tmp_path, TRUTH, GROUPS)
    pd.testing.assert_frame_equal(table[columns], read(tmp_path, TEXT)[columns])
    assert list(table["dx_type"]) == ["follow_up", "follow_up", "clinical", "histo"]
    assert table["age"].isna().all() and set(table["sex"]) == {"unknown"}


def test_classes_are_read_by_name(tmp_path):
    truth = "VASC;DF;image;NV;MEL;AKIEC;BCC;BKL;score_weight\n"
    truth += "0,0;1,0;a;0;0;0;0;0;0,5\n0;0;b;0;1;0;0;0;1\n"
    groups = "image,lesion_id,diagnosis_confirm_type\na,1,\nb,2,\n"
    assert list(read(tmp_path, truth, groups)["dx"]) == ["df", "mel"]


@pytest.mark.parametrize(
    ("pairs", "lesions", "groups"),
    [
        (DUPLICATE_PAIRS, range(40), {f"{k}" for k in range(0, 40, 2)}),
        (DUPLICATE_PAIRS[:3], "bcdeec", {"b"}),
        ([DUPLICATE_PAIRS[0][:1]], "b", {"b"}),
    ],
)
def test_published_duplicates_are_one_lesion(tmp_path, pairs, lesions, groups):
    names = [image for pair in pairs for image in pair]
    rows = [f"{k},{image.lower()}.jpg,nv,,,,," for k, image in zip(lesions, names, strict=True)]
    table = read(tmp_path, "\n".join([HEADER, *rows]))
    assert len(set(names)) == len(names) and set(table["group"]) == groups


FAULTS = [
    ("", ["empty"]),
    (",,,\n,,,\n", ["empty"]),
    (HEADER, ["no rows"]),
    ("<!DOCTYPE html>\n<html><body>403</body></html>\n", ["lacks", "image_id", "doctype"]),
    (change("scalp", "Kopfhäut").encode("latin-1"), ["utf-8"]),
    (b"PK\x03\x04\xff\x00", ["it is a spreadsheet", "save it as CSV"]),
    (b"\xd0\xcf\x11\xe0", ["it is a spreadsheet"]),
    (b"\x00" * 200_000, ["no text", "save it as CSV in UTF-8"]),
    (TEXT.encode("utf-16-le"), ["UTF-16 without its mark"]),
    (
        change("HAM_4", "1.23E+11"),
        ["lesion_id was rounded by a spreadsheet", "'1.23E+11' in line 5"],
    ),
    ("pixel0000,pixel0001,label\n1,2,0\n" * 10, ["without image ids", "helpers download"]),
    (change("dx_type", "dx"), ["columns dx twice"]),
    (change(ROWS[3], "HAM_4,ISIC_0000004,akiec"), ["line 5", "8 values"]),
    (change(",mel,", ",melanom,"), ["dx must be one of akiec, bcc,", "'melanom' in line 2"]),
    (change(",akiec,", ",NA,"), ["dx must be", "'' in line 5"]),
    (change("1,nv", "1,mel"), ["'HAM_1 is mel' in line 3", "'HAM_1 is nv' in line 4"]),
    (change("80.5", "old"), ["age must be 0 to 120", "'old' in line 2"]),
    (change("80.5", "-5"), ["'-5' in line 2"]),
    (change("80.5", "inf"), ["'inf' in line 2"]),
    (change("ISIC_0000004", ""), ["image_id must be filled in", "line 5"]),
    (change("ISIC_0000004", "isic_0000003.jpg"), ["image_id must be there once", "line 2, 5"]),
    (TEXT.replace("\n", ",dev\n").replace("dev", "split", 1), ["split", "'dev' in line 2"]),
    # the challenge
    (change("3,1.0,", "3,0.0,", TRUTH), ["not a 1 and else 0", "line 2"]),
    (change("1,0.0,1.0", "1,0.5,0.5", TRUTH), ["not a 1 and else 0", "line 3"]),
    (change("1,0.0,1.0", "1,,1.0", TRUTH), ["not a 1 and else 0", "line 3"]),
    (change("BCC,AKIEC", "BCC,SCC", TRUTH), ["dx must be one of akiec", "'scc' in line 5"]),
    (change("image,", "id,", TRUTH), ["lacks the columns image_id"]),
    (change("BCC", "nevus", TRUTH), ["columns nv twice"]),
]


@pytest.mark.parametrize(("content", "words"), FAULTS)
def test_faults_are_named(tmp_path, content, words):
    problems = find_problems(tmp_path, content)
    assert len(problems) == 1
    assert all(word in problems[0] for word in words), problems


FAULTS_OF_GROUPINGS = [
    ("lesion_id", "lesion", ["it lacks the columns lesion_id"]),
    ("0004,HAM_4", "0004,HAM_3", ["HAM_3 is mel", "HAM_3 is akiec"]),
    ("ISIC_0000003", "ISIC_0000004", ["image_id", "'ISIC_0000004' in line 2, 5"]),
    ("0003,HAM_3", "0003;HAM_3", ["line 5 has not 3 values"]),
]


@pytest.mark.parametrize(("old", "new", "words"), FAULTS_OF_GROUPINGS)
def test_faults_of_groupings(tmp_path, old, new, words):
    (problem,) = find_problems(tmp_path, TRUTH, change(old, new, GROUPS))
    assert all(word in problem for word in ["groups.csv", *words]), problem


def test_all_problems_are_reported_together(tmp_path):
    rows = ["HAM_3,ISIC_0000003,melanom,histo,old,male,scalp,x", ",NA,nv,,200,,,", "HAM_5,ISIC_2"]
    rows += ["HAM_4,ISIC_0000004,nv,,,,,", "HAM_4,ISIC_0000004,mel,,,,,"]
    problems = find_problems(tmp_path, "\n".join([HEADER, *rows]))
    words = ["line 4 has", "ISIC_0000004", "'melanom'", "'old' in line 2, '200' in line 3", "HAM_4"]
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


def test_a_column_of_faults_stays_short_and_a_file_that_is_not_there_is_named(tmp_path):
    rows = [f"HAM_{i},{i},no{i},histo,x{i},male,back,rosendahl" for i in range(1000)]
    problems = find_problems(tmp_path, "\n".join([HEADER, *rows]))
    assert len(problems) == 2 and all("and 995 more" in problem for problem in problems)
    with pytest.raises(InputError, match=r"none\.csv.*No such file"):
        read_metadata(tmp_path / "none.csv")


@settings(deadline=None, max_examples=25)
@given(content=st.binary(max_size=300) | st.text(alphabet=f"{HEADER}\"';\t\r\n0é").map(str.encode))
def test_no_content_ends_in_another_error(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for start in ("", HEADER, TRUTH.split("\n")[0], "sep=;"):
        with pytest.raises(InputError):
            read(folder, f"{start}\n".encode() + content)
    with pytest.raises(InputError):
        read(folder, TRUTH, content)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data in ../shared/data")
def test_official_metadata():
    table = read_metadata(SHARED / "metadata" / "HAM10000_metadata.csv")
    assert table["age"].isna().sum() == 57 and (table["age"] == 0).sum() == 39
    assert len(table) == 10015
    assert table["lesion_id"].nunique() == 7470 and table["group"].nunique() == 7450
    assert table["dx"].value_counts().to_dict() == COUNTS
    confirmed = {"histo": 5340, "follow_up": 3704, "consensus": 902, "confocal": 69}
    assert table["dx_type"].value_counts().to_dict() == confirmed
    table = read_metadata(SHARED / "metadata" / "ISIC2018_Task3_Test_GroundTruth.csv")
    assert len(table) == 1512 and (table["dx"] == "nv").sum() == 909


@pytest.mark.parametrize(
    ("folder", "dx"),
    [
        ("4. Basal Cell Carcinoma (BCC) 3323", "bcc"),
        ("Melanoma (MEL)", "mel"),
        ("melanocytic nevi (nv)", "nv"),
        ("haemangioma", "vasc"),
        ("pyogenic granulomas", "vasc"),
        ("Intraepithelial carcinoma", "akiec"),
        ("nevus (mel)", ""),
        ("train", ""),
        ("2024", ""),
    ],
)
def test_class_of_a_folder_name(folder, dx):
    assert find_class(folder) == dx
