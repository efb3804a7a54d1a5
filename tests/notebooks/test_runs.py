"""A run's folder: whole or refused; parameters: declared or refused."""

import json

import numpy as np
import pandas as pd
import pytest

from helpers.runs import folder as runs


class FakeModel:
    """Stands for a Keras model: runs only calls `save`."""

    def save(self, path):
        path.write_bytes(b"weights")


def save(folder, accuracy=0.5):
    predictions = pd.DataFrame(
        {
            "image_id": ["0001", "0002", "0003"],
            "lesion_id": ["7", "8", "9"],
            "group": ["7", "8", "9"],
            "split": ["val", "test", "test"],
            "dx": ["a", "b", "a"],
            "p_a": [0.9, 0.25, 1 / 3],
            "p_b": [0.1, 0.75, 2 / 3],
        }
    )
    history = pd.DataFrame({"loss": [1.5, 1.25]}, index=pd.RangeIndex(1, 3, name="epoch"))
    metrics = {"classes": ("a", "b"), "scores": {"accuracy": np.float64(accuracy), "auc": np.nan}}
    return runs.save_run(folder, metrics, history, predictions, FakeModel())


def test_run_is_read_back_as_it_was_saved(tmp_path):
    run = runs.load_run(save(tmp_path / "run"))
    assert run.metrics["scores"] == {"accuracy": 0.5, "auc": None}
    assert run.metrics["versions"]["tensorflow"]
    assert run.history.loc[2, "loss"] == 1.25
    labels, probabilities, groups = run.part("test")
    assert labels.tolist() == [1, 0]
    assert probabilities.tolist() == [[0.25, 0.75], [1 / 3, 2 / 3]]
    assert run.predictions["image_id"].tolist() == ["0001", "0002", "0003"]
    assert list(groups) == list(run.predictions["group"][1:])


@pytest.mark.parametrize("name", [runs.METRICS, runs.HISTORY, runs.PREDICTIONS, runs.MODEL])
def test_missing_file_is_named(tmp_path, name):
    save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(runs.RunError, match=rf"not a finished run: {name} missing"):
        runs.load_run(tmp_path)


def test_files_of_two_runs_are_refused(tmp_path):
    save(tmp_path)
    old = (tmp_path / runs.METRICS).read_text()
    predictions = (tmp_path / runs.PREDICTIONS).read_text()
    (tmp_path / runs.PREDICTIONS).write_text(predictions.replace("0.25", "0.26"))
    assert (tmp_path / runs.METRICS).read_text() == old
    with pytest.raises(runs.RunError, match=r"predictions.csv differ"):
        runs.load_run(tmp_path)


def test_damaged_metrics_are_refused(tmp_path):
    save(tmp_path)
    whole = (tmp_path / runs.METRICS).read_text()
    (tmp_path / runs.METRICS).write_text(whole[: len(whole) // 2])
    with pytest.raises(runs.RunError, match="damaged"):
        runs.load_run(tmp_path)


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail_half_way(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.replace_file(tmp_path / runs.METRICS, fail_half_way)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_are_valid_json_without_nan(tmp_path):
    save(tmp_path, accuracy=float("inf"))
    text = (tmp_path / runs.METRICS).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["scores"]["accuracy"] is None


def make_namespace(**values):
    declared = {"EPOCHS": int, "LEARNING_RATE": float, "BATCH_NORM": bool, "DATA_DIR": str}
    defaults = {"EPOCHS": 20, "LEARNING_RATE": 1e-3, "BATCH_NORM": False, "DATA_DIR": ""}
    return {"__annotations__": declared, "In": [], "_i": "", "np": np, **defaults, **values}


def test_parameters_are_collected_in_order():
    parameters = runs.check_parameters(make_namespace(EPOCHS=3, LEARNING_RATE=1))
    assert list(parameters.items()) == [
        ("EPOCHS", 3),
        ("LEARNING_RATE", 1),
        ("BATCH_NORM", False),
        ("DATA_DIR", ""),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"EPOCH": 3}, r"no parameter EPOCH: did you mean EPOCHS\?"),
        ({"LEARNING_RATE": "1e-4"}, r"'1e-4' \(str\), wanted is float; .*write 1.0e-4"),
        ({"EPOCHS": 2.0}, r"EPOCHS is 2.0 \(float\), wanted is int"),
        ({"EPOCHS": True}, r"EPOCHS is True \(bool\), wanted is int"),
        ({"BATCH_NORM": 1}, r"BATCH_NORM is 1 \(int\), wanted is bool"),
    ],
)
def test_wrong_parameters_are_named(values, message):
    with pytest.raises(runs.RunError, match=message):
        runs.check_parameters(make_namespace(**values))


def test_all_wrong_parameters_are_named_together():
    with pytest.raises(runs.RunError) as caught:
        runs.check_parameters(make_namespace(EPOCH=3, BATCH_NORM="yes"))
    assert len(str(caught.value).splitlines()) == 2


def test_only_optional_parameters_may_be_open():
    found = runs.check_parameters(make_namespace(EPOCHS=None), optional=["EPOCHS"])
    assert found["EPOCHS"] is None
    with pytest.raises(runs.RunError, match=r"EPOCHS is None \(NoneType\), wanted is int"):
        runs.check_parameters(make_namespace(EPOCHS=None))


def test_fingerprint_changes_with_labels_split_and_pixels():
    table = pd.DataFrame({"image_id": ["a", "b"], "label": [0, 1], "group": ["a", "b"]})
    table["split"] = ["train", "test"]
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    other = pixels.copy()
    other[1, 2, 3, 0] = 1
    prints = {
        runs.fingerprint_data(table, pixels),
        runs.fingerprint_data(table, other),
        runs.fingerprint_data(table.assign(label=[1, 1]), pixels),
        runs.fingerprint_data(table.assign(split=["test", "train"]), pixels),
    }
    assert len(prints) == 4
