"""Figures of heat maps and of their figures of merit; returned, not shown."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from helpers.evaluation.heatmaps import AREAS, CENTRE, INSCRIBED


def plot_panels(
    panels: Sequence[tuple[str, np.ndarray | None]], columns: int = 6, width: float = 10
) -> Figure:
    """Draw images with a title each, row by row.

    Args:
        panels: title and uint8 (height, width, 3) of any size; None leaves the place empty.
        columns: images per row.
        width: of the figure in inches.
    """
    rows = -(-len(panels) // columns)
    height = rows * (0.75 * width / columns + 0.4)
    figure, axs = plt.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False
    )
    for axes in axs.flat:
        axes.axis("off")
    for axes, (title, image) in zip(axs.flat, panels, strict=False):
        axes.set_title(title, fontsize=8)
        axes.imshow(np.full((3, 4, 3), 245, np.uint8) if image is None else image)
    return figure


def plot_areas(image: np.ndarray, heat: np.ndarray) -> Figure:
    """Draw the two ellipses that bound centre, surround and corners on an image and on its heat.

    Args:
        image: uint8 (height, width, 3).
        heat: uint8 (height, width, 3), the same image under its heat.
    """
    figure, axs = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    height, width = image.shape[:2]
    for axes, picture in zip(axs, (image, heat), strict=True):
        axes.imshow(picture)
        for half in (CENTRE, INSCRIBED):
            outline = Ellipse((width / 2, height / 2), 2 * half * width, 2 * half * height)
            outline.set(fill=False, edgecolor="white", linewidth=1.5)
            axes.add_patch(outline)
        axes.axis("off")
    return figure


def plot_shares(shares: pd.DataFrame, uniform: dict[str, float]) -> Figure:
    """Draw the heat's mean share of each area by true class, right and wrong answers apart.

    Args:
        shares: a row per image: dx, right (bool) and a column per area, 0 … 1 or nan.
        uniform: for each area the share of heat that is the same everywhere, a dashed line.
    """
    figure, axs = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    order = sorted(shares["dx"].unique())
    for axes, area in zip(axs, AREAS, strict=True):
        for right, shift, colour in ((True, -0.15, "C0"), (False, 0.15, "C3")):
            part = shares[shares["right"] == right].groupby("dx")[area]
            means, errors = (values.reindex(order) for values in (part.mean(), part.sem()))
            axes.errorbar(
                np.arange(len(order)) + shift,
                means,
                1.96 * errors,
                fmt="o",
                color=colour,
                markersize=4,
                label="right answers" if right else "wrong answers",
            )
        axes.axhline(uniform[area], color="0.4", linestyle="--", linewidth=1, label="uniform heat")
        axes.set(title=area, xticks=range(len(order)), xticklabels=order, ylim=(0, 1))
        axes.tick_params(axis="x", rotation=45)
    axs[0].set_ylabel("mean share of the heat")
    axs[-1].legend(frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def plot_cascade(correlations: pd.DataFrame) -> Figure:
    """Draw how maps change while layer after layer forgets what it learned.

    Args:
        correlations: a row per image, a column per number of layers that forgot; rank
            correlations with the map of the trained net, nan where a map is constant.
    """
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axes.fill_between(
        correlations.columns,
        correlations.quantile(0.25),
        correlations.quantile(0.75),
        color="C0",
        alpha=0.2,
        label="middle half of the images",
    )
    axes.plot(correlations.columns, correlations.mean(), "C0o-", label="mean")
    axes.axhline(0, color="0.4", linestyle="--", linewidth=1, label="unrelated maps")
    axes.set(
        xlabel="layers with weights that forgot, counted from the output",
        ylabel="rank correlation",
        xticks=correlations.columns,
        ylim=(-1, 1.05),
    )
    axes.legend(frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def plot_agreement(agreement: pd.DataFrame) -> Figure:
    """Draw the rank correlations of Grad-CAM and occlusion, a box per column.

    Args:
        agreement: a row per image; columns hold rank correlations, -1 … 1 or nan.
    """
    figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
    sns.boxplot(agreement, orient="h", width=0.5, color="C0", fill=False, ax=axes)
    sns.stripplot(agreement, orient="h", color="C0", alpha=0.5, size=3, ax=axes)
    axes.axvline(0, color="0.4", linestyle="--", linewidth=1)
    axes.set(xlabel="rank correlation of Grad-CAM and occlusion", xlim=(-1.05, 1.05))
    sns.despine(figure)
    return figure
