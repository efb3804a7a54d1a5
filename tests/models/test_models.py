"""The nets other than the original, and the recipes that go with them."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from helpers.data import reading as dataset
from helpers.nets import models, pretrained
from helpers.training import fit as training
from helpers.training import recipes


@pytest.fixture(scope="module")
def compact():
    return models.build_net("compact", (75, 100))


def test_compact_keeps_to_its_limits(compact):
    """At most 1 M parameters, and a fifth of the original's 544 M multiply-adds at 75x100."""
    assert compact.count_params() == 965_607
    assert models.count_multiply_adds(compact) < 544e6 / 5
    assert compact.inputs[0].dtype == "uint8"
    assert compact.layers[-1].name.split("_") == list(dataset.CLASSES)


@pytest.mark.parametrize(
    ("size", "stage"),
    [((28, 28), (28, 28)), ((32, 40), (32, 40)), ((75, 100), (19, 25)), ((224, 224), (28, 28))],
)
def test_compact_begins_its_stages_at_most_at_32_pixels(size, stage):
    net = models.build_net("compact", size)
    (first,) = [x for x in net.layers if isinstance(x, layers.Add)][:1]
    halved = tuple(-(-side // 2) for side in stage)
    assert first.output.shape[1:] == (*halved, 64)
    assert net.count_params() <= 1_000_000


def test_compact_takes_raw_pixels_and_centres_them(compact):
    scaled = keras.Model(compact.inputs, compact.layers[1].output)
    pixels = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1) * np.ones((2, 75, 100, 3), np.uint8)
    assert scaled(pixels).numpy().min(axis=(1, 2, 3)).tolist() == [-1, 1]


def test_compact_learns_where_something_lies():
    """Two places of one patch: the mean colour is the same, and so are all patches."""
    keras.utils.set_random_seed(0)
    net = models.build_net("compact", (24, 24), classes=("a", "b"))
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 140, (64, 24, 24, 3)).astype(np.uint8)
    labels = np.arange(64) % 2
    pixels[labels == 0, 8:16, 4:10] += 60
    pixels[labels == 1, 4:10, 8:16] += 60
    net.compile(
        keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"],
        jit_compile=False,
    )  # fmt: skip
    net.fit(pixels, labels, batch_size=16, epochs=15, verbose=0)
    found = net.evaluate(pixels, labels, verbose=0, return_dict=True)
    assert found["accuracy"] > 0.95


def test_saved_compact_answers_without_this_project(compact, tmp_path):
    compact.save(tmp_path / "model.keras")
    code = (
        "import sys, keras, numpy as np\n"
        f"model = keras.models.load_model({str(tmp_path / 'model.keras')!r})\n"
        "answer = model.predict(np.full((1, 75, 100, 3), 128, np.uint8), verbose=0)\n"
        "assert 'helpers' not in sys.modules\n"
        "print(*answer[0].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = compact.predict(np.full((1, 75, 100, 3), 128, np.uint8), verbose=0)[0]
    assert [float(p) for p in done.stdout.split()] == pytest.approx(expected.tolist(), abs=1e-5)


def test_multiply_adds_by_hand():
    image = keras.Input((10, 8, 3))
    x = layers.Conv2D(4, 3)(image)  # 8x6 places, 3*3*3*4 each
    x = layers.DepthwiseConv2D(3, padding="same")(x)  # 8x6 places, 3*3*4
    inner = keras.Sequential([keras.Input((8, 6, 4)), layers.Conv2D(2, 1, strides=2)])
    x = inner(x)  # 4x3 places, 4*2
    x = layers.Dense(3)(x)  # 4x3 places, 2*3
    net = keras.Model(image, layers.Dense(5)(layers.Flatten()(x)))  # 4*3*3*5
    assert models.count_multiply_adds(net) == 48 * 108 + 48 * 36 + 12 * 8 + 12 * 6 + 36 * 5


def make_parameters(model, **given):
    return {"MODEL": model, "SEED": 4} | dict.fromkeys(recipes.NAMES) | given


def test_recipe_of_the_original_is_the_plain_one():
    assert recipes.choose_recipe(make_parameters("cnn")) == recipes.Recipe()
    assert recipes.choose_recipe(make_parameters("compact")) == recipes.COMPACT
    assert recipes.Recipe() != recipes.COMPACT


@pytest.mark.parametrize("model", recipes.MODELS)
def test_what_is_given_goes_before_the_recipe(model):
    given = {"EPOCHS": 3, "AUGMENT": False, "WEIGHT_DECAY": 0.0, "VIEWS": 1}
    completed = recipes.complete_parameters(make_parameters(model, **given))
    assert completed["SEED"] == 4
    assert {name: completed[name] for name in given} == given
    left = recipes.complete_parameters(make_parameters(model))
    assert None not in left.values()
    assert {n for n in completed if completed[n] != left[n]} <= set(given)


@pytest.mark.parametrize("model", recipes.MODELS)
def test_what_suits_a_model_is_within_the_limits(model):
    given = {"IMAGE_HEIGHT": 75, "IMAGE_WIDTH": 100, "WEIGHTS": "imagenet", "BATCH_NORM": False}
    given |= {"FOLD": 0, "FOLDS": 5, "PRECISION": "auto"}
    training.check_parameters(recipes.complete_parameters(make_parameters(model, **given)))


def test_every_model_is_known_and_has_one_recipe():
    assert set(recipes.MODELS) == {"cnn", "compact", *pretrained.NETS}
    assert len(recipes.MODELS) == len(set(recipes.MODELS))
