"""Splits of the table into train, validation and test parts, by lesion."""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from helpers.data.metadata import SPLITS

PARTS = SPLITS
VALIDATION_FOLDS = 5  # one in five of the images outside the test part


class SplitError(ValueError):
    """The table cannot be split as asked; the message says why and what to change."""


def split_by_lesion(
    table: pd.DataFrame, fold: int = 0, folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Add a column `split` with the values train, val and test.

    Test is one of `folds` stratified folds of whole lesion groups; validation is one in five
    of the rest, so the default gives 64 / 16 / 20 % of the images. A column `split` that came
    with the data is honoured; where it has no val, validation is taken from its train part.

    Args:
        table: a row per image with the columns `dx` and `group`.
        fold: which fold is the test part, 0 … folds - 1.
        folds: number of folds, at least 2.
        seed: of the fold assignment. Leave it alone when runs are to be compared: the same
            seed and fold always give the same test images.

    Returns:
        A copy of the table with the column `split`.

    Raises:
        SplitError: no such fold, or a class with too few lesions to stand in every part.

    Source: sklearn.model_selection.StratifiedGroupKFold.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise SplitError(f"FOLD is {fold}, FOLDS is {folds}: FOLD must be 0 … FOLDS - 1, FOLDS 2 …")
    table = table.copy()
    if "split" not in table:
        check_lesions_per_class(table, folds)
        _, test = list(_iterate_folds(table, folds, seed))[fold]
        table["split"] = "train"
        table.iloc[test, table.columns.get_loc("split")] = "test"
    if not (table["split"] == "val").any():
        rest = np.flatnonzero(table["split"] == "train")
        table.iloc[_choose_validation(table, rest, seed), table.columns.get_loc("split")] = "val"
    check_split(table)
    return table


def check_lesions_per_class(table: pd.DataFrame, folds: int) -> None:
    """Raise a SplitError if a class has fewer lesion groups than `folds` test parts need."""
    needed = max(folds, len(PARTS))
    lesions = table.groupby("dx")["group"].nunique()
    if (scarce := lesions[lesions < needed]).any():
        raise SplitError(
            "too few lesions for a split in which every class is in every part: "
            + ", ".join(f"{dx} has {count}" for dx, count in scarce.items())
            + f"; {needed} are needed with FOLDS = {folds}. Lower FOLDS (at least 2) or add images."
        )


def check_split(table: pd.DataFrame) -> None:
    """Raise a SplitError if a class is missing from a part of the column `split`."""
    counts = pd.crosstab(table["dx"], table["split"]).reindex(columns=PARTS, fill_value=0)
    missing = [f"{dx} in {part}" for dx in counts.index for part in PARTS if not counts[part][dx]]
    if missing:
        raise SplitError(
            f"no image of {', '.join(missing)}: every class must be in train, val and test. "
            "Choose another FOLD or fewer FOLDS, or correct the split column of the metadata."
        )


def find_leaks(table: pd.DataFrame) -> list[str]:
    """Name the lesion groups that lie in more than one part; empty for an honest split."""
    parts = table.groupby("group")["split"].nunique()
    return parts.index[parts > 1].tolist()


def check_apart(table: pd.DataFrame, test: pd.DataFrame) -> None:
    """Raise a SplitError if a separate test table shares images or lesion groups with the table."""
    shared = {
        name: sorted(set(table[column]) & set(test[column]))
        for name, column in (("images", "image_id"), ("lesions", "group"))
    }
    problems = [
        f"{len(ids)} {name} ({', '.join(ids[:5])}{' …' if len(ids) > 5 else ''})"
        for name, ids in shared.items()
        if ids
    ]
    if problems:
        raise SplitError(
            f"the training data and the test hold the same {' and '.join(problems)}: a test on "
            "them rewards memory. Give another TEST_DIR, or leave them out of one of the two."
        )


def _iterate_folds(
    table: pd.DataFrame, folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class with few lesions is checked for by check_split
        warnings.filterwarnings("ignore", message="The least populated class")
        yield from splitter.split(table, table["dx"], table["group"])


def _choose_validation(table: pd.DataFrame, rest: np.ndarray, seed: int) -> np.ndarray:
    """Return the row positions of the first validation fold that leaves no class out."""
    part = table.iloc[rest]
    classes = part["dx"].nunique()
    folds = min(VALIDATION_FOLDS, part.groupby("dx")["group"].nunique().max())
    if folds < 2:
        raise SplitError("a single lesion per class cannot be divided into train and val")
    candidates = list(_iterate_folds(part, folds, seed))
    for train, validation in candidates:
        if part["dx"].iloc[train].nunique() == part["dx"].iloc[validation].nunique() == classes:
            return rest[validation]
    return rest[candidates[0][1]]
