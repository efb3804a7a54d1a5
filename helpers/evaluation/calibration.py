"""Calibration: how far probabilities can be taken at their word, and what is decided by them.

Temperature and thresholds are chosen on validation images; the test stays out of every choice.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from helpers.data.files import InputError
from helpers.evaluation.predictions import Predictions
from helpers.evaluation.scores import QUESTIONS, ask, estimate_shares

SMALLEST_PROBABILITY = 1e-12  # what a probability of 0 is taken for: its logarithm must be finite
TEMPERATURES = (0.05, 20.0)  # lowest and highest that are tried
DRAWS = 100  # sets of labels for the error by chance
BINS = 15
FEWEST_IMAGES = 200  # that a reliability diagram needs
SENSITIVITIES = (0.90, 0.95)  # wanted of an operating point
FIGURES = ("sensitivity", "specificity")
ANSWERED_SHARES = (0.5, 0.7, 0.8, 0.9, 1.0)


def fit_temperature(p: Predictions) -> float:
    """Fit the temperature T of temperature scaling: least mean negative log-likelihood.

    The calibrated probabilities are softmax(log p / T) (Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017, section 4.2). T above 1 makes the model less sure, below 1 surer. Fit it to
    the validation part only: fitted to the test, it flatters the model.
    """
    logits, rows = _take_logarithm(p), np.arange(len(p))

    def measure_loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, p.labels].mean()

    found = minimize_scalar(measure_loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(p: Predictions, temperature: float) -> Predictions:
    """Return the predictions with softmax(log p / temperature); 1 changes nothing."""
    return p.with_probabilities(softmax(_take_logarithm(p) / temperature, axis=1))


def adjust_prior(validation: Predictions, p: Predictions) -> Predictions:
    """Adjust probabilities to classes that are all equally frequent, from validation images.

    Calibrated by temperature, divided by how probable the model finds each class on average, and
    normalised (Saerens et al., Neural Computation 14, 2002). The most probable class is then the
    answer with the best balanced accuracy (Menon et al., ICLR 2021). A class that does not occur
    among the validation images is never the answer.
    """
    temperature = fit_temperature(validation)
    prior = apply_temperature(validation, temperature).probabilities.mean(axis=0)
    occurs = np.isin(np.arange(len(p.classes)), validation.labels)
    odds = apply_temperature(p, temperature).probabilities
    odds = occurs * odds / np.maximum(prior, SMALLEST_PROBABILITY)
    return p.with_probabilities(odds / odds.sum(axis=1, keepdims=True))


def calibrate_run(run) -> tuple[Predictions, float]:
    """Calibrate a run's predictions with a temperature fitted to its validation part; return it."""
    if not len(validation := run.predictions.part("val")):
        problem = "no validation images to fit a temperature to"
        raise InputError(run.path, [f"{problem}; execute the run again with a validation part"])
    temperature = fit_temperature(validation)
    return apply_temperature(run.predictions, temperature), temperature


def bin_reliability(p: Predictions, bins: int = 10) -> pd.DataFrame:
    """Make the table behind a reliability diagram, of bins that hold as many images each.

    Returns a row per bin, the least sure answers first: confidence (the mean probability of the
    answers), and the share of right ones as from `scores.estimate_shares`.
    """
    confidence = p.probabilities.max(axis=1)
    number = np.argsort(np.argsort(confidence, kind="stable")) * bins // len(p)
    member = number[:, None] == np.arange(bins)
    table = estimate_shares((p.answers == p.labels)[:, None], member, p)
    return table.assign(confidence=pd.Series(confidence).groupby(number).mean())


def score_calibration(p: Predictions) -> dict[str, float]:
    """Score how well probabilities are calibrated.

    Returns log_loss (nats, 0 is perfect); calibration_error, the mean gap between confidence and
    share of right answers over bins of equal width (ECE; Guo et al. 2017, equation 3); and
    error_by_chance, that of labels drawn from the probabilities themselves.
    """
    chosen = _take_logarithm(p)[np.arange(len(p)), p.labels]
    edges = p.probabilities.cumsum(axis=1)[:, :-1]
    rng = np.random.default_rng(p.seed)
    drawn = [(rng.random((len(p), 1)) > edges).sum(axis=1) for _ in range(DRAWS)]
    return {
        "log_loss": float(-chosen.mean()),
        "calibration_error": _measure_gap(p, p.labels),
        "error_by_chance": float(np.mean([_measure_gap(p, labels) for labels in drawn])),
    }


def choose_threshold(positive: np.ndarray, scores: np.ndarray, sensitivity: float) -> float:
    """Choose the highest threshold that reaches a sensitivity; the answer is score >= threshold.

    Takes which images have what is looked for, bool (N,), at least one; their scores, float (N,),
    higher means more likely; and the wanted sensitivity, above 0, at most 1.
    """
    if not np.any(positive) or not 0 < sensitivity <= 1:
        raise ValueError(
            f"{np.sum(positive)} of {len(positive)} images are positive, wanted is at least one; "
            f"sensitivity is {sensitivity}, wanted is above 0 and at most 1"
        )
    found = np.sort(np.asarray(scores)[positive])[::-1]
    needed = int(np.ceil(sensitivity * len(found) - 1e-9))  # 0.9 * 10 is 9, whatever the rounding
    return float(found[needed - 1])


def choose_operating_points(validation: Predictions) -> pd.Series:
    """Choose the thresholds, 0 … 1, of `QUESTIONS` for `SENSITIVITIES` on the validation part.

    A question is left out where no image has what is looked for: it cannot be asked.
    """
    asked = {question: ask(question, validation) for question in QUESTIONS}
    thresholds = {
        (question, wanted): choose_threshold(positive, score, wanted)
        for question, (positive, score) in asked.items()
        for wanted in SENSITIVITIES
        if positive.any()
    }
    index = pd.MultiIndex.from_tuples(thresholds, names=["question", "wanted"])
    return pd.Series(thresholds.values(), index, dtype=float, name="threshold")


def judge_operating_points(thresholds: pd.Series, p: Predictions) -> pd.DataFrame:
    """Judge thresholds that were chosen on other images, calibrated alike.

    The interval is that of this very threshold: that another validation part would have led to
    another one is not in it. Returns the index (question, wanted, figure), with the figures
    sensitivity and specificity, and the columns of `scores.estimate_shares`.
    """
    hits, counted, index = [], [], []
    for (question, wanted), threshold in thresholds.items():
        positive, score = ask(question, p)
        hits += [score >= threshold, score < threshold]
        counted += [positive, ~positive]
        index += [(question, wanted, figure) for figure in FIGURES]
    hits, counted = (np.reshape(flags, (-1, len(p))).T.astype(bool) for flags in (hits, counted))
    shares = estimate_shares(hits, counted, p)
    shares.index = pd.MultiIndex.from_tuples(index, names=["question", "wanted", "figure"])
    return shares


def count_per_thousand(points: pd.DataFrame, prevalence: float) -> pd.DataFrame:
    """Count what `judge_operating_points` means for 1,000 images.

    Takes its table, and the prevalence: the share of images that have what is looked for, 0 … 1.
    Returns the index (question, wanted) and whole images: found, missed, false_alarms and
    rightly_cleared, 1,000 together; missed_at_worst and false_alarms_at_worst, at the lower ends of
    the intervals; ppv: the share of the alarms that are right.
    """
    table = points[["value", "low"]].unstack("figure", sort=False).astype(float)
    table = table.reindex(columns=pd.MultiIndex.from_product([["value", "low"], FIGURES]))
    value, worst = table["value"], 1 - table["low"]
    ill = 1000 * prevalence
    found, alarms = value["sensitivity"] * ill, (1 - value["specificity"]) * (1000 - ill)
    counts = {
        "found": found.round(),
        "missed": round(ill) - found.round(),
        "false_alarms": alarms.round(),
        "rightly_cleared": 1000 - round(ill) - alarms.round(),
        "missed_at_worst": (worst["sensitivity"] * ill).round(),
        "false_alarms_at_worst": (worst["specificity"] * (1000 - ill)).round(),
    }
    return pd.DataFrame(counts).astype("Int64").assign(ppv=found / (found + alarms))


def trace_selection(p: Predictions) -> pd.DataFrame:
    """Trace how right the answers are when only the most confident ones are given.

    Selective prediction (Geifman and El-Yaniv, NeurIPS 2017) by the highest probability.

    Returns a row per number of answered images, from 1 to N, the most confident first: share
    (0 … 1), accuracy, balanced_accuracy (mean recall of the classes among the answered) and
    classes (how many those are).
    """
    order = np.argsort(-p.probabilities.max(axis=1), kind="stable")
    truth = np.eye(len(p.classes))[p.labels[order]]
    is_right = (p.answers == p.labels)[order]
    images, hits = truth.cumsum(0), (truth * is_right[:, None]).cumsum(0)
    recall = np.divide(hits, images, out=np.zeros_like(hits), where=images > 0)
    classes, answered = (images > 0).sum(axis=1), np.arange(1, len(p) + 1)
    columns = {"share": answered / len(p), "accuracy": hits.sum(axis=1) / answered}
    columns["balanced_accuracy"] = recall.sum(axis=1) / classes
    return pd.DataFrame(columns | {"classes": classes})


def score_selection(p: Predictions) -> pd.DataFrame:
    """Read the curve of `trace_selection` at `ANSWERED_SHARES`, with intervals of the accuracy."""
    rank = np.argsort(np.argsort(-p.probabilities.max(axis=1), kind="stable"))
    numbers = np.array([max(1, round(share * len(p))) for share in ANSWERED_SHARES])
    shares = estimate_shares((p.answers == p.labels)[:, None], rank[:, None] < numbers, p)
    curve = trace_selection(p).iloc[numbers - 1].reset_index(drop=True)
    table = shares.join(curve[["balanced_accuracy", "classes"]])
    return table.set_axis(pd.Index(ANSWERED_SHARES, name="answered"))


def find_surest_errors(p: Predictions, images: int = 12) -> pd.DataFrame:
    """List the wrong answers, the most probable first, with the probability of the truth."""
    table = p.table[["image_id", "dx"]].assign(
        answer=np.array(p.classes)[p.answers],
        probability=p.probabilities.max(axis=1),
        probability_of_dx=p.probabilities[np.arange(len(p)), p.labels],
    )
    wrong = table[p.answers != p.labels].sort_values("image_id", kind="stable")
    return wrong.nlargest(images, "probability", keep="first").reset_index(drop=True)


def _measure_gap(p: Predictions, labels: np.ndarray) -> float:
    """Compute the expected calibration error against labels (N,)."""
    confidence = p.probabilities.max(axis=1)
    number = np.ceil(confidence * BINS).astype(int)
    gap = np.bincount(number, confidence - (p.answers == labels))
    return float(np.abs(gap).sum() / len(p))


def _take_logarithm(p: Predictions) -> np.ndarray:
    return np.log(np.clip(p.probabilities, SMALLEST_PROBABILITY, None))
