"""An experiment: a YAML file that says which runs of a notebook to make, and how far they are.

    notebook: Skin_Cancer_Detection.ipynb
    fixed: {IMAGE_HEIGHT: 28, IMAGE_WIDTH: 28}
    grid: {BATCH_NORM: [false, true], FOLD: [0, 1, 2, 3, 4]}
    ensemble: FOLD

`grid` is one mapping of lists or a list of such mappings; each gives the product of its lists, the
first name varying slowest. `runs` lists further single runs. `ensemble` names the parameter whose
runs are joined when all of them are finished. Paths are relative to the project's folder.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import nbformat
import papermill
import yaml
from filelock import FileLock, Timeout

from helpers.runs.folder import Run, RunError, find_parameter_problems, load_run

PROJECT = Path(__file__).parents[2]
TYPES = {"bool": bool, "int": int, "float": float, "str": str}
KEYS = ("notebook", "fixed", "grid", "runs", "ensemble")
NOTEBOOK, ERROR, LOG, LOCK = "notebook.ipynb", "error.txt", "log.txt", ".lock"
LONGEST_NAME = 200  # file systems allow 255 bytes


@dataclass(frozen=True)
class PlannedRun:
    """A run that an experiment asks for.

    Attributes:
        path: its folder.
        parameters: all that the notebook is given, RUN_DIR apart.
        own: those of the grid, in the folder's name.
    """

    path: Path
    parameters: dict
    own: dict


@dataclass(frozen=True)
class Experiment:
    """What an experiment's file says, checked against its notebook.

    Attributes:
        folder: where the runs' folders are, runs/<name of the file>.
        notebook: the notebook to execute.
        runs: in the order of execution.
        ensemble: the parameter whose runs are joined, "" for none.
        root: the folder that paths in parameters are relative to.
    """

    folder: Path
    notebook: Path
    runs: tuple[PlannedRun, ...]
    ensemble: str
    root: Path


def read_experiment(
    path: str | Path, changes: Sequence[Sequence[str]] = (), root: Path = PROJECT
) -> Experiment:
    """Read an experiment's file and check it against its notebook.

    Args:
        path: the YAML file, absolute, or relative to the working folder or to `root`.
        changes: names and texts, as on a command line, that replace or join the fixed parameters.
        root: what the paths in the file are relative to; runs/ is made there.

    Raises:
        RunError: everything that is wrong with the file, together.
    """
    path = next((p for p in (Path(path), root / path) if p.is_file()), None) or Path(path)
    if not path.is_file():
        raise RunError(f"{path}: no such experiment")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable as YAML: {error}") from None
    if problems := _find_shape_problems(content):
        raise RunError("\n".join(f"{path}: {problem}" for problem in problems))

    folder, notebook = root / "runs" / path.stem, root / content["notebook"]
    declared = inspect_parameters(notebook)
    fixed = {**(content.get("fixed") or {}), **parse_parameters(changes, declared)}
    runs = []
    for own in _list_combinations(content):
        runs.append(PlannedRun(folder / name_run(own), {**fixed, **own}, own))
    problems = _find_run_problems(runs, fixed, declared)
    ensemble = content.get("ensemble") or ""
    if ensemble and not any(ensemble in run.own for run in runs):
        problems.append(f"ensemble: {ensemble} is not in the grid")
    if problems:
        raise RunError("\n".join(f"{path}: {problem}" for problem in problems))
    return Experiment(folder, notebook, tuple(runs), ensemble, root)


def inspect_parameters(notebook: str | Path) -> dict[str, str]:
    """Read the names and types that the parameters cell of a notebook declares.

    Raises:
        RunError: no such file, no parameters, or a parameter without a plain type.
    """
    if not Path(notebook).is_file():
        raise RunError(f"{notebook}: no such notebook")
    declared = {
        name: entry["inferred_type_name"]
        for name, entry in papermill.inspect_notebook(str(notebook)).items()
    }
    untyped = [name for name, kind in declared.items() if kind not in TYPES]
    if untyped or not declared:
        raise RunError(
            f"{notebook}: the cell tagged `parameters` must declare each with one of the types "
            f"{', '.join(TYPES)}, as in `EPOCHS: int = 20`; without are: {', '.join(untyped)}"
        )
    return declared


def parse_parameters(pairs: list[list[str]], declared: dict[str, str]) -> dict:
    """Turn names and texts of a command line into values of the declared types.

    Text that is not of the declared type, and names that are not declared, stay as they are:
    the check that follows names them all.
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


def write_parameters(parameters: dict) -> list[str]:
    """Turn parameters into the options of a command line that `parse_parameters` reads."""
    return [text for n, v in parameters.items() for text in ("-p", n, _write_value(v))]


def name_run(own: dict) -> str:
    """Make the folder's name of the parameters that a run has of its own: A=1,B=true."""
    texts = (re.sub(r"[^\w.+-]", "-", _write_value(value)) for value in own.values())
    return ",".join(f"{name}={text}" for name, text in zip(own, texts, strict=True))


def lock_run(run_dir: Path) -> FileLock:
    """Return the lock of a run's folder, to be held while the run is executed.

    The system frees it when its process ends, however that happens.
    """
    return FileLock(run_dir / LOCK, timeout=0)


def find_finished(planned: PlannedRun) -> Run | None:
    """Return the run if it is finished: every cell completed, the saved files whole.

    Raises:
        RunError: a finished run of other parameters lies in the folder.
    """
    try:
        run = load_run(planned.path)
        unfinished = find_unfinished_cells(planned.path / NOTEBOOK)
    except (RunError, OSError, nbformat.reader.NotJSONError):
        return None
    if unfinished:
        return None
    found = run.metrics["parameters"]
    other = [
        f"{name} {_write_value(found.get(name))} instead of {_write_value(value)}"
        for name, value in planned.parameters.items()
        if name != "RUN_DIR" and found.get(name) != value
    ]
    if other:
        raise RunError(
            f"{planned.path} holds a finished run with {', '.join(other)}: rename or delete the "
            "folder, or give the experiment another name"
        )
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
    """Say how far a run is: finished, running, failed (and why), interrupted or not started."""
    if find_finished(planned):
        return "finished"
    if not planned.path.is_dir():
        return "not started"
    try:
        with lock_run(planned.path):
            pass
    except Timeout:
        return "running"
    if (planned.path / ERROR).is_file():
        return "failed: " + (planned.path / ERROR).read_text(encoding="utf-8").strip()
    return "interrupted"


def load_runs(experiment: Experiment) -> tuple[list[Run], dict[str, str]]:
    """Load what is finished of an experiment.

    Returns:
        The finished runs, in the experiment's order, and what became of each of the others:
        folder name to what `describe_state` says.

    Raises:
        RunError: a folder holds a finished run of other parameters.
    """
    found = {planned.path.name: find_finished(planned) for planned in experiment.runs}
    others = {
        planned.path.name: describe_state(planned)
        for planned in experiment.runs
        if found[planned.path.name] is None
    }
    return [run for run in found.values() if run], others


def _find_shape_problems(content) -> list[str]:
    """List what is wrong with the file before any notebook is looked at."""
    if not isinstance(content, dict):
        return [f"a mapping with the keys {', '.join(KEYS)} is wanted, not {content!r}"]
    problems = []
    for key in content:
        if key not in KEYS:
            guess = get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {guess[0]}? " if guess else ""
            problems.append(f"no key {key!r}: {hint}The keys are {', '.join(KEYS)}")
    for key in ("notebook", "ensemble"):
        if not isinstance(content.get(key, ""), str):
            problems.append(f"{key} is {content[key]!r}, a text is wanted")
    if "notebook" not in content:
        problems.append("notebook is missing: name the notebook to execute")
    if not isinstance(content.get("fixed") or {}, dict):
        problems.append(f"fixed is {content['fixed']!r}, a mapping of names to values is wanted")
    if not (content.get("grid") or content.get("runs")):
        problems.append("grid and runs are both missing: there is nothing to execute")
    for grid in _list_grids(content):
        if not isinstance(grid, dict):
            problems.append(f"grid: {grid!r} is not a mapping of names to lists")
            continue
        problems += [
            f"grid: {name} is {values!r}, a list is wanted, as in {name}: [{_write_value(values)}]"
            for name, values in grid.items()
            if not isinstance(values, list) or not values
        ]
    single = content.get("runs") or []
    if not isinstance(single, list) or not all(isinstance(run, dict) and run for run in single):
        problems.append(f"runs is {single!r}, a list of mappings of names to values is wanted")
    return problems


def _find_run_problems(runs: list[PlannedRun], fixed: dict, declared: dict) -> list[str]:
    """List wrong names, types, doubled runs; each problem once, however many runs have it."""
    problems = {}
    for run in runs:
        problems |= dict.fromkeys(find_parameter_problems(run.parameters, declared))
        for name in run.own:
            if name in fixed:
                problems[f"{name} is both fixed and in the grid"] = None
        if len(run.path.name.encode()) > LONGEST_NAME:
            problems[f"the folder name {run.path.name!r} is too long: fix some values"] = None
    if any("RUN_DIR" in run.parameters for run in runs):
        problems["RUN_DIR is chosen for each run: take it out"] = None
    names = [run.path.name for run in runs]
    problems |= {f"{name} is there twice": None for name in names if names.count(name) > 1}
    return list(problems)


def _list_grids(content: dict) -> list:
    grid = content.get("grid") or []
    return grid if isinstance(grid, list) else [grid]


def _list_combinations(content: dict) -> Iterator[dict]:
    for grid in _list_grids(content):
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))
    yield from content.get("runs") or []


def _write_value(value) -> str:
    """Write a value as YAML and the command line read it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
