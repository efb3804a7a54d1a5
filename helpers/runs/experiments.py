"""An experiment: a YAML file that says which runs of a notebook to make, and how far they are.

    notebook: Skin_Cancer_Detection.ipynb
    fixed: {IMAGE_HEIGHT: 28, IMAGE_WIDTH: 28}
    grid: {BATCH_NORM: [false, true], FOLD: [0, 1, 2, 3, 4]}

`grid` is a mapping of lists or a list of such mappings; each gives the product of its lists, the
first name varying slowest.
"""

import ast
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from helpers.data.files import InputError, raise_problems, resolve_path
from helpers.runs import folder
from helpers.runs.folder import Run

SAMPLE = "notebooks/experiments/sample_grid.yaml"
TYPES = {"bool": bool, "int": int, "float": float, "str": str}
KEYS = ("notebook", "fixed", "grid")
NOTEBOOK, ERROR, LOCK = "notebook.ipynb", "error.txt", ".lock"


@dataclass(frozen=True)
class PlannedRun:
    """A run that an experiment asks for.

    `parameters` are all but RUN_DIR, the notebook's defaults among them; `own` are those of the
    grid, which name the run.
    """

    path: Path
    notebook: Path
    parameters: dict
    own: dict


@dataclass(frozen=True)
class Experiment:
    """What an experiment's file says: the folder of its runs, runs/<name of the file>, and them."""

    folder: Path
    runs: tuple[PlannedRun, ...]


def read_experiment(path: str | Path, changes: Sequence[Sequence[str]] = ()) -> Experiment:
    """Read an experiment's file and check it against its notebook.

    `changes`, names and texts as on a command line, replace or join the fixed parameters.
    """
    path = resolve_path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(path, [f"not readable as YAML: {error}"]) from None
    grids = _check_shape(path, content)
    where, notebook = folder.resolve_run(f"runs/{path.stem}"), resolve_path(content["notebook"])
    declared, defaults = inspect_parameters(notebook)
    defaults.pop("RUN_DIR", None)
    fixed = {**(content.get("fixed") or {}), **parse_parameters(changes, declared)}
    runs, problems = {}, []
    for grid in grids:
        for values in itertools.product(*grid.values()):
            own = dict(zip(grid, values, strict=True))
            name = name_run(own)
            problems += folder.find_problems({**fixed, **own}, declared)
            problems += [f"{name} is both fixed and in the grid" for name in own if name in fixed]
            problems += [f"{name} is there twice"] if name in runs else []
            runs[name] = PlannedRun(where / name, notebook, {**defaults, **fixed, **own}, own)
    if any("RUN_DIR" in planned.parameters for planned in runs.values()):
        problems.append("RUN_DIR is chosen for each run: take it out")
    raise_problems(path, list(dict.fromkeys(problems)))  # each once, however many runs have it
    return Experiment(where, tuple(runs.values()))


def _check_shape(path: Path, content) -> list[dict]:
    """Check what can be checked before any notebook is looked at, and return the grids."""
    if not isinstance(content, dict):
        problem = f"a mapping with the keys {', '.join(KEYS)} is wanted, not {content!r}"
        raise InputError(path, [problem])
    problems, grids = [], content.get("grid") or []
    grids = grids if isinstance(grids, list) else [grids]
    for key in [key for key in content if key not in KEYS]:
        guess = get_close_matches(str(key), KEYS, n=1)
        hint = f"did you mean {guess[0]}? " if guess else ""
        problems.append(f"no key {key!r}: {hint}The keys are {', '.join(KEYS)}")
    if not isinstance(content.get("notebook"), str):
        problems.append("notebook is missing: name the notebook to execute")
    if not isinstance(content.get("fixed") or {}, dict):
        problems.append(f"fixed is {content['fixed']!r}, a mapping of names to values is wanted")
    if not grids:
        problems.append("grid is missing: there is nothing to execute")
    for grid in grids:
        if not isinstance(grid, dict):
            problems.append(f"grid: {grid!r} is not a mapping of names to lists")
            continue
        wrong = {n: v for n, v in grid.items() if not isinstance(v, list) or not v}
        problems += [f"grid: {n} is {v!r}, a list is wanted, as in [{v}]" for n, v in wrong.items()]
    raise_problems(path, problems)
    return grids


def inspect_parameters(notebook: str | Path) -> tuple[dict[str, str], dict]:
    """Read what the parameters cell of a notebook declares: the types and the values by name."""
    notebook = resolve_path(notebook)
    if not notebook.is_file():
        raise InputError(notebook, ["no such notebook"])
    import papermill  # it takes seconds to import

    found = papermill.inspect_notebook(str(notebook)).items()
    declared = {name: entry["inferred_type_name"] for name, entry in found}
    untyped = [name for name, kind in declared.items() if kind not in TYPES]
    if untyped or not declared:
        problem = "the cell tagged `parameters` must declare each with one of the types"
        example = f"{', '.join(TYPES)}, as in `EPOCHS: int = 20`; without: {', '.join(untyped)}"
        raise InputError(notebook, [f"{problem} {example}"])
    return declared, {name: ast.literal_eval(entry["default"]) for name, entry in found}


def parse_parameters(pairs: Sequence[Sequence[str]], declared: dict[str, str]) -> dict:
    """Turn texts of a command line into the declared types, but for what `find_problems` names."""
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
    texts = {n: value if isinstance(value, str) else json.dumps(value) for n, value in own.items()}
    return ",".join(f"{n}=" + re.sub(r"[^\w.+-]", "-", text) for n, text in texts.items())


def find_finished(planned: PlannedRun) -> Run | None:
    """Return the run if it is finished: every cell completed, the saved files whole.

    A finished run of other parameters in its folder is an InputError.
    """
    run = folder.peek_run(planned.path)
    try:
        if not run or find_unfinished_cells(planned.path / NOTEBOOK):
            return None
    except (OSError, ValueError):
        return None
    raise_problems(planned.path, folder.find_differences(run, planned.parameters))
    return run


def find_unfinished_cells(notebook: Path) -> list[int]:
    """List the code cells, counted from 1, that papermill did not mark as completed.

    A kernel that ends early with exit code 0 leaves them pending and papermill content.
    """
    cells = enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"], start=1)
    code = [(n, c["metadata"]) for n, c in cells if c["cell_type"] == "code" and any(c["source"])]
    return [n for n, data in code if data.get("papermill", {}).get("status") != "completed"]


def describe_state(planned: PlannedRun) -> str:
    """Say how far a run is: finished, outdated, running, failed, interrupted or not started."""
    if not planned.path.is_dir():
        return "not started"
    try:
        for name in (LOCK, folder.KERNEL_LOCK):
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
    """Load an experiment's finished runs, in its order, even if they are outdated.

    Of each of the others say what became of it: folder name to what `describe_state` says.
    """
    found = {planned.path: find_finished(planned) for planned in experiment.runs}
    missing = [planned for planned in experiment.runs if not found[planned.path]]
    others = {planned.path.name: describe_state(planned) for planned in missing}
    return [run for run in found.values() if run], others
