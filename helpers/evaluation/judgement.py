"""Judging a model: figures by class, operating points, selective prediction, its surest errors.

Works from labels, probabilities and lesion groups alone: a predictions.csv is enough, TensorFlow
is not needed. Intervals are by bootstrap over lesions.
"""

import numpy as np
import pandas as pd

from helpers.evaluation.calibration import choose_threshold
from helpers.evaluation.scores import draw_lesions
from helpers.runs.folder import Run, RunError

# What is looked for, and the classes that count as it.
QUESTIONS = {"melanoma": ("mel",), "malignant": ("mel", "bcc", "akiec")}
SENSITIVITIES = (0.90, 0.95)  # wanted of an operating point
ANSWERED_SHARES = (0.5, 0.7, 0.8, 0.9, 1.0)
LEVEL = 0.95  # coverage wanted of the intervals
TAIL = (1 - LEVEL) / 2


def check_parameters(run: Run, part: str, prevalence: float, resamples: int, seed: int) -> None:
    """Check the parameters of a judgement before any work is done.

    Raises:
        RunError: naming all that is wrong; for a part that the run lacks, those that it has.
    """
    problems = []
    parts = run.predictions["split"].unique()
    if part not in parts:
        problems.append(f"PART is {part!r}, wanted is one that {run.path} has: {', '.join(parts)}")
    if not 0 < prevalence < 1:
        problems.append(f"PREVALENCE is {prevalence}, wanted is above 0 and below 1 (0.05 is 5 %)")
    if resamples < 100:
        problems.append(f"RESAMPLES is {resamples}, wanted is at least 100: the ends of a 95 % ")
        problems[-1] += "interval are otherwise single draws"
    if seed < 0:
        problems.append(f"SEED is {seed}, wanted is at least 0")
    if problems:
        raise RunError("\n".join(problems))


def estimate_shares(
    hits: np.ndarray,
    counted: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Estimate shares, such as a sensitivity, with 95 % intervals by bootstrap over lesions.

    Percentile intervals from the draws of `scores.draw_lesions`. Where a share is 0 or 1 no draw
    can differ, so that end is the exact one of Clopper and Pearson (Biometrika 26:404, 1934) for
    as many independent images as there are lesions.

    Args:
        hits: bool (N, F), the images that count as a success, for each of F shares.
        counted: bool (N, F), the images that count at all.
        labels: int (N,), class indices.
        groups: (N,), the lesion group of each image.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        A row per share: images and lesions (counted), value, low and high (0 … 1; nan where no
        image is counted).
    """
    whole = np.asarray(counted, dtype=float)
    part = whole * np.asarray(hits)
    with np.errstate(invalid="ignore"):
        value = part.sum(0) / whole.sum(0)
        drawn = [
            (weights @ part) / (weights @ whole)
            for weights in draw_lesions(labels, groups, resamples, seed)
        ]
    low, high = _bound(np.concatenate(drawn))
    lesions = pd.DataFrame(whole).groupby(np.asarray(groups)).max().sum().to_numpy(dtype=int)
    with np.errstate(divide="ignore"):
        exact = TAIL ** (1 / lesions)
    low, high = np.where(value == 1, exact, low), np.where(value == 0, 1 - exact, high)
    columns = {"images": whole.sum(0).astype(int), "lesions": lesions}
    return pd.DataFrame({**columns, "value": value, "low": low, "high": high})


def judge_classes(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    classes: list[str],
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge each class against the others, with 95 % intervals by bootstrap over lesions.

    The answer is the most probable class. From the answers: sensitivity (share of the class's
    images that were recognised), specificity (share of the other images that were not taken for
    it), ppv and npv (share of the answers for, and against, the class that were right). From the
    probabilities: auc (area under the ROC curve) and average_precision (sum of precision times
    gain in recall, without interpolation); both equal scikit-learn's. Where one of them is 1 no
    draw can differ: both are at least the share of the class that ranks above all other images,
    so their lower end is the exact one of that share, which was 1.

    Args:
        labels: int (N,), indices into `classes`.
        probabilities: float (N, K).
        groups: (N,), the lesion group of each image.
        classes: K class codes.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        The index (dx, figure) and the columns of `estimate_shares`; images and lesions are those
        behind the figure: of the class for sensitivity, auc and average_precision, so answered for
        ppv. A figure that is not defined (ppv of a class that was never answered) is nan.
    """
    truth = np.eye(len(classes), dtype=bool)[labels]
    answer = np.eye(len(classes), dtype=bool)[probabilities.argmax(1)]
    hits = np.hstack([answer, ~answer, truth, ~truth])
    counted = np.hstack([truth, ~truth, answer, ~answer])
    shares = estimate_shares(hits, counted, labels, groups, resamples, seed)
    names = ("sensitivity", "specificity", "ppv", "npv")
    shares.index = pd.MultiIndex.from_tuples(
        [(dx, name) for name in names for dx in classes], names=["dx", "figure"]
    )
    ranks = _judge_rankings(truth, probabilities, labels, groups, resamples, seed)
    ranks.index = pd.MultiIndex.from_tuples(
        [(dx, name) for dx in classes for name in ("auc", "average_precision")],
        names=["dx", "figure"],
    )
    counts = shares.xs("sensitivity", level="figure")[["images", "lesions"]]
    ranks = ranks.join(counts, on="dx")[shares.columns]
    exact = (TAIL ** (1 / ranks["lesions"])).clip(upper=ranks["low"])
    ranks["low"] = ranks["low"].mask(ranks["value"] == 1, exact)
    order = [(dx, name) for dx in classes for name in (*names, "auc", "average_precision")]
    return pd.concat([shares, ranks]).loc[order]


def choose_operating_points(
    labels: np.ndarray, probabilities: np.ndarray, classes: list[str]
) -> pd.Series:
    """Choose the thresholds of `QUESTIONS` for `SENSITIVITIES` on the validation part.

    Args:
        labels: int (N,), of the validation images.
        probabilities: float (N, K); the score of a question is the sum over its classes.
        classes: K class codes.

    Returns:
        The threshold, 0 … 1, by question and wanted sensitivity; see
        `calibration.choose_threshold`.

    Raises:
        ValueError: no validation image has what is looked for.
    """
    thresholds = {}
    for question in QUESTIONS:
        positive, score = ask(question, labels, probabilities, classes)
        for wanted in SENSITIVITIES:
            thresholds[question, wanted] = choose_threshold(positive, score, wanted)
    return pd.Series(thresholds, name="threshold").rename_axis(["question", "wanted"])


def judge_operating_points(
    thresholds: pd.Series,
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    classes: list[str],
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge thresholds that were chosen on other images.

    The interval is that of the sensitivity and the specificity of this very threshold: that
    another validation part would have led to another one is not in it.

    Args:
        thresholds: as from `choose_operating_points`.
        labels: int (N,).
        probabilities: float (N, K), calibrated as those that the thresholds were chosen on.
        groups: (N,), the lesion group of each image.
        classes: K class codes.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        The index (question, wanted, figure) with figure sensitivity or specificity, and the
        columns of `estimate_shares`.
    """
    hits, counted, index = [], [], []
    for (question, wanted), threshold in thresholds.items():
        positive, score = ask(question, labels, probabilities, classes)
        hits += [score >= threshold, score < threshold]
        counted += [positive, ~positive]
        index += [(question, wanted, "sensitivity"), (question, wanted, "specificity")]
    shares = estimate_shares(
        np.stack(hits, axis=1), np.stack(counted, axis=1), labels, groups, resamples, seed
    )
    shares.index = pd.MultiIndex.from_tuples(index, names=["question", "wanted", "figure"])
    return shares


def ask(
    question: str, labels: np.ndarray, probabilities: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images have what a question looks for (bool (N,)) and their scores (N,)."""
    columns = [classes.index(dx) for dx in QUESTIONS[question]]
    return np.isin(labels, columns), probabilities[:, columns].sum(axis=1)


def count_per_thousand(points: pd.DataFrame, prevalence: float) -> pd.DataFrame:
    """Say what operating points mean for 1,000 images at a prevalence.

    Args:
        points: as from `judge_operating_points`.
        prevalence: share of images that have what is looked for, 0 … 1.

    Returns:
        The index (question, wanted) and whole images: found, missed, false_alarms and
        rightly_cleared, 1,000 together; missed_at_worst and false_alarms_at_worst, at the lower
        ends of the intervals; ppv: the share of the alarms that are right.
    """
    value = points["value"].unstack("figure", sort=False)
    worst = 1 - points["low"].unstack("figure", sort=False)
    ill = 1000 * prevalence
    found = value["sensitivity"] * ill
    alarms = (1 - value["specificity"]) * (1000 - ill)
    counts = pd.DataFrame({"found": found.round(), "false_alarms": alarms.round()})
    counts["missed"] = round(ill) - counts["found"]
    counts["rightly_cleared"] = 1000 - round(ill) - counts["false_alarms"]
    counts = counts[["found", "missed", "false_alarms", "rightly_cleared"]]
    counts["missed_at_worst"] = (worst["sensitivity"] * ill).round()
    counts["false_alarms_at_worst"] = (worst["specificity"] * (1000 - ill)).round()
    return counts.astype("Int64").assign(ppv=found / (found + alarms))


def trace_selection(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Trace how right the answers are when only the most confident ones are given.

    Selective prediction with the highest probability as the confidence (Geifman and El-Yaniv,
    Selective Classification for Deep Neural Networks, NeurIPS 2017).

    Args:
        labels: int (N,), class indices.
        probabilities: float (N, K).

    Returns:
        A row per number of answered images, from 1 to N, the most confident first: share (0 … 1),
        accuracy, balanced_accuracy (mean recall of the classes that are among the answered) and
        classes (how many those are).
    """
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    truth = np.eye(probabilities.shape[1])[labels[order]]
    is_right = (probabilities.argmax(axis=1) == labels)[order]
    images, hits = truth.cumsum(0), (truth * is_right[:, None]).cumsum(0)
    recall = np.divide(hits, images, out=np.zeros_like(hits), where=images > 0)
    classes = (images > 0).sum(axis=1)
    answered = np.arange(1, len(labels) + 1)
    return pd.DataFrame(
        {
            "share": answered / len(labels),
            "accuracy": hits.sum(axis=1) / answered,
            "balanced_accuracy": recall.sum(axis=1) / classes,
            "classes": classes,
        }
    )


def score_selection(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Read the curve of `trace_selection` at `ANSWERED_SHARES`, the accuracy with intervals.

    Args:
        labels: int (N,), class indices.
        probabilities: float (N, K).
        groups: (N,), the lesion group of each image.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        A row per answered share: images and lesions (answered), value, low and high (accuracy),
        balanced_accuracy and classes.
    """
    confidence = probabilities.max(axis=1)
    rank = np.argsort(np.argsort(-confidence, kind="stable"))
    numbers = [max(1, round(share * len(labels))) for share in ANSWERED_SHARES]
    answered = rank[:, None] < np.array(numbers)
    is_right = (probabilities.argmax(axis=1) == labels)[:, None]
    shares = estimate_shares(
        np.broadcast_to(is_right, answered.shape), answered, labels, groups, resamples, seed
    )
    curve = trace_selection(labels, probabilities).iloc[np.array(numbers) - 1]
    shares[["balanced_accuracy", "classes"]] = curve[["balanced_accuracy", "classes"]].to_numpy()
    shares["classes"] = shares["classes"].astype(int)
    return shares.set_axis(pd.Index(ANSWERED_SHARES, name="answered"))


def find_surest_errors(
    predictions: pd.DataFrame, classes: list[str], images: int = 12
) -> pd.DataFrame:
    """List the images whose wrong answer was the most probable, the surest first.

    Args:
        predictions: a row per image: image_id, dx and p_<class>.
        classes: K class codes.
        images: how many at most.

    Returns:
        image_id, dx (the truth), answer, probability (of the answer) and probability_of_dx.
    """
    probabilities = predictions[[f"p_{dx}" for dx in classes]].to_numpy()
    labels = predictions["dx"].map(classes.index).to_numpy()
    table = predictions[["image_id", "dx"]].assign(
        answer=np.array(classes)[probabilities.argmax(axis=1)],
        probability=probabilities.max(axis=1),
        probability_of_dx=probabilities[np.arange(len(labels)), labels],
    )
    wrong = table[table["answer"] != table["dx"]]
    order = ["probability", "image_id"]
    return wrong.sort_values(order, ascending=[False, True]).head(images).reset_index(drop=True)


def write_intervals(table: pd.DataFrame) -> pd.Series:
    """Write value, low and high as text such as `.739 [.711, .767]`, `-` where undefined."""
    return pd.Series(
        [
            "-" if np.isnan(row["value"]) else "{} [{}, {}]".format(*map(write_share, row))
            for _, row in table[["value", "low", "high"]].iterrows()
        ],
        index=table.index,
        dtype=object,
    )


def write_share(share: float) -> str:
    """Write a share 0 … 1 with three decimals and no leading zero, `-` where it is nan."""
    return "-" if np.isnan(share) else f"{share:.3f}".removeprefix("0")


def _bound(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (F,) of the percentile intervals of draws (B, F), nan where undefined."""
    bounds = pd.DataFrame(drawn).quantile([TAIL, 1 - TAIL])
    return bounds.iloc[0].to_numpy(), bounds.iloc[1].to_numpy()


def _judge_rankings(
    truth: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Judge AUC and average precision of each class: value, low, high; rows class by class."""

    def score(weights: np.ndarray) -> np.ndarray:
        pairs = zip(truth.T, probabilities.T, strict=True)
        return np.hstack([_score_ranking(positive, p, weights) for positive, p in pairs])

    drawn = [score(weights) for weights in draw_lesions(labels, groups, resamples, seed)]
    low, high = _bound(np.concatenate(drawn))
    value = score(np.ones((1, len(labels))))[0]
    return pd.DataFrame({"value": value, "low": low, "high": high})


def _score_ranking(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute AUC and average precision under B sets of image weights (B, N); returns (B, 2).

    Equal scores are one threshold. Both are nan for a class that does not occur, AUC also where
    no other class does.
    """
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) < 0])
    weights, positive = weights[:, order], positive[order]
    gain = np.add.reduceat(weights * positive, starts, axis=1)
    loss = np.add.reduceat(weights * ~positive, starts, axis=1)
    hits, alarms = gain.cumsum(1), loss.cumsum(1)
    with np.errstate(invalid="ignore"):
        auc = (loss * (hits - gain / 2)).sum(1) / (hits[:, -1] * alarms[:, -1])
        precision = np.divide(hits, hits + alarms, out=np.zeros_like(hits), where=hits > 0)
        average = (gain * precision).sum(1) / hits[:, -1]
    return np.stack([auc, average], axis=1)
