"""Muon for kernels of convolutions, against NumPy and AdamW; test_training resumes with it."""

import keras
import numpy as np
import pytest
from keras import layers

from helpers.training import fit as training
from helpers.training.optimizers import ConvolutionMuon


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


def test_steps_are_equally_large_in_all_directions():
    """A gradient of very unequal directions: Adam's step keeps them unequal, Muon's does not."""
    rng = np.random.default_rng(1)
    left, _ = np.linalg.qr(rng.standard_normal((36, 8)))
    right, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    gradient = (left * np.geomspace(1, 0.03, 8) @ right).reshape(3, 3, 4, 8).astype("float32")
    kernel = keras.Variable(np.zeros((3, 3, 4, 8), "float32"))
    ConvolutionMuon(1.0).apply([keras.ops.convert_to_tensor(gradient)], [kernel])
    lengths = np.linalg.svd(kernel.numpy().reshape(36, 8), compute_uv=False) / (0.2 * 6)
    assert lengths.min() > 0.6 and lengths.max() < 1.3


def make_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def test_all_but_kernels_of_convolutions_is_left_to_adamw():
    """With equal gradients, the other variables move as under `keras.optimizers.AdamW`."""
    keras.utils.set_random_seed(0)
    model, twin = make_model(), make_model()
    twin.set_weights(model.get_weights())
    for net, name in ((model, "muon"), (twin, "adam")):
        optimizer = training.make_optimizer(net, 0.01, 0.1, name)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            gradients = [
                keras.ops.convert_to_tensor(rng.standard_normal(v.shape).astype("float32"))
                for v in net.trainable_variables
            ]
            optimizer.apply(gradients, net.trainable_variables)
    kernel, *others = zip(model.trainable_variables, twin.trainable_variables, strict=True)
    assert not np.allclose(kernel[0].numpy(), kernel[1].numpy(), atol=1e-3)
    for ours, theirs in others:
        assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-5), ours.path


def test_biases_and_normalisation_do_not_decay():
    model = make_model()
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = training.make_optimizer(model, 0.1, 1.0, "muon")
    nothing = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    optimizer.apply(nothing, model.trainable_variables)
    shrunk = {
        v.path.split("/")[-1]: not np.allclose(v.numpy(), old)
        for v, old in zip(model.trainable_variables, before, strict=True)
        if old.any()
    }
    assert shrunk == {"kernel": True, "gamma": False}


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="OPTIMIZER is 'sgd': choose one of adam, muon"):
        training.make_optimizer(make_model(), 0.01, 0.0, "sgd")
