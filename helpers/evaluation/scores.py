"""Scores of predicted probabilities: over all images, by class and by group, with 95 % intervals.

The images of a lesion are not independent. Means over classes and rankings get the percentile
interval of a bootstrap over lesions (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
ch. 13), shares such as a sensitivity that of Wilson (JASA 22:209, 1927) for their effective number
of images, which holds near 0 and 1 too. Fewer than `FEWEST` lesions get none.
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
ATTRIBUTES = {"sex": "sex", "age": "age", "localization": "site", "dataset": "source"}
ATTRIBUTES["dx_type"] = "diagnosis by"
AGE_EDGES = (30, 45, 60, 75)  # years; a band begins at each
GROUP_FIGURES = ("accuracy", "baseline", "sensitivity", "specificity")


def score_predictions(p: Predictions) -> dict[str, float]:
    """Compute SCORES, each 0 … 1: name to value.

    All but the accuracy are unweighted means over the classes that occur: of recall, F1 and the
    one-vs-rest AUC (nan where only one class occurs); equal to scikit-learn's.
    """
    _check(p)
    return dict(zip(SCORES, _score(p, np.ones((1, len(p))))[0].tolist(), strict=True))


def score_with_intervals(p: Predictions, adjusted: Predictions | None = None) -> pd.DataFrame:
    """Compute the scores of `score_predictions` with their intervals.

    `adjusted` are the same adjusted to equally frequent classes (`calibration.adjust_prior`), whose
    balanced accuracy is added as PRIOR_ADJUSTED. Returns a row per score: value, low, high, and
    small_classes: how many of the averaged classes rest on fewer than FEWEST lesions.
    """
    _check(p)
    names = [*SCORES, PRIOR_ADJUSTED] if adjusted else list(SCORES)

    def score(weights: np.ndarray) -> np.ndarray:
        found = _score(p, weights)
        return np.c_[found, _score_answers(adjusted, weights)[:, 1]] if adjusted else found

    table = estimate_scores(score, p).set_axis(names)
    shares = estimate_shares((p.answers == p.labels)[:, None], np.ones((len(p), 1)), p)
    # Without any error (or any hit) all draws are alike, and show no interval.
    table.loc[np.isclose(table["low"], table["high"]), ["low", "high"]] = np.nan
    table.loc["accuracy"] = shares.loc[0, ["value", "low", "high"]]
    lesions = pd.Series(p.groups).groupby(p.labels).nunique()
    table["small_classes"] = [0, *[int((lesions < FEWEST).sum())] * (len(table) - 1)]
    return table


def score_majority(p: Predictions) -> float:
    """Return the accuracy of always answering the commonest class, 0 … 1."""
    return float(p.table["dx"].value_counts(normalize=True).iloc[0])


def score_classes(p: Predictions) -> pd.DataFrame:
    """Make the table of images, precision, recall, F1 and AUC by class; nan where undefined."""
    _check(p)
    precision, recall, f1, images = precision_recall_fscore_support(
        p.labels, p.answers, labels=range(len(p.classes)), zero_division=np.nan
    )
    auc = _score_rankings(p, np.ones((1, len(p))))[0, :, 0]
    columns = {"images": images, "precision": precision, "recall": recall, "f1": f1, "auc": auc}
    return pd.DataFrame(columns, index=pd.Index(p.classes, name="dx"))


def judge_classes(p: Predictions) -> pd.DataFrame:
    """Judge each class that occurs against the others, with intervals.

    Returns the index (dx, figure), with sensitivity, specificity, ppv, npv, auc and
    average_precision, and the columns of `estimate_shares`; images and lesions are those behind the
    figure: of the class for sensitivity, auc and average_precision, so answered for ppv. What is
    not defined is nan; a ranking without error has no interval.
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
    lesions = pd.DataFrame(truth).groupby(p.groups).max().sum().to_numpy()
    others = pd.DataFrame(~truth).groupby(p.groups).max().sum().to_numpy()
    few = np.tile(np.minimum(lesions, others) < FEWEST, 2)
    ranked.loc[few | np.isclose(ranked["value"], 1), ["low", "high"]] = np.nan
    table.iloc[of_ranks, 2:] = ranked
    return table.swaplevel().loc[[(dx, name) for dx in codes for name in names]]


def ask(question: str, p: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return which images have what is looked for, bool (N,), and its probability, (N,)."""
    wanted = np.isin(p.classes, QUESTIONS[question])
    return wanted[p.labels], p.probabilities[:, wanted].sum(axis=1)


def score_groups(p: Predictions, threshold: float) -> pd.DataFrame:
    """Score each group of images, and compare it with all other images.

    Takes calibrated predictions, and a threshold for malignant-or-not: nan for none, and then no
    sensitivity and specificity. Returns the index (attribute, value, figure), first ("all", "all",
    …), with accuracy, baseline (of always answering the group's commonest class), sensitivity and
    specificity; the columns of `estimate_shares`; and difference (the group minus all other
    images), difference_low and difference_high (Newcombe, Statistics in Medicine 17:873, 1998,
    method 10).
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

    So many independent images would vary as these do over lesions, at least as many as if the
    images of a lesion all agreed; with Student's quantile (Korn & Graubard, Survey Methodology
    24:193, 1998).

    Takes bool (N, F) twice, for each of F shares the images that are hits and those that count at
    all, and the N predictions, for their lesions. Returns a row per share: images and lesions
    (counted), value, low and high, nan where undefined.
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
    """Estimate value, low and high of scores by a bootstrap over lesions, nan where undefined.

    `score` goes from image weights (B, N) to scores (B, F); of the N predictions the lesions,
    resamples (0: no interval) and seed are used.
    """
    table = pd.DataFrame({"value": score(np.ones((1, len(p))))[0], "low": np.nan, "high": np.nan})
    if p.resamples and len(np.unique(p.groups)) >= FEWEST:
        drawn = np.concatenate([score(weights) for weights in draw_lesions(p)])
        table[["low", "high"]] = pd.DataFrame(drawn).quantile(TAILS).to_numpy().T
    return table


def draw_lesions(p: Predictions) -> Iterator[np.ndarray]:
    """Draw lesion groups with replacement; yields image weights (B, N) of B draws at a time.

    A draw that misses a class is made anew: a mean over the classes would be over fewer.
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
    """Count hits and false alarms, (B, T + 1) each, while the threshold falls below all T scores.

    Takes which images are positive (N,), their scores (N,) and their weights (B, N).
    """
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) < 0])
    weights, positive = weights[:, order], positive[order]
    counts = [np.add.reduceat(weights * x, starts, axis=1) for x in (positive, ~positive)]
    return tuple(np.pad(count.cumsum(1), ((0, 0), (1, 0))) for count in counts)


def score_ranking(hits: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Compute AUC and average precision, (B, 2), of what `trace_ranking` counts; nan: undefined."""
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
        why = "too few lesions" if row.get("lesions", FEWEST) < FEWEST else "no interval"
        return f"{text} ({why})" if np.isnan(row["low"]) else f"{text} [{low}, {high}]"

    texts = [write(row) for _, row in table.iterrows()]
    return pd.Series(texts, index=table.index, dtype=object)


def write_share(share: float) -> str:
    """Write a share 0 … 1 with three decimals and no leading zero, `-` where it is nan."""
    return "-" if np.isnan(share) else f"{share:.3f}".removeprefix("0")


def _check(p: Predictions) -> None:
    """Raise a ValueError for predictions that cannot be scored."""
    strange, broken = (p.labels < 0).sum(), (~np.isfinite(p.probabilities)).any(axis=1).sum()
    if not len(p) or strange:
        raise ValueError(f"{strange} of {len(p)} images are of no class of the model")
    if broken:
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
    traced = (trace_ranking(p.labels == k, c, weights) for k, c in enumerate(p.probabilities.T))
    return np.stack([score_ranking(*counts) for counts in traced], axis=1)


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
