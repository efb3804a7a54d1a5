"""Novelty: how far an image is from anything that a model was trained on.

Two distances are measured to the training images, in the features that the net's last layer
answers from and in simple statistics of colour and brightness; the larger one counts. A net keeps
of an image what tells its classes apart, and may well ignore what makes noise or a page of text
strange: the statistics see that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.stats import binomtest
from sklearn.covariance import LedoitWolf

import helpers
from helpers.data import images, sample
from helpers.data import reading as dataset
from helpers.evaluation import scores
from helpers.nets.patient import load_image_model
from helpers.runs.folder import Run, RunError, replace_file

NOVELTY = "novelty.npz"
FALSE_ALARM_RATE = 0.05
BATCH = 256  # images per call of the net while a detector is fitted


@dataclass(frozen=True)
class Distance:
    """Mahalanobis distance to the nearest class, with one covariance for all classes.

    Lee, Lee, Lee and Shin, A Simple Unified Framework for Detecting Out-of-Distribution Samples,
    NeurIPS 2018, section 2.1; the covariance is shrunk as by Ledoit and Wolf, A well-conditioned
    estimator for large-dimensional covariance matrices, 2004.

    Attributes:
        mean, scale: float (D,), by which features are standardised.
        centres: float (K, D), the means of the classes, standardised.
        precision: float (D, D), the inverse covariance about them.
    """

    mean: np.ndarray
    scale: np.ndarray
    centres: np.ndarray
    precision: np.ndarray

    def measure(self, features: np.ndarray) -> np.ndarray:
        """Return the distances (N,) of features (N, D)."""
        offsets = (features - self.mean) / self.scale - self.centres[:, None]
        squares = np.einsum("kni,ij,knj->kn", offsets, self.precision, offsets, optimize=True)
        return np.sqrt(np.maximum(squares.min(axis=0), 0))


@dataclass(frozen=True)
class Detector:
    """What `fit_detector` learned.

    Attributes:
        statistics, features: the two distances.
        borders: float (2,), what each distance is divided by: the validation quantile that leaves
            it half of the false alarms.
        validation: float (V,), scores of the validation images.
        test: float (T,), scores of the test images, and test_groups, their lesion groups (T,), and
            test_labels, their classes (T,).
    """

    statistics: Distance
    features: Distance
    borders: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    test_groups: np.ndarray
    test_labels: np.ndarray

    def score(self, pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Score images: float (N,); 5 % of the validation images are above about 1.

        Args:
            pixels: uint8 (N, height, width, 3), of the size that the net takes.
            features: float (N, D), as `make_reader` gives them.
        """
        return _combine(self.statistics, self.features, self.borders, pixels, features)

    def choose_threshold(self, rate: float = FALSE_ALARM_RATE) -> float:
        """Choose the score above which at most a share `rate` of validation images lies.

        The quantile of split conformal prediction (Vovk et al. 2005; Bates et al., Testing for
        outliers with conformal p-values, 2023): a new image of the same kind is above it with a
        probability of at most `rate`. Where there are too few validation images for that rate,
        it is their highest score.

        Args:
            rate: the false-alarm rate, 0 … 1.
        """
        place = int(np.ceil((1 - rate) * (len(self.validation) + 1)))
        return float(np.sort(self.validation)[min(max(place, 1), len(self.validation)) - 1])

    def measure_false_alarms(self, rate: float = FALSE_ALARM_RATE, seed: int = 0) -> dict:
        """Measure the share of test images above the threshold, with its 95 % interval.

        The interval is found by drawing lesions with replacement (`scores.draw_lesions`).

        Returns:
            value, low and high, each 0 … 1.
        """
        flagged = self.test > self.choose_threshold(rate)
        draws = [
            weights @ flagged / weights.sum(axis=1)
            for weights in scores.draw_lesions(self.test_labels, self.test_groups, 1000, seed)
        ]
        low, high = np.quantile(np.concatenate(draws), [0.025, 0.975])
        return {"value": float(flagged.mean()), "low": float(low), "high": float(high)}


def measure_statistics(pixels: np.ndarray) -> np.ndarray:
    """Measure colour, brightness and contrast of images.

    Args:
        pixels: uint8 (N, height, width, 3).

    Returns:
        float32 (N, 16): mean of red, green and blue; logarithm of their standard deviations and of
        the mean step between neighbouring pixels; five quantiles of the brightness; the spread of
        red - green and green - blue; mean and spread of the saturation (highest - lowest colour).
    """
    # Plane by plane, each in one piece of memory: five times as fast as colours side by side.
    planes = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)).astype(np.float32) / 255
    flat = planes.reshape(3, len(pixels), -1)
    brightness = np.sort(flat.mean(axis=0), axis=1)
    places = np.rint(np.array([0.05, 0.25, 0.5, 0.75, 0.95]) * (flat.shape[2] - 1)).astype(int)
    saturation = flat.max(axis=0) - flat.min(axis=0)
    steps = sum(
        np.abs(np.diff(planes, axis=axis)).reshape(3, len(pixels), -1).mean(axis=2).mean(axis=0)
        for axis in (2, 3)
    )
    columns = [
        *flat.mean(axis=2),
        *np.log(flat.std(axis=2) + 0.01),  # a grey level or two: a plain image has no spread
        np.log(steps + 0.001),
        *brightness[:, places].T,
        *np.diff(flat, axis=0).std(axis=2),
        saturation.mean(axis=1),
        saturation.std(axis=1),
    ]
    return np.stack(columns, axis=1)


def fit_distance(features: np.ndarray, labels: np.ndarray) -> Distance:
    """Fit a distance to the training images.

    Args:
        features: float (N, D).
        labels: int (N,), class indices; every class must occur.
    """
    features = np.asarray(features, dtype=float)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-6 * np.abs(mean) + 1e-12, scale, 1)  # units that never fire
    standard = (features - mean) / scale
    centres = np.stack([standard[labels == k].mean(axis=0) for k in np.unique(labels)])
    nearest = centres[np.searchsorted(np.unique(labels), labels)]
    precision = LedoitWolf(assume_centered=True).fit(standard - nearest).precision_
    return Distance(mean, scale, centres, precision)


def fit_detector(
    pixels: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    parts: np.ndarray,
    groups: np.ndarray,
) -> Detector:
    """Fit a detector: distances on the training part, borders on the validation part.

    Args:
        pixels: uint8 (N, height, width, 3).
        features: float (N, D).
        labels: int (N,), class indices.
        parts: str (N,), train, val or test.
        groups: (N,), lesion groups.
    """
    train, validation, test = (parts == part for part in ("train", "val", "test"))
    statistics = measure_statistics(pixels)
    distances = [fit_distance(x[train], labels[train]) for x in (statistics, features)]
    borders = np.array(
        [
            np.quantile(distance.measure(x[validation]), 1 - FALSE_ALARM_RATE / 2)
            for distance, x in zip(distances, (statistics, features), strict=True)
        ]
    )
    found = _combine(*distances, borders, pixels, features)
    return Detector(*distances, borders, found[validation], found[test], groups[test], labels[test])


def load_detector(run: Run, data_dir: str = "") -> Detector:
    """Load a run's detector, after fitting it where it is missing or of another model.

    The fit is kept as novelty.npz in the run's folder: from then on no training image is needed.

    Args:
        run: a finished run with one model.
        data_dir: the folder of the run's images; by default the one that the run names, from here
            or from the project's folder, or the drawn sample.

    Raises:
        RunError: novelty.npz is missing and the images are not found, or are not the run's.
    """
    path = run.path / NOVELTY
    if path.is_file():
        with np.load(path) as saved:
            if json.loads(str(saved["files"])) == run.metrics["files"]:
                return _unpack(saved)
    detector = fit_run(run, data_dir)
    files = json.dumps(run.metrics["files"])
    arrays = {"files": files} | _pack(detector)
    replace_file(path, lambda partial: np.savez_compressed(partial, **arrays))
    return detector


def fit_run(run: Run, data_dir: str = "") -> Detector:
    """Fit a detector to a run's model, from the run's images; see `load_detector`.

    A model with REFIT was trained on the validation images too. Its borders and threshold then
    come from half of the test lesions, and its false alarms are counted on the other half.
    """
    table = _read_images_table(run, data_dir)
    model = load_image_model(run.model_paths[0])
    project = Path(helpers.__file__).parents[1]
    pixels = images.load_images(table, model.input_shape[1:3], project / "data/cache")
    # What the run has no predictions for is what its model was trained on.
    held_out = run.predictions[run.predictions["split"] != "official"].set_index("image_id")
    parts = table["image_id"].map(held_out["split"]).fillna("train").to_numpy(str)
    labels, groups = table["label"].to_numpy(), table["group"].to_numpy(str)
    if run.metrics["parameters"].get("REFIT"):
        parts = _halve_test(parts, groups)
    features, _ = read_features(make_reader(model), pixels)
    return fit_detector(pixels, features, labels, parts, groups)


def make_reader(model: keras.Model) -> tf.types.experimental.PolymorphicFunction:
    """Compile a net into a function of pixels: features of its last hidden layer, probabilities.

    Returns:
        A function: uint8 (N, height, width, 3) → (N, D), (N, K); N may change from call to call.
    """
    both = keras.Model(model.inputs, [model.layers[-1].input, model.outputs[0]])
    signature = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    return tf.function(lambda pixels: both(pixels, training=False), input_signature=[signature])


def read_features(reader, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 features (N, D) and probabilities (N, K) of all images."""
    found = [reader(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    features, probabilities = zip(*found, strict=True)
    return tuple(
        np.concatenate([tf.cast(x, tf.float32).numpy() for x in part])
        for part in (features, probabilities)
    )


def measure_rate(flagged: np.ndarray) -> dict[str, float]:
    """Return the share of independent images that are flagged, with Wilson's 95 % interval."""
    found = binomtest(int(np.sum(flagged)), len(flagged))
    interval = found.proportion_ci(method="wilson")
    return {"value": found.statistic, "low": interval.low, "high": interval.high}


def _combine(
    statistics: Distance,
    features: Distance,
    borders: np.ndarray,
    pixels: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    # In batches: the statistics need several times the memory of the pixels.
    by_image = np.concatenate(
        [
            statistics.measure(measure_statistics(pixels[i : i + BATCH]))
            for i in range(0, len(pixels), BATCH)
        ]
    )
    return np.maximum(by_image / borders[0], features.measure(values) / borders[1])


def _halve_test(parts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Count the validation part (N,) as train, and half of the test's groups as validation."""
    tested = np.random.default_rng(0).permutation(np.unique(groups[parts == "test"]))
    first_half = (parts == "test") & np.isin(groups, tested[: len(tested) // 2])
    return np.select([first_half, parts == "val"], ["val", "train"], parts)


def _read_images_table(run: Run, data_dir: str) -> pd.DataFrame:
    """Read the table of a run's images, and check that it is the run's."""
    given = data_dir or run.metrics["parameters"]["DATA_DIR"]
    project = Path(helpers.__file__).parents[1]
    if not given:
        folder = sample.draw_sample(project / "data/sample")
    else:
        places = [Path(given), project / given]
        folder = next((place for place in places if place.is_dir()), None)
    remedy = (
        "give the folder of the images it was trained on (--data-dir), or answer without the "
        "warning of images unlike them (--no-novelty)"
    )
    if folder is None:
        raise RunError(
            f"{run.path / NOVELTY} is missing, and so is {given}, from which it is made: {remedy}"
        )
    table = dataset.read_dataset(folder)
    named = set(run.predictions.loc[run.predictions["split"] != "official", "image_id"])
    unknown = named - set(table["image_id"])
    if unknown or len(table) != run.metrics["data"]["images"]:
        raise RunError(
            f"{run.path / NOVELTY} is missing, and {folder} does not hold the images of the run: "
            f"{len(table):,} images instead of {run.metrics['data']['images']:,}, {len(unknown)} "
            f"of its {len(named)} validation and test images absent: {remedy}"
        )
    return table


def _pack(detector: Detector) -> dict[str, np.ndarray]:
    """Name a detector's arrays for a file."""
    arrays = {}
    for name, value in vars(detector).items():
        parts = vars(value) if isinstance(value, Distance) else {"": value}
        arrays |= {f"{name}.{part}": array for part, array in parts.items()}
    return arrays


def _unpack(saved: Mapping[str, np.ndarray]) -> Detector:
    fields = {}
    for key in saved.keys() - {"files"}:
        name, part = key.split(".")
        fields.setdefault(name, {})[part] = saved[key]
    return Detector(**{n: Distance(**f) if "centres" in f else f[""] for n, f in fields.items()})
