"""Many runs side by side: one table, and paired differences with intervals that can be believed."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.stats import t as student

from helpers.evaluation.calibration import adjust_prior
from helpers.evaluation.scores import PRIOR_ADJUSTED, score_predictions
from helpers.runs.folder import Run

REPEATS = ("FOLD", "SEED")  # vary without being a question of their own
SCORES = ("accuracy", "balanced_accuracy", PRIOR_ADJUSTED, "auc")
PARTS = {"val": "validation", "test": "test"}


def find_varied(runs: list[Run]) -> list[str]:
    """Name the parameters that differ among runs, RUN_DIR apart, in the notebook's order."""
    names = dict.fromkeys(name for run in runs for name in run.metrics["parameters"])
    values = {n: {str(run.metrics["parameters"].get(n)) for run in runs} for n in names}
    return [n for n in names if n != "RUN_DIR" and len(values[n]) > 1]


def tabulate_runs(runs: list[Run]) -> pd.DataFrame:
    """Make the table that the other functions of this module read, a row per run.

    Args:
        runs: finished runs.

    Returns:
        Indexed by folder name: the parameters that vary; for each part (val, test) and score the
        columns <part>_<score>, 0 … 1; for the test also <score>_low and _high, the run's own
        bootstrap interval over lesions (with REFIT, val figures are of the net before it, test
        figures of the net after it); best_epoch, epochs, seconds, images_per_second; and
        <part>_ratio, images of the part per image of the training part; what REFIT adds to that
        is left out, which makes the intervals of `estimate_mean` a little wider.
    """
    rows = []
    for run in runs:
        split, training = run.metrics["data"]["split"], run.metrics["training"]
        row = {name: run.metrics["parameters"].get(name) for name in find_varied(runs)}
        for part in PARTS:
            labels, probabilities, _ = run.part(part)
            adjusted = adjust_prior(*run.part("val")[:2], probabilities)
            found = score_predictions(labels, probabilities)
            found[PRIOR_ADJUSTED] = score_predictions(labels, adjusted)["balanced_accuracy"]
            row |= {f"{part}_{name}": found[name] for name in SCORES}
            row[f"{part}_ratio"] = split[part] / split["train"]
        for name in SCORES:
            row[f"test_{name}_low"] = run.metrics["scores"]["test"][name]["low"]
            row[f"test_{name}_high"] = run.metrics["scores"]["test"][name]["high"]
        row |= {n: training[n] for n in ("best_epoch", "epochs", "seconds", "images_per_second")}
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index([run.path.name for run in runs], name="run"))


def format_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Write the test scores of each run as text, value [low, high], for reading."""
    return pd.DataFrame(
        {
            name: [
                f"{row[f'test_{name}']:.3f} [{row[f'test_{name}_low']:.3f}, "
                f"{row[f'test_{name}_high']:.3f}]"
                for _, row in table.iterrows()
            ]
            for name in SCORES
        },
        index=table.index,
    )


def summarise(table: pd.DataFrame, varied: list[str]) -> pd.DataFrame:
    """Average over folds and seeds, for each setting of the other parameters that vary.

    Args:
        table: as from `tabulate_runs`.
        varied: as from `find_varied`.

    Returns:
        A row per setting: runs, and the mean of each score, of seconds and images_per_second.
    """
    columns = [f"{part}_{name}" for part in PARTS for name in SCORES]
    grouped = table.groupby(name_settings(table, varied), sort=False)
    means = grouped[[*columns, "seconds", "images_per_second"]].mean()
    return pd.concat([grouped.size().rename("runs"), means], axis=1)


def name_settings(table: pd.DataFrame, varied: list[str]) -> pd.Series:
    """Name each run by its varied parameters, folds and seeds apart: "BATCH_NORM=True"."""
    names = [name for name in varied if name not in REPEATS]
    texts = [", ".join(f"{n}={row[n]}" for n in names) for _, row in table.iterrows()]
    return pd.Series(texts, index=table.index, name="setting").replace("", "all runs")


def list_questions(table: pd.DataFrame, varied: list[str]) -> list[str]:
    """List the parameters that are worth a comparison: folds and seeds apart, each once.

    A parameter that changes together with an earlier one (a learning rate chosen for each net) is
    part of the earlier one's question.
    """
    questions = []
    for name in varied:
        if name not in REPEATS and not any(_goes_along(table, q, name) for q in questions):
            questions.append(name)
    return questions


def _goes_along(table: pd.DataFrame, name: str, other: str) -> bool:
    """Tell whether `other` has one value for each value of `name`."""
    return other not in REPEATS and bool((table.groupby(name)[other].nunique() == 1).all())


def pair_runs(table: pd.DataFrame, varied: list[str], name: str) -> pd.DataFrame:
    """Pair runs that differ in one parameter alone and take the differences of their scores.

    Parameters that go along with it (see `list_questions`) may differ too.

    Args:
        table: as from `tabulate_runs`.
        varied: as from `find_varied`.
        name: the parameter; its smallest value is what the others are compared with.

    Returns:
        A row per pair: against and value (of the parameter), the other varied parameters, the
        difference value - against of each <part>_<score> and of seconds, and <part>_ratio.
        Runs without a partner are left out.
    """
    others = _list_others(table, varied, name)
    columns = [f"{part}_{score}" for part in PARTS for score in SCORES] + ["seconds"]
    reference, *values = sorted(table[name].unique())
    pairs = []
    for value in values:
        both = table[table[name] == reference].merge(
            table[table[name] == value], on=others or None, how="inner" if others else "cross"
        )
        pair = both[others].assign(against=reference, value=value)
        for column in columns:
            pair[column] = both[f"{column}_y"] - both[f"{column}_x"]
        for part in PARTS:
            pair[f"{part}_ratio"] = both[f"{part}_ratio_x"]
        pairs.append(pair)
    return pd.concat(pairs, ignore_index=True)


def find_unpaired(table: pd.DataFrame, varied: list[str], name: str) -> list[str]:
    """Name the runs that lack the partner which `pair_runs` would compare them with."""
    others = _list_others(table, varied, name)
    if not others:
        return []
    found = table.groupby(others)[name].transform("nunique")
    return table.index[found < table[name].nunique()].tolist()


def _list_others(table: pd.DataFrame, varied: list[str], name: str) -> list[str]:
    """List the varied parameters in which the runs of a pair must agree."""
    return [other for other in varied if other != name and not _goes_along(table, name, other)]


def compare_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Average paired differences and say between which bounds the true mean may lie.

    The interval is Student's with the corrected variance s² (1/n + n_test / n_train): runs over
    folds share most of their training images, so the plain s²/n is far too sure (Nadeau & Bengio,
    Inference for the generalization error, Machine Learning 52, 2003; for repeated folds Bouckaert
    & Frank, PAKDD 2004). Where all pairs are of one fold there is nothing to correct, and the
    interval is about other seeds on these very images only.

    Args:
        pairs: as from `pair_runs`.

    Returns:
        A row per value, part and score: pairs, mean (difference), low, high, won (pairs in which
        the value was better). One pair has no interval (nan).
    """
    rows = []
    several_folds = "FOLD" in pairs and pairs["FOLD"].nunique() > 1
    for value, of_value in pairs.groupby("value", sort=False):
        for part, score in itertools.product(PARTS, SCORES):
            differences = of_value[f"{part}_{score}"].to_numpy()
            ratio = of_value[f"{part}_ratio"].mean() if several_folds else 0.0
            mean, half = estimate_mean(differences, ratio)
            rows.append(
                {
                    "value": value,
                    "part": PARTS[part],
                    "score": score.replace("_", " "),
                    "pairs": len(differences),
                    "mean": mean,
                    "low": mean - half,
                    "high": mean + half,
                    "won": int((differences > 0).sum()),
                }
            )
    return pd.DataFrame(rows).set_index(["value", "part", "score"])


def estimate_mean(values: np.ndarray, ratio: float) -> tuple[float, float]:
    """Return the mean of values (n,) and half the width of its 95 % interval, see `compare_pairs`.

    Args:
        values: one per run or pair.
        ratio: n_test / n_train of each fold, 0 for independent values.
    """
    n = len(values)
    if n < 2:
        return float(np.mean(values)), np.nan
    error = np.sqrt(np.var(values, ddof=1) * (1 / n + ratio))
    return float(np.mean(values)), float(student.ppf(0.975, n - 1) * error)


def plot_curves(runs: list[Run], table: pd.DataFrame, varied: list[str]) -> Figure:
    """Overlay the learning curves of all runs: a thin line each, a thick one for a setting's mean.

    Args:
        runs: finished runs.
        table: as from `tabulate_runs`, of the same runs.
        varied: as from `find_varied`.
    """
    settings = name_settings(table, varied)
    names = settings.unique()
    colours = dict(zip(names, sns.color_palette(n_colors=len(names)), strict=True))
    figure, axs = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    columns = ("val_accuracy", "val_balanced_accuracy", "val_loss")
    for axes, column in zip(axs, columns, strict=True):
        for setting, colour in colours.items():
            curves = {
                r.path.name: r.history[column] for r in runs if settings[r.path.name] == setting
            }
            curves = pd.DataFrame(curves)
            axes.plot(curves.index, curves, color=colour, linewidth=0.6, alpha=0.5)
            axes.plot(curves.index, curves.mean(axis=1), color=colour, linewidth=2, label=setting)
        name = column.removeprefix("val_").replace("_", " ")
        axes.set(title=f"validation {name}", xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    axs[2].set_ylim(top=np.nanquantile([r.history["val_loss"].max() for r in runs], 0.5) * 1.1)
    axs[0].legend(frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def plot_differences(pairs: pd.DataFrame, name: str) -> Figure:
    """Draw each pair's difference as a dot, and the mean with its 95 % interval.

    Args:
        pairs: as from `pair_runs`.
        name: the parameter that differs, for the title.
    """
    figures = compare_pairs(pairs)
    values = list(pairs["value"].unique())
    figure, axs = plt.subplots(1, len(SCORES), figsize=(13, 2.6 + 0.6 * len(values)), sharey=True,
                               layout="constrained", squeeze=False)  # fmt: skip
    for axes, score in zip(axs[0], SCORES, strict=True):
        labels = []
        for value, (part, told) in itertools.product(values, PARTS.items()):
            y = -len(labels)
            dots = pairs.loc[pairs["value"] == value, f"{part}_{score}"]
            axes.plot(dots, np.full(len(dots), y - 0.2), "o", color="0.6", markersize=4)
            mean, low, high = figures.loc[(value, told, score.replace("_", " ")),
                                          ["mean", "low", "high"]]  # fmt: skip
            if np.isfinite(low):
                axes.plot([low, high], [y, y], color="C0", linewidth=2)
            axes.plot(mean, y, "D", color="C0")
            labels.append(told if len(values) == 1 else f"{value}, {told}")
        axes.axvline(0, color="0.4", linewidth=1, linestyle="--")
        title = score.replace("prior_adjusted_", "prior-adjusted\n").replace("auc", "AUC")
        axes.set(title=title.replace("_", " "), xlabel="difference")
        axes.set(yticks=-np.arange(len(labels)), yticklabels=labels)
        axes.set_ylim(-len(labels) + 0.4, 0.5)
    told = " and ".join(map(str, values))
    figure.suptitle(f"{name}: {told} against {pairs['against'].iloc[0]} (a dot per pair of runs)")
    sns.despine(figure)
    return figure


def plot_cost(table: pd.DataFrame, varied: list[str]) -> Figure:
    """Draw the test's balanced accuracy and AUC of each run against its training seconds."""
    settings = name_settings(table, varied)
    figure, axs = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, score in zip(axs, ("balanced_accuracy", "auc"), strict=True):
        sns.scatterplot(
            x=table["seconds"], y=table[f"test_{score}"], hue=settings, ax=axes,
            legend=score == "auc",
        )  # fmt: skip
        axes.set(xlabel="training, seconds", ylabel="test " + score.replace("_", " "))
    axs[1].legend(frameon=False, fontsize=8)
    sns.despine(figure)
    return figure
