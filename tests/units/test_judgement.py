"""Judgements against scikit-learn's, hand-worked cases and simulated models of known quality."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    roc_auc_score,
)

from helpers.data import reading as dataset
from helpers.evaluation import judgement, subgroups
from helpers.plots import judgement as judgement_plots
from helpers.runs import folder as runs

CLASSES = list(dataset.CLASSES)
MEL, NV = CLASSES.index("mel"), CLASSES.index("nv")


def make_case(seed=0, images=300, coarse=False):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(7), rng.integers(0, 7, images - 7)]
    probabilities = rng.dirichlet(np.ones(7), images)
    probabilities[np.arange(images), labels] += 0.5 * rng.random(images)
    probabilities /= probabilities.sum(1, keepdims=True)
    groups = rng.integers(0, images // 2, images)
    return labels, probabilities.round(1) if coarse else probabilities, groups


@pytest.mark.parametrize("coarse", [False, True])
def test_class_figures_equal_sklearn(coarse):
    labels, probabilities, groups = make_case(coarse=coarse)
    table = judgement.judge_classes(labels, probabilities, groups, CLASSES, 20)["value"]
    matrix = confusion_matrix(labels, probabilities.argmax(1))
    for k, dx in enumerate(CLASSES):
        true, false_alarm = matrix[k, k], matrix[:, k].sum() - matrix[k, k]
        missed = matrix[k].sum() - true
        cleared = matrix.sum() - true - false_alarm - missed
        assert table[dx].to_dict() == pytest.approx(
            {
                "sensitivity": true / (true + missed),
                "specificity": cleared / (cleared + false_alarm),
                "ppv": true / (true + false_alarm),
                "npv": cleared / (cleared + missed),
                "auc": roc_auc_score(labels == k, probabilities[:, k]),
                "average_precision": average_precision_score(labels == k, probabilities[:, k]),
            }
        )


def test_ranking_weights_are_repetitions():
    labels, probabilities, _ = make_case(coarse=True)
    times = np.random.default_rng(1).integers(0, 4, len(labels))
    weighted = judgement._score_ranking(labels == MEL, probabilities[:, MEL], times[None] * 1.0)
    again = np.repeat(np.arange(len(labels)), times)
    positive, score = labels[again] == MEL, probabilities[again, MEL]
    expected = [roc_auc_score(positive, score), average_precision_score(positive, score)]
    assert weighted[0] == pytest.approx(expected)


def test_class_figures_by_hand():
    """Of 3 melanomas (2 lesions) one is found; of 4 moles one is taken for a melanoma."""
    labels = np.array([MEL, MEL, MEL, NV, NV, NV, NV])
    answers = [MEL, NV, NV, MEL, NV, NV, NV]
    groups = np.array([1, 1, 2, 3, 4, 5, 6])
    table = judgement.judge_classes(labels, np.eye(7)[answers], groups, CLASSES, 100)
    assert table["value"]["mel"].tolist()[:4] == pytest.approx([1 / 3, 3 / 4, 1 / 2, 3 / 5])
    assert table["images"]["mel"].tolist() == [3, 4, 2, 5, 3, 3]
    assert table["lesions"]["mel"].tolist() == [2, 4, 2, 5, 2, 2]
    assert table["value"]["df"][["sensitivity", "ppv", "auc"]].isna().all()
    assert table["value"]["df", "specificity"] == 1


def test_intervals_of_shares_hold_the_truth_as_often_as_they_say():
    """60 lesions of one to three equal images; shares of .7 and of .97, often 1 in a sample."""
    rng, covered, repeats = np.random.default_rng(0), np.zeros(2), 300
    for seed in range(repeats):
        groups = np.repeat(np.arange(60), rng.integers(1, 4, 60))
        hits = np.stack([rng.random(60) < 0.7, rng.random(60) < 0.97], axis=1)[groups]
        labels = np.zeros(len(groups), int)
        table = judgement.estimate_shares(hits, np.ones_like(hits), labels, groups, 200, seed)
        covered += (table["low"] <= [0.7, 0.97]) & (table["high"] >= [0.7, 0.97])
    assert (covered / repeats >= 0.9).all()
    assert covered[0] / repeats <= 0.99


def test_interval_of_auc_holds_the_truth_as_often_as_it_says():
    """Scores normal around 0 and 1: the area is Φ(1 / √2). Two equal images per lesion."""
    rng, covered, repeats, truth = np.random.default_rng(0), 0, 200, norm.cdf(1 / np.sqrt(2))
    for seed in range(repeats):
        labels, groups = np.repeat([0, 1], 80), np.repeat(np.arange(80), 2)
        score = norm.cdf(np.repeat(rng.normal(size=80), 2) + labels)
        table = judgement.judge_classes(
            labels, np.stack([1 - score, score], axis=1), groups, ["a", "b"], 200, seed
        )
        low, high = table.loc[("b", "auc"), ["low", "high"]]
        covered += low <= truth <= high
    assert 0.9 <= covered / repeats <= 0.99


def test_share_of_none_and_of_all_has_the_exact_end():
    """0 of 10 lesions, two images each: up to 1 - .025^(1/10) = .308 (Clopper and Pearson)."""
    groups = np.repeat(np.arange(10), 2)
    hits = np.zeros((20, 2), bool)
    hits[:, 1] = True
    labels = np.zeros(20, int)
    table = judgement.estimate_shares(hits, np.ones_like(hits), labels, groups, 100, 0)
    assert table["low"].tolist() == pytest.approx([0, 0.6915], abs=1e-4)
    assert table["high"].tolist() == pytest.approx([0.3085, 1], abs=1e-4)
    assert table["lesions"].tolist() == [10, 10]


def test_perfect_ranking_of_few_lesions_is_not_certain():
    """Four lesions of the class rank first: at least .025^(1/4) = .398 of the class does."""
    labels = np.array([1] * 4 + [0] * 6)
    probabilities = np.eye(2)[labels]
    table = judgement.judge_classes(labels, probabilities, np.arange(10), ["a", "b"], 100)
    for figure in ("auc", "average_precision"):
        found = table.loc[("b", figure), ["low", "value", "high"]].tolist()
        assert found == pytest.approx([0.025**0.25, 1, 1])


def test_share_of_no_image_is_undefined():
    hits = np.ones((4, 1), bool)
    table = judgement.estimate_shares(hits, ~hits, np.zeros(4, int), np.arange(4), 100, 0)
    assert table[["value", "low", "high"]].isna().all(axis=None)
    assert table["images"].tolist() == [0]


def test_operating_points_by_hand():
    """Ten validation melanomas of .1 … 1: for .9 the threshold is .2; then 3 of 4 are found."""
    known = np.array([MEL] * 10 + [NV] * 2)
    scored = np.zeros((12, 7))
    scored[:, MEL] = [*np.arange(1, 11) / 10, 0.05, 0.15]
    thresholds = judgement.choose_operating_points(known, scored, CLASSES)
    assert thresholds["melanoma"].to_dict() == pytest.approx({0.9: 0.2, 0.95: 0.1})
    labels = np.array([MEL] * 4 + [NV] * 5)
    probabilities = np.zeros((9, 7))
    probabilities[:, MEL] = [0.2, 0.9, 0.5, 0.19, 0.3, 0.2, 0.1, 0.1, 0.1]
    points = judgement.judge_operating_points(
        thresholds, labels, probabilities, np.arange(9), CLASSES, 100
    )
    found = points.xs("melanoma").xs(0.9)
    assert found["value"].to_dict() == pytest.approx({"sensitivity": 3 / 4, "specificity": 3 / 5})
    assert found["images"].tolist() == [4, 5]


def test_malignant_is_the_sum_of_three_classes():
    labels = np.arange(7)
    positive, score = judgement.ask("malignant", labels, np.eye(7), CLASSES)
    assert [CLASSES[k] for k in labels[positive]] == ["akiec", "bcc", "mel"]
    assert score.tolist() == positive.tolist()


def test_validation_without_melanoma_is_named():
    with pytest.raises(ValueError, match="none of 2 images is positive"):
        judgement.choose_operating_points(np.array([NV, NV]), np.eye(7)[:2], CLASSES)


def test_thousand_images_by_hand():
    """50 of 1,000: sensitivity .9 finds 45; specificity .6 alarms 380 of 950; ppv 45 / 425."""
    index = pd.MultiIndex.from_product(
        [["melanoma"], [0.9], ["sensitivity", "specificity"]],
        names=["question", "wanted", "figure"],
    )
    points = pd.DataFrame({"value": [0.9, 0.6], "low": [0.7, 0.5]}, index)
    counts = judgement.count_per_thousand(points, 0.05)
    assert counts.iloc[0].to_dict() == pytest.approx(
        {
            "found": 45,
            "missed": 5,
            "false_alarms": 380,
            "rightly_cleared": 570,
            "missed_at_worst": 15,
            "false_alarms_at_worst": 475,
            "ppv": 45 / 425,
        }
    )


def test_selection_by_hand():
    """The surest two answers are right, the third is wrong, the fourth is right again."""
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    curve = judgement.trace_selection(np.array([0, 1, 1, 1]), probabilities)
    assert curve["share"].tolist() == [0.25, 0.5, 0.75, 1]
    assert curve["accuracy"].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert curve["classes"].tolist() == [1, 1, 1, 2]
    assert curve["balanced_accuracy"].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 5 / 6])


def test_selection_at_its_end_is_the_whole_part():
    labels, probabilities, groups = make_case()
    table = judgement.score_selection(labels, probabilities, groups, 100)
    answers = probabilities.argmax(1)
    assert table["images"].tolist() == [150, 210, 240, 270, 300]
    assert table.loc[1.0, "value"] == (answers == labels).mean()
    expected = balanced_accuracy_score(labels, answers)
    assert table.loc[1.0, "balanced_accuracy"] == pytest.approx(expected)
    assert table["value"].is_monotonic_decreasing
    assert (table["low"] < table["value"]).all()


def test_surest_errors_come_first():
    predictions = pd.DataFrame(
        {
            "image_id": ["1", "2", "3", "4"],
            "dx": ["a", "b", "a", "b"],
            "p_a": [0.4, 0.9, 0.7, 0.8],
            "p_b": [0.6, 0.1, 0.3, 0.2],
        }
    )
    table = judgement.find_surest_errors(predictions, ["a", "b"], images=2)
    assert table["image_id"].tolist() == ["2", "4"]
    assert table["answer"].tolist() == ["a", "a"]
    assert table["probability_of_dx"].tolist() == [0.1, 0.2]


def test_intervals_are_written_short():
    table = pd.DataFrame(
        {"value": [0.7391, 1, np.nan], "low": [0.7, 0.9, np.nan], "high": [0.8, 1, np.nan]}
    )
    assert judgement.write_intervals(table).tolist() == [
        ".739 [.700, .800]",
        "1.000 [.900, 1.000]",
        "-",
    ]


def make_run(parameters=None):
    labels, probabilities, groups = make_case(images=40)
    table = pd.DataFrame(
        {
            "image_id": [f"ISIC_{i:07}" for i in range(40)],
            "lesion_id": groups.astype(str),
            "group": groups.astype(str),
            "split": np.where(np.arange(40) < 20, "val", "test"),
            "dx": np.array(CLASSES)[labels],
        }
    )
    known = pd.DataFrame(probabilities, columns=[f"p_{dx}" for dx in CLASSES])
    metrics = {"classes": CLASSES, "parameters": parameters}
    return runs.Run(Path("a_run"), metrics, pd.DataFrame(), table.join(known), ())


def test_wrong_parameters_are_named_together():
    with pytest.raises(runs.RunError) as raised:
        judgement.check_parameters(make_run(), "official", 5, 10, -1)
    message = str(raised.value)
    assert "PART is 'official', wanted is one that a_run has: val, test" in message
    assert "PREVALENCE is 5, wanted is above 0 and below 1" in message
    assert "RESAMPLES is 10, wanted is at least 100" in message
    assert "SEED is -1" in message


def test_right_parameters_pass():
    judgement.check_parameters(make_run(), "val", 0.1, 100, 0)


def write_data(folder, run, **changes):
    """Write the metadata of a run's images, and an empty file for each."""
    rows = run.predictions[["lesion_id", "image_id", "dx"]].assign(
        dx_type="histo", age=50, sex="male", localization="back"
    )
    (folder / "images").mkdir(parents=True)
    for image_id in rows["image_id"]:
        (folder / "images" / f"{image_id}.jpg").touch()
    rows.assign(**changes).iloc[::-1].to_csv(folder / "HAM10000_metadata.csv", index=False)


def test_metadata_are_joined_in_the_order_of_the_part(tmp_path):
    run = make_run({"DATA_DIR": str(tmp_path), "TEST_DIR": ""})
    run.predictions["lesion_id"] = run.predictions["image_id"]
    write_data(tmp_path, run, age=np.arange(40) % 100)
    table = subgroups.read_metadata_of_run(run, "test")
    assert table["image_id"].tolist() == run.predictions["image_id"].tolist()[20:]
    assert table["age"].tolist() == list(range(20, 40))


def test_data_of_another_run_are_refused(tmp_path):
    run = make_run({"DATA_DIR": str(tmp_path), "TEST_DIR": ""})
    run.predictions["lesion_id"] = run.predictions["image_id"]
    write_data(tmp_path, run)
    run.predictions.loc[39, "image_id"] = "ISIC_9999999"
    run.predictions.loc[38, "dx"] = "mel" if run.predictions.loc[38, "dx"] == "nv" else "nv"
    with pytest.raises(dataset.DatasetError) as raised:
        subgroups.read_metadata_of_run(run, "test")
    message = str(raised.value)
    assert "1 of the 20 test images are not in it" in message
    assert "1 test images have another dx" in message


def test_missing_data_are_named():
    run = make_run({"DATA_DIR": "nowhere/at/all", "TEST_DIR": ""})
    with pytest.raises(dataset.DatasetError, match="nowhere/at/all"):
        subgroups.read_metadata_of_run(run, "test")


def test_groups_of_images_by_hand():
    table = pd.DataFrame(
        {
            "sex": ["male", "female", "unknown", "male", "male"],
            "age": [0.0, 30.0, np.nan, 74.0, 75.0],
            "localization": "back",
            "dx_type": ["histo", "histo", "consensus", "histo", "histo"],
        }
    )
    grouped = subgroups.group_images(table)
    assert grouped["age"].tolist() == ["unknown", "30 to 44", "unknown", "60 to 74", "75 and over"]
    assert list(grouped) == ["sex", "age", "diagnosis by"]


def score_two_groups():
    """40 male and 5 female images, each of a lesion of its own; among the men half melanoma."""
    grouped = pd.DataFrame({"sex": ["male"] * 40 + ["female"] * 5})
    labels = np.array([MEL] * 20 + [NV] * 25)
    probabilities = np.eye(7)[[MEL] * 15 + [NV] * 5 + [MEL] * 2 + [NV] * 23]
    return subgroups.score_subgroups(
        grouped, labels, probabilities, np.arange(45), CLASSES, threshold=0.5, resamples=200
    )


def test_subgroups_by_hand():
    scores = score_two_groups()
    men = scores.xs("male", level="value")
    assert men["value"].tolist() == pytest.approx([33 / 40, 0.5, 0.75, 0.9])
    assert men["images"].tolist() == [40, 40, 20, 20]
    assert scores["value"]["all", "all", "accuracy"] == pytest.approx(38 / 45)


def test_groups_too_small_are_said_to_be_too_small():
    scores = score_two_groups()
    assert scores.xs("female", level="value")["value"].isna().all()
    text = subgroups.write_scores(scores)
    assert text.loc[("sex", "female")].tolist() == [5, 5, *["too few"] * 4]
    assert text.loc[("sex", "male"), "baseline"] == ".500"
    assert text.loc[("sex", "male"), "accuracy"].startswith(".825 [")


def test_departing_group_is_found():
    grouped = pd.DataFrame({"source": ["x"] * 100 + ["y"] * 100})
    labels = np.array([MEL, NV] * 100)
    answers = np.where(np.arange(200) < 100, labels, NV)  # every melanoma of y is missed
    scores = subgroups.score_subgroups(
        grouped, labels, np.eye(7)[answers], np.arange(200), CLASSES, 0.5, resamples=200
    )
    found = subgroups.find_departures(scores, "sensitivity")
    assert found.index.tolist() == [("source", "x"), ("source", "y")]
    assert found["value"].tolist() == [1, 0]
    assert len(subgroups.find_departures(scores, "specificity")) == 0


def test_figures_show_what_was_judged():
    labels, probabilities, groups = make_case(images=200)
    by_class = judgement.judge_classes(labels, probabilities, groups, CLASSES, 100)
    thresholds = judgement.choose_operating_points(labels, probabilities, CLASSES)
    points = judgement.judge_operating_points(
        thresholds, labels, probabilities, groups, CLASSES, 100
    )
    curves = judgement_plots.plot_curves(labels, probabilities, CLASSES, by_class)
    summary = judgement_plots.plot_summary(labels, probabilities, probabilities, CLASSES, points)
    selection = judgement_plots.plot_selection(labels, probabilities)
    forest = judgement_plots.plot_subgroups(score_two_groups())
    texts = [text.get_text() for text in curves.axes[0].get_legend().get_texts()]
    assert texts[MEL] == f"mel AUC {by_class['value']['mel', 'auc']:.2f}"
    assert texts[-1] == "chance"
    assert "ECE" in summary.axes[0].get_legend().get_texts()[1].get_text()
    accuracy = selection.axes[0].lines[0].get_ydata()
    assert accuracy[-1] == (probabilities.argmax(1) == labels).mean()
    assert [label.get_text() for label in forest.axes[0].get_yticklabels()] == [
        "all",
        "sex: male",
        "sex: female",
    ]
    assert "too few: 5" in [text.get_text() for text in forest.axes[0].texts]
    plt.close("all")
