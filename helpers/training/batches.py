"""tf.data pipelines over an array of pixels: shuffled and varied for training, in order else.

Pixels are uint8 (N, height, width, 3), labels int (N,), rows int (M,): which of the N.
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
HAIRY, HAIRS, THICKNESS = 4, 8, 0.01  # one image in so many; at most; at most of the width
CORNERS = 0.15  # share of the images that get dark corners
BLURRED = 0.2  # share of the images that get softer, at most by two means over 3x3 pixels
DROP = 0.2  # share of the patients' fields that are dropped in training
AHEAD = 4  # batches at most that are made while the net computes


def vary_images(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Vary training images, uint8 (N, height, width, 3): geometry, hair, sharpness, then light.

    Lesions have no upright position: mirroring and all rotations are free, all else is mild. All
    geometry is one resampling, since each one blurs; half of the images are moved by quarter turns
    and whole pixels only, and stay sharp. Beyond the edge lies the mirror image of what is inside.
    The first quarter gets hairs, some get dark corners, some are blurred. Equal seeds, int32 (2,):
    equal images.
    """
    images = tf.cast(images, tf.float32)
    draws = tf.random.stateless_uniform((19, tf.shape(images)[0]), seed, -1, 1)
    transforms = _draw_transforms(draws[:6], draws[14] < 2 * SHARP - 1, *images.shape[1:3])
    images = keras.ops.image.affine_transform(images, transforms, fill_mode="reflect")
    hairy = tf.shape(images)[0] // HAIRY
    drawn = _draw_hair(images[:hairy], tf.add(seed, [0, 2**30]))
    images = tf.concat([drawn, images[hairy:]], axis=0)
    images *= _darken_corners(draws[15:18], *images.shape[1:3])
    softness = tf.maximum(0.0, 1 - (1 + draws[18]) / (2 * BLURRED))[:, None, None, None]
    soft = tf.nn.avg_pool2d(tf.nn.avg_pool2d(images, 3, 1, "SAME"), 3, 1, "SAME")
    images += softness * (soft - images)
    mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
    contrast, light = draws[6][:, None], draws[7][:, None]
    tint, cast = tf.transpose(draws[8:11]), tf.transpose(draws[11:14])
    gain = tf.exp(CONTRAST * contrast + TINT * tint)[:, None, None]
    shift = (LIGHT * light + CAST * cast)[:, None, None]
    images = tf.round(tf.clip_by_value((images - mean) * gain + mean + shift, 0, 255))
    return tf.cast(images, tf.uint8)


def _draw_transforms(draws: tf.Tensor, sharp: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Turn draws (6, N), -1 … 1, into affine transforms (N, 8); `sharp` (N,): by whole pixels."""
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


def _draw_hair(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draw dark hairs, pieces of parabolas and mostly thinner than a pixel, over images."""
    number, (height, width) = tf.shape(images)[0], images.shape[1:3]
    draws = tf.random.stateless_uniform((9, number, HAIRS, 1, 1), seed)
    x = tf.range(width, dtype=tf.float32) - width * draws[0]
    y = tf.range(height, dtype=tf.float32)[:, None] - height * draws[1]
    cos, sin = tf.cos(2 * np.pi * draws[2]), tf.sin(2 * np.pi * draws[2])
    along, across = cos * x + sin * y, cos * y - sin * x
    across -= (2 * draws[3] - 1) / width * along**2
    thickness = THICKNESS * width * (0.1 + 0.9 * draws[4])
    cover = tf.clip_by_value(thickness / 2 + 0.5 - tf.abs(across), 0, tf.minimum(thickness, 1))
    is_drawn = (tf.abs(along) < width * draws[5]) & (draws[6] < draws[7, :, :1])
    cover = tf.reduce_max(tf.where(is_drawn, cover, 0), axis=1)[..., None]
    return images + cover * (10 + 60 * draws[8, :, :1] - images)


def _darken_corners(draws: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Turn draws (3, N), -1 … 1, into the light left of a lit circle, (N, height, width, 1)."""
    is_dark, radius, blur = tf.unstack(draws[:, :, None, None])
    y, x = np.ogrid[1 - height : height : 2, 1 - width : width : 2]
    light = (1.05 + 0.2 * radius - np.hypot(x, y) / width) / (0.06 + 0.04 * blur)
    return tf.where(is_dark < 2 * CORNERS - 1, tf.clip_by_value(light, 0, 1), 1)[..., None]


def list_views(views: int, size: tuple[int, int]) -> range:
    """List the views to average: 1 or 8; 4 of the 8 where a quarter turn would squash the image."""
    return range(views if size[0] == size[1] else min(views, 4))


def turn_images(pixels: np.ndarray, view: int) -> np.ndarray:
    """Mirror images along either side or both (views 0 … 3), or square ones transposed (4 … 7)."""
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

    What a batch holds depends only on the seed, the epoch and its position, so that a training can
    be resumed. It holds (images, int32 (batch,)), or with fields a dict of "image" and "fields".

    Args:
        pixels, labels, rows: the images, and which of them to train on.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        seed, first_epoch: of order and augmentation; the epoch to begin with, from 0.
        augment: vary the images by `vary_images`.
        fields: float32 (N, D) of `patient.encode_fields`; some are dropped at random.
    """
    steps = count_steps(len(rows), batch_size)

    def make_batches():
        for epoch in itertools.count(first_epoch):
            order = np.random.default_rng([seed, epoch]).permutation(rows)
            for step, chosen in enumerate(_cut(order, batch_size)):
                rng = np.random.default_rng([seed, epoch, step])
                known = drop_fields(fields[chosen], DROP, rng) if fields is not None else None
                number = np.array([seed, epoch * steps + step]) % 2**31
                yield _join(pixels[chosen], known), labels[chosen], number

    def finish(inputs, truth: tf.Tensor, number: tf.Tensor) -> tuple:
        if augment and fields is not None:
            return inputs | {"image": vary_images(inputs["image"], number)}, truth
        return vary_images(inputs, number) if augment else inputs, truth

    data = _read(make_batches, pixels, fields, tf.TensorSpec((2,), tf.int32))
    return data.map(finish, AHEAD).prefetch(AHEAD)


def evaluation_batches(
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
    *,
    fields: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Make the pipeline for validation: rows in order, each once; arguments as for training."""
    parts = _cut(rows, batch_size)

    def make_batches():
        for chosen in parts:
            known = None if fields is None else fields[chosen]
            yield _join(pixels[chosen], known), labels[chosen]

    steps = tf.data.experimental.assert_cardinality(len(parts))
    return _read(make_batches, pixels, fields).apply(steps).prefetch(AHEAD)


def predict_rows(
    model: keras.Model,
    pixels: np.ndarray,
    rows: np.ndarray,
    batch_size: int = 64,
    *,
    views: int = 1,
    fields: np.ndarray | None = None,
) -> np.ndarray:
    """Answer for rows, averaged over `list_views`: probabilities, float32 (M, K)."""
    labels, answers = np.zeros(len(pixels), int), []  # nobody looks at the labels
    for view in list_views(views, pixels.shape[1:3]):
        turned = turn_images(pixels, view)  # no copy
        data = evaluation_batches(turned, labels, rows, batch_size, fields=fields)
        answers.append(model.predict(data, verbose=0))
    return np.mean(answers, axis=0)


def count_steps(images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of `images` images."""
    return math.ceil(images / batch_size)


def _cut(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return np.split(rows, range(batch_size, len(rows), batch_size))


def _join(images, fields):
    return images if fields is None else {"image": images, "fields": fields}


def _read(make_batches, pixels: np.ndarray, fields, *more: tf.TensorSpec) -> tf.data.Dataset:
    known = None if fields is None else tf.TensorSpec((None, fields.shape[1]), tf.float32)
    inputs = _join(tf.TensorSpec((None, *pixels.shape[1:]), tf.uint8), known)
    signature = (inputs, tf.TensorSpec((None,), tf.int32), *more)
    # With TensorFlow's autotuning, half of the passes ended late on two cores, by up to their own
    # length (tested: 2.6 instead of 1.6 s); without it none did.
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_generator(make_batches, output_signature=signature)
    return data.with_options(options)
