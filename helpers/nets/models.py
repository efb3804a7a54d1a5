"""The nets by name: the original one, a compact one, and those pretrained on ImageNet.

All take raw pixels, 0 … 255, and bring their own scaling.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import layers

from helpers.data.files import raise_problems, resolve_path
from helpers.data.reading import CLASSES
from helpers.nets.efficientnet import build_efficientnet_lite0

NETS = {
    # Its weights are a package of requirements.txt; the others' are downloaded.
    "EfficientNetLite0": build_efficientnet_lite0,
    # Howard et al., Searching for MobileNetV3, ICCV 2019.
    "MobileNetV3Small": keras.applications.MobileNetV3Small,
    # Tan & Le, EfficientNetV2: Smaller Models and Faster Training, ICML 2021.
    "EfficientNetV2B0": keras.applications.EfficientNetV2B0,
    # Liu et al., A ConvNet for the 2020s, CVPR 2022.
    "ConvNeXtTiny": keras.applications.ConvNeXtTiny,
}
MODELS = ("compact", "original", *NETS)
# Keras' default of 0.99 forgets the initial statistics only after some 500 steps: on the sample,
# validation would be worse than chance for many epochs while training goes well.
MOMENTUM = 0.9
SMALLEST = {"compact": 1, "original": 22}  # pixels of the shorter side
SMALLEST_PRETRAINED = 32  # keras.applications refuses less
STAGE_SIDE = 40  # pixels of the shorter side, at most, where the compact net begins its stages


def build_net(
    name: str, size: tuple[int, int], weights: str = "none", classes: Sequence[str] = CLASSES
) -> keras.Model:
    """Build a net by its name.

    Args:
        name: one of `MODELS`.
        size: (height, width) of the images in pixels.
        weights: of a pretrained net's body: "imagenet" (downloaded, unless it was before), the
            path of a weights file, or "none". Both other nets always start at random.
        classes: K class codes, the order of the outputs; joined by "_" they name the last layer.

    Returns a net that takes uint8 (N, height, width, 3) and gives probabilities, float32 (N, K). An
    InputError names everything that keeps it from being built.
    """
    problems, is_own = [], name in SMALLEST
    if name not in MODELS:
        problems.append(f"no net {name!r}: choose one of {', '.join(MODELS)}")
    if min(size) < (smallest := SMALLEST.get(name, SMALLEST_PRETRAINED)):
        at_least = f"at least {smallest} pixels high and wide"
        problems.append(f"images of {size[0]}x{size[1]} pixels: take images {at_least}")
    if not is_own and weights not in ("imagenet", "none") and not resolve_path(weights).is_file():
        problems.append(f"no file {weights!r}: choose imagenet, none or the path of a weights file")
    raise_problems("MODEL, its size and its WEIGHTS", problems)
    if is_own:
        build = _build_compact if name == "compact" else _build_original
        return build(size, classes)
    return _build_pretrained(name, size, weights, classes)


def _build_original(size: tuple[int, int], classes: Sequence[str]) -> keras.Model:
    """Build the net that the main notebook spells out, without BatchNormalization."""
    image = keras.Input((*size, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255)(image)
    for filters in (256, 128, 64):
        x = layers.MaxPooling2D(2)(layers.Conv2D(filters, 3, activation="relu")(x))
        x = layers.Dropout(0.25)(x)
    x = layers.Flatten()(x)
    for units in (64, 128):
        x = layers.Dense(units, activation="relu")(x)
    return keras.Model(image, _answer(x, classes), name="original")


def _build_compact(size: tuple[int, int], classes: Sequence[str]) -> keras.Model:
    """Build a small residual net for small images: 938,855 parameters at 75x100 pixels.

    Convolutions of stride 2 bring the image down to a shorter side of at most 40 pixels. Three
    stages of residual blocks each halve it: most of the work lies where the maps are small.

    - Residual blocks with the normalisation first: He et al., Identity mappings in deep residual
      networks, ECCV 2016. He initialisation of the kernels: He et al., ICCV 2015.
    - Batch normalisation: Ioffe & Szegedy, ICML 2015.
    - Average pooling before the 1x1 convolution of a shortcut, so that no pixel is skipped: He et
      al., Bag of tricks for image classification with CNNs, CVPR 2019.
    - Global average pooling before the one dense layer: Lin et al., Network in network, ICLR 2014.
      Dropout before it: Srivastava et al., JMLR 2014.
    """
    image = keras.Input((*size, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = _convolve(x, 32, stride=1 if min(size) <= STAGE_SIDE else 2)
    while min(x.shape[1:3]) > STAGE_SIDE:
        x = _convolve(_activate(x), 32, stride=2)
    for filters, blocks in ((64, 1), (96, 2), (128, 2)):
        for block in range(blocks):
            x = _add_residual_block(x, filters, stride=2 if block == 0 else 1)
    x = layers.GlobalAveragePooling2D(dtype="float32")(_activate(x))
    x = layers.Dropout(0.2, dtype="float32")(x)
    return keras.Model(image, _answer(x, classes), name="compact")


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
    options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    return layers.Conv2D(filters, kernel, strides=stride, **options)(x)


def _answer(x, classes: Sequence[str]):
    options = {"activation": "softmax", "dtype": "float32", "name": "_".join(classes)}
    return layers.Dense(len(classes), **options)(x)


def _build_pretrained(
    name: str, size: tuple[int, int], weights: str, classes: Sequence[str]
) -> keras.Model:
    """Build a net of keras.applications with a new head: dropout and one softmax layer."""
    options = {"include_top": False, "pooling": "avg", "input_shape": (*size, 3)}
    if weights == "none":
        body = NETS[name](weights=None, **options)
    else:
        source = weights if weights == "imagenet" else str(resolve_path(weights))
        try:
            body = NETS[name](weights=source, **options)
        except Exception as error:  # Keras raises a bare Exception where there is no network
            remedy = "copy the file that Keras would download, without the top, from a machine "
            remedy += "with a network, and give its path as WEIGHTS"
            raise_problems(f"{name}: {source}", [f"no weights ({error}): {remedy}"])
    # Not the constructor's `name`, from which EfficientNetV2 reads its structure.
    body = keras.Model(body.input, body.output, name=name)
    image = keras.Input((*size, 3), dtype="uint8", name="image")
    features = body(layers.Rescaling(1.0)(image))  # a cast to the precision of the policy
    answer = _answer(layers.Dropout(0.2)(features), classes)
    return keras.Model(image, answer, name=name.lower())


def rebuild_net(model: keras.Model, change: Callable = lambda layer, config: None) -> keras.Model:
    """Build a net anew, those nested in it too, with the same weights; compile it anew.

    `change(layer, config)` may edit a layer's config, or return a layer to take its place.
    """

    def rebuild(node):
        if not isinstance(node, layers.Layer):  # such as the sum of two tensors
            return node
        config = node.get_config()
        return change(node, config) or type(node).from_config(config)

    copy = keras.models.clone_model(model, clone_function=rebuild, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


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
