"""Execute notebooks without a screen: papermill executes one, Dask all runs of an experiment."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from helpers.data import files, reading
from helpers.data.files import InputError, raise_problems
from helpers.runs import experiments, folder
from helpers.runs.experiments import ERROR, LOCK, NOTEBOOK, SAMPLE, Experiment, PlannedRun
from helpers.runs.folder import NOTEBOOK_CODE, Run, fingerprint_code

BUSY = "another process is executing this run"


def execute_notebook(
    notebook: str | Path, run_dir: str | Path, parameters: dict, output=None
) -> Run:
    """Execute a notebook into a run's folder, given to it as RUN_DIR, and read the run back.

    Writes notebook.ipynb and report.html beside what the notebook itself saves; should it fail,
    error.txt says why. What the cells print goes to a text file, `output`, or to standard output.
    """
    notebook, run_dir = files.resolve_path(notebook), folder.resolve_run(run_dir)
    parameters = {**parameters, "RUN_DIR": str(run_dir)}
    declared, _ = experiments.inspect_parameters(notebook)
    raise_problems(notebook, folder.find_problems(parameters, declared))
    if old := folder.peek_run(run_dir):
        raise_problems(run_dir, folder.find_differences(old, parameters))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(run_dir / LOCK, timeout=1):  # the system frees it when this process ends
            (run_dir / ERROR).unlink(missing_ok=True)
            try:
                return _execute_cells(notebook, run_dir, parameters, output or sys.stdout)
            except InputError as error:
                (run_dir / ERROR).write_text(f"{error}\n", encoding="utf-8")
                raise
    except Timeout:
        raise InputError(run_dir, [BUSY]) from None
    except OSError as error:
        problem = f"cannot be written ({error}): name another folder, or set the environment"
        raise InputError(run_dir, [f"{problem} variable SKIN_RUNS_DIR"]) from None


def _execute_cells(notebook: Path, run_dir: Path, parameters: dict, output) -> Run:
    import papermill  # these take seconds to import
    from nbclient.exceptions import DeadKernelError
    from nbconvert import HTMLExporter

    executed = run_dir / NOTEBOOK
    near = str(notebook).removeprefix(f"{files.PROJECT}{os.sep}")
    code = json.dumps({near: fingerprint_code(notebook)})
    given = {NOTEBOOK_CODE: code, "KERAS_BACKEND": "tensorflow"}  # to the kernel
    old = {name: os.environ[name] for name in given if name in os.environ}
    os.environ.update(given)
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), parameters, progress_bar=False, stdout_file=output
        )
    except papermill.PapermillExecutionError as error:
        problem = f"cell {error.cell_index + 1}: {error.ename}: {error.evalue}"
        raise InputError(near, [f"{problem}\nThe cells up to there: {executed}"]) from None
    except DeadKernelError:
        problem = "the kernel died, perhaps for lack of memory. The same command goes on after the"
        remedy = "last finished epoch; a smaller BATCH_SIZE needs less memory"
        raise InputError(near, [f"{problem} {remedy}"]) from None
    finally:
        for name in given:
            del os.environ[name]
        os.environ.update(old)
    html, _ = HTMLExporter().from_filename(str(executed))
    files.replace_file(run_dir / "report.html", lambda to: to.write_text(html, encoding="utf-8"))
    if unfinished := experiments.find_unfinished_cells(executed):
        raise InputError(executed, [f"no finished run: cells {unfinished} were not executed"])
    return folder.load_run(run_dir)


def find_run(run_dir: str | Path = "", image_only: bool = False) -> Run:
    """Load a finished run by its folder, see `folder.load_run`.

    Without one: that which the environment variable LAST_RUN names, else the last finished one
    below runs/, else the first one of the sample's experiment, executed now.
    """
    if path := run_dir or find_last_run():
        return folder.load_run(path, image_only)
    first = experiments.read_experiment(SAMPLE).runs[0]
    execute_notebook(first.notebook, first.path, first.parameters)
    return folder.load_run(first.path, image_only)


def find_last_run() -> str | Path | None:
    """Find the folder that LAST_RUN names, else the last finished one below runs/, if any."""
    if named := os.environ.get("LAST_RUN"):
        return named
    paths = folder.resolve_run("runs").rglob(folder.METRICS)
    for path in sorted(paths, key=os.path.getmtime, reverse=True):
        if folder.peek_run(path.parent):
            return path.parent
    return None


def find_runs(where: str = "") -> tuple[Path, list[Run], dict[str, str]]:
    """Find finished runs that belong together: of an experiment's YAML file, or in a folder.

    Without either: in the folder of the last finished run or, where none is finished, those of the
    sample's experiment, executed now. Returned are the folder, its finished runs, and what became
    of the others, as of `experiments.load_runs`.
    """
    if not where and (last := find_last_run()):
        where = folder.resolve_run(last).parent
    if not where or str(where).endswith((".yaml", ".yml")):
        experiment = experiments.read_experiment(where or SAMPLE)
        if not where:
            execute_experiment(experiment)
        return experiment.folder, *experiments.load_runs(experiment)
    place = folder.resolve_run(where)
    found, others = [], {}
    for path in sorted(place.glob(f"*/{folder.METRICS}")):
        try:
            found.append(folder.load_run(path.parent))
        except InputError as error:
            others[path.parent.name] = "; ".join(error.problems)
    return place, found, others


def execute_experiment(
    experiment: Experiment, jobs: int = 1, dask: str = "", keep_old: bool = False
) -> dict[str, str]:
    """Execute what is not finished yet.

    A failed run does not stop the others. Runs that another process is executing are waited for,
    and taken over should it end without finishing them. A line per run goes to standard error,
    what a run prints to log.txt in its folder. `dask` is the address of a scheduler whose workers
    see the project under its path. `keep_old` keeps finished runs that other code made. Returned
    is what went wrong with each run that failed, by the folder's name.
    """
    raise_problems("--jobs", [f"{jobs}: wanted is at least 1"] if jobs < 1 else [])
    _check_folds(experiment)
    states = {planned.path: experiments.describe_state(planned) for planned in experiment.runs}
    done = ("finished", "outdated") if keep_old else ("finished",)
    waiting = [p for p in experiment.runs if not states[p.path].startswith(done)]
    failures, total = {}, len(experiment.runs)
    first = total - len(waiting) + 1
    print(f"{experiment.folder}: {total} runs, {first - 1} finished already", file=sys.stderr)
    for path in [path for path, state in states.items() if state.startswith("outdated")]:
        print(f"{path.name}: {states[path]}", file=sys.stderr)
    for number, (planned, problem) in enumerate(_execute_runs(waiting, jobs, dask), first):
        end = f"FAILED: {problem}" if problem else "finished"
        print(f"[{number}/{total}] {planned.path.name}: {end}", file=sys.stderr)
        failures |= {planned.path.name: problem} if problem else {}
    return failures


def _check_folds(experiment: Experiment) -> None:
    """Refuse a grid over FOLD on data that came with a split: its runs would be the same."""
    folders = {p.parameters.get("DATA_DIR") for p in experiment.runs if p.parameters.get("FOLD")}
    problems = [
        f"FOLD varies, but {where} came with a split, which has one test part: take FOLD out"
        for where in filter(None, folders)
        if "split" in reading.read_dataset(where)
    ]
    raise_problems(experiment.folder.name, problems)


def _execute_runs(waiting: list[PlannedRun], jobs: int, address: str) -> Iterator[tuple]:
    """Yield each run as it ends, with what went wrong ("" for nothing)."""
    if not waiting or (jobs == 1 and not address):
        for planned in waiting:  # grows while it is gone through
            if (problem := _attempt(planned)) == BUSY:
                waiting.append(planned)
            else:
                yield planned, problem
        return
    from distributed import as_completed

    with _connect(min(jobs, len(waiting)), address, waiting[0].notebook) as client:
        futures = {client.submit(_attempt, planned, pure=False): planned for planned in waiting}
        ended = as_completed(futures)
        for future in ended:
            planned = futures.pop(future)
            error = future.exception()  # such as a worker that was lost too often
            problem = f"{type(error).__name__}: {error}" if error else future.result()
            if problem == BUSY:
                again = client.submit(_attempt, planned, pure=False)
                futures[again] = planned
                ended.add(again)
            else:
                yield planned, problem


def _attempt(planned: PlannedRun) -> str:
    """Execute a run, in one of Dask's workers; return what went wrong, or `BUSY`."""
    state = experiments.describe_state(planned)
    if state == "finished":
        return ""
    if state == "running":
        time.sleep(1)  # the scheduler asks again, after the runs that wait
        return BUSY
    try:
        planned.path.mkdir(parents=True, exist_ok=True)
        with (planned.path / "log.txt").open("a", encoding="utf-8") as log:
            execute_notebook(planned.notebook, planned.path, planned.parameters, log)
    except InputError as error:
        return BUSY if error.problems == [BUSY] else str(error)
    except Exception as error:  # whatever a kernel or a disk does: the other runs go on
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _connect(jobs: int, address: str, notebook: Path):
    """Yield a Dask client: of a scheduler elsewhere, or of workers on this machine."""
    from distributed import Client, LocalCluster

    if not address:
        one = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": ":0"}
        one["env"] = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # several runs may share a GPU
        with LocalCluster(n_workers=jobs, **one) as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(address, timeout=5)
    except (OSError, ValueError) as error:
        raise InputError(address, [f"no Dask scheduler answers there ({error})"]) from None
    with client:
        seen = client.run(os.path.isfile, str(notebook))
        if not seen:
            raise InputError(address, [f"no worker yet: dask worker {address} --nthreads 1"])
        blind = files.name_some(worker for worker, sees in seen.items() if not sees)
        problem = f"{notebook} is not seen by {blind}: the project must lie under one path"
        raise_problems(address, [problem] if blind else [])
        yield client
