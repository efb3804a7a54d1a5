"""Building blocks of the original net, which stands in the main notebook, and the other nets."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from helpers.data.reading import CLASSES
from helpers.nets import pretrained

# Keras' default of 0.99 forgets the initial statistics only after some 500 steps: on the sample,
# validation would be worse than chance for many epochs while training goes well.
MOMENTUM = 0.9
# The smallest side that three valid 3x3 convolutions with 2x2 pooling leave a pixel of.
SMALLEST_SIDE = 22
# Where the compact net begins its stages, at most: the longest shorter side, in pixels.
STAGE_SIDE = 32


def build_net(
    name: str, size: tuple[int, int], weights: str = "none", classes: Sequence[str] = CLASSES
) -> keras.Model:
    """Build a net other than the original, by its name.

    Args:
        name: "compact", or one of `pretrained.NETS`.
        size: (height, width) of the images in pixels.
        weights: of a pretrained net, see `pretrained.build_pretrained`.
        classes: K class codes, the order of the outputs.

    Returns:
        A net that takes uint8 (N, height, width, 3), 0 … 255, and gives probabilities (N, K).
    """
    if name == "compact":
        return build_compact(size, classes)
    return pretrained.build_pretrained(name, size, weights, classes)


def build_compact(size: tuple[int, int], classes: Sequence[str] = CLASSES) -> keras.Model:
    """Build a small residual net for small images: 965,607 parameters at 75x100 pixels.

    Convolutions of stride 2 bring the image down to a shorter side of at most 32 pixels; of 28x28
    pixels all are kept. Then two stages of residual blocks halve the side twice more: most of the
    parameters and of the work lie where the maps are small.

    - Residual blocks with the normalisation first: He et al., Identity mappings in deep residual
      networks, ECCV 2016. He initialisation of the kernels: He et al., ICCV 2015.
    - Batch normalisation: Ioffe & Szegedy, ICML 2015.
    - Average pooling before the 1x1 convolution of a shortcut, so that no pixel is skipped: He et
      al., Bag of tricks for image classification with CNNs, CVPR 2019.
    - Global average pooling before the one dense layer: Lin et al., Network in network, ICLR 2014.
      Dropout before it: Srivastava et al., JMLR 2014.

    Args:
        size: (height, width) of the images in pixels.
        classes: K class codes, the order of the outputs.

    Returns:
        A net that takes uint8 (N, height, width, 3), 0 … 255, and gives probabilities (N, K).
    """
    image = keras.Input((*size, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = _convolve(x, 32, stride=1 if min(size) <= STAGE_SIDE else 2)
    while min(x.shape[1:3]) > STAGE_SIDE:
        x = _convolve(_activate(x), 32, stride=2)
    for filters, blocks in ((64, 2), (128, 3)):
        for block in range(blocks):
            x = _add_residual_block(x, filters, stride=2 if block == 0 else 1)
    x = layers.GlobalAveragePooling2D(dtype="float32")(_activate(x))
    x = layers.Dropout(0.2, dtype="float32")(x)
    answer = layers.Dense(
        len(classes), activation="softmax", dtype="float32", name="_".join(classes)
    )
    return keras.Model(image, answer(x), name="compact")


def _add_residual_block(x, filters: int, stride: int):
    """Add two 3x3 convolutions beside a shortcut; a stride halves the side."""
    activated = _activate(x)
    if x.shape[-1] != filters or stride > 1:
        pooled = layers.AveragePooling2D(stride, padding="same")(activated)
        x = _convolve(pooled, filters, kernel=1)
    activated = _convolve(activated, filters, stride=stride)
    return layers.Add()([x, _convolve(_activate(activated), filters)])


def _activate(x):
    return layers.ReLU()(layers.BatchNormalization(momentum=MOMENTUM)(x))


def _convolve(x, filters: int, stride: int = 1, kernel: int = 3):
    convolution = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )
    return convolution(x)


def count_multiply_adds(model: keras.Model) -> int:
    """Count the multiply-adds of a forward pass per image: those of convolutions and dense layers.

    Normalisation, activation and pooling are left out, as is usual.
    """
    total = 0
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.DepthwiseConv2D | layers.Conv2D):
            places = layer.output.shape[1:3]
        elif isinstance(layer, layers.Dense):
            places = layer.output.shape[1:-1]  # more than one where it reads maps
        else:
            continue
        total += int(np.prod(layer.kernel.shape)) * int(np.prod(places))
    return total


def conv_block(filters: int, batch_norm: bool = False, dropout: float = 0.25) -> list:
    """Make a convolution block: 3x3 convolution, 2x2 max pooling, normalisation, dropout.

    Args:
        filters: number of 3x3 filters; no padding, so each side loses two pixels, then halves.
        batch_norm: put a BatchNormalization after the pooling (Ioffe & Szegedy, 2015).
        dropout: share of the activations that are set to zero in training, 0 … 1.

    Returns:
        Keras layers, in order.
    """
    normalisation = [layers.BatchNormalization(momentum=MOMENTUM)] if batch_norm else []
    return [
        layers.Conv2D(filters, 3, activation="relu"),
        layers.MaxPooling2D(2),
        *normalisation,
        layers.Dropout(dropout),
    ]


def dense_block(units: int, batch_norm: bool = False) -> list:
    """Make a hidden dense layer with ReLU, and a BatchNormalization after it if asked for."""
    normalisation = [layers.BatchNormalization(momentum=MOMENTUM)] if batch_norm else []
    return [layers.Dense(units, activation="relu"), *normalisation]
