"""Answer for one's own images with a finished run: calibrated probabilities, or "unsure".

For research and teaching. This is not a medical device.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    """A net with all that its answers need; made by `load_classifier`.

    It has a run, a reader (`novelty.make_reader`), a temperature (`calibration.calibrate_run`) and
    a detector, unless nothing is warned of. `views`, 1 or 8, are averaged, as the run was scored;
    `false_alarm_rate` is the share of images like the training images to warn of.
    """

    run: Run
    reader: Callable
    temperature: float
    detector: novelty.Detector | None
    point: OperatingPoint
    views: int
    false_alarm_rate: float

    @property
    def classes(self) -> tuple[str, ...]:
        """The class codes, in the order of the probabilities."""
        return self.run.classes

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the net takes."""
        parameters = self.run.metrics["parameters"]
        return parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"]


def load_classifier(
    run: Run,
    accuracy: float = 0.9,
    warn: bool = True,
    false_alarm_rate: float = novelty.FALSE_ALARM_RATE,
    data_dir: str = "",
) -> Classifier:
    """Load the net of a run, to answer for images.

    Args:
        run: a finished run; of one with age, sex and site, the net for images alone answers.
        accuracy: wanted share of right ones among the given answers (`choose_operating_point`).
        warn, false_alarm_rate, data_dir: of the warning; see `novelty.load_detector`.

    An InputError names all that is out of range.
    """
    run = load_run(run.path, image_only=True)
    shares = {"the accuracy": accuracy, "the false-alarm rate": false_alarm_rate}
    wrong = [f"{name} is {share}" for name, share in shares.items() if not 0 < share <= 1]
    raise_problems("wanted is a share above 0 and at most 1", wrong)
    views = run.metrics["parameters"].get("VIEWS", 1)
    reader = novelty.make_reader(load_model(run))
    calibrated, temperature = calibration.calibrate_run(run)
    point = choose_operating_point(calibrated, accuracy)
    detector = novelty.load_detector(run, data_dir) if warn else None
    return Classifier(run, reader, temperature, detector, point, views, false_alarm_rate)


def choose_operating_point(p: Predictions, accuracy: float) -> OperatingPoint:
    """Choose the lowest threshold at which the answers on the validation images are right enough.

    Selective prediction: Geifman and El-Yaniv, NeurIPS 2017. `p` is calibrated; the accuracy is
    0 … 1.
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
    """Answer for image files; decoding goes on while the net answers.

    Returns a row per file, in order: image (the path), answer (a class or "unsure"; empty where the
    file cannot be read), p_<class> calibrated, novelty (distance from the training
    images, 1 is the border; nan without detector), warning and problem (empty for none).
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
    """Return probabilities (N, K), averaged over views, then calibrated, and novelty (N,)."""
    from helpers.training.batches import list_views, turn_images

    turned = [turn_images(pixels, v) for v in list_views(classifier.views, pixels.shape[1:3])]
    features, found = novelty.read_features(classifier.reader, np.concatenate(turned))
    found = found.reshape(len(turned), len(pixels), -1).mean(axis=0)  # first: as T was fitted
    p = Predictions(pd.DataFrame(), classifier.classes).with_probabilities(found)
    probabilities = calibration.apply_temperature(p, classifier.temperature).probabilities
    distances = np.full(len(pixels), np.nan)
    if classifier.detector:
        border = classifier.detector.choose_threshold(classifier.false_alarm_rate)
        distances = classifier.detector.measure(pixels, features[: len(pixels)]) / border
    return probabilities, distances


def describe_answers(classifier: Classifier, table: pd.DataFrame) -> str:
    """Say how many files were answered, how, and what the rules for it were."""
    run, answered = classifier.run, table[table["problem"] == ""]
    unsure, warned = (answered["answer"] == UNSURE).sum(), (answered["warning"] != "").sum()
    lines = [
        f"{len(answered)} of {len(table)} files answered by {run.path.name}: "
        f"{len(answered) - unsure} with a class, {unsure} unsure; {warned} with a warning.",
        describe_operating_point(classifier.point),
    ]
    if classifier.detector and len(test := run.predictions.part("test")):
        found = classifier.detector.measure_false_alarms(test, classifier.false_alarm_rate)
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
    text = f"a finished run (without: the last finished one, else {BOX})"
    add("--run", action="append", default=[], metavar="RUN_DIR", help=text)
    add("--csv", type=Path, help="write the answers there; without: print them")
    text = "share of right ones wanted among the given answers; the rest is unsure (%(default)s)"
    add("--accuracy", type=float, default=0.9, help=text)
    text = "share of images like the training images that may be warned of (%(default)s)"
    add("--false-alarms", type=float, default=default, metavar="SHARE", help=text)
    text = f"the run's training images, needed once, to make {novelty.NOVELTY}"
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
    runs = [*options.run, *of_runs]
    if len(runs) > 1:
        problems.append(f"{', '.join(map(str, runs))}: name one run only")
    runs = [_collect(problems, load_run, path) for path in runs]
    raise_problems("predict", problems)
    (run,) = runs or [load_run(find_last_run() or BOX)]
    settings = options.accuracy, not options.no_novelty, options.false_alarms
    classifier = load_classifier(run, *settings, options.data_dir)
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


def _read_batches(
    classifier: Classifier, paths: Sequence[str | os.PathLike], problems: list[str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield rows and pixels of the images that can be read; fills in the problems of the others."""
    from helpers.training.batches import list_views

    size = BATCH // len(list_views(classifier.views, classifier.size))
    rows, pixels = [], []
    for row, decoding in enumerate(
        images.decode_images(paths, classifier.size, classifier.run.file_size, 2 * size)
    ):
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
