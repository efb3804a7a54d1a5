"""An experiment: a YAML file that says which runs of a notebook to make, and how far they are.

    notebook: Skin_Cancer_Detection.ipynb
    fixed: {IMAGE_HEIGHT: 28, IMAGE_WIDTH: 28}
    grid: {BATCH_NORM: [false, true], FOLD: [0, 1, 2, 3, 4]}
    ensemble: FOLD

`grid` is a mapping of lists or a list of such mappings; each gives the product of its lists, the
first name varying slowest. `ensemble` names the parameter whose runs are joined once all of them
are finished. Relative paths are below the project.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from filelock import FileLock, Timeout

from helpers.data.files import InputError, raise_problems, resolve_path
from helpers.evaluation.predictions import Predictions
from helpers.evaluation.scores import score_majority, score_with_intervals
from helpers.runs.folder import (
    KERNEL_LOCK,
    METRICS,
    Run,
    checksum,
    find_differences,
    find_problems,
    peek_run,
    resolve_run,
    write_run,
)

SAMPLE = "notebooks/experiments/sample_grid.yaml"
TYPES = {"bool": bool, "int": int, "float": float, "str": str}
KEYS = ("notebook", "fixed", "grid", "ensemble")
NOTEBOOK, ERROR, LOCK = "notebook.ipynb", "error.txt", ".lock"
LONGEST_NAME = 200  # file systems allow 255 bytes


@dataclass(frozen=True)
class PlannedRun:
    """A run that an experiment asks for.

    Attributes:
        path: its folder.
        notebook: the notebook to execute.
        parameters: all that the notebook is given, RUN_DIR apart.
        own: those of the grid, in the folder's name.
    """

    path: Path
    notebook: Path
    parameters: dict
    own: dict


@dataclass(frozen=True)
class Experiment:
    """What an experiment's file says, checked against its notebook.

    Attributes:
        folder: where the runs' folders are, runs/<name of the file>.
        runs: in the order of execution.
        ensemble: the parameter whose runs are joined, "" for none.
    """

    folder: Path
    runs: tuple[PlannedRun, ...]
    ensemble: str


def read_experiment(path: str | Path, changes: Sequence[Sequence[str]] = ()) -> Experiment:
    """Read an experiment's file and check it against its notebook.

    Args:
        path: the YAML file.
        changes: names and texts, as on a command line, that replace or join the fixed parameters.

    Raises:
        InputError: everything that is wrong with the file, together.
    """
    path = resolve_path(path)
    if not path.is_file():
        raise InputError(path, ["no such experiment"])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(path, [f"not readable as YAML: {error}"]) from None
    raise_problems(path, _find_shape_problems(content))

    folder, notebook = resolve_run(f"runs/{path.stem}"), resolve_path(content["notebook"])
    declared = inspect_parameters(notebook)
    fixed = {**(content.get("fixed") or {}), **parse_parameters(changes, declared)}
    runs, problems = [], {}
    for own in (own for grid in _list_grids(content) for own in _multiply(grid)):
        name = name_run(own)
        found = find_problems({**fixed, **own}, declared)
        found += [f"{name} is both fixed and in the grid" for name in own if name in fixed]
        if folder / name in [planned.path for planned in runs]:
            found.append(f"{name} is there twice")
        if len(name.encode()) > LONGEST_NAME:
            found.append(f"the folder name {name!r} is too long: fix some values")
        problems |= dict.fromkeys(found)  # each once, however many runs have it
        runs.append(PlannedRun(folder / name, notebook, {**fixed, **own}, own))
    if any("RUN_DIR" in planned.parameters for planned in runs):
        problems["RUN_DIR is chosen for each run: take it out"] = None
    ensemble = content.get("ensemble") or ""
    if ensemble and not any(ensemble in planned.own for planned in runs):
        problems[f"ensemble: {ensemble} is not in the grid"] = None
    raise_problems(path, list(problems))
    return Experiment(folder, tuple(runs), ensemble)


def inspect_parameters(notebook: str | Path) -> dict[str, str]:
    """Read the names and types that the parameters cell of a notebook declares.

    Raises:
        InputError: no such file, no parameters, or a parameter without a plain type.
    """
    notebook = resolve_path(notebook)
    if not notebook.is_file():
        raise InputError(notebook, ["no such notebook"])
    found = papermill.inspect_notebook(str(notebook)).items()
    declared = {name: entry["inferred_type_name"] for name, entry in found}
    untyped = [name for name, kind in declared.items() if kind not in TYPES]
    if untyped or not declared:
        problem = "the cell tagged `parameters` must declare each with one of the types"
        example = f"{', '.join(TYPES)}, as in `EPOCHS: int = 20`; without: {', '.join(untyped)}"
        raise InputError(notebook, [f"{problem} {example}"])
    return declared


def parse_parameters(pairs: Sequence[Sequence[str]], declared: dict[str, str]) -> dict:
    """Turn names and texts of a command line into values of the declared types.

    Text that is not of the declared type, and names that are not declared, stay as they are:
    `folder.find_problems` names them all.
    """
    values = {}
    for name, text in pairs:
        kind = declared.get(name, "str")
        try:
            value = {"true": True, "false": False}[text.lower()] if kind == "bool" else text
            values[name] = TYPES[kind](value)
        except (KeyError, ValueError):
            values[name] = text
    return values


def name_run(own: dict) -> str:
    """Make the folder's name of the parameters that a run has of its own: A=1,B=true."""
    texts = (value if isinstance(value, str) else json.dumps(value) for value in own.values())
    plain = (re.sub(r"[^\w.+-]", "-", text) for text in texts)
    return ",".join(f"{name}={text}" for name, text in zip(own, plain, strict=True))


def find_finished(planned: PlannedRun) -> Run | None:
    """Return the run if it is finished: every cell completed, the saved files whole.

    Raises:
        InputError: a finished run of other parameters lies in the folder.
    """
    run = peek_run(planned.path)
    try:
        if not run or find_unfinished_cells(planned.path / NOTEBOOK):
            return None
    except (OSError, nbformat.reader.NotJSONError):
        return None
    raise_problems(planned.path, find_differences(run, planned.parameters))
    return run


def find_unfinished_cells(notebook: Path) -> list[int]:
    """List the code cells, counted from 1, that papermill did not mark as completed.

    A kernel that ends early with exit code 0 leaves them pending and papermill content.
    """
    return [
        number
        for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells, start=1)
        if cell.cell_type == "code"
        and cell.source.strip()
        and cell.metadata.get("papermill", {}).get("status") != "completed"
    ]


def describe_state(planned: PlannedRun) -> str:
    """Say how far a run is: finished, outdated, running, failed, interrupted or not started."""
    if not planned.path.is_dir():
        return "not started"
    try:
        for name in (LOCK, KERNEL_LOCK):
            with FileLock(planned.path / name, timeout=1):
                pass
    except Timeout:
        return "running"
    if run := find_finished(planned):
        changed = ", ".join(run.outdated)
        return f"outdated: made by other code ({changed})" if changed else "finished"
    if (planned.path / ERROR).is_file():
        return "failed: " + (planned.path / ERROR).read_text(encoding="utf-8").strip()
    return "interrupted"


def load_runs(experiment: Experiment) -> tuple[list[Run], dict[str, str]]:
    """Load what is finished of an experiment.

    Returns:
        The finished runs in the experiment's order (`Run.outdated` names what code has changed
        since), and what became of each of the others: folder name to what `describe_state` says.
    """
    found = [find_finished(planned) for planned in experiment.runs]
    both = zip(experiment.runs, found, strict=True)
    others = {planned.path.name: describe_state(planned) for planned, run in both if not run}
    return [run for run in found if run], others


def join_experiment(experiment: Experiment) -> list[Run]:
    """Join the finished runs of an experiment over its `ensemble` parameter.

    Runs that agree in all other parameters of the grid are joined once all of them are finished,
    into a folder beside theirs that has `all` for the value: BATCH_NORM=true,FOLD=all.
    """
    over = experiment.ensemble
    families: dict[str, list] = {}
    for planned in experiment.runs:
        if over in planned.own:
            families.setdefault(name_run({**planned.own, over: "all"}), []).append(planned)
    joined = []
    for name, family in families.items():
        runs = [find_finished(planned) for planned in family]
        if all(runs):
            joined.append(join_runs(runs, experiment.folder / name, over))
    return joined


def join_runs(runs: list[Run], folder: Path, over: str = "FOLD") -> Run:
    """Join finished runs over folds into one folder that `load_run` reads like a run's.

    Its predictions hold each test image once, predicted by the one model that did not train on it,
    and the validation images of each run, with the column `fold`. Its scores are those of all test
    images together. An ensemble of the same runs that lies there already is kept.

    Args:
        runs: finished runs of the same parameters but for `over`, in folders beside `folder`.
        folder: where to write.
        over: name of the parameter that differs.

    Raises:
        InputError: runs that do not belong together.
    """
    old = peek_run(folder)
    if old and set(old.metrics.get("members", ())) == {run.path.name for run in runs}:
        return old  # `load_run` compares the members' checksums
    values = [run.metrics["parameters"][over] for run in runs]
    first = runs[0].metrics
    parameters = {n: v for n, v in first["parameters"].items() if n != "RUN_DIR"}
    tables = [run.predictions.table.assign(fold=v) for run, v in zip(runs, values, strict=True)]
    histories = [run.history.assign(fold=v) for run, v in zip(runs, values, strict=True)]
    predictions = Predictions(pd.concat(tables, ignore_index=True), runs[0].classes)
    test = predictions.part("test")
    problems = [
        problem
        for run in runs
        for problem in find_differences(run, {n: v for n, v in parameters.items() if n != over})
    ]
    if any(run.classes != runs[0].classes for run in runs):
        problems.append("the runs differ in their classes")
    if repeated := int(test.table["image_id"].duplicated().sum()):
        problems.append(f"{repeated} test images are in more than one {over}")
    raise_problems(folder, problems)
    sums = {n: sum(run.metrics["training"][n] for run in runs) for n in ("seconds", "epochs")}
    split = predictions.table["split"].value_counts().to_dict()
    metrics = {
        "parameters": parameters | {over: values},
        "classes": runs[0].classes,
        "data": first["data"] | {"split": split},
        "scores": {"test": score_with_intervals(test)},
        "majority_baseline": score_majority(test),
        "training": first["training"] | {"best_epoch": None, "images_per_second": None} | sums,
        "code": first.get("code", {}),
        "members": {run.path.name: checksum(run.path / METRICS) for run in runs},
    }
    folder.mkdir(parents=True, exist_ok=True)
    return write_run(folder, metrics, pd.concat(histories), predictions)


def _find_shape_problems(content) -> list[str]:
    """List what is wrong with the file before any notebook is looked at."""
    if not isinstance(content, dict):
        return [f"a mapping with the keys {', '.join(KEYS)} is wanted, not {content!r}"]
    problems = []
    for key in [key for key in content if key not in KEYS]:
        guess = get_close_matches(str(key), KEYS, n=1)
        hint = f"did you mean {guess[0]}? " if guess else ""
        problems.append(f"no key {key!r}: {hint}The keys are {', '.join(KEYS)}")
    if not isinstance(content.get("notebook"), str):
        problems.append("notebook is missing: name the notebook to execute")
    if not isinstance(content.get("fixed") or {}, dict):
        problems.append(f"fixed is {content['fixed']!r}, a mapping of names to values is wanted")
    if not content.get("grid"):
        problems.append("grid is missing: there is nothing to execute")
    for grid in _list_grids(content):
        if not isinstance(grid, dict):
            problems.append(f"grid: {grid!r} is not a mapping of names to lists")
            continue
        wrong = {n: v for n, v in grid.items() if not isinstance(v, list) or not v}
        problems += [f"grid: {n} is {v!r}, a list is wanted, as in [{v}]" for n, v in wrong.items()]
    return problems


def _list_grids(content: dict) -> list:
    grid = content.get("grid") or []
    return grid if isinstance(grid, list) else [grid]


def _multiply(grid: dict) -> list[dict]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
