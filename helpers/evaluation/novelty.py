"""Novelty: how far an image is from the images that a net was trained on.

A check for gross errors, such as noise, a plain wall or a page of text, not a test of whether an
image may be trusted: a photograph by telephone, or a rare disease, may well pass.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from helpers.data import images, reading, sample
from helpers.data.files import InputError, name_some, replace_file, resolve_path
from helpers.evaluation.predictions import Predictions
from helpers.evaluation.scores import estimate_shares

NOVELTY = "novelty.npz"
FALSE_ALARM_RATE = 0.05
COMPONENTS = 16  # of the features, at most: as good on photographs by telephone as all of them
FEWEST_PER_CLASS = 3  # training images, on average, for a centre for each class
BATCH = 256  # images per call of the net
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Detector:
    """A Mahalanobis distance to the nearest class, and the distances of held-out images.

    One covariance serves all classes (Lee et al., NeurIPS 2018, section 2.1), shrunk as by Ledoit
    and Wolf (2004). The net's features and simple statistics of colour and brightness are measured
    together: a net may ignore what makes noise or a wall strange.

    `components`, float (F, C), are the principal ones of the net's features. They and the
    statistics are standardised by mean and scale, float (D,). `centres`, float (K, D), are the
    means of the classes that occur; precision, float (D, D), is the inverse covariance about them;
    validation and test are the distances of these parts, in the order of the run's predictions.
    """

    components: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    centres: np.ndarray
    precision: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def measure(self, pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return the distances (N,) of images (N, height, width, 3) with features (N, F)."""
        joined = join_statistics(pixels, features @ self.components)
        standard = (joined - self.mean) / self.scale
        offsets = standard - self.centres[:, None]
        squares = np.einsum("kni,ij,knj->kn", offsets, self.precision, offsets, optimize=True)
        return np.sqrt(squares.min(axis=0).clip(0))

    def choose_threshold(self, rate: float = FALSE_ALARM_RATE) -> float:
        """Choose the distance that about a share `rate` (0 … 1) of images like these exceeds.

        The quantile of split conformal prediction (Bates et al., 2023), whose promise is for
        independent images. Ours come several per lesion: see `measure_false_alarms`.
        """
        place = int(np.ceil((1 - rate) * (len(self.validation) + 1)))
        return float(np.sort(self.validation)[: max(place, 1)][-1])

    def measure_false_alarms(self, test: Predictions, rate: float = FALSE_ALARM_RATE) -> pd.Series:
        """Return value, low and high of the share of the run's test images that are warned of."""
        flagged = (self.test > self.choose_threshold(rate))[:, None]
        return estimate_shares(flagged, np.ones_like(flagged), test).iloc[0]


def fit_detector(
    pixels: np.ndarray, features: np.ndarray, labels: np.ndarray, parts: dict[str, np.ndarray]
) -> Detector:
    """Fit a detector to images, their features and classes (N,), given the rows of each part."""
    train = parts["train"]
    found = PCA(min(COMPONENTS, *features[train].shape)).fit(features[train]).components_.T
    joined, labels = join_statistics(pixels[train], features[train] @ found), labels[train]
    mean, scale = joined.mean(axis=0), joined.std(axis=0)
    scale = np.where(scale > 1e-6 * np.abs(mean) + 1e-12, scale, 1)  # units that never fire
    standard = (joined - mean) / scale
    occurring, labels = np.unique(labels, return_inverse=True)
    if len(labels) < FEWEST_PER_CLASS * len(occurring):  # one centre for all
        occurring, labels = [0], 0 * labels
    centres = np.stack([standard[labels == k].mean(axis=0) for k in range(len(occurring))])
    precision = LedoitWolf(assume_centered=True).fit(standard - centres[labels]).precision_
    fitted = found, mean, scale, centres, precision
    detector = Detector(*fitted, np.empty(0), np.empty(0))
    held_out = [detector.measure(pixels[parts[x]], features[parts[x]]) for x in ("val", "test")]
    return Detector(*fitted, *held_out)


def load_detector(run, data_dir: str = "") -> Detector:
    """Load a run's detector; where it is missing, fit it and keep it as novelty.npz in its folder.

    After that no training image is needed. `data_dir` is that of `read_run_images`.
    """
    path, files = run.path / NOVELTY, json.dumps(run.metrics["files"])
    if path.is_file():
        with np.load(path) as saved:
            if str(saved["files"]) == files:
                return Detector(**{field.name: saved[field.name] for field in fields(Detector)})
    from helpers.nets.patient import load_image_model  # needs TensorFlow

    table, model = read_run_images(run, data_dir), load_image_model(run.model_path)
    pixels = images.load_images(table, model.input_shape[1:3])
    place = pd.Series(range(len(table)), table["image_id"])
    held_out = {part: run.predictions.part(part).table["image_id"] for part in ("val", "test")}
    parts = {part: place[image_ids].to_numpy() for part, image_ids in held_out.items()}
    parts["train"] = np.setdiff1d(place, np.concatenate([*parts.values()]))
    features, _ = read_features(make_reader(model), pixels)
    detector = fit_detector(pixels, features, table["label"].to_numpy(), parts)
    arrays = {"files": files} | vars(detector)
    with suppress(OSError):  # a folder that cannot be written: it is fitted again next time
        replace_file(path, lambda partial: np.savez_compressed(partial, **arrays))
    return detector


def read_run_images(run, data_dir: str = "") -> pd.DataFrame:
    """Read the table of a run's images again, and check that it is the run's.

    `data_dir` is the folder of the images; "": the one that the run names, or the drawn sample.
    """
    given = data_dir or run.metrics["parameters"]["DATA_DIR"]
    folder = resolve_path(given) if given else sample.draw_sample()
    if not folder.is_dir():
        problem = "the folder of the images that the run was trained on is not there"
        raise InputError(folder, [f"{problem}: give it (predict: --data-dir, or --no-novelty)"])
    table = reading.read_dataset(folder).reset_index(drop=True)
    named = run.predictions.table.query("split != 'official'")["image_id"]
    missing, wanted = sorted(set(named) - set(table["image_id"])), run.metrics["data"]["images"]
    if missing or len(table) != wanted:
        problem = f"not the images of {run.path}: {len(table):,} instead of {wanted:,}"
        problem += f", without {name_some(missing)}" if missing else ""
        raise InputError(folder, [f"{problem}: give its folder (predict: --data-dir)"])
    return table


def make_reader(model) -> Callable:
    """Compile a net into a function of pixels: features of its last hidden layer, probabilities.

    Returns a function: uint8 (N, height, width, 3) → (N, D), (N, K); N may change between calls.
    """
    import keras
    import tensorflow as tf

    both = keras.Model(model.inputs, [model.layers[-1].input, model.outputs[0]])
    signature = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    return tf.function(lambda pixels: both(pixels, training=False), input_signature=[signature])


def read_features(reader: Callable, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) and probabilities (N, K) of images, both float32."""
    found = [reader(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    return tuple(
        np.concatenate([x.numpy().astype(np.float32) for x in part])
        for part in zip(*found, strict=True)
    )


def join_statistics(pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Put 16 statistics of colour and brightness (`measure_statistics`) beside features (N, D)."""
    starts = range(0, len(pixels), BATCH)  # in batches: they need several times the memory
    found = [measure_statistics(pixels[i : i + BATCH]) for i in starts]
    return np.concatenate([np.concatenate(found), features], axis=1, dtype=float)


def measure_statistics(pixels: np.ndarray) -> np.ndarray:
    """Measure colour, brightness and contrast of images, uint8 (N, height, width, 3).

    Returns float32 (N, 16): mean of red, green and blue; logarithm of their standard deviations and
    of the mean step between neighbouring pixels; five quantiles of the brightness; the spread of
    red - green and green - blue; mean and spread of the saturation (highest - lowest colour).
    """
    # Plane by plane, each in one piece of memory: five times as fast as colours side by side.
    planes = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)).astype(np.float32) / 255
    flat = planes.reshape(3, len(pixels), -1)
    brightness = np.sort(flat.mean(axis=0), axis=1)
    places = np.rint(np.array(QUANTILES) * (flat.shape[2] - 1)).astype(int)
    saturation = flat.max(axis=0) - flat.min(axis=0)
    steps = sum(np.abs(np.diff(planes, axis=axis)).mean(axis=(0, 2, 3)) for axis in (2, 3))
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
