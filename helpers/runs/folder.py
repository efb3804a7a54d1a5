"""A run's folder: parameters checked, the folder opened, all that a run leaves written and read."""

import ast
import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import pandas as pd
from filelock import FileLock, Timeout

from helpers.data import sample
from helpers.data.files import PROJECT, InputError, name_some, raise_problems, replace_file
from helpers.data.images import measure_files
from helpers.evaluation.predictions import Predictions, read_predictions
from helpers.evaluation.scores import score_majority

PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pillow", "opencv-python-headless")
METRICS, HISTORY, MODEL = "metrics.json", "history.csv", "model.keras"
PREDICTIONS, IMAGE_ONLY = "predictions.csv", "predictions_image_only.csv"
KERNEL_LOCK = ".kernel.lock"
NOTEBOOK_CODE = "SKIN_NOTEBOOK_CODE"  # environment variable: JSON, file to its `fingerprint_code`
JSON_TYPES = (bool, int, float, str, list, dict)
BOX = "models/ham10000"  # the run that comes with the project
# What is made of a run later, and would not belong to one made anew in the same folder.
LATER = ("MODEL_CARD.md", "export/*", "figures/*", "submission.csv", "answers*.csv", "report.html")
LATER += ("predictions_*.csv", "*novelty*", "*verdict*", "*judg*")
# Parameters of all notebooks: the lowest and highest value of a number, or a list of choices.
LIMITS = {
    **dict.fromkeys(("IMAGE_HEIGHT", "IMAGE_WIDTH"), (22, 4096)),  # 22: three poolings leave one
    **dict.fromkeys(("EPOCHS", "BATCH_SIZE"), (1, 100_000)),
    **dict.fromkeys(("FOLD", "SEED"), (0, 2**31 - 1)),
    **dict.fromkeys(("ACCURACY", "FALSE_ALARMS", "PREVALENCE"), (1e-6, 1)),
    "LEARNING_RATE": (1e-12, 100),
    "RANDOM_SPLITS": (2, 10_000),
    "SUBSET": (1, 100_000),
    "RESAMPLES": (100, 1_000_000),
    "SCHEDULE": ["constant", "cosine"],
    "PRECISION": ["auto", "float32", "mixed_bfloat16", "mixed_float16"],
    "PART": ["val", "test"],
}
OPEN = ("EPOCHS", "BATCH_SIZE", "LEARNING_RATE")  # 0: what suits the MODEL, where one is declared
# The runs that this process holds: lock, code and when it was opened.
_open: dict[Path, tuple[FileLock, dict, float]] = {}


@dataclass(frozen=True)
class Run:
    """A finished run.

    `metrics` is what metrics.json holds: parameters, classes, data, scores, majority_baseline,
    training, code, versions, files. `history` has a row per epoch, from 1.
    """

    path: Path
    metrics: dict
    history: pd.DataFrame
    predictions: Predictions
    model_path: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The class codes in the order of the model's outputs."""
        return self.predictions.classes

    @property
    def file_size(self) -> list[int] | None:
        """Largest height and width in pixels of the files of its data; larger images go via it."""
        return self.metrics["data"].get("file_size")

    @property
    def outdated(self) -> list[str]:
        """The files of code that have changed since: the run's notebook, helper modules."""
        code = self.metrics.get("code", {})
        return [path for path, mark in code.items() if fingerprint_code(PROJECT / path) != mark]


def check_parameters(namespace: dict) -> dict:
    """Return a notebook's parameters, name to value, after checking names, types and ranges.

    `namespace` is the notebook's `globals()`, where each is declared with a type: `SEED: int = 0`.
    """
    declared = {n: t.__name__ for n, t in namespace["__annotations__"].items() if n.isupper()}
    given = {n: v for n, v in namespace.items() if n.isupper() and n[0] != "_"}
    # Values that papermill can give; not what an import may have brought.
    given = {n: v for n, v in given.items() if v is None or type(v) in JSON_TYPES}
    raise_problems("parameters", find_problems(given, declared))
    return {name: given[name] for name in declared}


def find_problems(given: dict, declared: dict[str, str]) -> list[str]:
    """List what is wrong with parameter values; `declared` names the type of each."""
    problems = []
    for name, value in given.items():
        wanted, found, limits = declared.get(name), type(value).__name__, LIMITS.get(name)
        if name not in declared:
            guess = get_close_matches(name, declared, n=1, cutoff=0.5)
            hint = f"did you mean {guess[0]}? " if guess else ""
            problems.append(f"no parameter {name}: {hint}The parameters are {', '.join(declared)}")
        elif found != wanted and (wanted, found) != ("float", "int"):
            hint = "; YAML reads 1e-4 as text, write 1.0e-4" if wanted == "float" else ""
            problems.append(f"{name} is {value!r} ({found}), wanted is {wanted}{hint}")
        elif limits is None or ("MODEL" in declared and name in OPEN and value == 0):
            continue
        elif isinstance(limits, list) and value not in limits:
            problems.append(f"{name} is {value!r}, choose one of {name_some(limits)}")
        elif isinstance(limits, tuple) and not limits[0] <= value <= limits[1]:
            problems.append(f"{name} is {value}, wanted is a value from {limits[0]} to {limits[1]}")
    return problems


def resolve_run(run_dir: str | os.PathLike) -> Path:
    """Find a run's folder: as it is named, else below the project, wherever a notebook runs.

    The environment variable SKIN_RUNS_DIR names a folder in place of the project's runs/.
    """
    path, base = Path(run_dir).expanduser(), os.environ.get("SKIN_RUNS_DIR")
    if base and path.parts[:1] == ("runs",):
        return Path(base).expanduser().absolute().joinpath(*path.parts[1:])
    return path.absolute() if path.is_dir() else PROJECT / path


def open_run(parameters: dict) -> Path:
    """Make RUN_DIR, keep it for this process until `save_run`, and return it.

    A finished run of other parameters is refused; one of the same stays until it is replaced.
    """
    run_dir = resolve_run(parameters["RUN_DIR"])
    lock = FileLock(run_dir / KERNEL_LOCK, timeout=5)  # a kernel whose parent was killed ends
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if run_dir not in _open:
            lock.acquire()
            _open[run_dir] = lock, fingerprint_imports(), time.time()
    except Timeout:
        problem = "another process, perhaps an open notebook, is making this run"
        raise InputError(run_dir, [f"{problem}: end it, or choose another RUN_DIR"]) from None
    except OSError as error:
        remedy = "give RUN_DIR an absolute path, or set the environment variable SKIN_RUNS_DIR"
        raise InputError(run_dir, [f"cannot be written ({error}): {remedy}"]) from None
    if old := peek_run(run_dir):
        if problems := find_differences(old, parameters):
            _open.pop(run_dir)[0].release()
            raise InputError(run_dir, problems)
        print(f"the finished run in {run_dir} is replaced once this one is finished")
    return run_dir


def find_differences(run: Run, parameters: dict) -> list[str]:
    """Say in which parameters, RUN_DIR apart, a finished run differs from wanted ones."""
    found = run.metrics["parameters"]
    named = [n for n, v in parameters.items() if n != "RUN_DIR" and found.get(n, ...) != v]
    texts = {name: repr(found[name]) if name in found else "missing" for name in named}
    other = ", ".join(f"{name} {texts[name]} instead of {parameters[name]!r}" for name in named)
    remedy = "delete the folder, or give the run or experiment another name"
    return [f"holds a finished run with {other}: {remedy}"] if named else []


def save_run(
    run_dir, *, parameters: dict, model, table, history, predictions, scores: dict, more=None
) -> Run:
    """Write a run's folder and give it free; metrics.json comes last and vouches for the others.

    What was made of an older run in the folder (`LATER`) is deleted first. Layers of this project
    are saved as Keras' own. `table` is split, `history` has a row per epoch, from 1, with seconds,
    `scores` are as {"test": score_with_intervals(...)}. Of the mapping `more`, "training" and
    "data" join those metrics; `Predictions` are written to predictions_<name>.csv.
    """
    run_dir, more, files = Path(run_dir), dict(more or {}), [MODEL]
    run_dir.mkdir(parents=True, exist_ok=True)
    if isinstance(model, getattr(sys.modules.get("keras"), "Model", ())):
        from helpers.training.layers import to_keras

        model = to_keras(model)
    lock, code, opened = _open.pop(run_dir, (None, {}, 0))
    for path in [path for pattern in LATER for path in run_dir.glob(pattern)]:
        if path.stat().st_mtime < opened:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    replace_file(run_dir / MODEL, model.save)
    for name in [name for name, value in more.items() if isinstance(value, Predictions)]:
        files.append(f"predictions_{name}.csv")
        replace_file(run_dir / files[-1], partial(more.pop(name).table.to_csv, index=False))
    source = parameters["DATA_DIR"] or "data/sample"
    images, lesions = len(table), table["group"].nunique()
    kind = "drawn images" if sample.is_drawn(table["image_id"]) else "images"
    data = {
        "folder": source,
        "description": f"{images:,} {kind} of {lesions:,} lesions from {source}",
        "images": images,
        "lesions": lesions,
        "file_size": measure_files(table["path"]),
        "split": table["split"].value_counts().to_dict(),
        "fingerprint": fingerprint_data(table),
    }
    training = {
        "epochs": len(history),
        "best_epoch": len(history),
        "seconds": history["seconds"].sum(),
        "images_per_second": data["split"].get("train", 0) / history["seconds"].median(),
        "precision": model.dtype_policy.name,
        "model_parameters": model.count_params(),
    }
    metrics = {
        "parameters": parameters,
        "classes": predictions.classes,
        "data": data | more.pop("data", {}),
        "scores": scores,
        "majority_baseline": score_majority(predictions.part("test")),
        "training": training | more.pop("training", {}),
        "code": fingerprint_imports() | code,  # what was edited since counts as it was
    }
    run = write_run(run_dir, metrics | more, history, predictions, files)
    if lock:
        lock.release()
    return run


def write_run(run_dir: Path, metrics: dict, history: pd.DataFrame, predictions, files=()) -> Run:
    """Write both tables, then metrics.json with versions and the checksums of all `files`."""
    replace_file(run_dir / HISTORY, partial(history.to_csv, float_format="%.6g"))
    replace_file(run_dir / PREDICTIONS, partial(predictions.table.to_csv, index=False))
    versions = {"python": python_version()} | {name: version(name) for name in PACKAGES}
    marks = {name: _checksum(run_dir / name) for name in (HISTORY, PREDICTIONS, *files)}
    text = json.dumps(
        metrics | {"versions": versions, "files": marks},
        default=lambda x: x.to_dict("index") if isinstance(x, pd.DataFrame) else x.item(),
    )
    content = json.loads(text, parse_constant=lambda _: None)  # nan is no JSON
    text = json.dumps(content, indent=2) + "\n"
    replace_file(run_dir / METRICS, lambda path: path.write_text(text, encoding="utf-8"))
    return load_run(run_dir)


def save_figures(run_dir: str | os.PathLike, figures: dict) -> None:
    """Write matplotlib figures, name to figure, as figures/<name>.png in the run's folder."""
    folder = Path(run_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        replace_file(folder / f"{name}.png", partial(figure.savefig, dpi=120, bbox_inches="tight"))


def load_run(run_dir: str | os.PathLike, image_only: bool = False) -> Run:
    """Read a finished run back; refuse files that are not of one run.

    With `image_only`, its predictions are those without age, sex and site, should it take them.
    """
    run_dir = resolve_run(run_dir)
    remedy = f"execute a training notebook with RUN_DIR = {str(run_dir)!r}; it goes on if it can"
    try:
        metrics = json.loads((run_dir / METRICS).read_text(encoding="utf-8"))
        files = dict(metrics["files"])
    except OSError:
        raise InputError(run_dir, [f"no finished run: {METRICS} missing: {remedy}"]) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(run_dir / METRICS, [f"is damaged ({error!r}): {remedy}"]) from None
    missing = [name for name in files if not (run_dir / name).is_file()]
    problems = [f"no finished run: {', '.join(missing)} missing: {remedy}"] if missing else []
    changed = [n for n in files if n not in missing and _checksum(run_dir / n) != files[n]]
    if changed:
        why = "edited, or a later run was interrupted while it was saved"
        problems.append(f"{', '.join(changed)} differ from {METRICS} ({why}): {remedy}")
    raise_problems(run_dir, problems)
    history = pd.read_csv(run_dir / HISTORY, index_col="epoch")
    name = IMAGE_ONLY if image_only and IMAGE_ONLY in files else PREDICTIONS
    predictions = read_predictions(run_dir / name, tuple(metrics["classes"]))
    return Run(run_dir, metrics, history, predictions, run_dir / MODEL)


def peek_run(run_dir: str | os.PathLike) -> Run | None:
    """Read a run back, if a whole one is there."""
    try:
        return load_run(run_dir)
    except InputError:
        return None


def load_model(run: Run):
    """Load a run's model, for images alone; an error says which Keras wrote it."""
    from helpers.nets.patient import load_image_model

    path, wrote = run.model_path, run.metrics["versions"]["keras"]
    try:
        return load_image_model(path)
    except Exception as error:  # Keras raises nearly anything
        problem = f"written by Keras {wrote}, not readable by Keras {version('keras')} ({error})"
        raise InputError(path, [f"{problem}: pip install 'keras>={wrote}'"]) from error


def fingerprint_data(table: pd.DataFrame) -> str:
    """Return a short checksum of ids, labels, groups, split and the sizes of the image files."""
    sizes = table["path"].map(lambda path: Path(path).stat().st_size)
    columns = table[["image_id", "label", "group", "split"]].assign(size=sizes)
    return hashlib.sha256(columns.to_csv(index=False).encode()).hexdigest()[:16]


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint_code(path: Path) -> str:
    """Return a short checksum of a module's or a notebook's code, "" for a missing file.

    Comments, docstrings, layout and the cells of parameters do not count.
    """
    if not path.is_file():
        return ""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        skipped = {"parameters", "injected-parameters"}
        cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        cells = [c for c in cells if not skipped & set(c["metadata"].get("tags", []))]
        source = "\n".join("".join(cell["source"]) for cell in cells)
    return _fingerprint_source(source)


@lru_cache
def _fingerprint_source(source: str) -> str:
    with suppress(SyntaxError):  # a notebook with magics counts as it is
        tree = ast.parse(source)
        for node in ast.walk(tree):
            match getattr(node, "body", None):
                case [ast.Expr(ast.Constant()), *rest]:
                    node.body = rest
        source = ast.unparse(tree)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def fingerprint_imports() -> dict[str, str]:
    """Fingerprint the code behind this process: its notebook, if told, and the helper modules."""
    files = [m.__file__ for n, m in list(sys.modules.items()) if n.split(".")[0] == "helpers"]
    paths = [Path(file) for file in files if file]
    marks = {path.relative_to(PROJECT).as_posix(): fingerprint_code(path) for path in paths}
    return json.loads(os.environ.get(NOTEBOOK_CODE, "{}")) | marks


def fingerprint_training(table: pd.DataFrame) -> dict:
    """Fingerprint the data and the helper modules on which a training depends."""
    rooms, marks = ("helpers/data/", "helpers/nets/", "helpers/training/"), fingerprint_imports()
    code = {path: mark for path, mark in marks.items() if path.startswith(rooms)}
    return {"data": fingerprint_data(table), "code": code}
