"""Heat maps of nets whose answer is known to come from one place, and hand-worked cases."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import spearmanr

from helpers.evaluation import heatmaps as explain

UNIFORM = {"centre": np.pi / 9, "surround": np.pi / 4 - np.pi / 9, "corners": 1 - np.pi / 4}


@pytest.fixture(autouse=True)
def restore_precision():
    policy = keras.mixed_precision.dtype_policy()
    yield
    keras.mixed_precision.set_dtype_policy(policy)


def make_quadrant_net(side=8, dtype="uint8"):
    """Build a net that sees the lower right quadrant alone: class 1 is its brightness."""
    net = keras.Sequential(
        [
            keras.Input((side, side, 3), dtype=dtype),
            layers.Rescaling(1 / 255),
            layers.Cropping2D(((side // 2, 0), (side // 2, 0))),
            layers.ZeroPadding2D(((side // 2, 0), (side // 2, 0))),
            layers.Conv2D(1, 1, use_bias=False),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax", dtype="float32"),
        ]
    )
    net.layers[3].set_weights([np.full((1, 1, 3, 1), 1 / 3)])
    net.layers[-1].set_weights([np.array([[0, 16.0]]), np.array([0, -2.0])])
    return net


def measure_quadrant(heat):
    """Return the share of the heat that lies in the lower right quadrant."""
    height, width = np.shape(heat)
    return heat[height // 2 :, width // 2 :].sum() / heat.sum()


def draw_image(side=8, seed=0):
    return np.random.default_rng(seed).integers(100, 256, (side, side, 3), dtype=np.uint8)


def make_by_hand(end):
    """Build a net of two 2x2 maps, the image's red and green; its Dense has known weights."""
    inputs = keras.Input((2, 2, 3), dtype="uint8")
    scaled = layers.Rescaling(1.0)(inputs)
    found = layers.Conv2D(2, 1, use_bias=False, name="maps")(scaled)
    logits = layers.Dense(2, name="logits", activation="softmax" if end == "dense" else None)(
        layers.Flatten()(found)
    )
    outputs = logits if end == "dense" else end(logits)
    net = keras.Model(inputs, outputs)
    net.get_layer("maps").set_weights([np.eye(3)[None, None, :, :2]])
    # Flatten gives red and green of pixel (0, 0), then of (0, 1), (1, 0) and (1, 1).
    weights = np.array([1, -2, 3, -4, 5, -6, 7, -8.0])
    net.get_layer("logits").set_weights([np.stack([weights, -weights], 1), np.ones(2)])
    return net


ENDS = {
    "dense": "dense",
    "activation": layers.Activation("softmax"),
    "softmax": layers.Softmax(),
}


@pytest.mark.parametrize("end", ENDS)
def test_grad_cam_by_hand(end):
    """Mean gradients are 4 (red) and -5 (green) for class 0, the opposite for class 1."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = [[1, 2], [3, 4]]
    image[..., 1] = [[2, 1], [0, 1]]
    net = make_by_hand(end=ENDS[end])
    heat = explain.compute_grad_cam(net, np.stack([image, image]), np.array([0, 1]))
    # Class 0: 4 red - 5 green = [[-6, 3], [12, 11]]; class 1 is its negative.
    assert heat.dtype == np.float32
    assert heat[0] == pytest.approx(np.array([[0, 3 / 12], [1, 11 / 12]]), abs=1e-5)
    assert heat[1] == pytest.approx(np.array([[1, 0], [0, 0]]), abs=1e-5)


def test_heat_is_where_the_net_looks():
    image = draw_image()[None]
    heat = explain.compute_grad_cam(make_quadrant_net(), image, [1])
    assert heat.shape == (1, 8, 8)
    assert measure_quadrant(heat[0]) == 1
    brightness = image[0, 4:, 4:].mean(axis=2)
    assert heat[0, 4:, 4:] == pytest.approx(brightness / brightness.max(), abs=1e-5)


def test_heat_is_zero_where_nothing_speaks_for_the_class():
    heat = explain.compute_grad_cam(make_quadrant_net(), draw_image()[None], [0])
    assert (heat == 0).all()


def test_logits_are_used_where_the_probability_is_one():
    net = make_quadrant_net()
    net.layers[-1].set_weights([np.array([[0, 16.0]]), np.array([-200.0, 200.0])])
    image = draw_image()[None]
    assert net.predict(image, verbose=0)[0].tolist() == [0, 1]
    assert explain.compute_grad_cam(net, image, [1]).max() == 1


def test_every_image_is_explained_by_itself():
    """More images than fit into a batch, one at a time and all together."""
    net, classes = make_by_hand("dense"), np.arange(40) % 2
    pixels = np.stack([draw_image(2, seed) for seed in range(40)])
    together = explain.compute_grad_cam(net, pixels, classes)
    for i in (0, 33, 39):
        alone = explain.compute_grad_cam(net, pixels[i : i + 1], classes[i : i + 1])
        assert together[i] == pytest.approx(alone[0], abs=1e-6)


def test_float_pixels_give_the_same_heat():
    image = draw_image()[None]
    whole = explain.compute_grad_cam(make_quadrant_net(), image, [1])
    fractional = explain.compute_grad_cam(
        make_quadrant_net(dtype="float32"), image.astype(np.float32), [1]
    )
    assert fractional == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_nets_are_explained_in_float32(policy):
    image = draw_image()[None]
    expected = explain.compute_grad_cam(make_quadrant_net(), image, [1])
    keras.mixed_precision.set_dtype_policy(policy)
    net = make_quadrant_net()
    assert net.layers[3].compute_dtype == policy.removeprefix("mixed_")
    # Gradients of 1e-9 would be zero in float16.
    net.layers[-1].set_weights([np.array([[0, 1e-9]]), np.zeros(2)])
    assert explain.compute_grad_cam(net, image, [1]) == pytest.approx(expected, abs=1e-5)


def test_nets_in_nets_are_searched():
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    quadrant = make_quadrant_net()
    features = keras.Sequential(quadrant.layers[1:4], name="features")
    backbone_input = keras.Input((8, 8, 3))
    backbone = keras.Model(backbone_input, features(backbone_input), name="backbone")
    scaled = layers.Rescaling(1 / 255)(inputs) * 2.0  # an operation is no layer
    found = layers.GlobalAveragePooling2D()(backbone(scaled))
    net = keras.Model(inputs, layers.Dense(2, activation="softmax")(found))
    net.layers[-1].set_weights(quadrant.layers[-1].get_weights())
    heat = explain.compute_grad_cam(net, draw_image()[None], [1])
    expected = explain.compute_grad_cam(quadrant, draw_image()[None], [1])
    assert heat == pytest.approx(expected, abs=1e-6)


def test_last_layer_with_more_than_one_pixel_is_taken():
    net = keras.Sequential(
        [
            keras.Input((9, 9, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(2, 3, name="early"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Conv2D(2, 3, name="single"),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    assert explain.compute_grad_cam(net, draw_image(9)[None], [1]).shape == (1, 3, 3)
    early = explain.compute_grad_cam(net, draw_image(9)[None], [1], layer="early")
    assert early.shape == (1, 7, 7)
    with pytest.raises(ValueError, match=r"no maps in a layer 'single': choose early, pool"):
        explain.compute_grad_cam(net, draw_image(9)[None], [1], layer="single")


def make_dense_net(*tail):
    return keras.Sequential(
        [keras.Input((4, 4, 3), dtype="uint8"), layers.Rescaling(1 / 255), *tail]
    )


def test_net_without_a_convolution_is_refused():
    net = make_dense_net(layers.Flatten(), layers.Dense(2, activation="softmax"))
    with pytest.raises(ValueError, match="no convolution that gives maps of more than one pixel"):
        explain.compute_grad_cam(net, draw_image(4)[None], [0])


def test_unknown_end_is_refused():
    net = make_dense_net(layers.Conv2D(2, 1), layers.GlobalAveragePooling2D(name="mean"))
    with pytest.raises(ValueError, match=r"ends in mean \(GlobalAveragePooling2D\)"):
        explain.compute_grad_cam(net, draw_image(4)[None], [0])


@pytest.mark.parametrize(
    ("classes", "message"),
    [([0, 1], "1 images but 2 classes"), ([2], "class 2: this net has 0 … 1"), ([-1], "class -1")],
)
def test_classes_that_are_not_the_nets_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        explain.compute_grad_cam(make_quadrant_net(), draw_image()[None], classes)


def test_occlusion_falls_where_the_net_looks():
    net, image = make_quadrant_net(), draw_image()
    image[0], image[:, 0] = 0, 0  # the frame is one pixel wide: darker than the quadrant on average
    falls = explain.compute_occlusion(net, image, 1, patch=2, stride=2)
    assert falls.shape == (8, 8)
    assert falls.dtype == np.float32
    assert (falls[:4] == 0).all()
    assert (falls[:, :4] == 0).all()
    hidden = image.copy()
    hidden[4:6, 6:8] = explain._find_frame_colour(image)
    probability = net.predict(np.stack([image, hidden]), verbose=0)[:, 1]
    assert falls[4:6, 6:8] == pytest.approx(probability[0] - probability[1], abs=1e-6)


def test_occlusion_covers_every_pixel_and_averages():
    """Sides of 8 with squares of 3, 2 apart: starts 0, 2, 4, 5."""
    assert explain._start_squares(8, 3, 2) == [0, 2, 4, 5]
    assert np.isfinite(explain.compute_occlusion(make_quadrant_net(), draw_image(), 1, 3, 2)).all()


@pytest.mark.parametrize(("patch", "stride"), [(9, 1), (2, 3), (2, 0), (0, 0)])
def test_squares_that_do_not_fit_are_refused(patch, stride):
    with pytest.raises(ValueError, match=rf"patch {patch} and stride {stride} on .* 8x8 pixels"):
        explain.compute_occlusion(make_quadrant_net(), draw_image(), 1, patch, stride)


def test_grad_cam_does_not_see_that_a_dense_layer_looks_elsewhere():
    """The limit that the notebook states: one weight per map, so Grad-CAM shows the map."""
    net = keras.Sequential(
        [
            keras.Input((8, 8, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(1, 1, use_bias=False),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    quadrant = np.zeros((8, 8))
    quadrant[4:, 4:] = 1 / 16
    net.layers[1].set_weights([np.full((1, 1, 3, 1), 1 / 3)])
    net.layers[-1].set_weights([np.stack([0 * quadrant.ravel(), quadrant.ravel()], 1), np.zeros(2)])
    image = draw_image()
    image[:, :4] = 0
    heat = explain.compute_grad_cam(net, image[None], [1])[0]
    falls = explain.compute_occlusion(net, image, 1, patch=2, stride=2)
    assert measure_quadrant(heat) == pytest.approx(0.5, abs=0.1)
    assert (falls[:4] == 0).all()
    assert np.abs(falls[4:, 4:]).max() > 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (28, 28), (450, 600)])
def test_uniform_heat_gives_the_areas(shape):
    shares = explain.measure_heat_shares(np.full(shape, 0.3))
    assert shares == pytest.approx(UNIFORM, abs=1e-3)
    assert sum(shares.values()) == pytest.approx(1)


def test_shares_of_single_places():
    heat = np.zeros((60, 80))
    heat[30, 40] = 1
    assert explain.measure_heat_shares(heat) == {"centre": 1, "surround": 0, "corners": 0}
    heat[0, 0] = 1
    assert explain.measure_heat_shares(heat)["corners"] == pytest.approx(0.5, abs=0.05)
    heat[:] = 0
    heat[30, 8] = 1
    assert explain.measure_heat_shares(heat)["surround"] == pytest.approx(1)


def test_no_heat_has_no_shares():
    assert all(np.isnan(share) for share in explain.measure_heat_shares(np.zeros((3, 3))).values())


def test_negative_heat_is_refused():
    with pytest.raises(ValueError, match="heat of -1"):
        explain.measure_heat_shares(np.array([[0, -1.0]]))


def test_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 5, 7)).round(1)
    expected = spearmanr(first.ravel(), second.ravel()).statistic
    assert explain.correlate_heat(first, second) == pytest.approx(expected)
    assert explain.correlate_heat(first, first**3) == pytest.approx(1)
    assert explain.correlate_heat(first, -first) == pytest.approx(-1)
    assert np.isnan(explain.correlate_heat(first, np.zeros((5, 7))))


def test_larger_map_is_averaged():
    coarse = np.arange(9.0).reshape(3, 3)
    fine = np.kron(coarse, np.ones((4, 4))) + np.tile([[-0.5, 0.5]], (12, 6))
    assert explain.correlate_heat(coarse, fine) == pytest.approx(1)
    assert explain.correlate_heat(fine, coarse) == pytest.approx(1)


def test_heat_is_laid_over_an_image_of_any_size():
    image = draw_image(40)[:30]
    assert (explain.overlay_heat(image, np.zeros((3, 3))) == image).all()
    heat = np.zeros((2, 2))
    heat[1, 1] = 1
    mixed = explain.overlay_heat(image, heat)
    assert mixed.shape == image.shape
    assert mixed.dtype == np.uint8
    assert (mixed[:5, :5] == image[:5, :5]).all()
    yellow = np.array([240, 249, 33])  # the end of matplotlib's plasma
    assert mixed[-1, -1] == pytest.approx(0.6 * yellow + 0.4 * image[-1, -1], abs=1)


def make_small_net():
    keras.utils.set_random_seed(3)
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
    )
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    found = layers.Flatten()(inner(layers.Rescaling(1 / 255)(inputs)))
    net = keras.Model(inputs, layers.Dense(2, activation="softmax")(found))
    net.set_weights([w + 0.1 for w in net.get_weights()])
    return net


def test_randomised_copy_forgets_from_the_output_on():
    net = make_small_net()
    before = net.get_weights()
    names = explain.list_weighted_layers(net)
    assert [name.split("_")[0] for name in names] == ["conv2d", "batch", "dense"]
    for count in range(4):
        copy = explain.randomise_weights(net, seed=1, count=count)
        pairs = zip(explain._list_layers(net), explain._list_layers(copy), strict=True)
        same = [
            all((a == b).all() for a, b in zip(old.get_weights(), new.get_weights(), strict=True))
            for old, new in pairs
            if old.weights
        ]
        assert same == [True] * (3 - count) + [False] * count
    assert all((a == b).all() for a, b in zip(before, net.get_weights(), strict=True))
    all_forgotten = explain.randomise_weights(net, seed=1).get_weights()
    assert all((a == b).all() for a, b in zip(all_forgotten, copy.get_weights(), strict=True))
    other = explain.randomise_weights(net, seed=2).get_weights()
    assert not (other[0] == all_forgotten[0]).all()
    with pytest.raises(ValueError, match="count is 4: this net has 3 layers with weights"):
        explain.randomise_weights(net, seed=1, count=4)


def test_net_answers_the_same_after_it_was_explained():
    net, pixels = make_small_net(), draw_image()[None]
    before = net.predict(pixels, verbose=0)
    explain.compute_grad_cam(net, pixels, [1])
    assert (net.predict(pixels, verbose=0) == before).all()
    assert not any("call" in vars(layer) for layer in net.layers)


def draw_marked(images, seed):
    """Draw noise; class 1 has a bright mark in a corner, as a ruler would be."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 140, (images, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(images) % 2
    pixels[labels == 1, :2, :2] = 250
    return pixels, labels


def test_shortcut_is_seen_as_a_number():
    """A net that learned a mark in the corner: its heat is there, and randomised it is not."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((16, 16, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.GlobalMaxPooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    net.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
    pixels, labels = draw_marked(128, seed=1)
    net.fit(pixels, labels, epochs=25, batch_size=32, verbose=0)
    pixels, labels = draw_marked(16, seed=2)
    assert (net.predict(pixels, verbose=0).argmax(1) == labels).all()
    marked = pixels[labels == 1]

    def measure_corners(net):
        heat = explain.compute_grad_cam(net, marked, np.ones(len(marked), int))
        return np.nanmean([explain.measure_heat_shares(m)["corners"] for m in heat])

    falls = explain.compute_occlusion(net, marked[0], 1, patch=4, stride=2)
    assert explain.measure_heat_shares(np.maximum(falls, 0))["corners"] > 0.7
    assert measure_corners(net) > 2 * UNIFORM["corners"]
    assert measure_corners(explain.randomise_weights(net, seed=0)) < measure_corners(net)


def test_cases_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1])
    first = np.array([0.9, 0.6, 0.2, 0.45, 0.8, 0.7])
    cases = explain.choose_cases(labels, np.stack([first, 1 - first, 0 * first], 1))
    assert cases.loc[0].tolist() == [0, 2, 3]
    assert cases.loc[1, "wrong"] == 4
    assert cases.loc[1, "unsure"] == 5
    assert cases.loc[1].isna().tolist() == [True, False, False]
    assert cases.loc[2].isna().all()


def test_predictions_of_another_net_are_refused():
    net, pixels = make_quadrant_net(), draw_image()[None]
    found = net.predict(pixels, verbose=0)
    assert explain.check_predictions(net, pixels, found + 0.01) == pytest.approx(0.01, abs=1e-6)
    for wrong in (1 - found, np.full((1, 2), np.nan)):
        with pytest.raises(ValueError, match="not the images of the run, as in its DATA_DIR"):
            explain.check_predictions(net, pixels, wrong)


def test_sum_of_tensors_after_the_last_layer_with_maps_is_found():
    """In a residual block that is written with +, the maps are those of the sum."""
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255)(image)
    inner = keras.Input((8, 8, 3))
    body = keras.Model(inner, inner + layers.Conv2D(3, 1, name="branch")(inner))
    net = keras.Model(image, layers.Dense(2, "softmax")(layers.Flatten()(body(x))))
    body.get_layer("branch").set_weights([np.zeros((1, 1, 3, 3)), np.zeros(3)])
    classes = np.zeros(1, int)
    assert not explain.compute_grad_cam(net, draw_image()[None], classes, "branch").any()
    kernel = np.ones((192, 2)) * [1, 0]
    net.layers[-1].set_weights([kernel, np.zeros(2)])
    heat = explain.compute_grad_cam(net, draw_image()[None], classes)
    brightness = draw_image().sum(axis=2)
    assert heat[0] == pytest.approx(brightness / brightness.max(), abs=1e-5)
