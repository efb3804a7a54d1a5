"""Predictions: one value that holds who was asked about, the truth and the probabilities."""

import os
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from helpers.data.metadata import is_missing

# What is kept of a row of the table, beside the probabilities; the last ones where they are known.
COLUMNS = ("image_id", "lesion_id", "group", "split", "dx")
PATIENT_COLUMNS = ("age", "sex", "localization", "dataset", "dx_type")
IDS = ("image_id", "lesion_id", "group")
WORDS = ("sex", "localization", "dataset", "dx_type")


@dataclass(frozen=True)
class Predictions:
    """What a model answered for N images, K classes.

    Attributes:
        table: a row per image: `COLUMNS`, those of `PATIENT_COLUMNS` that are known, and p_<class>
            (float64, 0 … 1) for each class.
        classes: class codes in the order of the model's outputs.
        resamples: bootstrap samples of the lesions behind each interval.
        seed: of the bootstrap.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    resamples: int = 1000
    seed: int = 0

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns of probabilities."""
        return [f"p_{dx}" for dx in self.classes]

    @cached_property
    def labels(self) -> np.ndarray:
        """True classes, int (N,), positions in `classes`; -1 for a class that is none of them."""
        return pd.Index(self.classes).get_indexer(self.table["dx"])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities, float64 (N, K)."""
        return self.table[self.columns].to_numpy(float)

    @cached_property
    def answers(self) -> np.ndarray:
        """The most probable classes, int (N,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def groups(self) -> np.ndarray:
        """The lesion group of each image, (N,): what the bootstrap draws."""
        return self.table["group"].to_numpy()

    def select(self, rows) -> "Predictions":
        """Return the rows of a boolean mask or of positions."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(self, table=self.table.iloc[rows].reset_index(drop=True))

    def part(self, split: str) -> "Predictions":
        """Return the images of a part: train, val or test."""
        return self.select((self.table["split"] == split).to_numpy())

    def with_probabilities(self, probabilities: np.ndarray) -> "Predictions":
        """Return the same rows with other probabilities (N, K), such as calibrated ones."""
        columns = dict(zip(self.columns, np.asarray(probabilities, float).T, strict=True))
        return replace(self, table=self.table.assign(**columns))


def make_predictions(
    table: pd.DataFrame, probabilities: np.ndarray, classes: tuple[str, ...]
) -> Predictions:
    """Join probabilities to the rows of the table that they are of.

    Args:
        table: N rows with `COLUMNS`: the table, once it is split.
        probabilities: float (N, K).
        classes: K class codes.
    """
    known = [*COLUMNS, *(name for name in PATIENT_COLUMNS if name in table)]
    found = pd.DataFrame(np.asarray(probabilities, float), columns=[f"p_{dx}" for dx in classes])
    return Predictions(table[known].reset_index(drop=True).join(found), tuple(classes))


def read_predictions(path: str | os.PathLike, classes: tuple[str, ...]) -> Predictions:
    """Read predictions.csv as `Predictions.table.to_csv(index=False)` writes it.

    Ids are text whatever they look like: a lesion called "NA" is a lesion.
    """
    texts = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=lambda name: name in IDS)
    table = pd.read_csv(path, dtype=dict.fromkeys(WORDS, str))
    words = table[[name for name in WORDS if name in table]].fillna("")
    words = words.apply(lambda column: column.mask(is_missing(column), "unknown"))
    return Predictions(table.assign(**texts, **words), tuple(classes))
