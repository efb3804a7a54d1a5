"""The model card: front matter that parses, the judgement's own scores, loud where drawn."""

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.data.metadata import CLASSES
from helpers.data.sample import FIRST_ID
from helpers.evaluation import calibration, scores
from helpers.evaluation.predictions import Predictions
from helpers.runs import export
from helpers.runs.folder import Run


def make_run(tmp_path, first=24306, **parameters):
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(7), 40)
    probabilities = rng.dirichlet(np.ones(7), 280)
    probabilities[np.arange(280), labels] += 0.4
    probabilities /= probabilities.sum(1, keepdims=True)
    lesions = [f"HAM_{i:07}" for i in range(280)]
    table = pd.DataFrame(
        {
            "image_id": [f"ISIC_{first + i:07}" for i in range(280)],
            "lesion_id": lesions,
            "group": lesions,
            "split": np.where(np.arange(280) < 140, "val", "test"),
            "dx": np.array(CLASSES)[labels],
            "sex": np.where(np.arange(280) < 270, "male", "female"),
        }
    ).join(pd.DataFrame(probabilities, columns=[f"p_{dx}" for dx in CLASSES]))
    size = {"DATA_DIR": "data/my images", "RUN_DIR": "runs/x", "IMAGE_HEIGHT": 28}
    metrics = {
        "classes": CLASSES,
        "parameters": {**size, "IMAGE_WIDTH": 36, **parameters},
        "data": {"images": 1400, "lesions": 1200, "fingerprint": "0123456789abcdef"},
        "training": {"model_parameters": 672_007},
        "code": {"Skin_Cancer_Detection.ipynb": "0123"},
        "versions": {"python": "3.12.0", "keras": "3.15.1"},
    }
    folder = tmp_path / "my_run"
    folder.mkdir(exist_ok=True)
    predictions = Predictions(table, CLASSES, resamples=100)
    return Run(folder, metrics, pd.DataFrame(), predictions, folder / "model.keras")


def judge(run, part="test"):
    p, calibrated = run.predictions.part(part), calibration.calibrate_run(run)[0]
    points = calibration.judge_operating_points(
        calibration.choose_operating_points(calibrated.part("val")), calibrated.part(part)
    )
    errors = {"before": calibration.score_calibration(p), "after": {"log_loss": 0.125}}
    return {
        "part": part,
        "overall": scores.score_with_intervals(p),
        "by_class": scores.judge_classes(p),
        "calibration": pd.DataFrame(errors).T,
        "temperature": 1.25,
        "points": points,
        "per_thousand": calibration.count_per_thousand(points, 0.02),
        "prevalence": 0.02,
        "by_group": None,
    }


def write_card(run, **changes):
    judgement = judge(run) | changes
    return export.write_model_card(run, judgement).read_text(encoding="utf-8"), judgement


def read_front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def read_table(text, heading, number=0):
    """Read the numbered table under a heading: rows of cells, the first one the names."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = [block for block in section.split("\n\n") if block.strip().startswith("|")]
    lines = blocks[number].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return [rows[0], *rows[2:]]


def test_front_matter_holds_the_scores_that_hubs_read(tmp_path):
    text, judgement = write_card(make_run(tmp_path))
    front = read_front_matter(text)
    assert front["license"] == "cc-by-nc-4.0"
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"type": "ham10000", "name": "HAM10000", "split": "test"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    overall = judgement["overall"]["value"]
    assert values["accuracy"] == pytest.approx(overall["accuracy"], abs=1e-4)
    assert values["roc_auc"] == pytest.approx(overall["auc"], abs=1e-4)
    assert front["metrics"] == list(values)
    assert text.count("This is not a medical device.") == 1
    text, _ = write_card(make_run(tmp_path), overall=judgement["overall"].drop("auc"))
    assert "roc_auc" not in read_front_matter(text)["metrics"]


def test_scores_stand_with_their_intervals(tmp_path):
    text, judgement = write_card(make_run(tmp_path))
    names, *rows = read_table(text, "Metrics", 1)
    by_class = scores.write_intervals(judgement["by_class"])
    row = dict(zip(names, next(row for row in rows if row[0] == "mel"), strict=True))
    assert row["sensitivity"] == by_class["mel", "sensitivity"]
    assert row["auc"] == by_class["mel", "auc"]
    assert (row["images"], row["lesions"]) == ("20", "20")
    assert ["after", ".125", "-", "-"] in read_table(text, "Calibration")
    names, *rows = read_table(text, "Operating points")
    told = scores.write_intervals(judgement["points"])
    wanted = judgement["points"].index[0][1]
    assert dict(zip(names, rows[0], strict=True))["specificity"] in told.to_list()
    assert rows[0][1] == f"{wanted:.3f}".removeprefix("0")
    assert "for 1,000 images of which 20 have what is looked for" in text
    assert "140 images of 140 lesions" in text
    assert "T = 1.25." in text


def test_run_can_be_made_again(tmp_path):
    text, _ = write_card(make_run(tmp_path))
    command = "python -m helpers run Skin_Cancer_Detection.ipynb runs/my_run"
    assert f"{command} -p DATA_DIR 'data/my images' -p IMAGE_HEIGHT 28 -p IMAGE_WIDTH 36\n" in text
    assert "-p VIEWS" not in write_card(make_run(tmp_path, VIEWS=8))[0]
    assert "`0123456789abcdef`" in text
    assert ["keras", "3.15.1"] in read_table(text, "How to reproduce", 1)


def test_drawn_images_are_called_drawn_loudly(tmp_path):
    assert "DRAWN" not in write_card(make_run(tmp_path))[0]
    text, _ = write_card(make_run(tmp_path, first=FIRST_ID))
    assert read_front_matter(text)["license"] == "mit"
    assert "drawn-images" in read_front_matter(text)["tags"]
    assert "**TRAINED AND JUDGED ON DRAWN IMAGES.**" in text
    assert "CC BY-NC" not in text


def test_card_of_other_images_claims_nothing_of_ham10000_nor_of_lesions(tmp_path):
    run = make_run(tmp_path, first=7)
    run.metrics["data"] |= {"leaks": 3, "file_size": [300, 400]}
    text, _ = write_card(run)
    assert read_front_matter(text)["license"] == "other"
    assert "CC BY-NC" not in text and "Tschandl" not in text
    assert "**3 lesions are in more than one part: the scores flatter.**" in text
    assert "files that it was trained on have at most 300x400 pixels" in text
    run.metrics["data"] |= {"leaks": 0, "lesions": 1400}
    assert "Each image counts as a lesion of its own" in write_card(run)[0]


def test_groups_and_patients_fields_are_told_or_said_to_be_missing(tmp_path):
    run = make_run(tmp_path)
    text, _ = write_card(run)
    assert "Not judged: nothing is known of the patients." in text
    assert "age, sex and site" not in text
    run.metrics["parameters"]["USE_METADATA"] = True
    by_group = scores.score_groups(run.predictions.part("test"), 0.5)
    text, _ = write_card(run, by_group=by_group)
    assert "takes age, sex and site, each of which may be missing" in text
    names, *rows = read_table(text, "Limits by group")
    row = dict(zip(names, next(row for row in rows if row[1] == "male"), strict=True))
    assert row["images"] == "130"
    assert row["accuracy"] == scores.write_intervals(by_group)["sex", "male", "accuracy"]
