"""Learning rates, Muon for kernels of convolutions against NumPy and AdamW."""

import keras
import numpy as np
import pytest
from keras import layers

from helpers.training import optimizers
from helpers.training.optimizers import ConvolutionMuon


def test_cosine_schedule_warms_up_and_ends_at_zero():
    rate = optimizers.make_learning_rate(0.01, "cosine", total_steps=200)
    steps = [float(rate(step)) for step in (0, 5, 10, 105, 200)]
    assert steps == pytest.approx([0, 0.005, 0.01, 0.005, 0], abs=1e-6)
    assert optimizers.make_learning_rate(0.01, "constant", 200) == 0.01
    with pytest.raises(ValueError, match="'cosin': choose constant or cosine"):
        optimizers.make_learning_rate(0.01, "cosin", 200)


def orthogonalise(matrix, steps=5, a=3.4445, b=-4.7750, c=2.0315):
    """The quintic Newton-Schulz iteration of Jordan et al., in float64."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (1, 1, 4, 9), (3, 3, 2, 30)])
def test_two_steps_on_a_kernel_by_hand(shape):
    rng = np.random.default_rng(0)
    before, *gradients = (rng.standard_normal(shape).astype("float32") for _ in range(3))
    kernel = keras.Variable(before)
    optimizer = ConvolutionMuon(0.01, weight_decay=0.1, momentum=0.9)
    expected, momentum = before.astype(float), 0.0
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
        momentum = 0.9 * momentum + gradient.astype(float)
        matrix = (gradient + 0.9 * momentum).reshape(-1, shape[-1])
        size = 0.2 * np.sqrt(max(matrix.shape))
        expected = expected * (1 - 0.01 * 0.1)
        expected -= 0.01 * size * orthogonalise(matrix).reshape(shape)
    assert np.abs(expected - before).max() > 0.001
    assert kernel.numpy() == pytest.approx(expected, abs=1e-5)


def make_model():
    """Build a body with normalisation, nested as one layer, and a head."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="kernels")(pixels))
    body = keras.Model(pixels, x, name="body")
    image = keras.Input((8, 8, 3))
    features = layers.Dropout(0.2)(layers.Flatten()(body(image)))
    return keras.Model(image, layers.Dense(3, activation="softmax", name="last")(features))


def take_steps(model, optimizer, steps, gradients=None):
    """Apply equal gradients to whichever net; return the values before and after each step."""
    variables = model.trainable_variables
    values = [{v.path: v.numpy() for v in variables}]
    for seed in range(steps):
        rng = np.random.default_rng(seed)
        given = [rng.standard_normal(v.shape).astype("float32") for v in variables]
        if gradients == 0:
            given = [np.zeros_like(g) for g in given]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in given], variables)
        values.append({v.path: v.numpy() for v in variables})
    return values


def name_changes(before, after):
    return {path for path in before if not np.allclose(before[path], after[path], atol=1e-7)}


def test_all_but_kernels_of_convolutions_is_left_to_adamw():
    model, twin = make_model(), make_model()
    *_, found = take_steps(model, optimizers.make_optimizer(0.01, "muon", 0.1), 3)
    *_, expected = take_steps(twin, optimizers.make_optimizer(0.01, "adam", 0.1), 3)
    assert name_changes(found, expected) == {"kernels/kernel"}


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_biases_and_normalisation_do_not_decay(name):
    model = make_model()
    model.get_layer("last").bias.assign([1.0, 2.0, 3.0])
    optimizer = optimizers.make_optimizer(0.1, name, 1.0)
    before, after = take_steps(model, optimizer, 1, gradients=0)
    assert name_changes(before, after) == {"kernels/kernel", "last/kernel"}
    shrunk = before["last/kernel"] * (1 - 0.1 * 1.0)
    assert after["last/kernel"] == pytest.approx(shrunk, abs=1e-6)


def test_without_weight_decay_adam_is_that_of_keras():
    model, twin = make_model(), make_model()
    *_, found = take_steps(model, optimizers.make_optimizer(0.01, "adam"), 3)
    *_, expected = take_steps(twin, keras.optimizers.Adam(0.01), 3)
    assert not name_changes(found, expected)
    with pytest.raises(ValueError, match="'sgd': choose adam or muon"):
        optimizers.make_optimizer(0.01, "sgd")
