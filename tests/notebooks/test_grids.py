"""Experiments: files checked as a whole, runs executed once, kills and other code survived."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import LocalCluster

from helpers import __main__ as command_line
from helpers.data.files import InputError
from helpers.runs import execution, experiments
from tests.units import fake_run

EXPERIMENTS = Path(__file__).parents[2] / "notebooks/experiments"
PARAMETERS = """
RUN_DIR: str = ""  # where to write
DATA_DIR: str = ""  # of nothing
RATE: float = 0.1  # of nothing
FOLD: int = 0  # the part to predict
FAIL: bool = False  # end with an error
EPOCHS: int = 2  # to count
"""
WORK = """
import json, os, shutil, time
from pathlib import Path
own = {name: value for name, value in globals().items() if name.isupper()}
done = Path(RUN_DIR) / "done.txt"  # stands for a checkpoint
def note(text):
    with (Path(RUN_DIR) / "diary.txt").open("a") as file:
        file.write(f"{text}\\n")
start = int(done.read_text()) if done.exists() else 0
note(f"from {start}")
for epoch in range(start + 1, EPOCHS + 1):
    done.write_text(str(epoch))
    print(f"epoch {epoch}/{EPOCHS}", flush=True)
    while (Path(RUN_DIR).parent / "hold").exists():
        time.sleep(0.02)
assert not FAIL, "told to fail"
"""
SAVE = """
saved = Path(RUN_DIR).parents[2] / "saved"  # a run, to be had without importing the helpers
metrics = json.loads((saved / "metrics.json").read_text())
metrics |= {"parameters": own, "code": json.loads(os.environ["SKIN_NOTEBOOK_CODE"])}
shutil.copytree(saved, RUN_DIR, dirs_exist_ok=True)
(Path(RUN_DIR) / "metrics.json").write_text(json.dumps(metrics))
done.unlink()
note("finished")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a notebook that saves a run after its epochs, without TensorFlow.

    While there is a file `hold` beside the runs, it stays in the epoch that it is in.
    """
    monkeypatch.setenv("SKIN_RUNS_DIR", str(tmp_path / "runs"))
    fake_run.make_notebook(tmp_path / "n.ipynb", PARAMETERS, WORK, SAVE)
    fake_run.save(tmp_path / "saved")
    return tmp_path


def write(project, text):
    path = project / "exp.yaml"
    path.write_text(f"notebook: {project / 'n.ipynb'}\n{text}")
    return path


def read(project, text, **options):
    return experiments.read_experiment(write(project, text), **options)


def read_diary(planned):
    return (planned.path / "diary.txt").read_text().splitlines()


def test_grids_are_products_and_the_first_name_varies_slowest(project):
    text = "grid: [{RATE: [0.1, 1.0e-5], FOLD: [0, 1]}, {FAIL: [true]}]\nfixed: {EPOCHS: 2}"
    experiment = read(project, text, changes=[["EPOCHS", "5"]])
    names = ["RATE=0.1,FOLD=0", "RATE=0.1,FOLD=1", "RATE=1e-05,FOLD=0", "RATE=1e-05,FOLD=1"]
    assert [planned.path.name for planned in experiment.runs] == [*names, "FAIL=true"]
    defaults = {"DATA_DIR": "", "FAIL": False}
    assert experiment.runs[3].parameters == {**defaults, "EPOCHS": 5, "RATE": 1e-5, "FOLD": 1}
    assert experiment.folder == project / "runs/exp"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("grid: {RATE: [1e-4]}", ["RATE is '1e-4' (str), wanted is float", "write 1.0e-4"]),
        (
            "grid: {RAT: [0.1], FOLD: [zero, -1]}",
            ["no parameter RAT: did you mean RATE?", "FOLD is 'zero'", "FOLD is -1"],
        ),
        ("grids: {FOLD: [0]}", ["no key 'grids': did you mean grid?", "nothing to execute"]),
        ("grid: {FOLD: 0, FAIL: []}", ["FOLD is 0, a list is wanted", "FAIL is []"]),
        ("grid: {FOLD: [0, 0]}", ["FOLD=0 is there twice"]),
        ("grid: {FOLD: [0]}\nfixed: {FOLD: 1}", ["FOLD is both fixed and in the grid"]),
        ("grid: {RUN_DIR: [a]}", ["RUN_DIR is chosen for each run"]),
        ("grid: [", ["not readable as YAML"]),
    ],
)
def test_faults_of_the_file_are_all_named(project, text, messages):
    with pytest.raises(InputError) as caught:
        read(project, text)
    for message in messages:
        assert message in str(caught.value)
    assert not (project / "runs").exists()


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_experiments_fit_their_notebook(path):
    assert experiments.read_experiment(path).runs


def test_texts_become_values_of_the_declared_type():
    declared = {"EPOCHS": "int", "RATE": "float", "FAIL": "bool", "DATA_DIR": "str"}
    pairs = [["EPOCHS", "3"], ["RATE", "1e-4"], ["FAIL", "True"], ["DATA_DIR", "7"], ["X", "1"]]
    expected = {"EPOCHS": 3, "RATE": 1e-4, "FAIL": True, "DATA_DIR": "7", "X": "1"}
    assert experiments.parse_parameters(pairs, declared) == expected


def test_failed_run_and_then_runs_of_other_code_are_made_anew(project, capsys):
    text = "grid: [{FOLD: [0]}, {FAIL: [true]}]\nfixed: {RATE: 0.25}"
    experiment = read(project, text)
    first, failed = experiment.runs
    failures = execution.execute_experiment(experiment, jobs=2)
    assert list(failures) == ["FAIL=true"]
    assert "cell 3: AssertionError: told to fail" in failures["FAIL=true"]
    assert "[2/2] " in capsys.readouterr().err
    assert experiments.describe_state(first) == "finished"
    assert experiments.describe_state(failed).startswith("failed: ")
    assert (first.path / "log.txt").read_text() == "epoch 1/2\nepoch 2/2\n"
    assert "epoch 2/2" in (first.path / "report.html").read_text(encoding="utf-8")
    found, others = experiments.load_runs(experiment)
    assert [run.path for run in found] == [first.path]
    assert list(others) == ["FAIL=true"]

    changed = replace(first, parameters={"FOLD": 0, "RATE": 0.5})
    with pytest.raises(InputError, match=r"finished run with RATE 0\.25 instead of 0\.5"):
        execution.execute_experiment(replace(experiment, runs=(changed,)))

    fake_run.make_notebook(project / "n.ipynb", PARAMETERS, WORK.replace("not FAIL", "True"), SAVE)
    grid = ["grid", str(project / "exp.yaml")]
    assert command_line.main([*grid, "--dry-run"]) == 0
    assert "FOLD=0: outdated: made by other code (" in capsys.readouterr().out
    assert command_line.main([*grid, "--keep-old"]) == 0
    assert read_diary(first) == ["from 0", "finished"]
    assert read_diary(failed) == ["from 0", "from 2", "finished"]
    assert [bool(run.outdated) for run in experiments.load_runs(experiment)[0]] == [True, False]
    assert command_line.main(grid) == 0
    assert read_diary(first) == 2 * ["from 0", "finished"]
    assert read_diary(failed) == ["from 0", "from 2", "finished"]


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def hold(project):
    """Keep all runs of the experiment `exp` in the epoch that they are in."""
    path = project / "runs/exp/hold"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_two_processes_do_no_run_twice_and_one_takes_a_killed_one_over(project, hold):
    experiment = read(project, "grid: {FOLD: [0, 1]}")
    first, second = experiment.runs
    command = [sys.executable, "-m", "helpers", "grid", str(project / "exp.yaml")]
    one = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for((first.path / "done.txt").exists)
    with ThreadPoolExecutor() as threads:
        other = threads.submit(execution.execute_experiment, experiment)
        wait_for((second.path / "done.txt").exists)
        states = [experiments.describe_state(planned) for planned in experiment.runs]
        assert states == ["running", "running"]
        assert command_line.main(["run", str(project / "n.ipynb"), str(first.path)]) == 1
        one.kill()
        one.wait()
        time.sleep(2)  # its kernel looks once a second whether it is still wanted
        hold.unlink()
        assert other.result() == {}
    assert read_diary(second) == ["from 0", "finished"]
    assert read_diary(first) == ["from 0", "from 1", "finished"]  # taken over, once


def test_dask_cluster_elsewhere_is_used_or_said_to_be_absent(project):
    experiment = read(project, "grid: {FOLD: [0]}\nfixed: {EPOCHS: 1}")
    with pytest.raises(InputError, match="no Dask scheduler answers there"):
        execution.execute_experiment(experiment, dask="tcp://127.0.0.1:1")
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        assert execution.execute_experiment(experiment, dask=cluster.scheduler_address) == {}
    assert read_diary(experiment.runs[0]) == ["from 0", "finished"]
