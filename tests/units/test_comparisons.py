"""Paired differences: by hand, against scipy, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers.evaluation import comparisons
from helpers.runs import folder as runs


def make_run(folder, recall, seconds=10.0, **parameters):
    """Make a run of two classes whose test has 10 images, `recall` of each class right."""
    right = np.arange(5) < round(5 * recall)
    p_a = np.concatenate([np.where(right, 0.9, 0.2), np.where(right, 0.1, 0.8)])
    names = [f"{folder.name}-{i}" for i in range(20)]
    predictions = pd.DataFrame({"image_id": names, "lesion_id": names, "group": names})
    predictions["split"] = ["val"] * 10 + ["test"] * 10
    predictions["dx"] = 2 * (["a"] * 5 + ["b"] * 5)
    predictions["p_a"] = np.tile(p_a, 2)
    predictions["p_b"] = 1 - predictions["p_a"]
    score = {"value": recall, "low": recall - 0.1, "high": recall + 0.1}
    metrics = {
        "parameters": {"RUN_DIR": str(folder), "RATE": 0.1, **parameters},
        "classes": ["a", "b"],
        "data": {"split": {"train": 40, "val": 10, "test": 10}},
        "scores": {"test": dict.fromkeys(comparisons.SCORES, score)},
        "training": {"best_epoch": 2, "epochs": 3, "seconds": seconds, "images_per_second": 5.0},
    }
    curve = {"val_accuracy": [0.1, 0.2], "val_balanced_accuracy": [0.1, 0.2], "val_loss": [2, 1]}
    history = pd.DataFrame(curve, index=pd.RangeIndex(1, 3, name="epoch"))
    return runs.Run(folder, metrics, history, predictions, ())


RECALLS = {  # NORM, FOLD, SEED
    (False, 0, 0): 0.4,
    (True, 0, 0): 0.8,
    (False, 1, 0): 0.4,
    (True, 1, 0): 0.6,
    (False, 1, 1): 0.6,
    (True, 1, 1): 0.6,
    (True, 0, 1): 1.0,  # without a partner
}


@pytest.fixture
def finished(tmp_path):
    return [
        make_run(tmp_path / f"{i}", recall, NORM=norm, FOLD=fold, SEED=seed, seconds=10.0 + norm)
        for i, ((norm, fold, seed), recall) in enumerate(RECALLS.items())
    ]


def test_only_what_varies_is_in_the_table(finished):
    assert comparisons.find_varied(finished) == ["NORM", "FOLD", "SEED"]
    table = comparisons.tabulate_runs(finished)
    assert list(table.columns[:3]) == ["NORM", "FOLD", "SEED"]
    assert "RATE" not in table
    assert table["test_balanced_accuracy"].tolist() == pytest.approx(list(RECALLS.values()))
    assert (table["test_ratio"] == 0.25).all()
    assert comparisons.format_scores(table).iloc[0]["accuracy"] == "0.400 [0.300, 0.500]"
    summary = comparisons.summarise(table, ["NORM", "FOLD", "SEED"])
    assert summary["runs"].to_dict() == {"NORM=False": 3, "NORM=True": 4}
    assert summary.loc["NORM=False", "test_accuracy"] == pytest.approx(1.4 / 3)


def test_pairs_agree_in_all_else_and_the_rest_is_named(finished):
    table, varied = comparisons.tabulate_runs(finished), ["NORM", "FOLD", "SEED"]
    assert comparisons.list_questions(table, varied) == ["NORM"]
    pairs = comparisons.pair_runs(table, varied, "NORM")
    assert pairs[["FOLD", "SEED"]].to_numpy().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert pairs["test_accuracy"].tolist() == pytest.approx([0.4, 0.2, 0.0])
    assert (pairs["seconds"] == 1.0).all()
    assert comparisons.find_unpaired(table, varied, "NORM") == ["6"]
    row = comparisons.compare_pairs(pairs).loc[(True, "test", "accuracy")]
    assert (row["pairs"], row["won"]) == (3, 2)
    # by hand: mean .2, s .2, se .2 sqrt(1/3 + 1/4), t(.975, 2) 4.3027
    assert row["mean"] == pytest.approx(0.2)
    assert row["high"] == pytest.approx(0.2 + 4.302653 * 0.2 * np.sqrt(1 / 3 + 1 / 4), abs=1e-6)


def test_pairs_of_one_fold_get_the_plain_interval(finished):
    kept = [run for run in finished if run.metrics["parameters"]["FOLD"] == 1]
    table, varied = comparisons.tabulate_runs(kept), comparisons.find_varied(kept)
    assert varied == ["NORM", "SEED"]
    row = comparisons.compare_pairs(comparisons.pair_runs(table, varied, "NORM")).iloc[3]
    plain = stats.ttest_rel([0.6, 0.6], [0.4, 0.6]).confidence_interval(0.95)
    assert [row["low"], row["high"]] == pytest.approx(list(plain))


def test_one_pair_has_no_interval(tmp_path):
    two = [make_run(tmp_path / str(rate), rate, RATE=rate) for rate in (0.4, 0.8)]
    table, varied = comparisons.tabulate_runs(two), comparisons.find_varied(two)
    assert comparisons.find_unpaired(table, varied, "RATE") == []
    row = comparisons.compare_pairs(comparisons.pair_runs(table, varied, "RATE"))
    row = row.loc[(0.8, "test", "accuracy")]
    assert row["mean"] == pytest.approx(0.4)
    assert np.isnan(row["low"]) and np.isnan(row["high"])


def test_rate_chosen_for_each_net_goes_along_with_the_net(tmp_path):
    found = [
        make_run(tmp_path / f"{norm}{fold}", 0.6, NORM=norm, FOLD=fold, RATE=0.3 if norm else 0.1)
        for norm in (False, True)
        for fold in (0, 1)
    ]
    table, varied = comparisons.tabulate_runs(found), comparisons.find_varied(found)
    assert comparisons.list_questions(table, varied) == ["RATE"]
    pairs = comparisons.pair_runs(table, varied, "RATE")
    assert pairs["FOLD"].tolist() == [0, 1]


def test_folds_never_go_along(tmp_path):
    """Two nets that were trained on different folds are no pair."""
    found = [make_run(tmp_path / str(fold), 0.6, NORM=bool(fold), FOLD=fold) for fold in (0, 1)]
    table, varied = comparisons.tabulate_runs(found), comparisons.find_varied(found)
    assert comparisons.pair_runs(table, varied, "NORM").empty
    assert comparisons.find_unpaired(table, varied, "NORM") == ["0", "1"]


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for values in rng.normal(0.1, 0.05, size=(2000, 6)):
        mean, half = comparisons.estimate_mean(values, ratio=0.0)
        covered += abs(mean - 0.1) <= half
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_corrected_interval_covers_where_runs_share_their_images():
    """Differences that share a part, as those of folds do: of variance `ratio` against 1."""
    rng, ratio, n = np.random.default_rng(0), 1 / 3, 10
    shared = rng.normal(0, np.sqrt(ratio), size=(2000, 1))
    plain = corrected = 0
    for values in shared + rng.normal(0, 1, size=(2000, n)):
        plain += abs(values.mean()) <= comparisons.estimate_mean(values, 0.0)[1]
        corrected += abs(values.mean()) <= comparisons.estimate_mean(values, ratio)[1]
    assert corrected / 2000 == pytest.approx(0.95, abs=0.02)
    assert plain / 2000 < 0.75


def test_figures_show_every_pair_and_setting(finished):
    table, varied = comparisons.tabulate_runs(finished), comparisons.find_varied(finished)
    pairs = comparisons.pair_runs(table, varied, "NORM")
    figure = comparisons.plot_differences(pairs, "NORM")
    dots = figure.axes[0].lines[0].get_xdata()
    assert sorted(dots) == pytest.approx([0.0, 0.2, 0.4])
    curves = comparisons.plot_curves(finished, table, varied)
    assert len(curves.axes[0].lines) == len(finished) + 2
    labels = [text.get_text() for text in curves.axes[0].get_legend().get_texts()]
    assert labels == ["NORM=False", "NORM=True"]
    assert len(comparisons.plot_cost(table, varied).axes) == 2
