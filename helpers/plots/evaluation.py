"""Figures: made from the table, the pixels, a history or predictions; returned, not shown."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix


def plot_class_counts(table: pd.DataFrame) -> Figure:
    """Draw the number of images and of lesions of each class, on a log scale."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    order = table["dx"].value_counts().index
    counts = table["dx"].value_counts()
    lesions = table.groupby("dx")["group"].nunique()
    x = np.arange(len(order))
    for shift, values, name in ((-0.2, counts, "images"), (0.2, lesions, "lesions")):
        bars = axes.bar(x + shift, values[order], width=0.4, label=name)
        axes.bar_label(bars, fontsize=8)
    axes.set(yscale="log", ylabel="count (log scale)", xticks=x, xticklabels=order)
    axes.set_title("Images and lesions per class")
    axes.legend(frameon=False)
    sns.despine(figure)
    return figure


def plot_examples(pixels: np.ndarray, table: pd.DataFrame, columns: int = 5) -> Figure:
    """Draw the first images of each class, a row per class.

    Args:
        pixels: uint8 (N, height, width, 3) in the order of the table.
        table: a row per image, with the column `dx`.
        columns: images per class; fewer where a class has fewer.
    """
    classes = sorted(table["dx"].unique())
    height, width = pixels.shape[1:3]
    figure, axes = plt.subplots(
        len(classes),
        columns,
        figsize=(1.2 * columns, 1.25 * len(classes) * height / width),
        layout="constrained",
        squeeze=False,
    )
    for row, dx in zip(axes, classes, strict=True):
        positions = np.flatnonzero(table["dx"] == dx)[:columns]
        for axis, position in zip(row, positions, strict=False):
            axis.imshow(pixels[position])
        row[0].set_ylabel(dx, rotation=0, ha="right", va="center")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure


def plot_history(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Draw accuracy and loss of the training and validation parts over the epochs.

    Args:
        history: a row per epoch, as in history.csv.
        best_epoch: the epoch whose weights were kept, marked by a line.
    """
    figure, axs = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    lines = (
        (axs[0], "accuracy", "training accuracy", "C0-"),
        (axs[0], "val_accuracy", "validation accuracy", "C1-"),
        (axs[0], "val_balanced_accuracy", "validation balanced accuracy", "C1:"),
        (axs[1], "loss", "training loss", "C0-"),
        (axs[1], "val_loss", "validation loss", "C1-"),
    )
    for axis, column, label, style in lines:
        axis.plot(history.index, history[column], style, label=label)
    for axis, name in zip(axs, ("Accuracy", "Loss"), strict=True):
        axis.axvline(best_epoch, color="0.6", linestyle="--", linewidth=1, label="kept epoch")
        axis.set(title=name, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
    axs[0].set_ylim(0, 1)
    axs[1].set_ylim(bottom=0)
    sns.despine(figure)
    return figure


def plot_confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the confusion matrix: counts, and per cent of the row, by which it is coloured.

    Args:
        labels: int (N,), true classes.
        predicted: int (N,), answers.
        classes: K class codes.
    """
    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    images = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, images, out=np.zeros(counts.shape), where=images > 0)
    text = np.array(
        [f"{n}\n{p:.0f} %" if n else "0" for n, p in zip(counts.flat, share.flat, strict=True)]
    )
    figure, axes = plt.subplots(figsize=(7, 5.6), layout="constrained")
    sns.heatmap(
        share,
        annot=text.reshape(counts.shape),
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=100,
        xticklabels=classes,
        yticklabels=[f"{c} ({n})" for c, n in zip(classes, images[:, 0], strict=True)],
        cbar_kws={"label": "% of the true class"},
        annot_kws={"size": 8},
        ax=axes,
    )
    axes.set(xlabel="predicted class", ylabel="true class (images)")
    axes.tick_params(axis="y", rotation=0)
    return figure


def plot_batch(
    pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str], images: int = 12
) -> Figure:
    """Draw the first images of a batch with their classes.

    Args:
        pixels: uint8 (N, height, width, 3).
        labels: int (N,), indices into `classes`.
        classes: K class codes.
        images: how many to draw at most.
    """
    chosen = range(min(images, len(labels)))
    figure, axs = _make_grid(len(chosen), pixels.shape[1] / pixels.shape[2])
    for axes, i in zip(axs, chosen, strict=False):
        axes.imshow(pixels[i])
        axes.set_title(classes[labels[i]], fontsize=8)
    return figure


def plot_predictions(
    pixels: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    images: int = 18,
    seed: int = 0,
) -> Figure:
    """Draw images with true class, predicted class and its probability; errors in red.

    Args:
        pixels: uint8 (N, height, width, 3).
        labels: int (N,), true classes.
        probabilities: float (N, K).
        classes: K class codes.
        images: how many to draw; one of each class that occurs, the rest at random.
        seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    first = [order[labels[order] == k][0] for k in np.unique(labels)]
    chosen = np.concatenate([first, order[~np.isin(order, first)]])[:images]
    figure, axs = _make_grid(len(chosen), pixels.shape[1] / pixels.shape[2])
    for axes, i in zip(axs, chosen, strict=False):
        answer, surety = probabilities[i].argmax(), probabilities[i].max()
        axes.imshow(pixels[i])
        axes.set_title(
            f"true {classes[labels[i]]}\npredicted {classes[answer]} {surety:.2f}",
            fontsize=8,
            color="black" if answer == labels[i] else "firebrick",
        )
    return figure


def _make_grid(images: int, aspect: float, columns: int = 6) -> tuple[Figure, np.ndarray]:
    """Make bare axes for a number of images of height / width `aspect`."""
    rows = -(-images // columns)
    figure, axs = plt.subplots(
        rows,
        columns,
        figsize=(1.25 * columns, rows * (1.25 * aspect + 0.5)),
        layout="constrained",
        squeeze=False,
    )
    for axes in axs.flat:
        axes.axis("off")
    return figure, axs.ravel()
