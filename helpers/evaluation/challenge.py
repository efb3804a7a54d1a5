"""The ISIC 2018 challenge, task 3: its scores and its submission file.

The definitions are those of the official scorer, https://pypi.org/project/isic-challenge-scoring
(5.8.0), which tests/units/test_challenge.py compares with. It leaves the image ISIC_0035068 out
(weight 0); so do we, by not passing it.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.files import name_some, raise_problems, replace_file
from helpers.data.reading import CLASSES
from helpers.evaluation.predictions import Predictions
from helpers.evaluation.scores import estimate_scores, score_ranking, trace_ranking

# The columns of a submission. Not the project's order: go by name (MEL is mel), never by position.
COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
FIRST_ID, LAST_ID = "ISIC_0034524", "ISIC_0036064"  # of the official test
ANSWERS = ("accuracy", "sensitivity", "specificity", "dice", "ppv", "npv")
FIGURES = (*ANSWERS, "auc", "auc_sens_80", "ap")
THRESHOLD = 0.5  # a class is answered, for its own figures, where its probability is above


def is_official(table: pd.DataFrame) -> bool:
    """Tell whether the images of a table are those of the official test."""
    return bool(table["image_id"].between(FIRST_ID, LAST_ID).all())


def score_challenge(p: Predictions) -> pd.DataFrame:
    """Compute the figures that the challenge's scorer reports, with intervals.

    ("all", "balanced_accuracy") ranks the challenge: the mean recall over the classes that occur; a
    tie for the highest probability is wrong.

    ANSWERS take a class against the six others, answered where its probability is above 0.5 (not:
    where it is the highest); what has nothing to divide by is 1. auc_sens_80 is the area below the
    part of the ROC curve with sensitivity >= 0.8, from an interpolated point on (not rescaled: 1 is
    perfect, 0.18 is chance); ap is the average precision.

    Args:
        p: of the seven classes, in any order, 0 … 1; else an InputError says what is wrong.

    Returns:
        value, low and high (`scores.estimate_scores`) with the index (dx, figure): ("all",
        "balanced_accuracy"), each of FIGURES for each class, then their "mean". The last three are
        nan for a class that does not occur; the official scorer stops with an error there.
    """
    raise_problems("the challenge's scores", _find_problems(p))
    index = [(dx, name) for dx in (*p.classes, "mean") for name in FIGURES]
    index = pd.MultiIndex.from_tuples([("all", "balanced_accuracy"), *index])
    table = estimate_scores(lambda weights: _score(p, weights), p)
    return table.set_axis(index.rename(["dx", "figure"]))


def write_submission(path: str | os.PathLike, p: Predictions) -> None:
    """Write the CSV that the challenge takes: image,MEL,NV,BCC,AKIEC,BKL,DF,VASC.

    The official scorer wants the images of its truth file, all of them and no others: beside the
    truth of 1,512 images, a row for ISIC_0035068 too, any probabilities, since its weight is 0.

    Raises:
        InputError: what is wrong with ids and probabilities; nothing is written.
    """
    path, ids = Path(path), p.table["image_id"]
    problems = _find_problems(p)
    if nameless := int((ids.isna() | (ids == "")).sum()):
        problems.append(f"{nameless} image ids are missing")
    if twice := list(ids[ids.duplicated()].dropna().unique()):
        problems.append(f"image ids occur more than once: {name_some(twice)}; keep one row each")
    raise_problems(path, problems)
    table = pd.DataFrame({"image": ids})
    for name in COLUMNS:  # as floats: the scorer refuses a column of integers
        table[name] = p.table[f"p_{name.lower()}"].astype(float)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))


def _find_problems(p: Predictions) -> list[str]:
    """List what the challenge does not take."""
    problems = []
    if set(p.classes) != set(CLASSES):
        problems.append(f"the classes are {', '.join(p.classes)}, wanted are {', '.join(CLASSES)}")
    wrong = np.argwhere(~((p.probabilities >= 0) & (p.probabilities <= 1)))
    if len(wrong):
        ids = p.table["image_id"]
        named = [f"{ids[i]} {p.classes[k]} {p.probabilities[i, k]:g}" for i, k in wrong]
        problems.append(
            f"{len(wrong)} probabilities are not within 0 … 1: {name_some(named)}; where they are "
            "nan train again with a lower LEARNING_RATE"
        )
    return problems


def _score(p: Predictions, weights: np.ndarray) -> np.ndarray:
    """Compute all figures under B sets of image weights (B, N); a column per row of the table."""
    truth = np.eye(len(p.classes))[p.labels]
    figures = _score_answers(truth, p.probabilities > THRESHOLD, weights)
    curves = []
    for k, score in enumerate(p.probabilities.T):
        traced = trace_ranking(p.labels == k, score, weights)
        auc, ap = score_ranking(*traced).T
        curves.append(np.stack([auc, _measure_area_above(*traced, 0.8), ap], axis=1))
    figures = np.concatenate([figures, np.stack(curves, axis=1)], axis=2)
    highest = p.probabilities == p.probabilities.max(axis=1, keepdims=True)
    answer = highest & (highest.sum(axis=1, keepdims=True) == 1)
    with np.errstate(invalid="ignore"):
        recall = (weights @ (truth * answer)) / (weights @ truth)  # nan: the class does not occur
    means = [pd.DataFrame(figures[:, :, k]).mean(axis=1) for k in range(len(FIGURES))]
    balanced = pd.DataFrame(recall).mean(axis=1)  # leaves nan out
    return np.c_[balanced, figures.reshape(len(weights), -1), np.stack(means, axis=1)]


def _score_answers(truth: np.ndarray, answer: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute ANSWERS per class from yes/no answers (N, 7); returns (B, 7, 6)."""
    hits, actual, answered = weights @ (truth * answer), weights @ truth, weights @ answer
    total = weights.sum(axis=1, keepdims=True)
    misses, alarms = actual - hits, answered - hits
    passes = total - hits - misses - alarms

    def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)

    return np.stack(
        [
            (hits + passes) / total,
            divide(hits, actual),
            divide(passes, passes + alarms),
            divide(2 * hits, actual + answered),
            divide(hits, answered),
            divide(passes, passes + misses),
        ],
        axis=2,
    )


def _measure_area_above(hits: np.ndarray, alarms: np.ndarray, floor: float) -> np.ndarray:
    """Compute the area (B,) below the part of a ROC curve where sensitivity >= floor."""
    with np.errstate(invalid="ignore"):  # the class, or every other one, does not occur
        y, x = hits / hits[:, -1:], alarms / alarms[:, -1:]
    y0, y1 = y[:, :-1], y[:, 1:]
    crosses = (y0 < floor) & (y1 >= floor)
    part = np.divide(y1 - floor, y1 - y0, out=(y1 >= floor).astype(float), where=crosses)
    return (part * np.diff(x) * (np.maximum(y0, floor) + y1) / 2).sum(1)
