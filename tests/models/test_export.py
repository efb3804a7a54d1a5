"""Exports: what each format answers, what it says of itself, what it needs."""

import json
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from keras import layers

from helpers import __main__ as command_line
from helpers.data.files import InputError
from helpers.nets import models
from helpers.nets.patient import join_fields
from helpers.runs import export, folder
from helpers.training import layers as training_layers
from helpers.training.fit import BalancedAccuracy
from tests.units import fake_run

SIZE = (16, 24)


def make_model(dtype="float32"):
    """Build a small net, never trained, of the same weights each time."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((*SIZE, 3), dtype="uint8", name="image"),
            layers.Rescaling(1 / 255, dtype=dtype),
            layers.Conv2D(4, 3, activation="relu", dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.GlobalAveragePooling2D(dtype=dtype),
            layers.Dropout(0.5, dtype=dtype),
            layers.Dense(2, activation="softmax", dtype="float32", name="a_b"),
        ]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = training_layers.speed_up(make_model("mixed_bfloat16"))
    model.compile("adam", "sparse_categorical_crossentropy", [BalancedAccuracy(2)])
    return fake_run.save(tmp_path_factory.mktemp("run"), model=model)


def needs(to):
    missing = [name for name in export.FORMATS[to][2] if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"pip install {' '.join(missing)}")


@pytest.mark.parametrize("to", [pytest.param(to, marks=needs(to)) for to in export.FORMATS])
def test_export_answers_in_float32_and_says_so(run, to, capsys):
    assert command_line.main(["export", str(run.path), "--to", to]) == 0
    note = json.loads((run.path / "export" / f"{to}.json").read_text())
    assert note["classes"] == list(run.classes)
    assert (note["height"], note["width"]) == SIZE
    assert note["checked_images"] == 50
    assert note["largest_difference"] < 1e-5 < note["largest_difference_as_trained"] < 0.1
    assert f"{note['largest_difference']:.1e}" in capsys.readouterr().out
    pixels = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    found = export.read_export(run.path / "export" / note["file"], to)(pixels)
    assert found == pytest.approx(make_model().predict(pixels, verbose=0), abs=1e-5)


def test_missing_package_unknown_format_and_unfinished_run_are_named(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="'coreml': choose one of savedmodel, tflite, onnx"):
        export.export_run(run, "coreml")
    assert command_line.main(["export", str(tmp_path), "--to", "savedmodel"]) == 1
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tf2onnx onnx onnxruntime"):
        export.export_run(run, "onnx")


def test_export_that_answers_otherwise_is_not_written(run, monkeypatch):
    monkeypatch.setattr(export, "read_export", lambda path, to: lambda pixels: np.ones(2))
    before = {path for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"not written: its answers differ by up to"):
        export.export_run(run, "savedmodel")
    assert {path for path in run.path.rglob("*") if path.is_file()} <= before


def test_nested_nets_are_copied_in_float32_too():
    half = {"dtype": "mixed_bfloat16"}
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, **half)])
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = inner(layers.Rescaling(1 / 255, **half)(image))
    net = keras.Model(image, layers.Dense(3, **half)(layers.Flatten(**half)(x + x)))
    copy = models.rebuild_net(net, lambda layer, config: config.update(dtype="float32"))
    assert {layer.compute_dtype for layer in copy._flatten_layers()} == {"float32"}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert copy.predict(pixels, verbose=0) == pytest.approx(
        net.predict(pixels, verbose=0).astype(float), abs=0.05
    )


def test_model_that_this_keras_cannot_read_says_who_wrote_it(run, monkeypatch):
    def fail(path):
        raise TypeError("unknown argument")

    monkeypatch.setattr("helpers.nets.patient.load_image_model", fail)
    with pytest.raises(InputError, match=rf"written by Keras {keras.__version__}, not readable"):
        folder.load_model(run)


def test_saved_model_is_keras_own_and_of_both_inputs(run, tmp_path):
    model = keras.models.load_model(run.model_path)
    assert not model.compiled
    assert not any(type(layer).__module__.startswith("helpers") for layer in model.layers)
    joined = training_layers.speed_up(join_fields(make_model()))
    fake_run.save(tmp_path, model=joined)
    saved = keras.models.load_model(tmp_path / "model.keras")
    assert set(saved.input) == set(joined.input)
