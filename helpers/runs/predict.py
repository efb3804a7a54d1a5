"""Answer for one's own images with finished runs: calibrated probabilities, or "unsure".

For research and teaching. This is not a medical device.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data import images
from helpers.data.files import InputError, name_some, raise_problems, replace_file
from helpers.data.reading import CLASSES
from helpers.evaluation import calibration, challenge, novelty
from helpers.evaluation.predictions import Predictions
from helpers.runs.execution import find_run
from helpers.runs.folder import METRICS, Run, load_model, load_run

# TensorFlow is imported only once the arguments are known to be right.

UNSURE, WARNING = "unsure", "unlike the training images"
# Beside what is hidden (.…, .ipynb_checkpoints among it): thumbnails and notes of file systems.
LEFT_OUT = ("@eaDir", "__MACOSX", "Thumbs.db", "desktop.ini")
VIEWS = (1, 8)
BATCH = 64  # images per call of the nets, views counted
SOME_NOT_ANSWERED = 3  # exit code


@dataclass(frozen=True)
class OperatingPoint:
    """From which probability on a class is answered, and what that came to on held-out images.

    Attributes:
        threshold: calibrated probability of the answer, 0 … 1; infinite where no threshold reaches
            the wanted accuracy: every image is unsure then.
        accuracy: the wanted accuracy of the given answers, 0 … 1.
        outcomes: a row per part (val, test) with images, answered (share) and right (share of the
            answered; nan where none is).
    """

    threshold: float
    accuracy: float
    outcomes: pd.DataFrame


@dataclass(frozen=True)
class Member:
    """One net of a classifier: its reader (`novelty.make_reader`), temperature and detector.

    `border` is the distance from which on the detector warns; without a detector it is nan.
    """

    reader: Callable
    temperature: float
    detector: novelty.Detector | None
    border: float


@dataclass(frozen=True)
class Classifier:
    """One or several nets that answer together; made by `load_classifier`.

    Attributes:
        runs: the run of each net, none of them an ensemble.
        members: the nets.
        size: (height, width) in pixels that they take.
        point: the operating point.
        views: 1 or 8, over how many turned and mirrored views to average.
        false_alarm_rate: share of images like the training images that may be warned of.
    """

    runs: tuple[Run, ...]
    members: tuple[Member, ...]
    size: tuple[int, int]
    point: OperatingPoint
    views: int
    false_alarm_rate: float

    @property
    def classes(self) -> tuple[str, ...]:
        """The class codes, in the order of the probabilities."""
        return self.runs[0].classes


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
        runs: of the same classes and image size, at least one; an ensemble stands for its members.
            The probabilities of all nets are calibrated, then averaged.
        accuracy: wanted share of right ones among the given answers (`choose_operating_point`).
        views: 1, or 8 for test-time averaging; 0: what the first run was scored with.
        warn: measure how unlike the training images an image is (`novelty.load_detector`).
        false_alarm_rate: of that warning.
        data_dir: see `novelty.load_detector`.

    Raises:
        InputError: naming all that keeps the runs from answering together, or is out of range.
    """
    runs = [load_run(path.parent, image_only=True) for run in runs for path in run.model_paths]
    first, problems = runs[0], []
    for run in runs[1:]:
        if run.classes != first.classes:
            said = f"the classes {', '.join(run.classes)}, {first.path}: {', '.join(first.classes)}"
            problems.append(f"{run.path} has {said}: leave one of them out")
        if _read_size(run) != _read_size(first):
            said = "images of {}x{} pixels, {}: {}x{}"
            said = said.format(*_read_size(run), first.path, *_read_size(first))
            problems.append(f"{run.path} takes {said}: leave one of them out")
    views = views or first.metrics["parameters"].get("VIEWS", 1)
    if views not in VIEWS:
        problems.append(f"views is {views}, wanted is {' or '.join(map(str, VIEWS))}")
    for name, value in (("accuracy", accuracy), ("false-alarm rate", false_alarm_rate)):
        if not 0 < value <= 1:
            problems.append(f"the {name} is {value}, wanted is a share above 0 and at most 1")
    raise_problems("the runs and options", problems)
    members, calibrated = [], []
    for run in runs:
        predictions, temperatures = calibration.calibrate_run(run)
        calibrated.append(predictions.table)
        detector = novelty.load_detector(run, data_dir) if warn else None
        border = detector.choose_threshold(false_alarm_rate) if detector else np.nan
        reader = novelty.make_reader(load_model(run))
        members.append(Member(reader, temperatures[0], detector, border))
    held_out = replace(first.predictions, table=pd.concat(calibrated, ignore_index=True))
    point = choose_operating_point(held_out, accuracy)
    size = _read_size(first)
    return Classifier(tuple(runs), tuple(members), size, point, views, false_alarm_rate)


def choose_operating_point(p: Predictions, accuracy: float) -> OperatingPoint:
    """Choose the lowest threshold at which the answers on the validation images are right enough.

    Selective prediction: Geifman and El-Yaniv, NeurIPS 2017. Of several runs, the validation
    images of all are taken, each as its own net answered it; their average is seldom less often
    right at the same probability.

    Args:
        p: calibrated, of the parts val and perhaps test.
        accuracy: wanted share of right answers, 0 … 1.
    """
    table = pd.DataFrame({"part": p.table["split"], "surety": p.probabilities.max(axis=1)})
    table["right"] = p.answers == p.labels
    by_surety = table[table["part"] == "val"].groupby("surety")["right"]
    ranked = by_surety.agg(["sum", "count"])[::-1].cumsum()
    reached = ranked.index[ranked["sum"] >= accuracy * ranked["count"] - 1e-9]
    threshold = float(reached[-1]) if len(reached) else np.inf
    table["answered"] = table["surety"] >= threshold
    table["right"] = table["right"].where(table["answered"]).astype(float)
    outcomes = table.groupby("part")[["answered", "right"]].mean()
    outcomes.insert(0, "images", table.groupby("part").size())
    outcomes = outcomes.reindex([part for part in ("val", "test") if part in outcomes.index])
    return OperatingPoint(threshold, accuracy, outcomes)


def describe_operating_point(point: OperatingPoint) -> str:
    """Say in a sentence or two when the answer is "unsure", and what that came to."""
    if np.isinf(point.threshold):
        return (
            f"No threshold makes {point.accuracy:.0%} of the answers on the validation images "
            "right: every image is unsure. Ask for a lower accuracy, or train a better net."
        )
    names = {"val": "validation", "test": "test"}
    said = [
        f"{row['answered']:.0%} of the {row['images']:.0f} {names[part]} images get a class, "
        + (f"{row['right']:.0%} of these the right one" if row["answered"] else "")
        for part, row in point.outcomes.iterrows()
    ]
    return (
        f"An image is unsure where its highest probability is below {point.threshold:.2f}. "
        f"With that, {'; '.join(said)}."
    )


def find_images(paths: Sequence[str | os.PathLike]) -> tuple[list[Path], list[Path]]:
    """List the files to answer for: files as they are, folders with everything below them.

    No ending is asked for: what a file holds is found when it is read. Links to folders are
    followed, each folder once. A file that does not exist stays in the list, like a link that leads
    nowhere: that it cannot be read is said with the others.

    Returns:
        The files, and what is left out in folders: hidden and `LEFT_OUT` files and folders, and
        what is no file, such as a socket.

    Raises:
        InputError: naming empty folders, folders of runs, or that no path is given.
    """
    files, left_out, problems, seen = [], [], [], set()
    for path in map(Path, paths):
        found, errors = [], []
        for here, folders, names in os.walk(path, onerror=errors.append, followlinks=True):
            if (real := os.path.realpath(here)) in seen:
                folders.clear()
                continue
            seen.add(real)
            if METRICS in names:
                problems.append(f"{here} is a run: name it with --run (RUN_DIR in a notebook)")
            inside = [Path(here, name) for name in sorted(names)]
            out = [Path(here, name) for name in sorted(folders) if _is_left_out(name)]
            out += [p for p in inside if _is_left_out(p.name) or (p.exists() and not p.is_file())]
            left_out += out
            found += [file for file in inside if file not in out]
            folders[:] = sorted(name for name in folders if not _is_left_out(name))
        if not path.is_dir():
            found = [path]
        elif not found and not errors:
            problems.append(f"{path} holds no image: name image files or folders of them")
        files += [*found, *(Path(error.filename) for error in errors if path.is_dir())]
    if not paths:
        problems.append("no image is given: name image files or folders of them")
    raise_problems("the images", problems)
    return files, left_out


def save_uploads(uploads: Sequence[dict], folder: Path) -> list[Path]:
    """Write what an ipywidgets.FileUpload holds into a folder, so that it is read like any file.

    Args:
        uploads: the widget's `value`: dicts with name and content (bytes or memoryview).
        folder: made if it is missing. A file of an earlier upload is replaced; of two uploads of
            one name, the second is numbered.

    Returns:
        The files, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, taken = [], set()
    for upload in uploads:
        name = Path(upload["name"].replace("\\", "/")).name
        path, number = folder / name, 1
        while path.name.casefold() in taken:
            number += 1
            path = folder / f"{Path(name).stem} ({number}){Path(name).suffix}"
        taken.add(path.name.casefold())
        path.write_bytes(bytes(upload["content"]))
        paths.append(path)
    return paths


def predict_images(classifier: Classifier, paths: Sequence[str | os.PathLike]) -> pd.DataFrame:
    """Answer for image files; decoding goes on while the nets answer.

    Returns:
        A row per file, in order: image (the path), answer (a class or "unsure"; empty where the
        file cannot be read), p_<class> calibrated and averaged, novelty (distance from the training
        images, 1 is the border; nan without detectors), warning and problem (empty for none).
    """
    columns = [f"p_{dx}" for dx in classifier.classes]
    probabilities = np.full((len(paths), len(columns)), np.nan)
    distances, problems = np.full(len(paths), np.nan), [""] * len(paths)
    for rows, pixels in _read_batches(classifier, paths, problems):
        probabilities[rows], distances[rows] = _answer(classifier, pixels)
    top = probabilities.max(axis=1)
    answers = np.asarray(classifier.classes)[np.nan_to_num(probabilities).argmax(axis=1)]
    answers = np.where(top >= classifier.point.threshold, answers, UNSURE)
    table = pd.DataFrame({"image": [str(path) for path in paths]})
    table["answer"] = np.where(np.isnan(top), "", answers)
    table[columns] = probabilities
    table["novelty"] = distances
    table["warning"] = np.where(distances > 1, WARNING, "")
    table["problem"] = problems
    return table


def describe_answers(classifier: Classifier, table: pd.DataFrame) -> str:
    """Say how many files were answered, how, and what the rules for it were."""
    answered = table[table["problem"] == ""]
    unsure, warned = (answered["answer"] == UNSURE).sum(), (answered["warning"] != "").sum()
    nets = len(classifier.members)
    lines = [
        f"{len(answered)} of {len(table)} files answered by {nets} net{'s' * (nets > 1)}: "
        f"{len(answered) - unsure} with a class, {unsure} unsure; {warned} with a warning.",
        describe_operating_point(classifier.point),
    ]
    for run, member in zip(classifier.runs, classifier.members, strict=True):
        test = run.predictions.part("test")
        if member.detector and len(test):
            found = member.detector.measure_false_alarms(test, classifier.false_alarm_rate)
            lines.append(
                f"{run.path.name} warns of {found['value']:.1%} of its {len(test)} test images "
                f"({found['low']:.1%} to {found['high']:.1%}); wanted is "
                f"{classifier.false_alarm_rate:.1%}. The warning is a check for gross errors."
            )
    return "\n".join([*lines, "For research and teaching. This is not a medical device."])


def check_output(path: Path) -> list[str]:
    """List what keeps a file from being written, before any work is done; makes its folder."""
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):  # fails where a spreadsheet keeps the file to itself
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        why = error.strerror or str(error)
        return [f"{path} cannot be written ({why}): close the program that has it open, or name "
                "another file"]  # fmt: skip
    return []


def write_answers(path: Path, table: pd.DataFrame) -> Path:
    """Write answers as CSV (UTF-8 with a mark, by which spreadsheets know it), and return where.

    What cannot be written there any more is kept beside it under another name, or among the
    system's temporary files.
    """
    spare = f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}.csv"
    places = [path, path.with_name(spare), Path(tempfile.gettempdir()) / spare]
    options = {"encoding": "utf-8-sig", "errors": "backslashreplace", "float_format": "%.6g"}
    problems = []
    for place in places:
        try:
            replace_file(place, lambda partial: table.to_csv(partial, index=False, **options))
            return place
        except OSError as error:
            problems.append(f"{place} cannot be written ({error})")
    raise InputError("the answers", problems)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command line's verb predict."""
    parser.add_argument("images", nargs="*", metavar="IMAGE|FOLDER")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="RUN_DIR",
        help="a finished run; given several times they answer together (the last finished one)",
    )
    parser.add_argument("--csv", type=Path, help="write the answers there; without: print them")
    parser.add_argument("--isic", type=Path, help="write a CSV as the ISIC 2018 challenge takes it")
    help_text = "share of right ones wanted among the given answers; the rest is unsure"
    parser.add_argument("--accuracy", type=float, default=0.9, help=f"{help_text} (%(default)s)")
    help_text = "8: average turned, mirrored views (as the run was scored)"
    parser.add_argument("--views", type=int, choices=VIEWS, default=0, help=help_text)
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=novelty.FALSE_ALARM_RATE,
        help="share of images like the training images that may be warned of (%(default)s)",
    )
    help_text = f"the runs' training images, needed once, to make {novelty.NOVELTY}"
    parser.add_argument("--data-dir", default="", help=help_text)
    parser.add_argument("--no-novelty", action="store_true", help="never warn of unlike images")


def run(options: argparse.Namespace) -> int:
    """Answer as the command line asks.

    Returns:
        The exit code: 0; 1 where no file could be answered; 3 where some could not.

    Raises:
        InputError: everything that is wrong with the arguments.
    """
    problems = [text for path in (options.csv, options.isic) if path for text in check_output(path)]
    (paths, left_out) = _collect(problems, find_images, options.images) or ([], [])
    runs = [_collect(problems, load_run, path) for path in options.run]
    stems = pd.Series([path.stem for path in paths], dtype=str)
    if options.isic and stems.duplicated().any():
        repeated = name_some(stems[stems.duplicated()].unique())
        problems.append(f"--isic names images by their file's stem; more than one has {repeated}")
    for found in filter(None, runs):
        if options.isic and sorted(found.classes) != sorted(CLASSES):
            problems.append(f"--isic needs the classes {', '.join(CLASSES)}, not {found.path}'s")
    raise_problems("predict", problems)
    classifier = load_classifier(
        runs or [find_run()],
        options.accuracy,
        options.views,
        not options.no_novelty,
        options.false_alarms,
        options.data_dir,
    )
    table = predict_images(classifier, paths)
    answered = table[table["problem"] == ""]
    if options.csv:
        print("Answers:", write_answers(options.csv, table))
    else:
        print(table.to_string(index=False, float_format="%.3f"))
    if options.isic and len(answered):
        named = answered.assign(image_id=[Path(path).stem for path in answered["image"]])
        challenge.write_submission(options.isic, Predictions(named, classifier.classes))
    print(describe_answers(classifier, table))
    if left_out:
        print(f"{len(left_out)} left out: {name_some(left_out)}", file=sys.stderr)
    for row in table[table["problem"] != ""].itertuples():
        print(f"{row.image}: {row.problem}", file=sys.stderr)
    return 0 if len(answered) == len(table) else SOME_NOT_ANSWERED if len(answered) else 1


def _collect(problems: list[str], function: Callable, argument):
    try:
        return function(argument)
    except InputError as error:
        problems += [f"{error.where}: {text}" for text in error.problems]
        return None


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in LEFT_OUT


def _read_size(run: Run) -> tuple[int, int]:
    parameters = run.metrics["parameters"]
    return parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"]


def _read_batches(
    classifier: Classifier, paths: Sequence[str | os.PathLike], problems: list[str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield rows and pixels of the images that can be read; fills in the problems of the others."""
    size = BATCH // classifier.views
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


def _answer(classifier: Classifier, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, K) and novelty (N,) of a batch, averaged over nets and views."""
    from helpers.training.batches import list_views, turn_images

    turned = [turn_images(pixels, v) for v in list_views(classifier.views, pixels.shape[1:3])]
    probabilities, distances = [], []
    for member in classifier.members:
        features, found = novelty.read_features(member.reader, np.concatenate(turned))
        p = Predictions(pd.DataFrame(), classifier.classes).with_probabilities(found)
        found = calibration.apply_temperature(p, member.temperature).probabilities
        probabilities.append(found.reshape(len(turned), len(pixels), -1).mean(axis=0))
        if member.detector:
            distances.append(
                member.detector.measure(pixels, features[: len(pixels)]) / member.border
            )
    return np.mean(probabilities, axis=0), np.mean(distances or [[np.nan] * len(pixels)], axis=0)


def main(arguments=None) -> int:  # until helpers/__main__.py calls the two above
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers predict", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))
