"""The command line: python -m helpers run | grid | predict | download | export."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Verbs that are told and done by a module of their own, imported only for them.
APART = {
    "predict": ("helpers.runs.predict", "answer for images with the model of a run"),
    "download": ("helpers.data.download", "fetch HAM10000, 2.8 GB, checked and resumed"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0; 1 for a problem, said on standard error; 3 where `predict` could not answer for some images;
    130 stopped by Ctrl-C.
    """
    from helpers.data.files import InputError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _make_parser(arguments[:1]).parse_args(arguments)
        return options.execute(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130


def _make_parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """Describe all verbs, in full the wanted one."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    verbs = parser.add_subparsers(title="verbs (each has its own --help)", required=True)
    change = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}

    run = verbs.add_parser("run", help="execute a notebook into a run's folder")
    run.set_defaults(execute=_run)
    run.add_argument("notebook", help="a notebook with typed parameters, RUN_DIR among them")
    run.add_argument("run_dir", help="the run's folder, such as runs/first")
    run.add_argument("-p", **change, help="a parameter; papermill --help-notebook lists them")

    grid = verbs.add_parser("grid", help="execute all runs of an experiment")
    grid.set_defaults(execute=_execute_grid)
    grid.add_argument("experiment", help="a YAML file, see notebooks/experiments/README.md")
    grid.add_argument("-p", **change, help="a parameter that all runs are given")
    grid.add_argument("--dry-run", action="store_true", help="list the runs and how far they are")
    grid.add_argument("--jobs", type=int, default=1, help="runs at a time on this machine")
    grid.add_argument("--dask", default="", metavar="tcp://…", help="a Dask scheduler to use")
    grid.add_argument("--keep-old", action="store_true", help="keep finished runs of other code")

    for verb, (module, about) in APART.items():
        described = verbs.add_parser(verb, help=about)
        if verb in wanted:
            import_module(module).add_arguments(described)
            described.set_defaults(execute=import_module(module).run)

    export = verbs.add_parser("export", help="write a run's model for use without Keras")
    export.set_defaults(execute=_export)
    export.add_argument("run_dir", help="the run's folder")
    export.add_argument("--to", required=True, choices=("savedmodel", "tflite", "onnx"))
    return parser


def _run(options: argparse.Namespace) -> int:
    from helpers.runs import execution, experiments

    declared, _ = experiments.inspect_parameters(options.notebook)
    parameters = experiments.parse_parameters(options.p, declared)
    run = execution.execute_notebook(options.notebook, options.run_dir, parameters)
    print(_describe(run))
    return 0


def _describe(run) -> str:
    """Put a run's data, scores and where to look into a few lines."""
    from helpers.evaluation.scores import FEWEST

    lines = [f"{run.path}: {run.metrics['data']['description']}"]
    for name, row in run.metrics["scores"]["test"].items():
        row = {n: "?" if x is None else f"{x:.3f}" for n, x in row.items()}
        lines.append(
            f"  test {name:<31} {row['value']}   95 % interval {row['low']} … {row['high']}"
        )
    lines.append(f"  always the commonest class           {run.metrics['majority_baseline']:.3f}")
    few = max(int(row.get("small_classes") or 0) for row in run.metrics["scores"]["test"].values())
    if few:
        lines.append(f"  {few} of {len(run.classes)} classes rest on fewer than {FEWEST} lesions")
    return "\n".join([*lines, f"Look at {run.path / 'report.html'} and {run.path / 'figures'}"])


def _execute_grid(options: argparse.Namespace) -> int:
    from helpers.runs import execution, experiments

    experiment = experiments.read_experiment(options.experiment, options.p)
    if options.dry_run:
        for planned in experiment.runs:
            print(f"{planned.path.name}: {experiments.describe_state(planned)}")
        return 0
    failed = execution.execute_experiment(experiment, options.jobs, options.dask, options.keep_old)
    total = len(experiment.runs)
    print(f"{total - len(failed)} of {total} runs are finished in {experiment.folder}")
    if failed:
        print("The same command tries the others again:", *failed, sep="\n  ")
    return int(bool(failed))


def _export(options: argparse.Namespace) -> int:
    from helpers.runs import export, folder

    run = folder.load_run(options.run_dir)
    note = export.export_run(run, options.to)
    path = run.path / export.FOLDER / note["file"]
    print(f"{path}: {', '.join(note['classes'])}; {note['height']}x{note['width']} pixels")
    print(
        f"Largest difference of a probability on {note['checked_images']} images: from the Keras "
        f"model in float32 {note['largest_difference']:.1e}, as it was trained "
        f"({note['precision_as_trained']}) {note['largest_difference_as_trained']:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
