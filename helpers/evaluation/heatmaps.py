"""What a net looked at: heat maps (Grad-CAM, occlusion), and how far they can be believed."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers
from matplotlib import colormaps
from scipy.stats import t as student

from helpers.data.files import InputError, raise_problems, replace_file, resolve_path
from helpers.data.images import read_image, resize_pixels
from helpers.nets.models import rebuild_net

VERDICT = "heat_verdict.json"
BATCH = 32
FINEST = 0.18  # of a side: the maps of 75x100 pixels are then at least 14x19
ELLIPSE = 1 / 3  # semi-axes of the ellipse that stands for a lesion, as shares of the sides
FEWEST_LESIONS = 10  # for a verdict
UNRELATED = 0.5  # rank correlation below which the map of a randomised net is another map
OPACITY = 0.6  # how much of the colour covers the image where the heat is 1


def compute_grad_cam(
    model: keras.Model, pixels: np.ndarray, classes: np.ndarray, layer: str = ""
) -> np.ndarray:
    """Compute Grad-CAM, place by place: where the feature maps of a layer speak for a class.

    The maps times the gradient of the class's logit with respect to them, summed over the maps;
    what is negative becomes zero: HiResCAM (Draelos & Carin, arXiv:2011.08891, 2020). Grad-CAM
    itself (Selvaraju et al., ICCV 2017) takes the gradient's mean over the image: on maps of an
    earlier, finer layer its heat fell on HAM10000's lesions no more than by their area. The logit,
    and float32: the gradient of a probability vanishes where the net is sure.

    Args:
        model: a Sequential or Functional net, perhaps with others nested in it, that ends in a
            Dense, Activation or Softmax.
        pixels: uint8 (N, height, width, 3), as the net takes them.
        classes: int (N,), the class to explain for each image.
        layer: name of the layer whose maps are used; "": the last one whose maps have at least
            `FINEST` of the image's sides, else the first one after a convolution.

    Returns:
        float32 (N, h, w), each map divided by its maximum, 0 … 1; zero everywhere where nothing
        speaks for the class. h and w are the layer's.
    """
    classes = np.asarray(classes)
    outside = classes[(classes < 0) | (classes >= model.output_shape[-1])]
    if len(pixels) != len(classes) or len(outside):
        has = f"{len(pixels)} images, {model.output_shape[-1]} classes"
        raise ValueError(f"classes {list(classes)}: the net and the pixels have {has}")
    net = _make_logit_model(model)
    target = _find_map_layer(net, pixels[:1], layer)
    starts = range(0, len(pixels), BATCH)
    heat = [_weigh_maps(net, target, pixels[i : i + BATCH], classes[i : i + BATCH]) for i in starts]
    return scale_heat(np.concatenate(heat))


def compute_occlusion(
    model: keras.Model, image: np.ndarray, label: int, patch: int, stride: int
) -> np.ndarray:
    """Compute occlusion sensitivity: how the probability falls where a square hides the image.

    Zeiler & Fergus, ECCV 2014, but the square has the median colour of the image's frame, mostly
    skin: a grey one would be a new object.

    Takes a net, an image, uint8 (height, width, 3), as the net takes it, the class whose
    probability is watched, and in pixels the side of the square and the stride from one square to
    the next, 1 … patch. Returns float32 (height, width), -1 … 1: by how much the probability falls,
    on average over the squares that hide the pixel.
    """
    height, width = image.shape[:2]
    if not 1 <= stride <= patch <= min(height, width):
        wanted = f"1 <= stride <= patch <= {min(height, width)}"
        raise ValueError(f"patch {patch}, stride {stride}, image {height}x{width}: not {wanted}")
    starts = [sorted({*range(0, n - patch + 1, stride), n - patch}) for n in (height, width)]
    corners = [(y, x) for y in starts[0] for x in starts[1]]
    hidden = np.repeat(image[None], len(corners) + 1, axis=0)
    y, x = -(-height // 8), -(-width // 8)
    frame = np.ones((height, width), bool)
    frame[y : height - y, x : width - x] = False
    for copy, (y, x) in zip(hidden, corners, strict=False):  # the last one stays as it is
        copy[y : y + patch, x : x + patch] = np.median(image[frame], axis=0)
    probability = model.predict(hidden, verbose=0)[:, label].astype(float)
    falls, times = np.zeros((height, width)), np.zeros((height, width))
    for (y, x), found in zip(corners, probability, strict=False):
        falls[y : y + patch, x : x + patch] += probability[-1] - found
        times[y : y + patch, x : x + patch] += 1
    return (falls / times).astype(np.float32)


def scale_heat(maps: np.ndarray) -> np.ndarray:
    """Set what is negative to zero and divide each map (N, h, w) by its maximum, if above 0."""
    heat = np.maximum(maps, 0).astype(np.float32)
    highest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


def overlay_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay heat over an image: purple to yellow (matplotlib's plasma), clear where it is zero.

    Takes uint8 (height, width, 3) of any size, and heat (h, w), 0 … 1, which is stretched over it.
    """
    heat = np.clip(resize_heat(heat, image.shape[:2]), 0, 1)
    cover = OPACITY * heat[..., None]
    mixed = cover * colormaps["plasma"](heat)[..., :3] * 255 + (1 - cover) * image
    return np.rint(mixed).astype(np.uint8)


def correlate_heat(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Spearman's rank correlation of two maps; nan where one is the same everywhere.

    Of maps of two sizes the larger one is averaged over the smaller one's pixels.
    """
    size = np.minimum(np.shape(first), np.shape(second))
    maps = [resize_heat(heat, size).ravel() for heat in (first, second)]
    if min(np.ptp(heat) for heat in maps) == 0:
        return np.nan
    return float(np.corrcoef([pd.Series(heat).rank() for heat in maps])[0, 1])


def read_outlines(folder: str | os.PathLike, image_ids: Iterable[str]) -> list[np.ndarray]:
    """Read outlines of lesions, bool (h, w), True inside.

    The folder holds a `<image_id>_segmentation.png` for each image, white inside, as Tschandl et
    al. published them.
    """
    outlines, problems = [], []
    for image_id in image_ids:
        try:
            path = resolve_path(folder) / f"{image_id}_segmentation.png"
            outlines.append(read_image(path)[..., 0] > 127)
        except InputError as error:
            problems += [f"{error.where}: {text}" for text in error.problems]
    raise_problems("the outlines of lesions", problems)
    return outlines


def draw_ellipse(side: int = 240) -> np.ndarray:
    """Draw what stands for an outline where there is none, bool (side, side), for any image.

    HAM10000's photographs are centred on the lesion. The ellipse covers 34.9 % of the image.
    """
    offset = (np.arange(side) + 0.5) / side - 0.5
    return np.hypot(offset[:, None], offset) <= ELLIPSE


def measure_on_lesion(heat: np.ndarray, outline: np.ndarray) -> dict[str, float]:
    """Measure how much of the heat (h, w), stretched over the outline, lies inside.

    Returns the share of the heat; area, the outline's share of the image, which is what uniform
    heat would have; peak, 1 where the hottest place lies inside, else 0 (the pointing game of Zhang
    et al., ECCV 2016). Without heat share and peak are nan.
    """
    heat = resize_heat(heat, outline.shape).astype(float)
    if (total := heat.sum()) <= 0:
        return {"share": np.nan, "area": outline.mean(), "peak": np.nan}
    peak = outline[np.unravel_index(heat.argmax(), heat.shape)]
    return {"share": heat[outline].sum() / total, "area": outline.mean(), "peak": float(peak)}


def judge_heat(measured: pd.DataFrame, groups: Iterable) -> pd.DataFrame:
    """Judge whether the heat maps of a net can be believed, by three checks.

    Takes a row per image, nan where there is no heat: randomised, the rank correlation with the map
    of the net with all weights randomised; agreement, by how much the correlation with occlusion
    exceeds that with the occlusion of another image; lesion, by how much the share of heat on the
    lesion exceeds the lesion's area. And the lesion of each image: several of one count once.

    Returns a row per check: lesions, value (mean), low and high (its 95 % interval), and passed:
    randomised lies below `UNRELATED`, the others above 0; missing where the interval leaves that
    open, or where there are fewer than `FEWEST_LESIONS`.
    """
    by_lesion = measured.groupby(np.asarray(groups)).mean()
    table = pd.DataFrame({"lesions": by_lesion.count(), "value": by_lesion.mean()})
    reach = student.ppf(0.975, table["lesions"].clip(2) - 1) * by_lesion.sem()
    table["low"], table["high"] = table["value"] - reach, table["value"] + reach
    bound = np.where(table.index == "randomised", UNRELATED, 0)
    passed = (table["value"] > bound) != (table.index == "randomised")
    is_sure = (table["low"] > bound) | (table["high"] < bound)
    table["passed"] = passed.astype("boolean").where(is_sure & (table["lesions"] >= FEWEST_LESIONS))
    return table


def decide(judged: pd.DataFrame) -> str:
    """Decide by the table of `judge_heat`: "passed" (every check), "failed" (some) or "open"."""
    passed = judged["passed"]
    return "failed" if (~passed).any() else "passed" if passed.notna().all() else "open"


def write_verdict(run, judged: pd.DataFrame, lesion: str) -> str:
    """Keep the verdict on a run's default maps in its folder, if it can be written; return it.

    `lesion` says what stood for the lesion: outline or ellipse.
    """
    checks = json.loads(judged.to_json(orient="index"))
    found = {"verdict": decide(judged), "lesion": lesion, "checks": checks}
    found["files"] = run.metrics["files"]
    text = json.dumps(found, indent=2) + "\n"
    with suppress(OSError):
        replace_file(run.path / VERDICT, lambda path: path.write_text(text, encoding="utf-8"))
    return found["verdict"]


def read_verdict(run) -> str:
    """Read "passed", "failed" or "open" back; "" where this model was not checked."""
    try:
        found = json.loads((run.path / VERDICT).read_text(encoding="utf-8"))
        return found["verdict"] if found["files"] == run.metrics["files"] else ""
    except (OSError, ValueError, KeyError):
        return ""


def randomise_weights(model: keras.Model, seed: int) -> keras.Model:
    """Copy a net that forgets what it learned: the weights of each layer are shuffled.

    The sanity check of Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018: a map that
    stays the same when the net forgets does not show what it learned.
    """
    copy, rng = rebuild_net(model), np.random.default_rng(seed)
    for layer in _list_operations(copy):
        if getattr(layer, "weights", None):
            weights = layer.get_weights()
            layer.set_weights([rng.permuted(w.ravel()).reshape(w.shape) for w in weights])
    return copy


def _list_operations(model: keras.Model) -> Iterator[keras.Operation]:
    """Walk through all that computes: layers, and operations such as the sum of two tensors."""
    for node in getattr(model, "operations", model.layers):
        yield from _list_operations(node) if isinstance(node, keras.Model) else [node]


def _make_logit_model(model: keras.Model) -> keras.Model:
    """Copy a net in float32, without its last activation."""
    *_, last = _list_operations(model)
    if not isinstance(last, layers.Dense | layers.Activation | layers.Softmax):
        end = f"{last.name} ({type(last).__name__})"
        raise ValueError(f"the net ends in {end}, wanted is a Dense, Activation or Softmax")

    def change(layer, config):
        config["dtype"] = "float32"
        if layer is last and isinstance(layer, layers.Softmax):
            return layers.Lambda(lambda logits: logits, name=layer.name)  # takes a mask, too
        if layer is last:
            config["activation"] = "linear"
        return None

    return rebuild_net(model, change)


def _find_map_layer(net: keras.Model, pixels: np.ndarray, name: str) -> keras.Operation:
    """Find the layer whose maps Grad-CAM uses, by watching the net read one image."""
    outputs, found, convolved = [], {}, False
    with _watch_outputs(_list_operations(net), lambda *pair: outputs.append(pair)):
        net(pixels, training=False)
    for layer, output in outputs:
        convolved = convolved or "Conv" in type(layer).__name__
        shape = tuple(getattr(output, "shape", ()))
        if convolved and len(shape) == 4 and shape[1] * shape[2] > 1:
            found[layer.name] = layer, min(np.divide(shape[1:3], pixels.shape[1:3]))
    if not found or (name and name not in found):
        have = f"choose {', '.join(found)}" if found else "the net has none of several pixels"
        raise ValueError(f"no maps in a layer {name!r}: {have}")
    fine = [layer for layer, side in found.values() if side >= FINEST]
    return found[name][0] if name else (fine or [layer for layer, _ in found.values()][:1])[-1]


def _weigh_maps(net, layer, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Sum a layer's maps times the gradients of the logits: float32 (N, h, w)."""
    maps = []
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def note(_, output):
            tape.watch(output)
            maps.append(output)

        with _watch_outputs([layer], note):
            logits = net(pixels, training=False)
        chosen = tf.gather(logits, classes, batch_dims=1)
    return tf.reduce_sum(maps[-1] * tape.gradient(chosen, maps[-1]), axis=-1).numpy()


@contextmanager
def _watch_outputs(watched: Iterable, note: Callable) -> Iterator[None]:
    """Call `note(layer, output)` whenever one of the layers is computed, nested ones too."""
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


def resize_heat(heat: np.ndarray, size) -> np.ndarray:
    """Resize a map to float32 (height, width): bilinear, but averaged where a side shrinks."""
    return resize_pixels(np.asarray(heat, dtype=np.float32), tuple(map(int, size)))
