"""Experiments: files checked as a whole, runs executed once, killed grids and workers survived."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from helpers.runs import execution as batch
from helpers.runs import experiments, grids
from helpers.runs import folder as runs
from helpers.runs.experiments import read_experiment

EXPERIMENTS = Path(__file__).parents[2] / "notebooks/experiments"
PARAMETERS = """
RUN_DIR: str = ""  # where to write
RATE: float = 0.1  # of nothing
FOLD: int = 0  # the part to predict
FAIL: bool = False  # end with an error
EPOCHS: int = 2  # to count
"""
WORK = """
import json, time
from pathlib import Path
done = Path(RUN_DIR) / "done.txt"  # stands for a checkpoint
def note(text):
    with (Path(RUN_DIR) / "diary.txt").open("a") as file:
        file.write(f"{text}\\n")
start = int(done.read_text()) if done.exists() else 0
note(f"from {start}")
for epoch in range(start + 1, EPOCHS + 1):
    done.write_text(str(epoch))
    print(f"epoch {epoch}/{EPOCHS}: loss 1.0", flush=True)
    while (Path(RUN_DIR).parent / "hold").exists():
        time.sleep(0.02)
assert not FAIL, "told to fail"
"""
SAVE = """
import pandas as pd
from helpers.runs import folder as runs
class Model:
    def save(self, path):
        path.write_bytes(b"weights")
names = [f"image{FOLD}{i}" for i in range(3)]
predictions = pd.DataFrame(
    {"image_id": names, "lesion_id": names, "group": names, "split": ["val", "test", "test"],
     "dx": ["a", "a", "b"], "p_a": [0.5, RATE, RATE], "p_b": [0.5, 1 - RATE, 1 - RATE]})
history = pd.DataFrame({"loss": [1.5]}, index=pd.RangeIndex(1, 2, name="epoch"))
score = {"value": 0.5, "low": 0.25, "high": 0.75}
own = {"RATE": RATE, "FOLD": FOLD, "FAIL": FAIL, "EPOCHS": EPOCHS, "RUN_DIR": RUN_DIR}
metrics = {"parameters": own, "classes": ["a", "b"], "majority_baseline": 0.5,
           "data": {"description": "3 images"}, "scores": {"test": {"accuracy": score}},
           "training": {"seconds": 1.5, "epochs": EPOCHS}}
runs.save_run(RUN_DIR, metrics, history, predictions, Model())
note("finished")
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a notebook that saves a run after its epochs, without TensorFlow.

    While there is a file `hold` beside the runs, it stays in the epoch that it is in.
    """
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in (PARAMETERS, WORK, SAVE)]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})
    nbformat.write(book, tmp_path / "n.ipynb")
    return tmp_path


def write(project, text, name="exp"):
    path = project / f"{name}.yaml"
    path.write_text("notebook: n.ipynb\n" + text)
    return path


def read(project, text, **options):
    return read_experiment(write(project, text), root=project, **options)


def read_diary(planned):
    return (planned.path / "diary.txt").read_text().splitlines()


def test_grid_is_the_product_and_the_first_name_varies_slowest(project):
    experiment = read(project, "grid: {RATE: [0.1, 1.0e-5], FOLD: [0, 1]}\nfixed: {EPOCHS: 2}")
    names = ["RATE=0.1,FOLD=0", "RATE=0.1,FOLD=1", "RATE=1e-05,FOLD=0", "RATE=1e-05,FOLD=1"]
    assert [planned.path.name for planned in experiment.runs] == names
    assert experiment.runs[3].parameters == {"EPOCHS": 2, "RATE": 1e-5, "FOLD": 1}
    assert experiment.folder == project / "runs/exp"


def test_several_grids_and_single_runs_are_joined(project):
    text = "grid:\n- {FAIL: [true], RATE: [1]}\n- {FAIL: [false]}\nruns:\n- {FOLD: 4}"
    names = [planned.path.name for planned in read(project, text).runs]
    assert names == ["FAIL=true,RATE=1", "FAIL=false", "FOLD=4"]


def test_command_line_changes_what_is_fixed(project):
    experiment = read(project, "grid: {FOLD: [0]}\nfixed: {RATE: 0.5}", changes=[["RATE", "1e-4"]])
    assert experiment.runs[0].parameters == {"RATE": 1e-4, "FOLD": 0}


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("grid: {RATE: [1e-4]}", ["RATE is '1e-4' (str), wanted is float", "write 1.0e-4"]),
        (
            "grid: {RAT: [0.1], FOLD: [zero, 1.5]}",
            ["no parameter RAT: did you mean RATE?", "FOLD is 'zero'", "FOLD is 1.5"],
        ),
        ("grids: {FOLD: [0]}", ["no key 'grids': did you mean grid?", "nothing to execute"]),
        ("grid: {FOLD: 0, FAIL: []}", ["FOLD: [0]", "FAIL is [], a list is wanted"]),
        ("grid: {FOLD: [0, 0]}", ["FOLD=0 is there twice"]),
        ("grid: {FOLD: [0]}\nfixed: {FOLD: 1}", ["FOLD is both fixed and in the grid"]),
        ("grid: {RUN_DIR: [a]}", ["RUN_DIR is chosen for each run"]),
        ("grid: {FOLD: [0]}\nensemble: RATE", ["RATE is not in the grid"]),
        ("runs: {FOLD: 0}", ["a list of mappings of names to values is wanted"]),
        ("grid: [", ["not readable as YAML"]),
    ],
)
def test_faults_of_the_file_are_all_named(project, text, messages):
    with pytest.raises(runs.RunError) as caught:
        read(project, text)
    for message in messages:
        assert message in str(caught.value)
    assert not (project / "runs").exists()


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_experiments_fit_their_notebook(path):
    assert read_experiment(path).runs


def test_empty_file_and_missing_notebook_are_named(project):
    (project / "empty.yaml").write_text("")
    with pytest.raises(runs.RunError, match="a mapping with the keys notebook, fixed"):
        read_experiment(project / "empty.yaml")
    (project / "n.ipynb").unlink()
    with pytest.raises(runs.RunError, match="no such notebook"):
        read(project, "grid: {FOLD: [0]}")


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ("drawing\n", 0),
        ("epoch 1/4: loss 1\nepoch 3/4: loss 1\n", 0.75),
        ("training 1/2, epoch 4/4: loss 1\n", 0.5),
        ("training 1/2, epoch 4/4: loss 1\ntraining 2/2, epoch 2/4: loss 1\nAUC .9\n", 0.75),
    ],
)
def test_progress_is_read_from_the_log(tmp_path, said, share):
    assert grids.read_progress(tmp_path / "log.txt") == 0
    (tmp_path / "log.txt").write_text(said)
    assert grids.read_progress(tmp_path / "log.txt") == share


def test_failed_run_is_named_the_others_finish_and_only_it_is_tried_again(project, capsys):
    text = "grid: {FOLD: [0, 1]}\nruns: [{FAIL: true}]\nensemble: FOLD\nfixed: {RATE: 0.25}"
    experiment = read(project, text)
    jobs = min(2, len(os.sched_getaffinity(0)))
    failures = grids.execute_experiment(experiment, jobs)
    assert list(failures) == ["FAIL=true"]
    assert "n.ipynb, cell 3: AssertionError: told to fail" in failures["FAIL=true"]
    told = capsys.readouterr().err
    assert "exp: 3 runs, 0 finished already" in told
    assert "FOLD=1: finished" in told
    assert "FAIL=true: FAILED: n.ipynb, cell 3" in told
    states = [experiments.describe_state(planned) for planned in experiment.runs]
    assert states[:2] == ["finished", "finished"]
    assert states[2].startswith("failed: n.ipynb, cell 3")
    assert grids.read_progress(experiment.runs[0].path / "log.txt") == 1

    found, others = experiments.load_runs(experiment)
    assert [run.path.name for run in found] == ["FOLD=0", "FOLD=1"]
    assert list(others) == ["FAIL=true"]
    joined = runs.load_run(experiment.folder / "FOLD=all")
    assert joined.part("test")[1].tolist() == 4 * [[0.25, 0.75]]
    assert joined.predictions["fold"].tolist() == [0, 0, 0, 1, 1, 1]
    assert joined.model_paths == tuple(run.model_paths[0] for run in found)

    assert list(grids.execute_experiment(experiment)) == ["FAIL=true"]
    assert read_diary(experiment.runs[0]) == ["from 0", "finished"]
    assert read_diary(experiment.runs[2]) == ["from 0", "from 2"]

    changed = replace(experiment.runs[0], parameters={"FOLD": 0, "RATE": 0.5})
    with pytest.raises(runs.RunError, match=r"finished run with RATE 0\.25 instead of 0\.5"):
        grids.execute_experiment(replace(experiment, runs=(changed,)))


def start_grid(project, experiment):
    """Start the command in a process group of its own."""
    code = (
        "import sys; from pathlib import Path; from helpers.runs import experiments, grids; "
        "e = experiments.read_experiment(sys.argv[1], root=Path(sys.argv[2])); "
        "sys.exit(bool(grids.execute_experiment(e)))"
    )
    path = project / f"{experiment.folder.name}.yaml"
    command = [sys.executable, "-c", code, str(path), str(project)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


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


def test_killed_grid_takes_its_run_along_and_goes_on(project, hold):
    experiment = read(project, "grid: {FOLD: [0, 1]}")
    first, second = experiment.runs
    process = start_grid(project, experiment)
    wait_for((first.path / "done.txt").exists)
    process.kill()
    process.wait()
    wait_for(lambda: experiments.describe_state(first) == "interrupted")
    time.sleep(2)  # the kernel looks once a second whether it is still wanted
    hold.unlink()
    time.sleep(1)
    assert (first.path / "done.txt").read_text() == "1"

    assert grids.execute_experiment(experiment) == {}
    assert read_diary(first) == ["from 0", "from 1", "finished"]
    assert read_diary(second) == ["from 0", "finished"]


def test_two_processes_do_no_run_twice_and_one_takes_over(project, hold):
    experiment = read(project, "grid: {FOLD: [0, 1]}")
    first, second = experiment.runs
    one = start_grid(project, experiment)
    wait_for((first.path / "done.txt").exists)
    other = start_grid(project, experiment)
    wait_for((second.path / "done.txt").exists)
    assert experiments.describe_state(first) == experiments.describe_state(second) == "running"
    assert batch.main([str(project / "n.ipynb"), str(first.path)]) == grids.BUSY
    one.kill()
    wait_for(lambda: experiments.describe_state(first) != "running")
    hold.unlink()
    told = other.communicate()[1]
    assert other.returncode == 0, told
    assert read_diary(second) == ["from 0", "finished"]
    assert read_diary(first) == ["from 0", "from 1", "finished"]  # taken over, once


def test_dask_cluster_survives_the_loss_of_a_worker(project, hold):
    pytest.importorskip("distributed", reason="pip install distributed to test Dask mode")
    experiment = read(project, "grid: {FOLD: [0, 1, 2]}")
    file = project / "scheduler.json"
    options = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    started = [start_dask("scheduler", "--port", "0", *options)]
    try:
        wait_for(file.exists)
        work = ("worker", "--nthreads", "1", "--no-nanny", *options)
        started += [start_dask(*work), start_dask(*work)]
        address = wait_for_workers(file, 2)

        def kill_worker():
            wait_for(lambda: count_running(experiment) == 2)
            started[1].kill()
            wait_for(lambda: count_running(experiment) == 1)
            hold.unlink()

        with ThreadPoolExecutor() as threads:
            killing = threads.submit(kill_worker)
            assert grids.execute_experiment(experiment, dask=address) == {}
            killing.result()
    finally:
        for process in started:
            process.kill()
            process.wait()
    diaries = sorted([read_diary(planned) for planned in experiment.runs], key=len)
    whole = ["from 0", "finished"]
    assert diaries == [whole, whole, ["from 0", "from 1", "finished"]]


def start_dask(*arguments):
    command = [sys.executable, "-m", "dask", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def count_running(experiment):
    """Count the runs that are in their first epoch at least."""
    begun = [planned for planned in experiment.runs if (planned.path / "done.txt").exists()]
    return [experiments.describe_state(planned) for planned in begun].count("running")


def wait_for_workers(file, count):
    from distributed import Client

    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(count, timeout=60)
        return client.scheduler.address


def test_dask_without_a_scheduler_says_so(project):
    pytest.importorskip("distributed", reason="pip install distributed to test Dask mode")
    experiment = read(project, "grid: {FOLD: [0]}")
    with pytest.raises(runs.RunError, match="no scheduler answers there"):
        grids.execute_experiment(experiment, dask="tcp://127.0.0.1:1")


def test_cores_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    shares = grids.share_machine(2)
    assert [share["cores"] for share in shares] == [[0, 2], [1, 3]]
    assert [share["environment"]["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "7"]
    shares = grids.share_machine(4)
    assert [s["environment"]["CUDA_VISIBLE_DEVICES"] for s in shares] == ["4", "7", "4", "7"]
    assert all(s["environment"]["TF_FORCE_GPU_ALLOW_GROWTH"] == "true" for s in shares)
    assert grids.share_machine(1) == [{"cores": [], "environment": {}}]
    with pytest.raises(runs.RunError, match=r"--jobs is 5, but there are 4 cores"):
        grids.share_machine(5)


def test_gpus_are_found_without_tensorflow(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\n")
    fake.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    chosen = [share["environment"]["CUDA_VISIBLE_DEVICES"] for share in grids.share_machine(2)]
    assert chosen == ["0", "1"]


def test_command_line_lists_and_executes(project, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "PROJECT", project)
    monkeypatch.setattr(read_experiment, "__defaults__", ((), project))
    path = write(project, "grid: {FOLD: [0]}")
    assert batch.main([str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out == "FOLD=0: not started\n"
    assert batch.main([str(path), "-p", "RATES", "0.5"]) == 1
    assert "no parameter RATES: did you mean RATE?" in capsys.readouterr().err
    assert batch.main([str(path), "-p", "EPOCHS", "0"]) == 0
    assert "1 of 1 runs are finished" in capsys.readouterr().out
    assert batch.main([str(path), "--dry-run", "-p", "EPOCHS", "0"]) == 0
    assert capsys.readouterr().out == "FOLD=0: finished\n"
    with pytest.raises(SystemExit):
        batch.main([str(path), "runs/somewhere"])
    with pytest.raises(SystemExit):
        batch.main([str(project / "n.ipynb")])
