"""tf.data pipelines over an array of pixels: shuffled and varied for training, in order else."""

import math
from collections.abc import Iterator

import cv2
import keras
import numpy as np
import tensorflow as tf

from helpers.nets.patient import drop_fields

ZOOM, STRETCH, SHIFT = 0.15, 0.075, 0.08  # at most: logarithms of factors; share of a side
CONTRAST, TINT, LIGHT, CAST = 0.15, 0.05, 15.0, 7.5  # at most: logarithms; grey levels
SHARP = 0.5  # share of the training images that are moved by whole pixels only
DROP = 0.2  # share of the patients' fields that are dropped in training


def vary_images(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Vary training images at random: geometry, then light.

    Lesions have no upright position, so mirroring and all rotations are free; zoom, stretching,
    shift, contrast, brightness and the colour of the light are mild. Turning, zooming and shifting
    are one resampling, since each one blurs: small images cannot afford three. Half of the images
    are not resampled at all, but turned by quarters and shifted by whole pixels: the net is asked
    for sharp images, and should learn from some. What comes in from beyond the edge is the mirror
    image of what lies inside it.

    Args:
        images: uint8 or float (N, height, width, 3), 0 … 255.
        seed: int32 (2,); equal seeds give equal images.

    Returns:
        float32 (N, height, width, 3), 0 … 255, rounded.
    """
    images = tf.cast(images, tf.float32)
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    draws = tf.random.stateless_uniform((15, count), seed, -1, 1)
    transforms = _draw_transforms(draws[:6], draws[14] < 2 * SHARP - 1, height, width)
    images = keras.ops.image.affine_transform(images, transforms, fill_mode="reflect")
    mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
    contrast, light = draws[6][:, None], draws[7][:, None]
    tint, cast = tf.transpose(draws[8:11]), tf.transpose(draws[11:14])
    gain = tf.exp(CONTRAST * contrast + TINT * tint)[:, None, None]
    shift = (LIGHT * light + CAST * cast)[:, None, None]
    return tf.round(tf.clip_by_value((images - mean) * gain + mean + shift, 0, 255))


def _draw_transforms(draws: tf.Tensor, sharp: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Turn six uniform draws per image, -1 … 1, into affine transforms (N, 8) about the centre.

    Those of the images that are to stay `sharp`, bool (N,), bring pixels onto pixels.
    """
    angle, mirror, zoom, stretch, x_shift, y_shift = tf.unstack(draws)
    angle = np.pi * tf.where(sharp, tf.round(2 * angle) / 2, angle)
    side = tf.sign(mirror)
    y_scale = tf.where(sharp, 1.0, tf.exp(ZOOM * zoom))
    x_scale = tf.where(sharp, 1.0, y_scale * tf.exp(STRETCH * stretch))
    a, b = tf.cos(angle) * x_scale * side, -tf.sin(angle) * y_scale
    c, d = tf.sin(angle) * x_scale * side, tf.cos(angle) * y_scale
    x, y = (width - 1) / 2, (height - 1) / 2
    right = x - a * x - b * y + SHIFT * width * x_shift
    down = y - c * x - d * y + SHIFT * height * y_shift
    right, down = (tf.where(sharp, tf.round(shift), shift) for shift in (right, down))
    zero = tf.zeros_like(a)
    return tf.stack([a, b, right, c, d, down, zero, zero], axis=1)


def turn_images(pixels: np.ndarray, view: int) -> np.ndarray:
    """Make one of the eight views of the dihedral group: quarter turns, as they are and mirrored.

    A lesion has no upright position, so all eight are the same case. Where height and width
    differ, the turned views are squashed into the same shape: that is what `images.read_image`
    makes of a photograph taken with the camera held the other way, and nothing is cut off.

    Args:
        pixels: uint8 (N, height, width, 3).
        view: 0 … 7; 0 leaves the images as they are.

    Returns:
        uint8 (N, height, width, 3).
    """
    height, width = pixels.shape[1:3]
    if view & 4:
        pixels = np.ascontiguousarray(pixels.swapaxes(1, 2))
        if height != width:
            pixels = np.stack(
                [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in pixels]
            )
    return pixels[:, :: -1 if view & 2 else 1, :: -1 if view & 1 else 1]


def training_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epochs: range,
    augment: bool = False,
    fields: np.ndarray | None = None,
    devices: int = 1,
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
        augment: vary the images by `vary_images`.
        fields: float32 (N, D), what is known of the patients (`fields.encode_fields`); some of it
            is dropped at random (`fields.drop_fields`).
        devices: that share a batch (`batch_size` is a multiple). An epoch that they cannot share
            evenly repeats its first images, fewer than `devices`: each device then has as much to
            do, and never an empty part, which oneDNN's pooling does not survive.

    Returns:
        A dataset of (images, int32 (batch,)); images are uint8 (batch, height, width, 3), and
        with fields a dict of these as "image" and of "fields", float32 (batch, D).
    """
    steps = count_steps(len(rows), batch_size)
    shared = math.ceil(len(rows) / devices) * devices

    def batches() -> Iterator[tuple]:
        for epoch in epochs:
            order = np.random.default_rng([seed, epoch]).permutation(rows)
            order = np.resize(order, shared)
            for step in range(steps):
                chosen = order[step * batch_size : (step + 1) * batch_size]
                rng = np.random.default_rng([seed, epoch, step])
                known = None if fields is None else drop_fields(fields[chosen], DROP, rng)
                number = np.array([seed, epoch * steps + step]) % 2**31
                yield (
                    _join_inputs(pixels[chosen], known),
                    labels[chosen].astype(np.int32),
                    number.astype(np.int32),
                )

    number = tf.TensorSpec((2,), tf.int32)
    data = tf.data.Dataset.from_generator(
        batches, output_signature=(*_batch_signature(pixels, fields), number)
    )

    def vary(inputs, truth: tf.Tensor, number: tf.Tensor) -> tuple:
        if not augment:
            return inputs, truth
        images = inputs if fields is None else inputs["image"]
        images = tf.cast(vary_images(images, number), tf.uint8)
        return _join_inputs(images, None if fields is None else inputs["fields"]), truth

    return data.map(vary, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    fields: np.ndarray | None = None,
    view: int = 0,
    devices: int = 1,
) -> tf.data.Dataset:
    """Make the pipeline for validation and prediction: rows in order, each once, unchanged.

    Args and returns as for `training_batches`, but for `view`: which of the eight views of the
    images to make, see `turn_images`.

    Raises:
        ValueError: too few rows for so many devices.
    """
    parts = cut_batches(rows, batch_size, devices)

    def batches() -> Iterator[tuple]:
        for chosen in parts:
            known = None if fields is None else fields[chosen]
            images = turn_images(pixels[chosen], view)
            yield _join_inputs(images, known), labels[chosen].astype(np.int32)

    data = tf.data.Dataset.from_generator(
        batches, output_signature=_batch_signature(pixels, fields)
    )
    steps = tf.data.experimental.assert_cardinality(len(parts))
    return data.apply(steps).prefetch(tf.data.AUTOTUNE)


def cut_batches(rows: np.ndarray, batch_size: int, devices: int = 1) -> list[np.ndarray]:
    """Cut rows into batches that several devices can share; the last one may be smaller.

    A batch of m is shared out in parts of ceil(m / devices), as TensorFlow does it. The first
    batch gives equal parts, else Keras' `evaluate` fails; none gives an empty part. Rows that
    cannot be shared evenly form, with others, a last batch of their own.

    Args and errors as for `evaluation_batches`.
    """
    uneven = len(rows) % devices
    last = devices * (devices - 1) + uneven if uneven else 0
    if uneven and len(rows) <= last:
        raise ValueError(
            f"{len(rows)} images are too few for {devices} devices: take {last + devices} images, "
            "or show TensorFlow fewer GPUs with the environment variable CUDA_VISIBLE_DEVICES"
        )
    even = len(rows) - last
    return np.split(rows, [*range(batch_size, even, batch_size), *([even] if last else [])])


def predict_rows(
    model: keras.Model,
    pixels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    views: int = 1,
    fields: np.ndarray | None = None,
) -> np.ndarray:
    """Answer for rows of the array, averaged over views.

    Args:
        model: gives probabilities (N, K).
        pixels, rows, batch_size, fields: as for `training_batches`.
        views: 1, or 8 for test-time averaging over all turned and mirrored views.

    Returns:
        float32 (M, K), in the order of the rows.
    """
    truth = np.zeros(len(pixels), np.int32)  # nobody looks at it
    options = {"fields": fields, "devices": model.distribute_strategy.num_replicas_in_sync}
    answers = [
        model.predict(
            evaluation_batches(pixels, truth, rows, batch_size, view=view, **options), verbose=0
        )
        for view in range(views)
    ]
    return np.mean(answers, axis=0)


def count_steps(images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of `images` images."""
    return math.ceil(images / batch_size)


def _join_inputs(images, fields):
    return images if fields is None else {"image": images, "fields": fields}


def _batch_signature(pixels: np.ndarray, fields: np.ndarray | None) -> tuple:
    known = None if fields is None else tf.TensorSpec((None, fields.shape[1]), tf.float32)
    images = tf.TensorSpec((None, *pixels.shape[1:]), tf.uint8)
    return _join_inputs(images, known), tf.TensorSpec((None,), tf.int32)
