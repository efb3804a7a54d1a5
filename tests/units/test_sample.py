"""The drawn sample: layout, content, repeatability, and that nobody's own data is touched."""

from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict

from helpers.data import drawing, sample
from helpers.data.files import InputError

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
# Of one lesion of two views per class.
FEW = {dx: ((0, 1), *rest) for dx, (_, *rest) in sample.LESIONS.items()}


@pytest.fixture
def blank(monkeypatch):
    """Shrink the sample and leave the drawing out, where a test is about the folder only."""

    def draw_plain(dx, rng, source, views):
        return rng.integers(0, 256, (views, 1, 1, 3), np.uint8).repeat(45, 1).repeat(60, 2)

    monkeypatch.setattr(sample, "LESIONS", FEW)
    monkeypatch.setattr(drawing, "draw_lesion", draw_plain)


def read_bytes(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_layout_and_images(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "LESIONS", FEW)
    folder = sample.draw_sample(tmp_path / "sample")
    table = pd.read_csv(folder / "HAM10000_metadata.csv")
    assert ",".join(table) == "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
    paths = sorted(folder.glob("HAM10000_images_part_[12]/*.jpg"))
    assert sorted(path.stem for path in paths) == sorted(table["image_id"])
    assert len({path.read_bytes() for path in paths}) == 14
    images = [cv2.imread(str(path)) for path in paths]
    assert {image.shape for image in images} == {(450, 600, 3)}
    # Bright skin with something on it, redder than it is blue.
    assert all(60 < image.mean() < 230 and image.std() > 8 for image in images)
    assert all(image[..., 2].mean() > image[..., 0].mean() + 5 for image in images)
    first = read_bytes(folder)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert read_bytes(sample.draw_sample(tmp_path / "again")) == first


def test_classes_can_be_learnt_but_not_perfectly():
    """A forest that sees the colours of small images, tested on other lesions."""
    labels = np.repeat(CLASSES, 7)
    images = [drawing.draw_lesion(dx, np.random.default_rng(n))[0] for n, dx in enumerate(labels)]
    features = [np.histogramdd(i[::9, ::9].reshape(-1, 3), 5, [(0, 256)] * 3)[0] for i in images]
    model = RandomForestClassifier(100, random_state=0)
    answers = cross_val_predict(model, np.reshape(features, (len(labels), -1)), labels, cv=3)
    assert 0.45 < balanced_accuracy_score(labels, answers) < 0.97


def test_views_show_the_same_lesion():
    """Views have more alike colours, whatever the light, than views of another lesion."""
    distances = []
    for seed in range(5):
        views = [*drawing.draw_lesion("nv", np.random.default_rng(seed), "vidir_molemax", 2)]
        views += [*drawing.draw_lesion("nv", np.random.default_rng(seed + 100), "vidir_molemax")]
        views = [np.quantile(view / np.median(view), (0.01, 0.05, 0.1)) for view in views]
        distances.append(np.abs(views[0] - views[1:]).mean(axis=1))
    same, other = np.mean(distances, axis=0)
    assert 0 < same < 0.5 * other


def test_metadata_are_like_the_real_ones():
    table = sample.make_table(0)
    assert len(table) > 300
    assert 0.45 < (table["dx"] == "nv").mean() < 0.55
    lesions = table.drop_duplicates("lesion_id")
    assert lesions["dx"].value_counts().min() >= 10
    views = table["lesion_id"].value_counts()
    assert 0.65 < (views == 1).mean() < 0.8
    assert 0 < table["age"].isna().mean() < 0.1
    assert set(table["age"].dropna()) <= set(range(5, 90, 5))
    assert set(table["sex"]) == {"male", "female", "unknown"}
    assert set(table["dataset"]) == set(drawing.SKIN_COLOURS)
    assert set(table.loc[table["dx_type"] == "follow_up", "dx"]) == {"nv"}
    assert set(table.loc[table["dx_type"] == "confocal", "dx"]) == {"bkl"}


def test_identifiers_are_outside_the_real_ranges_and_do_not_tell_the_class():
    table = sample.make_table(0)
    for column, prefix in (("image_id", "ISIC_"), ("lesion_id", "HAM_")):
        numbers = table[column].str.removeprefix(prefix).astype(int)
        assert numbers.min() == sample.FIRST_ID
        assert numbers.max() == sample.FIRST_ID + numbers.nunique() - 1
        assert table.loc[numbers < sample.FIRST_ID + 50, "dx"].nunique() > 3
    assert sample.is_drawn(["photo", "ISIC_9000007", "ISIC_9000300"])
    assert not sample.is_drawn(["ISIC_0024306", "ISIC_9000007", "ISIC_9999806", "photo"])


def test_second_call_rewrites_nothing_and_another_seed_everything(tmp_path, blank):
    folder = sample.draw_sample(tmp_path / "s")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}
    assert sample.draw_sample(tmp_path / "s") == folder
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")} == before
    whole = read_bytes(folder)
    next(folder.rglob("ISIC_*.jpg")).unlink()
    assert read_bytes(sample.draw_sample(folder)) == whole, "what is damaged is drawn anew"
    (folder / sample.TABLE).unlink()
    assert read_bytes(sample.draw_sample(folder)) == whole
    other = read_bytes(sample.draw_sample(folder, seed=1))
    assert len(other) == len(whole)
    assert not set(other.values()) & set(whole.values())


def test_kill_half_way_leaves_no_sample(tmp_path, blank, monkeypatch):
    plain = np.zeros((2, 45, 60, 3), np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(
            drawing, "draw_lesion", Mock(side_effect=[plain] * 3 + [KeyboardInterrupt] * 4)
        )
        with pytest.raises(KeyboardInterrupt):
            sample.draw_sample(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert len(list(sample.draw_sample(tmp_path / "s").rglob("ISIC_*.jpg"))) == 14


def test_two_at_once_draw_it_once(tmp_path, blank, monkeypatch):
    counted = Mock(wraps=drawing.draw_lesion)
    monkeypatch.setattr(drawing, "draw_lesion", counted)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(sample.draw_sample, [tmp_path / "s"] * 2))
    assert counted.call_count == 7
    assert len(list(both[1].rglob("ISIC_*.jpg"))) == 14


@pytest.mark.parametrize("name", ["mine.jpg", "HAM10000_images_part_1/ISIC_0024306.jpg"])
@pytest.mark.parametrize("beside", ["nothing", "a sample", "a sample without its marker"])
def test_foreign_files_are_never_touched(tmp_path, blank, name, beside):
    folder = tmp_path / "s"
    if beside != "nothing":
        sample.draw_sample(folder)
    if beside == "a sample without its marker":
        (folder / "DRAWN.txt").unlink()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"mine")
    before = read_bytes(folder)
    with pytest.raises(InputError, match="another folder") as error:
        sample.draw_sample(folder, seed=1)
    assert str(folder) in str(error.value)
    assert read_bytes(folder) == before


def test_a_place_that_cannot_be_written_is_explained(tmp_path, blank):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="DATA_DIR"):
        sample.draw_sample(tmp_path / "file" / "s")
