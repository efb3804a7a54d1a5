"""Nets whose body was trained on ImageNet, and the optimizer that fine-tunes them.

A net has a body, which turns an image into features, and a head, which turns features into
probabilities. The body brings its own scaling: all nets here take raw pixels, 0 … 255.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
from keras import layers
from keras.src.applications import convnext, efficientnet_v2, mobilenet_v3

from helpers.data.reading import CLASSES
from helpers.runs.folder import RunError

SMALLEST_SIDE = 32  # pixels; keras.applications refuses less
DROPOUT = 0.2
HEAD_EPOCHS = 3  # in which the head alone is trained
BODY_RATE = 0.1  # the body's learning rate after them, as a share of the head's
ENDINGS = (".h5", ".hdf5")  # Keras tells the format of a weights file by its name


@dataclass(frozen=True)
class Pretrained:
    """What keras.applications offers of a net.

    Attributes:
        make: its constructor.
        folder: address of the folder with its weights, with a slash at the end.
        file: name of the file with the body's weights (ImageNet, without the top).
        checksum: the file's MD5 or SHA-256.
    """

    make: Callable[..., keras.Model]
    folder: str
    file: str
    checksum: str

    @property
    def url(self) -> str:
        """Address of the weights file."""
        return self.folder + self.file


NETS = {
    # Howard et al., Searching for MobileNetV3, ICCV 2019.
    "MobileNetV3Small": Pretrained(
        keras.applications.MobileNetV3Small,
        mobilenet_v3.BASE_WEIGHT_PATH,
        "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        mobilenet_v3.WEIGHTS_HASHES["small_224_1.0_float"][1],
    ),
    # Tan & Le, EfficientNetV2: Smaller Models and Faster Training, ICML 2021.
    "EfficientNetV2B0": Pretrained(
        keras.applications.EfficientNetV2B0,
        efficientnet_v2.BASE_WEIGHTS_PATH,
        "efficientnetv2-b0_notop.h5",
        efficientnet_v2.WEIGHTS_HASHES["b0"][1],
    ),
    # Liu et al., A ConvNet for the 2020s, CVPR 2022.
    "ConvNeXtTiny": Pretrained(
        keras.applications.ConvNeXtTiny,
        convnext.BASE_WEIGHTS_PATH,
        "convnext_tiny_notop.h5",
        convnext.WEIGHTS_HASHES["convnext_tiny"][1],
    ),
}


def find_problems(name: str, size: tuple[int, int], weights: str = "imagenet") -> list[str]:
    """List what keeps a net from being built, without building it or asking the network.

    Args:
        name: one of NETS.
        size: height and width of the images in pixels.
        weights: as for `build_pretrained`.
    """
    problems = []
    if name not in NETS:
        problems.append(f"no net {name!r}: choose one of {', '.join(NETS)}")
    problems += [
        f"IMAGE_{side} is {pixels}, the lowest that a pretrained net takes is {SMALLEST_SIDE}"
        for side, pixels in zip(("HEIGHT", "WIDTH"), size, strict=True)
        if pixels < SMALLEST_SIDE
    ]
    if weights not in ("imagenet", "none"):
        if not Path(weights).is_file():
            problems.append(
                f"WEIGHTS is {weights!r}, and there is no such file: choose imagenet, none or the "
                "path of a weights file"
            )
        elif not weights.endswith(ENDINGS):
            problems.append(
                f"WEIGHTS is {weights!r}: Keras reads weights from files whose names end in "
                f"{' or '.join(ENDINGS)}"
            )
    return problems


def build_pretrained(
    name: str,
    size: tuple[int, int],
    weights: str = "imagenet",
    classes: Sequence[str] = CLASSES,
) -> keras.Model:
    """Build a net of keras.applications with a new head: dropout and one softmax layer.

    Args:
        name: one of NETS.
        size: height and width of the images in pixels, each at least SMALLEST_SIDE.
        weights: of the body: "imagenet" (downloaded, unless it was before), the path of a weights
            file, or "none", at random. If they are not random, BatchNormalization keeps the
            statistics that came with them (`_keep_statistics`).
        classes: codes of the classes, in the order of the outputs; joined by "_" they name the
            last layer.

    Returns:
        A Functional net from uint8 (N, height, width, 3), raw pixels, to float32 (N, K),
        probabilities. The body is one layer, named after the net.

    Raises:
        RunError: all of `find_problems` together, weights that cannot be downloaded, or a file
            that does not fit the body.
    """
    if problems := find_problems(name, size, weights):
        raise RunError("\n".join(problems))
    net = NETS[name]
    body = net.make(include_top=False, pooling="avg", weights=None, input_shape=(*size, 3))
    if weights != "none":
        _load_weights(body, net, _download_weights(net) if weights == "imagenet" else weights)
        _keep_statistics(body)
    # Not the constructor's `name`, from which EfficientNetV2 reads its structure.
    body = keras.Model(body.input, body.output, name=name)
    image = keras.Input((*size, 3), dtype="uint8", name="image")
    features = body(layers.Rescaling(1.0)(image))  # a cast to the precision of the policy
    last = layers.Dense(len(classes), activation="softmax", dtype="float32", name="_".join(classes))
    return keras.Model(image, last(layers.Dropout(DROPOUT)(features)), name=name.lower())


def _download_weights(net: Pretrained) -> str:
    """Return the path of the ImageNet weights in Keras' cache, after downloading them if needed."""
    try:
        return keras.utils.get_file(
            net.file, net.url, cache_subdir="models", file_hash=net.checksum
        )
    except Exception as error:  # Keras raises a bare Exception where there is no network
        raise RunError(
            f"no weights from the network ({error}): download {net.url} on a machine that has "
            f"one, and give the path of {net.file} as WEIGHTS"
        ) from error


def _load_weights(body: keras.Model, net: Pretrained, path: str) -> None:
    """Load a file into a body.

    Raises:
        RunError: it is damaged or of another net.
    """
    try:
        body.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise RunError(
            f"{path} does not fit the body of {net.make.__name__} ({str(error).splitlines()[0]}): "
            f"it must hold its weights without the top, as {net.file} from {net.url} does"
        ) from error


def _keep_statistics(body: keras.Model) -> None:
    """Let BatchNormalization use and keep the statistics it has, while its weights may be learned.

    In fine-tuning, statistics of small batches would undo what the body has learned (Keras guide
    "Transfer learning & fine-tuning"). The guide calls the body with `training=False`, but in
    Keras 3 `fit` overrides that (github.com/keras-team/keras/issues/20285). A layer that is not
    trainable does use its statistics; scale and offset are then made trainable again.
    """
    for layer in body.layers:
        if isinstance(layer, layers.BatchNormalization):
            learned = layer.trainable_variables
            layer.trainable = False
            for variable in learned:
                variable.trainable = True


@keras.saving.register_keras_serializable("skin_cancer_detection")
class FineTuning(keras.optimizers.AdamW):
    """AdamW that trains a new head first, then the body under it, at a lower rate.

    Kumar et al., Fine-Tuning can Distort Pretrained Features, ICLR 2022: gradients through a head
    at random distort the body, so the head is learned first. The weights of the body do not decay:
    zero is not where they come from. Its moments are estimated from the first step on, since Adam
    corrects for their start at zero by the number of all steps.

    Args:
        learning_rate: of the head: float or schedule.
        weight_decay: of the head (Loshchilov & Hutter, ICLR 2019), at least 0.
        head: name of the layer that is the head; the variables of all others are the body's.
        head_steps: during so many first steps the body does not move.
        body_rate: the body's learning rate after them, as a share of the head's.
        options: as for `keras.optimizers.AdamW`.

    Raises:
        ValueError: negative steps or rate; in `build`: no variable of the head, or of the body.
    """

    def __init__(
        self,
        learning_rate=0.001,
        weight_decay: float = 0.004,
        *,
        head: str,
        head_steps: int,
        body_rate: float,
        **options,
    ):
        if head_steps < 0 or body_rate < 0:
            raise ValueError(
                f"head_steps is {head_steps} and body_rate is {body_rate}: wanted is at least 0"
            )
        super().__init__(learning_rate, weight_decay, **options)
        self.head, self.head_steps, self.body_rate = head, head_steps, body_rate

    def build(self, variables):
        """Tell the body's variables from the head's, by their paths."""
        if self.built:
            return
        body = [v for v in variables if self.head not in v.path.split("/")]
        if len(body) in (0, len(variables)):
            raise ValueError(
                f"{len(body)} of {len(variables)} variables are outside the head {self.head!r}: "
                "name a layer that has some of the weights to learn, not all or none"
            )
        self.exclude_from_weight_decay(body)
        super().build(variables)
        self._body = frozenset(self._get_variable_index(v) for v in body)

    def update_step(self, gradient, variable, learning_rate):
        """Update a variable; one of the body at its own rate."""
        if self._get_variable_index(variable) in self._body:
            share = keras.ops.where(self.iterations < self.head_steps, 0.0, self.body_rate)
            learning_rate = keras.ops.multiply(learning_rate, share)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        """Return what the constructor needs."""
        own = {"head": self.head, "head_steps": self.head_steps, "body_rate": self.body_rate}
        return {**super().get_config(), **own}
