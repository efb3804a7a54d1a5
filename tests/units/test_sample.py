"""The drawn sample: layout, content, repeatability, and that nobody's own data is touched."""

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from helpers.data import drawing, sample

CLASSES = {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draw the whole sample once."""
    return sample.draw_sample(tmp_path_factory.mktemp("data") / "sample", seed=0)


@pytest.fixture
def quick(monkeypatch):
    """Shrink the sample to one lesion of two views per class."""
    monkeypatch.setattr(sample, "LESIONS_WITH_VIEWS", dict.fromkeys(CLASSES, (0, 1)))


@pytest.fixture
def blank(quick, monkeypatch):
    """Shrink the sample and leave the drawing out, where a test is about the folder only."""

    def draw_plain(dx, rng, dataset, views):
        return rng.integers(0, 256, (views, 1, 1, 3), np.uint8).repeat(450, 1).repeat(600, 2)

    monkeypatch.setattr(drawing, "draw_lesion", draw_plain)


def read_bytes(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_layout(drawn):
    table = pd.read_csv(drawn / "HAM10000_metadata.csv")
    assert list(table) == sample.COLUMNS
    assert len(table) > 350
    stems = [[p.stem for p in (drawn / part).iterdir()] for part in sample.PARTS]
    assert min(map(len, stems)) > 150
    assert sorted(stems[0] + stems[1]) == sorted(table["image_id"])
    assert {p.name for p in drawn.iterdir()} == {
        "HAM10000_metadata.csv",
        "DRAWN.txt",
        *sample.PARTS,
    }
    assert [p.name for p in drawn.parent.iterdir()] == ["sample"]


def test_identifiers_are_outside_the_real_ranges(drawn):
    table = pd.read_csv(drawn / "HAM10000_metadata.csv")
    for column, prefix in (("image_id", "ISIC_"), ("lesion_id", "HAM_")):
        numbers = table[column].str.removeprefix(prefix).astype(int)
        assert numbers.min() == 9_000_000
        assert numbers.max() == 9_000_000 + numbers.nunique() - 1


def test_images_are_600_by_450_in_skin_colours_and_all_different(drawn):
    paths = sorted(drawn.rglob("ISIC_*.jpg"))
    assert len({path.read_bytes() for path in paths}) == len(paths)
    images = [cv2.imread(str(path)) for path in paths[::8]]
    assert {image.shape for image in images} == {(450, 600, 3)}
    # Bright skin with something on it, redder than it is blue.
    assert all(60 < image.mean() < 230 and image.std() > 8 for image in images)
    assert all(image[..., 2].mean() > image[..., 0].mean() + 5 for image in images)


def test_classes_can_be_learnt_but_not_perfectly(drawn):
    """A forest that sees colours in a small image, tested on other lesions."""
    table = pd.read_csv(drawn / "HAM10000_metadata.csv")
    paths = {path.stem: str(path) for path in drawn.rglob("ISIC_*.jpg")}
    small = [cv2.imread(paths[name], cv2.IMREAD_REDUCED_COLOR_4) for name in table["image_id"]]
    colours = [[np.histogram(i[..., k], 16, (0, 256))[0] for k in range(3)] for i in small]
    thumbs = [cv2.resize(i, (16, 12), interpolation=cv2.INTER_AREA) for i in small]
    features = np.hstack([np.reshape(x, (len(table), -1)) for x in (colours, thumbs)])
    answers = cross_val_predict(
        RandomForestClassifier(100, class_weight="balanced_subsample", random_state=0),
        features,
        table["dx"],
        groups=table["lesion_id"],
        cv=StratifiedGroupKFold(5, shuffle=True, random_state=0),
    )
    majority = (table["dx"] == "nv").mean()
    assert majority + 0.08 < accuracy_score(table["dx"], answers) < 0.95
    assert balanced_accuracy_score(table["dx"], answers) > 0.35


def test_classes_and_views_are_like_the_real_ones():
    table = sample.make_table(0)
    images = table["dx"].value_counts(normalize=True)
    assert set(images.index) == CLASSES
    assert 0.6 < images["nv"] < 0.7
    assert images.drop("nv").between(0.02, 0.13).all()
    lesions = table.drop_duplicates("lesion_id")
    assert lesions["dx"].value_counts().min() >= 10
    views = table["lesion_id"].value_counts()
    assert 0.65 < (views == 1).mean() < 0.8
    assert views.max() == 6
    same = table.groupby("lesion_id").nunique(dropna=False).drop(columns="image_id")
    assert (same == 1).all(axis=None)


def test_metadata_have_the_gaps_of_the_real_ones():
    table = sample.make_table(0)
    assert 0 < table["age"].isna().mean() < 0.1
    assert table["age"].dropna().between(0, 85).all()
    assert (table["age"].dropna() % 5 == 0).all()
    assert set(table["sex"]) == {"male", "female", "unknown"}
    assert 0 < (table["localization"] == "unknown").mean() < 0.1
    assert set(table["dataset"]) == set(sample.SOURCES)
    assert set(table["dx_type"]) == {"histo", "follow_up", "consensus", "confocal"}
    assert set(table.loc[table["dx_type"] == "follow_up", "dx"]) == {"nv"}
    assert set(table.loc[table["dx_type"] == "confocal", "dx"]) == {"bkl"}


def test_numbers_do_not_tell_the_class():
    lesions = sample.make_table(0).drop_duplicates("lesion_id").sort_values("lesion_id")
    assert lesions["dx"].head(50).nunique() > 3
    assert lesions["dx"].tail(50).nunique() > 3


def test_same_seed_same_bytes(tmp_path, quick, monkeypatch):
    first = read_bytes(sample.draw_sample(tmp_path / "a", seed=3))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert read_bytes(sample.draw_sample(tmp_path / "b", seed=3)) == first
    other = read_bytes(sample.draw_sample(tmp_path / "c", seed=4))
    assert set(other) == set(first)
    assert all(other[name] != first[name] for name in first)


def test_views_show_the_same_lesion():
    """Two views are closer to each other than to views of another lesion of the class."""

    def shrink(image):
        return cv2.resize(image, (6, 4), interpolation=cv2.INTER_AREA).astype(float)

    wins = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        one, two = map(shrink, drawing.draw_lesion("nv", rng, "vidir_molemax", views=2))
        other = shrink(drawing.draw_lesion("nv", rng, "vidir_molemax")[0])
        assert (one != two).any()
        wins += np.abs(one - two).mean() < np.abs(one - other).mean()
    assert wins >= 6


@pytest.mark.parametrize("dx", sorted(CLASSES))
def test_draw_lesion_of_every_class_and_source(dx):
    for source in sample.SOURCES:
        image = drawing.draw_lesion(dx, np.random.default_rng(1), source)
        assert image.shape == (1, 450, 600, 3)
        assert image.dtype == np.uint8


def test_second_call_rewrites_nothing(tmp_path, blank):
    folder = sample.draw_sample(tmp_path / "s")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}
    assert sample.draw_sample(tmp_path / "s") == folder
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")} == before


def test_another_seed_replaces_the_sample(tmp_path, blank):
    before = read_bytes(sample.draw_sample(tmp_path / "s", seed=0))
    after = read_bytes(sample.draw_sample(tmp_path / "s", seed=1))
    assert after["DRAWN.txt"] != before["DRAWN.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_damaged_sample_is_drawn_anew(tmp_path, blank):
    folder = sample.draw_sample(tmp_path / "s")
    whole = read_bytes(folder)
    next(folder.rglob("ISIC_*.jpg")).unlink()
    assert read_bytes(sample.draw_sample(folder)) == whole


def test_kill_half_way_leaves_no_sample(tmp_path, blank, monkeypatch):
    calls = []

    def die_late(dx, *args):
        calls.append(dx)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return np.zeros((2, 450, 600, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw_lesion", die_late)
        with pytest.raises(KeyboardInterrupt):
            sample.draw_sample(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_half_drawn_sibling_is_not_taken_for_a_sample(tmp_path, blank):
    leftover = tmp_path / ".s.drawing-0123abcd"
    (leftover / sample.PARTS[0]).mkdir(parents=True)
    (leftover / sample.PARTS[0] / "ISIC_9000000.jpg").write_bytes(b"half")
    folder = sample.draw_sample(tmp_path / "s")
    assert len(list(folder.rglob("ISIC_*.jpg"))) == 14
    assert b"half" not in read_bytes(folder).values()


def test_process_that_comes_second_leaves_the_first_ones_sample(tmp_path, blank, monkeypatch):
    fill_folder = sample._fill_folder
    inodes = []

    def fill_while_another_finishes(work, seed):
        with monkeypatch.context() as patch:
            patch.setattr(sample, "_fill_folder", fill_folder)
            inodes.append(sample.draw_sample(tmp_path / "s").stat().st_ino)
        fill_folder(work, seed)

    monkeypatch.setattr(sample, "_fill_folder", fill_while_another_finishes)
    assert sample.draw_sample(tmp_path / "s").stat().st_ino == inodes[0]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["mine.jpg", "HAM10000_images_part_1/ISIC_0024306.jpg"])
@pytest.mark.parametrize("beside_a_sample", [False, True])
def test_foreign_files_are_never_touched(tmp_path, blank, name, beside_a_sample):
    folder = tmp_path / "s"
    if beside_a_sample:
        sample.draw_sample(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"mine")
    before = read_bytes(folder)
    with pytest.raises(FileExistsError, match="another folder") as error:
        sample.draw_sample(folder, seed=1)
    assert str(folder) in str(error.value)
    assert name in str(error.value)
    assert read_bytes(folder) == before


def test_real_looking_folder_without_marker_is_foreign(tmp_path, blank):
    folder = sample.draw_sample(tmp_path / "s")
    (folder / "DRAWN.txt").unlink()
    with pytest.raises(FileExistsError):
        sample.draw_sample(folder)
