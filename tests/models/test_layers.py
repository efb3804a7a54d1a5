"""Train-time layers: the same variables and answers as Keras' own, and fair masks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from helpers.training.layers import ByteDropout, FusedBatchNormalization, speed_up, to_keras


@pytest.fixture
def net():
    """A small net with both kinds of normalisation inputs, statistics that are not the initial."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 10, 3)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(momentum=0.9),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(6),
            layers.BatchNormalization(momentum=0.9),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
    return model


IMAGES = np.random.default_rng(1).normal(0, 2, (16, 8, 10, 3)).astype("float32")


def test_swapped_nets_answer_the_same_and_come_back(net):
    fast = speed_up(net)
    kinds = [type(layer) for layer in fast.layers]
    assert kinds.count(FusedBatchNormalization) == kinds.count(ByteDropout) == 2
    plain = to_keras(fast)
    assert [type(layer) for layer in plain.layers[1:]] == [type(layer) for layer in net.layers]
    assert [v.path.split("/")[-1] for v in fast.weights] == [
        v.path.split("/")[-1] for v in net.weights
    ]
    expected = net.predict(IMAGES, verbose=0)
    assert fast.predict(IMAGES, verbose=0) == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(plain.predict(IMAGES, verbose=0), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 2e-2)])
def test_normalisation_trains_like_that_of_keras(dtype, tolerance):
    """Outputs, gradients and moving statistics after a step, on values far from 0 and 1."""
    images = 3 + 2 * IMAGES
    found = []
    for kind in (layers.BatchNormalization, FusedBatchNormalization):
        layer = kind(momentum=0.8, dtype=dtype)
        layer.build(images.shape)
        layer.gamma.assign([1.5, 0.5, -1.0])
        with tf.GradientTape() as tape:
            given = tf.constant(images)
            tape.watch(given)
            answer = tf.cast(layer(given, training=True), tf.float32)
            loss = tf.reduce_sum(answer**3)
        gradients = tape.gradient(loss, [given, layer.gamma.value, layer.beta.value])
        statistics = [layer.moving_mean.numpy(), layer.moving_variance.numpy()]
        asked = layer(images, training=False)
        found.append([*map(np.asarray, (answer, asked)), *statistics, *map(np.asarray, gradients)])
    for place, (expected, ours) in enumerate(zip(*found, strict=True)):
        expected, ours = expected.astype("float32"), ours.astype("float32")
        allowed = max(tolerance, 5e-5) if place > 3 else tolerance  # gradients are long sums
        assert np.abs(ours - expected).max() <= 3 * allowed * max(np.abs(expected).max(), 1)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.1])
def test_masks_drop_at_the_rate_and_independently(rate):
    layer = ByteDropout(rate, seed=3)
    masks = np.stack([layer(np.ones((50, 41), "float32"), training=True) for _ in range(40)])
    exact = round(256 * rate) / 256
    kept = masks > 0
    assert np.unique(masks) == pytest.approx([0, 1 / (1 - exact)])
    spread = (exact * (1 - exact)) ** 0.5
    assert (~kept).mean() == pytest.approx(exact, abs=4 * spread / kept.size**0.5)
    # Each value, and each with its neighbours along all axes, as often as independent ones.
    bound = 4.5 * spread / 40**0.5
    assert np.abs((~kept).mean(axis=0) - exact).max() < bound + 0.05
    for axis in range(3):
        first, second = np.moveaxis(kept, axis, 0)[:-1], np.moveaxis(kept, axis, 0)[1:]
        found = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(found) < 5 / first.size**0.5


def test_masks_are_seeded_and_go_on_from_their_state():
    first, again = ByteDropout(0.5, seed=3), ByteDropout(0.5, seed=3)
    ones = np.ones((4, 9), "float32")
    masks = [np.asarray(first(ones, training=True)) for _ in range(3)]
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], again(ones, training=True))
    again.seed_generator.state.assign(first.seed_generator.state)
    assert np.array_equal(first(ones, training=True), again(ones, training=True))
    assert np.array_equal(first(ones, training=False), ones)


def test_saved_net_needs_nothing_of_this_project(net, tmp_path):
    to_keras(speed_up(net)).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in loaded.layers)
    assert loaded.predict(IMAGES, verbose=0) == pytest.approx(net.predict(IMAGES, verbose=0))


def test_shared_masks_and_rates_without_a_byte_are_those_of_keras():
    ones = np.ones((4, 6, 6, 8), "float32")
    masks = np.asarray(ByteDropout(0.5, noise_shape=(4, 1, 1, 8), seed=1)(ones, training=True))
    assert (masks == masks[:, :1, :1]).all() and 0 < (masks > 0).mean() < 1
    assert np.array_equal(ByteDropout(0.001, seed=1)(ones, training=True), ones)
