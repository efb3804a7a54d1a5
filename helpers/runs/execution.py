"""Execute notebooks without a screen: one run, or all runs of an experiment.

python -m helpers.runs.execution Skin_Cancer_Detection.ipynb runs/my_run -p EPOCHS 30 -p FOLD 2
python -m helpers.runs.execution notebooks/experiments/sample_grid.yaml --dry-run
"""

import argparse
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import papermill
from filelock import Timeout
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter

from helpers.runs import experiments, grids
from helpers.runs.experiments import ERROR, NOTEBOOK, PlannedRun
from helpers.runs.folder import Run, RunError, find_parameter_problems, load_run, replace_file

SAMPLE = "notebooks/experiments/sample_grid.yaml"


def execute_notebook(
    notebook: str | Path, run_dir: str | Path, parameters: dict, skip_finished: bool = False
) -> Run:
    """Execute a notebook into a run's folder and read the run back.

    Writes notebook.ipynb and report.html beside what the notebook itself saves; what the
    cells print is passed on as it comes. Should the run fail, error.txt says why.

    Args:
        notebook: a notebook with a typed parameters cell that has a RUN_DIR.
        run_dir: the folder, given to the notebook as RUN_DIR.
        parameters: name to value.
        skip_finished: leave a finished run of the same parameters as it is.

    Raises:
        BusyError: another process is executing this run.
        RunError: an unknown name, a wrong type (before anything is started), a cell that
            failed or was not executed, a dead kernel, or a run that was not saved.
    """
    notebook, run_dir = Path(notebook), Path(run_dir)
    parameters = {**parameters, "RUN_DIR": str(run_dir)}
    problems = find_parameter_problems(parameters, experiments.inspect_parameters(notebook))
    if problems:
        raise RunError("\n".join(problems))
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with experiments.lock_run(run_dir):
            planned = PlannedRun(run_dir, parameters, {})
            if skip_finished and (run := experiments.find_finished(planned)):
                return run
            (run_dir / ERROR).unlink(missing_ok=True)
            try:
                return _execute_cells(notebook, run_dir, parameters)
            except RunError as error:
                text = f"{error}\n"
                replace_file(run_dir / ERROR, lambda path: path.write_text(text, encoding="utf-8"))
                raise
    except Timeout:
        raise BusyError(f"{run_dir}: another process is executing this run") from None


class BusyError(RunError):
    """Another process is executing the run."""


def _execute_cells(notebook: Path, run_dir: Path, parameters: dict) -> Run:
    output = run_dir / NOTEBOOK
    try:
        papermill.execute_notebook(
            str(notebook), str(output), parameters, progress_bar=False, stdout_file=sys.stdout
        )
    except papermill.PapermillExecutionError as error:
        raise RunError(
            f"{notebook}, cell {error.cell_index + 1}: {error.ename}: {error.evalue}\n"
            f"The cells up to there are in {output}."
        ) from None
    except DeadKernelError:
        raise RunError(
            f"{notebook}: the kernel died, perhaps for lack of memory. The same command goes on "
            "after the last finished epoch; a smaller BATCH_SIZE needs less memory."
        ) from None
    write_report(output, run_dir / "report.html")
    if unfinished := experiments.find_unfinished_cells(output):
        raise RunError(f"{output}: cells {unfinished} were not executed, the run does not count")
    return load_run(run_dir)


def write_report(notebook: Path, report: Path) -> None:
    """Write a notebook as one HTML file that needs nothing else."""
    html, _ = HTMLExporter().from_filename(str(notebook))
    replace_file(report, lambda path: path.write_text(html, encoding="utf-8"))


def load_sample_run() -> Run:
    """Load the first run of the sample's experiment, after executing it where it is missing."""
    experiment = experiments.read_experiment(SAMPLE)
    first = replace(experiment, runs=experiment.runs[:1], ensemble="")
    if failures := grids.execute_experiment(first):
        raise RunError("\n".join(failures.values()))
    return load_run(first.runs[0].path)


def describe_run(run: Run) -> str:
    """Put a run's score and where to look into a few lines."""
    scores = run.metrics["scores"]["test"]
    lines = [f"{run.path}: {run.metrics['data']['description']}"]
    for name, score in scores.items():
        interval = f"{score['low']:.3f} … {score['high']:.3f}" if score["low"] is not None else "?"
        value = "?" if score["value"] is None else f"{score['value']:.3f}"
        lines.append(f"  test {name:<18} {value}   95 % interval {interval}")
    lines.append(f"  always the commonest class  {run.metrics['majority_baseline']:.3f}")
    lines.append(f"Look at {run.path / 'report.html'} and {run.path / 'figures'}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.runs.execution",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", type=Path, help="a notebook, or an experiment's YAML file")
    parser.add_argument("run_dir", type=Path, nargs="?", help="of a notebook: the run's folder")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter"
    )
    grid = parser.add_argument_group("of an experiment")
    grid.add_argument("--dry-run", action="store_true", help="list the runs and how far they are")
    grid.add_argument("--jobs", type=int, default=1, help="runs at a time, the cores shared out")
    grid.add_argument("--dask", default="", metavar="tcp://…", help="a Dask scheduler to use")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # see helpers.grids
    options = parser.parse_args(arguments)
    is_experiment = options.what.suffix in (".yaml", ".yml")
    if is_experiment == bool(options.run_dir):
        parser.error("wanted is a notebook and a run's folder, or an experiment's YAML file alone")
    if options.child:
        _end_with_parent()
    try:
        return _execute_grid(options) if is_experiment else _execute_run(options)
    except BusyError as error:
        print(error, file=sys.stderr)
        return grids.BUSY
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def _execute_run(options: argparse.Namespace) -> int:
    declared = experiments.inspect_parameters(options.what)
    parameters = experiments.parse_parameters(options.p, declared)
    run = execute_notebook(options.what, options.run_dir, parameters, skip_finished=options.child)
    print(describe_run(run))
    return 0


def _execute_grid(options: argparse.Namespace) -> int:
    experiment = experiments.read_experiment(options.what, options.p)
    if options.dry_run:
        for planned in experiment.runs:
            print(f"{planned.path.name}: {experiments.describe_state(planned)}")
        return 0
    failures = grids.execute_experiment(experiment, options.jobs, options.dask)
    finished = len(experiment.runs) - len(failures)
    print(f"{finished} of {len(experiment.runs)} runs are finished in {experiment.folder}")
    if failures:
        print("The same command tries the others again:", *failures, sep="\n  ")
    return 1 if failures else 0


def _end_with_parent() -> None:
    """End when standard input closes: the process that started this one is gone."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)  # papermill ends the kernel
        time.sleep(10)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
