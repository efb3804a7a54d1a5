"""Answer for one's own images with finished runs: calibrated probabilities, or "unsure".

python -m helpers.runs.predict RUN_DIR [RUN_DIR …] IMAGE_OR_FOLDER … --csv answers.csv

A folder that holds a metrics.json is a run; everything else is an image or a folder of images.
For research and teaching. This is not a medical device.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from helpers.data import images
from helpers.data.reading import CLASSES
from helpers.evaluation import calibration, challenge, novelty
from helpers.evaluation import heatmaps as explain
from helpers.nets.patient import load_image_model
from helpers.runs import strange
from helpers.runs.folder import METRICS, Run, RunError, load_run, replace_file
from helpers.training import batches as pipelines

UNSURE = "unsure"
WARNING = "unlike the training images"
# Looked for in folders: what can be read, and what telephones write but `images` refuses, so that
# it is listed and not passed over in silence.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".heif")
VIEWS = (1, 8)
BATCH = 64  # images per call of the nets, views counted
SOME_UNREADABLE = 3  # exit code: the other images are answered


@dataclass(frozen=True)
class OperatingPoint:
    """From which probability on an answer is given, and what that came to on held-out images.

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
    """One net of a classifier.

    Attributes:
        model: the Keras model.
        reader: the same, compiled (`novelty.make_reader`).
        temperature: of its calibration.
        detector: of images unlike its training images, or None.
    """

    model: keras.Model
    reader: Callable
    temperature: float
    detector: novelty.Detector | None


@dataclass(frozen=True)
class Classifier:
    """One or several nets that answer together; made by `load_classifier`.

    Attributes:
        classes: K class codes.
        size: (height, width) in pixels that the nets take.
        members: the nets.
        point: the operating point.
        views: 1 or 8, over how many turned and mirrored views to average.
        false_alarm_rate: share of images like the training images that may be warned of.
    """

    classes: list[str]
    size: tuple[int, int]
    members: tuple[Member, ...]
    point: OperatingPoint
    views: int
    false_alarm_rate: float


def load_classifier(
    loaded: Sequence[Run],
    accuracy: float = 0.9,
    views: int | None = None,
    warn: bool = True,
    false_alarm_rate: float = novelty.FALSE_ALARM_RATE,
    data_dir: str = "",
) -> Classifier:
    """Load the nets of runs that are to answer together.

    Args:
        loaded: runs with the same classes and image size; an ensemble stands for its members. The
            probabilities of all nets are calibrated, then averaged.
        accuracy: wanted share of right ones among the given answers, see
            `choose_operating_point`.
        views: 1, or 8 for test-time averaging, see `pipelines.turn_images`; None for what the first
            run was scored with.
        warn: score how unlike the training images an image is (`novelty.load_detector`).
        false_alarm_rate: of that warning.
        data_dir: see `novelty.load_detector`.

    Raises:
        RunError: naming all that keeps the runs from answering together, or what is out of range.
    """
    loaded = _list_members(loaded)
    problems = find_mismatches(loaded)
    if views is None and loaded:
        views = loaded[0].metrics["parameters"].get("VIEWS", 1)
    if views not in VIEWS:
        problems.append(f"views is {views}, wanted is {' or '.join(map(str, VIEWS))}")
    for name, value in (("accuracy", accuracy), ("false-alarm rate", false_alarm_rate)):
        if not 0 < value <= 1:
            problems.append(f"the {name} is {value}, wanted is a share above 0 and at most 1")
    if problems:
        raise RunError("\n".join(problems))
    members, calibrated = [], []
    for run in loaded:
        predictions, temperatures = calibration.calibrate_run(run)
        calibrated.append(predictions)
        model = load_image_model(run.model_paths[0])
        detector = novelty.load_detector(run, data_dir) if warn else None
        members.append(Member(model, novelty.make_reader(model), temperatures[0], detector))
    classes = loaded[0].classes
    point = choose_operating_point(pd.concat(calibrated, ignore_index=True), classes, accuracy)
    return Classifier(
        classes, _read_size(loaded[0]), tuple(members), point, views, false_alarm_rate
    )


def find_mismatches(loaded: Sequence[Run]) -> list[str]:
    """List what keeps runs from answering together: other classes or sizes than the first's."""
    if not loaded:
        return [f"no run given: a run is a folder with {METRICS}, which the main notebook writes"]
    first, problems = loaded[0], []
    for run in loaded[1:]:
        if run.classes != first.classes:
            problems.append(
                f"{run.path} has the classes {', '.join(run.classes)}, {first.path} has "
                f"{', '.join(first.classes)}: leave one of them out"
            )
        if _read_size(run) != _read_size(first):
            (a, b), (c, d) = _read_size(run), _read_size(first)
            problems.append(
                f"{run.path} takes images of {a}x{b} pixels, {first.path} of {c}x{d}: leave one "
                "of them out"
            )
    return problems


def choose_operating_point(
    predictions: pd.DataFrame, classes: Sequence[str], accuracy: float
) -> OperatingPoint:
    """Choose from which probability on answers are given: the lowest with the wanted accuracy.

    Among the thresholds at which the validation images that are answered reach the accuracy, the
    one that answers most (selective prediction: Geifman and El-Yaniv, NeurIPS 2017). Of several
    runs, the validation images of all are taken, each as its own net answered it; their average is
    seldom less often right at the same probability. Of a net with REFIT they are the answers that
    it gave before it was trained on these images too.

    Args:
        predictions: a row per image with split, dx and calibrated p_<class>.
        classes: K class codes.
        accuracy: wanted share of right answers, 0 … 1.
    """
    probabilities = predictions[[f"p_{dx}" for dx in classes]].to_numpy()
    surety = probabilities.max(axis=1)
    is_right = np.asarray(classes)[probabilities.argmax(axis=1)] == predictions["dx"].to_numpy()
    parts = {part: (predictions["split"] == part).to_numpy() for part in ("val", "test")}
    order = np.argsort(-surety[parts["val"]], kind="stable")
    ranked = surety[parts["val"]][order]
    share_right = is_right[parts["val"]][order].cumsum() / np.arange(1, len(order) + 1)
    is_last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    reached = np.flatnonzero((share_right >= accuracy) & is_last_of_equals)
    threshold = float(ranked[reached[-1]]) if len(reached) else np.inf
    rows = {}
    for part, rows_of in parts.items():
        answered = rows_of & (surety >= threshold)
        rows[part] = {
            "images": int(rows_of.sum()),
            "answered": answered.sum() / max(rows_of.sum(), 1),
            "right": is_right[answered].mean() if answered.any() else np.nan,
        }
    return OperatingPoint(threshold, accuracy, pd.DataFrame.from_dict(rows, orient="index"))


def describe_operating_point(point: OperatingPoint) -> str:
    """Say in a sentence or two when the answer is "unsure", and what that came to."""
    if np.isinf(point.threshold):
        return (
            f"No threshold makes {point.accuracy:.0%} of the answers on the validation images "
            "right: every image is unsure. Ask for a lower accuracy, or train a better net."
        )
    names = {"val": "validation", "test": "test"}
    said = [
        f"{row['answered']:.0%} of the {row['images']:.0f} {names[part]} images are answered, "
        f"{row['right']:.0%} of these right"
        for part, row in point.outcomes.iterrows()
        if row["images"]
    ]
    return (
        f"An image is unsure where its highest probability is below {point.threshold:.2f}. "
        f"With that, {'; '.join(said)}."
    )


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """List image files: files as they are, folders with all images below them, sorted.

    A file that does not exist stays in the list; that it cannot be read is said with the others.
    """
    found = []
    for path in map(Path, paths):
        inside = path.rglob("*") if path.is_dir() else [path]
        found += sorted(
            file
            for file in inside
            if file == path
            or (
                file.suffix.lower() in SUFFIXES
                and file.is_file()
                and not file.name.startswith(".")
                and "__MACOSX" not in file.parts
            )
        )
    return found


def save_uploads(uploads: Sequence[dict], folder: Path) -> list[Path]:
    """Write what an ipywidgets.FileUpload holds into a folder, so that it is read like any file.

    Args:
        uploads: the widget's `value`: dicts with name and content (bytes or memoryview).
        folder: made if it is missing. A file of the same name is replaced.

    Returns:
        The files, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / Path(upload["name"].replace("\\", "/")).name for upload in uploads]
    for path, upload in zip(paths, uploads, strict=True):
        path.write_bytes(bytes(upload["content"]))
    return paths


def predict_images(classifier: Classifier, paths: Sequence[str | Path]) -> pd.DataFrame:
    """Answer for image files; decoding goes on while the nets answer.

    Args:
        classifier: see `load_classifier`.
        paths: image files, see `find_images`.

    Returns:
        A row per file, in order: image (the path), answer (a class or "unsure"; empty where the
        file cannot be read), p_<class> calibrated and averaged, novelty (1 is the border; nan
        without detectors), warning and problem (both empty where there is none).
    """
    columns = [f"p_{dx}" for dx in classifier.classes]
    probabilities = np.full((len(paths), len(columns)), np.nan)
    strangeness = np.full(len(paths), np.nan)
    problems = [""] * len(paths)
    for rows, pixels in _read_batches(classifier, paths, problems):
        probabilities[rows], strangeness[rows] = _answer(classifier, pixels)
    top = probabilities.max(axis=1)
    answers = np.asarray(classifier.classes)[np.nan_to_num(probabilities).argmax(axis=1)]
    answers = np.where(top >= classifier.point.threshold, answers, UNSURE)
    table = pd.DataFrame({"image": [str(path) for path in paths]})
    table["answer"] = np.where(np.isnan(top), "", answers)
    table[columns] = probabilities
    table["novelty"] = strangeness
    table["warning"] = np.where(strangeness > 1, WARNING, "")
    table["problem"] = problems
    return table


def check_output(path: Path) -> list[str]:
    """List what keeps a file from being written, before any work is done; makes its folder."""
    if path.is_dir():
        return [f"{path} is a folder: name a file"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path.with_name(f".{path.name}.try"), lambda partial: partial.touch())
        path.with_name(f".{path.name}.try").unlink()
    except OSError as error:
        return [f"{path} cannot be written ({error.strerror}): name another file"]
    return []


def sort_arguments(paths: Sequence[str]) -> tuple[list[Path], list[Path], list[str]]:
    """Tell runs from images: a folder with metrics.json is a run.

    Returns:
        The runs, the image files, and the problems: no run, no image, folders without images.
    """
    run_dirs = [Path(path) for path in paths if (Path(path) / METRICS).is_file()]
    others = [Path(path) for path in paths if Path(path) not in run_dirs]
    found, problems = [], []
    for path in others:
        files = find_images([path])
        found += files
        if not files:
            problems.append(
                f"{path} holds no image ({', '.join(SUFFIXES)}) and no {METRICS}, so it is "
                "neither images nor a finished run"
            )
    if not run_dirs:
        missing = [str(path) for path in others if not path.exists()]
        hint = f"; there is no {', '.join(missing)}" if missing else ""
        problems.append(
            f"no run among the arguments: a run is a folder with {METRICS}, which the main "
            f"notebook writes{hint}"
        )
    if not others:
        problems.append("no image among the arguments: name image files or folders of them")
    return run_dirs, found, problems


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 where nothing could be answered; 3 where some files were unreadable and
        the others are answered.
    """
    options = _make_parser().parse_args(arguments)
    run_dirs, paths, problems = sort_arguments(options.paths)
    for path in filter(None, (options.csv, options.isic)):
        problems += check_output(path)
    if options.isic and (repeated := _find_repeated([path.stem for path in paths])):
        problems.append(f"--isic names images by their file's stem; more than one has {repeated}")
    try:
        loaded = _list_members([load_run(path) for path in run_dirs])
        problems += find_mismatches(loaded) if loaded else []
        if options.isic and loaded and sorted(loaded[0].classes) != sorted(CLASSES):
            problems.append(f"--isic needs the classes {', '.join(CLASSES)}")
        if problems:
            raise RunError("\n".join(problems))
        classifier = load_classifier(
            loaded,
            options.accuracy,
            options.views,
            options.novelty,
            options.false_alarms,
            options.data_dir,
        )
    except ValueError as error:  # of runs, data sets and images
        print(error, file=sys.stderr)
        return 1
    table = predict_images(classifier, paths)
    answered = table[table["problem"] == ""]
    if options.csv:
        replace_file(
            options.csv,
            lambda partial: table.to_csv(partial, index=False, float_format="%.6g"),
        )
    else:
        print(table.to_string(index=False, float_format="%.3f"))
    if options.isic and len(answered):
        challenge.write_submission(
            options.isic,
            [Path(image).stem for image in answered["image"]],
            answered[[f"p_{dx}" for dx in CLASSES]].to_numpy(),
        )
    print(describe_answers(classifier, table))
    for row in table[table["problem"] != ""].itertuples():
        print(row.problem, file=sys.stderr)
    if not len(answered):
        return 1
    return SOME_UNREADABLE if len(answered) < len(table) else 0


def describe_answers(classifier: Classifier, table: pd.DataFrame) -> str:
    """Say how many images were answered, how, and what the rules for it were."""
    readable = table[table["problem"] == ""]
    unsure, warned = (readable["answer"] == UNSURE).sum(), (readable["warning"] != "").sum()
    nets = len(classifier.members)
    lines = [
        f"{len(readable)} of {len(table)} images read by {nets} net{'s' * (nets > 1)}: "
        f"{len(readable) - unsure} answered, {unsure} unsure, {warned} with a warning.",
        describe_operating_point(classifier.point),
    ]
    detectors = [member.detector for member in classifier.members if member.detector]
    for number, detector in enumerate(detectors, start=1):
        found = detector.measure_false_alarms(classifier.false_alarm_rate)
        name = f"Net {number}: " if len(detectors) > 1 else ""
        lines.append(
            f"{name}False alarms of the warning: wanted at most {classifier.false_alarm_rate:.1%}; "
            f"on the {len(detector.test)} test images {found['value']:.1%} "
            f"({found['low']:.1%} to {found['high']:.1%})."
        )
    lines.append("For research and teaching. This is not a medical device.")
    return "\n".join(lines)


def measure_warnings(classifier: Classifier, variants: int, seed: int = 0) -> pd.DataFrame:
    """Measure how often pictures that show no lesion are warned of, with 95 % intervals.

    Args:
        classifier: with detectors.
        variants: pictures per kind of `strange.KINDS`.
        seed: of the pictures.

    Returns:
        value, low and high, each 0 … 1, for `test images` (false alarms of the first net, interval
        over lesions) and for each kind (Wilson's interval).
    """
    detector = classifier.members[0].detector
    rows = {"test images": detector.measure_false_alarms(classifier.false_alarm_rate)}
    for kind, pixels in strange.draw_variants(variants, classifier.size, seed):
        rows[kind] = novelty.measure_rate(_score_novelty(classifier, pixels) > 1)
    return pd.DataFrame.from_dict(rows, orient="index")


def plot_warnings(rates: pd.DataFrame, false_alarm_rate: float) -> Figure:
    """Draw the table of `measure_warnings` with the wanted false-alarm rate as a line."""
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    spread = np.abs(rates[["low", "high"]].to_numpy() - rates[["value"]].to_numpy())
    places = np.arange(len(rates))[::-1]
    axes.errorbar(rates["value"], places, xerr=spread.T, fmt="o", capsize=3)
    axes.axvline(false_alarm_rate, color="0.6", linestyle="--", linewidth=1)
    axes.annotate("wanted false alarms", (false_alarm_rate + 0.01, 0), color="0.4", fontsize=8)
    axes.set(yticks=places, yticklabels=rates.index, xlabel="share warned of", xlim=(-0.03, 1.03))
    axes.set_title("Warnings, with 95 % intervals")
    sns.despine(figure)
    return figure


def plot_answers(
    classifier: Classifier, table: pd.DataFrame, images_shown: int = 12, columns: int = 2
) -> Figure:
    """Draw images with their answers: the image, Grad-CAM of its top class, its probabilities.

    Args:
        classifier: the one that answered; the heat is its first net's.
        table: as `predict_images` returns it. Files that could not be read are left out.
        images_shown: the first so many images.
        columns: images side by side.
    """
    shown = table[table["problem"] == ""].head(images_shown)
    probabilities = shown[[f"p_{dx}" for dx in classifier.classes]].to_numpy()
    pixels = [images.read_image(path, classifier.size) for path in shown["image"]]
    heats = explain.compute_grad_cam(
        classifier.members[0].model, np.stack(pixels), probabilities.argmax(axis=1)
    )
    rows = -(-len(shown) // columns)
    figure, axs = plt.subplots(
        rows, 3 * columns, figsize=(4.8 * columns, 1.45 * rows), layout="constrained", squeeze=False
    )
    for axes in axs.flat:
        axes.axis("off")
    panels = axs.reshape(-1, 3)
    for trio, row, heat, found in zip(
        panels, shown.itertuples(), heats, probabilities, strict=False
    ):
        picture = images.read_image(row.image)
        trio[0].imshow(picture)
        trio[0].set_title(Path(row.image).stem[:14], fontsize=8)
        trio[1].imshow(explain.overlay_heat(picture, heat))
        colour = "firebrick" if row.warning else "0.4" if row.answer == UNSURE else "black"
        said = f"{row.answer}, but strange" if row.warning else row.answer
        trio[1].set_title(said, fontsize=8, color=colour)
        _draw_bars(trio[2], found, classifier)
    return figure


def _draw_bars(axes: plt.Axes, probabilities: np.ndarray, classifier: Classifier) -> None:
    """Draw the three highest probabilities and the threshold below which the answer is unsure."""
    top = np.argsort(-probabilities)[:3][::-1]
    axes.axis("on")
    axes.barh(range(len(top)), probabilities[top], height=0.7)
    axes.axvline(min(classifier.point.threshold, 1), color="0.6", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), xticks=[0, 1], yticks=range(len(top)))
    axes.set_yticklabels([classifier.classes[k] for k in top])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.runs.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="RUN_DIR|IMAGE|FOLDER")
    parser.add_argument("--csv", type=Path, help="write the answers there; without: print them")
    parser.add_argument("--isic", type=Path, help="write a CSV as the ISIC 2018 challenge takes it")
    parser.add_argument(
        "--accuracy",
        type=float,
        default=0.9,
        help="share of right ones wanted among the given answers; the rest is unsure (%(default)s)",
    )
    parser.add_argument(
        "--views",
        type=int,
        choices=VIEWS,
        help="8: average turned, mirrored views (as the run was scored)",
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=novelty.FALSE_ALARM_RATE,
        help="share of images like the training images that may be warned of (%(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        default="",
        help=f"the runs' training images, needed once, to make {novelty.NOVELTY}",
    )
    parser.add_argument(
        "--no-novelty",
        action="store_false",
        dest="novelty",
        help="do without the warning of images unlike the training images",
    )
    return parser


def _list_members(loaded: Sequence[Run]) -> list[Run]:
    """Put the members, which are runs, in the place of ensembles."""
    return [load_run(path.parent, image_only=True) for run in loaded for path in run.model_paths]


def _read_size(run: Run) -> tuple[int, int]:
    parameters = run.metrics["parameters"]
    return parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"]


def _read_batches(
    classifier: Classifier, paths: Sequence[str | Path], problems: list[str]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield rows and pixels of the images that can be read; fills in the problems of the others."""
    size = BATCH // classifier.views
    rows, pixels = [], []
    decodings = images.decode_images(paths, classifier.size, ahead=2 * size)
    for row, decoding in enumerate(decodings):
        try:
            pixels.append(decoding.result())
            rows.append(row)
        except images.ImageError as error:
            problems[row] = "; ".join(error.problems)
        if len(rows) == size:
            yield rows, np.stack(pixels)
            rows, pixels = [], []
    if rows:
        yield rows, np.stack(pixels)


def _answer(classifier: Classifier, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, K) and novelty (N,) of a batch, averaged over nets and views."""
    views = np.stack([pipelines.turn_images(pixels, view) for view in range(classifier.views)])
    probabilities, strangeness = [], []
    for member in classifier.members:
        features, found = novelty.read_features(member.reader, views.reshape(-1, *pixels.shape[1:]))
        calibrated = calibration.apply_temperature(found, member.temperature)
        probabilities.append(calibrated.reshape(*views.shape[:2], -1).mean(axis=0))
        strangeness.append(_score(classifier, member, pixels, features[: len(pixels)]))
    return np.mean(probabilities, axis=0), np.mean(strangeness, axis=0)


def _score_novelty(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """Return the novelty (N,) of images, averaged over nets."""
    found = [
        _score(classifier, member, pixels, novelty.read_features(member.reader, pixels)[0])
        for member in classifier.members
    ]
    return np.mean(found, axis=0)


def _score(
    classifier: Classifier, member: Member, pixels: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Return one net's novelty (N,), 1 at the border; nan without a detector."""
    if not member.detector:
        return np.full(len(pixels), np.nan)
    threshold = member.detector.choose_threshold(classifier.false_alarm_rate)
    return member.detector.score(pixels, features) / threshold


def _find_repeated(names: list[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1})[:5])


if __name__ == "__main__":
    sys.exit(main())
