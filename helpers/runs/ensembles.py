"""Runs over folds joined into one: every image predicted by a model that did not train on it."""

from pathlib import Path

import pandas as pd

from helpers.evaluation.scores import score_majority, score_with_intervals
from helpers.runs.experiments import Experiment, find_finished, name_run
from helpers.runs.folder import Run, RunError, load_run, save_ensemble


def join_experiment(experiment: Experiment) -> list[Path]:
    """Join the finished runs of an experiment over its `ensemble` parameter.

    Runs that agree in all other parameters of the grid are joined once all of them are finished,
    into a folder beside theirs that has `all` for the value: BATCH_NORM=true,FOLD=all.

    Returns:
        The ensembles' folders.
    """
    families: dict[str, list] = {}
    for planned in experiment.runs:
        if experiment.ensemble in planned.own:
            own = {**planned.own, experiment.ensemble: "all"}
            families.setdefault(name_run(own), []).append(planned)
    folders = []
    for name, family in families.items():
        runs = [find_finished(planned) for planned in family]
        if all(runs):
            folders.append(join_runs(runs, experiment.folder / name, experiment.ensemble))
    return folders


def join_runs(runs: list[Run], folder: Path, over: str = "FOLD") -> Path:
    """Join finished runs over folds into one folder that `load_run` reads like a run's.

    Its predictions hold the out-of-fold predictions: each test image once, predicted by the one
    model that did not train on it, and the validation images of each run, with the column `fold`.
    Official test images get the mean probability of all runs and no fold. Its scores are those of
    all test images together. An ensemble of the same runs that lies there already is kept.

    Args:
        runs: finished runs of the same parameters but for `over`, in folders beside `folder`.
        folder: where to write.
        over: name of the parameter that differs.

    Returns:
        The folder.

    Raises:
        RunError: runs that do not belong together.
    """
    try:
        if set(load_run(folder).metrics["members"]) == {run.path.name for run in runs}:
            return folder
    except (RunError, KeyError):
        pass  # none yet, or of runs that were made anew since
    parameters = [dict(run.metrics["parameters"]) for run in runs]
    values = [own.pop(over) for own in parameters]
    for own in parameters:
        del own["RUN_DIR"]
    if problems := _find_differences(runs, parameters, over):
        raise RunError(f"{folder.name}: {'; '.join(problems)}")

    tables = [run.predictions.assign(fold=value) for run, value in zip(runs, values, strict=True)]
    predictions = pd.concat(tables, ignore_index=True)
    is_official = predictions["split"] == "official"
    columns = [f"p_{dx}" for dx in runs[0].classes]
    known = ["image_id", "lesion_id", "group", "split", "dx"]
    official = predictions[is_official].groupby(known, sort=False, dropna=False)[columns].mean()
    predictions = pd.concat([predictions[~is_official], official.reset_index()], ignore_index=True)
    predictions["fold"] = predictions["fold"].astype("Int64")
    histories = [run.history.assign(fold=value) for run, value in zip(runs, values, strict=True)]
    return save_ensemble(
        folder,
        {**_describe(runs, predictions), "parameters": parameters[0] | {over: values}},
        pd.concat(histories),
        predictions,
        runs,
    )


def _find_differences(runs: list[Run], parameters: list[dict], over: str) -> list[str]:
    """List why runs cannot be joined."""
    first = parameters[0]
    names = sorted({n for own in parameters for n in own if own.get(n) != first.get(n)})
    problems = [f"the runs differ in {name}, not only in {over}" for name in names]
    if len({tuple(run.classes) for run in runs}) > 1:
        problems.append("the runs differ in their classes")
    tested = pd.concat([run.predictions.query("split == 'test'")["image_id"] for run in runs])
    if repeated := int(tested.duplicated().sum()):
        problems.append(f"{repeated} test images are in more than one {over}")
    return problems


def _describe(runs: list[Run], predictions: pd.DataFrame) -> dict:
    """Make the metrics of an ensemble but for its parameters."""
    classes = runs[0].classes
    test = predictions[predictions["split"] == "test"]
    labels = test["dx"].map(classes.index).to_numpy()
    probabilities = test[[f"p_{dx}" for dx in classes]].to_numpy()
    figures = score_with_intervals(labels, probabilities, test["group"].to_numpy())
    first = runs[0].metrics
    return {
        "classes": classes,
        "data": first["data"] | {"split": predictions["split"].value_counts().to_dict()},
        "scores": {"test": figures.to_dict("index"), "official": {}},
        "majority_baseline": score_majority(labels),
        "training": first["training"]
        | {
            "seconds": sum(run.metrics["training"]["seconds"] for run in runs),
            "epochs": sum(run.metrics["training"]["epochs"] for run in runs),
            "best_epoch": None,
            "images_per_second": None,
        },
    }
