"""Calibration: against scikit-learn and SciPy, by hand, and on labels drawn from known models."""

from types import SimpleNamespace

import numpy as np
import pytest
from cases import draw_case, predict
from scipy.special import softmax
from sklearn.metrics import log_loss, recall_score

from helpers.data.files import InputError
from helpers.evaluation import calibration
from helpers.evaluation.predictions import Predictions


def draw_known(images=20_000, sharpening=1.0, seed=0, **columns) -> Predictions:
    """Draw labels from known probabilities; predict what a model says that is too sure by T."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (images, 3))
    labels = (rng.random((images, 1)) > softmax(logits, axis=1).cumsum(1)).sum(1)
    return predict(labels, softmax(logits * sharpening, axis=1), "abc", **columns)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_known_temperature_is_found(temperature):
    p = draw_known(sharpening=temperature)
    assert calibration.fit_temperature(p) == pytest.approx(temperature, rel=0.05)


def test_temperature_by_hand():
    p = predict([0, 0], [[0.64, 0.36], [1.0, 0.0]], "ab")
    scaled = calibration.apply_temperature(p, 2.0).probabilities
    assert scaled[0] == pytest.approx([0.8 / 1.4, 0.6 / 1.4])
    assert scaled[1] == pytest.approx([1, 0], abs=1e-3)


def test_reliability_by_hand():
    """Two bins of 20 answers: .55 sure and 10 of 20 right, .95 sure and all right."""
    sure = np.repeat([0.55, 0.95], 20)
    labels = np.r_[[0, 1] * 10, [0] * 20]
    p = predict(labels, np.stack([sure, 1 - sure], axis=1), "ab")
    table = calibration.bin_reliability(p, bins=2)
    assert table["images"].tolist() == [20, 20]
    assert table["confidence"].tolist() == pytest.approx([0.55, 0.95])
    assert table["value"].tolist() == pytest.approx([0.5, 1.0])
    assert (table["low"] < table["value"]).all()
    error = calibration.score_calibration(p)["calibration_error"]
    assert error == pytest.approx((0.05 + 0.05) / 2)


def test_scores_of_a_perfect_and_of_an_overconfident_model():
    p = draw_known(2000)
    perfect = calibration.score_calibration(p)
    assert perfect["log_loss"] == pytest.approx(log_loss(p.labels, p.probabilities))
    assert perfect["calibration_error"] < 2 * perfect["error_by_chance"]
    sharper = calibration.score_calibration(calibration.apply_temperature(p, 0.4))
    assert sharper["calibration_error"] > 5 * sharper["error_by_chance"]


def make_run(**columns):
    p = draw_known(3000, 2.0, split=np.where(np.arange(3000) % 2, "val", "test"))
    return SimpleNamespace(
        path="a_run", predictions=Predictions(p.table.assign(**columns), tuple("abc"))
    )


def test_test_images_have_no_say_in_the_temperature():
    run = make_run()
    p, temperature = calibration.calibrate_run(run)
    assert temperature == pytest.approx(2.0, rel=0.1)
    expected = calibration.apply_temperature(run.predictions, temperature)
    assert p.probabilities == pytest.approx(expected.probabilities)
    table = run.predictions.table
    changed = Predictions(
        table.assign(dx=table["dx"].where(table["split"] == "val", "a")), tuple("abc")
    )
    assert calibration.calibrate_run(SimpleNamespace(predictions=changed))[1] == temperature


def test_run_without_validation_images_is_named():
    run = make_run(split="test")
    with pytest.raises(InputError, match=r"a_run: no validation images .*; execute"):
        calibration.calibrate_run(run)


@pytest.mark.parametrize(
    ("sensitivity", "threshold"), [(1.0, 0.1), (0.9, 0.1), (0.8, 0.1), (0.75, 0.4), (0.25, 0.9)]
)
def test_threshold_by_hand(sensitivity, threshold):
    assert calibration.choose_threshold(np.ones(10, bool), np.arange(10) / 10, 0.9) == 0.1
    positive = np.array([True, True, True, True, False, False])
    scores = np.array([0.9, 0.6, 0.4, 0.1, 0.5, 0.95])
    assert calibration.choose_threshold(positive, scores, sensitivity) == threshold


def test_adjusted_to_equal_classes_answers_with_the_best_balanced_accuracy():
    """Images of three classes on a line: what a model of even classes says of them is known."""
    rng = np.random.default_rng(0)
    prior = np.array([0.9, 0.07, 0.03])
    labels = rng.choice(3, 20_000, p=prior)
    places = rng.normal(labels * 1.5, 1)
    likelihood = np.exp(-((places[:, None] - 1.5 * np.arange(3)) ** 2) / 2)
    even = likelihood / likelihood.sum(1, keepdims=True)
    p = predict(labels, softmax(2 * np.log(likelihood * prior), axis=1), "abc")  # and too sure
    adjusted = calibration.adjust_prior(p.select(np.arange(20_000) < 10_000), p)
    assert np.abs(adjusted.probabilities - even).mean() < 0.02
    raw, found, best = (
        recall_score(labels, answers, average="macro")
        for answers in (p.answers, adjusted.answers, even.argmax(1))
    )
    assert found == pytest.approx(best, abs=0.01)
    assert found > raw + 0.1


def test_class_that_does_not_occur_in_validation_is_never_the_answer():
    """A net of seven classes on data of two: the prior of the other five is next to nothing."""
    p = draw_case(0, classes="abcdefg")
    two = p.select(p.labels < 2)
    tiny = np.where(np.arange(7) < 2, two.probabilities, two.probabilities * 1e-6)
    two = two.with_probabilities(tiny / tiny.sum(1, keepdims=True))
    adjusted = calibration.adjust_prior(two, two)
    assert set(adjusted.answers) == {0, 1}
    assert np.isfinite(adjusted.probabilities).all()
