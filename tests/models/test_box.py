"""The model that comes with the project: small, whole, and of use without this project."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import __main__ as command_line
from helpers.data import reading, sample
from helpers.evaluation import scores
from helpers.evaluation.calibration import adjust_prior
from helpers.runs import folder

ROOT = Path(__file__).parents[2]
BOX = ROOT / folder.BOX
ALONE = """
import json, sys
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
pixels = np.load(sys.argv[2])
answers = model.predict(pixels, verbose=0).tolist()
helpers = [name for name in sys.modules if name.split(".")[0] == "helpers"]
print(json.dumps([model.layers[-1].name.split("_"), answers, helpers]))
"""


def test_it_is_small_and_names_no_folder_of_one_machine():
    files = [path for path in BOX.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert not any(path.suffix in (".jpg", ".ipynb", ".html") for path in files)
    metrics = json.loads((BOX / "metrics.json").read_text())
    assert metrics["parameters"]["DATA_DIR"] == metrics["data"]["folder"] == "data/ham10000"
    assert "NonCommercial" in (BOX / "LICENSE.md").read_text()


def test_its_scores_are_those_of_its_predictions():
    run = folder.load_run(BOX)
    assert not sample.is_drawn(run.predictions.table["image_id"])
    test = run.predictions.part("test")
    found = scores.score_with_intervals(test, adjust_prior(run.predictions.part("val"), test))
    kept = pd.DataFrame(run.metrics["scores"]["test"]).T
    assert found.to_numpy(float) == pytest.approx(kept.to_numpy(float), abs=1e-6)
    assert found["low"]["accuracy"] > run.metrics["majority_baseline"]


def test_model_answers_in_a_process_without_this_project(tmp_path):
    run = folder.load_run(BOX)
    size = [run.metrics["parameters"][name] for name in ("IMAGE_HEIGHT", "IMAGE_WIDTH")]
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    command = [sys.executable, "-I", "-c", ALONE, BOX / "model.keras", tmp_path / "pixels.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    classes, answers, helpers = json.loads(done.stdout)
    assert classes == list(reading.CLASSES) and not helpers
    expected = folder.load_model(run).predict(pixels, verbose=0)
    assert np.array(answers) == pytest.approx(expected, abs=1e-4)
    assert np.sum(answers, axis=1) == pytest.approx(np.ones(3), abs=1e-4)


def test_it_predicts_without_any_training_image(tmp_path, capsys):
    drawn = reading.read_dataset(sample.draw_sample())["path"].head(2)
    csv = tmp_path / "answers.csv"
    assert command_line.main(["predict", folder.BOX, *drawn, "--csv", str(csv)]) == 0
    table = pd.read_csv(csv)
    assert len(table) == 2 and table["problem"].isna().all() and table["novelty"].gt(0).all()
    assert table.filter(like="p_").sum(axis=1).to_numpy() == pytest.approx([1, 1], abs=1e-4)
    assert "2 of 2 files answered" in capsys.readouterr().out
