"""A run's folder: whole or refused, one run's only; parameters declared and in range or refused."""

import json
import os

import numpy as np
import pytest
from filelock import FileLock, Timeout

from helpers.data.files import PROJECT, InputError
from helpers.evaluation.predictions import make_predictions, read_predictions
from helpers.runs import execution, experiments, folder
from tests.units.fake_run import CLASSES, PARAMETERS, FakeModel, make_table, save


def test_run_is_read_back_as_it_was_saved(tmp_path):
    run = save(tmp_path, odd=[np.inf, np.int64(3)])
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["odd"] == [None, 3]
    assert run.metrics["scores"]["test"]["accuracy"] == {"value": 0.5, "low": 0.25, "high": 0.75}
    assert run.metrics["scores"]["test"]["auc"]["value"] is None
    assert run.metrics["versions"]["keras"]
    assert run.metrics["majority_baseline"] == 0.5
    assert run.metrics["data"]["images"] == 4
    assert run.metrics["data"]["split"] == {"test": 2, "train": 1, "val": 1}
    assert run.metrics["training"]["images_per_second"] == pytest.approx(1 / 2.5)
    assert run.history.loc[2, "seconds"] == 3
    test = run.predictions.part("test")
    assert test.labels.tolist() == [1, 0]
    assert test.probabilities.tolist() == [[0.25, 0.75], [1 / 3, 2 / 3]]
    assert test.table["image_id"].tolist() == ["0003", "0004"]
    assert test.table["sex"].tolist() == ["female", "male"]
    assert run.classes == CLASSES
    assert run.model_path.read_bytes() == b"weights"


def test_more_metrics_join_their_section_and_predictions_their_file(tmp_path):
    alone = make_predictions(make_table(tmp_path)[1:], np.full((3, 2), 0.5), CLASSES)
    run = save(tmp_path, training={"best_epoch": 9}, image_only=alone, note="x")
    assert run.metrics["training"]["best_epoch"] == 9
    assert run.metrics["training"]["epochs"] == 2
    assert run.metrics["note"] == "x"
    alone = folder.load_run(tmp_path, image_only=True)
    assert alone.predictions.probabilities.tolist() == 3 * [[0.5, 0.5]]
    assert run.predictions.probabilities[0].tolist() == [0.9, 0.1]


def delete(path):
    path.unlink()


def shorten(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("metrics.json", delete, "no finished run: metrics.json missing"),
        ("history.csv", delete, "no finished run: history.csv missing"),
        ("model.keras", delete, "no finished run: model.keras missing"),
        ("predictions.csv", shorten, "predictions.csv differ"),
        ("metrics.json", shorten, "damaged"),
    ],
)
def test_folder_that_is_not_whole_is_refused_and_can_be_made_anew(tmp_path, name, harm, message):
    save(tmp_path)
    harm(tmp_path / name)
    with pytest.raises(InputError, match=message):
        folder.load_run(tmp_path)
    save(folder.open_run({"RUN_DIR": str(tmp_path), **PARAMETERS}))
    assert folder.load_run(tmp_path)


def test_older_run_leaves_nothing_beside_the_new_one(tmp_path):
    save(tmp_path)
    later = ["MODEL_CARD.md", "submission.csv", "export/tflite.json", "figures/history.png"]
    later += ["answers.csv", "report.html", "predictions_image_only.csv", "novelty.npz"]
    for name in [*later, "checkpoint.npz", "notebook.ipynb"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
        os.utime(tmp_path / name, (0, 0))
    run_dir = folder.open_run({"RUN_DIR": str(tmp_path), **PARAMETERS})
    assert folder.load_run(run_dir), "the old run stays until the new one is saved"
    assert all((tmp_path / name).exists() for name in later)
    (tmp_path / "figures" / "new.png").write_text("new")
    save(run_dir)
    assert not [name for name in later if (tmp_path / name).exists()]
    for name in ("checkpoint.npz", "notebook.ipynb", "figures/new.png"):
        assert (tmp_path / name).exists(), name


def test_finished_run_of_other_parameters_is_refused(tmp_path):
    save(tmp_path)
    (tmp_path / "MODEL_CARD.md").write_text("old")
    parameters = {"RUN_DIR": str(tmp_path), **PARAMETERS, "IMAGE_WIDTH": 36}
    with pytest.raises(InputError, match="finished run with IMAGE_WIDTH 28 instead of 36"):
        folder.open_run(parameters)
    with pytest.raises(InputError, match="with MODEL missing instead of 'compact'"):
        folder.open_run({"RUN_DIR": str(tmp_path), **PARAMETERS, "MODEL": "compact"})
    assert (tmp_path / "MODEL_CARD.md").exists()
    save(folder.open_run(parameters | {"IMAGE_WIDTH": 28}))


def test_run_belongs_to_one_process_until_it_is_saved(tmp_path):
    parameters, elsewhere = {"RUN_DIR": str(tmp_path), **PARAMETERS}, tmp_path / folder.KERNEL_LOCK
    with FileLock(elsewhere), pytest.raises(InputError, match="another process, perhaps an open"):
        folder.open_run(parameters)
    assert folder.open_run(parameters) == folder.open_run(parameters)  # cells executed again
    with pytest.raises(Timeout):
        FileLock(elsewhere, timeout=0).acquire()
    save(tmp_path)
    FileLock(elsewhere, timeout=0).acquire()


def test_relative_folder_means_the_same_in_every_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKIN_RUNS_DIR", raising=False)
    assert folder.resolve_run("runs/none/such") == PROJECT / "runs/none/such"
    monkeypatch.setenv("SKIN_RUNS_DIR", str(tmp_path / "elsewhere"))
    assert folder.open_run({"RUN_DIR": "runs/a"}) == tmp_path / "elsewhere/a"
    save(tmp_path / "elsewhere/a")
    assert folder.load_run("runs/a").path == tmp_path / "elsewhere/a"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such permissions here")
def test_folder_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot be written .* variable SKIN_RUNS_DIR"):
        folder.open_run({"RUN_DIR": str(tmp_path / "file/run")})


def test_run_of_other_code_is_known(tmp_path, monkeypatch):
    module = tmp_path / "module.py"
    module.write_text('"""Old."""\n\n\ndef double(x):\n    return 2 * x\n')
    made = {str(module): folder.fingerprint_code(module)}
    monkeypatch.setenv("SKIN_NOTEBOOK_CODE", json.dumps(made))
    run = save(tmp_path / "run")
    assert "helpers/runs/folder.py" in run.metrics["code"]
    assert run.outdated == []
    module.write_text('"""New."""\ndef double(x):  # twice\n    "Explained."\n    return 2*x\n')
    assert run.outdated == []
    module.write_text("def double(x):\n    return 3 * x\n")
    assert run.outdated == [str(module)]


def test_code_that_is_edited_during_a_run_counts_as_it_was(tmp_path, monkeypatch):
    module = tmp_path / "module.py"
    module.write_text("x = 1")
    mark = folder.fingerprint_code(module)
    monkeypatch.setenv("SKIN_NOTEBOOK_CODE", json.dumps({str(module): mark}))
    run_dir = folder.open_run({"RUN_DIR": str(tmp_path / "run")})
    monkeypatch.setenv("SKIN_NOTEBOOK_CODE", json.dumps({str(module): "other"}))
    assert save(run_dir).metrics["code"][str(module)] == mark


def make_namespace(**values):
    declared = {"EPOCHS": int, "LEARNING_RATE": float, "BATCH_NORM": bool, "DATA_DIR": str}
    defaults = {"EPOCHS": 20, "LEARNING_RATE": 1e-3, "BATCH_NORM": False, "DATA_DIR": ""}
    return {"__annotations__": declared, "In": [], "_i": "", "np": np, **defaults, **values}


def test_parameters_are_collected_in_order_and_imports_are_none(tmp_path):
    space = make_namespace(EPOCHS=3, LEARNING_RATE=1, PIL=np, ABC=FakeModel)
    expected = {"EPOCHS": 3, "LEARNING_RATE": 1, "BATCH_NORM": False, "DATA_DIR": ""}
    assert list(folder.check_parameters(space).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"EPOCH": 3}, r"no parameter EPOCH: did you mean EPOCHS\?"),
        ({"LEARNING_RATE": "1e-4"}, r"'1e-4' \(str\), wanted is float; .*write 1.0e-4"),
        ({"EPOCHS": 2.0}, r"EPOCHS is 2.0 \(float\), wanted is int"),
        ({"EPOCHS": True}, r"EPOCHS is True \(bool\), wanted is int"),
        ({"EPOCHS": None}, r"EPOCHS is None \(NoneType\), wanted is int"),
        ({"BATCH_NORM": 1}, r"BATCH_NORM is 1 \(int\), wanted is bool"),
        ({"EPOCHS": 0}, "EPOCHS is 0, wanted is a value from 1"),
        ({"LEARNING_RATE": float("nan")}, "LEARNING_RATE is nan, wanted is a value from"),
    ],
)
def test_wrong_parameters_are_named(values, message):
    with pytest.raises(InputError, match=message):
        folder.check_parameters(make_namespace(**values))


def test_all_wrong_parameters_are_named_together():
    with pytest.raises(InputError) as caught:
        folder.check_parameters(make_namespace(EPOCH=3, BATCH_NORM="yes", EPOCHS=-1))
    assert len(caught.value.problems) == 3


def test_choices_are_checked_and_open_where_the_model_decides():
    declared = {"SCHEDULE": "str", "EPOCHS": "int"}
    (problem,) = folder.find_problems({"SCHEDULE": "cosin"}, declared)
    assert "SCHEDULE is 'cosin', choose one of constant, cosine" in problem
    assert len(folder.find_problems({"SCHEDULE": "", "EPOCHS": 0}, declared)) == 2
    (problem,) = folder.find_problems({"SCHEDULE": "", "EPOCHS": 0}, declared | {"MODEL": "str"})
    assert "SCHEDULE is ''" in problem


def test_fingerprint_of_the_data_changes_with_labels_split_and_files(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"pixels")
    table = make_table(path)
    changed = [table, table.assign(label=1), table.assign(split="test")]
    marks = [folder.fingerprint_data(each) for each in changed]
    path.write_bytes(b"other pixels")
    assert len({*marks, folder.fingerprint_data(table)}) == 4


def test_last_finished_run_is_found_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIN_RUNS_DIR", str(tmp_path))
    monkeypatch.delenv("LAST_RUN", raising=False)
    first, second = save(tmp_path / "grid/first").path, save(tmp_path / "second").path
    os.utime(first / "metrics.json", (1, 1))
    assert execution.find_run().path == second
    assert execution.find_run("runs/grid/first").path == first
    (second / "model.keras").write_bytes(b"damaged")
    assert execution.find_run().path == first
    monkeypatch.setenv("LAST_RUN", str(second))
    with pytest.raises(InputError, match=r"model\.keras differ"):
        execution.find_run()


def test_damaged_run_of_a_folder_is_named(tmp_path):
    save(tmp_path / "whole")
    (save(tmp_path / "damaged").path / "predictions.csv").write_text("saved anew")
    place, found, others = execution.find_runs(tmp_path)
    assert (place, [run.path.name for run in found]) == (tmp_path, ["whole"])
    assert list(others) == ["damaged"] and "predictions.csv differ" in others["damaged"]


def test_whatever_stops_one_run_the_others_go_on(tmp_path, monkeypatch):
    def stop(notebook, path, *more):
        if path.name == "a":
            raise RuntimeError("no kernel")

    monkeypatch.setattr(execution, "execute_notebook", stop)
    runs = [experiments.PlannedRun(tmp_path / n, tmp_path / "n.ipynb", {}, {}) for n in "ab"]
    failures = execution.execute_experiment(experiments.Experiment(tmp_path, tuple(runs)))
    assert failures == {"a": "RuntimeError: no kernel"}


def test_missing_words_and_ids_are_read_back_as_they_were_meant(tmp_path):
    run = save(tmp_path)
    table = run.predictions.table.assign(sex=["-", "n/a", "male"], lesion_id=["NA", "none", "x"])
    table.to_csv(tmp_path / "p.csv", index=False)
    found = read_predictions(tmp_path / "p.csv", run.classes).table
    assert list(found["sex"]) == ["unknown", "unknown", "male"]
    assert list(found["lesion_id"]) == ["NA", "none", "x"]


def test_grid_over_folds_of_data_with_a_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.data.reading.read_dataset", lambda where: {"split": ()})
    planned = [
        experiments.PlannedRun(tmp_path, tmp_path, {"DATA_DIR": "d", "FOLD": f}, {}) for f in (0, 1)
    ]
    experiment = experiments.Experiment(tmp_path, tuple(planned))
    with pytest.raises(InputError, match="FOLD varies, but d came with a split"):
        execution.execute_experiment(experiment)
