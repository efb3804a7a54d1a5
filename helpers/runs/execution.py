"""Execute notebooks without a screen: papermill executes one, Dask all runs of an experiment."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask.config
import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter

from helpers.data.files import (
    PROJECT,
    InputError,
    name_some,
    raise_problems,
    replace_file,
    resolve_path,
)
from helpers.runs import experiments
from helpers.runs.experiments import ERROR, LOCK, NOTEBOOK, SAMPLE, Experiment, PlannedRun
from helpers.runs.folder import (
    METRICS,
    NOTEBOOK_CODE,
    Run,
    find_problems,
    fingerprint_code,
    load_run,
    peek_run,
    resolve_run,
)

LOG = "log.txt"
BUSY = "another process is executing this run"


def execute_notebook(
    notebook: str | Path, run_dir: str | Path, parameters: dict, output=None
) -> Run:
    """Execute a notebook into a run's folder and read the run back.

    Writes notebook.ipynb and report.html beside what the notebook itself saves. Should the run
    fail, error.txt says why.

    Args:
        notebook: a notebook with a typed parameters cell that has a RUN_DIR.
        run_dir: the folder, given to the notebook as RUN_DIR.
        parameters: name to value.
        output: a text file for what the cells print; None: standard output.

    Raises:
        InputError: a wrong parameter (before anything is started), another process that executes
            this run, a cell that failed or was not executed, a dead kernel, or a run that was not
            saved.
    """
    notebook, run_dir = resolve_path(notebook), resolve_run(run_dir)
    parameters = {**parameters, "RUN_DIR": str(run_dir)}
    declared = experiments.inspect_parameters(notebook)
    raise_problems(notebook, find_problems(parameters, declared))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(run_dir / LOCK, timeout=1):  # the system frees it when this process ends
            (run_dir / ERROR).unlink(missing_ok=True)
            try:
                return _execute_cells(notebook, run_dir, parameters, output or sys.stdout)
            except InputError as error:
                text = f"{error}\n"
                replace_file(run_dir / ERROR, lambda path: path.write_text(text, encoding="utf-8"))
                raise
    except Timeout:
        raise InputError(run_dir, [BUSY]) from None
    except OSError as error:
        problem = f"cannot be written ({error}): name another folder, or set the environment"
        raise InputError(run_dir, [f"{problem} variable SKIN_RUNS_DIR"]) from None


def _execute_cells(notebook: Path, run_dir: Path, parameters: dict, output) -> Run:
    executed = run_dir / NOTEBOOK
    near = notebook.relative_to(PROJECT) if notebook.is_relative_to(PROJECT) else notebook
    code = json.dumps({near.as_posix(): fingerprint_code(notebook)})
    try:
        with _set_environment(**{NOTEBOOK_CODE: code}):
            papermill.execute_notebook(
                str(notebook), str(executed), parameters, progress_bar=False, stdout_file=output
            )
    except papermill.PapermillExecutionError as error:
        where = f"cell {error.cell_index + 1}"
        problem = f"{where}: {error.ename}: {error.evalue}\nThe cells up to there: {executed}"
        raise InputError(near, [problem]) from None
    except DeadKernelError:
        problem = "the kernel died, perhaps for lack of memory. The same command goes on after the"
        remedy = "last finished epoch; a smaller BATCH_SIZE needs less memory"
        raise InputError(near, [f"{problem} {remedy}"]) from None
    html, _ = HTMLExporter().from_filename(str(executed))
    report = run_dir / "report.html"
    replace_file(report, lambda path: path.write_text(html, encoding="utf-8"))
    if unfinished := experiments.find_unfinished_cells(executed):
        problem = f"cells {unfinished} were not executed, the run does not count"
        raise InputError(executed, [problem])
    return load_run(run_dir)


@contextmanager
def _set_environment(**values: str) -> Iterator[None]:
    """Set environment variables for the kernels that are started meanwhile."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def find_run(run_dir: str | Path = "", image_only: bool = False) -> Run:
    """Load a finished run.

    Args:
        run_dir: its folder; "": the one that the environment variable LAST_RUN names, else the
            last finished one below runs/, else the sample's first run, executed now.
        image_only: as of `folder.load_run`.
    """
    if named := run_dir or os.environ.get("LAST_RUN", ""):
        return load_run(named, image_only)
    found = resolve_run("runs").rglob(METRICS)
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if peek_run(path.parent):
            return load_run(path.parent, image_only)
    first = experiments.read_experiment(SAMPLE).runs[0]
    execute_notebook(first.notebook, first.path, first.parameters)
    return load_run(first.path, image_only)


def execute_experiment(
    experiment: Experiment, jobs: int = 1, dask: str = "", keep_old: bool = False
) -> dict[str, str]:
    """Execute what is not finished yet, then join the ensembles that are complete.

    A failed run does not stop the others. Runs that another process is executing are waited for,
    and taken over should it end without finishing them. A line per run goes to standard error,
    what a run prints to log.txt in its folder.

    Args:
        experiment: as `experiments.read_experiment` returns it.
        jobs: runs at a time on this machine; from 2 on by Dask.
        dask: address of a Dask scheduler, tcp://…; each worker must see the project's folder
            under the same path. "" executes here.
        keep_old: keep finished runs that were made by other code, instead of making them anew.

    Returns:
        Folder name to what went wrong, for each run that failed; empty if all are finished.

    Raises:
        InputError: a folder holds a finished run of other parameters, or a cluster that cannot
            execute the runs.
    """
    states = {planned.path: experiments.describe_state(planned) for planned in experiment.runs}
    done = ("finished", "outdated") if keep_old else ("finished",)
    waiting = [p for p in experiment.runs if not states[p.path].startswith(done)]
    failures, total = {}, len(experiment.runs)
    finished = total - len(waiting)
    print(f"{experiment.folder}: {total} runs, {finished} finished already", file=sys.stderr)
    for planned in experiment.runs:
        if states[planned.path].startswith("outdated"):
            print(f"{planned.path.name}: {states[planned.path]}", file=sys.stderr)
    if waiting:
        for planned, problem in _execute_runs(waiting, jobs, dask):
            finished += 1
            end = f"FAILED: {problem}" if problem else "finished"
            print(f"[{finished}/{total}] {planned.path.name}: {end}", file=sys.stderr)
            failures |= {planned.path.name: problem} if problem else {}
    experiments.join_experiment(experiment)
    return failures


def _execute_runs(
    waiting: list[PlannedRun], jobs: int, address: str
) -> Iterator[tuple[PlannedRun, str]]:
    """Yield each run as it ends, with what went wrong ("" for nothing)."""
    if jobs == 1 and not address:
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
            if problem != BUSY:
                yield planned, problem
                continue
            again = client.submit(_attempt, planned, pure=False)
            futures[again] = planned
            ended.add(again)


def _attempt(planned: PlannedRun) -> str:
    """Execute a run, in one of Dask's workers; return what went wrong, or `BUSY`."""
    state = experiments.describe_state(planned)
    if state == "finished":
        return ""
    if state == "running":
        time.sleep(1)  # the scheduler asks again, after the runs that wait
        return BUSY
    planned.path.mkdir(parents=True, exist_ok=True)
    with (planned.path / LOG).open("a", encoding="utf-8") as log:
        try:
            execute_notebook(planned.notebook, planned.path, planned.parameters, log)
        except InputError as error:
            return BUSY if error.problems == [BUSY] else str(error)
    return ""


@contextmanager
def _connect(jobs: int, address: str, notebook: Path):
    """Yield a Dask client: of a scheduler elsewhere, or of workers on this machine."""
    from distributed import Client, LocalCluster

    if not address:
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        env = {"TF_NUM_INTRAOP_THREADS": threads, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        with (
            dask.config.set({"distributed.nanny.pre-spawn-environ": {}}),  # it limits NumPy
            LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address=":0",
                env=env,
            ) as cluster,
            Client(cluster) as client,
        ):
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
        blind = name_some(worker for worker, sees in seen.items() if not sees)
        problem = f"{notebook} is not seen by {blind}: the project must lie under one path"
        raise_problems(address, [problem] if blind else [])
        yield client
