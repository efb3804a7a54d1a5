"""Splits into train, validation and test parts by lesion, and what a careless split gives away."""

import hashlib
import warnings

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from helpers.data.files import InputError, name_some, raise_problems
from helpers.data.metadata import CLASSES
from helpers.data.metadata import SPLITS as PARTS

VALIDATION_FOLDS = 5  # one in five of the images outside the test part
# What might tell the diagnosis without an image: how it was confirmed, the clinic, the patient.
CLUES = (("dx_type",), ("dataset",), ("age", "sex", "localization"))


def split_by_lesion(
    table: pd.DataFrame, fold: int = 0, folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Return a copy of the table with the column `split`: train, val and test.

    Test is one of `folds` stratified folds of whole lesion groups; validation is one in five
    of the rest, so the default gives 64 / 16 / 20 % of the images. A column `split` that came
    with the data is kept; where it has no val, validation is taken from its train part.

    Args:
        table: a row per image with the columns `dx` and `group`.
        fold: which fold is the test part, 0 … folds - 1; 0 if the data came with a split.
        folds: at least 2.
        seed: of the fold assignment: the same one for all runs that are to be compared.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise InputError("FOLD", [f"is {fold} of {folds}; it must be 0 … FOLDS - 1, FOLDS 2 …"])
    if "split" in table:
        problem = (
            f"is {fold}, but the data came with a split, which has one test part; set FOLD to 0, "
            "or take out the column split (or the folders train and test)"
        )
        raise_problems("FOLD", [problem] if fold else [])
        split = table["split"].to_numpy(object, copy=True)
    else:
        _check_lesions(table, folds)
        split = np.full(len(table), "train", object)
        split[_make_folds(table, folds, seed)[fold]] = "test"
    if "val" not in split:
        rest = np.flatnonzero(split == "train")
        split[rest[_choose_validation(table.iloc[rest], seed)]] = "val"
    counts = pd.crosstab(table["dx"], split).reindex(columns=PARTS, fill_value=0).stack()
    problems = [
        f"no image of {dx} is in {part}; choose another FOLD or fewer FOLDS, or correct the split "
        "that came with the data"
        for dx, part in counts.index[counts == 0]
    ]
    raise_problems("split", problems)
    return table.assign(split=split)


def find_leaks(table: pd.DataFrame, pixels: np.ndarray | None = None) -> list[str]:
    """Name the lesions (`group`) that lie in more than one part (`split`): none if it is honest.

    With pixels, uint8 (N, height, width, 3) in the order of the table, images with the same ones
    under other ids count as one lesion, named by its first group.
    """
    lesions = [table["group"]]
    if pixels is not None:
        lesions.append(table["group"].groupby(hash_pixels(pixels)).transform("first"))
    parts = pd.concat([table["split"].groupby(names).nunique() for names in lesions])
    return sorted(set(parts.index[parts > 1]))


def check_apart(
    table: pd.DataFrame,
    test: pd.DataFrame,
    pixels: np.ndarray | None = None,
    test_pixels: np.ndarray | None = None,
) -> None:
    """Raise an InputError if a separate test shares an `image_id` or `group` with the table.

    With the pixels of both, uint8 (N, height, width, 3), images are found under any id, too.
    """
    shared = {
        name: sorted(set(table[column]) & set(test[column]))
        for name, column in (("images", "image_id"), ("lesions", "group"))
    }
    if pixels is not None and test_pixels is not None:
        is_copy = np.isin(hash_pixels(test_pixels), hash_pixels(pixels))
        shared["images by their pixels"] = test["image_id"][is_copy].tolist()
    problems = [
        f"{len(ids)} {name} are in the training data, too ({name_some(ids)}): a test on them "
        "rewards memory; take another TEST_DIR, or leave them out of one of the two"
        for name, ids in shared.items()
        if ids
    ]
    raise_problems("TEST_DIR", problems)


def hash_pixels(pixels: np.ndarray) -> np.ndarray:
    """Hash each image's pixels: equal images and no others get the same str, (N,)."""
    return np.array([hashlib.md5(image.tobytes()).hexdigest() for image in pixels], dtype="U32")


def measure_leak(table: pd.DataFrame, is_test: np.ndarray) -> pd.Series:
    """Measure the share of the test images whose lesion is also outside the test part, 0 … 1.

    For "all" images and each class, the commonest first; nan for one without test images. With a
    column `pixels`, as of `hash_pixels`, copies under another lesion count too.
    """
    test, others = table[np.asarray(is_test)], table[~np.asarray(is_test)]
    is_known = test["group"].isin(others["group"])
    if "pixels" in table:
        is_known |= test["pixels"].isin(others["pixels"])
    by_class = is_known.groupby(test["dx"]).mean().reindex(table["dx"].value_counts().index)
    return pd.concat([pd.Series({"all": is_known.mean()}), by_class])


def measure_random_leaks(table: pd.DataFrame, splits: int = 20) -> pd.DataFrame:
    """Draw a fifth of the images as a test, a row of `measure_leak` each time."""
    ranks = [np.random.default_rng(seed).permutation(len(table)) for seed in range(splits)]
    return pd.DataFrame([measure_leak(table, rank < round(0.2 * len(table))) for rank in ranks])


def list_clues(table: pd.DataFrame) -> dict[str, list[str]]:
    """List the `CLUES` without the columns that the table lacks or that have one value only."""
    varying = {column for column in table if table[column].nunique(dropna=False) > 1}
    if table["dx"].nunique() < 2:  # there is nothing to tell
        return {}
    clues = [[column for column in clue if column in varying] for clue in CLUES]
    return {", ".join(columns): columns for columns in clues if columns}


def predict_from_columns(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Predict each image's class from columns of the table, without looking at the image.

    Logistic regression of the categories (ages in steps of ten years, missing values a category of
    their own), classes weighted evenly, fitted to the other folds of whole lesions.

    Gives float (N, 7), probabilities in the order of `CLASSES`; 0 for those that do not occur.
    """
    values = table[columns].copy()
    if "age" in values:
        values["age"] //= 10
    model = make_pipeline(
        OneHotEncoder(handle_unknown="ignore"),
        LogisticRegression(max_iter=1000, class_weight="balanced"),
    )
    folds = int(np.clip(table["dx"].value_counts().max(), 2, 5))  # fewer for a handful of images
    probabilities = np.zeros((len(table), len(CLASSES)))
    probabilities[:, np.unique(table["label"])] = cross_val_predict(
        model,
        values.astype(str),
        table["label"],
        groups=table["group"],
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=0),
        method="predict_proba",
    )
    return probabilities


def _check_lesions(table: pd.DataFrame, folds: int) -> None:
    """Raise an InputError if a class has fewer lesion groups than `folds` test parts need."""
    needed = max(folds, len(PARTS))
    lesions = table.groupby("dx")["group"].nunique()
    problems = [
        f"{dx} has {count} lesions; {needed} are needed with FOLDS = {folds}, so that every part "
        "holds every class; lower FOLDS (at least 2) or add images"
        for dx, count in lesions[lesions < needed].items()
    ]
    raise_problems("split", problems)


def _make_folds(table: pd.DataFrame, folds: int, seed: int) -> list[np.ndarray]:
    """Share out the rows, by position; whole lesions, classes evenly."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class with few lesions is checked for in the end
        warnings.filterwarnings("ignore", message="The least populated class")
        return [rows for _, rows in splitter.split(table, table["dx"], table["group"])]


def _choose_validation(table: pd.DataFrame, seed: int) -> np.ndarray:
    """Return the rows of the first fold that leaves no class out, on either side."""
    folds = min(VALIDATION_FOLDS, table.groupby("dx")["group"].nunique().max())
    if not folds >= 2:
        return np.arange(0)  # split_by_lesion then names what lacks
    candidates = _make_folds(table, folds, seed)
    for rows in candidates:
        if set(table["dx"].iloc[rows]) == set(table["dx"].drop(table.index[rows])):
            return rows
    return candidates[0]
