"""Figures of training and evaluation: each draws values and returns a Figure, not shown."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_curve

from helpers.evaluation import calibration, comparisons, scores
from helpers.evaluation.predictions import Predictions

DARK, MIDDLE, LIGHT = plt.colormaps["viridis"]([0.1, 0.5, 0.8])  # told apart in grey, too
DASHED = {"color": "0.5", "linestyle": "--", "linewidth": 1}
LEGEND = {"frameon": False, "fontsize": 8}
SHORTEST = 0.05  # share of answered images from which on a selection is drawn


def _make_axes(
    rows: int, columns: int, width: float, height: float, **options
) -> tuple[Figure, np.ndarray]:
    """Make a figure of that size in inches, and its axes row by row."""
    figure, axs = plt.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options
    )
    sns.despine(figure)
    return figure, axs.ravel()


def plot_history(history: pd.DataFrame, kept_epoch: int) -> Figure:
    """Draw accuracy and loss over the epochs of history.csv; a line marks the kept epoch."""
    figure, axs = _make_axes(1, 2, 10, 3.8)
    lines = (
        (axs[0], "accuracy", "training accuracy", MIDDLE, "-"),
        (axs[0], "val_accuracy", "validation accuracy", DARK, "-"),
        (axs[0], "val_balanced_accuracy", "validation balanced accuracy", DARK, ":"),
        (axs[1], "loss", "training loss", MIDDLE, "-"),
        (axs[1], "val_loss", "validation loss", DARK, "-"),
    )
    for axes, column, label, color, style in lines:
        axes.plot(history.index, history[column], style, color=color, label=label)
    for axes, name in zip(axs, ("Accuracy", "Loss"), strict=True):
        axes.axvline(kept_epoch, **DASHED, label="kept epoch")
        axes.set(title=name, xlabel="epoch", ylim=(0, 1 if name == "Accuracy" else None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(**LEGEND)
    return figure


def plot_confusion(p: Predictions) -> Figure:
    """Draw the confusion matrix: counts, and per cent of the row, by which it is coloured."""
    counts = confusion_matrix(p.labels, p.answers, labels=range(len(p.classes)))
    images = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, images, out=np.zeros(counts.shape), where=images > 0)
    text = [f"{n}\n{s:.0f} %" if n else "0" for n, s in zip(counts.flat, share.flat, strict=True)]
    figure, (axes,) = _make_axes(1, 1, 7, 5.6)
    rows = [f"{dx} ({n})" for dx, n in zip(p.classes, images[:, 0], strict=True)]
    table = pd.DataFrame(share, rows, p.classes)
    style = {"cmap": "Blues", "vmin": 0, "vmax": 100, "annot_kws": {"size": 8}, "ax": axes}
    style["cbar_kws"] = {"label": "% of the true class"}
    sns.heatmap(table, annot=np.reshape(text, counts.shape), fmt="", **style)
    axes.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class (images)")
    axes.tick_params(axis="y", rotation=0)
    return figure


def plot_answers(pixels: np.ndarray, p: Predictions, images: int = 18) -> Figure:
    """Draw images with true class, answer and its probability; a cross marks an error.

    Takes uint8 (N, height, width, 3) in the order of the N predictions, whose seed chooses: one of
    each class that occurs, the rest at random.
    """
    order = np.random.default_rng(p.seed).permutation(len(p))
    first = [order[p.labels[order] == k][0] for k in np.unique(p.labels)]
    chosen = np.concatenate([first, order[~np.isin(order, first)]])[:images]
    panels = []
    for i in chosen:
        sign = "✓" if p.answers[i] == p.labels[i] else "✗"
        answer = f"{sign} {p.classes[p.answers[i]]} {p.probabilities[i].max():.2f}"
        panels.append((f"true {p.classes[p.labels[i]]}\n{answer}", pixels[i]))
    return plot_panels(panels, title="Answers with their probability (✗: wrong)")


def plot_panels(
    panels: Sequence[tuple[str, np.ndarray | None]], columns: int = 6, title: str = ""
) -> Figure:
    """Draw pictures with a title each, row by row.

    A panel is a title and uint8 (height, width, 3) of any size; None leaves the place empty.
    """
    rows = -(-len(panels) // columns)
    shapes = [picture.shape[0] / picture.shape[1] for _, picture in panels if picture is not None]
    height = rows * (max(shapes, default=0.75) * 10 / columns + 0.45) + 0.3
    figure, axs = _make_axes(rows, columns, 10, height)
    for axes in axs:
        axes.axis("off")
    for axes, (name, picture) in zip(axs, panels, strict=False):
        axes.set_title(name, fontsize=8, color="0.4" if "✗" in name else "black")
        axes.imshow(np.full((3, 4, 3), 245, np.uint8) if picture is None else picture)
    figure.suptitle(title)
    return figure


def plot_reliability(before: Predictions, after: Predictions) -> Figure:
    """Draw the reliability diagram before and after temperature scaling."""
    figure, (axes,) = _make_axes(1, 1, 5.4, 5)
    _draw_reliability(axes, before, after)
    return figure


def plot_roc(p: Predictions, by_class: pd.DataFrame) -> Figure:
    """Draw a small ROC curve of each class in `by_class`, as from `scores.judge_classes`."""
    codes = list(by_class.index.unique("dx"))
    columns = min(4, len(codes))
    rows = -(-len(codes) // columns)
    figure, axs = _make_axes(rows, columns, 2.6 * columns, 2.7 * rows, sharex=True, sharey=True)
    for axes in axs[len(codes) :]:
        axes.axis("off")
    for axes, dx in zip(axs, codes, strict=False):
        k = p.classes.index(dx)
        _draw_roc(axes, p.labels == k, p.probabilities[:, k])
        axes.set_title(f"{dx}, AUC {scores.write_share(by_class['value'][dx, 'auc'])}", fontsize=10)
    figure.supxlabel("1 - specificity")
    figure.supylabel("sensitivity")
    figure.suptitle("ROC curve of each class against the others (dashed: chance)")
    return figure


def plot_operating_points(
    p: Predictions, points: pd.DataFrame, before: Predictions | None = None
) -> Figure:
    """Draw the ROC curve of each question with its operating points and their intervals.

    `p` are calibrated, `points` as from `calibration.judge_operating_points`. `before`, not yet
    calibrated, adds a reliability diagram, for a judgement at a glance.
    """
    questions = list(points.index.unique("question"))
    panels = len(questions) + (before is not None)
    figure, axs = _make_axes(1, panels, 4.8 * panels, 4.8)
    if before is not None:
        _draw_reliability(axs[0], before, p)
    for axes, question in zip(axs[panels - len(questions) :], questions, strict=True):
        _draw_roc(axes, *scores.ask(question, p))
        y, x = (points.xs((question, name), level=(0, 2)) for name in calibration.FIGURES)
        right, up = _measure_reach(x)[::-1], _measure_reach(y)
        for i, (color, marker) in enumerate(((DARK, "o"), (MIDDLE, "s"))):
            value, told = (1 - x["value"].iloc[i], y["value"].iloc[i]), f"{y.index[i]:.2f} wanted"
            label = f"{told}: sensitivity {value[1]:.2f}, specificity {1 - value[0]:.2f}"
            axes.errorbar(*value, up[:, [i]], right[:, [i]], marker, color=color, label=label)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"Threshold: {question}")
        axes.legend(**LEGEND, loc="lower right")
    return figure


def plot_selection(p: Predictions) -> Figure:
    """Draw accuracy and balanced accuracy against the share of images that are answered.

    Dotted where some class has no answered image left: the mean is then over fewer classes.
    """
    curve = calibration.trace_selection(p).query("share >= @SHORTEST")
    is_whole = curve["classes"] == curve["classes"].iloc[-1]
    balanced, share = curve["balanced_accuracy"], curve["share"]
    figure, (axes,) = _make_axes(1, 1, 7.5, 4)
    axes.plot(share, curve["accuracy"], color=DARK, label="accuracy")
    axes.plot(share, balanced.where(is_whole), color=MIDDLE, label="balanced accuracy")
    axes.plot(share, balanced.mask(is_whole), ":", color=MIDDLE, label="over fewer classes")
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="share of the images that are answered")
    axes.set(ylabel="of the answered images", title="The most confident answers first")
    axes.legend(**LEGEND, loc="lower right")
    return figure


def plot_groups(by_group: pd.DataFrame) -> Figure:
    """Draw the table of `scores.score_groups`, without the groups of too few lesions."""
    table = by_group["value"].where(by_group["low"].notna()).unstack("figure", sort=False)
    names = list(table.index[table["accuracy"].notna()])
    figures = [figure for figure in table if figure != "baseline"]
    y = -np.arange(len(names))
    height = 1.6 + 0.24 * len(names)
    figure, axs = _make_axes(1, len(figures), 4 * len(figures), height, sharey=True)
    for axes, name in zip(axs, figures, strict=True):
        rows = by_group.xs(name, level="figure").loc[names]
        rows = rows.where(rows["low"].notna())
        reach = _measure_reach(rows)
        axes.errorbar(rows["value"], y, xerr=reach, fmt="o", color=DARK, markersize=4)
        axes.axvline(rows["value"].iloc[0], **DASHED)
        title = name if name == "accuracy" else f"{name}, malignant or not"
        axes.set(xlim=(0, 1.02), title=title)
    axs[0].plot(table.loc[names, "baseline"], y, "|", color="0.4", markersize=9)
    axs[0].set_xlabel("grey mark: always its commonest class")
    labels = ["all" if a == "all" else f"{a}: {value}" for a, value in names]
    axs[0].set(yticks=y, yticklabels=labels, ylim=(y[-1] - 0.7, 0.7))
    return figure


def plot_learning_curves(runs: Sequence, settings: pd.Series) -> Figure:
    """Overlay learning curves: a thin line per run, a thick one for the mean of a setting.

    `settings` are as from `comparisons.name_settings`, of the same runs.
    """
    names = settings.unique()
    figure, axs = _make_axes(1, 3, 12, 3.8)
    for axes, name in zip(axs, ("accuracy", "balanced_accuracy", "loss"), strict=True):
        for setting, color in zip(names, sns.color_palette("viridis", len(names)), strict=True):
            of_setting = [run for run in runs if settings[run.path.name] == setting]
            curves = pd.concat([run.history[f"val_{name}"] for run in of_setting], axis=1)
            axes.plot(curves.index, curves, color=color, linewidth=0.6, alpha=0.5)
            axes.plot(curves.index, curves.mean(axis=1), color=color, linewidth=2, label=setting)
        axes.set(title="validation " + name.replace("_", " "), xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    axs[2].set_ylim(top=1.1 * np.nanmedian([run.history["val_loss"].max() for run in runs]))
    axs[0].legend(**LEGEND)
    return figure


def plot_differences(pairs: pd.DataFrame, name: str) -> Figure:
    """Draw the differences of `comparisons.pair_runs` in a parameter, and their means."""
    means = comparisons.compare_pairs(pairs)
    rows = list(itertools.product(pairs["value"].unique(), comparisons.PARTS.items()))
    y = -np.arange(len(rows))
    height = 2 + 0.4 * len(rows)
    figure, axs = _make_axes(1, len(comparisons.SCORES), 13, height, sharey=True)
    for axes, score in zip(axs, comparisons.SCORES, strict=True):
        text = score.replace("_", " ")
        for position, (value, (part, told)) in zip(y, rows, strict=True):
            dots = pairs.loc[pairs["value"] == value, f"{part}_{score}"]
            axes.plot(dots, np.full(len(dots), position - 0.2), "o", color="0.6", markersize=4)
            row = means.loc[(value, told, text)]
            axes.plot([row["low"], row["high"]], [position] * 2, color=DARK, linewidth=2)
            axes.plot(row["mean"], position, "D", color=DARK)
        axes.axvline(0, **DASHED)
        axes.set(title=text.replace("adjusted ", "adjusted\n"), xlabel="difference")
    labels = [f"{value}, {told}" for value, (_, told) in rows]
    axs[0].set(yticks=y, yticklabels=labels, ylim=(y[-1] - 0.6, 0.5))
    figure.suptitle(f"{name} against {pairs['against'].iloc[0]} (a dot per pair of runs)")
    return figure


def plot_shares(shares: pd.DataFrame, uniform: dict[str, float]) -> Figure:
    """Draw the heat's mean share of each area by true class, right and wrong answers apart.

    `shares` has a row per image: dx, right (bool) and a column per area, 0 … 1 or nan; `uniform`,
    for each area, the share of heat that is the same everywhere, a dashed line.
    """
    figure, axs = _make_axes(1, len(uniform), 10, 3.4, sharey=True)
    order = sorted(shares["dx"].unique())
    for axes, area in zip(axs, uniform, strict=True):
        for right, shift, color, marker in ((True, -0.15, DARK, "o"), (False, 0.15, MIDDLE, "x")):
            part = shares[shares["right"] == right].groupby("dx")[area]
            means, errors = (values.reindex(order) for values in (part.mean(), part.sem()))
            label = "right answers" if right else "wrong answers"
            axes.errorbar(np.arange(len(order)) + shift, means, 1.96 * errors, fmt=marker,
                          color=color, markersize=4, label=label)  # fmt: skip
        axes.axhline(uniform[area], **DASHED, label="uniform heat")
        axes.set(title=area, xticks=range(len(order)), xticklabels=order, ylim=(0, 1))
        axes.tick_params(axis="x", rotation=45)
    axs[0].set_ylabel("mean share of the heat")
    axs[-1].legend(**LEGEND)
    return figure


def _draw_reliability(axes: Axes, before: Predictions, after: Predictions) -> None:
    """Draw a reliability diagram with intervals, or say that there are too few images."""
    axes.set(xlim=(0, 1), ylim=(0, 1.01), title="Reliability of the answers")
    axes.set(xlabel="confidence", ylabel="accuracy")
    if len(after) < calibration.FEWEST_IMAGES:
        text = f"{len(after)} images: too few,\nbelow {calibration.FEWEST_IMAGES}"
        axes.text(0.5, 0.5, text, ha="center", va="center")
        return
    axes.plot([0, 1], [0, 1], **DASHED, label="perfect")
    styles = ((LIGHT, "s", "before", before), (DARK, "o", "after temperature scaling", after))
    for color, marker, name, p in styles:
        table = calibration.bin_reliability(p)
        reach = _measure_reach(table)
        axes.errorbar(table["confidence"], table["value"], reach, fmt=f"{marker}-", color=color,
                      markersize=4, linewidth=1, label=name)  # fmt: skip
    axes.legend(**LEGEND, loc="upper left")


def _draw_roc(axes: Axes, positive: np.ndarray, score: np.ndarray) -> None:
    """Draw a ROC curve and the diagonal, alone where there is no curve."""
    axes.plot([0, 1], [0, 1], **DASHED)
    if 0 < positive.sum() < len(positive):
        axes.plot(*roc_curve(positive, score)[:2], color="0.2")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _measure_reach(table: pd.DataFrame) -> np.ndarray:
    """Return the lengths (2, N) of the error bars of value, low and high."""
    reach = (table[["low", "high"]].to_numpy().T - table["value"].to_numpy()) * [[-1], [1]]
    return reach.clip(0)  # rounding may put an end of 1 below a value of 1
