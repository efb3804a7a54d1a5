"""What read_dataset makes of every layout, and what it says of every fault."""

import os
import pickle
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.dataset import (
    CLASS_NAMES,
    CLASSES,
    DUPLICATE_PAIRS,
    DatasetError,
    read_dataset,
    read_metadata,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
ROWS = [
    "HAM_3,ISIC_0000003,mel,histo,80.0,male,scalp,rosendahl",
    "HAM_1,ISIC_0000001,nv,follow_up,,female,back,vidir_molemax",
    "HAM_1,ISIC_0000002,nv,follow_up,0,female,trunk,vidir_molemax",
    "HAM_4,ISIC_0000004,akiec,histo,65.0,unknown,face,rosendahl",
]
IDS = [row.split(",")[1] for row in ROWS]


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


@settings(deadline=None)
@given(content=st.binary(max_size=300) | st.text(alphabet=f"{HEADER}\"';\t\r\n0é").map(str.encode))
def test_no_content_ends_in_another_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    for start in (b"", HEADER.encode() + b"\n"):
        path.write_bytes(start + content)
        with pytest.raises(DatasetError):
            read_metadata(path)


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
    words = ["columns sex", "line 6", "lesion_id is empty", "ISIC_0000001", "melanoma"]
    words += ["HAM_1 has several", "'old'", "'200'", "ISIC_0000009"]
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem


def test_a_column_of_faults_stays_short(tmp_path):
    rows = [f"HAM_{i},{i},no{i},histo,x{i},male,back,rosendahl" for i in range(1000)]
    problems = find_problems(write_folder(tmp_path, rows))
    assert len(problems) == 13
    assert problems[5].endswith("995 more like it")


def test_error_survives_a_process_pool(tmp_path):
    with pytest.raises(DatasetError) as caught:
        read_dataset(tmp_path)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.problems == caught.value.problems


# The real thing

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no real images in ../shared/data")


@needs_data
def test_official_metadata():
    table = read_metadata(SHARED / "metadata" / "HAM10000_metadata.csv")
    assert len(table) == 10015
    assert table["lesion_id"].nunique() == 7470
    assert table["group"].nunique() == 7450
    counts = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705}
    assert table["dx"].value_counts().to_dict() == {**counts, "vasc": 142}
    assert table["age"].isna().sum() == 57 and (table["age"] == 0).sum() == 39


@needs_data
def test_official_test_truth():
    assert len(read_metadata(SHARED / "metadata" / "ISIC2018_Task3_Test_GroundTruth.csv")) == 1512


@needs_data
@pytest.mark.parametrize(("name", "rows"), [("ham10000-28px", 7955), ("ham10000-original", 188)])
def test_real_folders(name, rows):
    table = read_dataset(SHARED / name)
    assert len(table) == rows
    assert table["path"].nunique() == rows
