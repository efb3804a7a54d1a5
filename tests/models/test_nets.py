"""The nets by name: what they take, give, weigh and cost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import nbformat
import numpy as np
import pytest
from keras import layers
from keras.src.utils import file_utils

from helpers import data
from helpers.data.files import InputError
from helpers.data.reading import CLASSES
from helpers.nets import models, patient

SMALL, SIZE = "MobileNetV3Small", (32, 40)
IMAGES = np.random.default_rng(0).integers(0, 256, (14, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def nets():
    """Every net at random, built once."""
    return {name: models.build_net(name, SIZE) for name in models.MODELS}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with weights of a body, and what it holds."""
    options = {"include_top": False, "pooling": "avg", "input_shape": (*SIZE, 3)}
    body = keras.applications.MobileNetV3Small(weights=None, **options)
    for layer in body.layers:  # one batch gives statistics that fit, as those of ImageNet do
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    body(IMAGES, training=True)
    path = tmp_path_factory.mktemp("weights") / "body.weights.h5"
    body.save_weights(path)
    return path, body.get_weights()


def answer(model, given):
    """Compute as `predict` does, without its start, which takes longer than these nets."""
    return keras.ops.convert_to_numpy(model(given, training=False))


@pytest.mark.parametrize("name", models.MODELS)
def test_net_takes_raw_pixels_and_names_its_classes(nets, name):
    model = nets[name]
    assert (model.input_shape, model.input.dtype) == ((None, *SIZE, 3), "uint8")
    assert model.inputs[0].name == "image"
    assert model.layers[-1].name.split("_") == list(CLASSES)
    probabilities = answer(model, IMAGES[:2])
    assert probabilities.shape == (2, 7)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_net_scales_pixels_as_its_weights_want(nets, name):
    """To 0 … 1, to -1 … 1 or nearly so, or by the mean and standard deviation of ImageNet."""
    body = nets[name] if name in models.SMALLEST else nets[name].get_layer(name)
    first = next(layer for layer in body.layers if layer.weights)
    scale = keras.Model(body.input, first.input)
    shade = np.array([0, 255], np.float32).reshape(2, 1, 1, 1) * np.ones((2, *SIZE, 3), "float32")
    found = answer(scale, shade)[:, 1, 1]
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = [[-1] * 3, [1] * 3]
    if name == "original":
        expected = [[0] * 3, [1] * 3]
    elif name == "EfficientNetLite0":
        expected = [[-127 / 128] * 3, [1] * 3]
    elif name not in ("compact", SMALL):
        expected = [-mean / spread, (1 - mean) / spread]
    assert found == pytest.approx(np.array(expected), abs=1e-4)


def test_original_is_the_net_of_the_main_notebook():
    notebook = nbformat.read(Path(__file__).parents[2] / "Skin_Cancer_Detection.ipynb", 4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    chosen = [s for s in sources if "keras.Sequential(" in s or s.startswith("def normalise")]
    space = {"keras": keras, "layers": layers, "data": data, "BATCH_NORM": False}
    space |= {"IMAGE_HEIGHT": SIZE[0], "IMAGE_WIDTH": SIZE[1]}
    exec("\n".join(chosen), space)
    spelled, named = space["model"], models.build_net("original", SIZE)
    named.set_weights(spelled.get_weights())
    assert np.allclose(answer(named, IMAGES), answer(spelled, IMAGES), atol=1e-6)
    for net in (spelled, named):
        assert [y.rate for y in net.layers if isinstance(y, layers.Dropout)] == [0.25] * 3
    large = models.build_net("original", (75, 100))  # as the notebooks say
    assert large.count_params() == 672_007
    assert round(models.count_multiply_adds(large) / 1e6) == 544
    models.build_net("original", (22, 22))
    with pytest.raises(InputError, match="21x40 pixels: take images at least 22 pixels"):
        models.build_net("original", (21, 40))


def test_compact_keeps_to_its_limits():
    """At most 1 M parameters, and a fifth of the original's 544 M multiply-adds at 75x100."""
    compact = models.build_net("compact", (75, 100))
    assert compact.count_params() == 938_855
    assert models.count_multiply_adds(compact) < 544e6 / 5


@pytest.mark.parametrize(
    ("size", "stage"),
    [((28, 28), (14, 14)), ((32, 40), (16, 20)), ((75, 100), (19, 25)), ((224, 224), (14, 14))],
)
def test_compact_begins_its_stages_at_most_at_40_pixels(size, stage):
    net = models.build_net("compact", size)
    first = next(layer for layer in net.layers if isinstance(layer, layers.Add))
    assert first.output.shape[1:] == (*stage, 64)
    assert net.count_params() <= 1_000_000


def test_multiply_adds_by_hand():
    image = keras.Input((10, 8, 3))
    x = layers.Conv2D(4, 3)(image)  # 8x6 places, 3*3*3*4 each
    x = layers.DepthwiseConv2D(3, padding="same")(x)  # 8x6 places, 3*3*4
    inner = keras.Sequential([keras.Input((8, 6, 4)), layers.Conv2D(2, 1, strides=2)])
    x = inner(x)  # 4x3 places, 4*2
    x = layers.Dense(3)(x)  # 4x3 places, 2*3
    net = keras.Model(image, layers.Dense(5)(layers.Flatten()(x)))  # 4*3*3*5
    assert models.count_multiply_adds(net) == 48 * 108 + 48 * 36 + 12 * 8 + 12 * 6 + 36 * 5


def test_pretrained_body_has_the_weights_of_the_file_and_learns_them_all(weights):
    path, saved = weights
    model = models.build_net(SMALL, SIZE, str(path))
    body = model.get_layer(SMALL)
    before = body.get_weights()
    assert all(map(np.array_equal, before, saved))
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(IMAGES, np.arange(14) % 7)
    same = [np.array_equal(*pair) for pair in zip(before, body.get_weights(), strict=True)]
    assert np.mean(same) < 0.1, "all but biases whose maps are not active"


@pytest.mark.filterwarnings("ignore")  # Keras warns of what does not fit before it gives up
def test_weights_that_cannot_be_had_are_named(weights, tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(b"not HDF5")
    for name, path in ((SMALL, damaged), ("EfficientNetV2B0", weights[0])):
        with pytest.raises(InputError, match=f"{name}: {path}: no weights"):
            models.build_net(name, SIZE, str(path))

    def fail(file, url, **_):
        raise Exception(f"URL fetch failure on {url}")

    for module in ("mobilenet_v3", "efficientnet_v2", "convnext"):
        applications = sys.modules[f"keras.src.applications.{module}"]
        monkeypatch.setattr(applications.file_utils, "get_file", fail)
    assert file_utils.get_file is fail
    with pytest.raises(InputError, match=r"https://.*/weights_mobilenet_v3_small.*give its path"):
        models.build_net(SMALL, SIZE, "imagenet")


def test_all_problems_are_named_together():
    with pytest.raises(InputError) as caught:
        models.build_net("ResNet", (31, 40), "random.h5")
    assert len(caught.value.problems) == 3
    for word in ("'ResNet'", "compact, original, Eff", "31x40", "'random.h5'"):
        assert word in str(caught.value)


LOAD = """
import json, sys
import keras, numpy as np
images, found = np.load("images.npy"), {}
for path in sys.argv[1:]:
    model = keras.models.load_model(path)
    given = {"image": images, "fields": np.ones((2, 20), "float32")}
    found[path] = np.asarray(model(given if len(model.inputs) == 2 else images)).tolist()
foreign = [name for name in sys.modules if name.split(".")[0] == "helpers"]
print(json.dumps([foreign, found]))
"""


def test_saved_nets_load_without_this_project(nets, tmp_path):
    chosen = {"compact": nets["compact"], "joined": patient.join_fields(nets["compact"])}
    for name, model in chosen.items():
        keras.Model(model.input, model.output).save(tmp_path / f"{name}.keras")
    np.save(tmp_path / "images.npy", IMAGES[:2])
    command = [sys.executable, "-I", "-c", LOAD, *(f"{name}.keras" for name in chosen)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    foreign, found = json.loads(done.stdout.splitlines()[-1])
    assert foreign == []
    known = {"image": IMAGES[:2], "fields": np.ones((2, 20), "float32")}
    for name, model in chosen.items():
        expected = answer(model, known if name == "joined" else IMAGES[:2])
        assert np.array(found[f"{name}.keras"]) == pytest.approx(expected, abs=1e-5), name


def test_other_backend_and_order_of_axes_in_keras_json_do_not_matter(tmp_path):
    chosen = {"backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(chosen))
    code = "from helpers.training import fit; from helpers.nets import models; fit.set_up(0); "
    code += "print(models.build_net('compact', (28, 36)).output_shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "KERAS_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "(None, 7)\n", done.stderr
