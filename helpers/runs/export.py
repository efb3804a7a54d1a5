"""What leaves a run's folder: its model in other formats, checked, and its model card."""

import json
import shlex
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from helpers.data import drawing, images, sample
from helpers.data.files import InputError, replace_file
from helpers.data.reading import CLASS_NAMES
from helpers.evaluation import scores
from helpers.runs.folder import Run, load_model

CARD, FIGURE, FOLDER = "MODEL_CARD.md", "figures/judgement.png", "export"
# Keras' name of the format, file, packages that requirements.txt does not bring.
FORMATS = {
    "savedmodel": ("tf_saved_model", "savedmodel", ()),
    "tflite": ("litert", "model.tflite", ()),
    "onnx": ("onnx", "model.onnx", ("tf2onnx", "onnx", "onnxruntime")),
}
HAM10000 = "ISIC_0024306", "ISIC_0034320"  # the first and the last id
CHECKED_IMAGES = 50
TOLERANCE = 1e-4  # largest difference of a probability that rounding in float32 explains
# Our names of the scores to those that model hubs know.
HUB_SCORES = {name: name for name in ("accuracy", "balanced_accuracy")}
HUB_SCORES |= {"macro_f1": "f1", "auc": "roc_auc"}


def export_run(run: Run, to: str) -> dict:
    """Write a run's model in one of FORMATS, in float32, if it answers as the Keras model does.

    Returns what is written as <to>.json beside it; largest_difference is that from the Keras model
    in float32, and if it is above TOLERANCE nothing is written.
    """
    if to not in FORMATS:
        raise InputError(run.path, [f"no format {to!r}: choose one of {', '.join(FORMATS)}"])
    keras_format, name, packages = FORMATS[to]
    if missing := [package for package in packages if find_spec(package) is None]:
        raise InputError(run.path, [f"{to} needs more packages: pip install {' '.join(missing)}"])

    from helpers.nets.models import rebuild_net

    trained = load_model(run)
    # In float32 throughout: not every runtime knows bfloat16.
    model = rebuild_net(trained, lambda layer, config: config.update(dtype="float32"))
    height, width = trained.input_shape[1:3]
    pixels = _make_check_images((height, width))
    expected = model.predict(pixels, verbose=0)
    target = run.path / FOLDER / name
    target.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".partial.", dir=target.parent) as temporary:
        partial = Path(temporary) / name
        model.export(partial, format=keras_format, verbose=False)
        difference = float(np.abs(read_export(partial, to)(pixels) - expected).max())
        if not difference <= TOLERANCE:
            problem = f"not written: its answers differ by up to {difference:.2g} from Keras' own"
            raise InputError(target, [f"{problem}, above {TOLERANCE:.0e}; choose another format"])
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        partial.replace(target)
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
        "precision_as_trained": run.metrics["training"]["precision"],
        "largest_difference_as_trained": as_trained,
    }
    text = json.dumps(note, indent=2) + "\n"
    replace_file(target.parent / f"{to}.json", lambda path: path.write_text(text))
    return note


def read_export(path: Path, to: str) -> Callable[[np.ndarray], np.ndarray]:
    """Load an exported model as a function of pixels, uint8 (images, height, width, 3)."""
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {session.get_inputs()[0].name: pixels})[0]
    import tensorflow as tf

    if to == "savedmodel":
        saved = tf.saved_model.load(path)
        return lambda pixels: saved.serve(pixels).numpy()
    with warnings.catch_warnings():  # it points to another package with the same interpreter
        warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(str(path))
    given = interpreter.get_input_details()[0]["index"]

    def predict(pixels: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(given, pixels.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, pixels)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return predict


def _make_check_images(size: tuple[int, int]) -> np.ndarray:
    """Make uint8 (50, height, width, 3): half drawn lesions, half random pixels."""
    rng = np.random.default_rng(0)
    lesions = [drawing.draw_lesion("nv", rng)[0] for _ in range(CHECKED_IMAGES // 2)]
    noise = rng.integers(0, 256, (CHECKED_IMAGES - len(lesions), *size, 3), np.uint8)
    return np.concatenate([[images.resize_pixels(lesion, size) for lesion in lesions], noise])


def write_model_card(run: Run, judgement: dict) -> Path:
    """Write MODEL_CARD.md into a run's folder; `run` has the probabilities that the model gave.

    The sections are those of Mitchell et al., doi:10.1145/3287560.3287596; the front matter is
    what model hubs read (https://huggingface.co/docs/hub/model-cards). `judgement` has the judged
    part, temperature, prevalence (0 … 1) and the tables overall, by_class, calibration, points,
    per_thousand and by_group (or None).
    """
    notebooks = [name for name in run.metrics["code"] if name.endswith(".ipynb")]
    command = ["python", "-m", "helpers", "run", *notebooks, f"runs/{run.path.name}"]
    for name, value in run.metrics["parameters"].items():  # VIEWS is of the recipe
        left_out = name in ("RUN_DIR", "VIEWS") or value == ""
        command += [] if left_out else ["-p", name, str(value)]
    values = judgement["overall"]["value"].dropna()
    own = run.predictions.part("val").table["image_id"]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["table"] = _write_table
    text = environment.get_template("model_card.md.jinja").render(
        **judgement,
        **run.metrics,
        name=run.path.name,
        drawn=sample.is_drawn(own),
        of_ham10000=own.between(*HAM10000).all(),
        class_names=CLASS_NAMES,
        hub_scores=[(n, kind, values[n]) for n, kind in HUB_SCORES.items() if n in values],
        judged=run.predictions.part(judgement["part"]).table,
        figure=FIGURE if (run.path / FIGURE).is_file() else "",
        command=shlex.join(command),
    )
    path = run.path / CARD
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def _write_table(table: pd.DataFrame | dict) -> str:
    """Write a table in Markdown; of values with intervals a column per figure."""
    if isinstance(table, dict):
        table = pd.Series(table).map(str).to_frame("value")
    elif {"value", "low", "high"} <= set(table.columns):
        told = scores.write_intervals(table).rename("value")
        if "figure" in table.index.names:
            others = [name for name in table.index.names if name != "figure"]
            counts = table[["images", "lesions"]].groupby(level=others, sort=False).first()
            told = counts.join(told.unstack("figure", sort=False))
        table = pd.DataFrame(told)
    table = table.reset_index(names=[name or "" for name in table.index.names])
    rows = [table.columns, ["---"] * table.shape[1], *table.to_numpy(dtype=object)]
    cells = [[scores.write_share(x) if isinstance(x, float) else str(x) for x in r] for r in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)
