"""Collect the scores of finished runs into scores.csv, and write the table of RESULTS.md from it.

python results/collect.py runs/nets runs/batch_norm   add the runs in these folders, or replace them
python results/collect.py                             write the table anew

A row per net and fold: the scores on the test part of the fold, (unseen_…) on those of its images
that lie outside the validation part of fold 0, which is where choices are made, and (val_…) on the
fold's own validation part, whose prior is adjusted by the same images.
"""

import sys
from pathlib import Path

import pandas as pd

from helpers.data.files import InputError
from helpers.evaluation import calibration, comparisons, scores
from helpers.runs import folder

PLACE = Path(__file__).parent
FILE, PAGE = PLACE / "scores.csv", PLACE.parent / "RESULTS.md"
BOX = PLACE.parent / "models/ham10000"  # its predictions tell what fold 0's validation part is
FEWEST_FOLDS = 3  # for an interval: of two folds it would be wider than all possible values
MARKS = "<!-- table -->\n", "<!-- end of table -->"
KEY = ["net", "size", "fold", "seed"]
SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    scores.PRIOR_ADJUSTED: "prior-adjusted",
    "macro_f1": "macro F1",
    "auc": "AUC",
    "melanoma_sensitivity": "melanoma found",
}


def name_net(parameters: dict) -> str:
    """Name a run's net and what is special about its recipe."""
    name = parameters.get("MODEL", "original")
    name += " with the compact net's recipe" if parameters.get("MODEL") == "original" else ""
    name += " with BatchNormalization" if parameters.get("BATCH_NORM") else ""
    name += " with age, sex and site" if parameters.get("USE_METADATA") else ""
    return name + (f" without {parameters['WITHOUT']}" if parameters.get("WITHOUT") else "")


def score(validation, test) -> dict[str, float]:
    """Score test images; the prior is adjusted by the validation part."""
    found = scores.score_predictions(test)
    adjusted = scores.score_predictions(calibration.adjust_prior(validation, test))
    found[scores.PRIOR_ADJUSTED] = adjusted["balanced_accuracy"]
    found["melanoma_sensitivity"] = scores.score_classes(test)["recall"]["mel"]
    return {name: found[name] for name in SHOWN}


def make_rows(run: folder.Run, chosen_on: set[str]) -> list[dict]:
    """Make a run's row, and for a net with age, sex and site another with all of them missing."""
    parameters, split = run.metrics["parameters"], run.metrics["data"]["split"]
    answers = {"": run.predictions}
    if folder.IMAGE_ONLY in run.metrics["files"]:
        answers[", all missing"] = folder.load_run(run.path, image_only=True).predictions
    rows = []
    for suffix, p in answers.items():
        validation, test = p.part("val"), p.part("test")
        unseen = test.select(~test.table["image_id"].isin(chosen_on).to_numpy())
        row = {
            "net": name_net(parameters) + suffix,
            "size": f"{parameters['IMAGE_HEIGHT']}x{parameters['IMAGE_WIDTH']}",
            "fold": parameters["FOLD"],
            "seed": parameters["SEED"],
            "train": split["train"],
            "test": len(test),
            "unseen": len(unseen),
        }
        row |= score(validation, test)
        row |= {f"unseen_{name}": value for name, value in score(validation, unseen).items()}
        training = run.metrics["training"]
        row |= {name: training[name] for name in ("epochs", "seconds", "model_parameters")}
        row |= {"precision": training["precision"], "keras": run.metrics["versions"]["keras"]}
        row |= {f"val_{name}": value for name, value in score(validation, validation).items()}
        rows.append(row)
    return rows


def collect(folders: list[str]) -> pd.DataFrame:
    """Add the finished runs in these folders to the rows that are kept."""
    table = pd.read_csv(FILE) if FILE.exists() else pd.DataFrame(columns=KEY)
    found = [path for where in folders for path in sorted(Path(where).glob("*/metrics.json"))]
    runs = [folder.load_run(path.parent) for path in found]
    chosen_on = set(folder.load_run(BOX).predictions.part("val").table["image_id"])
    rows = pd.DataFrame([row for run in runs for row in make_rows(run, chosen_on)])
    if len(rows) and len(twice := rows[rows.duplicated(KEY)]):
        raise InputError(", ".join(folders), [f"several runs of one {KEY}:\n{twice[KEY]}"])
    table = pd.concat([rows, table], ignore_index=True).drop_duplicates(KEY)
    return table.sort_values(KEY, ignore_index=True)


def write_table(table: pd.DataFrame) -> str:
    """Write means over folds with corrected intervals, below them those on the unseen images.

    A net of fold 0 alone has one line: all of its test images are unseen.
    """
    lines = ["| net | folds | on | " + " | ".join(SHOWN.values()) + " | minutes a fold |"]
    lines.append("|---|---|---|" + "---|" * (len(SHOWN) + 1))
    for (net, size), rows in table.groupby(["net", "size"], sort=False):
        rows = rows.groupby("fold").mean(numeric_only=True)  # seeds of a fold are no folds
        ratio = (rows["test"] / rows["train"]).mean()
        all_unseen = (rows["unseen"] == rows["test"]).all()
        for prefix, images in (("", "test"), ("unseen_", "unseen"))[: 1 if all_unseen else 2]:
            cells = []
            for name in SHOWN:
                mean, half = comparisons.estimate_mean(rows[prefix + name].to_numpy(), ratio)
                half = half if len(rows) >= FEWEST_FOLDS else float("nan")
                ends = pd.Series({"value": mean, "low": mean - half, "high": mean + half})
                text = scores.write_intervals(pd.DataFrame([ends])).iloc[0]
                cells.append(text.replace(" (no interval)", ""))
            title = [f"{net}, {size}", str(len(rows))] if not prefix else ["", ""]
            minutes = f"{rows['seconds'].mean() / 60:.0f}" if not prefix else ""
            lines.append("| " + " | ".join([*title, images, *cells, minutes]) + " |")
    return "\n".join(lines) + "\n"


def main(folders: list[str]) -> None:
    """Update scores.csv and RESULTS.md."""
    table = collect(folders)
    table.to_csv(FILE, index=False, float_format="%.6g")
    start, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    end = rest.split(MARKS[1])[1]
    text = start + MARKS[0] + write_table(pd.read_csv(FILE)) + MARKS[1] + end
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
