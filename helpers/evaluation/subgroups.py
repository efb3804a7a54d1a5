"""Scores by group of patients and of images: sex, age, site, source and type of diagnosis.

A run's predictions do not hold these columns: they are joined from the metadata of the run's data.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.reading import DatasetError, read_dataset
from helpers.data.sample import draw_sample
from helpers.evaluation.judgement import ask, estimate_shares, write_intervals, write_share
from helpers.runs.folder import Run

# Column of the metadata to what it is called in the tables.
ATTRIBUTES = {
    "sex": "sex",
    "age": "age",
    "localization": "site",
    "dataset": "source",
    "dx_type": "diagnosis by",
}
AGE_EDGES = (30, 45, 60, 75)  # years; a band begins at each
FEWEST_LESIONS = 20  # a figure that rests on fewer is too uncertain to be given
FIGURES = ("accuracy", "baseline", "sensitivity", "specificity")


def read_metadata_of_run(run: Run, part: str) -> pd.DataFrame:
    """Read what is known of the images of a part of a run, from the data that the run used.

    That is the folder DATA_DIR of the run's parameters, TEST_DIR for the part "official", taken
    from the working folder or else from the project's; without DATA_DIR the drawn sample.

    Returns:
        The table of `dataset.read_dataset`, a row per image of the part, in its order.

    Raises:
        DatasetError: the folder is missing or faulty, or its images or classes are not the run's.
    """
    name = "TEST_DIR" if part == "official" else "DATA_DIR"
    project = Path(__file__).parents[2]
    if folder := run.metrics["parameters"][name]:
        data_dir = Path(folder) if Path(folder).is_dir() else project / folder
    else:
        data_dir = draw_sample(project / "data/sample")
    table = read_dataset(data_dir).set_index("image_id", drop=False)
    wanted = run.predictions[run.predictions["split"] == part]
    table = table.reindex(wanted["image_id"])
    remedy = f"give the run's {name} again the data that it was trained with"
    problems = []
    if missing := int(table["dx"].isna().sum()):
        problems.append(f"{missing} of the {len(wanted)} {part} images are not in it; {remedy}")
    changed = int((table["dx"].to_numpy() != wanted["dx"].to_numpy()).sum()) - missing
    if changed:
        problems.append(f"{changed} {part} images have another dx than in the run; {remedy}")
    if problems:
        raise DatasetError(str(data_dir), problems)
    return table.reset_index(drop=True)


def group_images(table: pd.DataFrame) -> pd.DataFrame:
    """Say to which group of each attribute an image belongs.

    Args:
        table: a row per image, with those of the columns of `ATTRIBUTES` that are known.

    Returns:
        A row per image and a column per attribute that has more than one value. Ages become
        bands; an age of 0 counts as unknown, since it may stand for a missing one.
    """
    names = {column: name for column, name in ATTRIBUTES.items() if column in table}
    grouped = table[list(names)].rename(columns=names)
    if "age" in grouped:
        grouped["age"] = _band_ages(table["age"])
    return grouped.loc[:, grouped.nunique() > 1]


def score_subgroups(
    grouped: pd.DataFrame,
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    classes: list[str],
    threshold: float,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score each group of images, with 95 % intervals by bootstrap over lesions.

    Args:
        grouped: as from `group_images`, N rows.
        labels: int (N,), indices into `classes`.
        probabilities: float (N, K), calibrated.
        groups: (N,), the lesion group of each image.
        classes: K class codes.
        threshold: of the operating point for malignant-or-not, as from
            `judgement.choose_operating_points`.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        The index (attribute, value, figure), first ("all", "all", …), and the columns of
        `judgement.estimate_shares`: accuracy; baseline (the share of the commonest class of the
        group: what always answering it would score); sensitivity and specificity for
        malignant-or-not. Where fewer than FEWEST_LESIONS are counted, value, low and high are nan:
        images and lesions say how few there were.
    """
    positive, score = ask("malignant", labels, probabilities, classes)
    is_right = probabilities.argmax(axis=1) == labels
    members = {("all", "all"): np.ones(len(labels), dtype=bool)}
    for attribute in grouped:
        for value in _order_values(grouped[attribute]):
            members[attribute, value] = (grouped[attribute] == value).to_numpy()
    hits, counted = [], []
    for member in members.values():
        commonest = np.bincount(labels[member]).argmax()
        hits += [is_right, labels == commonest, score >= threshold, score < threshold]
        counted += [member, member, member & positive, member & ~positive]
    shares = estimate_shares(
        np.stack(hits, axis=1), np.stack(counted, axis=1), labels, groups, resamples, seed
    )
    shares.loc[shares["lesions"] < FEWEST_LESIONS, ["value", "low", "high"]] = np.nan
    shares.index = pd.MultiIndex.from_tuples(
        [(*names, figure) for names in members for figure in FIGURES],
        names=["attribute", "value", "figure"],
    )
    return shares


def find_departures(scores: pd.DataFrame, figure: str) -> pd.DataFrame:
    """List the groups whose interval does not hold the figure of all images.

    Args:
        scores: as from `score_subgroups`.
        figure: one of FIGURES.

    Returns:
        The rows of those groups, with the index (attribute, value).
    """
    table = scores.xs(figure, level="figure")
    whole = table.loc[("all", "all"), "value"]
    return table[(table["low"] > whole) | (table["high"] < whole)]


def write_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Write the scores of `score_subgroups` as text: a row per group, a column per figure."""
    text = write_intervals(scores)
    is_baseline = scores.index.get_level_values("figure") == "baseline"
    text[is_baseline] = scores["value"][is_baseline].map(write_share)
    text = text.mask(scores["value"].isna(), "too few").unstack("figure")
    counts = scores.xs("accuracy", level="figure")[["images", "lesions"]]
    return counts.join(text[list(FIGURES)])


def _band_ages(age: pd.Series) -> pd.Series:
    """Turn ages in years into bands such as `30 to 44`."""
    names = [f"{low} to {high - 1}" for low, high in pairwise(AGE_EDGES)]
    names = [f"under {AGE_EDGES[0]}", *names, f"{AGE_EDGES[-1]} and over"]
    band = np.array(names, dtype=object)[np.digitize(age, AGE_EDGES)]
    return pd.Series(band, index=age.index).where(age > 0, "unknown")


def _order_values(values: pd.Series) -> list[str]:
    """Order the values of an attribute: ages by age, others by count; unknown last."""
    if values.name == "age":
        order = sorted(values.unique(), key=lambda name: (not name.startswith("under"), name))
    else:
        order = list(values.value_counts().sort_index().sort_values(ascending=False).index)
    return [v for v in order if v != "unknown"] + [v for v in order if v == "unknown"]
