"""Novelty: the distance is Mahalanobis', the false-alarm rate what was wanted, noise is far."""

import numpy as np
import pandas as pd
import pytest
import tiny_run
from sklearn.covariance import LedoitWolf

from helpers.data.files import InputError
from helpers.evaluation import novelty
from helpers.evaluation.predictions import Predictions

SHAPE = (8, 10, 3)


def make_case(rng, count=900, classes=3, dimensions=6):
    """Make images with a colour, and features with a mean, per class; a third for each part."""
    labels = rng.integers(0, classes, count)
    colours = np.random.default_rng(0).integers(60, 200, (classes, 3))[labels]
    pixels = colours[:, None, None] + rng.normal(0, 10, (count, 1, 1, 3))
    pixels = (pixels + rng.normal(0, 5, (count, *SHAPE))).clip(0, 255).astype(np.uint8)
    mixing = np.random.default_rng(1).normal(size=(dimensions, dimensions))
    features = 3 * labels[:, None] + rng.normal(size=(count, dimensions)) @ mixing
    parts = {part: np.arange(i, count, 3) for i, part in enumerate(("train", "val", "test"))}
    return pixels, features.astype(np.float32), labels, parts


@pytest.fixture(scope="module")
def case():
    return make_case(np.random.default_rng(2))


@pytest.fixture(scope="module")
def detector(case):
    return novelty.fit_detector(*case)


def test_distance_is_mahalanobis_to_the_nearest_class(case, detector):
    pixels, features, labels, parts = case
    projected = features @ detector.components
    joined = np.c_[novelty.measure_statistics(pixels), projected].astype(float)
    train = joined[parts["train"]]
    joined, train = ((x - train.mean(axis=0)) / train.std(axis=0) for x in (joined, train))
    of_train = labels[parts["train"]]
    means = np.stack([train[of_train == k].mean(axis=0) for k in range(3)])
    model = LedoitWolf(assume_centered=True).fit(train - means[of_train])
    squares = np.stack([model.mahalanobis(joined - mean) for mean in means])
    assert detector.measure(pixels, features) == pytest.approx(np.sqrt(squares.min(axis=0)))


def test_components_are_those_of_the_training_images_that_vary_most():
    pixels, features, labels, parts = make_case(np.random.default_rng(4), dimensions=40)
    detector = novelty.fit_detector(pixels, features, labels, parts)
    train = features[parts["train"]]
    _, _, axes = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)
    assert np.abs(axes[:16] @ detector.components) == pytest.approx(np.eye(16), abs=1e-3)


def test_unit_that_never_fires_does_no_harm(case):
    pixels, features, labels, parts = case
    silent = np.c_[features, np.zeros(len(features))]
    assert np.isfinite(novelty.fit_detector(pixels, silent, labels, parts).test).all()


def test_false_alarms_on_new_images_are_as_many_as_wanted():
    flagged = []
    for seed in range(20):
        rng = np.random.default_rng([3, seed])
        detector = novelty.fit_detector(*make_case(rng, 450))
        pixels, features, *_ = make_case(rng, 150)
        flagged.append(detector.measure(pixels, features) > detector.choose_threshold(0.1))
    assert np.concatenate(flagged).mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("rate", "place"), [(0.05, 285), (0.1, 270), (0.5, 150), (0.001, 299)])
def test_threshold_leaves_out_the_share_that_was_wanted(detector, rate, place):
    assert detector.choose_threshold(rate) == np.sort(detector.validation)[place]


def test_false_alarms_on_the_test_part_have_an_interval(detector):
    table = pd.DataFrame({"group": range(300)})
    found = detector.measure_false_alarms(Predictions(table, ()), 0.2)
    share = (detector.test > detector.choose_threshold(0.2)).mean()
    assert found["value"] == share
    assert share - found["low"] == pytest.approx(1.96 * np.sqrt(share * (1 - share) / 300), rel=0.1)


def test_strange_pixels_or_strange_features_are_enough(case, detector):
    pixels, features = case[0][:9], case[1][:9]
    threshold = detector.choose_threshold()
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    wall = np.full_like(pixels, 210)
    for strange in (noise, wall):
        assert (detector.measure(strange, features) > threshold).all()
    assert (detector.measure(pixels, features + 50) > threshold).all()
    assert (detector.measure(pixels, features) > threshold).mean() < 0.5


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
    return tiny_run.save_tiny_run(tmp_path / "run", tiny_run.make_images(tmp_path / "images"))


def test_folder_that_cannot_be_written_is_no_obstacle(run, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(novelty, "replace_file", refuse)
    assert len(novelty.load_detector(run).test) == len(run.predictions.part("test"))


def test_fit_is_kept_and_needs_no_images_until_the_model_is_another(run, tmp_path):
    fitted = novelty.load_detector(run)
    assert len(fitted.validation) == len(run.predictions.part("val"))
    (tmp_path / "images").rename(tmp_path / "away")
    loaded = novelty.load_detector(run)
    for name, value in vars(fitted).items():
        assert (getattr(loaded, name) == value).all()
    other = tiny_run.save_tiny_run(run.path, tmp_path / "away", seed=5)
    assert novelty.load_detector(other).test.tolist() != fitted.test.tolist()


def test_missing_images_are_asked_for_and_those_of_another_run_refused(run, tmp_path):
    (tmp_path / "images").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"images: the folder of .* is not there.*--data-dir"):
        novelty.load_detector(run)
    other = tiny_run.make_images(tmp_path / "other", per_class=29)
    with pytest.raises(InputError, match="203 instead of 210, without ISIC_9800203"):
        novelty.load_detector(run, str(other))
    assert novelty.load_detector(run, str(tmp_path / "away"))


def test_run_of_ten_images_warns_of_noise(tmp_path):
    data_dir = tiny_run.make_images(tmp_path / "images", per_class=2)
    found = novelty.load_detector(tiny_run.save_tiny_run(tmp_path / "run", data_dir))
    threshold = found.choose_threshold()
    assert threshold == found.validation.max() > 0
    noise = np.random.default_rng(0).integers(0, 256, (5, *tiny_run.SIZE, 3), np.uint8)
    reader = novelty.make_reader(tiny_run.make_model())
    assert (found.measure(noise, novelty.read_features(reader, noise)[0]) > threshold).all()
