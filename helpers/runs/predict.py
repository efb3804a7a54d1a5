"""Answer for one's own images with finished runs: calibrated probabilities, or "unsure".

For research and teaching. This is not a medical device.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data import images
from helpers.data.files import InputError, raise_problems
from helpers.evaluation import calibration, novelty
from helpers.evaluation.predictions import Predictions
from helpers.runs.execution import find_last_run
from helpers.runs.folder import BOX, METRICS, Run, load_model, load_run, resolve_run
from helpers.runs.own_images import check_output, find_images, write_answers

# TensorFlow is imported only once the arguments are known to be right.

UNSURE, WARNING = "unsure", "unlike the training images"
BATCH = 256  # images per call of the nets, views counted
SOME_NOT_ANSWERED = 3  # exit code


@dataclass(frozen=True)
class OperatingPoint:
    """From which probability on a class is answered, and what that came to on held-out images.

    `threshold` is a calibrated probability, infinite where none reaches the wanted `accuracy` of
    the answers, 0 … 1. `outcomes` has a row per part (val, test): images, answered (share) and
    right (share of the answered; nan where none is).
    """

    threshold: float
    accuracy: float
    outcomes: pd.DataFrame


@dataclass(frozen=True)
class Classifier:
    """One or several nets that answer together; made by `load_classifier`.

    Each net has a run, a reader (`novelty.make_reader`), a temperature
    (`calibration.calibrate_run`) and a detector, unless nothing is warned of. `views`, 1 or 8, are
    averaged; `false_alarm_rate` is the share of images like the training images to warn of.
    """

    runs: tuple[Run, ...]
    readers: tuple[Callable, ...]
    temperatures: tuple[float, ...]
    detectors: tuple[novelty.Detector, ...]
    point: OperatingPoint
    views: int
    false_alarm_rate: float

    @property
    def classes(self) -> tuple[str, ...]:
        """The class codes, in the order of the probabilities."""
        return self.runs[0].classes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the nets take."""
        return _read_size(self.runs[0])


def load_classifier(
    runs: Sequence[Run],
    accuracy: float = 0.9,
    views: int = 0,
    warn: bool = True,
    false_alarm_rate: float = novelty.FALSE_ALARM_RATE,
    data_dir: str = "",
) -> Classifier:
    """Load the nets of runs that are to answer together.

    Args:
        runs: of the same classes and image size, at least one. The probabilities of all nets are
            calibrated, then averaged.
        accuracy: wanted share of right ones among the given answers (`choose_operating_point`).
        views: 1, or 8 for test-time averaging; 0: what the first run was scored with.
        warn, false_alarm_rate, data_dir: of the warning; see `novelty.load_detector`.

    An InputError names all that keeps the runs from answering together, or is out of range.
    """
    runs = [load_run(run.path, image_only=True) for run in runs]
    first, problems = runs[0], []
    for run in runs[1:]:
        for what, read in (("the classes", lambda x: x.classes), ("images of", _read_size)):
            if read(run) != read(first):
                found = " and ".join(f"{x.path} has {what} {read(x)}" for x in (first, run))
                problems.append(f"{found}: leave one of them out")
    views = views or first.metrics["parameters"].get("VIEWS", 1)
    if views not in (1, 8):
        problems.append(f"views is {views}, wanted is 1 or 8")
    for name, value in (("accuracy", accuracy), ("false-alarm rate", false_alarm_rate)):
        if not 0 < value <= 1:
            problems.append(f"the {name} is {value}, wanted is a share above 0 and at most 1")
    raise_problems("the runs and options", problems)
    readers = tuple(novelty.make_reader(load_model(run)) for run in runs)
    calibrated, temperatures = zip(*map(calibration.calibrate_run, runs), strict=True)
    table = pd.concat([p.table for p in calibrated], ignore_index=True)
    point = choose_operating_point(replace(first.predictions, table=table), accuracy)
    detectors = tuple(novelty.load_detector(run, data_dir) for run in runs if warn)
    return Classifier(tuple(runs), readers, temperatures, detectors, point, views, false_alarm_rate)


def choose_operating_point(p: Predictions, accuracy: float) -> OperatingPoint:
    """Choose the lowest threshold at which the answers on the validation images are right enough.

    Selective prediction: Geifman and El-Yaniv, NeurIPS 2017. Of several runs, the validation
    images of all are taken, each as its own net answered it; their average is seldom less often
    right at the same probability. `p` is calibrated; the accuracy is 0 … 1.
    """
    table = pd.DataFrame({"part": p.table["split"], "surety": p.probabilities.max(axis=1)})
    table["right"] = p.answers == p.labels
    by_surety = table[table["part"] == "val"].groupby("surety")["right"]
    ranked = by_surety.agg(["sum", "count"])[::-1].cumsum()
    reached = ranked.index[ranked["sum"] >= accuracy * ranked["count"] - 1e-9]
    threshold = float(reached[-1]) if len(reached) else np.inf
    table["answered"] = table["surety"] >= threshold
    table["right"] = table["right"].where(table["answered"]).astype(float)
    outcomes = table.groupby("part").agg({"surety": "size", "answered": "mean", "right": "mean"})
    outcomes = outcomes.rename(columns={"surety": "images"})
    outcomes = outcomes.loc[[part for part in ("val", "test") if part in outcomes.index]]
    return OperatingPoint(threshold, accuracy, outcomes)


def describe_operating_point(point: OperatingPoint) -> str:
    """Say in a sentence or two when the answer is "unsure", and what that came to."""
    if np.isinf(point.threshold):
        return (
            f"No threshold makes {point.accuracy:.0%} of the answers on the validation images "
            "right: every image is unsure. Ask for a lower accuracy, or train a better net."
        )
    said = [
        f"{row['answered']:.0%} of the {row['images']:.0f} images of {part} get a class"
        + (f", {row['right']:.0%} of these the right one" if row["answered"] else "")
        for part, row in point.outcomes.iterrows()
    ]
    return (
        f"An image is unsure where its highest probability is below {point.threshold:.2f}. "
        f"With that, {'; '.join(said)}."
    )


def predict_images(classifier: Classifier, paths: Sequence[str | os.PathLike]) -> pd.DataFrame:
    """Answer for image files; decoding goes on while the nets answer.

    Returns a row per file, in order: image (the path), answer (a class or "unsure"; empty where the
    file cannot be read), p_<class> calibrated and averaged, novelty (distance from the training
    images, 1 is the border; nan without detectors), warning and problem (empty for none).
    """
    columns = [f"p_{dx}" for dx in classifier.classes]
    probabilities = np.full((len(paths), len(columns)), np.nan)
    distances, problems = np.full(len(paths), np.nan), [""] * len(paths)
    for rows, pixels in _read_batches(classifier, paths, problems):
        probabilities[rows], distances[rows] = answer_pixels(classifier, pixels)
    top = probabilities.max(axis=1)
    answers = np.asarray(classifier.classes)[np.nan_to_num(probabilities).argmax(axis=1)]
    answers = np.where(top >= classifier.point.threshold, answers, UNSURE)
    # A spreadsheet would compute a name such as =1.png.
    names = [f"./{path}" if str(path)[:1] in "=+-@" else str(path) for path in paths]
    table = pd.DataFrame({"image": names})
    table["answer"] = np.where(np.isnan(top), "", answers)
    table[columns] = probabilities
    table["novelty"] = distances
    table["warning"] = np.where(distances > 1, WARNING, "")
    table["problem"] = problems
    return table


def answer_pixels(classifier: Classifier, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, K) and novelty (N,) of a batch, averaged over nets and views."""
    from helpers.training.batches import list_views, turn_images

    turned = [turn_images(pixels, v) for v in list_views(classifier.views, pixels.shape[1:3])]
    probabilities, distances = [], []
    for reader, temperature in zip(classifier.readers, classifier.temperatures, strict=True):
        features, found = novelty.read_features(reader, np.concatenate(turned))
        p = Predictions(pd.DataFrame(), classifier.classes).with_probabilities(found)
        found = calibration.apply_temperature(p, temperature).probabilities
        probabilities.append(found.reshape(len(turned), *found[: len(pixels)].shape).mean(axis=0))
        distance = np.full(len(pixels), np.nan)
        if classifier.detectors:
            detector = classifier.detectors[len(distances)]
            border = detector.choose_threshold(classifier.false_alarm_rate)
            distance = detector.measure(pixels, features[: len(pixels)]) / border
        distances.append(distance)
    return np.mean(probabilities, axis=0), np.mean(distances, axis=0)


def describe_answers(classifier: Classifier, table: pd.DataFrame) -> str:
    """Say how many files were answered, how, and what the rules for it were."""
    answered, nets = table[table["problem"] == ""], len(classifier.runs)
    unsure, warned = (answered["answer"] == UNSURE).sum(), (answered["warning"] != "").sum()
    lines = [
        f"{len(answered)} of {len(table)} files answered by {nets} net{'s' * (nets > 1)}: "
        f"{len(answered) - unsure} with a class, {unsure} unsure; {warned} with a warning.",
        describe_operating_point(classifier.point),
    ]
    for run, detector in zip(classifier.runs, classifier.detectors, strict=False):
        if len(test := run.predictions.part("test")):
            found = detector.measure_false_alarms(test, classifier.false_alarm_rate)
            lines.append(
                f"{run.path.name} warns of {found['value']:.1%} of its own {len(test)} test images "
                f"(wanted {classifier.false_alarm_rate:.0%}). It is a check for gross errors."
            )
    return "\n".join([*lines, "For research and teaching. This is not a medical device."])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command line's verb predict."""
    add, default = parser.add_argument, novelty.FALSE_ALARM_RATE
    text = "folders with everything below them; the folder of a run counts as --run"
    add("images", nargs="*", metavar="IMAGE|FOLDER", help=text)
    text = f"a finished run; several answer together (without: the last finished one, else {BOX})"
    add("--run", action="append", default=[], metavar="RUN_DIR", help=text)
    add("--csv", type=Path, help="write the answers there; without: print them")
    text = "share of right ones wanted among the given answers; the rest is unsure (%(default)s)"
    add("--accuracy", type=float, default=0.9, help=text)
    text = "8: average turned, mirrored views (without: as the run was scored)"
    add("--views", type=int, choices=(1, 8), default=0, help=text)
    text = "share of images like the training images that may be warned of (%(default)s)"
    add("--false-alarms", type=float, default=default, metavar="SHARE", help=text)
    text = f"the runs' training images, needed once, to make {novelty.NOVELTY}"
    add("--data-dir", default="", help=text)
    add("--no-novelty", action="store_true", help="never warn of unlike images")


def run(options: argparse.Namespace) -> int:
    """Answer as the command line asks.

    Returns the exit code: 0; 1 where no file could be answered; 3 where some could not. An
    InputError names everything that is wrong with the arguments.
    """
    problems = check_output(options.csv) if options.csv else []
    of_runs = [path for path in options.images if (resolve_run(path) / METRICS).is_file()]
    given = [path for path in options.images if path not in of_runs]
    paths, left_out = _collect(problems, find_images, given) or ([], [])
    runs = [_collect(problems, load_run, path) for path in [*options.run, *of_runs]]
    raise_problems("predict", problems)
    runs = runs or [load_run(find_last_run() or BOX)]
    settings = options.accuracy, options.views, not options.no_novelty, options.false_alarms
    classifier = load_classifier(runs, *settings, options.data_dir)
    table = predict_images(classifier, paths)
    answered = table[table["problem"] == ""]
    if options.csv:
        print("Answers:", write_answers(options.csv, table))
    else:
        print(table.to_string(index=False, float_format="%.3f"))
    print(describe_answers(classifier, table))
    if left_out:
        print(f"{len(left_out)} left out:", *left_out, sep="\n", file=sys.stderr)
    for row in table[table["problem"] != ""].itertuples():
        print(f"{row.image}: {row.problem}", file=sys.stderr)
    return 0 if len(answered) == len(table) else SOME_NOT_ANSWERED if len(answered) else 1


def _collect(problems: list[str], function: Callable, argument):
    try:
        return function(argument)
    except InputError as error:
        problems += [f"{error.where}: {text}" for text in error.problems]


def _read_size(run: Run) -> tuple[int, int]:
    parameters = run.metrics["parameters"]
    return parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"]


def _read_batches(
    classifier: Classifier, paths: Sequence[str | os.PathLike], problems: list[str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield rows and pixels of the images that can be read; fills in the problems of the others."""
    from helpers.training.batches import list_views

    size = BATCH // len(list_views(classifier.views, classifier.size))
    rows, pixels = [], []
    for row, decoding in enumerate(images.decode_images(paths, classifier.size, ahead=2 * size)):
        try:
            pixels.append(decoding.result())
            rows.append(row)
        except InputError as error:
            problems[row] = "; ".join(error.problems)
        if len(rows) == size:
            yield rows, np.stack(pixels)
            rows, pixels = [], []
    if rows:
        yield rows, np.stack(pixels)
