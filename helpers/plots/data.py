"""Figures of the data: classes, examples, patients, sites, sources, leaks and copies."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

DARK, MIDDLE = plt.colormaps["viridis"]([0.1, 0.6])  # told apart in grey, too
UNKNOWN = (0.8, 0.8, 0.8)


def plot_class_counts(table: pd.DataFrame) -> Figure:
    """Draw the number of images and of lesions of each class."""
    counts = table.groupby("dx").agg(images=("group", "size"), lesions=("group", "nunique"))
    counts = counts.loc[_order_classes(table)]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    counts.plot.bar(ax=axes, color=[DARK, MIDDLE], width=0.8, rot=0)
    for bars in axes.containers:
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axes.set(xlabel="", ylabel="count", title="Images and lesions of each class")
    axes.legend(frameon=False)
    sns.despine(figure)
    return figure


def plot_examples(pixels: np.ndarray, table: pd.DataFrame, columns: int = 5) -> Figure:
    """Draw the first images of each class, a row per class.

    Takes uint8 (N, height, width, 3) in the order of the table, whose column `dx` is used, and how
    many images per class; fewer where a class has fewer.
    """
    classes = sorted(table["dx"].unique())
    shape = len(classes), columns
    size = 1.2 * columns, 1.25 * len(classes) * pixels.shape[1] / pixels.shape[2] + 0.3
    figure, axs = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for row, dx in zip(axs, classes, strict=True):
        for axes, position in zip(row, np.flatnonzero(table["dx"] == dx), strict=False):
            axes.imshow(pixels[position])
        row[0].set_ylabel(dx, rotation=0, ha="right", va="center")
    for axes in axs.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.suptitle("Examples of each class")
    return figure


def plot_composition(table: pd.DataFrame, column: str, title: str) -> Figure:
    """Draw the shares of the values of a column in the images of each class, unknown in grey."""
    order = _order_classes(table)
    values = [value for value in table[column].value_counts().index if value != "unknown"]
    colours = [*sns.color_palette("viridis", len(values)), UNKNOWN]
    shares = 100 * pd.crosstab(table["dx"], table[column], normalize="index").loc[order[::-1]]
    shares = shares.reindex(columns=[*values, "unknown"]).dropna(axis=1)
    shares.index = _label_classes(table, shares.index)
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(order) + 1.6), layout="constrained")
    shares.plot.barh(stacked=True, ax=axes, color=colours, width=0.8)
    for bars, colour in zip(axes.containers, colours, strict=False):
        ink = "white" if np.dot(colour, (0.3, 0.6, 0.1)) < 0.55 else "black"
        text = [f"{share:.0f} %" if share >= 8 else "" for share in bars.datavalues]
        axes.bar_label(bars, text, label_type="center", fontsize=8, color=ink)
    axes.set(xlim=(0, 100), xlabel="% of the images of the class", ylabel="", title=title)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(figure, left=True)
    return figure


def plot_ages(table: pd.DataFrame) -> Figure:
    """Draw the ages of the patients by class, a patient counted once per lesion."""
    lesions = table[table["age"].notna()].drop_duplicates("group")
    order = _order_classes(table)
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    sns.boxplot(lesions, x="dx", y="age", order=order, color="0.8", fliersize=3, ax=axes)
    counts = lesions["dx"].value_counts().reindex(order, fill_value=0)
    axes.set_xticks(range(len(order)), [f"{dx}\n({count:,})" for dx, count in counts.items()])
    axes.set(xlabel="", ylabel="age in years", ylim=(-3, 92), title="Age by diagnosis (lesions)")
    sns.despine(figure)
    return figure


def plot_sites(table: pd.DataFrame) -> Figure:
    """Draw where on the body the lesions of each class are, as shares of the class."""
    lesions = table.drop_duplicates("group")
    order = _order_classes(table)
    sites = lesions["localization"].value_counts().index
    share = 100 * pd.crosstab(lesions["dx"], lesions["localization"], normalize="index")
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(order) + 2), layout="constrained")
    style = {"annot": True, "fmt": ".0f", "cmap": "Blues", "vmin": 0, "annot_kws": {"size": 8}}
    style["cbar_kws"] = {"label": "% of the lesions of the class"}
    labels = _label_classes(lesions, order, "lesions")
    sns.heatmap(share.loc[order, sites], yticklabels=labels, ax=axes, **style)
    axes.set(xlabel="", ylabel="", title="Site by diagnosis")
    axes.set_xticks(axes.get_xticks(), sites, rotation=40, ha="right", rotation_mode="anchor")
    return figure


def plot_leaks(random_leaks: pd.DataFrame, grouped_leaks: pd.DataFrame) -> Figure:
    """Draw the share of test images whose lesion was seen in training, by class and by split.

    Takes a row of `splits.measure_leak` per random split, and the same of splits by lesion.
    """
    names = (
        f"random split by image ({len(random_leaks)} splits)",
        f"split by lesion ({len(grouped_leaks)} folds)",
    )
    leaks = 100 * pd.concat([random_leaks, grouped_leaks], keys=names)
    by_split = leaks.rename(columns={"all": "all images"}).groupby(level=0, sort=False)
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    style = {"color": [MIDDLE, DARK], "ecolor": "0.3", "width": 0.8, "rot": 0}
    by_split.mean().T.plot.bar(ax=axes, yerr=by_split.std().to_numpy(), **style)
    for bars in axes.containers[1::2]:
        axes.bar_label(bars, fmt="{:.0f}", fontsize=8)
    axes.set(ylim=(0, 105), xlabel="", ylabel="% of the test images")
    axes.set_title("Test images whose lesion is also in training (mean, standard deviation)")
    axes.get_legend().remove()
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    sns.despine(figure)
    return figure


def _order_classes(table: pd.DataFrame) -> list[str]:
    """List the classes that occur, the one with the most images first."""
    return table["dx"].value_counts().index.tolist()


def _label_classes(table: pd.DataFrame, classes: Iterable[str], noun: str = "images") -> list[str]:
    counts = table["dx"].value_counts()
    return [f"{dx} ({counts[dx]:,} {noun})" for dx in classes]
