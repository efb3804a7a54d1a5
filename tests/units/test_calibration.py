"""Calibration: against scikit-learn and SciPy, by hand, and on labels drawn from known models."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from helpers.evaluation import calibration
from helpers.runs import folder as runs

CLASSES = ["a", "b", "c"]


def draw_labels(probabilities, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((len(probabilities), 1)) > probabilities.cumsum(1)).sum(1)


def draw_case(images=20_000, sharpening=1.0, seed=0):
    """Draw labels from known probabilities; return what a model says that is too sure by T."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (images, 3))
    return draw_labels(softmax(logits, axis=1), seed), softmax(logits * sharpening, axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_known_temperature_is_found(temperature):
    labels, probabilities = draw_case(sharpening=temperature)
    assert calibration.fit_temperature(labels, probabilities) == pytest.approx(
        temperature, rel=0.05
    )


def test_fitted_temperature_has_the_least_log_loss():
    labels, probabilities = draw_case(500, sharpening=2.0)
    best = calibration.fit_temperature(labels, probabilities)
    losses = [
        log_loss(labels, calibration.apply_temperature(probabilities, best * factor))
        for factor in (1, 0.97, 1.03, 0.5, 2)
    ]
    assert min(losses) == losses[0]


def test_temperature_by_hand():
    scaled = calibration.apply_temperature(np.array([[0.64, 0.36], [1.0, 0.0]]), 2.0)
    assert scaled[0] == pytest.approx([0.8 / 1.4, 0.6 / 1.4])
    assert scaled.sum(axis=1) == pytest.approx([1, 1])
    assert scaled[1, 0] > 0.999


def test_scaling_keeps_the_answers():
    _, probabilities = draw_case(200)
    scaled = calibration.apply_temperature(probabilities, 3.0)
    assert (scaled.argmax(1) == probabilities.argmax(1)).all()
    assert (scaled.max(1) < probabilities.max(1)).all()


def test_right_answers_without_doubt_end_at_the_lowest_temperature():
    found = calibration.fit_temperature(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert found == pytest.approx(calibration.TEMPERATURES[0], rel=0.01)


def test_wrong_answers_of_probability_zero_are_finite():
    found = calibration.fit_temperature(np.array([0, 1, 1]), np.array([[1.0, 0], [1, 0], [0, 1]]))
    assert np.isfinite(found)


def test_lengths_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(3,\) and probabilities \(2, 2\)"):
        calibration.fit_temperature(np.array([0, 1, 1]), np.eye(2))


def test_reliability_by_hand():
    """Two bins: 0.4 and 0.5 lie in the first (its upper edge is its own), 0.8 and 1 above."""
    probabilities = np.array([[0.4, 0.3, 0.3], [0.5, 0.5, 0.0], [0.8, 0.2, 0.0], [0.0, 1.0, 0.0]])
    labels = np.array([0, 1, 0, 1])
    table = calibration.bin_reliability(labels, probabilities, bins=2)
    assert table["count"].tolist() == [2, 2]
    assert table["confidence"].tolist() == pytest.approx([0.45, 0.9])
    assert table["accuracy"].tolist() == pytest.approx([0.5, 1.0])
    error = calibration.expected_calibration_error(labels, probabilities, bins=2)
    assert error == pytest.approx((0.05 * 2 + 0.1 * 2) / 4)


def test_empty_bins_count_nothing():
    table = calibration.bin_reliability(np.array([0]), np.array([[1.0, 0.0]]), bins=4)
    assert table["count"].tolist() == [0, 0, 0, 1]
    assert table["accuracy"].isna().tolist() == [True, True, True, False]
    assert calibration.expected_calibration_error(np.array([0]), np.array([[1.0, 0.0]])) == 0


def test_scores_of_a_perfect_and_of_an_overconfident_model():
    labels, probabilities = draw_case(2000)
    perfect = calibration.score_calibration(labels, probabilities)
    assert perfect["log_loss"] == pytest.approx(log_loss(labels, probabilities))
    assert perfect["calibration_error"] < 2 * perfect["error_by_chance"]
    sharper = calibration.score_calibration(
        labels, calibration.apply_temperature(probabilities, 0.4)
    )
    assert sharper["calibration_error"] > 5 * sharper["error_by_chance"]


def make_run(**columns):
    labels, probabilities = draw_case(3000, sharpening=2.0)
    split = np.where(np.arange(3000) % 2, "val", "test")
    table = pd.DataFrame({"split": split, "dx": np.array(CLASSES)[labels], "group": "g", **columns})
    known = pd.DataFrame(probabilities, columns=["p_a", "p_b", "p_c"])
    return runs.Run(Path("r"), {"classes": CLASSES}, pd.DataFrame(), table.join(known), ())


def test_test_images_have_no_say_in_the_temperature():
    run = make_run()
    predictions, temperatures = calibration.calibrate_run(run)
    changed = run.predictions.copy()
    changed.loc[changed["split"] == "test", "dx"] = "a"
    other, same = calibration.calibrate_run(runs.Run(run.path, run.metrics, None, changed, ()))
    assert temperatures == same
    assert temperatures[0] == pytest.approx(2.0, rel=0.1)
    assert other["p_a"].equals(predictions["p_a"])
    expected = calibration.apply_temperature(run.part("test")[1], temperatures[0])
    columns = ["p_a", "p_b", "p_c"]
    found = predictions.loc[predictions["split"] == "test", columns].to_numpy()
    assert found == pytest.approx(expected)
    assert run.predictions["p_a"].iloc[0] != predictions["p_a"].iloc[0], "the run was changed"


def test_each_fold_has_its_own_temperature():
    fold = np.arange(3000) // 1500
    run = make_run(fold=fold)
    columns = ["p_a", "p_b", "p_c"]
    sharp = calibration.apply_temperature(run.predictions[columns].to_numpy(), 0.5)
    run.predictions.loc[fold == 1, columns] = sharp[fold == 1]
    predictions, temperatures = calibration.calibrate_run(run)
    assert temperatures == (pytest.approx(2.0, rel=0.15), pytest.approx(4.0, rel=0.15))
    for number, temperature in enumerate(temperatures):
        before = run.predictions.loc[fold == number, columns].to_numpy()
        after = predictions.loc[fold == number, columns].to_numpy()
        assert after == pytest.approx(calibration.apply_temperature(before, temperature))


def test_official_images_get_the_mean_of_the_calibrated_members(tmp_path, monkeypatch):
    """Two members of opposite sharpness; in the ensemble the official rows are of no fold."""
    columns = ["p_a", "p_b", "p_c"]
    members = {}
    for name, sharpening in (("one", 1.0), ("two", 0.5)):
        member = make_run()
        member.predictions["image_id"] = [f"i{row}" for row in range(3000)]
        member.predictions.loc[::10, "split"] = "official"
        scaled = calibration.apply_temperature(member.predictions[columns].to_numpy(), sharpening)
        member.predictions[columns] = scaled
        members[name] = member
    monkeypatch.setattr(calibration, "load_run", lambda folder: members[folder.name])
    tables = [member.predictions.assign(fold=k) for k, member in enumerate(members.values())]
    joined = pd.concat(tables, ignore_index=True)
    official = joined[joined["split"] == "official"].drop_duplicates("image_id").assign(fold=pd.NA)
    joined = pd.concat([joined[joined["split"] != "official"], official], ignore_index=True)
    paths = tuple(tmp_path / name / "model.keras" for name in members)
    ensemble = runs.Run(
        tmp_path, {"classes": CLASSES}, None, joined.astype({"fold": "Int64"}), paths
    )
    predictions, temperatures = calibration.calibrate_run(ensemble)
    assert len(temperatures) == 2
    found = predictions.loc[predictions["split"] == "official", columns].to_numpy()
    of_members = [
        calibration.apply_temperature(member.part("official")[1], temperature)
        for member, temperature in zip(members.values(), temperatures, strict=True)
    ]
    assert found == pytest.approx(np.mean(of_members, axis=0))


def test_fold_without_validation_images_is_named():
    run = make_run(fold=0)
    run.predictions.loc[run.predictions["split"] == "test", "fold"] = 3
    with pytest.raises(runs.RunError, match=r"no validation images .* in fold 3; execute"):
        calibration.calibrate_run(run)


@pytest.mark.parametrize(
    ("sensitivity", "threshold"), [(1.0, 0.1), (0.9, 0.1), (0.8, 0.1), (0.75, 0.4), (0.25, 0.9)]
)
def test_threshold_by_hand(sensitivity, threshold):
    positive = np.array([True, True, True, True, False, False])
    scores = np.array([0.9, 0.6, 0.4, 0.1, 0.5, 0.95])
    assert calibration.choose_threshold(positive, scores, sensitivity) == threshold


def test_threshold_is_the_highest_that_reaches_the_sensitivity():
    rng = np.random.default_rng(0)
    for wanted in (0.3, 0.9, 0.95):
        positive, scores = rng.random(200) < 0.4, rng.random(200).round(2)  # with ties
        threshold = calibration.choose_threshold(positive, scores, wanted)
        higher = np.unique(scores[scores > threshold])[:1]
        assert (scores[positive] >= threshold).mean() >= wanted
        assert (scores[positive] >= higher).mean() < wanted


def test_nine_of_ten_are_nine_whatever_the_rounding():
    scores = np.arange(10) / 10
    assert calibration.choose_threshold(np.ones(10, bool), scores, 0.9) == 0.1


def test_what_a_threshold_lacks_is_named_together():
    with pytest.raises(ValueError, match=r"none of 3 images is positive.*sensitivity is 1\.5"):
        calibration.choose_threshold(np.zeros(3, bool), np.ones(3), 1.5)


def test_adjusted_to_equal_classes_answers_with_the_best_balanced_accuracy():
    """Images of three classes on a line; what a model of skewed classes says of them is known."""
    rng = np.random.default_rng(0)
    prior = np.array([0.9, 0.07, 0.03])
    labels = rng.choice(3, 20_000, p=prior)
    places = rng.normal(labels * 1.5, 1)
    likelihood = np.exp(-((places[:, None] - 1.5 * np.arange(3)) ** 2) / 2)
    skewed = likelihood * prior
    skewed /= skewed.sum(1, keepdims=True)
    even = likelihood / likelihood.sum(1, keepdims=True)
    sharpened = softmax(2 * np.log(skewed), axis=1)  # and too sure
    adjusted = calibration.adjust_prior(labels[:10_000], sharpened[:10_000], sharpened)
    assert adjusted.sum(axis=1) == pytest.approx(np.ones(20_000))
    assert np.abs(adjusted - even).mean() < 0.02
    recall = {
        name: np.mean([(p.argmax(1) == labels)[labels == k].mean() for k in range(3)])
        for name, p in (("raw", skewed), ("adjusted", adjusted), ("even", even))
    }
    assert recall["adjusted"] == pytest.approx(recall["even"], abs=0.01)
    assert recall["adjusted"] > recall["raw"] + 0.1


def test_class_that_was_never_answered_does_not_divide_by_zero():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0]])
    adjusted = calibration.adjust_prior(np.array([0, 1]), probabilities, probabilities)
    assert np.isfinite(adjusted).all()
