"""tf.data pipelines over an array of pixels: shuffled and varied for training, in order else.

Pixels are uint8 (N, height, width, 3), labels int (N,), rows int (M,): which of the N.
"""

import itertools
import math

import cv2
import keras
import numpy as np
import tensorflow as tf

from helpers.nets.patient import drop_fields

ZOOM, STRETCH, SHIFT = 0.15, 0.075, 0.08  # at most: logarithms of factors; share of a side
CONTRAST, TINT, LIGHT, CAST = 0.15, 0.05, 15.0, 7.5  # at most: logarithms; grey levels
SHARP = 0.5  # share of the training images that are moved by whole pixels only
HAIRY, HAIRS, THICKNESS = 0.25, 8, 0.01  # share of the images; at most; at most of the width
CORNERS = 0.15  # share of the images that get dark corners
BLURRED = 0.2  # share of the images that get softer, at most by two means over 3x3 pixels
DROP = 0.2  # share of the patients' fields that are dropped in training
AHEAD = 4  # batches at most that are made while the net computes


def vary_images(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary training images, uint8 (N, height, width, 3): geometry, hair, sharpness, then light.

    Lesions have no upright position: mirroring and all rotations are free, all else is mild. All
    geometry is one resampling, since each one blurs; half of the images are moved by quarter turns
    and whole pixels only, and stay sharp. Beyond the edge lies the mirror image of what is inside.
    Some get hairs, some dark corners, some are blurred. Returns an array like `images`.
    """
    height, width = images.shape[1:3]
    varied = np.empty_like(images)
    y, x = np.ogrid[1 - height : height : 2, 1 - width : width : 2]
    distance = np.hypot(x, y) / width
    for number, image in enumerate(images):
        image = cv2.warpAffine(
            image,
            _draw_transform(rng, height, width),
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        if rng.random() < HAIRY:
            image = _draw_hair(image, rng)
        if rng.random() < CORNERS:
            radius, blur = rng.uniform(0.85, 1.25), rng.uniform(0.02, 0.1)
            light = np.clip((radius - distance) / blur, 0, 1)[..., None]
            image = (image * light).round().astype(np.uint8)
        if rng.random() < BLURRED:
            share, soft = rng.random(), cv2.blur(cv2.blur(image, (3, 3)), (3, 3))
            image = cv2.addWeighted(soft, share, image, 1 - share, 0)
        mean = np.array(cv2.mean(image)[:3])
        gain = np.exp(CONTRAST * rng.uniform(-1, 1) + TINT * rng.uniform(-1, 1, 3))
        shift = LIGHT * rng.uniform(-1, 1) + CAST * rng.uniform(-1, 1, 3)
        lit = (np.arange(256)[:, None] - mean) * gain + mean + shift
        varied[number] = cv2.LUT(image, lit.clip(0, 255).round().astype(np.uint8)[None])
    return varied


def _draw_transform(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw an affine transform (2, 3) from places in the new image to those in the old one."""
    is_sharp, angle, side = rng.random() < SHARP, np.pi * rng.uniform(-1, 1), rng.choice([-1, 1])
    zoom, stretch = np.exp(rng.uniform(-1, 1, 2) * [ZOOM, STRETCH])
    right, down = rng.uniform(-SHIFT, SHIFT, 2) * [width, height]
    if is_sharp:
        angle, zoom, stretch = np.pi / 2 * rng.integers(4), 1, 1
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    turn = np.array([[cos * stretch * side, -sin], [sin * stretch * side, cos]])
    centre = np.array([width - 1, height - 1]) / 2
    shift = centre - turn @ centre + [right, down]
    return np.column_stack([turn, shift.round() if is_sharp else shift])


def _draw_hair(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw dark hairs, pieces of parabolas and mostly thinner than a pixel, over an image."""
    height, width = image.shape[:2]
    cover = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(1, HAIRS + 1)):
        along = np.linspace(-1, 1, 16) * width * rng.random()
        across = rng.uniform(-1, 1) / width * along**2
        hair = (along + 1j * across) * np.exp(2j * np.pi * rng.random())
        hair += width * rng.random() + 1j * height * rng.random()
        points = np.stack([hair.real, hair.imag], axis=1) * 2**4
        thickness = THICKNESS * width * rng.uniform(0.1, 1)
        shade, pixels = int(255 * min(thickness, 1)), max(1, round(thickness))
        line = np.zeros_like(cover)
        cv2.polylines(line, [points.round().astype("int32")], False, shade, pixels, cv2.LINE_AA, 4)
        cover = np.maximum(cover, line)
    share = cover[..., None] / 255
    return (image + share * (rng.uniform(10, 70) - image)).round().astype(np.uint8)


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

    def make_batches():
        for epoch in itertools.count(first_epoch):
            order = np.random.default_rng([seed, epoch]).permutation(rows)
            for step, chosen in enumerate(_cut(order, batch_size)):
                rng = np.random.default_rng([seed, epoch, step])
                known = drop_fields(fields[chosen], DROP, rng) if fields is not None else None
                shown = vary_images(pixels[chosen], rng) if augment else pixels[chosen]
                yield _join(shown, known), labels[chosen]

    return _read(make_batches, pixels, fields).prefetch(AHEAD)


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


def _read(make_batches, pixels: np.ndarray, fields) -> tf.data.Dataset:
    known = None if fields is None else tf.TensorSpec((None, fields.shape[1]), tf.float32)
    inputs = _join(tf.TensorSpec((None, *pixels.shape[1:]), tf.uint8), known)
    signature = (inputs, tf.TensorSpec((None,), tf.int32))
    # With TensorFlow's autotuning, half of the passes ended late on two cores, by up to their own
    # length (tested: 2.6 instead of 1.6 s); without it none did.
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_generator(make_batches, output_signature=signature)
    return data.with_options(options)
