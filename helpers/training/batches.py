"""tf.data pipelines over an array of pixels: shuffled and varied for training, in order else.

Several GPUs (`fit.set_up`) share a batch: it then holds batch_size images for each of them, and
the few images that cannot be shared evenly are left out.
"""

import itertools
import math

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

    Lesions have no upright position: mirroring and all rotations are free. Zoom, stretching, shift,
    contrast, brightness and the colour of the light are mild. All geometry is one resampling, since
    each one blurs; half of the images are moved by quarter turns and whole pixels only, and stay
    sharp. Beyond the edge lies the mirror image of what is inside.

    Args:
        images: uint8 (N, height, width, 3).
        seed: int32 (2,); equal seeds give equal images.

    Returns:
        uint8 (N, height, width, 3).
    """
    images = tf.cast(images, tf.float32)
    draws = tf.random.stateless_uniform((15, tf.shape(images)[0]), seed, -1, 1)
    transforms = _draw_transforms(draws[:6], draws[14] < 2 * SHARP - 1, *images.shape[1:3])
    images = keras.ops.image.affine_transform(images, transforms, fill_mode="reflect")
    mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
    contrast, light = draws[6][:, None], draws[7][:, None]
    tint, cast = tf.transpose(draws[8:11]), tf.transpose(draws[11:14])
    gain = tf.exp(CONTRAST * contrast + TINT * tint)[:, None, None]
    shift = (LIGHT * light + CAST * cast)[:, None, None]
    images = tf.round(tf.clip_by_value((images - mean) * gain + mean + shift, 0, 255))
    return tf.cast(images, tf.uint8)


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


def list_views(views: int, size: tuple[int, int]) -> range:
    """List the views to average: the first 1 or 8, but of images that are not square 4 of the 8.

    A quarter turn would squash such images into a shape that no training shows.
    """
    return range(views if size[0] == size[1] else min(views, 4))


def turn_images(pixels: np.ndarray, view: int) -> np.ndarray:
    """Make one of eight views of images (N, height, width, 3): mirrored, turned by quarters.

    Args:
        pixels: the images.
        view: 0 (as they are) … 3, mirrored along either side or both; 4 … 7 the same of the
            transposed images, which must be square.
    """
    if view & 4:
        if pixels.shape[1] != pixels.shape[2]:
            raise ValueError(f"view {view} is for square images, not {pixels.shape[1:3]}")
        pixels = pixels.swapaxes(1, 2)
    return pixels[:, :: -1 if view & 2 else 1, :: -1 if view & 1 else 1]


def training_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    first_epoch: int = 0,
    augment: bool = False,
    fields: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Make the shuffled training pipeline, without end: give `fit` steps_per_epoch.

    What a batch holds depends only on the seed, the epoch and its position: a training that is
    resumed at an epoch sees what it would have seen.

    Args:
        pixels: uint8 (N, height, width, 3), perhaps memory-mapped.
        labels: int (N,).
        rows: int (M,), which of the N belong to the training part.
        batch_size: images per batch and GPU; the last batch of an epoch may be smaller.
        seed: of the order and of the augmentation.
        first_epoch: the epoch to begin with, from 0.
        augment: vary the images by `vary_images`.
        fields: float32 (N, D) of `patient.encode_fields`; some are dropped at random.

    Returns:
        A dataset of (images, int32 (batch,)); images are uint8 (batch, height, width, 3), and
        with fields a dict of these as "image" and of "fields", float32 (batch, D).
    """
    steps = count_steps(len(rows), batch_size)

    def make_batches():
        for epoch in itertools.count(first_epoch):
            order = np.random.default_rng([seed, epoch]).permutation(rows)
            for step, chosen in enumerate(_cut(order, batch_size)):
                rng = np.random.default_rng([seed, epoch, step])
                known = None if fields is None else drop_fields(fields[chosen], DROP, rng)
                number = np.array([seed, epoch * steps + step]) % 2**31
                yield _join(pixels[chosen], known), labels[chosen], number

    def finish(inputs, truth: tf.Tensor, number: tf.Tensor) -> tuple:
        if augment and fields is not None:
            return inputs | {"image": vary_images(inputs["image"], number)}, truth
        return vary_images(inputs, number) if augment else inputs, truth

    signature = (*_describe(pixels, fields), tf.TensorSpec((2,), tf.int32))
    data = tf.data.Dataset.from_generator(make_batches, output_signature=signature)
    return data.map(finish, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    fields: np.ndarray | None = None,
    view: int = 0,
) -> tf.data.Dataset:
    """Make the pipeline for validation: rows in order, each once, in the given view.

    Arguments and result are as for training; fields are not dropped.
    """

    def make_batches():
        for chosen in _cut(rows, batch_size):
            known = None if fields is None else fields[chosen]
            yield _join(turn_images(pixels[chosen], view), known), labels[chosen]

    signature = _describe(pixels, fields)
    data = tf.data.Dataset.from_generator(make_batches, output_signature=signature)
    steps = tf.data.experimental.assert_cardinality(count_steps(len(rows), batch_size))
    return data.apply(steps).prefetch(tf.data.AUTOTUNE)


def predict_rows(
    model: keras.Model,
    pixels: np.ndarray,
    rows: np.ndarray,
    batch_size: int = 64,
    *,
    views: int = 1,
    fields: np.ndarray | None = None,
) -> np.ndarray:
    """Answer for rows of the array, averaged over `list_views`; other arguments as for training.

    Returns:
        float32 (M, K), probabilities in the order of the rows.
    """
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    filled = np.resize(rows, math.ceil(len(rows) / devices) * devices)  # every row is answered
    labels, answers = np.zeros(len(pixels), int), []  # nobody looks at the labels
    for view in list_views(views, pixels.shape[1:3]):
        data = evaluation_batches(pixels, labels, filled, batch_size, fields=fields, view=view)
        answers.append(model.predict(data, verbose=0)[: len(rows)])
    return np.mean(answers, axis=0)


def count_steps(images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of `images` images."""
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    return math.ceil(images // devices / batch_size)


def _cut(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut rows into batches that the GPUs can share evenly."""
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    shared = rows[: len(rows) // devices * devices]
    return np.split(shared, range(batch_size * devices, len(shared), batch_size * devices))


def _join(images, fields):
    return images if fields is None else {"image": images, "fields": fields}


def _describe(pixels: np.ndarray, fields: np.ndarray | None) -> tuple:
    known = None if fields is None else tf.TensorSpec((None, fields.shape[1]), tf.float32)
    images = tf.TensorSpec((None, *pixels.shape[1:]), tf.uint8)
    return _join(images, known), tf.TensorSpec((None,), tf.int32)
