"""helpers.download against a server that behaves like Dataverse at its worst; no real network."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from bad_server import BadServer, Fault, StoredFile

from helpers.data import download

ROOT = Path(__file__).parents[2]
PART_1, PART_2 = "HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip"
METADATA = "HAM10000_metadata.csv"


def build_zip(names: list[str], seed: int = 0, size: int = 40_000) -> bytes:
    """An archive of files that do not compress, as JPEGs do not."""
    content = io.BytesIO()
    numbers = random.Random(seed)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"" if name.endswith("/") else numbers.randbytes(size))
    return content.getvalue()


def name_images(first: int, count: int = 8) -> list[str]:
    return [f"ISIC_{number:07d}.jpg" for number in range(first, first + count)]


def build_table(names: list[str]) -> bytes:
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    rows = [
        f"HAM_{index},{Path(name).stem},nv,histo,50.0,male,back\n"
        for index, name in enumerate(names)
    ]
    return (header + "".join(rows)).encode()


IMAGES_1, IMAGES_2 = name_images(24306), name_images(29306)


def build_files() -> list[StoredFile]:
    test_images = ["ISIC2018_Task3_Test_Images/", "__MACOSX/._ISIC_0034524.jpg"]
    test_images += [f"ISIC2018_Task3_Test_Images/{name}" for name in name_images(34524, 3)]
    files = [
        StoredFile(4338392, METADATA, build_table(IMAGES_1 + IMAGES_2), tabular=True),
        StoredFile(3172585, PART_1, build_zip(IMAGES_1, 1)),
        StoredFile(3172584, PART_2, build_zip(IMAGES_2, 2)),
        StoredFile(
            6924466,
            "ISIC2018_Task3_Test_GroundTruth.csv",
            build_table(name_images(34524, 3)),
            tabular=True,
        ),
        StoredFile(3855824, "ISIC2018_Task3_Test_Images.zip", build_zip(test_images, 3)),
    ]
    for name in ("Training_GroundTruth", "Training_Input", "Test_GroundTruth", "Test_Input"):
        name = f"ISIC2018_Task3_{name}"
        inner = [f"{name}/{name}.csv"] if "Truth" in name else [f"{name}/ISIC_0024306.jpg"]
        files.append(StoredFile(0, f"{name}.zip", build_zip(inner, 4, 100_000)))
    groupings = "ISIC2018_Task3_Training_LesionGroupings.csv"
    return [*files, StoredFile(0, groupings, b"image,lesion_id,diagnosis_confirm_type\n")]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts in seconds, noted instead of waited for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    noted: list[float] = []
    monkeypatch.setattr(download, "sleep", noted.append)
    return noted


@pytest.fixture
def server() -> Iterator[BadServer]:
    server = BadServer(build_files())
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ham10000"


@pytest.fixture
def fetch(server: BadServer, folder: Path) -> Callable[..., int]:
    """The command line against the server."""
    return lambda *options: download.main([str(folder), "--base-url", server.url, *options])


def list_tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


TRAINING_TREE = {
    METADATA,
    download.RECEIPT,
    *(f"HAM10000_images_part_1/{name}" for name in IMAGES_1),
    *(f"HAM10000_images_part_2/{name}" for name in IMAGES_2),
}


def check_images(folder: Path, server: BadServer) -> None:
    """Every file as its archive has it, and nothing else in the folder."""
    assert list_tree(folder) == TRAINING_TREE
    assert (folder / METADATA).read_bytes() == server.files[METADATA].data
    for name in (PART_1, PART_2):
        with zipfile.ZipFile(io.BytesIO(server.files[name].data)) as archive:
            for image in archive.namelist():
                assert (folder / Path(name).stem / image).read_bytes() == archive.read(image)


# All goes well


def test_fetches_training_and_test_into_sibling_folders(server, folder, fetch, capsys):
    assert fetch("--test") == 0
    check_images(folder, server)
    assert list_tree(folder.with_name("ham10000-test")) == {
        download.RECEIPT,
        "ISIC2018_Task3_Test_GroundTruth.csv",
        *(f"ISIC2018_Task3_Test_Images/{name}" for name in name_images(34524, 3)),
    }
    said = capsys.readouterr().out
    assert "HAM10000_images_part_1: 8 files, 0.3 MB from dataverse" in said
    assert str(folder.with_name("ham10000-test")) in said
    assert "CC BY-NC 4.0" in said
    assert "doi:10.1038/sdata.2018.161" in said


def test_second_run_asks_nothing_and_reads_nothing(server, folder, fetch, monkeypatch, capsys):
    assert fetch() == 0
    asked = len(server.log)
    monkeypatch.setattr(download, "compute_md5", lambda path: pytest.fail(f"reads {path}"))
    start = time.perf_counter()
    assert fetch() == 0
    assert time.perf_counter() - start < 1
    assert len(server.log) == asked
    assert "HAM10000_metadata.csv" in capsys.readouterr().out


def test_test_files_can_be_added_later(server, folder, fetch):
    assert fetch() == 0
    server.log.clear()
    assert fetch("--test") == 0
    assert not server.find_requests(PART_1)
    assert server.find_requests("ISIC2018_Task3_Test_Images.zip")


def test_a_file_managers_litter_changes_nothing(server, folder, fetch):
    assert fetch() == 0
    (folder / "HAM10000_images_part_1" / ".DS_Store").write_bytes(b"x")
    server.log.clear()
    assert fetch() == 0
    assert not server.log


# The server at its worst


def test_expired_link_makes_it_ask_for_a_fresh_one(server, folder, fetch, waits):
    server.faults[PART_1] = [Fault("expired"), Fault("expired")]
    assert fetch() == 0
    check_images(folder, server)
    assert [request.status for request in server.find_requests(PART_1)] == [403, 403, 200]
    redirects = [r for r in server.log if r.path == "/api/access/datafile/3172585"]
    assert len(redirects) == 3
    assert waits == [1, 2]


def test_link_that_expires_during_a_resume(server, folder, fetch):
    server.faults[PART_1] = [Fault("cut", at=0.5)]
    server.faults[PART_1] += [Fault("expired")]
    assert fetch() == 0
    check_images(folder, server)
    assert [request.status for request in server.find_requests(PART_1)] == [200, 403, 206]


def test_names_itself_to_a_server_that_refuses_pythons_default(server, folder, fetch):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(server.url)
    assert requests.get(server.url, timeout=5).status_code == 403
    server.log.clear()
    assert fetch() == 0
    assert {request.agent for request in server.log} == {download.USER_AGENT}


def test_connection_cut_at_37_percent_resumes(server, folder, fetch, waits, capsys):
    server.faults[PART_1] = [Fault("cut", at=0.37)]
    assert fetch() == 0
    check_images(folder, server)
    size = len(server.files[PART_1].data)
    _, second = server.find_requests(PART_1)
    kept = int(size * 0.37) // download.CHUNK_BYTES * download.CHUNK_BYTES
    assert second.range == f"bytes={kept}-"
    assert second.if_range == server.files[PART_1].etag
    assert (second.status, second.sent) == (206, size - kept)
    assert waits == [1]
    said = capsys.readouterr()
    assert "the connection broke" in said.err
    assert "secret" not in said.out + said.err


def test_signed_links_are_never_stored(server, folder, fetch, monkeypatch, capsys):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.faults[PART_1] = [Fault("cut", at=0.37)]
    assert fetch() == 1
    assert f"{PART_1}.part" in list_tree(folder)
    kept = b"".join(path.read_bytes() for path in folder.glob(".*"))
    assert b"secret" not in kept
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    assert download.AGAIN in said.err


def test_a_line_that_breaks_often_gets_there(server, folder, fetch, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.faults[PART_1] = [Fault("cut", at=share / 10) for share in range(1, 10)]
    assert fetch() == 0
    check_images(folder, server)
    sent = sum(request.sent for request in server.find_requests(PART_1))
    assert sent < len(server.files[PART_1].data) + 9 * download.CHUNK_BYTES


def test_a_line_that_brings_nothing_is_given_up(server, folder, fetch, waits, capsys):
    server.faults[PART_1] = [Fault("cut", at=0)] * 20
    assert fetch() == 1
    assert waits == [1, 2, 4, 8, 16, 32, 60]
    assert f"error: {PART_1}: the connection broke" in capsys.readouterr().err


def test_server_that_falls_silent(server, folder, fetch, monkeypatch, capsys):
    monkeypatch.setattr(download, "TIMEOUT_S", (5, 0.3))
    server.faults[PART_1] = [Fault("stall", at=0.5)]
    assert fetch() == 0
    check_images(folder, server)
    assert [request.status for request in server.find_requests(PART_1)] == [200, 206]
    assert "the connection broke (ConnectionError)" in capsys.readouterr().err


def test_wrong_bytes_once_are_fetched_again(server, folder, fetch, capsys):
    server.faults[PART_1] = [Fault("wrong")]
    assert fetch() == 0
    check_images(folder, server)
    assert [request.status for request in server.find_requests(PART_1)] == [200, 200]
    assert f"instead of {hashlib.md5(server.files[PART_1].data).hexdigest()}" in (
        capsys.readouterr().err
    )


def test_wrong_bytes_every_time_are_an_error_and_keep_the_rest(server, folder, fetch, capsys):
    server.faults[PART_1] = [Fault("wrong")] * 3
    assert fetch() == 1
    assert list_tree(folder) == {METADATA, download.RECEIPT}
    assert "3 times: try again later, another --source" in capsys.readouterr().err
    assert fetch() == 0
    check_images(folder, server)


def test_server_without_ranges_sends_it_all_again(server, folder, fetch, capsys):
    server.ranges = False
    server.faults[PART_1] = [Fault("cut", at=0.37)]
    assert fetch() == 0
    check_images(folder, server)
    assert [request.status for request in server.find_requests(PART_1)] == [200, 200]
    assert "from the start again" in capsys.readouterr().err


def break_off(fetch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run until the first interruption, as if the person then gave up for the day."""
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        assert fetch(*options) == 1


def test_file_listed_anew_between_two_runs_starts_over(server, folder, fetch, monkeypatch, capsys):
    server.faults[PART_1] = [Fault("cut", at=0.37)]
    break_off(fetch, monkeypatch)
    server.files[PART_1].data = build_zip(IMAGES_1, seed=99)
    server.log.clear()
    assert fetch() == 0
    check_images(folder, server)
    assert [request.range for request in server.find_requests(PART_1)] == [None]
    assert f"{PART_1}: the server has another than version 4.0" in capsys.readouterr().err


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range honoured", "ignored"])
@pytest.mark.parametrize("new_size", [40_000, 5_000], ids=["same size", "smaller"])
def test_file_changed_between_two_runs_starts_over(
    server, folder, fetch, monkeypatch, if_range, new_size
):
    name = "ISIC2018_Task3_Training_Input.zip"  # the bucket lists no md5: the ETag must tell
    server.if_range = if_range
    server.files[name] = StoredFile(0, name, build_zip(IMAGES_1, 1), in_parts=True)
    server.faults[name] = [Fault("cut", at=0.37)]
    break_off(fetch, monkeypatch, "--source", "isic")
    server.files[name].data = build_zip(IMAGES_1, 99, new_size)
    assert fetch("--source", "isic") == 0
    with zipfile.ZipFile(io.BytesIO(server.files[name].data)) as archive:
        for image in IMAGES_1:
            assert (folder / Path(name).stem / image).read_bytes() == archive.read(image)


def test_server_without_etags_resumes_and_the_md5_decides(server, folder, fetch):
    server.etags = False
    server.faults[PART_1] = [Fault("cut", at=0.37)]
    assert fetch() == 0
    check_images(folder, server)
    assert [request.status for request in server.find_requests(PART_1)] == [200, 206]


def test_asks_for_the_original_of_a_tabular_file_only(server, folder, fetch):
    assert fetch() == 0
    paths = {r.path for r in server.log if r.path.startswith("/api/access")}
    assert paths == {
        "/api/access/datafile/4338392?format=original",
        "/api/access/datafile/3172585",
        "/api/access/datafile/3172584",
    }


def test_tab_instead_of_csv_once(server, folder, fetch, capsys):
    server.faults[METADATA] = [Fault("tab")]
    assert fetch() == 0
    check_images(folder, server)
    assert "tab-separated copy" in capsys.readouterr().err


def test_tab_instead_of_csv_every_time_is_said(server, folder, fetch, capsys):
    server.faults[METADATA] = [Fault("tab")] * 3
    assert fetch() == 1
    said = capsys.readouterr().err
    assert f"error: {METADATA}: md5" in said
    assert "tab-separated copy, not the original" in said


def test_503_twice(server, folder, fetch, waits):
    server.faults[PART_1] = [Fault("status", status=503)] * 2
    assert fetch() == 0
    check_images(folder, server)
    assert waits == [1, 2]


@pytest.mark.parametrize(("value", "expected"), [("7", 7), ("nonsense", 1)])
def test_429_waits_as_long_as_the_server_asks(server, folder, fetch, waits, value, expected):
    server.faults[PART_1] = [Fault("status", status=429, headers={"Retry-After": value})]
    assert fetch() == 0
    assert waits == [expected]


def test_429_for_an_hour_ends_the_run(server, folder, fetch, waits, capsys):
    server.faults[PART_1] = [Fault("status", status=429, headers={"Retry-After": "3600"})]
    assert fetch() == 1
    assert waits == []
    assert f"error: {PART_1}: the server is busy (429) and asks for 60 min" in (
        capsys.readouterr().err
    )


def test_refused_for_good_names_address_and_remedy(server, folder, fetch, waits, capsys):
    server.files.pop(PART_1)  # neither listed nor there
    assert fetch() == 1
    assert waits == []
    said = capsys.readouterr().err
    assert "/api/access/datafile/3172585 is refused (404" in said
    assert "another --source" in said


def test_no_server_at_all(folder, capsys):
    assert download.main([str(folder), "--base-url", "http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert "error: HAM10000_metadata.csv: the connection broke (ConnectionError), 8 times" in said
    assert "Traceback" not in said


def test_base_url_without_scheme(folder, capsys):
    assert download.main([str(folder), "--base-url", "127.0.0.1"]) == 1
    assert "check --base-url" in capsys.readouterr().err


# The server's list


@pytest.fixture
def built_in(server: BadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in table with the checksums of the test's files."""
    table = tuple(
        replace(remote, md5=hashlib.md5(server.files[remote.name].data).hexdigest())
        for remote in download.FILES["dataverse"]
    )
    monkeypatch.setitem(download.FILES, "dataverse", table)


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize("fault", ["missing", "no JSON", "503 for ever"])
def test_built_in_table_where_the_list_cannot_be_had(server, folder, fetch, fault, waits, capsys):
    server.list_files = fault != "missing"
    server.listing = {"no JSON": [Fault("wrong")], "missing": []}.get(
        fault, [Fault("status", status=503)] * 9
    )
    assert fetch() == 0
    check_images(folder, server)
    assert len(waits) == (2 if fault == "503 for ever" else 0)
    assert "taking the built-in one" in capsys.readouterr().err


def test_list_busy_once_is_asked_again(server, folder, fetch, waits):
    server.listing = [Fault("status", status=503)]
    assert fetch() == 0
    check_images(folder, server)
    assert waits == [1]


def test_the_list_gives_ids(server, folder, fetch):
    server.files[PART_1].file_id = 777
    assert fetch() == 0
    check_images(folder, server)
    assert "/api/access/datafile/777" in {request.path for request in server.log}


# The disk


def set_free_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil._ntuple_diskusage(10**12, 10**12 - free, free)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)


def test_too_small_a_disk_is_refused_before_anything_is_asked(
    server, folder, fetch, monkeypatch, capsys
):
    set_free_space(monkeypatch, 3_000_000_000)
    assert fetch() == 1
    assert not server.log
    assert "about 4.174 GB are needed and 3.000 GB are free" in capsys.readouterr().err


def test_space_is_checked_again_when_the_true_size_is_known(server, folder, fetch, monkeypatch):
    monkeypatch.setattr(download, "estimate_need", lambda *plan: 0)
    set_free_space(monkeypatch, 100_000)
    assert fetch() == 1
    assert list_tree(folder) == {METADATA, download.RECEIPT}
    assert server.find_requests(PART_1)


class FullDisk:
    """A file whose disk is full after `room` bytes."""

    def __init__(self, file: io.BufferedWriter, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        if self.room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def test_disk_that_fills_up_during_the_transfer(server, folder, fetch, monkeypatch, capsys):
    real_open = Path.open

    def open_full(path: Path, mode: str = "r", *rest: object, **named: object) -> object:
        file = real_open(path, mode, *rest, **named)
        return FullDisk(file, 150_000) if path.name == f"{PART_1}.part" and "b" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        assert fetch() == 1
    said = capsys.readouterr().err
    assert f"{PART_1}.part: No space left on device" in said
    assert "Traceback" not in said
    kept = (folder / f"{PART_1}.part").stat().st_size
    assert kept == 150_000 // download.CHUNK_BYTES * download.CHUNK_BYTES
    assert fetch() == 0
    check_images(folder, server)
    assert server.find_requests(PART_1)[-1].range == f"bytes={kept}-"


def test_disk_that_fills_up_during_unpacking(server, folder, fetch, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "copyfileobj", fail)
        assert fetch() == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list_tree(folder) == {METADATA, download.RECEIPT, f"{PART_1}.part"}
    server.log.clear()
    assert fetch() == 0
    check_images(folder, server)
    assert not server.find_requests(PART_1)


def test_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert download.main([str(tmp_path / "file")]) == 1
    assert f"error: {tmp_path / 'file'}: File exists" in capsys.readouterr().err


# Killed


def start_command(server: BadServer, folder: Path, prelude: str = "pass") -> subprocess.Popen:
    code = f"import os, signal, sys; from helpers.data import download; {prelude}; sys.exit("
    code += f"download.main([{str(folder)!r}, '--base-url', {server.url!r}]))"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def test_kill_in_the_middle_of_the_transfer_loses_nothing(server, folder, fetch):
    size = len(server.files[PART_1].data)
    server.faults[PART_1] = [Fault("stall", at=0.7)]
    process = start_command(server, folder)
    part = folder / f"{PART_1}.part"
    written = int(size * 0.7) // download.CHUNK_BYTES * download.CHUNK_BYTES
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size >= written):
        assert time.monotonic() < deadline, "the command never got as far"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    server.released.set()
    kept = part.stat().st_size
    assert fetch() == 0
    check_images(folder, server)
    last = server.find_requests(PART_1)[-1]
    assert (last.range, last.status, last.sent) == (f"bytes={kept}-", 206, size - kept)
    assert len(server.find_requests(METADATA)) == 1


KILLS = {
    "unpacking": "download.shutil.copyfileobj = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "naming": "download.Path.rename = lambda path, target: "
    "os.kill(os.getpid(), signal.SIGKILL) if path.is_dir() else os.rename(path, target)",
    "checking": "real = download.compute_md5; download.compute_md5 = lambda path: "
    "os.kill(os.getpid(), signal.SIGKILL) if '_1' in path.name else real(path)",
    "clearing up": "real = download.clear_part; download.clear_part = lambda part: "
    "os.kill(os.getpid(), signal.SIGKILL) if part.name.endswith('_1.zip.part') else real(part)",
}


@pytest.mark.parametrize("moment", KILLS)
def test_kill_after_the_transfer_leaves_nothing_or_a_whole_folder(server, folder, fetch, moment):
    process = start_command(server, folder, KILLS[moment])
    assert process.wait(20) == -signal.SIGKILL
    images = folder / "HAM10000_images_part_1"
    if moment == "clearing up":
        assert list_tree(images) == set(IMAGES_1)
    else:
        assert not images.exists()
    server.log.clear()
    assert fetch() == 0
    assert not server.find_requests(PART_1), "nothing is fetched twice"
    check_images(folder, server)


def test_ctrl_c(server, folder, fetch, monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download.shutil, "copyfileobj", interrupt)
    assert fetch() == 130
    assert "it resumes" in capsys.readouterr().err


# What is there already


def test_right_file_without_receipt_is_taken(server, folder, fetch):
    folder.mkdir(parents=True)
    (folder / METADATA).write_bytes(server.files[METADATA].data)
    assert fetch() == 0
    check_images(folder, server)
    assert not server.find_requests(METADATA)


def test_foreign_files_are_reported_together_and_kept(server, folder, fetch, capsys):
    (folder / "HAM10000_images_part_2").mkdir(parents=True)
    (folder / METADATA).write_bytes(b"my own table")
    assert fetch() == 1
    said = capsys.readouterr().err
    assert f"{METADATA} has md5" in said
    assert "HAM10000_images_part_2 (0 files) is not as unpacked from dataverse" in said
    assert "move it away" in said
    assert (folder / METADATA).read_bytes() == b"my own table"
    assert not server.find_requests(PART_1)


def test_a_lost_image_is_noticed(server, folder, fetch, capsys):
    assert fetch() == 0
    (folder / "HAM10000_images_part_1" / IMAGES_1[0]).unlink()
    assert fetch() == 1
    assert "HAM10000_images_part_1 (7 files) is not as unpacked" in capsys.readouterr().err


def test_broken_receipt_is_no_receipt(server, folder, fetch, capsys):
    server.faults[PART_1] = [Fault("status", status=404)] * 8
    assert fetch() == 1
    (folder / download.RECEIPT).write_text('{"HAM10000_met')
    assert fetch() == 0
    check_images(folder, server)


# Archives that mean harm


def build_archive(entries: list[tuple[zipfile.ZipInfo | str, bytes]]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def build_link(name: str, target: bytes, kind: int = stat.S_IFLNK) -> bytes:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return build_archive([(info, target)])


HARM = {
    "parent": (build_archive([("../evil.jpg", b"x")]), "'../evil.jpg' leads out"),
    "parent inside": (build_archive([("a/../../evil.jpg", b"x")]), "leads out"),
    "absolute": (build_archive([("/tmp/evil.jpg", b"x")]), "'/tmp/evil.jpg' leads out"),
    "Windows": (build_archive([("C:\\evil.jpg", b"x")]), "leads out"),
    "link": (build_link("ISIC_0024306.jpg", b"/etc/passwd"), "is a link or a special file"),
    "bomb": (build_archive([("ISIC_0024306.jpg", bytes(3_000_000))]), "would become 3,000,000"),
    "twice": (build_archive([("a/1.jpg", b"x"), ("b/1.jpg", b"y")]), "'1.jpg' comes twice"),
    "device": (build_link("ISIC_0024306.jpg", b"", stat.S_IFCHR), "is a link or a special file"),
    "no archive": (b"<html>sorry</html>", "cannot be unpacked"),
    "damaged": (build_zip(IMAGES_1, 1)[:-2000], "cannot be unpacked"),
}


@pytest.mark.parametrize("harm", HARM)
def test_harmful_archive_is_refused(server, folder, fetch, harm, capsys):
    server.files[PART_1].data, reason = HARM[harm]
    assert fetch() == 1
    said = capsys.readouterr().err
    assert reason in said
    assert f"{PART_1}.part" in said
    assert list_tree(folder.parents[2]) == {
        f"data/ham10000/{name}" for name in (METADATA, download.RECEIPT, f"{PART_1}.part")
    }


def test_archive_beyond_the_size_limit_is_refused(server, folder, fetch, monkeypatch, capsys):
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 100_000)
    assert fetch() == 1
    assert "bytes would become 320,000" in capsys.readouterr().err


def test_all_harm_is_reported_together(server, folder, fetch, capsys):
    names = [f"../{number}.jpg" for number in range(7)]
    server.files[PART_1].data = build_archive([(name, b"x") for name in names])
    assert fetch() == 1
    said = capsys.readouterr().err
    assert "'../0.jpg' leads out" in said
    assert "'../4.jpg' leads out" in said
    assert "and 2 more" in said


def test_damaged_image_in_an_archive_without_md5(server, folder, fetch, capsys):
    name = "ISIC2018_Task3_Training_Input.zip"
    data = bytearray(server.files[name].data)
    data[50_000] ^= 255
    server.files[name] = StoredFile(0, name, bytes(data), in_parts=True)
    assert fetch("--source", "isic") == 1
    said = capsys.readouterr().err
    assert f"{name}.part cannot be unpacked (Bad CRC-32" in said
    assert not (folder / Path(name).stem).exists()


# The other sources


def test_challenge_bucket(server, folder, fetch):
    assert fetch("--source", "isic", "--test") == 0
    truth = "ISIC2018_Task3_Training_GroundTruth"
    assert list_tree(folder) == {
        download.RECEIPT,
        "ISIC2018_Task3_Training_LesionGroupings.csv",
        f"{truth}/{truth}.csv",
        "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg",
    }
    assert list_tree(folder.with_name("ham10000-test")) == {
        download.RECEIPT,
        "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
        "ISIC2018_Task3_Test_Input/ISIC_0024306.jpg",
    }
    assert all(request.path.startswith("/2018/") for request in server.log)


def test_challenge_bucket_is_checked_by_etag(server, folder, fetch):
    name = "ISIC2018_Task3_Training_Input.zip"
    server.faults[name] = [Fault("wrong")]
    assert fetch("--source", "isic") == 0
    assert [r.status for r in server.log if name in r.path] == [200, 200]


def test_challenge_table_that_cannot_be_checked_is_refused(server, folder, fetch, capsys):
    server.etags = False
    assert fetch("--source", "isic") == 1
    assert "LesionGroupings.csv: md5" in capsys.readouterr().err
    assert list_tree(folder) == {download.RECEIPT}


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for kagglehub; the folder is its copy, with every image twice."""
    cache = tmp_path / "cache" / "datasets" / download.KAGGLE_DATASET
    for prefix in ("HAM", "ham"):
        for part, names in (("1", IMAGES_1), ("2", IMAGES_2)):
            images = cache / "versions" / "2" / f"{prefix}10000_images_part_{part}"
            images.mkdir(parents=True, exist_ok=True)
            for name in names:
                (images / name).write_bytes(name.encode())
    table = cache / "versions" / "2" / METADATA
    table.write_bytes(build_table(IMAGES_1 + IMAGES_2))
    module = types.ModuleType("kagglehub")
    module.dataset_download = lambda handle: str(cache / "versions" / "2")
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    first, *rest = download.FILES["kaggle"]
    known = replace(first, md5=hashlib.md5(table.read_bytes()).hexdigest())
    monkeypatch.setitem(download.FILES, "kaggle", (known, *rest))
    return cache / "versions" / "2"


def test_kaggle_gives_every_image_once(server, folder, fetch, kaggle, monkeypatch):
    set_free_space(monkeypatch, 1_000_000)  # enough: all is in the cache, and links cost nothing
    assert fetch("--source", "kaggle") == 0
    assert list_tree(folder) == TRAINING_TREE
    image = folder / "HAM10000_images_part_1" / IMAGES_1[0]
    assert image.read_bytes() == IMAGES_1[0].encode()
    assert image.stat().st_nlink == 2, "a link costs no space"
    assert not server.log
    monkeypatch.delitem(sys.modules, "kagglehub")
    assert fetch("--source", "kaggle") == 0, "a second run does not need kagglehub"


def test_kaggle_copies_where_links_are_impossible(folder, fetch, kaggle, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(download.os, "link", refuse)
    assert fetch("--source", "kaggle") == 0
    assert list_tree(folder) == TRAINING_TREE


def test_kaggle_with_the_test_from_dataverse(server, folder, fetch, kaggle):
    assert fetch("--source", "kaggle", "--test") == 0
    assert "ISIC2018_Task3_Test_GroundTruth.csv" in list_tree(folder.with_name("ham10000-test"))


def test_kaggle_without_kagglehub(folder, fetch, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # import raises ImportError
    assert fetch("--source", "kaggle") == 1
    assert "pip install kagglehub" in capsys.readouterr().err


def test_kaggle_failing(folder, fetch, kaggle, capsys):
    def fail(handle: str) -> str:
        raise RuntimeError("403 for url: https://storage.example/x?signature=secret1")

    sys.modules["kagglehub"].dataset_download = fail
    assert fetch("--source", "kaggle") == 1
    said = capsys.readouterr().err
    assert "kagglehub failed (RuntimeError: 403 for url: https://storage.example/x)" in said
    assert "secret" not in said


def test_kaggle_cache_is_checked_for_space(folder, fetch, kaggle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "empty"))
    set_free_space(monkeypatch, 5_000_000_000)
    assert fetch("--source", "kaggle") == 1
    assert "about 11.200 GB are needed" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["other table", "image lost"])
def test_kaggle_with_another_content(folder, fetch, kaggle, damage, capsys):
    if damage == "other table":
        (kaggle / METADATA).write_bytes(build_table(IMAGES_1[:1]))
    else:
        for path in kaggle.rglob(IMAGES_1[0]):
            path.unlink()
    assert fetch("--source", "kaggle") == 1
    said = capsys.readouterr().err
    assert f"delete {kaggle}" in said
    assert list_tree(folder) == set()


def test_another_source_in_the_same_folder_is_refused(server, folder, fetch, kaggle, capsys):
    assert fetch("--source", "kaggle") == 0
    kept = json.loads((folder / download.RECEIPT).read_text())
    (folder / METADATA).unlink()
    assert fetch() == 1
    assert "part_1 (8 files) is not as unpacked from dataverse" in capsys.readouterr().err
    assert kept == json.loads((folder / download.RECEIPT).read_text())


def test_a_part_of_another_source_is_left_alone(server, folder, fetch, monkeypatch, capsys):
    part = "ISIC2018_Task3_Training_LesionGroupings.csv"
    server.faults[part] = [Fault("cut", at=0.5)]
    break_off(fetch, monkeypatch, "--source", "isic")
    assert fetch() == 0
    assert part not in capsys.readouterr().out


# The command line


def test_current_folder_gets_a_sibling(server, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert download.main([".", "--test", "--base-url", server.url]) == 0
    assert list_tree(tmp_path / "here") == TRAINING_TREE
    assert (tmp_path / "here-test" / "ISIC2018_Task3_Test_Images").is_dir()


def test_help_and_wrong_usage():
    command = [sys.executable, "-m", "helpers.data.download"]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert "--base-url" in shown.stdout
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2
