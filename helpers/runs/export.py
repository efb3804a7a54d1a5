"""Export a run's model for use without Keras: SavedModel, TensorFlow Lite or ONNX, checked.

python -m helpers.runs.export RUN_DIR --to savedmodel

Whatever precision the run was trained in, what is exported computes in float32. It takes raw uint8
pixels, as the run's model does; class order and image size stand in a JSON file beside it.
"""

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from helpers.data import drawing, images
from helpers.nets.patient import load_image_model
from helpers.runs.folder import Run, RunError, load_run, replace_file

# Keras' name of the format, ending of the file, packages that requirements.txt does not bring.
FORMATS = {
    "savedmodel": ("tf_saved_model", "", ()),
    "tflite": ("litert", ".tflite", ()),
    "onnx": ("onnx", ".onnx", ("tf2onnx", "onnx", "onnxruntime")),
}
FOLDER = "export"
CHECKED_IMAGES = 50
TOLERANCE = 1e-4  # largest difference of a probability that rounding in float32 explains


def export_run(run: Run, to: str) -> dict:
    """Write a run's model in another format and compare it with the Keras model.

    Args:
        run: a finished run with one model.
        to: one of FORMATS.

    Returns:
        What is written as <name>.json beside the exported model: file, format, classes (in the
        order of the outputs), height, width, input and output in words, checked_images (drawn
        lesions and random pixels), largest_difference from the Keras model in float32 and
        largest_difference_as_trained: of the Keras model in float32 from itself as it was saved,
        in precision_as_trained.

    Raises:
        RunError: an unknown format, a missing package, an ensemble (all named together), or
            answers that differ from the Keras model's by more than TOLERANCE. Nothing is left
            under export/ then that was not there before.
    """
    problems = find_problems(run, to)
    if problems:
        raise RunError("\n".join(problems))
    keras_format, ending, _ = FORMATS[to]
    trained = load_image_model(run.model_paths[0])
    model = copy_in_float32(trained)
    pixels = make_check_images(trained.input_shape[1:3])
    expected = model.predict(pixels, verbose=0)
    target = run.path / FOLDER / f"model{ending}" if ending else run.path / FOLDER / to
    partial = target.with_name(f".partial.{target.name}")
    target.parent.mkdir(exist_ok=True)
    try:
        model.export(partial, format=keras_format, verbose=False)
        difference = float(np.abs(READERS[to](partial)(pixels) - expected).max())
        if not difference <= TOLERANCE:
            raise RunError(
                f"{target} not written: its answers differ by up to {difference:.2g} from the "
                f"Keras model's, more than {TOLERANCE:.0e}; choose another format"
            )
        if target.is_dir():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
    height, width = trained.input_shape[1:3]
    as_trained = float(np.abs(trained.predict(pixels, verbose=0) - expected).max())
    note = {
        "file": target.name,
        "format": to,
        "classes": list(run.classes),
        "height": height,
        "width": width,
        "input": "uint8 (images, height, width, 3), RGB, 0 to 255, not scaled",
        "output": "float32 (images, classes), probabilities, not calibrated",
        "checked_images": len(pixels),
        "largest_difference": difference,
        "precision_as_trained": " and ".join(sorted({x.compute_dtype for x in trained.layers})),
        "largest_difference_as_trained": as_trained,
    }
    text = json.dumps(note, indent=2) + "\n"
    replace_file(target.parent / f"{to}.json", lambda path: path.write_text(text))
    return note


def find_problems(run: Run, to: str) -> list[str]:
    """List what keeps a run from being exported, before any work is done."""
    problems = []
    if to not in FORMATS:
        return [f"the format is {to!r}: choose one of {', '.join(FORMATS)}"]
    missing = [name for name in FORMATS[to][2] if find_spec(name) is None]
    if missing:
        problems.append(f"{to} needs more packages: pip install {' '.join(missing)}")
    if len(run.model_paths) != 1:
        problems.append(
            f"{run.path} has {len(run.model_paths)} models: export the runs it was made of"
        )
    return problems


def copy_in_float32(model: keras.Model) -> keras.Model:
    """Copy a net so that all its layers, nested ones too, compute in float32, weights as they were.

    Weights are float32 in mixed precision too; only the arithmetic changes. Not every runtime
    that reads an export knows bfloat16.
    """

    def rebuild(node: keras.Operation) -> keras.Operation:
        if not isinstance(node, keras.Layer):  # such as the sum of two tensors
            return node
        return type(node).from_config({**node.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=rebuild, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def make_check_images(size: tuple[int, int]) -> np.ndarray:
    """Make the images that an export is checked on: half drawn lesions, half random pixels.

    Returns:
        uint8 (50, height, width, 3).
    """
    rng = np.random.default_rng(0)
    height, width = size
    drawn = [
        images.resize_pixels(drawing.draw_lesion("nv", rng)[0], size)
        for _ in range(CHECKED_IMAGES // 2)
    ]
    noise = rng.integers(0, 256, (CHECKED_IMAGES - len(drawn), height, width, 3), np.uint8)
    return np.concatenate([np.stack(drawn), noise])


def read_savedmodel(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load a SavedModel as a function of pixels."""
    saved = tf.saved_model.load(path)
    return lambda pixels: saved.serve(pixels).numpy()


def read_tflite(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load a TensorFlow Lite file as a function of pixels, by ai-edge-litert if it is there."""
    if find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:
        Interpreter = tf.lite.Interpreter  # noqa: N806 - a class
    with warnings.catch_warnings():  # it points to ai-edge-litert; TensorFlow's own is the same
        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
        interpreter = Interpreter(str(path))
    given, found = (
        details()[0]["index"]
        for details in (interpreter.get_input_details, interpreter.get_output_details)
    )

    def predict(pixels: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(given, pixels.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, pixels)
        interpreter.invoke()
        return interpreter.get_tensor(found)

    return predict


def read_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load an ONNX file as a function of pixels."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


READERS = {"savedmodel": read_savedmodel, "tflite": read_tflite, "onnx": read_onnx}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.runs.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--to", choices=FORMATS, required=True)
    options = parser.parse_args(arguments)
    try:
        run = load_run(options.run_dir)
        note = export_run(run, options.to)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{run.path / FOLDER / note['file']}: classes {', '.join(note['classes'])}; images of "
        f"{note['height']}x{note['width']} pixels\n"
        f"Largest difference of a probability from the Keras model's on {note['checked_images']} "
        f"images: {note['largest_difference']:.1e} where both compute in float32, "
        f"{note['largest_difference_as_trained']:.1e} where the Keras model computes as it was "
        f"trained ({note['precision_as_trained']})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
