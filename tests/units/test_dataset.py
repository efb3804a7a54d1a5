"""What read_dataset makes of every layout, and what it says of every fault."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.data.reading import (
    CLASS_NAMES,
    CLASSES,
    DUPLICATE_PAIRS,
    DatasetError,
    read_dataset,
    read_metadata,
)
from helpers.data.sample import make_table

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
ROWS = [
    "HAM_3,ISIC_0000003,mel,histo,80.0,male,scalp,rosendahl",
    "HAM_1,ISIC_0000001,nv,follow_up,,female,back,vidir_molemax",
    "HAM_1,ISIC_0000002,nv,follow_up,0,female,trunk,vidir_molemax",
    "HAM_4,ISIC_0000004,akiec,histo,65.0,unknown,face,rosendahl",
]
IDS = [row.split(",")[1] for row in ROWS]
TRAINING, TEST = "ISIC2018_Task3_Training", "ISIC2018_Task3_Test"
TRUTH_HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
CONFIRMED = {
    "histo": "histopathology",
    "follow_up": "serial imaging showing no change",
    "consensus": "single image expert consensus",
    "confocal": "confocal microscopy with consensus dermoscopy",
}
UNSCORED = "ISIC_0035068"


def draw_image(path, colour=(200, 120, 90)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)


def write_folder(folder, rows=ROWS, header=HEADER, csv="HAM10000_metadata.csv", parts=None):
    """Writes a folder: {subfolder: image ids} in `parts`, all images in one part if None."""
    folder.mkdir(exist_ok=True)
    (folder / csv).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    for part, ids in (parts or {"HAM10000_images_part_1": IDS}).items():
        for image_id in ids:
            draw_image(folder / part / f"{image_id}.jpg")
    return folder


def make_truth(table):
    """The challenge's truth of a table, and its lesion groupings, as texts."""
    names = TRUTH_HEADER.lower().split(",")[1:]
    values = {dx: ",".join(str(float(dx == name)) for name in names) for dx in names}
    truth = [TRUTH_HEADER]
    groups = ["image,lesion_id,diagnosis_confirm_type"]
    for row in table.itertuples():
        truth.append(f"{row.image_id},{values[row.dx]}")
        groups.append(f"{row.image_id},{row.lesion_id},{CONFIRMED.get(row.dx_type, row.dx_type)}")
    return "\n".join(truth) + "\n", "\n".join(groups[:1] + groups[:0:-1]) + "\n"


def write_challenge(folder, truth, groups=None, ids=IDS, part=TRAINING):
    """Writes the layout of the challenge, as `helpers.download --source isic` leaves it."""
    path = folder / f"{part}_GroundTruth" / f"{part}_GroundTruth.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(truth, encoding="utf-8")
    if groups is not None:
        (folder / f"{part}_LesionGroupings.csv").write_text(groups, encoding="utf-8")
    write_images(folder / f"{part}_Input", ids)
    return folder


def write_images(folder, ids):
    """Writes one small image under many names, which is quicker than to draw each."""
    draw_image(folder / "first.jpg")
    data = (folder / "first.jpg").read_bytes()
    (folder / "first.jpg").unlink()
    for image_id in ids:
        (folder / f"{image_id}.jpg").write_bytes(data)


def parse_rows(rows=ROWS):
    return pd.DataFrame([row.split(",") for row in rows], columns=HEADER.split(","))


def replace_value(row, old, new):
    """ROWS with one value changed: a fault at a known line (the header is line 1)."""
    assert old in ROWS[row]
    return [text.replace(old, new, 1) if i == row else text for i, text in enumerate(ROWS)]


def find_problems(folder):
    with pytest.raises(DatasetError) as caught:
        read_dataset(folder)
    assert str(folder) in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def find_problem(folder, *words):
    problems = find_problems(folder)
    assert len(problems) == 1, problems
    for word in words:
        assert word in problems[0]


# The table


def test_table_holds_the_values_sorted_by_image(tmp_path):
    table = read_dataset(write_folder(tmp_path))
    first = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    assert list(table.columns) == [*first, "path", "label", "group"]
    assert list(table["image_id"]) == sorted(IDS)
    assert list(table.index) == [0, 1, 2, 3]
    assert list(table["label"]) == [5, 5, 4, 0]
    assert [CLASSES[label] for label in table["label"]] == list(table["dx"])
    assert table["age"].dtype == float and table["label"].dtype == "int64"
    assert table["age"].isna().tolist() == [True, False, False, False]
    assert table["age"].tolist()[1:] == [0, 80, 65]
    assert list(table["group"]) == list(table["lesion_id"]) == ["HAM_1", "HAM_1", "HAM_3", "HAM_4"]
    assert [Path(path).stem for path in table["path"]] == list(table["image_id"])


def test_classes_are_in_the_order_of_the_project():
    assert CLASSES == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert tuple(CLASS_NAMES) == CLASSES


def test_relative_folder_gives_relative_paths(tmp_path, monkeypatch):
    write_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert read_dataset("data")["path"][0].startswith("data")


def test_order_of_rows_does_not_matter(tmp_path):
    table = read_dataset(write_folder(tmp_path))
    again = read_dataset(write_folder(tmp_path, rows=ROWS[::-1]))
    pd.testing.assert_frame_equal(table, again)


def test_empty_words_become_unknown(tmp_path):
    rows = [row.replace(",male,scalp,", ",,,") for row in ROWS]
    table = read_dataset(write_folder(tmp_path, rows=rows)).set_index("image_id")
    assert list(table.loc["ISIC_0000003", ["sex", "localization"]]) == ["unknown", "unknown"]


@pytest.mark.parametrize("value", ["", "NaN", "NA", "unknown"])
def test_missing_age(tmp_path, value):
    rows = replace_value(0, "80.0", value)
    assert read_dataset(write_folder(tmp_path, rows=rows))["age"].isna().sum() == 2


# Layouts


@pytest.mark.parametrize(
    ("csv", "separator"),
    [
        ("HAM10000_metadata", ","),
        ("HAM10000_metadata.csv", ","),
        ("HAM10000_metadata.csv", ";"),
        ("HAM10000_metadata.tab", "\t"),
        ("mine.csv", ","),
        ("mine.tsv", "\t"),
    ],
)
def test_dataverse_layout(tmp_path, csv, separator):
    parts = {"HAM10000_images_part_1": IDS[:2], "HAM10000_images_part_2": IDS[2:]}
    rows = [row.replace(",", separator) for row in ROWS]
    header = HEADER.replace(",", separator)
    assert len(read_dataset(write_folder(tmp_path, rows, header, csv, parts))) == 4


def test_kaggle_layout_with_every_image_twice(tmp_path):
    # Other names where the file system takes the two spellings for one.
    parts = {"HAM10000_images_part_1": IDS, "ham10000_images_part_1": IDS, "again/part_2": IDS}
    rows = [row.rsplit(",", 1)[0] for row in ROWS]
    write_folder(tmp_path, rows, HEADER.rsplit(",", 1)[0], parts=parts)
    (tmp_path / "hmnist_28_28_RGB.csv").write_text("pixel0000,label\n1,2\n")
    table = read_dataset(tmp_path)
    assert len(table) == 4
    assert "dataset" not in table


def test_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    parts = dict.fromkeys(("a", "b", "c"), IDS)
    write_folder(tmp_path, parts=parts)
    for image_id in IDS:
        shutil.copy(tmp_path / "a" / f"{image_id}.jpg", tmp_path / "a" / f"{image_id}.jpeg")
    table = read_dataset(tmp_path)
    walk = os.walk

    def walk_backwards(*args, **kwargs):
        for parent, folders, names in walk(*args, **kwargs):
            folders.sort(reverse=True)
            yield parent, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", walk_backwards)
    pd.testing.assert_frame_equal(table, read_dataset(tmp_path))


def test_flat_folder_with_other_suffixes(tmp_path):
    write_folder(tmp_path, parts={".": IDS[:1], "deep/er": IDS[1:2]})
    draw_image(tmp_path / f"{IDS[2]}.JPEG")
    draw_image(tmp_path / f"{IDS[3]}.Png")
    suffixes = {Path(path).suffix for path in read_dataset(tmp_path)["path"]}
    assert suffixes == {".jpg", ".JPEG", ".Png"}


def test_junk_and_images_without_a_row_are_ignored(tmp_path):
    write_folder(tmp_path)
    for junk in ("__MACOSX/HAM10000_images_part_1", ".hidden", ".ipynb_checkpoints"):
        (tmp_path / junk).mkdir(parents=True)
        (tmp_path / junk / f"{IDS[0]}.jpg").write_bytes(b"junk")
        (tmp_path / junk / "HAM10000_metadata.csv").write_bytes(b"junk")
    (tmp_path / f"._{IDS[0]}.jpg").write_bytes(b"junk")
    (tmp_path / f"{IDS[0]}_segmentation.png").write_bytes(b"junk")
    draw_image(tmp_path / "ISIC_9999999.jpg")
    assert len(read_dataset(tmp_path)) == 4


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    write_folder(tmp_path / "elsewhere")
    write_folder(tmp_path / "data", parts={"none": []})
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere" / "HAM10000_images_part_1")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert len(read_dataset(tmp_path / "data")) == 4


def test_blank_lines_spaces_quotes_byte_order_mark_and_extra_columns(tmp_path):
    text = "\r\n".join([f"{HEADER},note", *(f'"{row.replace(",", " , ", 1)},x"' for row in ROWS)])
    text = text.replace('"', "").replace("scalp", '"scalp"') + "\r\n\r\n,,,,,,,,\r\n"
    write_folder(tmp_path)
    (tmp_path / "HAM10000_metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = read_dataset(tmp_path)
    assert len(table) == 4 and "note" not in table
    assert "scalp" in set(table["localization"]) and "HAM_3" in set(table["lesion_id"])


def test_the_same_metadata_twice_is_taken_once(tmp_path):
    write_folder(tmp_path)
    shutil.copy(tmp_path / "HAM10000_metadata.csv", tmp_path / "HAM10000_metadata")
    assert len(read_dataset(tmp_path)) == 4


@pytest.mark.parametrize("splits", [("train", "val", "test", "test"), ("train", "test") * 2])
def test_split_column_is_kept(tmp_path, splits):
    rows = [f"{row},{split}" for row, split in zip(ROWS, splits, strict=True)]
    table = read_dataset(write_folder(tmp_path, rows, f"{HEADER},split"))
    assert dict(zip(IDS, splits, strict=True)) == dict(
        zip(table["image_id"], table["split"], strict=True)
    )


@pytest.fixture(scope="module")
def sample():
    """The table of the drawn sample, with two of its nevi renamed to a known duplicate pair."""
    table = make_table()
    views = table.groupby("lesion_id")["image_id"].transform("size")
    pair = table.index[(table["dx"] == "nv") & (views == 1)][:2]
    table.loc[pair, "image_id"] = DUPLICATE_PAIRS[0]
    assert set(table["dx_type"]) == set(CONFIRMED) and table["age"].isna().any()
    return table


def write_layout(folder, table, layout):
    ids = list(table["image_id"])
    halves = {"HAM10000_images_part_1": ids[:200], "HAM10000_images_part_2": ids[200:]}
    folder.mkdir()
    if layout == "challenge":
        return write_challenge(folder, *make_truth(table), ids)
    if layout == "kaggle":
        table = table.drop(columns="dataset")
        halves.update({name.lower(): part for name, part in halves.items()})
    csv = {"dataverse": "HAM10000_metadata", "flat": "mine.csv"}.get(
        layout, "HAM10000_metadata.csv"
    )
    table.to_csv(folder / csv, index=False)
    for name, part in ({".": ids} if layout == "flat" else halves).items():
        write_images(folder / name, part)
    return folder


@pytest.mark.parametrize("layout", ["dataverse", "kaggle", "challenge", "flat"])
def test_every_layout_reads_to_the_same_table(tmp_path, sample, layout):
    with warnings.catch_warnings(action="error"):
        table = read_dataset(write_layout(tmp_path / layout, sample, layout))
    assert [Path(path).stem for path in table["path"]] == list(table["image_id"])
    expected = sample.sort_values("image_id", ignore_index=True)
    expected["label"] = [CLASSES.index(dx) for dx in expected["dx"]]
    of_pair = expected["image_id"].isin(DUPLICATE_PAIRS[0])
    expected["group"] = expected["lesion_id"].mask(of_pair, expected["lesion_id"][of_pair].min())
    if layout in ("kaggle", "challenge"):
        expected = expected.drop(columns="dataset")
    if layout == "challenge":
        expected = expected.assign(age=float("nan"), sex="unknown", localization="unknown")
    assert expected["group"].nunique() == expected["lesion_id"].nunique() - 1
    pd.testing.assert_frame_equal(table.drop(columns="path"), expected, check_like=True)


def test_classes_of_the_challenge_are_read_by_name(tmp_path):
    truth = "VASC,DF,image,NV,MEL,AKIEC,BCC,BKL,score_weight\n"
    truth += "".join(
        f"0,0,{image_id},{values},0,0.5\n"
        for image_id, values in zip(
            IDS, ("0,1,0,0", "1,0,0,0", "1.0,0.0,0,0", "0,0,1,0"), strict=True
        )
    )
    table = read_dataset(write_challenge(tmp_path, truth, make_truth(parse_rows())[1]))
    assert list(table["dx"]) == ["nv", "nv", "mel", "akiec"]
    assert list(table["label"]) == [5, 5, 4, 0]


@pytest.mark.parametrize(("start", "end"), [("", "\r\n"), ("", "\r"), ("\ufeff", "\n")])
def test_line_ends_and_byte_order_mark_of_both_formats(tmp_path, start, end):
    texts = ["\n".join([HEADER, *ROWS, ""]), *make_truth(parse_rows())]
    for path, text in zip("abc", texts, strict=True):
        (tmp_path / path).write_bytes((start + text).replace("\n", end).encode())
    ham, challenge = read_metadata(tmp_path / "a"), read_metadata(tmp_path / "b", tmp_path / "c")
    columns = ["image_id", "lesion_id", "dx", "dx_type", "label", "group"]
    pd.testing.assert_frame_equal(ham[columns], challenge[columns])
    write_challenge(tmp_path / "data", "", "")
    for part, path in (
        ("GroundTruth/ISIC2018_Task3_Training_GroundTruth", "b"),
        ("LesionGroupings", "c"),
    ):
        shutil.copy(tmp_path / path, tmp_path / "data" / f"{TRAINING}_{part}.csv")
    assert list(read_dataset(tmp_path / "data")["dx"]) == list(ham["dx"])


def test_other_kinds_of_confirmation_are_kept(tmp_path):
    truth, groups = make_truth(parse_rows())
    groups = groups.replace("histopathology", "clinical", 1).replace("histopathology", "")
    table = read_dataset(write_challenge(tmp_path, truth, groups))
    assert sorted(table["dx_type"]) == ["clinical", "follow_up", "follow_up", "unknown"]


def test_the_truth_of_a_test_needs_no_groupings(tmp_path):
    truth, _ = make_truth(parse_rows())
    table = read_dataset(write_challenge(tmp_path, truth, part=TEST))
    assert list(table["lesion_id"]) == list(table["group"]) == sorted(IDS)
    assert set(table["dx_type"]) == {"unknown"}


@pytest.mark.parametrize("form", ["dataverse", "challenge"])
@pytest.mark.parametrize("has_image", [False, True])
def test_the_image_without_weight_is_left_out_and_named(tmp_path, form, has_image):
    rows = [*ROWS[:1], f"HAM_9,{UNSCORED},nv,consensus,,,,", *ROWS[1:]]
    ids = [*IDS, UNSCORED] if has_image else IDS
    if form == "challenge":
        write_challenge(tmp_path, make_truth(parse_rows(rows))[0], ids=ids, part=TEST)
    else:
        csv = f"{TEST}_GroundTruth.csv"
        write_folder(tmp_path, rows, csv=csv, parts={f"{TEST}_Images": ids})
    with pytest.warns(
        UserWarning, match=f"{UNSCORED} is left out, 4 images remain.*weight 0"
    ) as seen:
        table = read_dataset(tmp_path)
    assert [Path(warning.filename).name for warning in seen] == [Path(__file__).name]
    assert list(table["image_id"]) == sorted(IDS) and list(table.index) == [0, 1, 2, 3]


# Groups


def write_pairs(folder, pairs, lesions):
    rows = [
        f"{lesion},{image},nv,histo,50,male,back,rosendahl"
        for pair, ids in zip(pairs, lesions, strict=True)
        for image, lesion in zip(pair, ids, strict=True)
    ]
    path = folder / "HAM10000_metadata.csv"
    path.write_text("\n".join([HEADER, *rows]))
    return read_metadata(path)


def test_lesions_of_duplicate_pairs_share_a_group(tmp_path):
    lesions = [(f"HAM_{2 * i:03d}", f"HAM_{2 * i + 1:03d}") for i in range(20)]
    table = write_pairs(tmp_path, DUPLICATE_PAIRS, lesions)
    assert table["lesion_id"].nunique() == 40
    assert table["group"].nunique() == 20
    assert (table.groupby("group").size() == 2).all()
    assert table["group"].isin(table["lesion_id"]).all()


def test_pairs_that_share_a_lesion_make_one_group(tmp_path):
    table = write_pairs(tmp_path, DUPLICATE_PAIRS[:3], [("b", "c"), ("d", "e"), ("e", "c")])
    assert set(table["group"]) == {"b"}


def test_half_a_pair_changes_nothing(tmp_path):
    table = write_pairs(tmp_path, [(DUPLICATE_PAIRS[0][0],)], [("HAM_1",)])
    assert list(table["group"]) == ["HAM_1"]


def test_pairs_are_twenty_of_forty_images():
    assert len(DUPLICATE_PAIRS) == 20
    assert len({image for pair in DUPLICATE_PAIRS for image in pair}) == 40


# Faults


def test_missing_folder(tmp_path):
    find_problem(tmp_path / "nowhere", "does not exist", "DATA_DIR")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    find_problem(tmp_path / "data.zip", "is a file", "unpack")


def test_empty_folder(tmp_path):
    problems = find_problems(tmp_path)
    assert len(problems) == 2
    assert "no metadata file" in problems[0] and "HAM10000_metadata.csv" in problems[0]
    assert ".jpg" in problems[1]


def test_packed_images_are_pointed_out(tmp_path):
    write_folder(tmp_path, parts={"none": []})
    (tmp_path / "HAM10000_images_part_1.zip").write_bytes(b"PK")
    find_problem(tmp_path, "unpack HAM10000_images_part_1.zip")


def test_several_metadata_files(tmp_path):
    write_folder(tmp_path, csv="one.csv")
    write_folder(tmp_path, rows=ROWS[:2], csv="two.csv")
    find_problem(tmp_path, "one.csv", "two.csv", "keep one")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\n \n", ["empty"]),
        (b",,,\n,,,\n", ["empty"]),
        (HEADER.encode(), ["no rows"]),
        (b"<!DOCTYPE html>\n<html><body>403</body></html>\n", ["lacks", "image_id", "DOCTYPE"]),
        ("\n".join([HEADER, *ROWS]).encode("utf-16"), ["UTF-8"]),
        ("\n".join([HEADER, *ROWS]).replace("scalp", "Kopfhäut").encode("latin-1"), ["UTF-8"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ["UTF-8"]),
        (b"\x00" * 200_000, ["no CSV", "line 1"]),
        ((HEADER + "\n" + '"' + "x" * 200_000).encode(), ["no CSV"]),
    ],
)
def test_metadata_that_is_no_table(tmp_path, content, words):
    write_folder(tmp_path)
    (tmp_path / "HAM10000_metadata.csv").write_bytes(content)
    problems = find_problems(tmp_path)
    for word in ["HAM10000_metadata.csv", *words]:
        assert word in problems[0]


@settings(deadline=None, max_examples=40)
@given(content=st.binary(max_size=300) | st.text(alphabet=f"{HEADER}\"';\t\r\n0é").map(str.encode))
def test_no_content_ends_in_another_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    truth, groups = make_truth(parse_rows())
    for start in ("", HEADER, TRUTH_HEADER, groups.split("\n")[0]):
        path.write_bytes(f"{start}\n".encode() + content)
        with pytest.raises(DatasetError):
            read_metadata(path)
    path.with_name("truth.csv").write_text(truth)
    with pytest.raises(DatasetError):
        read_metadata(path.with_name("truth.csv"), path)


def test_metadata_that_does_not_exist(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.csv cannot be read"):
        read_metadata(tmp_path / "none.csv")


def test_missing_columns(tmp_path):
    write_folder(tmp_path, header=HEADER.replace("dx_type", "type").replace("sex", "gender"))
    find_problem(tmp_path, "lacks the columns dx_type, sex", "gender")


def test_repeated_column(tmp_path):
    write_folder(tmp_path, header=HEADER.replace("dx_type", "dx"))
    problems = find_problems(tmp_path)
    assert any("columns dx twice" in problem for problem in problems)


def test_line_with_too_few_values(tmp_path):
    write_folder(tmp_path, rows=[*ROWS[:3], "HAM_4,ISIC_0000004,akiec"])
    find_problem(tmp_path, "line 5", "8 values")


@pytest.mark.parametrize(
    ("row", "old", "new", "words"),
    [
        (0, "mel", "melanoma", ["dx 'melanoma'", "line 2", "akiec, bcc, bkl, df, mel, nv, vasc"]),
        (3, "akiec", "", ["dx ''", "line 5"]),
        (1, "nv", "mel", ["HAM_1", "mel in line 3", "nv in line 4"]),
        (0, "80.0", "old", ["age 'old'", "line 2", "0 to 120"]),
        (0, "80.0", "-5", ["age '-5'", "line 2"]),
        (0, "80.0", "120.5", ["age '120.5'"]),
        (0, "80.0", "inf", ["age 'inf'"]),
        (3, "HAM_4", "", ["lesion_id is empty", "line 5"]),
        (3, "ISIC_0000004", "", ["image_id is empty", "line 5"]),
        (3, "ISIC_0000004", "ISIC_0000003", ["ISIC_0000003", "line 2, 5"]),
        (3, "ISIC_0000004", "ISIC_0000009", ["1 of 4 images are missing", "ISIC_0000009"]),
    ],
)
def test_wrong_value(tmp_path, row, old, new, words):
    find_problem(write_folder(tmp_path, replace_value(row, old, new)), *words)


@pytest.mark.parametrize("value", ["valid", "Train", ""])
def test_unknown_split(tmp_path, value):
    rows = [f"{row},{split}" for row, split in zip(ROWS, ["train"] * 3 + [value], strict=True)]
    write_folder(tmp_path, rows, f"{HEADER},split")
    find_problem(tmp_path, f"split {value!r}", "line 5", "train, val, test")


def test_missing_images_are_counted_and_five_are_named(tmp_path):
    rows = [f"HAM_{i},ISIC_{i:07d},nv,histo,5,male,back,rosendahl" for i in range(1, 12)]
    write_folder(tmp_path, rows)
    find_problem(tmp_path, "7 of 11 images", "ISIC_0000005", "ISIC_0000009 and 2 more")


def test_link_to_nowhere_is_a_missing_image(tmp_path):
    write_folder(tmp_path, parts={"part": IDS[1:]})
    (tmp_path / f"{IDS[0]}.jpg").symlink_to(tmp_path / "gone.jpg")
    find_problem(tmp_path, "1 of 4 images are missing", IDS[0])


def test_files_of_one_image_that_differ(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / f"{IDS[0]}.jpg").write_bytes(b"half a download")
    find_problem(tmp_path, IDS[0], "differ", "15 bytes")


def test_all_problems_are_reported_together(tmp_path):
    rows = [
        "HAM_3,ISIC_0000003,melanoma,histo,old,scalp,rosendahl",
        "HAM_1,ISIC_0000001,nv,follow_up,,back,vidir_molemax",
        "HAM_1,ISIC_0000001,mel,follow_up,200,trunk,vidir_molemax",
        ",ISIC_0000009,akiec,histo,65.0,face,rosendahl",
        "HAM_5,ISIC_0000002",
    ]
    problems = find_problems(write_folder(tmp_path, rows, HEADER.replace("sex,", "")))
    words = ["line 6", "columns sex", "lesion_id is empty", "ISIC_0000001", "melanoma"]
    words += ["HAM_1 has several", "'old'", "'200'", "ISIC_0000009"]
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_a_column_of_faults_stays_short(tmp_path):
    rows = [f"HAM_{i},{i},no{i},histo,x{i},male,back,rosendahl" for i in range(1000)]
    problems = find_problems(write_folder(tmp_path, rows))
    assert len(problems) == 13
    assert problems[5].endswith("995 more like it")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("AKIEC", "AK", ["lacks the columns AKIEC", "it has image, MEL"]),
        ("image,", "id,", ["lacks the columns image"]),
        ("BCC", "NV", ["lacks the columns BCC", "columns NV twice"]),
        ("VASC", "VASC,UNK,SCC", ["columns SCC, UNK", "no class"]),
        ("ISIC_0000003,1.0,", "ISIC_0000003,0.0,", ["line 2", "a 1 for one class"]),
        ("ISIC_0000001,0.0,", "ISIC_0000001,1.0,", ["line 3", "a 1 for one class"]),
        ("ISIC_0000001,0.0,", "ISIC_0000001,0.5,", ["line 3"]),
        ("ISIC_0000001,0.0,", "ISIC_0000001,,", ["line 3"]),
        ("ISIC_0000001,0.0,", "ISIC_0000001,no,", ["line 3"]),
        ("ISIC_0000001,0.0,", "ISIC_0000001,", ["line 3 has not 8 values"]),
        ("ISIC_0000001,0.0,1.0", "ISIC_0000001,1.0,0.0", ["HAM_1", "mel in line 3, nv in line 4"]),
        ("ISIC_0000001,", "ISIC_0000003,", ["image 'ISIC_0000003' in line 2, 3"]),
        ("ISIC_0000001,", ",", ["image is empty in line 3"]),
    ],
)
def test_wrong_truth(tmp_path, old, new, words):
    truth, groups = make_truth(parse_rows())
    assert old in truth
    text = " ".join(find_problems(write_challenge(tmp_path, truth.replace(old, new, 1), groups)))
    for word in [f"{TRAINING}_GroundTruth.csv", *words]:
        assert word in text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lesion_id", "lesion", ["lacks the columns lesion_id"]),
        ("diagnosis_confirm_type", "type", ["lacks the columns diagnosis_confirm_type"]),
        (",HAM_3,", ",,", ["lesion_id is empty in line 5"]),
        ("0004,HAM_4", "0004,HAM_3", ["HAM_3", "mel in line 2", "akiec in line 5"]),
        (
            "ISIC_0000003,HAM_3",
            "ISIC_0000003,HAM_3,histopathology\nISIC_0000003,HAM_3",
            ["image 'ISIC_0000003' in line 5, 6"],
        ),
        ("ISIC_0000003,", "ISIC_0000003;", ["line 5 has not 3 values"]),
    ],
)
def test_wrong_groupings(tmp_path, old, new, words):
    truth, groups = make_truth(parse_rows())
    assert old in groups
    text = " ".join(find_problems(write_challenge(tmp_path, truth, groups.replace(old, new, 1))))
    for word in ["ISIC2018_Task3_Training_", *words]:
        assert word in text


def test_images_without_grouping_and_groupings_without_image(tmp_path):
    rows = [f"HAM_{i},ISIC_{i:07d},nv,histo,,,," for i in range(1, 12)]
    truth, _ = make_truth(parse_rows(rows[:9]))
    _, groups = make_truth(parse_rows(rows[8:]))
    ids = [row.split(",")[1] for row in rows]
    problems = find_problems(write_challenge(tmp_path, truth, groups, ids))
    assert len(problems) == 2
    assert (
        "Groupings.csv: it lacks 8 of the 9 images of ISIC2018_Task3_Training_GroundTruth"
        in problems[0]
    )
    assert "ISIC_0000001" in problems[0] and "ISIC_0000005 and 3 more" in problems[0]
    assert "Truth.csv: it lacks 2 of the 3 images of ISIC2018_Task3_Training_Lesion" in problems[1]
    assert "ISIC_0000011, ISIC_0000010" in problems[1]


def test_training_truth_without_groupings(tmp_path):
    write_challenge(tmp_path, make_truth(parse_rows())[0])
    words = ["ISIC2018_Task3_Training_LesionGroupings.csv is missing", "--source isic"]
    find_problem(tmp_path, f"{TRAINING}_GroundTruth.csv", *words)


def test_groupings_without_truth(tmp_path):
    write_challenge(tmp_path, *make_truth(parse_rows()))
    shutil.rmtree(tmp_path / f"{TRAINING}_GroundTruth")
    (tmp_path / f"{TRAINING}_GroundTruth.zip").write_bytes(b"PK")
    words = ["lacks its truth", f"unpack {TRAINING}_GroundTruth.zip", "--source isic"]
    find_problem(tmp_path, "LesionGroupings.csv", *words)


def test_several_groupings_and_several_truths(tmp_path):
    truth, groups = make_truth(parse_rows())
    write_challenge(tmp_path, truth, groups)
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / f"{TRAINING}_LesionGroupings.csv"
    again.write_text(groups)
    assert len(read_dataset(tmp_path)) == 4
    again.write_text(groups + "\n")
    find_problem(tmp_path, "could be the lesion groupings", "again", "keep one")
    write_challenge(tmp_path, truth.replace("ISIC_0", "ISIC_1"), ids=[], part=TEST)
    find_problem(tmp_path, "could be the metadata", "test belongs in a folder of its own")


def test_groupings_that_are_no_table(tmp_path):
    write_challenge(tmp_path, make_truth(parse_rows())[0], "")
    find_problem(tmp_path, "LesionGroupings.csv is empty")


def test_all_problems_of_the_challenge_are_reported_together(tmp_path):
    truth, groups = make_truth(parse_rows())
    truth = truth.replace("VASC", "SCC").replace("ISIC_0000002", "ISIC_0000001")
    write_challenge(tmp_path, truth, groups.replace("HAM_4", ""), ids=IDS[:3])
    words = ["columns VASC", "SCC", "'ISIC_0000001' in line 3, 4", "lesion_id is empty in line 2"]
    words += ["it lacks 1 of the 4 images", "1 of 3 images are missing: ISIC_0000004"]
    problems = find_problems(tmp_path)
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_error_survives_a_process_pool(tmp_path):
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.problems == caught.value.problems


# The real thing

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no real images in ../shared/data")


COUNTS = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}
TEST_COUNTS = {"akiec": 43, "bcc": 93, "bkl": 217, "df": 44, "mel": 171, "nv": 909, "vasc": 35}


@needs_data
@pytest.mark.parametrize("form", ["dataverse", "challenge"])
def test_official_metadata(tmp_path, form):
    table = read_metadata(SHARED / "metadata" / "HAM10000_metadata.csv")
    if form == "challenge":
        for name, text in zip("ab", make_truth(table), strict=True):
            (tmp_path / name).write_text(text)
        expected = table.drop(columns=["dataset", "age", "sex", "localization"])
        table = read_metadata(tmp_path / "a", tmp_path / "b")
        pd.testing.assert_frame_equal(table[expected.columns], expected)
        assert table["age"].isna().all() and "dataset" not in table
    else:
        assert table["age"].isna().sum() == 57 and (table["age"] == 0).sum() == 39
    assert len(table) == 10015
    assert table["lesion_id"].nunique() == 7470
    assert table["group"].nunique() == 7450
    assert table["dx"].value_counts().to_dict() == COUNTS
    confirmed = {"histo": 5340, "follow_up": 3704, "consensus": 902, "confocal": 69}
    assert table["dx_type"].value_counts().to_dict() == confirmed


@needs_data
@pytest.mark.parametrize("form", ["dataverse", "challenge"])
def test_official_test_truth(tmp_path, form):
    csv = SHARED / "metadata" / f"{TEST}_GroundTruth.csv"
    truth = read_metadata(csv)
    assert len(truth) == 1512
    assert truth["dx"].value_counts().to_dict() == TEST_COUNTS
    ids = [image_id for image_id in truth["image_id"] if image_id != UNSCORED]
    if form == "challenge":
        write_challenge(tmp_path, make_truth(truth)[0], ids=ids, part=TEST)
    else:  # as helpers.download --test leaves it
        shutil.copy(csv, tmp_path)
        write_images(tmp_path / f"{TEST}_Images", ids)
    with pytest.warns(UserWarning, match=f"{UNSCORED} is left out, 1511 images remain"):
        table = read_dataset(tmp_path)
    assert list(table["image_id"]) == ids
    assert table["dx"].value_counts().to_dict() == {**TEST_COUNTS, "nv": 908}
    assert table["group"].nunique() == (1511 if form == "challenge" else 1222)


@needs_data
@pytest.mark.parametrize(("name", "rows"), [("ham10000-28px", 7955), ("ham10000-original", 188)])
def test_real_folders(name, rows):
    table = read_dataset(SHARED / name)
    assert len(table) == rows
    assert table["path"].nunique() == rows
