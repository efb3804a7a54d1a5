"""Figures of a judgement: made from labels, probabilities and tables; returned, not shown."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from helpers.evaluation.calibration import bin_reliability, expected_calibration_error
from helpers.evaluation.judgement import ANSWERED_SHARES, QUESTIONS, ask, trace_selection
from helpers.evaluation.subgroups import FEWEST_LESIONS

THUMBNAIL = (200, 150)  # pixels, width and height


def plot_curves(
    labels: np.ndarray, probabilities: np.ndarray, classes: list[str], figures: pd.DataFrame
) -> Figure:
    """Draw the ROC and the precision-recall curve of each class, with the chance lines.

    By chance the ROC curve is the diagonal and the precision is the share of the class, drawn as
    a dotted line in the colour of the class.

    Args:
        labels: int (N,), indices into `classes`.
        probabilities: float (N, K).
        classes: K class codes; one that does not occur is left out.
        figures: as from `judgement.judge_classes`, for the legend.
    """
    figure, axs = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
    for k, dx in enumerate(classes):
        positive, score = labels == k, probabilities[:, k]
        if not 0 < positive.sum() < len(labels):
            continue
        auc, average = figures["value"][dx, "auc"], figures["value"][dx, "average_precision"]
        false_alarm, sensitivity, _ = roc_curve(positive, score)
        axs[0].plot(false_alarm, sensitivity, color=f"C{k}", label=f"{dx} AUC {auc:.2f}")
        precision, recall, _ = precision_recall_curve(positive, score)
        chance = positive.mean()
        label = f"{dx} AP {average:.2f} (chance {chance:.2f})"
        axs[1].plot(recall, precision, color=f"C{k}", drawstyle="steps-post", label=label)
        axs[1].axhline(chance, color=f"C{k}", linestyle=":", linewidth=1)
    axs[0].plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="chance")
    axs[0].set(title="ROC curves", xlabel="1 - specificity", ylabel="sensitivity")
    axs[1].set(title="Precision-recall curves", xlabel="recall (sensitivity)")
    axs[1].set_ylabel("precision (PPV)")
    for axes in axs:
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axs[0].legend(frameon=False, fontsize=8, loc="lower right")
    _put_legend_below(axs[1], columns=3)
    sns.despine(figure)
    return figure


def plot_reliability(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> Figure:
    """Draw the reliability diagram before and after temperature scaling.

    Args:
        labels: int (N,), class indices.
        before: float (N, K), as the model gave them.
        after: float (N, K), calibrated.
    """
    figure, axes = plt.subplots(figsize=(5.4, 5), layout="constrained")
    _draw_reliability(axes, labels, before, after)
    sns.despine(figure)
    return figure


def plot_operating_points(
    labels: np.ndarray, probabilities: np.ndarray, classes: list[str], points: pd.DataFrame
) -> Figure:
    """Draw the ROC curve of each question with its operating points and their intervals.

    Args:
        labels: int (N,), indices into `classes`.
        probabilities: float (N, K), calibrated.
        classes: K class codes.
        points: as from `judgement.judge_operating_points`.
    """
    figure, axs = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for axes, question in zip(axs, QUESTIONS, strict=True):
        _draw_operating_points(axes, question, labels, probabilities, classes, points)
    sns.despine(figure)
    return figure


def plot_summary(
    labels: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    classes: list[str],
    points: pd.DataFrame,
) -> Figure:
    """Draw the reliability diagram beside the melanoma ROC curve: a judgement at a glance.

    Args:
        labels: int (N,), indices into `classes`.
        before: float (N, K), as the model gave them.
        after: float (N, K), calibrated.
        classes: K class codes.
        points: as from `judgement.judge_operating_points`.
    """
    figure, axs = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    _draw_reliability(axs[0], labels, before, after)
    _draw_operating_points(axs[1], "melanoma", labels, after, classes, points)
    sns.despine(figure)
    return figure


def plot_selection(labels: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Draw accuracy and balanced accuracy against the share of images that are answered.

    Dotted where some class has no answered image left: the mean is then over fewer classes.

    Args:
        labels: int (N,), class indices.
        probabilities: float (N, K), calibrated.
    """
    curve = trace_selection(labels, probabilities)
    curve = curve[curve["share"] >= 0.05]  # the first few images say nothing but their own luck
    is_whole = curve["classes"] == curve["classes"].iloc[-1]
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    axes.plot(curve["share"], curve["accuracy"], "C0-", label="accuracy")
    balanced = curve["balanced_accuracy"]
    axes.plot(curve["share"], balanced.where(is_whole), "C1-", label="balanced accuracy")
    label = "the same, over fewer classes"
    axes.plot(curve["share"], balanced.mask(is_whole), "C1:", label=label)
    for share in ANSWERED_SHARES:
        axes.axvline(share, color="0.85", linewidth=1, zorder=0)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="share of the images that are answered")
    axes.set(ylabel="of the answered images", title="The most confident answers first")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    sns.despine(figure)
    return figure


def plot_subgroups(scores: pd.DataFrame) -> Figure:
    """Draw the scores of the groups as a forest plot with intervals and counts.

    Args:
        scores: as from `subgroups.score_subgroups`.
    """
    names = list(dict.fromkeys(scores.index.droplevel("figure")))
    figure, axs = plt.subplots(
        1, 3, figsize=(11, 1.4 + 0.24 * len(names)), layout="constrained", sharey=True
    )
    titles = {
        "accuracy": "accuracy",
        "sensitivity": "sensitivity, malignant or not",
        "specificity": "specificity, malignant or not",
    }
    y = -np.arange(len(names))
    for axes, (name, title) in zip(axs, titles.items(), strict=True):
        table = scores.xs(name, level="figure").loc[names]
        widths = (table["value"] - table["low"], table["high"] - table["value"])
        axes.errorbar(table["value"], y, xerr=widths, fmt="C0o", markersize=4, elinewidth=1)
        axes.axvline(table["value"].iloc[0], color="0.6", linestyle="--", linewidth=1)
        for position, lesions in zip(y, table["lesions"], strict=True):
            text, place = str(lesions), 1.02
            if lesions < FEWEST_LESIONS:
                text = f"too few: {lesions}"
            axes.text(place, position, text, va="center", fontsize=7, color="0.35")
        axes.set(xlim=(0, 1), xlabel="lesions at the right")
        axes.set_title(title, fontsize=10)
    baseline = scores.xs("baseline", level="figure").loc[names, "value"]
    axs[0].plot(baseline, y, "k|", markersize=7)
    axs[0].set_xlabel("black mark: always its commonest class")
    labels = [
        value if attribute == "all" else f"{attribute}: {value}" for attribute, value in names
    ]
    axs[0].set(yticks=y, yticklabels=labels, ylim=(y[-1] - 0.7, 0.7))
    axs[0].tick_params(axis="y", labelsize=8)
    sns.despine(figure)
    return figure


def plot_errors(errors: pd.DataFrame, paths: list[str | Path]) -> Figure:
    """Draw the first twelve of the images that were most surely wrong.

    Args:
        errors: as from `judgement.find_surest_errors`.
        paths: the image file of each row.
    """
    figure, axs = plt.subplots(2, 6, figsize=(8.4, 3.6), layout="constrained")
    for axes in axs.flat:
        axes.axis("off")
    for axes, (_, row), path in zip(axs.flat, errors.iterrows(), paths, strict=False):
        with Image.open(path) as picture:
            axes.imshow(picture.convert("RGB").resize(THUMBNAIL))
        title = (
            f"{row['image_id']}\ntrue {row['dx']}, said {row['answer']} {row['probability']:.2f}"
        )
        axes.set_title(title, fontsize=7)
    return figure


def _draw_reliability(
    axes: Axes, labels: np.ndarray, before: np.ndarray, after: np.ndarray
) -> None:
    """Draw a reliability diagram; the histogram below counts the calibrated answers."""
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect")
    styles = (("C1s-", "before", before), ("C0o-", "after temperature scaling", after))
    for style, name, probabilities in styles:
        table = bin_reliability(labels, probabilities).dropna()
        error = expected_calibration_error(labels, probabilities)
        label = f"{name}, ECE {error:.3f}"
        axes.plot(table["confidence"], table["accuracy"], style, markersize=4, label=label)
    heights = bin_reliability(labels, after)
    share = heights["count"] / heights["count"].sum()
    width = heights["high"] - heights["low"]
    axes.bar(
        heights["low"], share, width, align="edge", color="C0", alpha=0.2, label="share of images"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="confidence", ylabel="accuracy")
    axes.set_title("Reliability of the answers")
    axes.legend(fontsize=8, loc="upper left", framealpha=0.85, edgecolor="none")


def _draw_operating_points(
    axes: Axes,
    question: str,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    points: pd.DataFrame,
) -> None:
    """Draw a ROC curve, and a cross per operating point as long as its 95 % intervals."""
    positive, score = ask(question, labels, probabilities, classes)
    false_alarm, sensitivity, _ = roc_curve(positive, score)
    axes.plot(false_alarm, sensitivity, color="0.3", label="ROC curve")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="chance")
    for number, (wanted, pair) in enumerate(points.loc[question].groupby(level="wanted")):
        y, x = pair.xs((wanted, "sensitivity")), pair.xs((wanted, "specificity"))
        label = (
            f"chosen for {wanted:.2f}: sensitivity {y['value']:.2f}, specificity {x['value']:.2f}"
        )
        axes.errorbar(
            1 - x["value"],
            y["value"],
            xerr=[[x["high"] - x["value"]], [x["value"] - x["low"]]],
            yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
            fmt=f"C{number}o",
            markersize=5,
            label=label,
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="1 - specificity")
    axes.set(ylabel="sensitivity", title=f"Operating points for {question}")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _put_legend_below(axes: Axes, columns: int) -> None:
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=columns,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
    )
