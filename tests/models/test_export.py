"""Exports: what each format answers, what it says of itself, what it needs."""

import json
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tiny_run
from keras import layers

from helpers.data import reading as dataset
from helpers.runs import export
from helpers.runs import folder as runs


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny_run.make_images(tmp_path_factory.mktemp("export") / "images")


@pytest.fixture(scope="module")
def run(data_dir):
    return runs.load_run(tiny_run.save_tiny_run(data_dir.with_name("run"), data_dir))


def needs(to):
    missing = [name for name in export.FORMATS[to][2] if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"pip install {' '.join(missing)}")


@pytest.mark.parametrize("to", [pytest.param(to, marks=needs(to)) for to in export.FORMATS])
def test_export_answers_as_the_keras_model_and_says_so(run, to, capsys):
    assert export.main([str(run.path), "--to", to]) == 0
    note = json.loads((run.path / "export" / f"{to}.json").read_text())
    assert note["classes"] == list(dataset.CLASSES)
    assert (note["height"], note["width"]) == tiny_run.SIZE
    assert note["checked_images"] == 50
    assert note["largest_difference"] < 1e-5
    assert note["largest_difference_as_trained"] < 1e-5
    assert f"{note['largest_difference']:.1e}" in capsys.readouterr().out
    pixels = np.random.default_rng(0).integers(0, 256, (3, *tiny_run.SIZE, 3), np.uint8)
    found = export.READERS[to](run.path / "export" / note["file"])(pixels)
    assert found == pytest.approx(tiny_run.make_model().predict(pixels, verbose=0), abs=1e-5)


def test_mixed_precision_is_exported_in_float32(data_dir, tmp_path):
    model = tiny_run.make_model(dtype="mixed_bfloat16")
    run = runs.load_run(tiny_run.save_tiny_run(tmp_path / "run", data_dir, model=model))
    note = export.export_run(run, "savedmodel")
    assert note["precision_as_trained"] == "bfloat16 and float32"
    assert note["largest_difference"] < 1e-5 < note["largest_difference_as_trained"] < 0.1


def test_missing_package_is_named_before_any_work(run, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    monkeypatch.setattr(export, "copy_in_float32", pytest.fail)
    assert export.main([str(run.path), "--to", "onnx"]) == 1
    assert "pip install tf2onnx onnx onnxruntime" in capsys.readouterr().err


def test_export_that_answers_otherwise_is_not_written(run, monkeypatch):
    monkeypatch.setitem(export.READERS, "savedmodel", lambda path: lambda pixels: np.ones(7))
    before = sorted(run.path.rglob("*"))
    with pytest.raises(runs.RunError, match=r"not written: its answers differ by up to"):
        export.export_run(run, "savedmodel")
    assert {p for p in run.path.rglob("*") if p.is_file()} <= set(before)


def test_unknown_format_and_unfinished_run_are_named(run, tmp_path, capsys):
    with pytest.raises(runs.RunError, match="'coreml': choose one of savedmodel, tflite, onnx"):
        export.export_run(run, "coreml")
    assert export.main([str(tmp_path), "--to", "savedmodel"]) == 1
    assert "is not a finished run" in capsys.readouterr().err


def test_nested_nets_are_copied_in_float32_too():
    half = {"dtype": "mixed_bfloat16"}
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, **half)])
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = inner(layers.Rescaling(1 / 255, **half)(image))
    net = keras.Model(image, layers.Dense(3, **half)(layers.Flatten(**half)(x + x)))
    copy = export.copy_in_float32(net)
    assert {layer.compute_dtype for layer in copy._flatten_layers()} == {"float32"}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert copy.predict(pixels, verbose=0) == pytest.approx(
        net.predict(pixels, verbose=0).astype(float), abs=0.05
    )
