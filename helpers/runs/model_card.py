"""A run's MODEL_CARD.md: what the model is for, how good it is, for whom, how to make it again.

The sections are those of Mitchell et al., Model Cards for Model Reporting, FAT* 2019,
doi:10.1145/3287560.3287596; the front matter is what model hubs read
(https://huggingface.co/docs/hub/model-cards). For research and teaching; not a medical device.
"""

import shlex
from pathlib import Path

import pandas as pd
import yaml

from helpers.data.reading import CLASS_NAMES
from helpers.data.sample import FIRST_ID
from helpers.evaluation.judgement import write_intervals, write_share
from helpers.evaluation.subgroups import FEWEST_LESIONS, find_departures, write_scores
from helpers.runs.folder import Run, replace_file

CARD = "MODEL_CARD.md"
FIGURE = "figures/judgement.png"
# Our names of the scores to those that hubs know.
HUB_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "f1",
    "auc": "roc_auc",
}


def write_model_card(
    run: Run,
    part: str,
    *,
    overall: pd.DataFrame,
    by_class: pd.DataFrame,
    calibration: pd.DataFrame,
    temperatures: tuple[float, ...],
    points: pd.DataFrame,
    per_thousand: pd.DataFrame,
    prevalence: float,
    by_group: pd.DataFrame | None,
) -> Path:
    """Write MODEL_CARD.md into the run's folder, replaced in one step.

    Args:
        run: the run as it was loaded, with the probabilities that the model gave.
        part: which part of it was judged; not "val", whose figures would flatter the model.
        overall: as from `scores.score_with_intervals`.
        by_class: as from `judgement.judge_classes`.
        calibration: a row before and one after temperature scaling, the columns those of
            `calibration.score_calibration`.
        temperatures: as from `calibration.calibrate_run`.
        points: as from `judgement.judge_operating_points`.
        per_thousand: as from `judgement.count_per_thousand`.
        prevalence: that of `per_thousand`, 0 … 1.
        by_group: as from `subgroups.score_subgroups`; None where the metadata were not found.

    Returns:
        The file.
    """
    sections = [
        _describe_model(run),
        _describe_use(run),
        _describe_data(run, part),
        _describe_metrics(run, part, overall, by_class),
        _describe_calibration(calibration, temperatures),
        _describe_points(points, per_thousand, prevalence),
        _describe_groups(by_group),
        _describe_caveats(),
        _describe_making(run),
    ]
    front = yaml.safe_dump(
        make_front_matter(run, part, overall), sort_keys=False, allow_unicode=True
    )
    text = "\n\n".join([f"---\n{front}---", *sections]) + "\n"
    path = run.path / CARD
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def make_front_matter(run: Run, part: str, overall: pd.DataFrame) -> dict:
    """Make what model hubs read: licence, tags and the results as a model-index.

    Args:
        run: a finished run.
        part: which part of it was judged.
        overall: as from `scores.score_with_intervals`; scores that are nan are left out.
    """
    drawn = is_drawn(run)
    values = overall["value"].dropna()
    data = "drawn sample" if drawn else "HAM10000"
    metrics = [
        {"type": HUB_METRICS[name], "name": name.replace("_", " "), "value": round(value, 4)}
        for name, value in values.items()
    ]
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": data.lower().replace(" ", "-"), "name": data, "split": part},
        "metrics": metrics,
    }
    return {
        "license": "mit" if drawn else "cc-by-nc-4.0",
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["dermatoscopy", "skin-lesions", *(["drawn-images"] if drawn else [])],
        "datasets": [result["dataset"]["type"]],
        "metrics": [metric["type"] for metric in metrics],
        "model-index": [{"name": _name_run(run), "results": [result]}],
    }


def is_drawn(run: Run) -> bool:
    """Whether the run saw the drawn sample: only its images are numbered from 9,000,000."""
    numbers = run.predictions["image_id"].str.extract(r"^ISIC_(\d{7})$")[0].astype(float)
    return bool((numbers >= FIRST_ID).all())


def _name_run(run: Run) -> str:
    return run.path.resolve().name


def _describe_model(run: Run) -> str:
    parameters, training = run.metrics["parameters"], run.metrics["training"]
    nets = len(run.model_paths)
    kind = "A convolutional network" if nets == 1 else f"The mean of {nets} convolutional networks"
    lines = [
        f"# {_name_run(run)}",
        "For research and teaching. This is not a medical device.",
        "## Model details",
        f"{kind} that takes a dermatoscopic image of "
        f"{parameters['IMAGE_HEIGHT']}x{parameters['IMAGE_WIDTH']} pixels (height x width, "
        "RGB, uint8, not scaled) and gives the probabilities of "
        f"{len(run.classes)} diagnoses, in this order:",
        "\n".join(f"- `{dx}`: {CLASS_NAMES.get(dx, dx)}" for dx in run.classes),
    ]
    if parameters.get("USE_METADATA"):
        lines.append(
            "Beside the image it takes age, sex and site, each of which may be missing; all scores "
            "below are with what was known. metrics.json has the test scores without any."
        )
    if parameters.get("REFIT"):
        lines.append(
            "Trained twice: first on the training part, to answer the validation part, from which "
            "the temperature and the operating points below were chosen; then anew on both parts. "
            "That is the saved model, and the one that answered the test."
        )
    if "model_parameters" in training:
        lines.append(f"{training['model_parameters']:,} parameters.")
    if is_drawn(run):
        lines.insert(
            1,
            "> **TRAINED AND JUDGED ON DRAWN IMAGES.** A program drew them; none shows skin. Every "
            "figure below says that the steps work, and nothing about any lesion.",
        )
    return "\n\n".join(lines)


def _describe_use(run: Run) -> str:
    licence = (
        "The drawn images carry no restriction; the model is under the MIT licence."
        if is_drawn(run)
        else "Trained on HAM10000 (CC BY-NC 4.0): not for commercial use."
    )
    return "\n\n".join(
        [
            "## Intended use",
            "To learn and to teach how such models are trained and judged, and as a baseline in "
            "research. " + licence,
            "Not for: diagnosis, triage, second opinions or reassurance, of oneself or of others; "
            "photographs taken without a dermatoscope; lesions of other kinds than those above "
            "(each image gets one of the answers all the same); any decision about a "
            "person.",
        ]
    )


def _describe_data(run: Run, part: str) -> str:
    data = run.metrics["data"]
    rows = run.predictions[run.predictions["split"] == part]
    images, lesions = len(rows), rows["group"].nunique()
    if is_drawn(run):
        source = "The images were drawn by this project (`helpers/sample.py`), in the layout of "
        source += "HAM10000."
    else:
        source = (
            "HAM10000 (Tschandl, Rosendahl and Kittler, Sci. Data 5:180161, 2018, "
            "doi:10.1038/sdata.2018.161), CC BY-NC 4.0: dermatoscopic images from Vienna, Austria"
            ", and Queensland, Australia, of lesions that were excised or followed up. Skin types "
            "are not recorded."
        )
    if part == "official":
        held = "It is the official test of the ISIC 2018 challenge, task 3."
    elif len(run.model_paths) > 1:
        held = (
            "Each image was predicted by the one network that neither trained on it nor was chosen "
            "by it; the mean of all networks has not been measured on this part."
        )
    else:
        held = "It was kept out of the training and of every choice."
    return "\n\n".join(
        [
            "## Training and evaluation data",
            source,
            f"The run used {data['images']:,} images of {data['lesions']:,} lesions, split by "
            "lesion: no lesion is in two parts. What follows was measured on the part "
            f"`{part}`, {images:,} images of {lesions:,} lesions. {held}",
        ]
    )


def _describe_metrics(run: Run, part: str, overall: pd.DataFrame, by_class: pd.DataFrame) -> str:
    rows = run.predictions[run.predictions["split"] == part]
    baseline = rows["dx"].value_counts(normalize=True)
    table = write_intervals(by_class).unstack("figure", sort=False)
    counts = by_class.xs("sensitivity", level="figure")[["images", "lesions"]]
    parts = [
        "## Metrics",
        "In brackets are 95 % intervals by bootstrap over lesions. They hold for this one "
        "trained model: another seed or split is not in them.",
        _write_table(pd.DataFrame({"value": write_intervals(overall)}).rename_axis("score")),
        f"Always answering {baseline.index[0]} has the accuracy {write_share(baseline.iloc[0])}. "
        "By class, each against the others; `-` is not defined:",
        _write_table(counts.join(table)),
    ]
    if (run.path / FIGURE).is_file():
        parts.append(f"![Reliability diagram and ROC curve of melanoma]({FIGURE})")
    return "\n\n".join(parts)


def _describe_calibration(calibration: pd.DataFrame, temperatures: tuple[float, ...]) -> str:
    shown = ", ".join(f"{temperature:.3f}" for temperature in temperatures)
    return "\n\n".join(
        [
            "## Calibration",
            f"Temperature scaling fitted to the validation part: T = {shown}. The saved model "
            "gives the probabilities before scaling; calibrated are softmax(log p / T). A perfect "
            "model would show the error by chance on as many images.",
            _write_table(calibration.map(write_share).rename_axis("temperature scaling")),
        ]
    )


def _describe_points(points: pd.DataFrame, per_thousand: pd.DataFrame, prevalence: float) -> str:
    table = write_intervals(points).unstack("figure", sort=False).join(per_thousand.astype(object))
    table["ppv"] = per_thousand["ppv"].map(write_share)
    return "\n\n".join(
        [
            "## Operating points",
            "Thresholds on the calibrated probability, chosen on the validation part for the "
            "wanted sensitivity. `malignant` is mel, bcc or akiec together. The counts are for "
            f"1,000 images of which {round(1000 * prevalence)} have what is looked for; ppv is "
            "the share of the alarms that are then right. `at_worst` is at the lower ends of the "
            "intervals.",
            _write_table(table),
        ]
    )


def _describe_groups(by_group: pd.DataFrame | None) -> str:
    title = "## Limits by group"
    if by_group is None:
        return f"{title}\n\nNot judged: the metadata of the run's data were not found."
    groups = by_group.xs("accuracy", level="figure").drop(("all", "all"))
    few = int((groups["lesions"] < FEWEST_LESIONS).sum())
    said = []
    for figure in ("sensitivity", "specificity"):
        named = [" ".join(names) for names in find_departures(by_group, figure).index]
        said.append(f"{figure} of {', '.join(named) or 'no group'}")
    return "\n\n".join(
        [
            title,
            "Accuracy beside always answering the group's commonest class, and the operating "
            "point for malignant-or-not chosen for a sensitivity of .90. A figure that rests on "
            f"fewer than {FEWEST_LESIONS} lesions is not given (`too few`); {few} of {len(groups)} "
            "groups are too small altogether.",
            "The interval does not hold the figure of all images for: "
            f"{'; '.join(said)}. Of twenty groups one is expected by chance.",
            _write_table(write_scores(by_group)),
        ]
    )


def _describe_caveats() -> str:
    return "\n\n".join(
        [
            "## Ethical considerations and caveats",
            "A missed melanoma costs more than a false alarm, and a confident wrong answer costs "
            "most. The share of malignant lesions in the data is far from that of any practice, "
            "and the sources differ in camera and in diagnoses: a model may have learned the "
            "source. Groups that are absent or too small in the data are not judged at all, and "
            "skin type is one that nobody recorded.",
        ]
    )


def _describe_making(run: Run) -> str:
    metrics = run.metrics
    parts = ["## How to reproduce"]
    if len(run.model_paths) > 1:
        names = ", ".join(path.parent.name for path in run.model_paths)
        parts.append(f"The models and the predictions of these runs, joined: {names}.")
    else:
        given = {n: v for n, v in metrics["parameters"].items() if n != "RUN_DIR" and v != ""}
        command = ["python", "-m", "helpers.runs.execution", "Skin_Cancer_Detection.ipynb"]
        command.append(f"runs/{_name_run(run)}")
        for name, value in given.items():
            command += ["-p", name, str(value)]
        parts.append(f"```\n{shlex.join(command)}\n```")
    parameters = pd.Series(metrics["parameters"], name="value").map(str).rename_axis("parameter")
    versions = pd.Series(metrics["versions"], name="version").rename_axis("package")
    parts += [
        _write_table(parameters.to_frame()),
        _write_table(versions.to_frame()),
        f"Fingerprint of ids, labels, split and pixels: `{metrics['data']['fingerprint']}`. "
        "Another one means other data. The same seed gives the same figures on the same machine "
        "only.",
    ]
    return "\n\n".join(parts)


def _write_table(table: pd.DataFrame) -> str:
    """Write a table in Markdown, its index as the first columns."""
    table = table.reset_index()
    rows = [table.columns, ["---"] * table.shape[1], *table.to_numpy(dtype=object)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
