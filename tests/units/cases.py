"""Predictions made up for the tests of the evaluation."""

import numpy as np
import pandas as pd

from helpers.evaluation.predictions import Predictions, make_predictions


def predict(labels, probabilities, classes, groups=None, **columns) -> Predictions:
    """Make predictions of labels (positions in classes); each image is a lesion unless told."""
    names = [f"i{k:05}" for k in range(len(labels))]
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    dx = np.array(list(classes))[np.asarray(labels)]
    table = {"image_id": names, "lesion_id": groups, "group": groups, "split": "test", "dx": dx}
    return make_predictions(pd.DataFrame(table | columns), probabilities, tuple(classes))


def draw_case(seed, images=300, classes="abcd", coarse=False, **columns) -> Predictions:
    """Draw labels that hold every class, and probabilities that lean to them."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(len(classes)), rng.integers(0, len(classes), images - len(classes))]
    probabilities = rng.dirichlet(np.ones(len(classes)), images)
    probabilities[np.arange(images), labels] += 0.5 * rng.random(images)
    probabilities /= probabilities.sum(1, keepdims=True)
    probabilities = probabilities.round(1) if coarse else probabilities
    return predict(labels, probabilities, classes, rng.integers(0, images // 2, images), **columns)
