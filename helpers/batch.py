"""Execute a notebook without a screen: parameters checked first, one folder per run.

python -m helpers.batch Skin_Cancer_Detection.ipynb runs/my_run -p EPOCHS 30 -p FOLD 2
"""

import argparse
import sys
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter

from helpers.runs import Run, RunError, find_parameter_problems, load_run, replace_file

TYPES = {"bool": bool, "int": int, "float": float, "str": str}


def execute_notebook(notebook: str | Path, run_dir: str | Path, parameters: dict) -> Run:
    """Execute a notebook into a run's folder and read the run back.

    Writes notebook.ipynb and report.html beside what the notebook itself saves; what the
    cells print is passed on as it comes.

    Args:
        notebook: a notebook with a typed parameters cell that has a RUN_DIR.
        run_dir: the folder, given to the notebook as RUN_DIR.
        parameters: name to value.

    Raises:
        RunError: an unknown name, a wrong type (before anything is started), a cell that
            failed or was not executed, a dead kernel, or a run that was not saved.
    """
    notebook, run_dir = Path(notebook), Path(run_dir)
    parameters = {**parameters, "RUN_DIR": str(run_dir)}
    if problems := find_parameter_problems(parameters, inspect_parameters(notebook)):
        raise RunError("\n".join(problems))
    run_dir.mkdir(parents=True, exist_ok=True)
    output = run_dir / "notebook.ipynb"
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters,
            progress_bar=False,
            stdout_file=sys.stdout,
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
    if unfinished := find_unfinished_cells(nbformat.read(output, as_version=4)):
        raise RunError(f"{output}: cells {unfinished} were not executed, the run does not count")
    return load_run(run_dir)


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


def find_unfinished_cells(book: nbformat.NotebookNode) -> list[int]:
    """List the code cells, counted from 1, that papermill did not mark as completed.

    A kernel that ends early with exit code 0 leaves them pending and papermill content.
    """
    return [
        number
        for number, cell in enumerate(book.cells, start=1)
        if cell.cell_type == "code"
        and cell.source.strip()
        and cell.metadata.get("papermill", {}).get("status") != "completed"
    ]


def write_report(notebook: Path, report: Path) -> None:
    """Write a notebook as one HTML file that needs nothing else."""
    html, _ = HTMLExporter().from_filename(str(notebook))
    replace_file(report, lambda path: path.write_text(html, encoding="utf-8"))


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
    parser = argparse.ArgumentParser(prog="python -m helpers.batch", description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    options = parser.parse_args(arguments)
    try:
        parameters = parse_parameters(options.p, inspect_parameters(options.notebook))
        run = execute_notebook(options.notebook, options.run_dir, parameters)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    print(describe_run(run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
