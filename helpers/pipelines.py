"""tf.data pipelines over an array of pixels: shuffled and varied for training, in order else."""

import math
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def augmentation_layers() -> list:
    """Make the Keras layers that vary a training image: geometry first, then light.

    Lesions have no upright position, so flips and all rotations are free; zoom, shift,
    brightness and contrast are mild. Edges are filled by reflection.
    """
    options = {"dtype": "float32"}
    return [
        layers.RandomFlip("horizontal_and_vertical", **options),
        layers.RandomRotation(0.5, fill_mode="reflect", **options),
        layers.RandomZoom((-0.15, 0.15), fill_mode="reflect", **options),
        layers.RandomTranslation(0.08, 0.08, fill_mode="reflect", **options),
        layers.RandomBrightness(0.1, value_range=(0, 255), **options),
        layers.RandomContrast(0.15, value_range=(0, 255), **options),
    ]


def training_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epochs: range,
    augment: bool = False,
) -> tf.data.Dataset:
    """Make the shuffled training pipeline over a (memory-mapped) array.

    What a batch holds depends only on the seed, the epoch and its position, so that a run
    resumed at an epoch sees what it would have seen. All epochs come from one dataset: give
    `fit` `steps_per_epoch=count_steps(len(rows), batch_size)`.

    Args:
        pixels: uint8 (N, height, width, 3); rows are read when their batch is made.
        labels: int (N,).
        rows: int (M,), which of the N belong to the training part.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        seed: of the order and of the augmentation.
        epochs: the epochs to deliver, e.g. range(0, 20).
        augment: vary the images by `augmentation_layers`.

    Returns:
        A dataset of (uint8 (batch, height, width, 3), int32 (batch,)).
    """
    steps = count_steps(len(rows), batch_size)

    def batches() -> Iterator[tuple]:
        for epoch in epochs:
            order = np.random.default_rng([seed, epoch]).permutation(rows)
            for step in range(steps):
                chosen = order[step * batch_size : (step + 1) * batch_size]
                number = np.array([seed, epoch * steps + step]) % 2**31
                yield pixels[chosen], labels[chosen].astype(np.int32), number.astype(np.int32)

    number = tf.TensorSpec((2,), tf.int32)
    data = tf.data.Dataset.from_generator(
        batches, output_signature=(*_batch_signature(pixels), number)
    )
    variations = augmentation_layers() if augment else []

    def vary(images: tf.Tensor, truth: tf.Tensor, number: tf.Tensor) -> tuple:
        if not variations:
            return images, truth
        images, draws = tf.cast(images, tf.float32), _BatchSeed(number)
        for layer in variations:
            change = layer.get_random_transformation(images, training=True, seed=draws)
            images = layer.transform_images(images, change, training=True)
        return tf.cast(tf.round(tf.clip_by_value(images, 0, 255)), tf.uint8), truth

    return data.map(vary, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray, batch_size: int
) -> tf.data.Dataset:
    """Make the pipeline for validation and prediction: rows in order, unchanged.

    Args and returns as for `training_batches`.
    """

    def batches() -> Iterator[tuple]:
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            yield pixels[chosen], labels[chosen].astype(np.int32)

    data = tf.data.Dataset.from_generator(batches, output_signature=_batch_signature(pixels))
    steps = tf.data.experimental.assert_cardinality(count_steps(len(rows), batch_size))
    return data.apply(steps).prefetch(tf.data.AUTOTUNE)


def count_steps(images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of `images` images."""
    return math.ceil(images / batch_size)


def _batch_signature(pixels: np.ndarray) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    images = tf.TensorSpec((None, *pixels.shape[1:]), tf.uint8)
    return images, tf.TensorSpec((None,), tf.int32)


class _BatchSeed(keras.random.SeedGenerator):
    """Seeds for the layers of one batch, from the batch's number instead of a variable.

    Keras' own generator counts calls in a variable: prefetching moves it on by an unknown
    number, so a resumed run could not go on with the same draws.
    """

    def __init__(self, number: tf.Tensor):
        self.number, self.draws = number, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        self.draws += 1
        return self.number + tf.constant([self.draws * 7919, 0], self.number.dtype)
