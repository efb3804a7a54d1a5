"""Paired differences: by hand, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from cases import predict

from helpers.data.files import InputError
from helpers.evaluation import comparisons
from helpers.runs.folder import Run


def make_run(folder, recall, seconds=10.0, test_set=None, **parameters):
    """Make a run of two classes whose test has 20 images, `recall` of each class right."""
    right = np.arange(10) < round(10 * recall)
    p_a = np.concatenate([np.where(right, 0.9, 0.2), np.where(right, 0.1, 0.8)])
    p_a += np.random.default_rng(int(folder.name, 36)).uniform(-0.05, 0.05, 20)  # no run is alike
    labels = [0] * 10 + [1] * 10
    p_a, test_set = np.tile(p_a, 2), parameters.get("FOLD", 0) if test_set is None else test_set
    p = predict(2 * labels, np.stack([p_a, 1 - p_a], 1), "ab", split=["val"] * 20 + ["test"] * 20)
    p.table["image_id"] += f"_{test_set}"
    score = {"value": recall, "low": recall - 0.1, "high": recall + 0.1, "small_classes": 0}
    metrics = {
        "parameters": {"RUN_DIR": str(folder), "RATE": 0.1, **parameters},
        "data": {"split": {"train": 80, "val": 20, "test": 20}},
        "scores": {"test": dict.fromkeys(comparisons.SCORES, score)},
        "training": {"best_epoch": 2, "epochs": 3, "seconds": seconds, "images_per_second": 5.0},
    }
    return Run(folder, metrics, pd.DataFrame(), p, ())


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
    assert table["test_set"].tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert comparisons.write_scores(finished).iloc[0]["accuracy"] == ".400 [.300, .500]"
    summary = comparisons.summarise(table, ["NORM", "FOLD", "SEED"])
    assert summary["runs"].to_dict() == {"NORM=False": 3, "NORM=True": 4}
    assert summary.loc["NORM=False", "test_accuracy"] == pytest.approx(1.4 / 3)


def test_pairs_agree_in_all_else_and_seeds_are_averaged_first(finished):
    table, varied = comparisons.tabulate_runs(finished), ["NORM", "FOLD", "SEED"]
    assert comparisons.list_questions(table, varied) == ["NORM"]
    pairs = comparisons.pair_runs(table, varied, "NORM")
    assert pairs[["FOLD", "SEED"]].to_numpy().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert pairs["test_accuracy"].tolist() == pytest.approx([0.4, 0.2, 0.0])
    assert (pairs["seconds"] == 1.0).all()
    assert comparisons.find_unpaired(table, varied, "NORM") == ["6"]
    row = comparisons.compare_pairs(pairs).loc[(True, "test", "accuracy")]
    assert (row["pairs"], row["test_sets"], row["won"]) == (3, 2, 2)
    # by hand: folds .4 and .1, mean .25, s .2121, se s sqrt(1/2 + 1/4), t(.975, 1) 12.706
    assert row["mean"] == pytest.approx(0.25)
    half = 12.7062 * 0.3 / np.sqrt(2) * np.sqrt(1 / 2 + 1 / 4)
    assert row["high"] == pytest.approx(0.25 + half, abs=1e-4)


def test_folds_that_tested_the_same_images_are_one_test_set(tmp_path):
    found = [
        make_run(tmp_path / f"{norm:d}{fold}", 0.5 + 0.1 * norm, 1, 7, NORM=norm, FOLD=fold)
        for norm in (False, True)
        for fold in (0, 1)
    ]
    table, varied = comparisons.tabulate_runs(found), comparisons.find_varied(found)
    figures = comparisons.compare_pairs(comparisons.pair_runs(table, varied, "NORM"))
    assert (figures["test_sets"] == 1).all()
    assert figures["low"].isna().all()


def test_one_model_counted_twice_is_refused(tmp_path):
    """FOLD has no effect on data with a column `split`: both runs are the same model."""
    first, second = (make_run(tmp_path / f"{fold}", 0.6, 1, 0, FOLD=fold) for fold in (0, 1))
    comparisons.tabulate_runs([first, second])
    same = Run(second.path, second.metrics, second.history, first.predictions, ())
    with pytest.raises(InputError, match="0 and 1 answered the test images identically"):
        comparisons.tabulate_runs([first, same])


def test_run_made_twice_counts_once(tmp_path, capsys):
    first, other = (make_run(tmp_path / f"{fold}", 0.6, FOLD=fold) for fold in (0, 1))
    metrics = first.metrics | {"parameters": first.metrics["parameters"] | {"RUN_DIR": "again"}}
    again = Run(tmp_path / "again", metrics, first.history, first.predictions, ())
    assert comparisons.tabulate_runs([first, again, other]).index.tolist() == ["0", "1"]
    assert capsys.readouterr().out == "again is the same as 0, and left out\n"


def test_parameter_that_one_notebook_lacks_tells_its_runs_apart(tmp_path):
    found = [make_run(tmp_path / f"{fold}", 0.5, FOLD=fold) for fold in (0, 1)]
    found += [make_run(tmp_path / f"a{f}", 0.8, FOLD=f, MODEL="m", VIEWS=8) for f in (0, 1)]
    table, varied = comparisons.tabulate_runs(found), comparisons.find_varied(found)
    assert varied == ["FOLD", "MODEL", "VIEWS"]
    assert comparisons.name_question(table, varied, "MODEL") == "MODEL (with VIEWS)"
    pairs = comparisons.pair_runs(table, varied, "MODEL")
    assert (pairs["against"].tolist(), pairs["value"].tolist()) == (["absent"] * 2, ["m"] * 2)
    numbers = table.assign(VIEWS=["absent", "absent", 8, 8])  # a number comes before the word
    assert comparisons.pair_runs(numbers, varied, "VIEWS")["against"].tolist() == [8, 8]


def test_rate_chosen_for_each_net_goes_along_with_the_net(tmp_path):
    found = [
        make_run(tmp_path / f"{norm:d}{fold}", 0.6, NORM=norm, FOLD=fold, RATE=0.3 - 0.2 * norm)
        for norm in (False, True)
        for fold in (0, 1)
    ]
    table, varied = comparisons.tabulate_runs(found), comparisons.find_varied(found)
    assert comparisons.list_questions(table, varied) == ["RATE"]
    assert comparisons.name_question(table, varied, "RATE") == "RATE (with NORM)"
    assert comparisons.pair_runs(table, varied, "RATE")["FOLD"].tolist() == [0, 1]


def test_nets_of_different_folds_are_no_pair(tmp_path):
    found = [make_run(tmp_path / str(fold), 0.6, NORM=bool(fold), FOLD=fold) for fold in (0, 1)]
    table, varied = comparisons.tabulate_runs(found), comparisons.find_varied(found)
    assert comparisons.pair_runs(table, varied, "NORM").empty
    assert comparisons.find_unpaired(table, varied, "NORM") == ["0", "1"]


def test_interval_covers_the_true_mean_as_often_as_it_says():
    """Differences that share a part, as those of folds do: of variance `ratio` against 1."""
    rng, ratio = np.random.default_rng(0), 1 / 3
    plain = corrected = 0
    for values in rng.normal(0, np.sqrt(ratio), (1000, 1)) + rng.normal(size=(1000, 10)):
        plain += abs(values.mean()) <= comparisons.estimate_mean(values, 0.0)[1]
        corrected += abs(values.mean()) <= comparisons.estimate_mean(values, ratio)[1]
    assert corrected / 1000 == pytest.approx(0.95, abs=0.025)
    assert plain / 1000 < 0.75
