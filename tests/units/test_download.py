"""The download against a server that behaves like Dataverse at its worst; no real network."""

import argparse
import errno
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import requests
from bad_server import BadServer, Fault

from helpers.data import download
from helpers.data.files import InputError

ROOT = Path(__file__).parents[2]
PART_1, PART_2 = 3172585, 3172584
TABLE = "HAM10000_metadata.csv"
IMAGES = {
    PART_1: [f"ISIC_{number:07d}.jpg" for number in range(24306, 24314)],
    PART_2: [f"ISIC_{number:07d}.jpg" for number in range(29306, 29314)],
}
TREE = {TABLE}
TREE |= {f"HAM10000_images_part_1/{name}" for name in IMAGES[PART_1]}
TREE |= {f"HAM10000_images_part_2/{name}" for name in IMAGES[PART_2]}


def build_zip(names, seed):
    """An archive of files that do not compress, as JPEGs do not."""
    content, numbers = io.BytesIO(), random.Random(seed)
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            data = b"" if name.endswith("/") else numbers.randbytes(40_000)
            archive.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()


TEST_NAMES = ["ISIC2018_Task3_Test_Images/", "__MACOSX/._ISIC_0034524.jpg"]
TEST_NAMES += [f"ISIC2018_Task3_Test_Images/ISIC_{number:07d}.jpg" for number in (34524, 34525)]
CONTENTS = {
    4338392: b"lesion_id,image_id,dx\nHAM_0,ISIC_0024306,nv\n",
    PART_1: build_zip(IMAGES[PART_1], 1),
    PART_2: build_zip(IMAGES[PART_2], 2),
    6924466: b"lesion_id,image_id,dx\nHAMTEST_0,ISIC_0034524,nv\n",
    3855824: build_zip(TEST_NAMES, 3),
}
SIZE = len(CONTENTS[PART_1])
KEPT = int(SIZE * 0.37) // download.CHUNK_BYTES * download.CHUNK_BYTES  # of a line cut at 37 %


def adapt(files):
    """Give the files of the built-in table the checksums and counts of the server's."""
    counts = {PART_1: 8, PART_2: 8, 3855824: 2}
    sums = {number: hashlib.md5(data).hexdigest() for number, data in CONTENTS.items()}
    return tuple(f._replace(md5=sums[f.number], images=counts.get(f.number, 0)) for f in files)


SMALL = {"FILES": adapt(download.FILES), "TEST_FILES": adapt(download.TEST_FILES)}


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits between attempts in seconds, noted instead of waited for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    noted = []
    monkeypatch.setattr(download, "sleep", noted.append)
    for name, files in SMALL.items():
        monkeypatch.setattr(download, name, files)
    return noted


@pytest.fixture
def server():
    server = BadServer(dict(CONTENTS))
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "ham10000"


def call(*options):
    parser = argparse.ArgumentParser()
    download.add_arguments(parser)
    return download.run(parser.parse_args([str(option) for option in options]))


@pytest.fixture
def fetch(server, folder):
    """The command against the server."""
    return lambda *options: call(folder, "--base-url", server.url, *options)


def list_tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def check_images(folder):
    """Every file as its archive has it, and nothing else in the folder."""
    assert list_tree(folder) == TREE
    assert (folder / TABLE).read_bytes() == CONTENTS[4338392]
    for number, names in IMAGES.items():
        with zipfile.ZipFile(io.BytesIO(CONTENTS[number])) as archive:
            read = [next(folder.rglob(name)).read_bytes() for name in names]
            assert read == [archive.read(name) for name in names]


def test_training_and_test_in_sibling_folders(folder, fetch, capsys):
    assert fetch("--test") == 0
    check_images(folder)
    test = folder.with_name("ham10000-test")
    assert (test / "ISIC2018_Task3_Test_GroundTruth.csv").read_bytes() == CONTENTS[6924466]
    assert len(list(test.rglob("ISIC_*.jpg"))) == 2
    said = capsys.readouterr().out
    assert all(text in said for text in ("CC BY-NC 4.0", "10.1038/sdata.2018.161"))


def test_second_run_asks_nothing_and_the_test_can_be_added_later(server, fetch):
    assert requests.get(server.url, timeout=5).status_code == 403, "it refuses Python's default"
    assert fetch() == 0
    server.log.clear()
    assert fetch() == 0
    assert not server.log
    assert fetch("--test") == 0
    assert not server.find_requests(PART_1)
    assert server.find_requests(3855824)


@pytest.mark.parametrize(
    ("faults", "statuses", "waited"),
    [
        ([Fault("expired")] * 2, [403, 403, 200], [1, 2]),
        ([Fault("cut", 0.37), Fault("expired")], [200, 403, 206], [1, 2]),
        ([Fault("cut", share / 10) for share in (2, 4, 6, 8)], [200, 206, 206, 206, 206], [1] * 4),
        ([Fault("status", status=503)] * 2, [503, 503, 200], [1, 2]),
        ([Fault("status", status=429, headers={"Retry-After": "7"})], [429, 200], [7]),
    ],
)
def test_what_passes_is_tried_again(server, folder, fetch, waits, faults, statuses, waited):
    server.faults[PART_1] = faults
    assert fetch() == 0
    check_images(folder)
    assert [request.status for request in server.find_requests(PART_1)] == statuses
    assert waits == waited


@pytest.mark.parametrize("ranges", [True, False])
def test_only_what_is_missing_is_fetched_again(server, folder, fetch, capsys, ranges):
    server.ranges, server.faults[PART_1] = ranges, [Fault("cut", 0.37)]
    assert fetch() == 0
    check_images(folder)
    _, second = server.find_requests(PART_1)
    assert second.range == f"bytes={KEPT}-"
    assert (second.status, second.sent) == ((206, SIZE - KEPT) if ranges else (200, SIZE))
    said = "".join(capsys.readouterr())
    assert "the connection broke" in said
    assert "secret" not in said, "signed links belong in no log"


@pytest.mark.parametrize(
    ("faults", "waited", "said"),
    [
        ([Fault("cut", 0)] * 8, [1, 2, 4, 8, 16, 32, 60], "the connection broke.*resumes"),
        ([Fault("status", status=429, headers={"Retry-After": "3600"})], [], "3600 s.*resumes"),
        ([Fault("wrong")], [], f"{hashlib.md5(CONTENTS[PART_1]).hexdigest()}.* thrown away"),
    ],
)
def test_a_server_is_given_up_and_what_is_right_is_kept(
    server, folder, fetch, waits, faults, waited, said
):
    server.faults[PART_1] = faults
    with pytest.raises(InputError, match=said):
        fetch()
    assert waits == waited
    assert (folder / TABLE).read_bytes() == CONTENTS[4338392]
    assert fetch() == 0
    check_images(folder)
    assert len(server.find_requests(4338392)) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", r"datafile/3172585: the server answers 404.*Kaggle"),
        ("http://127.0.0.1:9", r"the connection broke"),
        ("127.0.0.1", "check --base-url"),
    ],
)
def test_no_file_or_no_server_at_all(server, folder, url, said):
    del server.files[PART_1]
    with pytest.raises(InputError, match=said):
        call(folder, "--base-url", url or server.url)


def test_foreign_contents_are_reported_together_and_kept(server, folder, fetch):
    (folder / "HAM10000_images_part_2").mkdir(parents=True)
    (folder / TABLE).write_bytes(b"my own table")
    with pytest.raises(InputError, match=r"not the published file[^+]*0 of 8 images.*move it away"):
        fetch()
    assert (folder / TABLE).read_bytes() == b"my own table"
    assert not server.log


def test_a_lost_image_is_noticed_and_a_file_managers_litter_is_not(folder, fetch):
    assert fetch() == 0
    (folder / "HAM10000_images_part_1" / ".DS_Store").write_bytes(b"x")
    assert fetch() == 0
    (folder / "HAM10000_images_part_1" / IMAGES[PART_1][0]).unlink()
    with pytest.raises(InputError, match="7 of 8 images"):
        fetch()


def test_an_archive_that_was_fetched_otherwise_is_taken_if_it_is_right(server, folder, fetch):
    folder.mkdir(parents=True)
    (folder / "HAM10000_images_part_1.zip").write_bytes(CONTENTS[PART_1])
    (folder / "HAM10000_images_part_2.zip").write_bytes(b"<html>sorry</html>")
    assert fetch() == 0
    check_images(folder)
    assert not server.find_requests(PART_1)
    assert server.find_requests(PART_2)


def test_a_kill_in_the_middle_of_the_transfer_loses_nothing(server, folder, fetch):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_download
for name, files in test_download.SMALL.items():
    setattr(test_download.download, name, files)
test_download.call({str(folder)!r}, "--base-url", {server.url!r})
"""
    server.faults[PART_1] = [Fault("stall", 0.7)]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    part = folder / "HAM10000_images_part_1.zip.part"
    written = int(SIZE * 0.7) // download.CHUNK_BYTES * download.CHUNK_BYTES
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= written):
        assert time.monotonic() < deadline, "the command never got as far"
        time.sleep(0.05)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    server.released.set()
    kept = part.stat().st_size
    assert fetch() == 0
    check_images(folder)
    last = server.find_requests(PART_1)[-1]
    assert (last.range, last.status, last.sent) == (f"bytes={kept}-", 206, SIZE - kept)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name", "error", "seen"),
    [
        (hashlib, "file_digest", KeyboardInterrupt, KeyboardInterrupt),
        (zipfile.ZipFile, "extractall", FULL, InputError),
        (Path, "rename", KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_a_stop_after_the_transfer_leaves_nothing_half_done(
    server, folder, fetch, monkeypatch, owner, name, error, seen
):
    real = getattr(owner, name)

    def stop(what, *rest):
        is_first = name == "extractall" or "images_part_1" in what.name
        if is_first and (name != "rename" or what.is_dir()):
            raise error
        return real(what, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(seen):
            fetch()
    assert not (folder / "HAM10000_images_part_1").exists()
    assert fetch() == 0
    check_images(folder)
    assert sum(request.sent for request in server.find_requests(PART_1)) == SIZE
