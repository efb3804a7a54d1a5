"""What read_dataset makes of every layout of a folder, and what it says of every fault."""

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_metadata import GROUPS, TRUTH
from test_metadata import TEXT as TABLE

from helpers.data.files import InputError
from helpers.data.images import load_images
from helpers.data.reading import CLASSES, read_dataset

IDS = [f"ISIC_000000{number}" for number in (1, 2, 3, 4)]
UNSCORED = "ISIC_0035068"
TWO_OF_ONE_SIZE = {f"a/{IDS[0]}.bmp": b"x", f"b/{IDS[0]}.bmp": b"y"}
HMNIST = {"hmnist_28_28_RGB.csv": "pixel0000,label\n1,2\n"}


@pytest.fixture(autouse=True)
def keep_the_cache_apart(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SKIN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def write(folder, files):
    """Writes {path: text, bytes or None for a small image} below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (8, 6), (200, 120, 90)).save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def images(folder="HAM10000_images_part_1/", ids=IDS, suffix=".jpg"):
    return {f"{folder}{image}{suffix}": None for image in ids}


def find_problems(folder, *words):
    with pytest.raises(InputError) as caught:
        read_dataset(folder)
    assert str(folder) in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    return caught.value.problems


JUNK = ("__MACOSX/my.csv", ".x/ISIC_0000001.jpg", "@eaDir/ISIC_0000002.jpg", "._ISIC_0000001.jpg")
LAYOUTS = {
    "dataverse": {"HAM10000_metadata": TABLE, **images(), "ISIC_0000001_segmentation.png": b"x"},
    "tab": {"HAM10000_metadata.tab": TABLE.replace(",", "\t"), **images("a/b/")},
    "kaggle": {"HAM10000_metadata.csv": TABLE, **HMNIST, **images(), **images("again/part_1/")},
    "parts": {"my.csv": TABLE, **images("", IDS[:2]), **images("x/", [*IDS[2:], "ISIC_9"], ".PNG")},
    "bmp": {"my.csv": TABLE, **images("", suffix=".bmp")},
    "webp": {"my.csv": TABLE, **images("", suffix=".webp")},
    "tiff": {"my.csv": TABLE, **images("", suffix=".TIF")},
    "endings": {"my.csv": TABLE.replace(",mel", ".JPG,mel"), **images("mel/")},
    "case": {"my.csv": TABLE.replace("ISIC", "isic"), **images("", suffix=".Jpeg")},
    "table twice": {
        **dict.fromkeys(("HAM10000_metadata", "HAM10000_metadata.csv"), TABLE),
        **images(),
    },
    "other tables": {"a/my.csv": TABLE, "runs/history.csv": "epoch,loss\n1,2\n", **images()},
    "junk": {"my.csv": TABLE, **images(), **dict.fromkeys(JUNK, "x")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("error")
def test_every_layout_reads_to_the_same_table(tmp_path, layout):
    table = read_dataset(write(tmp_path, LAYOUTS[layout]))
    assert list(table["image_id"]) == [Path(path).stem for path in table["path"]] == IDS
    assert list(table["dx"]) == ["nv", "nv", "mel", "akiec"]
    assert list(table["group"]) == ["HAM_1", "HAM_1", "HAM_3", "HAM_4"]
    assert list(table)[-3:] == ["path", "label", "group"]
    assert load_images(table, (3, 4)).shape == (4, 3, 4, 3)


@pytest.mark.parametrize(("one", "two"), [("l\u00e4", "la\u0308"), ("la\u0308", "l\u00e4")])
def test_names_in_another_unicode_form(tmp_path, one, two):
    text = TABLE.replace("ISIC_0000001", one)
    table = read_dataset(write(tmp_path, {"my.csv": text, **images("", [two, *IDS[1:]])}))
    assert "l\u00e4" in set(table["image_id"])


@pytest.mark.parametrize("has_groups", [True, False])
def test_the_challenge_with_groupings_and_without(tmp_path, has_groups):
    truth, groups = "x/ISIC2018_Task3_Training_GroundTruth.csv", "y/a.csv"
    write(tmp_path, {truth: TRUTH, **images(), **({groups: GROUPS} if has_groups else {})})
    with warnings.catch_warnings(record=True) as caught:
        table = read_dataset(tmp_path)
    assert list(table["dx"]) == ["nv", "nv", "mel", "akiec"]
    assert list(table["group"]) == (["HAM_1", "HAM_1", "HAM_3", "HAM_4"] if has_groups else IDS)
    assert len(caught) == (not has_groups)


def test_the_image_without_weight_is_left_out_and_named(tmp_path):
    text = TABLE + f"HAM_9,{UNSCORED},nv,consensus,,,,\n"
    write(tmp_path, {"ISIC2018_Task3_Test_GroundTruth.csv": text, **images("x/")})
    with pytest.warns(UserWarning, match=f"{UNSCORED} is left out, 4 images remain"):
        assert list(read_dataset(tmp_path)["image_id"]) == IDS


def test_the_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    write(tmp_path / "data", LAYOUTS["dataverse"])
    monkeypatch.chdir(tmp_path)
    assert read_dataset("data")["path"][0].startswith("data")
    monkeypatch.chdir("/")
    monkeypatch.setattr("helpers.data.files.PROJECT", tmp_path)
    assert Path(read_dataset("data")["path"][0]).is_file()


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    write(tmp_path / "elsewhere", images())
    write(tmp_path / "data", {"my.csv": TABLE})
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert len(read_dataset(tmp_path / "data")) == 4


def test_class_folders_with_a_split(tmp_path):
    names = ["Train/melanoma/x.jpg", "train/NV/y.png", "valid_set/Melanocytic nevi/y.jpg"]
    names += ["test/akiec/deep/isic_0000004.webp"]
    with pytest.warns(UserWarning, match="lesion_id is missing in 4 of 4 rows.*leaks"):
        table = read_dataset(write(tmp_path, dict.fromkeys(names))).set_index("image_id")
    assert list(table.index) == list(table["group"]) == ["ISIC_0000004", *names[1:3], "x"]
    assert list(table["dx"]) == ["akiec", "nv", "nv", "mel"]
    assert list(table["split"]) == ["test", "train", "val", "train"]
    assert table["path"]["x"] == str(tmp_path / "Train/melanoma/x.jpg")
    with pytest.warns(UserWarning, match="lesion_id"):
        assert "split" not in read_dataset(tmp_path / "train")


def test_wrong_class_folders(tmp_path):
    names = ["train/mel/ISIC_1.jpg", "test/mel/ISIC_1.jpg", "train/scc/a.jpg", "df/b.jpg"]
    problems = find_problems(write(tmp_path, dict.fromkeys(names)))
    words = [
        "ISIC_1.jpg; keep one",
        "1 images lie in no folder named akiec",
        "train, val, test: df/b",
    ]
    assert len(problems) == 3
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


COUNTS = {"train": 9, "val": 4, "test": 5}


def write_mnist(path, side=28, changes=None):
    draw = np.random.default_rng(0).integers
    arrays = {}
    for split, n in COUNTS.items():
        arrays[f"{split}_images"] = draw(0, 256, (n, side, side, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = draw(0, 7, (n, 1), dtype=np.uint8)
    np.savez_compressed(path, **arrays | (changes or {}))
    return arrays


@pytest.mark.parametrize(("side", "named"), [(28, "folder"), (64, "file")])
def test_dermamnist(tmp_path, side, named):
    path = tmp_path / f"dermamnist_{side}.npz"
    arrays = write_mnist(path, side)
    with pytest.warns(UserWarning, match="lesion_id is missing in 18 of 18 rows"):
        table = read_dataset(path if named == "file" else path.parent)
    pixels = load_images(table, (side, side))
    for split in ("train", "val", "test"):
        rows = (table["split"] == split).to_numpy()
        assert np.array_equal(pixels[rows], arrays[f"{split}_images"])
        assert [CLASSES[k] for k in arrays[f"{split}_labels"][:, 0]] == list(table["dx"][rows])
    os.utime(table["path"][0], (0, 0))
    with pytest.warns(UserWarning):
        pd.testing.assert_frame_equal(read_dataset(path), table)
    assert Path(table["path"][0]).stat().st_mtime == 0  # it was not written again


WRONG_ARRAYS = [{}, {"train_labels": np.full((9, 1), 7, np.uint8)}]
WRONG_ARRAYS += [{f"{split}_labels": np.arange(n)[:, None] % 5 for split, n in COUNTS.items()}]
WRONG_ARRAYS += [{"test_images": np.zeros((5, 28, 28), np.uint8)}]
WRONG_ARRAYS += [{"val_images": np.zeros((4, 28, 28, 3))}]


@pytest.mark.parametrize("changes", WRONG_ARRAYS)
def test_arrays_that_are_no_dermamnist(tmp_path, changes):
    write_mnist(tmp_path / "x.npz", changes=changes)
    if not changes:
        (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 half a download")
    find_problems(tmp_path, "x.npz is no DermaMNIST file")


def test_arrays_that_cannot_be_unpacked(tmp_path, monkeypatch):
    write_mnist(tmp_path / "x.npz")
    monkeypatch.setenv("SKIN_CACHE_DIR", str(tmp_path / "x.npz"))
    find_problems(tmp_path, "x.npz cannot be unpacked", "SKIN_CACHE_DIR")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["no table of diagnoses", "python -m helpers download"]),
        ({"HAM10000_metadata.xlsx": b"PK"}, ["no table of diagnoses", "xlsx", "as CSV"]),
        ({"x.csv": TABLE, "images.zip": b"PK"}, ["4 of 4 images are missing", "unpack images.zip"]),
        ({"a.csv": TABLE, "b.csv": TABLE[:-60], **images()}, ["a.csv, b.csv", "keep one"]),
        ({"x.csv": TABLE, **images("", IDS[1:])}, ["1 of 4 images are missing", "ISIC_0000001"]),
        ({"x.csv": "a,b\n1,2\n", **images()}, ["x.csv: it lacks the columns image_id, dx"]),
        (HMNIST, ["hmnist_28_28_RGB.csv", "without image ids", "helpers download"]),
        ({"x.csv": TABLE, **images(), "b/ISIC_0000003.jpg": "half"}, ["ISIC_0000003", "differ"]),
        ({"x.csv": "image_id,dx\na1,nv\nA1,mel\n", "a1.jpg": None}, ["share a file", "a1, A1"]),
        ({"x.csv": TABLE, **images("", IDS[1:]), **TWO_OF_ONE_SIZE}, [IDS[0], "differ"]),
        ({"x.csv": GROUPS, **images()}, ["no table of diagnoses"]),
    ],
)
def test_faults_are_named(tmp_path, files, words):
    find_problems(write(tmp_path, files), *words)


def test_no_folder(tmp_path):
    find_problems(tmp_path / "nowhere", "does not exist", "DATA_DIR")
    find_problems(tmp_path / "nowhere.npz", "does not exist", "DATA_DIR")
    find_problems(write(tmp_path, {"data.zip": b"PK"}) / "data.zip", "is a file", "unpack")


def test_two_ids_that_differ_in_case_have_their_own_files(tmp_path):
    files = {"x.csv": "image_id,lesion_id,dx\na1,1,nv\nA1,2,mel\n", "a1.jpg": None, "A1.jpg": None}
    if len(list(write(tmp_path, files).iterdir())) == 3:  # not where a1 and A1 are one file
        assert [Path(path).name for path in read_dataset(tmp_path)["path"]] == ["A1.jpg", "a1.jpg"]


def test_problems_of_table_and_images_are_reported_together(tmp_path):
    text = TABLE.replace("80.5", "old").replace("akiec", "x").replace("HAM_1,", "HAM_3,")
    problems = find_problems(write(tmp_path, {"x.csv": text, **images("", IDS[:2])}))
    words = ["'x' in line 5", "'old' in line 2", "'HAM_3 is mel'", "ISIC_0000003, ISIC_0000004"]
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


def test_files_of_class_folders_that_are_not_read_are_named(tmp_path):
    write(tmp_path, {f"{dx}/{n}.png": None for dx in ("mel", "nv") for n in range(2)})
    (tmp_path / "nv" / "c.gif").write_bytes(b"GIF89a")
    (tmp_path / "nv" / "d").write_bytes(b"?")
    (tmp_path / "mel" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning) as caught:
        assert len(read_dataset(tmp_path)) == 4
    said = "\n".join(str(warning.message) for warning in caught)
    assert "2 files in folders of classes are left out: nv/c.gif, nv/d" in said
    assert "links to nowhere are left out: mel/gone.png" in said
