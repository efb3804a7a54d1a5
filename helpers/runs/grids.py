"""All runs of an experiment: one after another, side by side, or on a Dask cluster.

Each run is executed by a process of its own. That process ends when the one that started it is
gone, and a run's folder is locked by the process that executes it: so whatever is killed, the same
command goes on, and two of them do not execute the same run at once.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from shutil import which
from signal import Signals

from tqdm import tqdm

from helpers.runs import ensembles, experiments
from helpers.runs.experiments import ERROR, LOG, PROJECT, Experiment, PlannedRun
from helpers.runs.folder import RunError

BUSY = 3  # exit code of a process that found the run in execution by another one
POLL_SECONDS = 0.5


def execute_experiment(experiment: Experiment, jobs: int = 1, dask: str = "") -> dict[str, str]:
    """Execute what is not finished yet, then join the ensembles that are complete.

    A failed run does not stop the others. Runs that another process is executing are waited for,
    and taken over should it end without finishing them. Progress goes to standard error, what a
    run prints to log.txt in its folder.

    Args:
        experiment: as `experiments.read_experiment` returns it.
        jobs: runs at a time; the cores and GPUs of this machine are shared out among them.
        dask: address of a Dask scheduler, tcp://…; each worker must see the project's folder
            under the same path. "" executes here.

    Returns:
        Folder name to what went wrong, for each run that failed; empty if all are finished.

    Raises:
        RunError: a folder holds a finished run of other parameters, too many jobs, or a cluster
            that cannot execute the runs.
    """
    waiting = [planned for planned in experiment.runs if not experiments.find_finished(planned)]
    progress = _Progress(experiment, waiting)
    failures = {}
    with _open_executor(experiment, jobs, dask) as submit, progress:
        running: dict[Future, PlannedRun] = {}
        while waiting or running:
            for planned in [p for p in waiting if experiments.describe_state(p) != "running"]:
                running[submit(planned)] = planned
                waiting.remove(planned)
            if not running:
                time.sleep(POLL_SECONDS)  # all that is left is executed by others
            for future in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
                planned = running.pop(future)
                code, message = _read_result(future)
                if code == BUSY:
                    waiting.append(planned)
                    continue
                if code:
                    failures[planned.path.name] = message
                progress.report(planned, message, [*running.values(), *waiting])
            progress.show([*running.values(), *waiting])
    ensembles.join_experiment(experiment)
    return failures


def execute_apart(
    experiment: Experiment,
    planned: PlannedRun,
    share: dict | None = None,
    stop: threading.Event | None = None,
) -> tuple[int, str]:
    """Execute a run in a process of its own and wait for it; Dask's workers call this too.

    Args:
        experiment: the run's experiment.
        planned: the run.
        share: `cores` and `environment` for the process, as from `share_machine`.
        stop: when it is set, the process is ended.

    Returns:
        The exit code, and what went wrong ("" for code 0).
    """
    if (state := experiments.describe_state(planned)) in ("finished", "running"):
        return {"finished": 0, "running": BUSY}[state], ""
    share = share or {"cores": [], "environment": {}}
    path = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "helpers.runs.execution", "--child"]
    command += [shorten_path(path, experiment.root) for path in (experiment.notebook, planned.path)]
    command += experiments.write_parameters(planned.parameters)
    planned.path.mkdir(parents=True, exist_ok=True)
    with (planned.path / LOG).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=experiment.root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **share["environment"]},
            stdin=subprocess.PIPE,  # closes when this process ends, and the other one notices
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if share["cores"] and hasattr(os, "sched_setaffinity"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, share["cores"])
    while (code := process.poll()) is None:
        if stop and stop.is_set():
            process.stdin.close()
        time.sleep(POLL_SECONDS)
    process.stdin.close()
    if not code:
        return 0, ""
    if code < 0:
        how = f"its process was killed ({Signals(-code).name}), perhaps for lack of memory"
        return code, f"{how}; the same command goes on"
    if (planned.path / ERROR).is_file():
        return code, (planned.path / ERROR).read_text(encoding="utf-8").strip()
    return code, f"exit code {code}: see {planned.path / LOG}"


def share_machine(jobs: int) -> list[dict]:
    """Share the cores and GPUs that this process may use out among a number of jobs.

    With fewer GPUs than jobs, several jobs use one GPU and TensorFlow takes its memory as needed.

    Returns:
        For each job `cores`, the numbers of its cores, and `environment`, variables to set.

    Raises:
        RunError: fewer cores than jobs.
    """
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    cores, gpus = sorted(affinity(0)), _list_gpus()
    if not 1 <= jobs <= len(cores):
        raise RunError(f"--jobs is {jobs}, but there are {len(cores)} cores: 1 … {len(cores)}")
    shares = []
    for job in range(jobs):
        own = cores[job::jobs]
        environment = {"TF_NUM_INTRAOP_THREADS": str(len(own))} if jobs > 1 else {}
        if gpus and jobs > 1:
            chosen = gpus[job::jobs] or [gpus[job % len(gpus)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        if len(gpus) < jobs:
            environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        shares.append({"cores": own if jobs > 1 else [], "environment": environment})
    return shares


class _Progress:
    """How far the whole experiment is, with the time left: a bar on a terminal, else lines."""

    def __init__(self, experiment: Experiment, waiting: list[PlannedRun]):
        self.total = len(experiment.runs)
        self.done = finished = self.total - len(waiting)
        self.start, self.at_start = time.monotonic(), finished + _sum_progress(waiting)
        name = experiment.folder.name
        tqdm.write(f"{name}: {self.total} runs, {finished} finished already", sys.stderr)
        self.bar = tqdm(
            total=self.total,
            initial=finished,
            disable=None,  # no bar where standard error is no terminal
            bar_format="{percentage:3.0f} % |{bar}| {postfix}",
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def report(self, planned: PlannedRun, problem: str, rest: list[PlannedRun]) -> None:
        """Tell that a run has ended, and how, and how long the rest will take."""
        self.done += 1
        end = f"FAILED: {problem}" if problem else "finished"
        left = self._estimate_left(self.done + _sum_progress(rest)) if rest else ""
        tqdm.write(f"[{self.done}/{self.total}] {planned.path.name}: {end}{left}", sys.stderr)

    def show(self, rest: list[PlannedRun]) -> None:
        """Move the bar."""
        done = self.done + _sum_progress(rest)
        self.bar.n = round(done, 2)
        self.bar.set_postfix_str(f"{self.done}/{self.total} runs{self._estimate_left(done)}")

    def _estimate_left(self, done: float) -> str:
        """Write the time left, judged by the runs (or parts of runs) done since the start."""
        if done <= self.at_start:
            return ""
        elapsed = time.monotonic() - self.start
        left = elapsed * (self.total - done) / (done - self.at_start)
        return f", about {left // 3600:.0f} h {left % 3600 / 60:.0f} min left"


def read_progress(log: Path) -> float:
    """Read from a run's log which share (0 … 1) of its epochs is done; 0 if it does not say."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            said = rb"(?:training (\d+)/(\d+), )?epoch (\d+)/(\d+)"  # `training.EpochLines`
            found = re.findall(said, file.read())
    except OSError:
        return 0.0
    if not found:
        return 0.0
    number, of, epoch, epochs = (int(text or 1) for text in found[-1])
    return (number - 1 + epoch / epochs) / of


def _sum_progress(planned: list[PlannedRun]) -> float:
    return sum(read_progress(run.path / LOG) for run in planned)


def shorten_path(path: Path, root: Path) -> str:
    """Write a path relative to `root` where it lies in there."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _read_result(future: Future) -> tuple[int, str]:
    """Read what `execute_apart` returned; a cluster may have lost the run instead."""
    try:
        return future.result()
    except Exception as error:
        return 1, f"{type(error).__name__}: {error}"


@contextmanager
def _open_executor(experiment: Experiment, jobs: int, dask: str) -> Iterator[Callable]:
    """Yield what submits a planned run and returns its future; leave nothing running behind."""
    if dask:
        with _connect(dask, experiment) as client:
            executor = client.get_executor(pure=False)
            yield partial(executor.submit, execute_apart, experiment)
        return
    free, stop = SimpleQueue(), threading.Event()
    for share in share_machine(jobs):
        free.put(share)

    def execute(planned: PlannedRun) -> tuple[int, str]:
        share = free.get()
        try:
            return execute_apart(experiment, planned, share, stop)
        finally:
            free.put(share)

    executor = ThreadPoolExecutor(jobs)
    try:
        yield partial(executor.submit, execute)
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _connect(address: str, experiment: Experiment):
    """Connect to a Dask scheduler whose workers all see the notebook."""
    try:
        from distributed import Client
    except ImportError:
        raise RunError("--dask needs one more package: pip install distributed") from None
    try:
        client = Client(address, timeout=5)
    except (OSError, ValueError) as error:
        raise RunError(f"--dask {address}: no scheduler answers there ({error})") from None
    seen = client.run(os.path.isfile, str(experiment.notebook))
    blind = [worker for worker, sees in seen.items() if not sees]
    if blind or not seen:
        client.close()
        raise RunError(
            f"--dask {address}: {experiment.notebook} is not to be seen by {', '.join(blind)}; the "
            "project must lie under the same path everywhere"
            if blind
            else f"--dask {address}: no worker yet; start some: dask worker {address} --nthreads 1"
        )
    return client


def _list_gpus() -> list[str]:
    """List the NVIDIA GPUs that this process may use, without loading TensorFlow."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    if not which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return re.findall(r"^GPU (\d+):", listed.stdout, flags=re.MULTILINE)
