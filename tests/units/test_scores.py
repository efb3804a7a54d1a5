"""The scores against scikit-learn's, and the intervals against hand-made cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from helpers.evaluation import scores


def make_case(seed: int, images: int = 60, classes: int = 4, coarse: bool = False):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, images - classes)]
    probabilities = rng.dirichlet(np.ones(classes), images)
    probabilities[np.arange(images), labels] += rng.random(images)
    probabilities /= probabilities.sum(1, keepdims=True)
    return labels, probabilities.round(1) if coarse else probabilities


def score_by_sklearn(labels, probabilities):
    answer = probabilities.argmax(1)
    present = np.unique(labels)
    auc = [roc_auc_score(labels == k, probabilities[:, k]) for k in present]
    return {
        "accuracy": accuracy_score(labels, answer),
        "balanced_accuracy": balanced_accuracy_score(labels, answer),
        "macro_f1": f1_score(labels, answer, average="macro", labels=present),
        "auc": np.mean(auc),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.booleans())
def test_scores_equal_sklearn(seed, coarse):
    labels, probabilities = make_case(seed, coarse=coarse)
    assert scores.score_predictions(labels, probabilities) == pytest.approx(
        score_by_sklearn(labels, probabilities)
    )


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_class_that_does_not_occur_is_left_out():
    labels, probabilities = make_case(3)
    keep = labels != 2
    assert scores.score_predictions(labels[keep], probabilities[keep]) == pytest.approx(
        score_by_sklearn(labels[keep], probabilities[keep])
    )


def test_image_weights_are_repetitions():
    labels, probabilities = make_case(5, coarse=True)
    times = np.random.default_rng(0).integers(1, 4, len(labels))
    weighted = scores._score(labels, probabilities, times[None].astype(float))
    repeated = np.repeat(np.arange(len(labels)), times)
    expected = score_by_sklearn(labels[repeated], probabilities[repeated])
    assert {name: value[0] for name, value in weighted.items()} == pytest.approx(expected)


def test_interval_holds_the_truth_as_often_as_it_says():
    """Nets of a known accuracy, lesions of three equal images: 95 % intervals cover 90 to 99 %."""
    rng, covered, repeats, truth = np.random.default_rng(0), 0, 200, 0.7
    for seed in range(repeats):
        right = np.repeat(rng.random(80) < truth, 3)
        labels = np.repeat(rng.integers(0, 2, 80), 3)
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        groups = np.repeat(np.arange(80), 3)
        interval = scores.score_with_intervals(labels, probabilities, groups, 200, seed=seed)
        covered += interval.loc["accuracy", "low"] <= truth <= interval.loc["accuracy", "high"]
    assert 0.90 <= covered / repeats <= 0.99


def test_interval_is_wider_over_lesions_than_over_images():
    labels, probabilities = make_case(7, images=90)
    labels, probabilities = np.repeat(labels, 4), np.repeat(probabilities, 4, axis=0)
    by_lesion = scores.score_with_intervals(labels, probabilities, np.repeat(np.arange(90), 4))
    by_image = scores.score_with_intervals(labels, probabilities, np.arange(360))
    width = (by_lesion["high"] - by_lesion["low"]) / (by_image["high"] - by_image["low"])
    assert (width > 1.5).all()
    assert (by_lesion["low"] <= by_lesion["value"]).all()
    assert (by_lesion["value"] <= by_lesion["high"]).all()


def test_draws_that_miss_a_class_are_made_anew():
    """One lesion of class 1, always wrong: no draw may raise the mean by leaving it out."""
    labels = np.array([0] * 20 + [1])
    probabilities = np.eye(2)[np.zeros(21, int)]
    interval = scores.score_with_intervals(labels, probabilities, np.arange(21), 300)
    assert interval.loc["balanced_accuracy"].tolist() == [0.5, 0.5, 0.5]


def test_class_table_by_hand():
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.eye(3)[[0, 1, 1, 1, 0]]
    table = scores.score_classes(labels, probabilities, ("a", "b", "c"))
    assert table["images"].tolist() == [2, 3, 0]
    assert table["recall"].tolist()[:2] == pytest.approx([1 / 2, 2 / 3])
    assert table["precision"].tolist()[:2] == pytest.approx([1 / 2, 2 / 3])
    assert table.loc["c"].drop("images").isna().all()


def test_majority_baseline():
    assert scores.score_majority(np.array([4, 4, 1, 4])) == 0.75


def test_diverged_training_is_named():
    with pytest.raises(ValueError, match=r"1 of 2 rows.*lower LEARNING_RATE"):
        scores.score_predictions(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]))


def test_lengths_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(3,\) and probabilities \(2, 2\)"):
        scores.score_predictions(np.array([0, 1, 1]), np.eye(2))


def test_adjusted_probabilities_add_their_balanced_accuracy_and_change_nothing_else():
    labels, probabilities = make_case(2, images=200)
    _, adjusted = make_case(4, images=200)
    groups = np.arange(200) // 2
    plain = scores.score_with_intervals(labels, probabilities, groups, resamples=200)
    both = scores.score_with_intervals(
        labels, probabilities, groups, resamples=200, adjusted=adjusted
    )
    assert both.drop(index=scores.PRIOR_ADJUSTED).equals(plain)
    alone = scores.score_with_intervals(labels, adjusted, groups, resamples=200)
    assert both.loc[scores.PRIOR_ADJUSTED].tolist() == pytest.approx(
        alone.loc["balanced_accuracy"].tolist()
    )
