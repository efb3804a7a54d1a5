"""Runs without a screen: parameters checked first, killed runs resumed, results within bounds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers.data import drawing, images
from helpers.data import reading as dataset
from helpers.evaluation import challenge, scores
from helpers.runs import execution as batch
from helpers.runs import experiments
from helpers.runs import folder as runs

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "Skin_Cancer_Detection.ipynb"
REFERENCE = Path(__file__).parents[1] / "reference"
SMALL = {"IMAGE_HEIGHT": 28, "IMAGE_WIDTH": 28, "FOLD": 2, "AUGMENT": True, "BATCH_NORM": True}


@pytest.fixture(autouse=True)
def work_in_the_project(monkeypatch):
    """Let the notebooks find data/sample and its cache, as for a user."""
    monkeypatch.chdir(ROOT)


def make_notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "EPOCH", "3"], "no parameter EPOCH: did you mean EPOCHS?"),
        (["-p", "EPOCHS", "three"], "EPOCHS is 'three' (str), wanted is int"),
        (["-p", "EPOCHS", "2.5"], "EPOCHS is '2.5' (str), wanted is int"),
        (["-p", "BATCH_NORM", "maybe"], "BATCH_NORM is 'maybe' (str), wanted is bool"),
    ],
)
def test_wrong_parameters_stop_before_the_run(tmp_path, capsys, arguments, message):
    assert batch.main([str(MAIN), str(tmp_path / "run"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_texts_become_values_of_the_declared_type():
    declared = experiments.inspect_parameters(MAIN)
    pairs = [["EPOCHS", "3"], ["LEARNING_RATE", "1e-4"], ["BATCH_NORM", "True"], ["DATA_DIR", "7"]]
    assert experiments.parse_parameters(pairs, declared) == {
        "EPOCHS": 3,
        "LEARNING_RATE": 1e-4,
        "BATCH_NORM": True,
        "DATA_DIR": "7",
    }


def test_missing_notebook_is_named(tmp_path, capsys):
    assert batch.main([str(tmp_path / "none.ipynb"), str(tmp_path)]) == 1
    assert "none.ipynb: no such notebook" in capsys.readouterr().err


def test_cell_that_fails_is_named(tmp_path, capsys):
    book = make_notebook(tmp_path / "n.ipynb", 'RUN_DIR: str = ""', "x = 1", "1 / 0")
    assert batch.main([str(book), str(tmp_path / "run")]) == 1
    assert "cell 4: ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_run_that_ends_early_with_success_does_not_count(tmp_path, capsys):
    book = make_notebook(
        tmp_path / "n.ipynb", 'RUN_DIR: str = ""', "import sys; sys.exit(0)", "print(1)"
    )
    assert batch.main([str(book), str(tmp_path / "run")]) == 1
    assert "were not executed, the run does not count" in capsys.readouterr().err


def test_kernel_that_dies_is_an_error_without_a_traceback(tmp_path, capsys):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    book = make_notebook(tmp_path / "n.ipynb", 'RUN_DIR: str = ""', kill)
    assert batch.main([str(book), str(tmp_path / "run")]) == 1
    assert "the kernel died" in capsys.readouterr().err


def test_unknown_name_given_to_papermill_itself_stops_the_notebook(tmp_path):
    command = [sys.executable, "-m", "papermill", str(MAIN), str(tmp_path / "out.ipynb")]
    done = subprocess.run(
        [*command, "-p", "EPOCH", "3", "-p", "RUN_DIR", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no parameter EPOCH: did you mean EPOCHS?" in done.stderr
    assert not (tmp_path / "run").exists()


def draw_official_test(folder):
    """Draw two images per class in the layout of the challenge's test."""
    rows = []
    for number, dx in enumerate(2 * dataset.CLASSES):
        name = f"ISIC_99{number:05d}"
        picture = drawing.draw_lesion(dx, np.random.default_rng(number))[0]
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}.jpg")
        rows.append({"image": name} | {c.upper(): float(c == dx) for c in dataset.CLASSES})
    columns = ["image", *challenge.COLUMNS]
    pd.DataFrame(rows)[columns].to_csv(folder / "ISIC2018_Task3_Test_GroundTruth.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A short run with other parameters than the default, as in a batch, and an official test."""
    folder = tmp_path_factory.mktemp("batch") / "other"
    parameters = json.loads((REFERENCE / "other_run.json").read_text())["parameters"]
    parameters["TEST_DIR"] = str(draw_official_test(folder.with_name("official")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return batch.execute_notebook(MAIN, folder, parameters)


def test_other_run_is_within_its_bounds(other_run):
    reference = json.loads((REFERENCE / "other_run.json").read_text())
    assert reference["parameters"].items() <= other_run.metrics["parameters"].items()
    assert other_run.metrics["data"]["split"] == reference["split"]
    assert len(other_run.history) == reference["parameters"]["EPOCHS"]
    test_scores = other_run.metrics["scores"]["test"]
    assert test_scores["auc"]["value"] > 0.55, "not above chance"
    assert test_scores["balanced_accuracy"]["value"] > 1 / 7 + 0.03, "not above chance"
    for name, expected in reference["scores"].items():
        found = test_scores[name]
        assert found["low"] <= found["value"] <= found["high"]
        assert found["value"] == pytest.approx(expected, abs=reference["tolerance"][name]), name


def test_other_run_is_written_out(other_run):
    names = {p.relative_to(other_run.path).as_posix() for p in other_run.path.rglob("[!.]*.*")}
    assert names == {
        "notebook.ipynb",
        "report.html",
        "metrics.json",
        "history.csv",
        "predictions.csv",
        "model.keras",
        "figures/history.png",
        "figures/confusion.png",
        "figures/predictions.png",
        "submission.csv",
    }
    assert "<img" in (other_run.path / "report.html").read_text(encoding="utf-8")


def test_official_test_is_scored_and_submitted(other_run):
    official = other_run.predictions[other_run.predictions["split"] == "official"]
    assert len(official) == 2 * len(dataset.CLASSES)
    submission = pd.read_csv(other_run.path / "submission.csv").set_index("image")
    assert list(submission.columns) == list(challenge.COLUMNS)
    for dx in dataset.CLASSES:
        given = official.set_index("image_id")[f"p_{dx}"]
        assert submission[dx.upper()].to_numpy() == pytest.approx(given[submission.index], abs=1e-6)
    labels, probabilities, _ = other_run.part("official")
    found = other_run.metrics["scores"]["official"]["all"]["balanced_accuracy"]["value"]
    expected = scores.score_predictions(labels, probabilities)["balanced_accuracy"]
    assert found == pytest.approx(expected, abs=1e-6)  # no ties among these
    assert not set(official["image_id"]) & set(other_run.predictions["image_id"][:-14])


def test_saved_model_answers_the_same_elsewhere(other_run, tmp_path):
    """In a fresh process that knows nothing of this project: no helpers, another folder."""
    script = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), batch_size=32, verbose=0))
print(*model.layers[-1].name.split("_"), model.input.shape[1:3], model.input.dtype)
assert "helpers" not in sys.modules
"""
    parameters = other_run.metrics["parameters"]
    table = dataset.read_dataset("data/sample").set_index("image_id", drop=False)
    held_out = other_run.predictions[other_run.predictions["split"] != "official"]
    rows = table.loc[held_out["image_id"]].reset_index(drop=True)
    size = (parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"])
    np.save(tmp_path / "pixels.npy", images.load_images(rows, size, tmp_path))
    arguments = [other_run.model_paths[0], tmp_path / "pixels.npy", tmp_path / "answer.npy"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("(")[0].split() == other_run.classes
    assert f"({size[0]}, {size[1]}) uint8" in done.stdout
    columns = [f"p_{dx}" for dx in other_run.classes]
    expected = held_out[columns].to_numpy()
    assert np.load(tmp_path / "answer.npy") == pytest.approx(expected, abs=1e-6)


REFITTED = {**SMALL, "EPOCHS": 4, "PATIENCE": 0, "REFIT": True}


def start_batch(folder):
    command = [sys.executable, "-m", "helpers.runs.execution", str(MAIN), str(folder)]
    for name, value in REFITTED.items():
        command += ["-p", name, str(value)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)  # fmt: skip


def kill_after_an_epoch(process, path):
    """Kill a run once it has written the checkpoint; return the epochs that are in it."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # papermill and the kernel at once
    process.wait()
    with np.load(path) as saved:
        return len(json.loads(str(saved["notes"]))["rows"])


@pytest.fixture(scope="module")
def refitted(tmp_path_factory):
    """A run with REFIT that nobody interrupts."""
    folder = tmp_path_factory.mktemp("refit") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return batch.execute_notebook(MAIN, folder, REFITTED)


def test_killed_run_goes_on_and_ends_as_it_would_have(refitted, tmp_path):
    """Killed once in each of the two trainings."""
    cut, epochs = tmp_path / "cut", REFITTED["EPOCHS"]
    done = [kill_after_an_epoch(start_batch(cut), cut / "checkpoint.npz")]
    assert 1 <= done[0] < epochs
    with pytest.raises(runs.RunError, match="an interrupted training goes on"):
        runs.load_run(cut)
    done.append(kill_after_an_epoch(start_batch(cut), cut / "refit.npz"))
    assert 1 <= done[1] < epochs

    assert start_batch(cut).wait() == 0
    said = re.findall(
        rf"going on after epoch (\d+) of {epochs}", (cut / "notebook.ipynb").read_text()
    )
    assert int(said[0]) == epochs
    assert done[1] <= int(said[1]) < epochs  # the kernel may have ended an epoch while it died
    resumed = runs.load_run(cut)
    assert len(resumed.history) == epochs
    assert resumed.history.drop(columns="seconds").equals(refitted.history.drop(columns="seconds"))
    assert resumed.predictions.equals(refitted.predictions)
    assert not list(cut.glob("*.npz"))


def test_refitted_model_answers_the_test_and_the_one_before_the_validation_part(refitted):
    parameters, training = refitted.metrics["parameters"], refitted.metrics["training"]
    assert 0 < training["refit_seconds"] < training["seconds"]
    labels, probabilities, _ = refitted.part("val")
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    assert accuracy == pytest.approx(refitted.history["val_accuracy"].iloc[-1], abs=1e-6)

    model = keras.models.load_model(refitted.model_paths[0])
    table = dataset.read_dataset("data/sample").set_index("image_id", drop=False)
    size = (parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"])
    for part in ("val", "test"):
        rows = refitted.predictions.query("split == @part")
        pixels = [images.read_image(path, size) for path in table.loc[rows["image_id"], "path"]]
        answers = model.predict(np.stack(pixels), batch_size=32, verbose=0)
        given = rows[[f"p_{dx}" for dx in refitted.classes]].to_numpy()
        assert np.allclose(answers, given, atol=5e-3) == (part == "test"), part
