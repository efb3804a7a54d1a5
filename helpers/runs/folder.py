"""A run's folder: parameters checked, the folder opened, all that a run leaves written and read."""

import ast
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from types import ModuleType

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from helpers.data import sample
from helpers.data.files import PROJECT, InputError, name_some, raise_problems, replace_file

PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pillow", "opencv-python-headless")
METRICS, HISTORY, PREDICTIONS, MODEL = (
    "metrics.json",
    "history.csv",
    "predictions.csv",
    "model.keras",
)
NOTEBOOK_CODE = "SKIN_NOTEBOOK_CODE"  # environment variable: JSON, as of `fingerprint_code`
KERNEL_LOCK = ".kernel.lock"
# What a run's folder gets after the run: it would not belong to a run made anew.
LATER = ("MODEL_CARD.md", "export", "figures", "submission.csv", "*novelty*", "*verdict*", "*judg*")
# Of all notebooks: the lowest and the highest value of a number, or the choices.
RANGES = {
    **dict.fromkeys(("IMAGE_HEIGHT", "IMAGE_WIDTH"), (22, 4096)),  # three poolings leave a pixel
    **dict.fromkeys(("EPOCHS", "BATCH_SIZE"), (1, 100_000)),
    **dict.fromkeys(("PATIENCE", "FOLD"), (0, 100_000)),
    "FOLDS": (2, 100),
    "SEED": (0, 2**31 - 1),
    "LEARNING_RATE": (1e-12, 100),
    "WEIGHT_DECAY": (0, 100),
    "CLASS_WEIGHT_POWER": (0, 2),
    "PREVALENCE": (1e-6, 1 - 1e-6),
    "RESAMPLES": (100, 1_000_000),
}
CHOICES = {
    "SCHEDULE": ("constant", "cosine"),
    "OPTIMIZER": ("adam", "muon"),
    "PRECISION": ("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    "VIEWS": (1, 8),
    "PART": ("val", "test", "official"),
}
_open: dict[Path, tuple[FileLock, dict]] = {}  # the runs that this process holds, and their code

RunError = InputError  # the name of the first version, while other rooms still import it


@dataclass(frozen=True)
class Run:
    """A finished run, or an ensemble of runs over folds, as `load_run` reads it.

    Attributes:
        path: the run's folder.
        metrics: what metrics.json holds: parameters, classes, data, scores, majority_baseline,
            training, code, versions, files; of an ensemble also members.
        history: a row per epoch, from 1; of an ensemble for each fold, with the column `fold`.
        predictions: of the validation and test images.
        model_paths: the saved model, of an ensemble those of all members.
    """

    path: Path
    metrics: dict
    history: pd.DataFrame
    predictions: "Predictions"  # noqa: F821 - imported where it is used
    model_paths: tuple[Path, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class codes in the order of the model's outputs."""
        return self.predictions.classes

    @property
    def outdated(self) -> list[str]:
        """The files of code that have changed since: the run's notebook, helper modules."""
        code = self.metrics.get("code", {})
        return [path for path, mark in code.items() if fingerprint_code(PROJECT / path) != mark]


def check_parameters(namespace: dict) -> dict:
    """Return a notebook's parameters, name to value, after checking names, types and ranges.

    The parameters cell declares them with a type (`SEED: int = 0`); an injected cell may set
    other values. papermill itself only warns of a name that nobody declared.

    Args:
        namespace: the notebook's `globals()`.

    Raises:
        InputError: everything that is wrong, together.
    """
    declared = {n: t.__name__ for n, t in namespace["__annotations__"].items() if n.isupper()}
    given = {
        name: value
        for name, value in namespace.items()
        if name.isupper() and name[0] != "_" and not isinstance(value, ModuleType | type)
    }
    raise_problems("parameters", find_problems(given, declared))
    return {name: given[name] for name in declared}


def find_problems(given: dict, declared: dict[str, str]) -> list[str]:
    """List what is wrong with parameter values.

    Args:
        given: name to value.
        declared: name to the name of its type: bool, int, float or str. An int is welcome where a
            float is wanted. Where a MODEL is declared, 0 and "" mean what suits the model.
    """
    problems = []
    for name, value in given.items():
        if name not in declared:
            guess = get_close_matches(name, declared, n=1, cutoff=0.5)
            hint = f"did you mean {guess[0]}? " if guess else ""
            problems.append(f"no parameter {name}: {hint}The parameters are {', '.join(declared)}")
            continue
        wanted, found = declared[name], type(value).__name__
        low, high = RANGES.get(name, (-np.inf, np.inf))
        if found != wanted and (wanted, found) != ("float", "int"):
            hint = "; YAML reads 1e-4 as text, write 1.0e-4" if wanted == "float" else ""
            problems.append(f"{name} is {value!r} ({found}), wanted is {wanted}{hint}")
        elif "MODEL" in declared and value in (0, ""):
            continue
        elif name in CHOICES and value not in CHOICES[name]:
            problems.append(f"{name} is {value!r}, choose one of {name_some(CHOICES[name])}")
        elif name in RANGES and not low <= value <= high:
            problems.append(f"{name} is {value}, wanted is a value from {low} to {high}")
    return problems


def resolve_run(run_dir: str | os.PathLike) -> Path:
    """Find a run's folder: as it is named, else below the project.

    A relative path means the same in JupyterLab, whose working folder is the notebook's, and on a
    command line. The environment variable SKIN_RUNS_DIR names a folder in place of runs/.
    """
    path = Path(run_dir).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.parts[:1] == ("runs",) and os.environ.get("SKIN_RUNS_DIR"):
        return Path(os.environ["SKIN_RUNS_DIR"]).absolute().joinpath(*path.parts[1:])
    return PROJECT / path


def open_run(parameters: dict) -> Path:
    """Make RUN_DIR, keep it for this process until `save_run`, and return it.

    What was made from an older run in it (card, exports, figures) is deleted; the older run itself
    stays until it is replaced.

    Raises:
        InputError: another process writes there, the folder holds a finished run of other
            parameters, or it cannot be written.
    """
    run_dir = resolve_run(parameters["RUN_DIR"])
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if run_dir not in _open:
            lock = FileLock(run_dir / KERNEL_LOCK, timeout=5)  # a kernel left alone ends by then
            lock.acquire()
            _open[run_dir] = lock, fingerprint_imports()
    except Timeout:
        problem = "another process, perhaps an open notebook, is making this run"
        raise InputError(run_dir, [f"{problem}: end it, or choose another RUN_DIR"]) from None
    except OSError as error:
        problem = f"cannot be written ({error}): give RUN_DIR an absolute path, or set the"
        raise InputError(run_dir, [f"{problem} environment variable SKIN_RUNS_DIR"]) from None
    if old := peek_run(run_dir):
        if problems := find_differences(old, parameters):
            _open.pop(run_dir)[0].release()
            raise InputError(run_dir, problems)
        for path in (path for pattern in LATER for path in run_dir.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run_dir


def find_differences(run: Run, parameters: dict) -> list[str]:
    """Say in which parameters, RUN_DIR apart, a finished run differs from wanted ones."""
    found = run.metrics["parameters"]
    other = [
        f"{name} {found[name]!r} instead of {value!r}"
        for name, value in parameters.items()
        if name != "RUN_DIR" and found.get(name, value) != value
    ]
    remedy = "delete the folder, or give the run or experiment another name"
    return [f"holds a finished run with {', '.join(other)}: {remedy}"] if other else []


def save_run(
    run_dir: str | os.PathLike,
    *,
    parameters: dict,
    model,
    table: pd.DataFrame,
    history: pd.DataFrame,
    predictions,
    scores: dict,
    more: dict | None = None,
) -> Run:
    """Write a run's folder and give it free; metrics.json comes last and vouches for the others.

    Args:
        run_dir: as from `open_run`.
        parameters: as from `check_parameters`.
        model: a Keras model. Layers of this project are saved as Keras' own.
        table: the table, once it is split.
        history: a row per epoch, from 1, with the column seconds.
        predictions: `Predictions` of the validation and test parts.
        scores: part to its table of scores, as {"test": score_with_intervals(...)}.
        more: further metrics, "training" and "data" joined to those sections. A `Predictions` is
            written as predictions_<name>.csv, such as "image_only": without age, sex and site.
    """
    from helpers.evaluation.scores import score_majority

    run_dir, more = Path(run_dir), dict(more or {})
    run_dir.mkdir(parents=True, exist_ok=True)
    if any(type(layer).__module__.startswith("helpers.") for layer in model.layers):
        from helpers.training.layers import to_keras

        model = to_keras(model)
    replace_file(run_dir / MODEL, model.save)
    files = [MODEL]
    for name in [name for name, value in more.items() if hasattr(value, "with_probabilities")]:
        files.append(f"predictions_{name}.csv")
        _write_table(run_dir / files[-1], more.pop(name).table, index=False)
    by_patience = parameters.get("PATIENCE", 0) and "val_balanced_accuracy" in history
    training = {
        "epochs": len(history),
        "best_epoch": history["val_balanced_accuracy"].idxmax() if by_patience else len(history),
        "seconds": history["seconds"].sum(),
        "images_per_second": (table["split"] == "train").sum() / history["seconds"].median(),
        "precision": model.dtype_policy.name,
        "model_parameters": model.count_params(),
    }
    lock, code = _open.pop(run_dir, (None, {}))
    metrics = {
        "parameters": parameters,
        "classes": predictions.classes,
        "data": _describe_data(table, parameters["DATA_DIR"]) | more.pop("data", {}),
        "scores": scores,
        "majority_baseline": score_majority(predictions.part("test")),
        "training": training | more.pop("training", {}),
        "code": fingerprint_imports() | code,  # what was edited since counts as it was
        **more,
    }
    run = write_run(run_dir, metrics, history, predictions, files)
    if lock:
        lock.release()
    return run


def write_run(
    run_dir: Path, metrics: dict, history: pd.DataFrame, predictions, files: Collection[str] = ()
) -> Run:
    """Write both tables, then metrics.json with versions and the checksums of all `files`."""
    _write_table(run_dir / HISTORY, history, float_format="%.6g")
    _write_table(run_dir / PREDICTIONS, predictions.table, index=False)
    versions = {"python": python_version()} | {name: version(name) for name in PACKAGES}
    marks = {name: checksum(run_dir / name) for name in (HISTORY, PREDICTIONS, *files)}
    content = _make_plain(metrics | {"versions": versions, "files": marks})
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace_file(run_dir / METRICS, lambda path: path.write_text(text, encoding="utf-8"))
    return load_run(run_dir)


def save_figures(run_dir: str | os.PathLike, figures: dict) -> None:
    """Write matplotlib figures, name to figure, as figures/<name>.png in the run's folder."""
    folder = Path(run_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        write = partial(figure.savefig, dpi=120, bbox_inches="tight")
        replace_file(folder / f"{name}.png", write)


def load_run(run_dir: str | os.PathLike, image_only: bool = False) -> Run:
    """Read a finished run, or an ensemble, back.

    Args:
        run_dir: the run's folder.
        image_only: of a run whose model takes age, sex and site too, read what it answers without.

    Raises:
        InputError: the folder or a file is missing, or the files are not of one run.
    """
    from helpers.evaluation.predictions import read_predictions

    run_dir = resolve_run(run_dir)
    remedy = f"execute a training notebook with RUN_DIR = {str(run_dir)!r}"
    if not (run_dir / METRICS).is_file():
        problem = f"is not a finished run: {METRICS} missing: {remedy}"
        raise InputError(run_dir, [f"{problem}; an interrupted training goes on"])
    try:
        metrics = json.loads((run_dir / METRICS).read_text(encoding="utf-8"))
        files, members = dict(metrics["files"]), dict(metrics.get("members", {}))
        classes = tuple(metrics["classes"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(run_dir / METRICS, [f"is damaged ({error!r}): {remedy}"]) from None
    files |= {f"../{name}/{METRICS}": mark for name, mark in members.items()}
    missing = [name for name in files if not (run_dir / name).is_file()]
    changed = [n for n, mark in files.items() if n not in missing and checksum(run_dir / n) != mark]
    problems = [f"is not a finished run: {', '.join(missing)} missing: {remedy}"] if missing else []
    if changed:
        problem = f"{', '.join(changed)} differ from what {METRICS} describes (edited, or a later"
        problems.append(f"{problem} run was interrupted while it was saved): {remedy}")
    raise_problems(run_dir, problems)
    models = [run_dir / MODEL]
    if members:
        models = [path for n in members for path in load_run(run_dir.parent / n).model_paths]
    only = "predictions_image_only.csv"
    table = run_dir / (only if image_only and only in files else PREDICTIONS)
    history = pd.read_csv(run_dir / HISTORY, index_col="epoch")
    return Run(run_dir, metrics, history, read_predictions(table, classes), tuple(models))


def peek_run(run_dir: str | os.PathLike) -> Run | None:
    """Read a run back, if a whole one is there."""
    try:
        return load_run(run_dir)
    except InputError:
        return None


def describe(run: Run) -> str:
    """Put a run's data, scores and where to look into a few lines."""
    lines = [f"{run.path}: {run.metrics['data']['description']}"]
    for name, row in run.metrics["scores"]["test"].items():
        value, low, high = ("?" if x is None else f"{x:.3f}" for x in list(row.values())[:3])
        lines.append(f"  test {name:<32} {value}   95 % interval {low} … {high}")
    lines.append(f"  always the commonest class            {run.metrics['majority_baseline']:.3f}")
    return "\n".join([*lines, f"Look at {run.path / 'report.html'} and {run.path / 'figures'}"])


def load_model(run: Run, number: int = 0):
    """Load one of a run's models for images alone; an error says which Keras wrote it."""
    from helpers.nets.patient import load_image_model

    path = run.model_paths[number]
    try:
        return load_image_model(path)
    except (ValueError, TypeError, OSError) as error:
        wrote, here = run.metrics["versions"]["keras"], version("keras")
        problem = f"written by Keras {wrote}, and Keras {here} cannot read it"
        remedy = f"pip install 'keras>={wrote}'"
        raise InputError(
            path, [f"{problem}: {remedy} ({type(error).__name__}: {error})"]
        ) from error


def fingerprint_code(path: str | os.PathLike) -> str:
    """Return a short checksum of a module's or a notebook's code, "" for a missing file.

    Comments, docstrings and layout do not count, nor do the cells of parameters.
    """
    path = Path(path)
    return _fingerprint_code(path, path.stat().st_mtime_ns) if path.is_file() else ""


@lru_cache
def _fingerprint_code(path: Path, _: int) -> str:
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        skipped = {"parameters", "injected-parameters"}
        cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        cells = [c for c in cells if not skipped & set(c["metadata"].get("tags", []))]
        source = "\n".join("".join(cell["source"]) for cell in cells)
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a notebook with magics
        return _digest(source)
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(ast.Constant()), *rest]:
                node.body = rest
    return _digest(ast.unparse(tree))


def fingerprint_imports() -> dict[str, str]:
    """Fingerprint the code behind this process: its notebook, if told, and the helper modules."""
    files = [m.__file__ for n, m in list(sys.modules.items()) if n.split(".")[0] == "helpers"]
    marks = {Path(f).relative_to(PROJECT).as_posix(): fingerprint_code(f) for f in files if f}
    return json.loads(os.environ.get(NOTEBOOK_CODE, "{}")) | marks


def fingerprint_data(table: pd.DataFrame) -> str:
    """Return a short checksum of ids, labels, groups, split and the sizes of the image files."""
    texts = [table[column].astype(str).str.cat(sep="\n") for column in
             ("image_id", "label", "group", "split")]  # fmt: skip
    texts += [str(Path(path).stat().st_size) for path in table["path"]]
    return _digest("\n".join(texts))


def _describe_data(table: pd.DataFrame, folder: str) -> dict:
    images, lesions = len(table), table["group"].nunique()
    kind = "drawn images" if sample.is_drawn(table["image_id"]) else "images"
    return {
        "folder": folder or "drawn sample",
        "description": f"{images:,} {kind} of {lesions:,} lesions from {folder or 'data/sample'}",
        "images": images,
        "lesions": lesions,
        "split": table["split"].value_counts().to_dict(),
        "fingerprint": fingerprint_data(table),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_table(path: Path, table: pd.DataFrame, **options) -> None:
    replace_file(path, lambda partial: table.to_csv(partial, **options))


def _make_plain(value):
    """Turn tables, NumPy numbers and nan (None) into what JSON knows, all the way down."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("index")
    if isinstance(value, dict):
        return {str(k): _make_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(v) for v in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
