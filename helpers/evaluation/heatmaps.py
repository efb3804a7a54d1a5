"""What a net looked at: heat maps (Grad-CAM, occlusion), and how far they can be believed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import cv2
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers
from matplotlib import colormaps

from helpers.training.batches import predict_rows

CONVOLUTIONS = (
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
)
BATCH = 32
# Semi-axes of two ellipses in the middle of the image, as shares of its width and height. The
# inner one stands for the lesion, on which HAM10000's photographs are centred. The outer one
# touches the four sides; outside it lie the corners, where the rim of a dermatoscope shows.
CENTRE, INSCRIBED = 1 / 3, 1 / 2
AREAS = ("centre", "surround", "corners")
# Pixels per side of the grid on which shares are measured: areas are then right to 0.001.
GRID = 240
# The largest difference between probabilities of one net on machines that round differently. In
# bfloat16 it is some hundredths; another net, or other images, differ by tenths.
TOLERANCE = 0.1
# How much of the colour covers the image where the heat is 1.
OPACITY = 0.6


def check_predictions(
    model: keras.Model, pixels: np.ndarray, probabilities: np.ndarray, views: int = 1
) -> float:
    """Check that a net and images give the probabilities of a run's predictions.csv.

    Args:
        model: the run's net.
        pixels: uint8 (N, height, width, 3), as it takes them.
        probabilities: float (N, K), as they were saved.
        views: over how many views the run averaged, its parameter VIEWS.

    Returns:
        The largest difference.

    Raises:
        ValueError: it is more than rounding explains.
    """
    found = predict_rows(model, pixels, np.arange(len(pixels)), BATCH, views=views)
    difference = float(np.abs(found - probabilities).max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the net's probabilities differ from predictions.csv by up to {difference:.2f}, more "
            f"than rounding explains ({TOLERANCE}): these are not the images of the run, as in its "
            "DATA_DIR, or not its model.keras"
        )
    return difference


def choose_cases(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Choose a right, a wrong and an unsure case of each class.

    Args:
        labels: int (N,), true classes.
        probabilities: float (N, K).

    Returns:
        A row per class 0 … K - 1 with the positions of the surest right answer (`right`), of the
        surest wrong one (`wrong`) and of the image, other than those, whose answer is the least
        sure (`unsure`); missing (pandas.NA) where there is none.
    """
    surety, is_right = probabilities.max(1), probabilities.argmax(1) == labels
    rows = []
    for k in range(probabilities.shape[1]):
        order = np.argsort(-surety, kind="stable")
        order = order[labels[order] == k]
        right, wrong = order[is_right[order]][:1], order[~is_right[order]][:1]
        rest = order[~np.isin(order, [*right, *wrong])][-1:]
        rows.append([found[0] if len(found) else pd.NA for found in (right, wrong, rest)])
    return pd.DataFrame(rows, columns=["right", "wrong", "unsure"], dtype="Int64")


def compute_grad_cam(
    model: keras.Model, pixels: np.ndarray, classes: np.ndarray, layer: str = ""
) -> np.ndarray:
    """Compute Grad-CAM: where the feature maps of a layer speak for a class.

    Selvaraju et al., Grad-CAM, ICCV 2017: each map is weighted by the mean gradient of the class's
    score with respect to it; of the weighted sum, what is negative becomes zero. The score is the
    logit, what goes into the softmax, as in the paper: the gradient of the probability vanishes
    where the net is sure, and that of its logarithm mixes in the other classes. A softmax does not
    tell logits from the same logits plus a number; here they are those of the net's last Dense.
    All is computed in a float32 copy of the net, since gradients in float16 may round to zero.
    The given net stays as it is.

    Args:
        model: a Sequential or Functional net, perhaps with others nested in it, that ends in a
            Dense, Activation or Softmax.
        pixels: uint8 (N, height, width, 3), as the net takes them.
        classes: int (N,), the class to explain for each image.
        layer: name of the layer whose maps are used; by default the last one, in the order of
            computation, that gives more than one pixel.

    Returns:
        float32 (N, h, w), each map divided by its maximum, 0 … 1; h and w are the layer's. A map is
        zero everywhere where nothing speaks for the class.

    Raises:
        ValueError: a net without a convolution or with an unknown end, a layer without maps, or
            classes that are not the net's.
    """
    classes = np.asarray(classes)
    if len(pixels) != len(classes):
        raise ValueError(f"{len(pixels)} images but {len(classes)} classes: wanted is one each")
    outside = classes[(classes < 0) | (classes >= model.output_shape[-1])]
    if len(outside):
        raise ValueError(f"class {outside[0]}: this net has 0 … {model.output_shape[-1] - 1}")
    net = _make_logit_model(model)
    target = _find_map_layer(net, pixels[:1], layer)
    heat = [
        _weigh_maps(net, target, pixels[i : i + BATCH], classes[i : i + BATCH])
        for i in range(0, len(pixels), BATCH)
    ]
    return scale_heat(np.concatenate(heat))


def compute_occlusion(
    model: keras.Model, image: np.ndarray, label: int, patch: int, stride: int
) -> np.ndarray:
    """Compute occlusion sensitivity: how the probability falls where a square hides the image.

    Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, with one
    change: the square is not grey but of the median colour of the image's frame (an eighth of
    each side), which is mostly skin. Hiding skin by skin then changes little, and a grey square
    on skin would be a new object.

    Args:
        model: takes uint8 (N, height, width, 3) and gives probabilities (N, K).
        image: uint8 (height, width, 3), as the net takes it.
        label: the class whose probability is watched, 0 … K - 1.
        patch: side of the square in pixels of the image.
        stride: pixels from one square to the next, 1 … patch.

    Returns:
        float32 (height, width): by how much the probability falls, on average over the squares
        that hide the pixel, -1 … 1; below zero where hiding it makes the class more probable.

    Raises:
        ValueError: a patch that does not fit, or a stride that leaves pixels out.
    """
    height, width = image.shape[:2]
    if not 1 <= stride <= patch <= min(height, width):
        raise ValueError(
            f"patch {patch} and stride {stride} on an image of {height}x{width} pixels: wanted is "
            f"1 <= stride <= patch <= {min(height, width)}"
        )
    corners = [(y, x) for y in _start_squares(height, patch, stride)
               for x in _start_squares(width, patch, stride)]  # fmt: skip
    hidden = np.repeat(image[None], len(corners) + 1, axis=0)
    colour = _find_frame_colour(image)
    for copy, (y, x) in zip(hidden, corners, strict=False):  # the last one stays as it is
        copy[y : y + patch, x : x + patch] = colour
    probability = model.predict(hidden, verbose=0)[:, label].astype(float)
    falls, times = np.zeros((height, width)), np.zeros((height, width))
    for (y, x), hidden_probability in zip(corners, probability, strict=False):
        falls[y : y + patch, x : x + patch] += probability[-1] - hidden_probability
        times[y : y + patch, x : x + patch] += 1
    return (falls / times).astype(np.float32)


def scale_heat(maps: np.ndarray) -> np.ndarray:
    """Set what is negative to zero and divide each map (N, h, w) by its maximum.

    Returns:
        float32 (N, h, w), 0 … 1; zero everywhere where nothing was positive.
    """
    heat = np.maximum(maps, 0).astype(np.float32)
    highest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


def overlay_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay heat over an image: purple to yellow (matplotlib's plasma), clear where it is zero.

    Args:
        image: uint8 (height, width, 3), of any size.
        heat: (h, w), 0 … 1; stretched over the whole image by bilinear interpolation.

    Returns:
        uint8 (height, width, 3).
    """
    heat = np.clip(_resize_heat(heat, *image.shape[:2]), 0, 1)
    colours = colormaps["plasma"](heat)[..., :3] * 255
    cover = OPACITY * heat[..., None]
    return np.rint(cover * colours + (1 - cover) * image).astype(np.uint8)


def measure_heat_shares(heat: np.ndarray) -> dict[str, float]:
    """Measure which share of the heat lies on the lesion, on the skin around it, in the corners.

    HAM10000's photographs are centred on the lesion, so an ellipse stands for it. Three areas,
    whatever the shape of the image:

    - centre: the ellipse in the middle with a third of the image's width and height as semi-axes,
      34.9 % of the image;
    - surround: from there to the ellipse that touches all four sides, 43.6 %;
    - corners: what lies outside that ellipse, 21.5 %.

    These areas are also the shares of heat that is the same everywhere: measure an array of ones
    to get them.

    Args:
        heat: (h, w), at least zero; stretched by bilinear interpolation, as it is shown.

    Returns:
        centre, surround and corners, 0 … 1, together 1; nan each where there is no heat.

    Raises:
        ValueError: negative heat.
    """
    if np.min(heat) < 0:
        raise ValueError(f"heat of {np.min(heat):.3g}: shares need heat of at least zero")
    heat = _resize_heat(heat, GRID, GRID).astype(float)
    offset = (np.arange(GRID) + 0.5) / GRID - 0.5
    radius = np.hypot(offset[:, None], offset)
    total = heat.sum() or np.nan
    centre = heat[radius <= CENTRE].sum() / total
    corners = heat[radius > INSCRIBED].sum() / total
    return dict(zip(AREAS, (centre, 1 - centre - corners, corners), strict=True))


def correlate_heat(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Spearman's rank correlation of two maps, as Adebayo et al. (NeurIPS 2018) do.

    Args:
        first: (h, w).
        second: (h, w), or another size; the larger map is then averaged over the smaller one's
            pixels.

    Returns:
        -1 … 1; nan where a map is the same everywhere.
    """
    height, width = np.minimum(np.shape(first), np.shape(second))
    maps = [_resize_heat(heat, height, width).ravel() for heat in (first, second)]
    if min(np.ptp(heat) for heat in maps) == 0:
        return np.nan
    return float(np.corrcoef([pd.Series(heat).rank() for heat in maps])[0, 1])


def randomise_weights(model: keras.Model, seed: int, count: int | None = None) -> keras.Model:
    """Copy a net and start the weights of its last layers anew, for the sanity check.

    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018: a map that stays the same when
    the net forgets what it learned does not show what it learned. The new weights are drawn by
    each layer's own initialisers.

    Args:
        model: a Sequential or Functional net; it stays as it is.
        seed: the same seed gives the same weights.
        count: how many of the layers that have weights forget them, counted from the output; 1, 2,
            … make a cascade. By default all.

    Returns:
        The copy.

    Raises:
        ValueError: the net has fewer layers with weights.
    """
    names = list_weighted_layers(model)
    count = len(names) if count is None else count
    if not 0 <= count <= len(names):
        raise ValueError(f"count is {count}: this net has {len(names)} layers with weights")
    rng = np.random.default_rng(seed)

    def rebuild(layer, config):
        for name, value in config.items():
            if name.endswith("initializer") and "seed" in (value or {}).get("config", {}):
                value["config"]["seed"] = int(rng.integers(2**31))
        return layer.__class__.from_config(config)

    return _copy_model(model, rebuild, kept=len(names) - count)


def list_weighted_layers(model: keras.Model) -> list[str]:
    """List the names of the layers that have weights, nested ones included, the output last."""
    return [layer.name for layer in _list_layers(model) if layer.weights]


def _list_layers(model: keras.Model) -> Iterator[layers.Layer]:
    """Walk through the layers, those of a nested net in its place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _list_layers(layer)
        else:
            yield layer


def _list_operations(model: keras.Model) -> Iterator[keras.Operation]:
    """Walk through all that computes: layers, and operations such as the sum of two tensors."""
    for node in getattr(model, "operations", model.layers):
        if isinstance(node, keras.Model):
            yield from _list_operations(node)
        else:
            yield node


def _copy_model(
    model: keras.Model, rebuild: Callable[[layers.Layer, dict], layers.Layer], kept: int
) -> keras.Model:
    """Build a net anew, those nested in it too.

    Args:
        model: the net.
        rebuild: makes the new layer from the old one and its configuration.
        kept: how many of the layers that have weights, from the input on, keep them.
    """

    def clone(node):
        is_layer = isinstance(node, layers.Layer)  # else an operation, which has no weights
        return rebuild(node, node.get_config()) if is_layer else node

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    pairs = zip(_list_layers(model), _list_layers(copy), strict=True)
    weighted = [(old, new) for old, new in pairs if old.weights]
    for old, new in weighted[:kept]:
        new.set_weights(old.get_weights())
    return copy


def _make_logit_model(model: keras.Model) -> keras.Model:
    """Copy a net in float32, without its last activation."""
    *_, last = _list_layers(model)
    if not isinstance(last, layers.Dense | layers.Activation | layers.Softmax):
        raise ValueError(
            f"the net ends in {last.name} ({type(last).__name__}): its logits are known only where "
            "the last layer is a Dense, Activation or Softmax"
        )

    def rebuild(layer, config):
        config["dtype"] = "float32"
        if isinstance(layer, layers.Softmax) and layer is last:
            return layers.Lambda(lambda logits: logits, name=layer.name)  # takes a mask, too
        if layer is last:
            config["activation"] = "linear"
        return layer.__class__.from_config(config)

    return _copy_model(model, rebuild, kept=len(list_weighted_layers(model)))


def _find_map_layer(net: keras.Model, pixels: np.ndarray, name: str) -> layers.Layer:
    """Find the layer whose maps Grad-CAM uses, by watching the net read one image."""
    outputs = []
    operations = _list_operations(net)
    with _watch_outputs(operations, lambda layer, output: outputs.append((layer, output))):
        net(pixels, training=False)
    convolved, found = False, {}
    for layer, output in outputs:
        convolved = convolved or isinstance(layer, CONVOLUTIONS)
        shape = tuple(getattr(output, "shape", ()))
        if convolved and len(shape) == 4 and shape[1] * shape[2] > 1:
            found[layer.name] = layer
    if not found:
        raise ValueError(
            f"{net.name} has no convolution that gives maps of more than one pixel: Grad-CAM "
            "cannot say where it looked"
        )
    if not name:
        return list(found.values())[-1]
    if name not in found:
        raise ValueError(f"{net.name} has no maps in a layer {name!r}: choose {', '.join(found)}")
    return found[name]


def _weigh_maps(
    net: keras.Model, layer: layers.Layer, pixels: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Sum a layer's maps, weighted by the mean gradients of the logits: float32 (N, h, w)."""
    maps = []
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def note(_, output):
            tape.watch(output)
            maps.append(output)

        with _watch_outputs([layer], note):
            logits = net(pixels, training=False)
        chosen = tf.gather(logits, classes, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, maps[-1]), axis=(1, 2))
    return tf.einsum("nhwk,nk->nhw", maps[-1], weights).numpy()


@contextmanager
def _watch_outputs(watched: Iterable[layers.Layer], note: Callable) -> Iterator[None]:
    """Call `note(layer, output)` whenever one of the layers is computed.

    A layer inside a nested net is no part of the outer net's graph, so no net can be made that
    ends in it; this way it does not matter where a layer is.
    """
    calls = {layer: layer.call for layer in watched}
    for layer, call in calls.items():

        def noted(*args, layer=layer, call=call, **kwargs):
            output = call(*args, **kwargs)
            note(layer, output)
            return output

        layer.call = noted
    try:
        yield
    finally:
        for layer, call in calls.items():
            layer.call = call


def _resize_heat(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map to float32 (height, width): bilinear, but area averages where a side shrinks."""
    heat = np.asarray(heat, dtype=np.float32)
    smaller = (min(width, heat.shape[1]), min(height, heat.shape[0]))
    heat = cv2.resize(heat, smaller, interpolation=cv2.INTER_AREA)
    return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)


def _start_squares(side: int, patch: int, stride: int) -> list[int]:
    """List where squares start so that the last one ends with the side."""
    return sorted({*range(0, side - patch + 1, stride), side - patch})


def _find_frame_colour(image: np.ndarray) -> np.ndarray:
    """Return the median colour (3,) of the image's frame, an eighth of each side wide."""
    height, width = image.shape[:2]
    y, x = -(-height // 8), -(-width // 8)
    frame = np.ones((height, width), bool)
    frame[y : height - y, x : width - x] = False
    return np.median(image[frame], axis=0)
