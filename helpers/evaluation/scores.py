"""Figures of merit of predicted probabilities, with intervals by bootstrap over lesions.

Works from labels and probabilities alone: a predictions.csv is enough, TensorFlow is not needed.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
PRIOR_ADJUSTED = "prior_adjusted_balanced_accuracy"


def score_predictions(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute accuracy, balanced accuracy, macro F1 and one-vs-rest AUC.

    Balanced accuracy is the mean recall, macro F1 the mean F1 and AUC the unweighted mean of
    the one-vs-rest areas, each over the classes that occur in `labels`; equal to scikit-learn's.

    Args:
        labels: int (N,), class indices 0 … K - 1.
        probabilities: float (N, K).

    Returns:
        A dict with the keys of SCORES, each 0 … 1; AUC is nan where only one class occurs.
    """
    labels, probabilities = _check(labels, probabilities)
    weights = np.ones((1, len(labels)))
    return {name: float(v[0]) for name, v in _score(labels, probabilities, weights).items()}


def score_with_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    adjusted: np.ndarray | None = None,
) -> pd.DataFrame:
    """Compute the scores of `score_predictions` with bootstrap intervals over lesions.

    Whole lesion groups are drawn with replacement, since the images of a lesion are not
    independent; the interval is the percentile interval (Efron & Tibshirani, An Introduction
    to the Bootstrap, 1993, ch. 13). A draw that misses a class altogether is made anew: its mean
    over the classes would be one over fewer classes.

    Args:
        labels: int (N,), class indices.
        probabilities: float (N, K).
        groups: (N,), the lesion group of each image.
        resamples: number of bootstrap samples.
        level: coverage wanted, 0 … 1.
        seed: of the resampling.
        adjusted: float (N, K), the probabilities adjusted to equally frequent classes
            (`calibration.adjust_prior`); adds their balanced accuracy as PRIOR_ADJUSTED.

    Returns:
        A table with the index SCORES (and PRIOR_ADJUSTED) and the columns value, low and high.
    """
    labels, probabilities = _check(labels, probabilities)
    values = score_predictions(labels, probabilities)
    if adjusted is not None:
        values[PRIOR_ADJUSTED] = score_predictions(labels, adjusted)["balanced_accuracy"]
    draws = {name: [] for name in values}
    for weights in draw_lesions(labels, np.asarray(groups), resamples, seed):
        for name, drawn in _score(labels, probabilities, weights).items():
            draws[name].append(drawn)
        if adjusted is not None:
            draws[PRIOR_ADJUSTED].append(_score_recall(labels, adjusted, weights))
    tail = (1 - level) / 2
    rows = {}
    for name, value in values.items():
        low, high = np.nanquantile(np.concatenate(draws[name]), [tail, 1 - tail])
        rows[name] = {"value": value, "low": float(low), "high": float(high)}
    return pd.DataFrame.from_dict(rows, orient="index")


def score_majority(labels: np.ndarray) -> float:
    """Return the accuracy of always answering the commonest class, 0 … 1."""
    return float(np.bincount(labels).max() / len(labels))


def score_classes(
    labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]
) -> pd.DataFrame:
    """Make the per-class table: images, precision, recall (sensitivity), F1 and AUC.

    Args:
        labels: int (N,), indices into `classes`.
        probabilities: float (N, K).
        classes: K class codes.

    Returns:
        A table with a row per class; a figure that is not defined is nan (precision of a
        class that was never answered, AUC of a class that does not occur).
    """
    labels, probabilities = _check(labels, probabilities)
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(len(classes)), zero_division=np.nan
    )
    auc = [
        roc_auc_score(labels == k, probabilities[:, k]) if 0 < images[k] < len(labels) else np.nan
        for k in range(len(classes))
    ]
    columns = {"images": images, "precision": precision, "recall": recall, "f1": f1, "auc": auc}
    return pd.DataFrame(columns, index=pd.Index(classes, name="dx"))


def _check(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=float)
    if not len(labels) or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise ValueError(
            f"labels {labels.shape} and probabilities {probabilities.shape} do not belong together:"
            " wanted are (N,) and (N, classes) with N at least 1"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"{(~np.isfinite(probabilities)).any(1).sum()} of {len(labels)} rows of probabilities "
            "hold nan or infinity: the training diverged; lower LEARNING_RATE"
        )
    return labels, probabilities


def draw_lesions(
    labels: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Draw lesion groups with replacement; yields image weights (B, N) of B draws at a time."""
    codes, names = pd.factorize(groups)
    holds = pd.crosstab(codes, labels).to_numpy() > 0  # groups x classes that occur
    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(labels))  # bounds the memory
    drawn = tries = 0
    while drawn < resamples:
        size = min(chunk, resamples - drawn)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size)
        tries += size
        if tries < 100 * resamples:  # classes of one lesion each could keep this going for long
            times = times[(times @ holds > 0).all(axis=1)]
        drawn += len(times)
        if len(times):
            yield times[:, codes].astype(float)


def _score(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the scores under B sets of image weights (B, N) at once; returns (B,) arrays."""
    truth = np.eye(probabilities.shape[1])[labels]
    answer = np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    true, answered, hits = weights @ truth, weights @ answer, weights @ (truth * answer)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / true  # nan for a class that the resample does not hold
        f1 = np.where(true > 0, 2 * hits / (true + answered), np.nan)
    auc = [_score_auc(truth[:, k] > 0, p, weights) for k, p in enumerate(probabilities.T)]
    return {
        "accuracy": hits.sum(1) / weights.sum(1),
        "balanced_accuracy": np.nanmean(recall, axis=1),
        "macro_f1": np.nanmean(f1, axis=1),
        "auc": _mean_of_defined(np.stack(auc, axis=1)),
    }


def _score_recall(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the mean recall under B sets of image weights (B, N); returns (B,)."""
    truth = np.eye(probabilities.shape[1])[labels]
    is_right = probabilities.argmax(1) == labels
    with np.errstate(invalid="ignore"):
        return np.nanmean((weights * is_right) @ truth / (weights @ truth), axis=1)


def _score_auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the area under the ROC curve for each row of weights (B, N); ties count half."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    weights, positive = weights[:, order], positive[order]
    above = np.add.reduceat(weights * positive, starts, axis=1)
    below = np.add.reduceat(weights * ~positive, starts, axis=1)
    wins = (above * (below.cumsum(1) - below / 2)).sum(1)
    with np.errstate(invalid="ignore"):
        return wins / (above.sum(1) * below.sum(1))


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Average each row over its values that are not nan; nan where there are none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(1) / defined.sum(1)
