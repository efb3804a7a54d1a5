"""Many runs side by side: one table, and paired differences with intervals that can be believed.

A run is what `runs.folder.load_run` returns.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

from helpers.data.files import raise_problems
from helpers.evaluation.calibration import adjust_prior
from helpers.evaluation.scores import PRIOR_ADJUSTED, score_predictions, write_intervals

REPEATS = ("FOLD", "SEED")  # vary without being a question of their own
SCORES = ("accuracy", "balanced_accuracy", PRIOR_ADJUSTED, "auc")
PARTS = {"val": "validation", "test": "test"}
ABSENT = "absent"  # what stands for a parameter that a run's notebook does not have
COLUMNS = [f"{part}_{name}" for part in PARTS for name in SCORES]


def find_varied(runs: Sequence) -> list[str]:
    """Name the parameters that differ among runs, RUN_DIR apart; one that a run lacks differs."""
    given = [run.metrics["parameters"] for run in runs]
    names = dict.fromkeys(name for parameters in given for name in parameters)
    varied = [n for n in names if len({str(parameters.get(n, ABSENT)) for parameters in given}) > 1]
    return [name for name in varied if name != "RUN_DIR"]


def tabulate_runs(runs: Sequence) -> pd.DataFrame:
    """Make the table that the other functions of this module read, a row per run.

    Returns, indexed by folder name: the parameters that vary; for each part (val, test) the columns
    <part>_<score>, 0 … 1, and <part>_ratio, its images per training image; best_epoch, epochs,
    seconds, images_per_second; test_set, a number for each set of test images. Runs that answered
    the same test images identically are an InputError where they differ in a parameter: one model
    counted twice would make chance look like a finding. Where they do not, the first one counts.
    """
    rows, seen, varied = [], {}, find_varied(runs)
    for run in runs:
        split, training = run.metrics["data"]["split"], run.metrics["training"]
        row = {name: run.metrics["parameters"].get(name, ABSENT) for name in varied}
        for part in PARTS:
            p = run.predictions.part(part)
            adjusted = adjust_prior(run.predictions.part("val"), p)
            found = score_predictions(p)
            found[PRIOR_ADJUSTED] = score_predictions(adjusted)["balanced_accuracy"]
            row |= {f"{part}_{name}": found[name] for name in SCORES}
            row[f"{part}_ratio"] = split[part] / split["train"]
        row |= {n: training[n] for n in ("best_epoch", "epochs", "seconds", "images_per_second")}
        test = run.predictions.part("test").table.sort_values("image_id")
        row["test_set"] = "\n".join(test["image_id"])
        alike = seen.setdefault(test[["image_id", *p.columns]].to_csv(), {})
        setting = str([row[name] for name in varied])
        if setting in alike:
            print(f"{run.path.name} is the same as {alike[setting]}, and left out")
            continue
        alike[setting] = row["run"] = run.path.name
        rows.append(row)
    same = [" and ".join(alike.values()) for alike in seen.values() if len(alike) > 1]
    problem = "answered the test images identically: what they differ in had no effect (FOLD has"
    problem += " none on data with a column `split`); keep one of them"
    raise_problems("runs", [f"{names} {problem}" for names in same])
    table = pd.DataFrame(rows).set_index("run")
    return table.assign(test_set=pd.factorize(table["test_set"])[0])


def write_scores(runs: Sequence) -> pd.DataFrame:
    """Write each run's test scores with intervals as text, and how many classes are small."""
    kept = {run.path.name: pd.DataFrame(run.metrics["scores"]["test"]).T for run in runs}
    texts = {name: write_intervals(table.astype(float)) for name, table in kept.items()}
    small = [int(table.get("small_classes", pd.Series([0])).max()) for table in kept.values()]
    return pd.DataFrame(texts).T.rename_axis("run").assign(small_classes=small)


def summarise(table: pd.DataFrame, varied: list[str]) -> pd.DataFrame:
    """Average scores and seconds over folds and seeds, a row per setting of what else varies."""
    grouped = table.groupby(name_settings(table, varied), sort=False)
    means = grouped[[*COLUMNS, "seconds", "images_per_second"]].mean()
    return pd.concat([grouped.size().rename("runs"), means], axis=1)


def name_settings(table: pd.DataFrame, varied: list[str]) -> pd.Series:
    """Name each run by its varied parameters, folds and seeds apart: "BATCH_NORM=True"."""
    names = [name for name in varied if name not in REPEATS]
    texts = [", ".join(f"{n}={row[n]}" for n in names) for _, row in table.iterrows()]
    return pd.Series(texts, index=table.index, name="setting").replace("", "all runs")


def list_questions(table: pd.DataFrame, varied: list[str]) -> list[str]:
    """List the parameters that are worth a comparison, without folds and seeds.

    One that changes together with an earlier one (a learning rate for each net) belongs to that.
    """
    questions = []
    for name in varied:
        if name not in REPEATS and not any(_goes_along(table, q, name) for q in questions):
            questions.append(name)
    return questions


def name_question(table: pd.DataFrame, varied: list[str], name: str) -> str:
    """Name a parameter and what changes along with it: "BATCH_NORM (with LEARNING_RATE)"."""
    along = [other for other in varied if other != name and _goes_along(table, name, other)]
    return f"{name} (with {', '.join(along)})" if along else name


def pair_runs(table: pd.DataFrame, varied: list[str], name: str) -> pd.DataFrame:
    """Pair runs on the same test images that differ in one parameter and what goes along with it.

    Takes what `tabulate_runs` and `find_varied` give, and the name of the parameter, with whose
    smallest value the others are compared. Returns a row per pair: against and value (of the
    parameter), the other varied parameters, test_set, the difference value - against of each score
    and of seconds, and <part>_ratio.
    """
    others = _list_others(table, varied, name)
    columns, ratios = [*COLUMNS, "seconds"], [f"{part}_ratio" for part in PARTS]
    reference, *values = sorted(table[name].unique(), key=lambda v: (isinstance(v, str), v))
    pairs = []
    for value in values:
        both = table[table[name] == reference].merge(table[table[name] == value], on=others)
        pair = both[others].assign(against=reference, value=value)
        for column in columns:
            pair[column] = both[f"{column}_y"] - both[f"{column}_x"]
        pair[ratios] = both[[f"{ratio}_x" for ratio in ratios]].to_numpy()
        pairs.append(pair)
    return pd.concat(pairs, ignore_index=True)


def find_unpaired(table: pd.DataFrame, varied: list[str], name: str) -> list[str]:
    """Name the runs that lack the partner which `pair_runs` would compare them with."""
    found = table.groupby(_list_others(table, varied, name))[name].transform("nunique")
    return table.index[found < table[name].nunique()].tolist()


def compare_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Average paired differences and say between which bounds the true mean may lie.

    The seeds of a test set are averaged first: they share its images and count as one. Over n test
    sets (folds) the interval is Student's with n - 1 degrees of freedom and the corrected variance
    s² (1/n + n_test / n_train): folds share most of their training images, so the plain s²/n is far
    too sure (Nadeau & Bengio, Inference for the generalization error, Machine Learning 52, 2003).

    Returns a row per value, part and score: pairs, test_sets, mean (difference), low, high, won
    (pairs in which the value was better). One test set has no interval (nan).
    """
    rows = []
    for value, of_value in pairs.groupby("value", sort=False):
        folds = of_value.groupby("test_set").mean(numeric_only=True)
        for part, score in itertools.product(PARTS, SCORES):
            column = f"{part}_{score}"
            mean, half = estimate_mean(folds[column].to_numpy(), folds[f"{part}_ratio"].mean())
            row = {"value": value, "part": PARTS[part], "score": score.replace("_", " ")}
            row |= {"pairs": len(of_value), "test_sets": len(folds), "mean": mean}
            row |= {"low": mean - half, "high": mean + half, "won": (of_value[column] > 0).sum()}
            rows.append(row)
    return pd.DataFrame(rows).set_index(["value", "part", "score"])


def estimate_mean(values: np.ndarray, ratio: float) -> tuple[float, float]:
    """Return the mean of values (n,), one per test set, and half the width of its 95 % interval.

    `ratio` is n_test / n_train of each fold, 0 for independent values; see `compare_pairs`.
    """
    n = len(values)
    if n < 2:
        return float(np.mean(values)), np.nan
    error = np.sqrt(np.var(values, ddof=1) * (1 / n + ratio))
    return float(np.mean(values)), float(student.ppf(0.975, n - 1) * error)


def _goes_along(table: pd.DataFrame, name: str, other: str) -> bool:
    """Tell whether `other` has one value for each value of `name`."""
    return other not in REPEATS and bool((table.groupby(name)[other].nunique() == 1).all())


def _list_others(table: pd.DataFrame, varied: list[str], name: str) -> list[str]:
    """List in what the runs of a pair must agree."""
    others = [other for other in varied if other != name and not _goes_along(table, name, other)]
    return [*others, "test_set"]
