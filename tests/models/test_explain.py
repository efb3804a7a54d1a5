"""Heat maps of nets whose answer is known to come from one place, and hand-worked cases."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from PIL import Image
from scipy.stats import spearmanr

from helpers.data.files import InputError
from helpers.evaluation import heatmaps


@pytest.fixture(autouse=True)
def restore_precision():
    policy = keras.mixed_precision.dtype_policy()
    yield
    keras.mixed_precision.set_dtype_policy(policy)


def make_quadrant_net(side=8, weight=16.0, bias=-2.0):
    """Build a net whose class 1 is the brightness of the lower right quadrant, and only that.

    The quadrant is chosen by the Dense layer, not by the maps, which show the whole image.
    """
    inputs = keras.Input((side, side, 3), dtype="uint8")
    found = layers.Conv2D(1, 1, use_bias=False)(layers.Rescaling(1 / 255)(inputs))
    outputs = layers.Dense(2, "softmax", dtype="float32")(layers.Flatten()(found))
    net = keras.Model(inputs, outputs)
    quadrant = np.zeros((side, side))
    quadrant[side // 2 :, side // 2 :] = weight * 4 / side**2
    kernel = np.stack([np.zeros(side**2), quadrant.ravel()], axis=1)
    net.set_weights([np.full((1, 1, 3, 1), 1 / 3), kernel, np.array([0, bias])])
    return net


def draw_image(side=8, seed=0):
    return np.random.default_rng(seed).integers(100, 256, (side, side, 3), dtype=np.uint8)


def make_by_hand(end):
    """Build a net of two 2x2 maps, the image's red and green; its Dense has known weights."""
    inputs = keras.Input((2, 2, 3), dtype="uint8")
    found = layers.Conv2D(2, 1, use_bias=False, name="maps")(layers.Rescaling(1.0)(inputs))
    activation = "softmax" if end is None else None
    outputs = layers.Dense(2, activation, name="logits")(layers.Flatten()(found))
    net = keras.Model(inputs, outputs if end is None else end(outputs))
    # Flatten gives red and green of pixel (0, 0), then of (0, 1), (1, 0) and (1, 1).
    weights = np.array([1, -2, 3, -4, 5, -6, 7, -8.0])
    net.get_layer("maps").set_weights([np.eye(3)[None, None, :, :2]])
    net.get_layer("logits").set_weights([np.stack([weights, -weights], 1), np.ones(2)])
    return net


@pytest.mark.parametrize("end", [None, layers.Activation("softmax"), layers.Softmax()])
def test_map_by_hand(end):
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = [[1, 2], [3, 4]]
    image[..., 1] = [[2, 1], [0, 1]]
    heat = heatmaps.compute_grad_cam(make_by_hand(end), np.stack([image, image]), [0, 1])
    # Class 0: [[1 - 4, 6 - 4], [15, 28 - 8]] = [[-3, 2], [15, 20]]; class 1 is its negative.
    assert heat.dtype == np.float32
    assert heat[0] == pytest.approx(np.array([[0, 0.1], [0.75, 1]]), abs=1e-5)
    assert heat[1] == pytest.approx(np.array([[1, 0], [0, 0]]), abs=1e-5)


def test_heat_is_where_the_net_looks_also_where_a_dense_layer_chooses_the_place():
    image = draw_image()
    heat = heatmaps.compute_grad_cam(make_quadrant_net(), image[None], [1])[0]
    expected = np.zeros((8, 8))
    expected[4:, 4:] = image[4:, 4:].mean(axis=2)
    assert heat == pytest.approx(expected / expected.max(), abs=1e-5)
    assert not heatmaps.compute_grad_cam(make_quadrant_net(), image[None], [0]).any()


def test_logits_are_used_where_the_probability_is_one():
    net = make_quadrant_net(bias=200.0)
    image = draw_image()[None]
    assert net.predict(image, verbose=0)[0].tolist() == [0, 1]
    assert heatmaps.compute_grad_cam(net, image, [1]).max() == 1


def test_every_image_is_explained_by_itself():
    """More images than fit into a batch, one at a time and all together."""
    net, classes = make_by_hand(None), np.arange(40) % 2
    pixels = np.stack([draw_image(2, seed) for seed in range(40)])
    together = heatmaps.compute_grad_cam(net, pixels, classes)
    for i in (0, 33, 39):
        alone = heatmaps.compute_grad_cam(net, pixels[i : i + 1], classes[i : i + 1])
        assert together[i] == pytest.approx(alone[0], abs=1e-6)


def test_half_precision_nets_are_explained_in_float32():
    image = draw_image()[None]
    expected = heatmaps.compute_grad_cam(make_quadrant_net(), image, [1])
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    net = make_quadrant_net(weight=1e-8)  # its gradients would be zero in float16
    assert net.layers[2].compute_dtype == "float16"
    assert heatmaps.compute_grad_cam(net, image, [1]) == pytest.approx(expected, abs=1e-5)


def test_nets_in_nets_are_searched_and_sums_of_tensors_have_maps():
    image = keras.Input((8, 8, 3), dtype="uint8")
    inner = keras.Input((8, 8, 3))
    body = keras.Model(inner, inner + layers.Conv2D(3, 1, name="branch")(inner))
    found = layers.Flatten()(body(layers.Rescaling(1 / 255)(image)))
    net = keras.Model(image, layers.Dense(2, "softmax")(found))
    body.get_layer("branch").set_weights([np.zeros((1, 1, 3, 3)), np.zeros(3)])
    net.layers[-1].set_weights([np.ones((192, 2)) * [1, 0], np.zeros(2)])
    assert not heatmaps.compute_grad_cam(net, draw_image()[None], [0], "branch").any()
    heat = heatmaps.compute_grad_cam(net, draw_image()[None], [0])
    brightness = draw_image().sum(axis=2)
    assert heat[0] == pytest.approx(brightness / brightness.max(), abs=1e-5)


def test_maps_are_those_of_the_last_layer_that_is_fine_enough():
    pixels = np.zeros((1, 75, 100, 3), np.uint8)
    start = [keras.Input((75, 100, 3), dtype="uint8"), layers.Rescaling(1 / 255)]
    halves = [layers.Conv2D(2, 3, 2, padding="same", name=f"half{i}") for i in range(4)]
    net = keras.Sequential([*start, *halves, layers.Flatten(), layers.Dense(2, "softmax")])
    assert heatmaps.compute_grad_cam(net, pixels, [0]).shape == (1, 19, 25)
    assert heatmaps.compute_grad_cam(net, pixels, [0], layer="half3").shape == (1, 5, 7)
    with pytest.raises(ValueError, match=r"no maps in a layer 'flatten': choose half0, half1, "):
        heatmaps.compute_grad_cam(net, pixels, [0], layer="flatten")


def test_nets_and_classes_that_cannot_be_explained_are_refused():
    start = [keras.Input((4, 4, 3), dtype="uint8"), layers.Rescaling(1 / 255)]
    dense = keras.Sequential([*start, layers.Flatten(), layers.Dense(2, "softmax")])
    pooled = keras.Sequential([*start, layers.Conv2D(2, 1), layers.GlobalAveragePooling2D()])
    image = draw_image(4)[None]
    for net, classes, message in (
        (dense, [0], "the net has none of several pixels"),
        (pooled, [0], "ends in global_average_pooling2d"),
        (dense, [0, 1], "1 images, 2 classes"),
        (dense, [2], "1 images, 2 classes"),
        (dense, [-1], "1 images, 2 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            heatmaps.compute_grad_cam(net, image, classes)


def test_occlusion_falls_where_the_net_looks():
    net, image = make_quadrant_net(), draw_image()
    image[0], image[:, 0] = 0, 0  # the frame is one pixel wide: darker than the quadrant on average
    falls = heatmaps.compute_occlusion(net, image, 1, patch=2, stride=2)
    assert falls.shape == (8, 8)
    assert not falls[:4].any()
    assert not falls[:, :4].any()
    frame = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    hidden = image.copy()
    hidden[4:6, 6:8] = np.median(frame, axis=0)
    probability = net.predict(np.stack([image, hidden]), verbose=0)[:, 1]
    assert falls[4:6, 6:8] == pytest.approx(probability[0] - probability[1], abs=1e-6)
    # Squares of 3, 2 apart: they start at 0, 2, 4 and 5, so that every pixel is hidden.
    assert np.isfinite(heatmaps.compute_occlusion(net, image, 1, patch=3, stride=2)).all()
    for patch, stride in ((9, 1), (2, 3), (2, 0)):
        with pytest.raises(ValueError, match=rf"patch {patch}, stride {stride}, image 8x8"):
            heatmaps.compute_occlusion(net, image, 1, patch, stride)


def test_correlation_is_spearmans_and_the_larger_map_is_averaged():
    first, second = np.random.default_rng(0).random((2, 5, 7)).round(1)
    expected = spearmanr(first.ravel(), second.ravel()).statistic
    assert heatmaps.correlate_heat(first, second) == pytest.approx(expected)
    assert np.isnan(heatmaps.correlate_heat(first, np.zeros((5, 7))))
    coarse = np.arange(9.0).reshape(3, 3)
    fine = np.kron(coarse, np.ones((4, 4))) + np.tile([[-0.5, 0.5]], (12, 6))
    assert heatmaps.correlate_heat(coarse, fine) == pytest.approx(1)
    assert heatmaps.correlate_heat(fine, -coarse) == pytest.approx(-1)


def test_heat_is_laid_over_an_image_of_any_size():
    image = draw_image(40)[:30]
    assert (heatmaps.overlay_heat(image, np.zeros((3, 3))) == image).all()
    mixed = heatmaps.overlay_heat(image, np.array([[0, 0], [0, 1.0]]))
    assert (mixed[:5, :5] == image[:5, :5]).all()
    yellow = np.array([240, 249, 33])  # the end of matplotlib's plasma
    assert mixed[-1, -1] == pytest.approx(0.6 * yellow + 0.4 * image[-1, -1], abs=1)


def test_heat_on_the_lesion_by_hand():
    outline = np.zeros((20, 40), bool)
    outline[:10, :10] = True
    uniform = heatmaps.measure_on_lesion(np.full((4, 8), 0.3), outline)
    assert (uniform["share"], uniform["area"]) == (pytest.approx(1 / 8), 1 / 8)
    heat = np.zeros((20, 40))
    heat[5, 5], heat[15, 30] = 3, 1
    assert heatmaps.measure_on_lesion(heat, outline) == {"share": 0.75, "area": 0.125, "peak": 1}
    heat[15, 30] = 9
    assert heatmaps.measure_on_lesion(heat, outline) == {"share": 0.25, "area": 0.125, "peak": 0}
    nothing = heatmaps.measure_on_lesion(np.zeros((2, 2)), outline)
    assert np.isnan([nothing["share"], nothing["peak"]]).all()
    assert heatmaps.draw_ellipse().mean() == pytest.approx(np.pi / 9, abs=1e-3)


def test_outlines_are_read_by_image_and_missing_ones_named(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4] = 255
    Image.fromarray(mask).convert("1").save(tmp_path / "a_segmentation.png")
    (outline,) = heatmaps.read_outlines(tmp_path, ["a"])
    assert (outline == (mask > 0)).all()
    with pytest.raises(InputError, match=r"(?s)b_segmentation.png.*c_segmentation.png"):
        heatmaps.read_outlines(tmp_path, ["a", "b", "c"])


def make_measures(lesions, randomised=0.1, agreement=0.2, lesion=0.2):
    means = {"randomised": randomised, "agreement": agreement, "lesion": lesion}
    values = np.random.default_rng(0).normal(list(means.values()), 0.05, (lesions, 3))
    return pd.DataFrame(values, columns=list(means))


@pytest.mark.parametrize(
    ("measures", "failed", "verdict"),
    [
        (make_measures(30), [], "passed"),
        (make_measures(30, randomised=0.9), ["randomised"], "failed"),
        (make_measures(30, agreement=-0.1), ["agreement"], "failed"),
        (make_measures(30, agreement=0.0), [], "open"),
        (make_measures(30, lesion=-0.1), ["lesion"], "failed"),
        (make_measures(9), [], "open"),
    ],
)
def test_verdict_needs_every_check_and_ten_lesions(measures, failed, verdict, tmp_path):
    judged = heatmaps.judge_heat(measures, range(len(measures)))
    assert list(judged.index[~judged["passed"].fillna(True)]) == failed
    run = SimpleNamespace(path=tmp_path, metrics={"files": {"model.keras": "1"}})
    assert heatmaps.read_verdict(run) == ""
    assert heatmaps.write_verdict(run, judged, "ellipse") == heatmaps.read_verdict(run) == verdict
    assert json.loads((tmp_path / heatmaps.VERDICT).read_text())["verdict"] == verdict
    assert heatmaps.read_verdict(SimpleNamespace(path=tmp_path, metrics={"files": {}})) == ""
    (tmp_path / heatmaps.VERDICT).write_text("{half")
    assert heatmaps.read_verdict(run) == ""


def test_images_of_one_lesion_count_once():
    twice = pd.concat([make_measures(12)] * 2)
    judged = heatmaps.judge_heat(twice, [*range(12)] * 2)
    assert judged.equals(heatmaps.judge_heat(make_measures(12), range(12)))
    values = make_measures(12)["lesion"]
    reach = 2.201 * values.std() / np.sqrt(12)  # Student's t of 11 degrees of freedom
    assert judged.loc["lesion", "low"] == pytest.approx(values.mean() - reach, abs=1e-4)


def test_randomised_copy_forgets_everything():
    keras.utils.set_random_seed(3)
    inner = [keras.Input((8, 8, 3)), layers.Conv2D(16, 3), layers.BatchNormalization()]
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    found = layers.Flatten()(keras.Sequential(inner)(layers.Rescaling(1 / 255)(inputs)))
    net = keras.Model(inputs, layers.Dense(16, activation="softmax")(found))
    rng = np.random.default_rng(0)
    net.set_weights([rng.normal(size=weights.shape) for weights in net.get_weights()])
    before, weights = net.get_weights(), heatmaps.randomise_weights(net, seed=1).get_weights()
    for old, new in zip(before, weights, strict=True):
        assert not (old == new).all()
        assert np.sort(old, axis=None) == pytest.approx(np.sort(new, axis=None))
    again = heatmaps.randomise_weights(net, seed=1).get_weights()
    assert all((a == b).all() for a, b in zip(weights, again, strict=True))
    assert not (heatmaps.randomise_weights(net, seed=2).get_weights()[0] == again[0]).all()
    heatmaps.compute_grad_cam(net, draw_image()[None], [1])
    assert all((a == b).all() for a, b in zip(before, net.get_weights(), strict=True))
