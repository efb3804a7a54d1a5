"""Calibration: how far probabilities can be taken at their word, and temperature scaling.

Works from labels and probabilities alone: a predictions.csv is enough, TensorFlow is not needed.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from helpers.runs.folder import Run, RunError, load_run

SMALLEST_PROBABILITY = 1e-12  # what a probability of 0 is taken for: its logarithm must be finite
TEMPERATURES = (0.05, 20.0)  # lowest and highest that are tried
DRAWS = 100  # sets of labels for the error by chance


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Fit the temperature of temperature scaling: least mean negative log-likelihood.

    The calibrated probabilities are softmax(log p / T) (Guo, Pleiss, Sun and Weinberger, On
    Calibration of Modern Neural Networks, ICML 2017, section 4.2). T above 1 makes the model less
    sure, below 1 surer; the order of the classes of an image stays. Fit it to the validation part
    only: fitted to the test, it flatters the model.

    Args:
        labels: int (N,), class indices 0 … K - 1, N at least 1.
        probabilities: float (N, K), 0 … 1.

    Returns:
        T, within `TEMPERATURES`; its lower end where every answer is right and sharper is better.

    Raises:
        ValueError: labels and probabilities do not belong together.
    """
    labels, logits = np.asarray(labels), _take_logarithm(probabilities)
    if not len(labels) or len(labels) != len(logits):
        raise ValueError(
            f"labels {labels.shape} and probabilities {logits.shape} do not belong together: wanted"
            " are (N,) and (N, classes) with N at least 1"
        )
    rows = np.arange(len(labels))

    def measure_loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    found = minimize_scalar(measure_loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the calibrated probabilities (N, K), softmax(log p / temperature).

    Args:
        probabilities: float (N, K), 0 … 1.
        temperature: above 0; 1 changes nothing.
    """
    return softmax(_take_logarithm(probabilities) / temperature, axis=1)


def adjust_prior(labels: np.ndarray, probabilities: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Adjust probabilities to classes that are all equally frequent, from validation images.

    Calibrated by temperature, divided by how probable the model finds each class on average (the
    prior that it learned, class weights included), and normalised: Saerens, Latinne and
    Decaestecker, Adjusting the outputs of a classifier to new a priori probabilities, Neural
    Computation 14, 2002. The most probable class is then the answer with the best balanced
    accuracy, as that of the calibrated probabilities is the one with the best accuracy (Menon et
    al., Long-tail learning via logit adjustment, ICLR 2021).

    Args:
        labels: int (V,), true classes of validation images.
        probabilities: float (V, K), what the model answered for them.
        others: float (N, K), what it answered for any images.

    Returns:
        float (N, K).
    """
    temperature = fit_temperature(labels, probabilities)
    prior = apply_temperature(probabilities, temperature).mean(axis=0)
    odds = apply_temperature(others, temperature) / np.maximum(prior, SMALLEST_PROBABILITY)
    return odds / odds.sum(axis=1, keepdims=True)


def calibrate_run(run: Run) -> tuple[pd.DataFrame, tuple[float, ...]]:
    """Calibrate a run's predictions with temperatures fitted to its validation part.

    In an ensemble of folds (predictions with a column `fold`) each fold gets a temperature of its
    own, from the validation images of that fold. Official test images, which are of no fold, get
    the mean of the calibrated probabilities of its members.

    Args:
        run: a finished run.

    Returns:
        The predictions with calibrated columns p_<class>, rows and other columns as they were, and
        the temperatures in the order of `run.model_paths`: one for a run that is no ensemble.

    Raises:
        RunError: naming the folds that have predictions but no validation images among them.
    """
    predictions = run.predictions.copy()
    columns = [f"p_{dx}" for dx in run.classes]
    folds = predictions.get("fold", pd.Series(0, predictions.index))
    is_validation = predictions["split"] == "val"
    found = folds.dropna().unique()
    if unfitted := sorted(set(found) - set(folds[is_validation])):
        raise RunError(
            f"{run.path}: no validation images to fit a temperature to"
            + (f" in fold {', '.join(map(str, unfitted))}" if "fold" in predictions else "")
            + "; execute the run again with a validation part"
        )
    temperatures = []
    for fold in found:
        rows = (folds == fold).fillna(False)
        validation = predictions[rows & is_validation]
        labels = validation["dx"].map(run.classes.index).to_numpy()
        temperatures.append(fit_temperature(labels, validation[columns].to_numpy()))
        predictions.loc[rows, columns] = apply_temperature(
            predictions.loc[rows, columns].to_numpy(), temperatures[-1]
        )
    if folds.isna().any():
        members = [calibrate_run(load_run(path.parent))[0] for path in run.model_paths]
        means = pd.concat(members).groupby("image_id")[columns].mean()
        joined = predictions.loc[folds.isna(), "image_id"]
        predictions.loc[folds.isna(), columns] = means.loc[joined].to_numpy()
    return predictions, tuple(temperatures)


def bin_reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Make the table behind a reliability diagram: how sure the answers are, how often right.

    The answer of an image is its most probable class, its confidence that probability (Guo et al.
    2017, section 2). The bins are of equal width, each with its upper edge.

    Args:
        labels: int (N,), class indices.
        probabilities: float (N, K), 0 … 1.
        bins: how many.

    Returns:
        A row per bin from 0 to 1: low and high (its edges), count (images), confidence and
        accuracy (their means, 0 … 1; nan in an empty bin).
    """
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = {
            name: np.bincount(number, weights=values, minlength=bins) / count
            for name, values in {"confidence": confidence, "accuracy": is_right}.items()
        }
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": count, **means})


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> float:
    """Return the mean gap between confidence and accuracy over the bins, weighted by images.

    0 is perfect; of the most probable class alone, equal-width bins (Naeini, Cooper and
    Hauskrecht, AAAI 2015; Guo et al. 2017, equation 3).

    Args:
        labels: int (N,), class indices.
        probabilities: float (N, K), 0 … 1.
        bins: of equal width.
    """
    table = bin_reliability(labels, probabilities, bins)
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float((gap * table["count"]).sum() / table["count"].sum())


def score_calibration(
    labels: np.ndarray, probabilities: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Score how well probabilities are calibrated.

    On few images even a perfect model shows an error: the last figure is the mean error over
    `DRAWS` sets of labels drawn from the probabilities themselves.

    Args:
        labels: int (N,), class indices.
        probabilities: float (N, K), rows sum to 1.
        seed: of the drawn labels.

    Returns:
        log_loss (nats, 0 is perfect), calibration_error (`expected_calibration_error`, 0 … 1) and
        error_by_chance.
    """
    chosen = _take_logarithm(probabilities)[np.arange(len(labels)), labels]
    edges = probabilities.cumsum(axis=1)[:, :-1]
    rng = np.random.default_rng(seed)
    drawn = [
        expected_calibration_error((rng.random((len(edges), 1)) > edges).sum(axis=1), probabilities)
        for _ in range(DRAWS)
    ]
    return {
        "log_loss": float(-chosen.mean()),
        "calibration_error": expected_calibration_error(labels, probabilities),
        "error_by_chance": float(np.mean(drawn)),
    }


def choose_threshold(positive: np.ndarray, scores: np.ndarray, sensitivity: float) -> float:
    """Choose the highest threshold that reaches a sensitivity; the answer is score >= threshold.

    Args:
        positive: bool (N,), which images have what is looked for; of the validation part, so that
            the test stays out of the choice.
        scores: float (N,), higher means more likely.
        sensitivity: wanted share of the positive images that are answered, above 0, at most 1.

    Returns:
        The threshold: one of the scores of the positive images.

    Raises:
        ValueError: no positive image, or a sensitivity out of range.
    """
    positive = np.asarray(positive, dtype=bool)
    problems = []
    if not positive.any():
        problems.append(
            f"none of {len(positive)} images is positive: a threshold needs at least one"
        )
    if not 0 < sensitivity <= 1:
        problems.append(f"sensitivity is {sensitivity}, wanted is above 0 and at most 1")
    if problems:
        raise ValueError("; ".join(problems))
    found = np.sort(np.asarray(scores)[positive])[::-1]
    needed = int(np.ceil(sensitivity * len(found) - 1e-9))  # 0.9 * 10 is 9, whatever the rounding
    return float(found[needed - 1])


def _take_logarithm(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(np.asarray(probabilities, dtype=float), SMALLEST_PROBABILITY, None))
