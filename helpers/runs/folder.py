"""A run's folder: what the main notebook writes when it is done, and how to read it back."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np
import pandas as pd

PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pillow", "opencv-python-headless")
METRICS, HISTORY, PREDICTIONS, IMAGE_ONLY, MODEL = (
    "metrics.json",
    "history.csv",
    "predictions.csv",
    "predictions_image_only.csv",
    "model.keras",
)


class RunError(ValueError):
    """A run's folder or its parameters are not as they must be; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A finished run, or an ensemble of runs over folds, read back by `load_run`.

    Attributes:
        path: the run's folder.
        metrics: what metrics.json holds: parameters, data, scores, training, versions; of an
            ensemble also members.
        history: a row per epoch, from 1; of an ensemble for each fold, with the column `fold`.
        predictions: image_id, lesion_id, group, split, dx and p_<class> for each class; of an
            ensemble also fold, whose model predicted the row (none: the mean of all).
        model_paths: the saved model, of an ensemble those of all members;
            `keras.models.load_model` reads them.
    """

    path: Path
    metrics: dict
    history: pd.DataFrame
    predictions: pd.DataFrame
    model_paths: tuple[Path, ...]

    @property
    def classes(self) -> list[str]:
        """Class codes in the order of the model's outputs."""
        return self.metrics["classes"]

    def part(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return labels (N,), probabilities (N, K) and groups (N,) of the part `split`."""
        rows = self.predictions[self.predictions["split"] == split]
        labels = rows["dx"].map(self.classes.index).to_numpy()
        return labels, rows[[f"p_{dx}" for dx in self.classes]].to_numpy(), rows["group"].to_numpy()


def check_parameters(namespace: dict, optional: Collection[str] = ()) -> dict:
    """Return the parameters of a notebook, after checking names and types.

    The parameters cell declares them with a type (`SEED: int = 0`); an injected cell may
    then set other values. papermill itself only warns of a name that nobody declared.

    Args:
        namespace: the notebook's `globals()`.
        optional: parameters that may be None.

    Returns:
        Name to value, in the order of declaration.

    Raises:
        RunError: undeclared UPPER_CASE names and values of another type, all together.
    """
    declared = {n: t for n, t in namespace["__annotations__"].items() if n.isupper()}
    given = {n: v for n, v in namespace.items() if n.isupper() and not n.startswith("_")}
    set_ones = {n: v for n, v in given.items() if not (v is None and n in optional)}
    problems = find_parameter_problems(set_ones, {n: t.__name__ for n, t in declared.items()})
    if problems:
        raise RunError("\n".join(problems))
    return {name: given[name] for name in declared}


def find_parameter_problems(given: dict, declared: dict[str, str]) -> list[str]:
    """List what is wrong with parameter values.

    Args:
        given: name to value.
        declared: name to the name of its type: bool, int, float or str. An int is welcome
            where a float is wanted.
    """
    problems = []
    for name, value in given.items():
        if name not in declared:
            guess = get_close_matches(name, declared, n=1, cutoff=0.5)
            hint = f"did you mean {guess[0]}? " if guess else ""
            problems.append(f"no parameter {name}: {hint}The parameters are {', '.join(declared)}")
            continue
        wanted, found = declared[name], type(value).__name__
        if found != wanted and (wanted, found) != ("float", "int"):
            hint = "; YAML reads 1e-4 as text, write 1.0e-4" if wanted == "float" else ""
            problems.append(f"{name} is {value!r} ({found}), wanted is {wanted}{hint}")
    return problems


def make_predictions(
    table: pd.DataFrame, probabilities: np.ndarray, classes: tuple[str, ...]
) -> pd.DataFrame:
    """Join the probabilities (N, K) to who the N rows of the table are.

    Returns:
        image_id, lesion_id, group, split, dx and p_<class> for each of the K classes.
    """
    columns = [f"p_{dx}" for dx in classes]
    known = table[["image_id", "lesion_id", "group", "split", "dx"]].reset_index(drop=True)
    return known.join(pd.DataFrame(probabilities.astype(float), columns=columns))


def describe_data(table: pd.DataFrame, pixels: np.ndarray, folder: str) -> dict:
    """Describe the data of a run for metrics.json: counts, split and fingerprint."""
    images, lesions = len(table), table["group"].nunique()
    return {
        "folder": folder,
        "description": f"{images:,} images of {lesions:,} lesions from {folder}",
        "images": images,
        "lesions": lesions,
        "split": table["split"].value_counts().to_dict(),
        "fingerprint": fingerprint_data(table, pixels),
    }


def describe_training(
    history: pd.DataFrame, best_epoch: int, images: int, refit: pd.DataFrame | None = None
) -> dict:
    """Describe the training of a run for metrics.json.

    Args:
        history: a row per epoch with the column `seconds`.
        best_epoch: the epoch whose weights were kept, from 1.
        images: training images per epoch. Images per second count these alone, but the seconds
            are of the whole epoch, validation and checkpoint included.
        refit: the history of the second training, on the validation part too; its seconds are
            counted in.
    """
    refit_seconds = 0.0 if refit is None else refit["seconds"].sum()
    return {
        "epochs": len(history),
        "best_epoch": best_epoch,
        "seconds": history["seconds"].sum() + refit_seconds,
        "refit_seconds": refit_seconds,
        "images_per_second": images / history["seconds"].median(),
    }


def save_run(
    run_dir: str | Path,
    metrics: dict,
    history: pd.DataFrame,
    predictions: pd.DataFrame,
    model,
    image_only: pd.DataFrame | None = None,
) -> Path:
    """Write a run's folder; metrics.json comes last and vouches for the other files.

    Every file is replaced in one step. metrics.json carries the checksums of the others, so a
    folder in which a kill left old and new files side by side is never taken for a run.

    Args:
        run_dir: the folder; made if it is missing.
        metrics: JSON values; nan is written as null. `versions` and `files` are added.
        history: a row per epoch.
        predictions: a row per image of the validation and test parts.
        model: a Keras model.
        image_only: what a model that takes metadata too answers without any, as `predictions`.

    Returns:
        The folder.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    replace_file(run_dir / MODEL, model.save)
    names = [HISTORY, PREDICTIONS, MODEL]
    if image_only is not None:
        replace_file(run_dir / IMAGE_ONLY, lambda path: image_only.to_csv(path, index=False))
        names.append(IMAGE_ONLY)
    return _save_tables(run_dir, metrics, history, predictions, names)


def save_ensemble(
    folder: str | Path,
    metrics: dict,
    history: pd.DataFrame,
    predictions: pd.DataFrame,
    members: list[Run],
) -> Path:
    """Write the folder of an ensemble; its members' folders must lie beside it.

    Args and return value are as of `save_run`, but for `members`: the runs whose models it uses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = metrics | {"members": {m.path.name: _checksum(m.path / METRICS) for m in members}}
    return _save_tables(folder, metrics, history, predictions, (HISTORY, PREDICTIONS))


def _save_tables(
    run_dir: Path,
    metrics: dict,
    history: pd.DataFrame,
    predictions: pd.DataFrame,
    names: Sequence[str],
) -> Path:
    """Write both tables, then metrics.json with the checksums of the files `names`."""
    replace_file(run_dir / HISTORY, lambda path: history.to_csv(path, float_format="%.6g"))
    replace_file(run_dir / PREDICTIONS, lambda path: predictions.to_csv(path, index=False))
    versions = {"python": python_version()} | {name: version(name) for name in PACKAGES}
    files = {name: _checksum(run_dir / name) for name in names}
    text = json.dumps(
        _make_plain({**metrics, "versions": versions, "files": files}), indent=2, allow_nan=False
    )
    replace_file(run_dir / METRICS, lambda path: path.write_text(text + "\n"))
    return run_dir


def load_run(run_dir: str | Path, image_only: bool = False) -> Run:
    """Read a finished run, or an ensemble, back.

    Args:
        run_dir: the run's folder.
        image_only: of a run whose model takes metadata too, read what it answers without any, as
            it does for one's own images (`fields.load_image_model`).

    Raises:
        RunError: the folder or a file is missing, or the files are not of one run.
    """
    run_dir = Path(run_dir)
    if not (run_dir / METRICS).is_file():
        raise RunError(_tell_unfinished(run_dir, [METRICS]))
    try:
        metrics = json.loads((run_dir / METRICS).read_text())
        files, members = dict(metrics["files"]), dict(metrics.get("members", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{run_dir / METRICS} is damaged ({error!r}): execute the run again"
        ) from None
    files |= {f"../{name}/{METRICS}": checksum for name, checksum in members.items()}
    if missing := [name for name in files if not (run_dir / name).is_file()]:
        raise RunError(_tell_unfinished(run_dir, missing))
    changed = [name for name, checksum in files.items() if _checksum(run_dir / name) != checksum]
    if changed:
        raise RunError(
            f"{run_dir}: {', '.join(changed)} differ from what metrics.json describes (edited, or "
            "a later run was interrupted while it was saved): execute the run again"
        )
    if members:
        models = tuple(p for name in members for p in load_run(run_dir.parent / name).model_paths)
    else:
        models = (run_dir / MODEL,)
    texts = dict.fromkeys(["image_id", "lesion_id", "group"], str)
    table = IMAGE_ONLY if image_only and IMAGE_ONLY in files else PREDICTIONS
    return Run(
        path=run_dir,
        metrics=metrics,
        history=pd.read_csv(run_dir / HISTORY, index_col="epoch"),
        predictions=pd.read_csv(run_dir / table, dtype=texts | {"fold": "Int64"}),
        model_paths=models,
    )


def _tell_unfinished(run_dir: Path, missing: list[str]) -> str:
    return (
        f"{run_dir} is not a finished run: {', '.join(missing)} missing. Execute the main "
        f"notebook with RUN_DIR = {str(run_dir)!r}; an interrupted training goes on"
    )


def save_figure(figure, run_dir: str | Path, name: str) -> None:
    """Write a matplotlib figure to figures/<name>.png in the run's folder."""
    folder = Path(run_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(
        folder / f"{name}.png", lambda path: figure.savefig(path, dpi=120, bbox_inches="tight")
    )


def fingerprint_data(table: pd.DataFrame, pixels: np.ndarray) -> str:
    """Return a short checksum of ids, labels, groups, split and pixels: which data a run saw."""
    digest = hashlib.sha256()
    for column in ("image_id", "label", "group", "split"):
        digest.update("\n".join(map(str, table[column])).encode())
    digest.update(str(pixels.shape).encode())
    for start in range(0, len(pixels), 256):
        digest.update(np.ascontiguousarray(pixels[start : start + 256]))
    return digest.hexdigest()[:16]


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under another name, then put it in place in one step."""
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_plain(value):
    """Turn NumPy numbers into Python's and nan into None, all the way down."""
    if isinstance(value, dict):
        return {str(k): _make_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_make_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
