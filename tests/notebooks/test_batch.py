"""Runs without a screen: parameters checked first, killed runs resumed, results within bounds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import papermill
import pytest
from PIL import Image

from helpers import __main__ as command_line
from helpers.data import drawing, images, reading, sample
from helpers.data.files import InputError
from helpers.runs import execution, folder
from tests.units.fake_run import make_notebook

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "Skin_Cancer_Detection.ipynb"
REFERENCE = json.loads((ROOT / "tests/reference/other_run.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "EPOCH", "3"], "no parameter EPOCH: did you mean EPOCHS?"),
        (["-p", "EPOCHS", "three"], "EPOCHS is 'three' (str), wanted is int"),
        (["-p", "BATCH_NORM", "maybe"], "BATCH_NORM is 'maybe' (str), wanted is bool"),
        (["-p", "IMAGE_WIDTH", "8"], "IMAGE_WIDTH is 8, wanted is a value from 22"),
        (["-p", "SCHEDULE", "linear"], "SCHEDULE is 'linear', choose one of constant, cosine"),
    ],
)
def test_wrong_parameters_stop_before_the_run(tmp_path, capsys, arguments, message):
    assert command_line.main(["run", str(MAIN), str(tmp_path / "run"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("import sys; sys.exit(0)", "cells [3, 4] were not executed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the kernel died"),
    ],
)
def test_run_that_ends_early_does_not_count(tmp_path, capsys, cell, message):
    book = make_notebook(tmp_path / "n.ipynb", 'RUN_DIR: str = ""', cell, "print(1)")
    assert command_line.main(["run", book, str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert message in (tmp_path / "run/error.txt").read_text()


def test_unknown_name_given_to_papermill_itself_stops_the_notebook(tmp_path):
    check = "from helpers.runs import folder; folder.check_parameters(globals())"
    book = make_notebook(tmp_path / "n.ipynb", "EPOCHS: int = 20", check)
    output = str(tmp_path / "out.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean EPOCHS"):
        papermill.execute_notebook(book, output, {"EPOCH": 3}, progress_bar=False)


def test_verbs_are_listed_without_tensorflow():
    code = "import sys, helpers.__main__ as m; m.main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    assert all(verb in done.stdout for verb in ("run", "grid", "predict", "download", "export"))
    assert "tensorflow" not in done.stderr


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A short run with other parameters than the default: of the sample's grid, or made now."""
    made = folder.peek_run(ROOT / "runs/check/sample_grid/BATCH_NORM=true,FOLD=1")
    if made and not made.outdated:
        return made
    run_dir = tmp_path_factory.mktemp("batch") / "other"
    return execution.execute_notebook(MAIN, run_dir, REFERENCE["parameters"])


def test_other_run_is_within_its_bounds(other_run):
    assert REFERENCE["parameters"].items() <= other_run.metrics["parameters"].items()
    assert other_run.metrics["data"]["split"] == REFERENCE["split"]
    assert len(other_run.history) == REFERENCE["parameters"]["EPOCHS"]
    assert other_run.outdated == []
    assert "Skin_Cancer_Detection.ipynb" in other_run.metrics["code"]
    for name, expected in REFERENCE["scores"].items():
        found = other_run.metrics["scores"]["test"][name]
        assert found["low"] <= found["value"] <= found["high"]
        assert found["value"] == pytest.approx(expected, abs=REFERENCE["tolerance"][name]), name


def test_other_run_is_written_out(other_run):
    names = {p.relative_to(other_run.path).as_posix() for p in other_run.path.rglob("[!.]*.*")}
    files = {"notebook.ipynb", "report.html", "metrics.json", "history.csv", "predictions.csv"}
    figures = {f"figures/{name}.png" for name in ("history", "confusion", "answers")}
    assert names - {"log.txt"} == files | figures | {"model.keras"}  # a grid's run has a log
    assert "<img" in (other_run.path / "report.html").read_text(encoding="utf-8")


def test_saved_model_answers_the_same_elsewhere(other_run, tmp_path):
    """In a fresh process that knows nothing of this project: no helpers, another folder."""
    script = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), batch_size=32, verbose=0))
print(*model.layers[-1].name.split("_"), model.input.shape[1:3], model.input.dtype)
assert "helpers" not in sys.modules
"""
    table = reading.read_dataset(ROOT / "data/sample").set_index("image_id", drop=False)
    tested = other_run.predictions.part("test")
    pixels = [images.read_image(p, (28, 28)) for p in table.loc[tested.table["image_id"], "path"]]
    np.save(tmp_path / "pixels.npy", np.stack(pixels))
    arguments = [other_run.model_path, tmp_path / "pixels.npy", tmp_path / "answer.npy"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{' '.join(other_run.classes)} (28, 28) uint8"
    answers = np.load(tmp_path / "answer.npy")
    rounding = 1e-5 if other_run.metrics["training"]["precision"] == "float32" else 0.02
    assert answers == pytest.approx(tested.probabilities, abs=rounding)


def test_killed_run_goes_on_and_ends_as_it_would_have(other_run, tmp_path):
    run_dir, epochs = tmp_path / "cut", REFERENCE["parameters"]["EPOCHS"]
    command = [sys.executable, "-m", "helpers", "run", str(MAIN), str(run_dir)]
    for name, value in REFERENCE["parameters"].items():
        command += ["-p", name, str(value)]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    path, deadline = run_dir / "checkpoint.npz", time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # the command; its kernel notices
    process.wait()
    with pytest.raises(InputError, match="no finished run"):
        folder.load_run(run_dir)

    resumed = execution.execute_notebook(MAIN, run_dir, REFERENCE["parameters"])
    said = re.search(
        rf"going on after epoch (\d+) of {epochs}", (run_dir / "notebook.ipynb").read_text()
    )
    assert 1 <= int(said[1]) < epochs
    seconds = resumed.history["seconds"]
    assert resumed.history.drop(columns="seconds").equals(other_run.history.drop(columns="seconds"))
    assert (seconds > 0).all()
    assert resumed.predictions.table.equals(other_run.predictions.table)
    assert not list(run_dir.glob("*.npz"))


JUDGE = str(ROOT / "notebooks/04_judge_a_model.ipynb")


def test_model_is_judged_on_the_images_of_another_clinic_with_fewer_classes(tmp_path):
    rng = np.random.default_rng(7)
    for dx in ("Melanoma", "nevus", "bcc"):
        (tmp_path / "clinic" / dx).mkdir(parents=True)
        code = {"Melanoma": "mel", "nevus": "nv"}.get(dx, dx)
        for number in range(12):
            picture = drawing.draw_lesion(code, rng)[0]
            Image.fromarray(picture).save(tmp_path / "clinic" / dx / f"{dx}{number}.jpg")
    given = {"TEST_DIR": str(tmp_path / "clinic"), "RESAMPLES": 100}
    book = papermill.execute_notebook(JUDGE, str(tmp_path / "o.ipynb"), given, progress_bar=False)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    said = "\n".join(output.get("text", "") for output in outputs)
    assert "36 images to answer" in said
    assert "part other: 36 drawn" not in said and "part other: 36 images of 36 lesions" in said
    assert "left out of all scores: akiec, bkl, df, vasc" in said
    assert "no card" in said


def test_copies_of_training_images_under_other_ids_are_no_test(other_run, tmp_path):
    own = reading.read_dataset(sample.draw_sample())
    for row in own.groupby("dx").head(2).itertuples():
        (tmp_path / "copies" / row.dx).mkdir(parents=True, exist_ok=True)
        shutil.copy(row.path, tmp_path / "copies" / row.dx / f"new_{row.image_id}.jpg")
    given = {"RUN_DIR": str(other_run.path), "TEST_DIR": str(tmp_path / "copies")}
    with pytest.raises(papermill.PapermillExecutionError, match="14 images by their pixels"):
        papermill.execute_notebook(JUDGE, str(tmp_path / "o.ipynb"), given, progress_bar=False)
