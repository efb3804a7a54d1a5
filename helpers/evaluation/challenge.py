"""The ISIC 2018 challenge, task 3: its scores and its submission file.

Works from labels, probabilities and image ids alone; TensorFlow is not needed. The definitions are
those of the official scorer, https://pypi.org/project/isic-challenge-scoring (5.8.0), which
tests/test_challenge.py compares with. It leaves the image ISIC_0035068 out (weight 0); so do we,
by not passing it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.reading import CLASSES
from helpers.evaluation.scores import draw_lesions
from helpers.runs.folder import replace_file

# The columns of a submission. Not the project's order: go by name (MEL is mel), never by position.
COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
FIGURES = (
    "accuracy",
    "sensitivity",
    "specificity",
    "dice",
    "ppv",
    "npv",
    "auc",
    "auc_sens_80",
    "ap",
)
THRESHOLD = 0.5  # a class is answered, for its own figures, where its probability is above

_INDEX = pd.MultiIndex.from_tuples(
    [("all", "balanced_accuracy")] + [(dx, name) for dx in (*CLASSES, "mean") for name in FIGURES],
    names=["dx", "figure"],
)


def score_challenge(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the figures of `compute_figures` with bootstrap intervals over lesions.

    The resamples are those of `scores.score_with_intervals`: whole lesion groups are drawn with
    replacement, and a draw that misses a class is made anew. The interval is the percentile
    interval (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    Args:
        labels: int (N,), indices into `CLASSES`.
        probabilities: float (N, 7), 0 … 1, columns in the order of `CLASSES`.
        groups: (N,), the lesion group of each image.
        resamples: number of bootstrap samples, at least 1.
        level: coverage wanted, 0 … 1.
        seed: of the resampling.

    Returns:
        The index of `compute_figures` and the columns value, low and high.

    Raises:
        ValueError: naming all problems of labels, probabilities and groups.
    """
    labels, probabilities = _check(labels, probabilities, groups)
    draws = [
        _score(labels, probabilities, weights)
        for weights in draw_lesions(labels, np.asarray(groups), resamples, seed)
    ]
    tail = (1 - level) / 2
    bounds = pd.DataFrame(np.concatenate(draws), columns=_INDEX).quantile([tail, 1 - tail])
    value = compute_figures(labels, probabilities)
    return pd.DataFrame({"value": value, "low": bounds.iloc[0], "high": bounds.iloc[1]})


def compute_figures(labels: np.ndarray, probabilities: np.ndarray) -> pd.Series:
    """Compute the figures that the challenge's scorer reports, by its definitions.

    ("all", "balanced_accuracy") ranks the challenge: the answer is the class of the highest
    probability, a tie for it is wrong whatever the classes; the mean recall over the classes that
    occur.

    The figures of one class take it against the six others, answered where its probability is
    above 0.5 (not: where it is the highest). accuracy, sensitivity, specificity, ppv, npv and
    dice (the F1 score) come from that 2x2 table; one that has nothing to divide by is 1, so the
    ppv of a class that was never answered is 1. From the probabilities: auc, the area under the
    ROC curve (trapezoids, equal scores are one point); auc_sens_80, the area below the part of
    that curve with sensitivity >= 0.8, which starts at an interpolated point (not rescaled: 1 is
    perfect, 0.18 is chance); ap, the average precision, the sum of precision times gain in
    recall, without interpolation.

    Args:
        labels: int (N,), indices into `CLASSES`.
        probabilities: float (N, 7), 0 … 1, columns in the order of `CLASSES`; the rows need not
            sum to 1.

    Returns:
        Values 0 … 1 with the index (dx, figure): ("all", "balanced_accuracy"), then each of
        FIGURES for each class, then for "mean", the unweighted mean over the classes. The last
        three of FIGURES are nan for a class that does not occur (auc also where only one occurs)
        and left out of the mean; the official scorer stops with an error there.

    Raises:
        ValueError: naming all problems of labels and probabilities.
    """
    labels, probabilities = _check(labels, probabilities, groups=labels)
    return pd.Series(_score(labels, probabilities, np.ones((1, len(labels))))[0], index=_INDEX)


def nest_figures(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Turn the table of `score_challenge` into dx → figure → value, low, high, for a JSON file."""
    return {
        dx: part.droplevel("dx").to_dict("index") for dx, part in table.groupby("dx", sort=False)
    }


def write_submission(
    path: str | os.PathLike, image_ids: Sequence[str], probabilities: np.ndarray
) -> None:
    """Write the CSV that the challenge takes: image,MEL,NV,BCC,AKIEC,BKL,DF,VASC.

    The official scorer wants the images of its truth file, all of them and no others: beside the
    truth of 1,512 images, a row for ISIC_0035068 too, any probabilities, since its weight is 0.

    Args:
        path: the file; replaced in one step, its folder is made if it is missing.
        image_ids: N ids without a file suffix.
        probabilities: float (N, 7), 0 … 1, columns in the order of `CLASSES`.

    Raises:
        ValueError: naming all problems of ids and probabilities; nothing is written.
    """
    image_ids, probabilities = np.asarray(image_ids, dtype=object), np.asarray(probabilities)
    problems = _find_shape_problems(probabilities, image_ids=image_ids)
    if not problems:
        problems = _find_id_problems(image_ids) + _find_range_problems(probabilities, image_ids)
    if problems:
        raise ValueError("\n".join([f"{path} not written:", *problems]))
    order = [CLASSES.index(name.lower()) for name in COLUMNS]
    # As floats: the scorer refuses a column of integers, as an 0/1 answer would give.
    table = pd.DataFrame(probabilities[:, order].astype(float), columns=list(COLUMNS))
    table.insert(0, "image", image_ids)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))


def _check(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities, groups = map(np.asarray, (labels, probabilities, groups))
    problems = _find_shape_problems(probabilities, labels=labels, groups=groups)
    if not problems:
        strange = ~np.isin(labels, range(len(CLASSES)))
        if strange.any():
            problems.append(
                f"labels are {_name_some(pd.unique(labels[strange]))}, wanted are 0 … 6, the "
                f"position in {', '.join(CLASSES)}"
            )
        if pd.isna(groups).any():
            problems.append(f"groups are missing in {pd.isna(groups).sum()} of {len(labels)} rows")
        problems += _find_range_problems(probabilities, np.arange(len(labels)))
    if problems:
        raise ValueError("\n".join(problems))
    return labels.astype(int), probabilities.astype(float)


def _find_shape_problems(probabilities: np.ndarray, **known: np.ndarray) -> list[str]:
    """List shapes that are not (N, 7) for the probabilities and (N,) for what is known of them."""
    rows, problems = len(probabilities) if probabilities.ndim else 0, []
    if not rows or probabilities.shape != (rows, len(CLASSES)):
        problems.append(
            f"probabilities have the shape {probabilities.shape}, wanted is (N, {len(CLASSES)}) "
            f"with N at least 1 and a column each for {', '.join(CLASSES)}"
        )
    elif not np.issubdtype(probabilities.dtype, np.number):
        problems.append(f"probabilities are {probabilities.dtype}, wanted are floats")
    for name, values in known.items():
        if np.shape(values) != (rows,):
            problems.append(
                f"{name} have the shape {np.shape(values)}, wanted is ({rows},): one for each row "
                "of the probabilities"
            )
    return problems


def _find_range_problems(probabilities: np.ndarray, rows: np.ndarray) -> list[str]:
    """List probabilities outside 0 … 1, nan among them, by the name of their row and class."""
    wrong = np.argwhere(~((probabilities >= 0) & (probabilities <= 1)))
    if not len(wrong):
        return []
    named = [f"{rows[i]} {CLASSES[k]} {probabilities[i, k]:g}" for i, k in wrong]
    return [
        f"{len(wrong)} probabilities are not within 0 … 1 (row, class, value): "
        f"{_name_some(named)}; pass softmax outputs, and where they are nan train again with a "
        "lower LEARNING_RATE"
    ]


def _find_id_problems(image_ids: np.ndarray) -> list[str]:
    problems = []
    nameless = [i for i, name in enumerate(image_ids) if not isinstance(name, str) or not name]
    if nameless:
        problems.append(f"image ids are no text in the rows {_name_some(nameless)}")
    ids = pd.Series(image_ids).drop(index=nameless)
    twice = ids[ids.duplicated()].unique()
    if len(twice):
        problems.append(f"image ids occur more than once: {_name_some(twice)}; keep one row each")
    return problems


def _name_some(values: Sequence, limit: int = 5) -> str:
    """Join the first values; say how many more there are."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + more


def _score(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute all figures under B sets of image weights (B, N); returns (B, len(_INDEX))."""
    truth = np.eye(len(CLASSES))[labels]
    figures = _score_answers(truth, probabilities > THRESHOLD, weights)
    curves = [_score_curve(truth[:, k] > 0, p, weights) for k, p in enumerate(probabilities.T)]
    figures = np.concatenate([figures, np.stack(curves, axis=1)], axis=2)
    balanced = _score_balanced(truth, probabilities, weights)
    mean = _mean_of_defined(figures)
    return np.concatenate([balanced[:, None], figures.reshape(len(weights), -1), mean], axis=1)


def _score_balanced(
    truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Compute the mean recall (B,), with a tie for the highest probability as no answer."""
    highest = probabilities == probabilities.max(axis=1, keepdims=True)
    answer = highest & (highest.sum(axis=1, keepdims=True) == 1)
    with np.errstate(invalid="ignore"):
        recall = (weights @ (truth * answer)) / (weights @ truth)  # nan: the class does not occur
    return _mean_of_defined(recall[:, :, None])[:, 0]


def _score_answers(truth: np.ndarray, answer: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the first six of FIGURES per class from yes/no answers (N, 7); returns (B, 7, 6)."""
    hits = weights @ (truth * answer)
    actual, answered = weights @ truth, weights @ answer
    total = weights.sum(axis=1, keepdims=True)
    misses, alarms = actual - hits, answered - hits
    passes = total - hits - misses - alarms
    return np.stack(
        [
            (hits + passes) / total,
            _divide_or_one(hits, actual),
            _divide_or_one(passes, passes + alarms),
            _divide_or_one(2 * hits, actual + answered),
            _divide_or_one(hits, answered),
            _divide_or_one(passes, passes + misses),
        ],
        axis=2,
    )


def _score_curve(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute auc, auc_sens_80 and ap of one class from the scores (N,); returns (B, 3)."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) < 0])
    weights, positive = weights[:, order], positive[order]
    gain = np.add.reduceat(weights * positive, starts, axis=1)
    hits, alarms = gain.cumsum(1), np.add.reduceat(weights * ~positive, starts, axis=1).cumsum(1)
    with np.errstate(invalid="ignore"):  # 0 / 0: the class, or every other one, does not occur
        sensitivity, false_alarm = hits / hits[:, -1:], alarms / alarms[:, -1:]
        ap = (gain * _divide_or_one(hits, hits + alarms)).sum(1) / hits[:, -1]
    sensitivity, false_alarm = (np.pad(x, ((0, 0), (1, 0))) for x in (sensitivity, false_alarm))
    areas = [_measure_area(false_alarm, sensitivity, floor) for floor in (0.0, 0.8)]
    return np.stack([*areas, ap], axis=1)


def _measure_area(x: np.ndarray, y: np.ndarray, floor: float) -> np.ndarray:
    """Compute the area (B,) below the part of rising polylines (B, T) where y >= floor."""
    x0, x1, y0, y1 = x[:, :-1], x[:, 1:], y[:, :-1], y[:, 1:]
    crosses = (y0 < floor) & (y1 >= floor)
    part = np.divide(y1 - floor, y1 - y0, out=(y1 >= floor).astype(float), where=crosses)
    area = part * (x1 - x0) * (np.maximum(y0, floor) + y1) / 2
    return area.sum(1)


def _divide_or_one(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Average (B, 7, F) over the classes whose value is not nan; nan where there are none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(1) / defined.sum(1)
