"""The model card: front matter that parses, figures that are the judgement's, loud where drawn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.data import reading as dataset
from helpers.evaluation import calibration, judgement, scores, subgroups
from helpers.runs import folder as runs
from helpers.runs import model_card

CLASSES = list(dataset.CLASSES)


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(7), 40)
    probabilities = rng.dirichlet(np.ones(7), 280)
    probabilities[np.arange(280), labels] += 0.4
    probabilities /= probabilities.sum(1, keepdims=True)
    table = pd.DataFrame(
        {
            "image_id": [f"ISIC_{24306 + i:07}" for i in range(280)],
            "lesion_id": [f"HAM_{i:07}" for i in range(280)],
            "group": [f"HAM_{i:07}" for i in range(280)],
            "split": np.where(np.arange(280) < 140, "val", "test"),
            "dx": np.array(CLASSES)[labels],
        }
    )
    known = pd.DataFrame(probabilities, columns=[f"p_{dx}" for dx in CLASSES])
    metrics = {
        "classes": CLASSES,
        "parameters": {
            "DATA_DIR": "data/my images",
            "TEST_DIR": "",
            "RUN_DIR": "runs/x",
            "IMAGE_HEIGHT": 28,
            "IMAGE_WIDTH": 36,
            "BATCH_NORM": True,
        },
        "data": {"images": 1400, "lesions": 1200, "fingerprint": "0123456789abcdef"},
        "training": {"model_parameters": 672_007},
        "versions": {"python": "3.12.0", "keras": "3.15.1"},
    }
    folder = tmp_path / "my_run"
    folder.mkdir()
    return runs.Run(folder, metrics, pd.DataFrame(), table.join(known), (folder / "model.keras",))


def write_card(run, part="test", by_group=None):
    labels, probabilities, groups = run.part(part)
    predictions, temperatures = calibration.calibrate_run(run)
    known, scored, _ = replace(run, predictions=predictions).part("val")
    thresholds = judgement.choose_operating_points(known, scored, CLASSES)
    points = judgement.judge_operating_points(
        thresholds, labels, probabilities, groups, CLASSES, 100
    )
    figures = {
        "overall": scores.score_with_intervals(labels, probabilities, groups, 100),
        "by_class": judgement.judge_classes(labels, probabilities, groups, CLASSES, 100),
        "calibration": pd.DataFrame(
            {name: calibration.score_calibration(labels, probabilities) for name in ("a", "b")}
        ).T,
        "points": points,
        "per_thousand": judgement.count_per_thousand(points, 0.02),
    }
    path = model_card.write_model_card(
        run, part, temperatures=temperatures, prevalence=0.02, by_group=by_group, **figures
    )
    return path.read_text(encoding="utf-8"), figures


def test_training_on_the_validation_part_is_said(run):
    assert "Trained twice" not in write_card(run)[0]
    run.metrics["parameters"]["REFIT"] = True
    assert "Trained twice" in write_card(run)[0]


def parse_front_matter(text):
    empty, front, _ = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front)


def test_front_matter_is_what_hubs_read(run):
    text, figures = write_card(run)
    front = parse_front_matter(text)
    assert front["license"] == "cc-by-nc-4.0"
    assert front["library_name"] == "keras"
    assert front["pipeline_tag"] == "image-classification"
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "my_run"
    assert result["dataset"] == {"type": "ham10000", "name": "HAM10000", "split": "test"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    overall = figures["overall"]["value"]
    assert values["accuracy"] == pytest.approx(overall["accuracy"], abs=1e-4)
    assert values["roc_auc"] == pytest.approx(overall["auc"], abs=1e-4)
    assert front["metrics"] == list(values)


def test_score_that_is_not_defined_is_left_out(run):
    overall = pd.DataFrame({"value": {"accuracy": 0.5, "auc": np.nan}})
    front = model_card.make_front_matter(run, "test", overall)
    (metric,) = front["model-index"][0]["results"][0]["metrics"]
    assert metric == {"type": "accuracy", "name": "accuracy", "value": 0.5}


def test_figures_stand_with_their_intervals(run):
    text, figures = write_card(run)
    by_class = judgement.write_intervals(figures["by_class"])
    assert f"| {by_class['mel', 'sensitivity']} | {by_class['mel', 'specificity']} |" in text
    told = judgement.write_intervals(figures["points"])
    assert told["malignant", 0.95, "specificity"] in text
    assert "for 1,000 images of which 20 have what is looked for" in " ".join(text.split())
    assert "140 images of 140 lesions" in text


def test_sections_are_the_customary_ones(run):
    text, _ = write_card(run)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# my_run",
        "## Model details",
        "## Intended use",
        "## Training and evaluation data",
        "## Metrics",
        "## Calibration",
        "## Operating points",
        "## Limits by group",
        "## Ethical considerations and caveats",
        "## How to reproduce",
    ]
    assert text.count("This is not a medical device.") == 1
    assert "DRAWN" not in text


def test_tables_have_as_many_cells_in_every_row(run):
    text, _ = write_card(run)
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_run_can_be_made_again(run):
    text, _ = write_card(run)
    command = "python -m helpers.runs.execution Skin_Cancer_Detection.ipynb runs/my_run"
    assert f"{command} -p DATA_DIR 'data/my images' -p IMAGE_HEIGHT 28 -p IMAGE_WIDTH 36" in text
    assert "`0123456789abcdef`" in text
    assert "| keras | 3.15.1 |" in text


def test_drawn_sample_is_called_drawn_loudly(run):
    numbers = [f"ISIC_{9_000_000 + i}" for i in range(len(run.predictions))]
    drawn = replace(run, predictions=run.predictions.assign(image_id=numbers))
    text, _ = write_card(drawn)
    front = parse_front_matter(text)
    assert front["license"] == "mit"
    assert "drawn-images" in front["tags"]
    assert "**TRAINED AND JUDGED ON DRAWN IMAGES.**" in text
    assert "CC BY-NC" not in text


def test_groups_are_told_or_said_to_be_missing(run):
    text, _ = write_card(run)
    assert "Not judged: the metadata of the run's data were not found." in text
    labels, probabilities, groups = run.part("test")
    sex = pd.DataFrame({"sex": ["male"] * 130 + ["female"] * 10})
    by_group = subgroups.score_subgroups(sex, labels, probabilities, groups, CLASSES, 0.5, 100)
    text, _ = write_card(run, by_group=by_group)
    assert "1 of 2 groups are too small altogether" in text
    assert "| sex | female | 10 | 10 | too few | too few | too few | too few |" in text


def test_card_is_replaced_in_one_step(run, monkeypatch):
    old, _ = write_card(run)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(model_card.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_card(run)
    assert [path.name for path in run.path.iterdir()] == [model_card.CARD]
    assert (run.path / model_card.CARD).read_text(encoding="utf-8") == old


def test_card_says_that_metadata_are_taken(run):
    assert "age, sex and site" not in write_card(run)[0]
    run.metrics["parameters"]["USE_METADATA"] = True
    assert "takes age, sex and site, each of which may be missing" in write_card(run)[0]
