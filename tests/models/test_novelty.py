"""Novelty: the false-alarm rate is what it says, and what is strange is far."""

import numpy as np
import pytest
import tiny_run
from scipy.spatial.distance import mahalanobis
from scipy.stats import binomtest

from helpers.data import images
from helpers.data import reading as dataset
from helpers.evaluation import novelty
from helpers.runs import folder as runs

SHAPE = (8, 10, 3)


def make_case(rng, count=900, classes=3, dimensions=6):
    """Make images with a colour, and features with a mean, per class; a third for each part."""
    labels = rng.integers(0, classes, count)
    colours = np.random.default_rng(0).integers(60, 200, (classes, 3))[labels]
    pixels = colours[:, None, None] + rng.normal(0, 10, (count, 1, 1, 3))
    pixels = (pixels + rng.normal(0, 5, (count, *SHAPE))).clip(0, 255).astype(np.uint8)
    mixing = np.random.default_rng(1).normal(size=(dimensions, dimensions))
    features = 3 * labels[:, None] + rng.normal(size=(count, dimensions)) @ mixing
    parts = np.array(["train", "val", "test"])[np.arange(count) % 3]
    return pixels, features.astype(np.float32), labels, parts, np.arange(count).astype(str)


@pytest.fixture(scope="module")
def case():
    return make_case(np.random.default_rng(2))


@pytest.fixture(scope="module")
def detector(case):
    return novelty.fit_detector(*case)


def test_distance_is_mahalanobis_to_the_nearest_class(case):
    _, features, labels, _, _ = case
    distance = novelty.fit_distance(features, labels)
    standard = (features - distance.mean) / distance.scale
    expected = [
        min(mahalanobis(row, centre, distance.precision) for centre in distance.centres)
        for row in standard[:20]
    ]
    assert distance.measure(features[:20]) == pytest.approx(expected)
    assert distance.centres[1] == pytest.approx(standard[labels == 1].mean(axis=0))


def test_squared_distance_of_the_own_kind_is_about_the_number_of_dimensions():
    features = np.random.default_rng(0).normal(5, 3, (600, 6))
    distance = novelty.fit_distance(features, np.zeros(600, int))
    assert (distance.measure(features) ** 2).mean() == pytest.approx(6, rel=0.05)


def test_unit_that_never_fires_does_no_harm(case):
    _, features, labels, _, _ = case
    features = np.c_[features, np.zeros(len(features))]
    assert np.isfinite(novelty.fit_distance(features, labels).measure(features)).all()


def test_false_alarms_on_new_images_are_as_many_as_said():
    flagged = []
    for seed in range(20):
        rng = np.random.default_rng([3, seed])
        detector = novelty.fit_detector(*make_case(rng, 450))
        pixels, features, *_ = make_case(rng, 150)
        flagged.append(detector.score(pixels, features) > detector.choose_threshold(0.1))
    flagged = np.concatenate(flagged)
    assert flagged.mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("rate", "place"), [(0.05, 285), (0.1, 270), (0.5, 150), (0.001, 299)])
def test_threshold_leaves_out_the_share_that_was_wanted(detector, rate, place):
    ranked = np.sort(detector.validation)
    assert len(ranked) == 300
    assert detector.choose_threshold(rate) == ranked[place]


def test_false_alarms_on_the_test_part_have_an_interval(detector):
    found = detector.measure_false_alarms(0.2)
    assert found["value"] == (detector.test > detector.choose_threshold(0.2)).mean()
    expected = binomtest(round(300 * found["value"]), 300).proportion_ci()
    assert found["low"] == pytest.approx(expected.low, abs=0.015)
    assert found["high"] == pytest.approx(expected.high, abs=0.015)


def test_either_distance_is_enough_for_a_high_score(case, detector):
    pixels, features = case[0][:9], case[1][:9]
    threshold = detector.choose_threshold()
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    assert (detector.score(noise, features) > threshold).all()
    assert (detector.score(pixels, features + 50) > threshold).all()
    assert (detector.score(pixels, features) > threshold).mean() < 0.5


def test_statistics_of_a_picture_worked_by_hand():
    picture = np.zeros((1, 2, 2, 3), np.uint8)
    picture[0, :, 1] = (255, 255, 0)  # a black and a yellow column
    found = novelty.measure_statistics(picture)[0]
    assert found[:3] == pytest.approx([0.5, 0.5, 0])
    assert found[3:6] == pytest.approx(np.log([0.51, 0.51, 0.01]))
    assert found[6] == pytest.approx(np.log(2 / 3 + 0.001))
    assert found[7:12] == pytest.approx([0, 0, 2 / 3, 2 / 3, 2 / 3], abs=1e-6)
    assert found[12:14] == pytest.approx([0, 0.5])
    assert found[14:] == pytest.approx([0.5, 0.5])


@pytest.fixture
def run(tmp_path):
    data_dir = tiny_run.make_images(tmp_path / "images")
    return runs.load_run(tiny_run.save_tiny_run(tmp_path / "run", data_dir))


def test_fit_is_kept_and_needs_no_images_afterwards(run, tmp_path):
    fitted = novelty.load_detector(run)
    (tmp_path / "images").rename(tmp_path / "away")
    loaded = novelty.load_detector(run)
    assert loaded.test.tolist() == fitted.test.tolist()
    assert loaded.features.precision.tolist() == fitted.features.precision.tolist()
    assert len(loaded.validation) == (run.predictions["split"] == "val").sum()


def test_net_that_has_seen_the_validation_part_gets_its_borders_from_half_of_the_test(
    run, tmp_path
):
    before = novelty.fit_run(run)
    tiny_run.save_tiny_run(run.path, tmp_path / "images", REFIT=True)
    refitted = novelty.fit_run(runs.load_run(run.path))
    tested = run.predictions.query("split == 'test'")
    assert len(refitted.validation) == len(refitted.test) == len(tested) / 2
    assert set(refitted.test_groups) < set(tested["group"])
    assert not set(refitted.validation) & set(refitted.test)
    table = dataset.read_dataset(tmp_path / "images")
    seen = table[~table["image_id"].isin(tested["image_id"])]
    pixels = np.stack([images.read_image(path, tiny_run.SIZE) for path in seen["path"]])
    expected = novelty.measure_statistics(pixels).mean(axis=0)
    assert refitted.statistics.mean == pytest.approx(expected, rel=1e-5)
    assert before.statistics.mean != pytest.approx(expected, rel=1e-5)


def test_missing_images_are_asked_for(run, tmp_path):
    (tmp_path / "images").rename(tmp_path / "away")
    with pytest.raises(runs.RunError, match=r"novelty.npz is missing, and so is .*--data-dir"):
        novelty.load_detector(run)
    assert novelty.load_detector(run, str(tmp_path / "away"))


def test_images_of_another_run_are_refused(run, tmp_path):
    other = tiny_run.make_images(tmp_path / "other")
    (other / "ISIC_9800000.png").unlink()
    table = (other / "HAM10000_metadata.csv").read_text().splitlines()
    (other / "HAM10000_metadata.csv").write_text("\n".join([table[0], *table[2:]]))
    with pytest.raises(runs.RunError, match="209 images instead of 210"):
        novelty.load_detector(run, str(other))


def test_fit_of_another_model_is_made_anew(run, tmp_path):
    novelty.load_detector(run)
    tiny_run.save_tiny_run(run.path, tmp_path / "images", seed=5)
    again = runs.load_run(run.path)
    before = (run.path / novelty.NOVELTY).read_bytes()
    novelty.load_detector(again)
    assert (run.path / novelty.NOVELTY).read_bytes() != before


def test_rate_of_independent_images_has_wilsons_interval():
    found = novelty.measure_rate(np.r_[np.ones(50, bool)])
    assert found["value"] == 1
    assert found["low"] == pytest.approx(50 / (50 + 1.959964**2))
    assert found["high"] == 1
