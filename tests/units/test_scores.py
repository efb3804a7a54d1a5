"""The scores against scikit-learn's, and the intervals against hand-made and simulated cases."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cases import draw_case, predict
from scipy.stats import binomtest
from sklearn import metrics

from helpers.evaluation import scores


def score_by_sklearn(p):
    present = np.unique(p.labels)
    auc = [metrics.roc_auc_score(p.labels == k, p.probabilities[:, k]) for k in present]
    return {
        "accuracy": metrics.accuracy_score(p.labels, p.answers),
        "balanced_accuracy": metrics.balanced_accuracy_score(p.labels, p.answers),
        "macro_f1": metrics.f1_score(p.labels, p.answers, average="macro", labels=present),
        "auc": np.mean(auc),
    }


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_sklearn(seed, coarse):
    p = draw_case(seed, images=60, coarse=coarse)
    assert scores.score_predictions(p) == pytest.approx(score_by_sklearn(p))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_class_that_does_not_occur_is_left_out():
    p = draw_case(3)
    p = p.select(p.labels != 2)
    assert scores.score_predictions(p) == pytest.approx(score_by_sklearn(p))
    assert "c" not in scores.judge_classes(replace(p, resamples=0)).index.unique("dx")


def test_image_weights_are_repetitions_in_a_ranking():
    p = draw_case(5, coarse=True)
    times = np.random.default_rng(0).integers(0, 4, len(p))
    positive, score = p.labels == 1, p.probabilities[:, 1]
    traced = scores.trace_ranking(positive, score, times[None].astype(float))
    again = np.repeat(np.arange(len(p)), times)
    expected = [
        f(positive[again], score[again])
        for f in (metrics.roc_auc_score, metrics.average_precision_score)
    ]
    assert scores.score_ranking(*traced)[0] == pytest.approx(expected)


def test_share_of_independent_images_has_the_interval_of_wilson():
    """SciPy has it with the normal quantile, 1.960; Student's for 2,000 lesions is 1.961."""
    p = predict(np.zeros(2000, int), np.ones((2000, 1)), "a")
    hits = np.arange(2000)[:, None] < [0, 1200, 1990]
    table = scores.estimate_shares(hits, np.ones_like(hits), p)
    for k, (low, high) in enumerate(table[["low", "high"]].to_numpy()):
        expected = binomtest(int(hits[:, k].sum()), 2000).proportion_ci(method="wilson")
        assert [low, high] == pytest.approx(list(expected), abs=2e-4)


def test_images_that_repeat_a_lesion_tell_nothing_new():
    """Each image four times: an interval over lesions stays, one over images would be half."""
    rng = np.random.default_rng(0)
    hits, lesions = rng.random((90, 2)) < [0.7, 1.1], np.arange(90)
    once = predict(np.zeros(90, int), np.ones((90, 1)), "a", lesions)
    often = predict(np.zeros(360, int), np.ones((360, 1)), "a", np.repeat(lesions, 4))
    single = scores.estimate_shares(hits, np.ones_like(hits), once)
    again = np.repeat(hits, 4, axis=0)
    repeated = scores.estimate_shares(again, np.ones_like(again), often)
    columns = ["lesions", "value", "low", "high"]
    assert repeated[columns].to_numpy() == pytest.approx(single[columns].to_numpy())
    assert repeated.loc[1, "value"] == 1 > repeated.loc[1, "low"]


@pytest.mark.parametrize("lesions", [12, 60])
@pytest.mark.parametrize("agree", [False, True])
def test_intervals_of_shares_hold_the_truth_as_often_as_they_say(lesions, agree):
    """400 samples of lesions of one to three images, which agree or are independent."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(lesions), rng.integers(1, 4, lesions))
    p = predict(np.zeros(len(groups), int), np.ones((len(groups), 1)), "a", groups)
    for truth in (0.5, 0.7, 0.97):
        rows = lesions if agree else len(groups)
        hits = rng.random((rows, 400)) < truth
        hits = hits[groups] if agree else hits
        table = scores.estimate_shares(hits, np.ones_like(hits), p)
        covered = ((table["low"] <= truth) & (table["high"] >= truth)).mean()
        assert 0.92 <= covered <= 0.995


def test_fewer_than_ten_lesions_have_no_interval():
    hits = np.ones((20, 2), bool)
    counted = np.stack([np.arange(20) < 9, np.arange(20) < 10], axis=1)
    p = predict(np.zeros(20, int), np.ones((20, 1)), "a")
    table = scores.estimate_shares(hits, counted, p)
    assert table["value"].tolist() == [1, 1]
    assert table["low"].isna().tolist() == [True, False]
    texts = scores.write_intervals(table)
    assert texts[0] == "1.000 (too few lesions)"
    assert scores.estimate_shares(hits, ~hits, p).loc[0, ["value", "low", "high"]].isna().all()


def test_bootstrap_holds_the_truth_as_often_as_it_says():
    """Scores normal around 0 and 1: the area is Φ(1 / √2) = .760. Two equal images per lesion."""
    rng, covered, repeats = np.random.default_rng(0), 0, 60
    for seed in range(repeats):
        labels = np.repeat([0, 1], 80)
        score = 1 / (1 + np.exp(-(np.repeat(rng.normal(size=80), 2) + labels)))
        p = predict(labels, np.stack([1 - score, score], 1), "ab", np.repeat(np.arange(80), 2))
        table = scores.score_with_intervals(replace(p, resamples=200, seed=seed))
        covered += table.loc["auc", "low"] <= 0.76025 <= table.loc["auc", "high"]
    assert 0.87 <= covered / repeats <= 0.99


def test_draws_that_miss_a_class_are_made_anew():
    """One lesion of class b, always wrong: no draw may raise the mean by leaving it out."""
    p = predict([0] * 20 + [1], np.eye(2)[[1] * 4 + [0] * 17], "ab")
    table = scores.score_with_intervals(replace(p, resamples=300))
    assert table.loc["balanced_accuracy", "value"] == pytest.approx(0.4)
    assert table.loc["balanced_accuracy", "high"] <= 0.5
    assert table["small_classes"].tolist() == [0, 1, 1, 1]


def test_adjusted_probabilities_add_their_balanced_accuracy_and_change_nothing_else():
    p, other = (replace(draw_case(seed, images=200), resamples=100) for seed in (2, 4))
    adjusted = p.with_probabilities(other.probabilities)
    plain = scores.score_with_intervals(p)
    both = scores.score_with_intervals(p, adjusted)
    assert both.drop(index=scores.PRIOR_ADJUSTED).equals(plain)
    expected = scores.score_with_intervals(adjusted).loc["balanced_accuracy"]
    assert both.loc[scores.PRIOR_ADJUSTED].tolist() == pytest.approx(expected.tolist())
    is_within = (both["low"] < both["value"]) & (both["value"] < both["high"])
    assert is_within.all()


def test_class_table_by_hand():
    p = predict([0, 0, 1, 1, 1], np.eye(3)[[0, 1, 1, 1, 0]], "abc")
    table = scores.score_classes(p)
    assert table["images"].tolist() == [2, 3, 0]
    assert table["recall"].tolist()[:2] == pytest.approx([1 / 2, 2 / 3])
    assert table["precision"].tolist()[:2] == pytest.approx([1 / 2, 2 / 3])
    assert table.loc["c"].drop("images").isna().all()
    assert scores.score_majority(p) == 3 / 5


def test_what_cannot_be_scored_is_named():
    p = predict([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "ab")
    with pytest.raises(ValueError, match=r"1 of 2 rows.*lower LEARNING_RATE"):
        scores.score_predictions(p)
    strange = replace(p, table=p.table.assign(dx=["a", "scc"], p_a=0.5))
    with pytest.raises(ValueError, match="1 of 2 images are of no class of the model"):
        scores.score_with_intervals(strange)


def test_intervals_are_written_short():
    table = pd.DataFrame(
        [[0.7391, 0.7, 0.8], [1, 0.9, 1], [np.nan] * 3, [1, np.nan, np.nan]],
        columns=["value", "low", "high"],
    ).assign(lesions=30)
    texts = [".739 [.700, .800]", "1.000 [.900, 1.000]", "-", "1.000 (no interval)"]
    assert scores.write_intervals(table).tolist() == texts


def test_scores_without_any_error_have_no_interval_but_the_accuracy():
    labels = np.arange(30) % 3
    table = scores.score_with_intervals(predict(labels, np.eye(3)[labels], "abc"))
    assert (table["value"] == 1).all()
    assert table.loc["accuracy", ["low", "high"]].to_numpy(float) == pytest.approx(
        [0.878, 1], abs=0.002
    )
    assert table.loc[list(scores.SCORES[1:]), ["low", "high"]].isna().all(axis=None)
