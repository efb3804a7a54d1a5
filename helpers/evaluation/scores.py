"""Scores of predicted probabilities: over all images, by class and by group, with 95 % intervals.

Means over classes and rankings get the percentile interval of a bootstrap over lesions, since the
images of a lesion are not independent (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
ch. 13). Shares, such as a sensitivity, get the interval of Wilson (JASA 22:209, 1927) for their
effective number of images, which holds near 0 and 1 too. Fewer lesions than `FEWEST` get none.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.metrics import precision_recall_fscore_support

from helpers.evaluation.predictions import Predictions

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
PRIOR_ADJUSTED = "prior_adjusted_balanced_accuracy"
FEWEST = 10  # lesions that an interval rests on at least
TAILS = (0.025, 0.975)
# What is looked for, and the classes that count as it.
QUESTIONS = {"melanoma": ("mel",), "malignant": ("mel", "bcc", "akiec")}
# Column of the table to its name among the groups of images.
ATTRIBUTES = {
    "sex": "sex",
    "age": "age",
    "localization": "site",
    "dataset": "source",
    "dx_type": "diagnosis by",
}
AGE_EDGES = (30, 45, 60, 75)  # years; a band begins at each
GROUP_FIGURES = ("accuracy", "baseline", "sensitivity", "specificity")


def score_predictions(p: Predictions) -> dict[str, float]:
    """Compute accuracy, balanced accuracy, macro F1 and one-vs-rest AUC.

    The last three are unweighted means over the classes that occur, balanced accuracy that of the
    recall; all equal scikit-learn's.

    Returns:
        A dict with the keys of SCORES, each 0 … 1; AUC is nan where only one class occurs.
    """
    _check(p)
    return dict(zip(SCORES, _score(p, np.ones((1, len(p))))[0].tolist(), strict=True))


def score_with_intervals(p: Predictions, adjusted: Predictions | None = None) -> pd.DataFrame:
    """Compute the scores of `score_predictions` with their intervals.

    Args:
        p: what the model answered.
        adjusted: the same images with the probabilities adjusted to equally frequent classes
            (`calibration.adjust_prior`); adds their balanced accuracy as PRIOR_ADJUSTED.

    Returns:
        A table with the index SCORES (and PRIOR_ADJUSTED) and the columns value, low, high, and
        small_classes: how many of the averaged classes rest on fewer than FEWEST lesions.
    """
    _check(p)
    names = [*SCORES, PRIOR_ADJUSTED] if adjusted else list(SCORES)

    def score(weights: np.ndarray) -> np.ndarray:
        found = _score(p, weights)
        return np.c_[found, _score_answers(adjusted, weights)[:, 1]] if adjusted else found

    table = estimate_scores(score, p).set_axis(names)
    is_right = p.answers == p.labels
    shares = estimate_shares(is_right[:, None], np.ones((len(p), 1)), p)
    table.loc["accuracy"] = shares.loc[0, ["value", "low", "high"]]
    lesions = pd.Series(p.groups).groupby(p.labels).nunique()
    table["small_classes"] = [0, *[int((lesions < FEWEST).sum())] * (len(table) - 1)]
    return table


def score_majority(p: Predictions) -> float:
    """Return the accuracy of always answering the commonest class, 0 … 1."""
    return float(p.table["dx"].value_counts(normalize=True).iloc[0])


def score_classes(p: Predictions) -> pd.DataFrame:
    """Make the table of images, precision, recall (sensitivity), F1 and AUC, a row per class.

    A figure that is not defined is nan (precision of a class that was never answered, AUC of a
    class that does not occur).
    """
    _check(p)
    precision, recall, f1, images = precision_recall_fscore_support(
        p.labels, p.answers, labels=range(len(p.classes)), zero_division=np.nan
    )
    auc = _score_rankings(p, np.ones((1, len(p))))[0, :, 0]
    columns = {"images": images, "precision": precision, "recall": recall, "f1": f1, "auc": auc}
    return pd.DataFrame(columns, index=pd.Index(p.classes, name="dx"))


def judge_classes(p: Predictions) -> pd.DataFrame:
    """Judge each class that occurs against the others, with intervals.

    From the answers: sensitivity, specificity, ppv and npv (share of the answers for, and against,
    the class that were right). From the probabilities: auc and average_precision.

    Returns:
        The index (dx, figure) and the columns of `estimate_shares`; images and lesions are those
        behind the figure: of the class for sensitivity, auc and average_precision, so answered for
        ppv. A figure that is not defined is nan; a ranking without error has no interval.
    """
    _check(p)
    known = np.unique(p.labels)
    truth, answer = p.labels[:, None] == known, p.answers[:, None] == known
    hits = np.hstack([answer, ~answer, truth, ~truth, answer, answer])
    counted = np.hstack([truth, ~truth, answer, ~answer, truth, truth])
    table = estimate_shares(hits, counted, p)
    names = ("sensitivity", "specificity", "ppv", "npv", "auc", "average_precision")
    codes = [p.classes[k] for k in known]
    table.index = pd.MultiIndex.from_product([names, codes], names=["figure", "dx"])
    ranked = estimate_scores(
        lambda weights: np.hstack(list(_score_rankings(p, weights)[:, known].transpose(2, 0, 1))), p
    )
    of_ranks = slice(4 * len(known), None)
    few = table["lesions"].to_numpy()[of_ranks] < FEWEST
    ranked.loc[few | np.isclose(ranked["value"], 1), ["low", "high"]] = np.nan
    table.iloc[of_ranks, 2:] = ranked
    return table.swaplevel().loc[[(dx, name) for dx in codes for name in names]]


def ask(question: str, p: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return which images have what is looked for, bool (N,), and its probability, (N,)."""
    wanted = np.isin(p.classes, QUESTIONS[question])
    return wanted[p.labels], p.probabilities[:, wanted].sum(axis=1)


def score_groups(p: Predictions, threshold: float) -> pd.DataFrame:
    """Score each group of images, and compare it with all other images.

    Args:
        p: calibrated predictions.
        threshold: of the operating point for malignant-or-not; nan where there is none: then
            without sensitivity and specificity.

    Returns:
        The index (attribute, value, figure), first ("all", "all", …), and the columns of
        `estimate_shares`: accuracy; baseline (what always answering the group's commonest class
        would score); sensitivity and specificity for malignant-or-not. Then difference (the group
        minus all other images), difference_low and difference_high: the interval of Newcombe
        (Statistics in Medicine 17:873, 1998, method 10).
    """
    _check(p)
    members = {("all", "all"): np.ones(len(p), dtype=bool)}
    for name, values in _group_images(p).items():
        members |= {(name, value): (values == value).to_numpy() for value in _order(values)}
    positive, score = ask("malignant", p)
    is_any = np.ones(len(p), dtype=bool)
    names = GROUP_FIGURES if np.isfinite(threshold) else GROUP_FIGURES[:2]
    hits, whole = [], np.stack([is_any, is_any, positive, ~positive][: len(names)], axis=1)
    for member in members.values():
        is_commonest = p.labels == np.bincount(p.labels[member]).argmax()
        flags = [p.answers == p.labels, is_commonest, score >= threshold, score < threshold]
        hits += flags[: len(names)]
    inside = np.repeat(np.stack(list(members.values()), axis=1), len(names), axis=1)
    whole = np.tile(whole, len(members))
    table, rest = (
        estimate_shares(np.stack(hits, axis=1), whole & each, p) for each in (inside, ~inside)
    )
    table["difference"] = table["value"] - rest["value"]
    for sign, end, other in ((-1, "low", "high"), (1, "high", "low")):
        reach = np.hypot(table[end] - table["value"], rest[other] - rest["value"])
        table[f"difference_{end}"] = table["difference"] + sign * reach
    index = [(*group, name) for group in members for name in names]
    table.index = pd.MultiIndex.from_tuples(index, names=["attribute", "value", "figure"])
    return table


def estimate_shares(hits: np.ndarray, counted: np.ndarray, p: Predictions) -> pd.DataFrame:
    """Estimate shares with Wilson's interval for the effective number of images.

    That number is the one whose independent images would vary as these do over lesions (as in
    Korn & Graubard, Survey Methodology 24:193, 1998), at least the one of lesions whose images all
    agree. Student's quantile stands for the normal one.

    Args:
        hits: bool (N, F), the images that count as a success, for each of F shares.
        counted: bool (N, F), the images that count at all.
        p: N predictions, for their lesion groups.

    Returns:
        A row per share: images and lesions (counted), value, low and high (0 … 1; nan where no
        image is counted, low and high where fewer than FEWEST lesions are).
    """
    whole = np.asarray(counted, dtype=float)
    part = whole * np.asarray(hits)
    size, right = (pd.DataFrame(x).groupby(p.groups).sum().to_numpy() for x in (whole, part))
    images, lesions = whole.sum(0), (size > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = right.sum(0) / images
        variance = ((right - size * value) ** 2).sum(0) / images**2 * lesions / (lesions - 1)
        lowest = images**2 / (size**2).sum(0)
        number = np.fmax(np.minimum(value * (1 - value) / variance, images), lowest)
        q = student.ppf(TAILS[1], lesions - 1) ** 2 / number
        centre, half = value + q / 2, np.sqrt(q * (value * (1 - value) + q / 4))
        low, high = (centre - half) / (1 + q), (centre + half) / (1 + q)
    columns = {"images": images.astype(int), "lesions": lesions, "value": value}
    table = pd.DataFrame(columns | {"low": low.clip(0, 1), "high": high.clip(0, 1)})
    table.loc[lesions < FEWEST, ["low", "high"]] = np.nan
    return table


def estimate_scores(score: Callable[[np.ndarray], np.ndarray], p: Predictions) -> pd.DataFrame:
    """Estimate scores with the percentile interval of a bootstrap over lesions.

    Args:
        score: from image weights (B, N) to scores (B, F).
        p: N predictions: their lesions, resamples and seed. Without resamples no interval.

    Returns:
        A row per score: value, low and high, nan where undefined.
    """
    table = pd.DataFrame({"value": score(np.ones((1, len(p))))[0], "low": np.nan, "high": np.nan})
    if p.resamples and len(np.unique(p.groups)) >= FEWEST:
        drawn = np.concatenate([score(weights) for weights in draw_lesions(p)])
        table[["low", "high"]] = pd.DataFrame(drawn).quantile(TAILS).to_numpy().T
    return table


def draw_lesions(p: Predictions) -> Iterator[np.ndarray]:
    """Draw lesion groups with replacement; yields image weights (B, N) of B draws at a time.

    A draw that misses a class altogether is made anew: a mean over the classes would be one over
    fewer classes.
    """
    codes, names = pd.factorize(p.groups)
    holds = pd.crosstab(codes, p.labels).to_numpy() > 0  # groups x classes that occur
    rng = np.random.default_rng(p.seed)
    chunk = max(1, 4_000_000 // len(p))  # bounds the memory
    drawn = tries = 0
    while drawn < p.resamples:
        size = min(chunk, p.resamples - drawn)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size)
        tries += size
        if tries < 100 * p.resamples:  # classes of one lesion each could keep this going for long
            times = times[(times @ holds > 0).all(axis=1)]
        drawn += len(times)
        if len(times):
            yield times[:, codes].astype(float)


def trace_ranking(
    positive: np.ndarray, score: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count hits and false alarms while the threshold falls; equal scores are one threshold.

    Args:
        positive: bool (N,).
        score: float (N,).
        weights: of the images, float (B, N).

    Returns:
        Both (B, T + 1), from 0 at the first to all at the last of T thresholds.
    """
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) < 0])
    weights, positive = weights[:, order], positive[order]
    hits, alarms = (
        np.add.reduceat(weights * counted, starts, axis=1).cumsum(1)
        for counted in (positive, ~positive)
    )
    return np.pad(hits, ((0, 0), (1, 0))), np.pad(alarms, ((0, 0), (1, 0)))


def score_ranking(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Compute AUC and average precision, (B, 2), of what `trace_ranking` counts.

    The first is nan where nothing is positive, or everything; the second where nothing is.
    """
    gain, level = np.diff(hits), hits[:, 1:]
    with np.errstate(invalid="ignore"):
        middle = (hits[:, 1:] + hits[:, :-1]) / 2
        auc = (np.diff(alarms) * middle).sum(1) / (hits[:, -1] * alarms[:, -1])
        precision = np.nan_to_num(level / (level + alarms[:, 1:]))
        return np.stack([auc, (gain * precision).sum(1) / hits[:, -1]], axis=1)


def write_intervals(table: pd.DataFrame) -> pd.Series:
    """Write value, low and high as text: `.739 [.711, .767]`, `.500 (too few lesions)`, `-`."""

    def write(row: pd.Series) -> str:
        if np.isnan(row["value"]):
            return "-"
        text, low, high = map(write_share, row[["value", "low", "high"]])
        why = "too few lesions" if row.get("lesions", 0) < FEWEST else "no interval"
        return f"{text} ({why})" if np.isnan(row["low"]) else f"{text} [{low}, {high}]"

    texts = [write(row) for _, row in table.iterrows()]
    return pd.Series(texts, index=table.index, dtype=object)


def write_share(share: float) -> str:
    """Write a share 0 … 1 with three decimals and no leading zero, `-` where it is nan."""
    return "-" if np.isnan(share) else f"{share:.3f}".removeprefix("0")


def _check(p: Predictions) -> None:
    """Raise a ValueError for predictions that cannot be scored."""
    if not len(p) or (p.labels < 0).any():
        strange = int((p.labels < 0).sum())
        raise ValueError(
            f"of {len(p)} images {strange} are of no class of the model: wanted is none"
        )
    if broken := int((~np.isfinite(p.probabilities)).any(axis=1).sum()):
        problem = f"{broken} of {len(p)} rows of probabilities hold nan or infinity"
        raise ValueError(f"{problem}: the training diverged; lower LEARNING_RATE")


def _score(p: Predictions, weights: np.ndarray) -> np.ndarray:
    """Compute SCORES under B sets of image weights (B, N) at once; returns (B, 4)."""
    auc = pd.DataFrame(_score_rankings(p, weights)[:, :, 0]).mean(axis=1)  # without nan
    return np.c_[_score_answers(p, weights), auc]


def _score_answers(p: Predictions, weights: np.ndarray) -> np.ndarray:
    """Compute accuracy, balanced accuracy and macro F1 under weights (B, N); returns (B, 3)."""
    truth, answer = np.eye(len(p.classes))[p.labels], np.eye(len(p.classes))[p.answers]
    true, answered, hits = weights @ truth, weights @ answer, weights @ (truth * answer)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / true  # nan for a class that does not occur
        f1 = np.where(true > 0, 2 * hits / (true + answered), np.nan)
    means = [pd.DataFrame(each).mean(axis=1) for each in (recall, f1)]
    return np.stack([hits.sum(1) / weights.sum(1), *means], axis=1)


def _score_rankings(p: Predictions, weights: np.ndarray) -> np.ndarray:
    """Compute AUC and average precision of each class under weights (B, N); returns (B, K, 2)."""
    columns = enumerate(p.probabilities.T)
    ranked = [score_ranking(*trace_ranking(p.labels == k, c, weights)) for k, c in columns]
    return np.stack(ranked, axis=1)


def _group_images(p: Predictions) -> pd.DataFrame:
    """Name each image's group of each attribute that is known and has more than one value."""
    names = {column: name for column, name in ATTRIBUTES.items() if column in p.table}
    grouped = p.table[list(names)].rename(columns=names)
    if "age" in grouped:  # 0 may stand for a missing one
        bands = [f"{low} to {high - 1}" for low, high in pairwise(AGE_EDGES)]
        bands = np.array([f"under {AGE_EDGES[0]}", *bands, f"{AGE_EDGES[-1]} and over"])
        band = pd.Series(bands[np.digitize(grouped["age"], AGE_EDGES)])
        grouped["age"] = band.where(grouped["age"] > 0)
    grouped = grouped.fillna("unknown")
    return grouped.loc[:, grouped.nunique() > 1]


def _order(values: pd.Series) -> list[str]:
    """Order the values of an attribute: ages by age, others by count; unknown last."""
    if values.name == "age":
        return sorted(values.unique(), key=lambda x: (x == "unknown", x[:5] != "under", x))
    counts = values.value_counts()
    return sorted(counts.index, key=lambda x: (x == "unknown", -counts[x], x))
