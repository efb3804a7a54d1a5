"""Scores by class and by group, operating points, selection: by hand and against scikit-learn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cases import draw_case, predict
from sklearn import metrics

from helpers.data.reading import CLASSES
from helpers.evaluation import calibration, scores

MEL, NV = CLASSES.index("mel"), CLASSES.index("nv")


@pytest.mark.parametrize("coarse", [False, True])
def test_class_figures_equal_sklearn(coarse):
    p = replace(draw_case(0, coarse=coarse), resamples=0)
    table = scores.judge_classes(p)["value"]
    for k, dx in enumerate(p.classes):
        is_it, told, score = p.labels == k, p.answers == k, p.probabilities[:, k]
        expected = {
            "sensitivity": metrics.recall_score(is_it, told),
            "specificity": metrics.recall_score(~is_it, ~told),
            "ppv": metrics.precision_score(is_it, told),
            "npv": metrics.precision_score(~is_it, ~told),
            "auc": metrics.roc_auc_score(is_it, score),
            "average_precision": metrics.average_precision_score(is_it, score),
        }
        assert table[dx].to_dict() == pytest.approx(expected)


def test_class_figures_by_hand():
    """Of 3 melanomas (2 lesions) one is found; of 4 moles one is taken for a melanoma."""
    labels, answers = [MEL] * 3 + [NV] * 4, [MEL, NV, NV, MEL, NV, NV, NV]
    table = scores.judge_classes(predict(labels, np.eye(7)[answers], CLASSES, [1, 1, *range(2, 7)]))
    assert table["value"]["mel"].tolist()[:4] == pytest.approx([1 / 3, 3 / 4, 1 / 2, 3 / 5])
    assert table["images"]["mel"].tolist() == [3, 4, 2, 5, 3, 3]
    assert table["lesions"]["mel"].tolist() == [2, 4, 2, 5, 2, 2]
    assert table[["low", "high"]].isna().all(axis=None)


def test_rankings_have_the_interval_of_the_bootstrap_unless_they_are_perfect():
    p = replace(draw_case(1), resamples=100)
    table = scores.judge_classes(p).drop(index="a", level="dx")
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    perfect = p.with_probabilities(np.eye(4)[p.labels])
    table = scores.judge_classes(perfect)
    assert (table["value"] == 1).all()
    assert table["low"].xs("auc", level="figure").isna().all()
    assert (table["low"].xs("sensitivity", level="figure") < 1).all()


def test_operating_points_by_hand():
    """Ten validation melanomas of .1 … 1: for .9 the threshold is .2; then 3 of 4 are found."""
    scored = np.zeros((12, 7))
    scored[:, MEL] = [*np.arange(1, 11) / 10, 0.05, 0.15]
    validation = predict([MEL] * 10 + [NV] * 2, scored, CLASSES)
    thresholds = calibration.choose_operating_points(validation)
    assert thresholds["melanoma"].to_dict() == pytest.approx({0.9: 0.2, 0.95: 0.1})
    probabilities = np.zeros((9, 7))
    probabilities[:, MEL] = [0.2, 0.9, 0.5, 0.19, 0.3, 0.2, 0.1, 0.1, 0.1]
    p = predict([MEL] * 4 + [NV] * 5, probabilities, CLASSES)
    found = calibration.judge_operating_points(thresholds, p).xs("melanoma").xs(0.9)
    assert found["value"].to_dict() == pytest.approx({"sensitivity": 3 / 4, "specificity": 3 / 5})
    assert found["images"].tolist() == [4, 5]


def test_questions_that_cannot_be_asked_are_left_out():
    positive, score = scores.ask("malignant", predict(range(7), np.eye(7), CLASSES))
    assert [CLASSES[k] for k in np.flatnonzero(positive)] == ["akiec", "bcc", "mel"]
    assert score.tolist() == positive.tolist()
    basal = predict([0, 1], np.eye(2), ("bcc", "nv"))
    assert calibration.choose_operating_points(basal).index.unique("question") == ["malignant"]
    benign = predict([0, 1], np.eye(2), ("df", "nv"))
    thresholds = calibration.choose_operating_points(benign)
    points = calibration.judge_operating_points(thresholds, benign)
    told = scores.write_intervals(points).unstack("figure", sort=False)
    assert thresholds.empty and points.empty and told.empty
    assert calibration.count_per_thousand(points, 0.05).empty
    groups = scores.score_groups(benign, threshold=np.nan)
    assert groups.index.unique("figure").tolist() == ["accuracy", "baseline"]


def test_thousand_images_by_hand():
    """50 of 1,000: sensitivity .9 finds 45; specificity .6 alarms 380 of 950; ppv 45 / 425."""
    index = pd.MultiIndex.from_product(
        [["melanoma"], [0.9], ["sensitivity", "specificity"]],
        names=["question", "wanted", "figure"],
    )
    points = pd.DataFrame({"value": [0.9, 0.6], "low": [0.7, 0.5]}, index)
    counts = calibration.count_per_thousand(points, 0.05)
    names = ["found", "missed", "false_alarms", "rightly_cleared", "missed_at_worst"]
    names += ["false_alarms_at_worst", "ppv"]
    assert counts.iloc[0][names].tolist() == pytest.approx([45, 5, 380, 570, 15, 475, 45 / 425])
    assert calibration.count_per_thousand(points.assign(low=np.nan), 0.05)["found"].tolist() == [45]


def test_selection_by_hand():
    """The surest two answers are right, the third is wrong, the fourth is right again."""
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    curve = calibration.trace_selection(predict([0, 1, 1, 1], probabilities, "ab"))
    assert curve["share"].tolist() == [0.25, 0.5, 0.75, 1]
    assert curve["accuracy"].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert curve["classes"].tolist() == [1, 1, 1, 2]
    assert curve["balanced_accuracy"].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 5 / 6])
    p = draw_case(0)
    table = calibration.score_selection(p)
    assert table["images"].tolist() == [150, 210, 240, 270, 300]
    expected = metrics.balanced_accuracy_score(p.labels, p.answers)
    assert table.loc[1.0, "balanced_accuracy"] == pytest.approx(expected)
    assert table.loc[1.0, "value"] == (p.answers == p.labels).mean() < table.loc[0.5, "value"]


def test_surest_errors_come_first():
    p = predict([0, 1, 0, 1], [[0.4, 0.6], [0.9, 0.1], [0.7, 0.3], [0.8, 0.2]], "ab")
    table = calibration.find_surest_errors(p, images=2)
    assert table["image_id"].tolist() == ["i00001", "i00003"]
    assert table["answer"].tolist() == ["a", "a"]
    assert table["probability_of_dx"].tolist() == [0.1, 0.2]


def test_ages_are_bands_in_order_and_what_is_missing_is_unknown():
    columns = {
        "sex": ["male", "female", None, "male", "male"],
        "age": [0.0, 75.0, np.nan, 74.0, 12.0],
        "localization": "back",
    }
    p = predict([NV] * 5, np.eye(7)[[NV] * 5], CLASSES, **columns)
    found = scores.score_groups(p, 0.5).xs("accuracy", level="figure")["images"]
    assert found["age"].to_dict() == {"under 30": 1, "60 to 74": 1, "75 and over": 1, "unknown": 2}
    assert list(found["age"].index) == ["under 30", "60 to 74", "75 and over", "unknown"]
    assert found["sex"].to_dict() == {"male": 3, "female": 1, "unknown": 1}
    assert "site" not in found.index.unique("attribute")


def test_groups_by_hand():
    """40 men, half of them with melanoma, and 5 women; each image is a lesion."""
    labels, answers = [MEL] * 20 + [NV] * 25, [MEL] * 15 + [NV] * 5 + [MEL] * 2 + [NV] * 23
    p = predict(labels, np.eye(7)[answers], CLASSES, sex=["male"] * 40 + ["female"] * 5)
    table = scores.score_groups(p, threshold=0.5)
    men = table.xs("male", level="value")
    assert men["value"].tolist() == pytest.approx([33 / 40, 0.5, 0.75, 0.9])
    assert men["images"].tolist() == [40, 40, 20, 20]
    assert table["value"]["all", "all", "accuracy"] == pytest.approx(38 / 45)
    assert table["difference"]["sex", "male", "accuracy"] == pytest.approx(33 / 40 - 1)
    women = table.xs("female", level="value")
    assert women["low"].isna().all()


def test_group_is_compared_with_all_others_by_the_interval_of_newcombe():
    """His table II: 56 of 70 against 48 of 80, the difference .2 [.0524, .3339]."""
    labels = np.array([NV] * 150)
    answers = np.where(np.r_[np.arange(70) < 56, np.arange(80) < 48], NV, MEL)
    p = predict(labels, np.eye(7)[answers], CLASSES, dataset=["x"] * 70 + ["y"] * 80)
    row = scores.score_groups(p, np.nan).loc[("source", "x", "accuracy")]
    found = row[["difference", "difference_low", "difference_high"]].tolist()
    assert found == pytest.approx([0.2, 0.0524, 0.3339], abs=0.004)  # Student's quantile is wider
