"""Who is in the data: what is missing, what a split leaks and what gives the diagnosis away."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from helpers.data.reading import CLASSES
from helpers.evaluation.scores import score_with_intervals

# What might tell the diagnosis without an image. The first two describe how the dataset was made,
# the last one the patient.
CLUES = (("dx_type",), ("dataset",), ("age", "sex", "localization"))
AGE_STEP = 10  # years


def count_missing(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images whose age, sex, site, confirmation or source is not known.

    Args:
        table: as from `dataset.read_dataset`; `dataset` may be absent.

    Returns:
        A row per column: images (int) and share (0 … 1) without a value; all of them where the
        table has no such column. An age of 0 is counted apart: it may be a stand-in.
    """
    missing = {"age": table["age"].isna(), "age is 0": table["age"] == 0}
    for column in ("sex", "localization", "dx_type", "dataset"):
        values = table.get(column, pd.Series("unknown", table.index))
        missing[column] = values == "unknown"
    rows = {
        name: (int(is_missing.sum()), is_missing.mean()) for name, is_missing in missing.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["images", "share"])


def measure_leak(table: pd.DataFrame, is_test: np.ndarray) -> pd.Series:
    """Measure the share of the test images whose lesion is also outside the test part.

    Args:
        table: a row per image, with the columns `dx` and `group`.
        is_test: bool (N,).

    Returns:
        Shares, 0 … 1, for "all" images and for each class, the commonest first; nan for a class
        without test images.
    """
    test = table[is_test]
    is_known = test["group"].isin(table["group"][~np.asarray(is_test)])
    by_class = is_known.groupby(test["dx"]).mean().reindex(_order_classes(table))
    return pd.concat([pd.Series({"all": is_known.mean()}), by_class])


def measure_random_leaks(
    table: pd.DataFrame, seeds: Iterable[int] = range(20), test_share: float = 0.2
) -> pd.DataFrame:
    """Split the images at random, as if they were independent, and measure what leaks.

    Args:
        table: a row per image, with the columns `dx` and `group`.
        seeds: one split each.
        test_share: of the images, 0 … 1.

    Returns:
        A row per seed, with the columns of `measure_leak`.
    """
    rows = {}
    for seed in seeds:
        rank = np.random.default_rng(seed).permutation(len(table))
        rows[seed] = measure_leak(table, rank < round(test_share * len(table)))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("seed")


def list_clues(table: pd.DataFrame) -> dict[str, list[str]]:
    """List the `CLUES` without the columns that the table lacks or that have one value only."""
    varying = {column for column in table if table[column].nunique(dropna=False) > 1}
    clues = [[column for column in clue if column in varying] for clue in CLUES]
    return {", ".join(columns): columns for columns in clues if columns}


def predict_diagnosis(
    table: pd.DataFrame, columns: Iterable[str], folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Predict each image's class from columns of the table, without looking at the image.

    Logistic regression of the categories (ages in steps of ten years, missing values a category of
    their own), fitted to the other folds of whole lesions: no image is predicted from its own.

    Args:
        table: a row per image, with the columns `label` and `group`.
        columns: those to predict from.
        folds: at least 2; a class should have more lesions than that.
        seed: of the folds.

    Returns:
        float (N, 7), probabilities in the order of `CLASSES`; 0 for classes that do not occur.

    Source: sklearn.linear_model.LogisticRegression, StratifiedGroupKFold.
    """
    values = pd.DataFrame(index=table.index)
    for column in columns:
        ages = column == "age"
        values[column] = (table[column] // AGE_STEP if ages else table[column]).astype(str)
    present, labels = np.unique(table["label"], return_inverse=True)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=1000))
    probabilities = np.zeros((len(table), len(CLASSES)))
    probabilities[:, present] = cross_val_predict(
        model, values, labels, groups=table["group"], cv=splitter, method="predict_proba"
    )
    return probabilities


def measure_label_leaks(table: pd.DataFrame, resamples: int = 200) -> pd.DataFrame:
    """Measure how well the diagnosis can be told from each of the `CLUES`, without the image.

    Args:
        table: a row per image; columns that are absent or constant are left out.
        resamples: bootstrap samples of the lesions, for the intervals of 95 %.

    Returns:
        A row per clue, none if there is no clue: balanced_accuracy and auc (one-vs-rest, mean over
        the classes), each with _low and _high, and information: the share of the entropy of the
        diagnosis that the clue removes, 0 … 1. It is found on lesions held out, so that a useless
        clue may get less than 0.
        For the balanced accuracy the commonest classes are not favoured: chance is 1 / classes.
    """
    labels = table["label"].to_numpy()
    share = np.bincount(labels, minlength=len(CLASSES)) / len(labels)
    present = np.flatnonzero(share)
    entropy = -(share[present] * np.log(share[present])).sum()
    rows = {}
    for name, columns in list_clues(table).items():
        probabilities = predict_diagnosis(table, columns)
        loss = log_loss(labels, probabilities[:, present], labels=present)
        # Divided by how common the classes are, the likeliest one no longer is the commonest one.
        evened = probabilities / np.maximum(share, 1e-12)
        evened /= evened.sum(axis=1, keepdims=True)
        scores = score_with_intervals(labels, evened, table["group"], resamples)
        rows[name] = {
            f"{score}{end}": scores.loc[score, column]
            for score in ("balanced_accuracy", "auc")
            for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))
        } | {"information": 1 - loss / entropy}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("clue")


def plot_composition(table: pd.DataFrame, column: str, title: str) -> Figure:
    """Draw what each class is made of: shares of its images, a bar per class.

    Args:
        table: a row per image, with the column `dx`.
        column: the one whose values are the parts; "unknown" is drawn grey.
        title: of the figure.
    """
    order = _order_classes(table)
    values = [value for value in table[column].value_counts().index if value != "unknown"]
    colours = sns.color_palette("tab10", len(values))
    if "unknown" in set(table[column]):
        values, colours = [*values, "unknown"], [*colours, (0.8, 0.8, 0.8)]
    shares = pd.crosstab(table["dx"], table[column], normalize="index").loc[order[::-1], values]
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(order) + 1.6), layout="constrained")
    left = np.zeros(len(order))
    for value, colour in zip(values, colours, strict=True):
        share = 100 * shares[value].to_numpy()
        bars = axes.barh(_label_classes(table, shares.index), share, left=left, color=colour)
        text = [f"{part:.0f} %" if part >= 8 else "" for part in share]
        axes.bar_label(bars, text, label_type="center", fontsize=8, color="white")
        bars.set_label(value)
        left += share
    axes.set(xlim=(0, 100), xlabel="% of the images of the class")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(title)
    sns.despine(figure, left=True)
    return figure


def plot_ages(table: pd.DataFrame) -> Figure:
    """Draw the ages of the patients by class, a patient counted once per lesion."""
    lesions = table[table["age"].notna()].drop_duplicates("group")
    order = _order_classes(table)
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axes.boxplot(
        [lesions["age"][lesions["dx"] == dx] for dx in order],
        widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": "C0", "edgecolor": "0.3"},
        medianprops={"color": "white", "linewidth": 2},
        flierprops={"markersize": 3, "markeredgecolor": "0.5"},
    )
    names = [f"{dx}\n({(lesions['dx'] == dx).sum():,})" for dx in order]
    axes.set_xticks(range(1, len(order) + 1), names)
    axes.set(ylabel="age in years", ylim=(-3, 92), title="Age by diagnosis (lesions)")
    if lesions.empty:
        axes.set_title("This table holds no ages")
    sns.despine(figure)
    return figure


def plot_sites(table: pd.DataFrame) -> Figure:
    """Draw where on the body the lesions of each class are, as shares of the class."""
    lesions = table.drop_duplicates("group")
    order = _order_classes(table)
    sites = lesions["localization"].value_counts().index
    share = 100 * pd.crosstab(lesions["dx"], lesions["localization"], normalize="index")
    share = share.reindex(index=order, columns=sites, fill_value=0)
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(order) + 2), layout="constrained")
    sns.heatmap(
        share,
        annot=share.map(lambda part: f"{part:.0f}" if part >= 0.5 else ""),
        fmt="",
        cmap="Blues",
        vmin=0,
        annot_kws={"size": 8},
        cbar_kws={"label": "% of the lesions of the class"},
        yticklabels=_label_classes(lesions, order, "lesions"),
        ax=axes,
    )
    axes.set(xlabel="", ylabel="", title="Site by diagnosis")
    axes.set_xticks(axes.get_xticks(), sites, rotation=40, ha="right", rotation_mode="anchor")
    return figure


def plot_leaks(random_leaks: pd.DataFrame, grouped_leaks: pd.DataFrame) -> Figure:
    """Draw the share of test images whose lesion was seen in training, by class and by split.

    Args:
        random_leaks: a row per random split, with the columns of `measure_leak`.
        grouped_leaks: the same of splits by lesion.
    """
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    x = np.arange(random_leaks.shape[1])
    splits = (
        (-0.2, random_leaks, f"random split by image ({len(random_leaks)} splits)", "firebrick"),
        (0.2, grouped_leaks, f"split by lesion ({len(grouped_leaks)} folds)", "C0"),
    )
    for shift, leaks, name, colour in splits:
        share, spread = 100 * leaks.mean(), 100 * leaks.std()
        bars = axes.bar(x + shift, share, 0.4, yerr=spread, color=colour, ecolor="0.3", label=name)
        # At the foot, where the whiskers do not reach; above it where there is no bar.
        for bar, value in zip(bars, share.fillna(0), strict=True):
            look = {"color": "white" if value >= 8 else "black", "ha": "center", "fontsize": 8}
            axes.text(bar.get_x() + 0.2, 1.5 if value >= 8 else value + 1.5, f"{value:.0f}", **look)
    axes.set(ylim=(0, 105), ylabel="% of the test images")
    axes.set_xticks(x, ["all images", *random_leaks.columns[1:]])
    axes.set_title("Test images whose lesion is also in training (mean, standard deviation)")
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    sns.despine(figure)
    return figure


def plot_label_leaks(label_leaks: pd.DataFrame, classes: int) -> Figure:
    """Draw balanced accuracy and AUC of each clue with intervals, beside chance.

    Args:
        label_leaks: the table of `measure_label_leaks`.
        classes: how many occur.
    """
    figure, axs = plt.subplots(
        1, 2, figsize=(9, 0.5 * len(label_leaks) + 1.5), layout="constrained", sharey=True
    )
    panels = (("balanced_accuracy", "balanced accuracy", 1 / classes), ("auc", "AUC", 0.5))
    for axes, (score, name, chance) in zip(axs, panels, strict=True):
        value = label_leaks[score]
        ends = [value - label_leaks[f"{score}_low"], label_leaks[f"{score}_high"] - value]
        bars = axes.barh(
            value.index, value, xerr=np.clip(ends, 0, None), color="C0", ecolor="0.3", height=0.6
        )
        for bar in bars:
            middle = bar.get_y() + bar.get_height() / 2
            axes.text(0.015, middle, f"{bar.get_width():.2f}", va="center", color="white")
        axes.axvline(
            chance,
            color="firebrick",
            linestyle="--",
        )
        axes.set(xlim=(0, 1), xlabel=f"{name} (dashed: chance, {chance:.2f})")
    axs[0].invert_yaxis()
    figure.suptitle("Diagnosis told without the image")
    sns.despine(figure)
    return figure


def _order_classes(table: pd.DataFrame) -> list[str]:
    """List the classes that occur, the one with the most images first."""
    return table["dx"].value_counts().index.tolist()


def _label_classes(table: pd.DataFrame, classes: Iterable[str], noun: str = "images") -> list[str]:
    counts = table["dx"].value_counts()
    return [f"{dx} ({counts[dx]:,} {noun})" for dx in classes]
