"""Several GPUs of one machine: the strategy that shares each batch among them, and the rate."""

import math
from collections.abc import Sequence

import tensorflow as tf


def choose_strategy(devices: Sequence[str] | None = None) -> tf.distribute.Strategy:
    """Choose how to train: on several devices at once, or the ordinary way.

    On several devices every one holds a copy of the model and takes an equal part of each batch;
    the gradients are summed, so all copies stay equal. Build and compile the model inside
    `strategy.scope()`; with one device or none that scope changes nothing.

    What is not as on one device: Dropout drops the same places of each part. BatchNormalization
    sees the part, not the batch, and the first device's statistics are the ones that are kept.

    Args:
        devices: names such as "GPU:0"; by default every GPU that TensorFlow sees.
    """
    if devices is None:
        devices = [gpu.name.split("device:")[-1] for gpu in tf.config.list_logical_devices("GPU")]
    if len(devices) < 2:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(list(devices))


def count_devices(strategy: tf.distribute.Strategy) -> int:
    """Return how many devices share a batch: 1 the ordinary way."""
    return strategy.num_replicas_in_sync


def scale_rate(rate: float, devices: int) -> float:
    """Scale the learning rate of Adam or Muon to a batch that is `devices` times as large.

    By the square root: Adam divides the gradient by its own size, so the linear rule of SGD
    (Goyal et al., 2017) overshoots (Malladi et al., 2022, "On the SDEs and scaling rules for
    adaptive gradient algorithms"). Their rule moves the betas and epsilon too; these stay here.
    Muon's steps do not depend on the gradient's size either, so the same is done with it.

    Args:
        rate: the rate for one device.
        devices: as `count_devices` returns it.
    """
    return rate * math.sqrt(devices)
