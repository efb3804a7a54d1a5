"""Fetch HAM10000 from its publishers into a checked folder; an interrupted download resumes.

``python -m helpers.data.download data/ham10000 --test`` writes, in the layout of Harvard Dataverse::

    data/ham10000/HAM10000_metadata.csv
    data/ham10000/HAM10000_images_part_1/*.jpg
    data/ham10000/HAM10000_images_part_2/*.jpg
    data/ham10000-test/ISIC2018_Task3_Test_GroundTruth.csv   beside the training data, so that
    data/ham10000-test/ISIC2018_Task3_Test_Images/*.jpg      nothing reads the test as part of it

``NAME.part`` is a file under way; an archive is deleted once it is unpacked. ``.download.json`` is
the receipt of what was verified, so that a second run need not read 2.7 GB again.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from time import sleep
from typing import TypeVar

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from helpers.data.files import show_bar

USER_AGENT = "skin-cancer-detection (HAM10000 download)"  # Dataverse refuses Python's default
TIMEOUT_S = (15, 60)  # to connect; between two pieces of data
BUSY = {408, 425, 429, 500, 502, 503, 504}
ATTEMPTS = 8  # in a row without a new byte: waits of 1, 2, 4 … 60 s, two minutes together
LISTING_ATTEMPTS = 3  # the server's list can be done without
FETCHES = 3  # of a file that arrives whole with the wrong md5
MAX_WAIT_S = 600  # a server that asks for longer is left alone until the next run
CHUNK_BYTES = 1 << 14  # the most that an interruption loses
MAX_RATIO = 100  # unpacked to packed: 1 for JPEGs, some 20 for a CSV of zeros and ones
MAX_UNPACKED_BYTES = 8_000_000_000
RECEIPT = ".download.json"
AGAIN = "run the same command again: it resumes"
ELSEWHERE = "try again later, another --source, or a mirror with --base-url"

DATASET = "doi:10.7910/DVN/DBW86T"
KAGGLE_DATASET = "kmader/skin-cancer-mnist-ham10000"
KAGGLE_BYTES = 11_200_000_000  # 5.58 GB, which kagglehub unpacks beside itself
SERVERS = {
    "dataverse": "https://dataverse.harvard.edu",
    "isic": "https://isic-challenge-data.s3.amazonaws.com",
}
LICENCE = """\
Licence: CC BY-NC 4.0 (Kaggle states CC BY-NC-SA 4.0): not for commercial use, nor is a model that
was trained on these images. Commit neither the images nor notebooks that show them.
Please cite: Tschandl, Rosendahl, Kittler: The HAM10000 dataset, a large collection of multi-source
dermatoscopic images of common pigmented skin lesions. Sci. Data 5:180161 (2018),
doi:10.1038/sdata.2018.161, data doi:10.7910/DVN/DBW86T; for the challenge and its test also
Codella et al.: Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv:1902.03368."""

T = TypeVar("T")


class DownloadError(Exception):
    """A problem that waiting does not solve; the text names the file, the value and the remedy."""


class InterruptionError(Exception):
    """An attempt failed in a way that may pass; `wait` is in seconds, None if nobody asked."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class RemoteFile:
    """A file as its publisher offers it.

    Attributes:
        name: file name; ``X.zip`` is unpacked into a folder ``X``.
        path: address below the server's; a tabular file of Dataverse comes as .tab, with another
            md5, unless asked for with ``?format=original``.
        size: bytes, about: only for the check of the disk.
        md5: hexadecimal; None where the publisher lists none (the challenge's bucket; there the
            ETag is used where it is an md5, else the length and the archive's own checksums).
    """

    name: str
    path: str
    size: int
    md5: str | None = None

    @property
    def target(self) -> str:
        """What lies in the folder in the end."""
        return self.name.removesuffix(".zip")


ACCESS = "/api/access/datafile"
FILES = {
    # Version 4.0 of the dataset, for when the server's own list cannot be had.
    "dataverse": (
        RemoteFile(
            "HAM10000_metadata.csv",
            f"{ACCESS}/4338392?format=original",
            690_218,
            "8f85fb1aa29d80a2797247e434deb79d",
        ),
        RemoteFile(
            "HAM10000_images_part_1.zip",
            f"{ACCESS}/3172585",
            1_366_522_108,
            "4639bfa73ab251610530a97c898e6e46",
        ),
        RemoteFile(
            "HAM10000_images_part_2.zip",
            f"{ACCESS}/3172584",
            1_403_566_547,
            "da43d6cc50f6613013be07e8986b384b",
        ),
        RemoteFile(
            "ISIC2018_Task3_Test_GroundTruth.csv",
            f"{ACCESS}/6924466?format=original",
            108_383,
            "2b5663aacc9644740f27e355cf7f369a",
        ),
        RemoteFile(
            "ISIC2018_Task3_Test_Images.zip",
            f"{ACCESS}/3855824",
            420_000_000,
            "0488b6f65849e310857d9207daa55a21",
        ),
    ),
    "isic": tuple(
        RemoteFile(name, f"/2018/{name}", size)
        for name, size in (
            ("ISIC2018_Task3_Training_LesionGroupings.csv", 500_000),
            ("ISIC2018_Task3_Training_GroundTruth.zip", 100_000),
            ("ISIC2018_Task3_Training_Input.zip", 2_770_000_000),
            ("ISIC2018_Task3_Test_GroundTruth.zip", 20_000),
            ("ISIC2018_Task3_Test_Input.zip", 420_000_000),
        )
    ),
    # Folders that kagglehub has unpacked; this metadata has 7 columns, without `dataset`.
    "kaggle": (
        RemoteFile("HAM10000_metadata.csv", "", 563_277, "70bb67f71bd23dde0bd2eda4bdcc98e5"),
        RemoteFile("HAM10000_images_part_1", "", 1_370_000_000),
        RemoteFile("HAM10000_images_part_2", "", 1_400_000_000),
    ),
}


def read_receipt(folder: Path) -> dict[str, dict]:
    """Read what is known of a folder's files: nothing where the receipt is missing or broken."""
    try:
        return dict(json.loads((folder / RECEIPT).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return {}


def update_receipt(folder: Path, name: str, entry: dict | None) -> None:
    """Note a file (None: forget it); the receipt is written whole or not at all."""
    entries = {**read_receipt(folder), name: entry}
    temporary = folder / f"{RECEIPT}.new"
    temporary.write_text(json.dumps({key: entries[key] for key in entries if entries[key]}))
    temporary.replace(folder / RECEIPT)


def measure_target(path: Path, source: str) -> dict[str, str | int]:
    """Take what a receipt is compared with, in milliseconds, without reading the contents.

    Returns:
        The source, and for a file its bytes and time of change, for a folder the number and bytes
        of its images and CSVs (what a file manager leaves there does not count).
    """
    if path.is_dir():
        with os.scandir(path) as found:
            sizes = [f.stat().st_size for f in found if f.name.lower().endswith((".jpg", ".csv"))]
        return {"source": source, "files": len(sizes), "bytes": sum(sizes)}
    status = path.stat()
    return {"source": source, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def is_verified(target: Path, source: str) -> bool:
    """Whether the target is still what the receipt says was fetched from this source."""
    entry = read_receipt(target.parent).get(target.name)
    return target.exists() and entry == measure_target(target, source)


def publish_target(temporary: Path, target: Path, source: str) -> None:
    """Give finished work its name; a kill between the two lines means: finish it again."""
    update_receipt(target.parent, target.name, measure_target(temporary, source))
    temporary.rename(target)


def check_space(folder: Path, needed: float) -> None:
    """Raise a DownloadError where fewer than `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{folder}: about {needed / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are free: "
            f"make room or choose a folder on another disk; {AGAIN}"
        )


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the file system into a DownloadError that names file and remedy."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{error.filename or path}: {error.strerror or error}: see that the folder can be "
            f"written and the disk has room; {AGAIN}"
        ) from error


def compute_md5(path: Path) -> str:
    """Compute the hexadecimal md5 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def check_status(response: requests.Response) -> None:
    """Sort an answer without data into InterruptionError (may pass) and DownloadError."""
    code = response.status_code
    if code in BUSY:
        try:
            wait = Retry().get_retry_after(response.raw)
        except InvalidHeader:
            wait = None
        if wait and wait > MAX_WAIT_S:
            raise DownloadError(
                f"the server is busy ({code}) and asks for {wait / 60:.0f} minutes: then {AGAIN}"
            )
        raise InterruptionError(f"the server is busy ({code})", wait)
    if code >= 400 and response.history:  # the next attempt asks the publisher for a fresh link
        raise InterruptionError(f"the link that the server redirected to is refused ({code})")
    if code >= 400:
        raise DownloadError(f"{response.url} is refused ({code} {response.reason}): {ELSEWHERE}")


@contextmanager
def open_url(
    session: requests.Session, url: str, headers: dict[str, str] | None = None
) -> Iterator[requests.Response]:
    """Open an address; whatever fails, also later in reading, becomes one of our two errors.

    The library's own texts are not repeated: they quote signed links, which belong in no log.
    """
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if response.status_code != 416:  # a Range beyond the end: see fetch_rest
                check_status(response)
            yield response
    except (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as error:
        raise InterruptionError(f"the connection broke ({type(error).__name__})") from None
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {type(error).__name__}: check --base-url") from None


def retry(
    attempt: Callable[[], T],
    name: str,
    attempts: int,
    measure: Callable[[], int] = lambda: 0,
) -> T:
    """Repeat an attempt with growing waits until it raises no InterruptionError.

    Args:
        attempt: what to do.
        name: of the file, for messages.
        attempts: how many may fail one after the other.
        measure: bytes safe on the disk; when they grow, counting starts again, so that a slow
            line that breaks every few minutes still gets there.

    Raises:
        DownloadError: that many attempts in a row brought nothing.
    """
    failures, best = 0, measure()
    while True:
        try:
            return attempt()
        except InterruptionError as problem:
            if measure() > best:
                failures, best = 0, measure()
            failures += 1
            if failures == attempts:
                raise DownloadError(f"{name}: {problem}, {attempts} times: {AGAIN}") from None
            wait = min(2 ** (failures - 1), 60) if problem.wait is None else problem.wait
            print(f"{name}: {problem}; next attempt in {wait:.0f} s", file=sys.stderr, flush=True)
            sleep(wait)
        except DownloadError as problem:
            raise DownloadError(f"{name}: {problem}") from None


def list_dataverse_files(
    session: requests.Session, server: str, files: list[RemoteFile]
) -> list[RemoteFile]:
    """Bring addresses and checksums up to date from the server's own list.

    Files stay as they are where the list is missing, broken or silent on them. For a tabular file
    `filename` is that of the .tab, but `md5` that of the original (IQSS/dataverse#7275).
    """
    url = f"{server}/api/datasets/:persistentId/?persistentId={DATASET}"

    def read_listing() -> bytes:
        with open_url(session, url) as response:
            return response.content

    listed = {}
    try:
        listing = json.loads(retry(read_listing, "list of files", LISTING_ATTEMPTS))
        for entry in (item["dataFile"] for item in listing["data"]["latestVersion"]["files"]):
            original = entry.get("originalFileName")
            path = f"{ACCESS}/{int(entry['id'])}" + ("?format=original" if original else "")
            name, md5 = Path(original or entry["filename"]), entry.get("md5", "")
            if re.fullmatch("[0-9a-f]{32}", md5):
                listed[name.stem, name.suffix == ".zip"] = {"path": path, "md5": md5}
    except (DownloadError, KeyError, TypeError, ValueError, AttributeError) as problem:
        reason = str(problem).removesuffix(f": {AGAIN}").removesuffix(f": {ELSEWHERE}")
        print(f"no list of files ({reason}): taking the built-in one", file=sys.stderr)
        return files
    keys = [(Path(file.name).stem, file.name.endswith(".zip")) for file in files]
    current = [replace(file, **listed.get(key, {})) for file, key in zip(files, keys, strict=True)]
    for old, new in zip(files, current, strict=True):
        if old.md5 != new.md5:
            notice = f"{new.name}: the server has another than version 4.0, md5 {new.md5}"
            print(f"{notice}: taking it", file=sys.stderr)
    return current


def fetch_rest(session: requests.Session, url: str, remote: RemoteFile, part: Path) -> None:
    """Fetch what is still missing of a file, once; raise InterruptionError where that breaks off.

    What came is safe in `part`; the receipt says of which version on the server it is a part.
    """
    known = read_receipt(part.parent).get(part.name, {})
    done = part.stat().st_size if part.exists() and known.get("md5") == remote.md5 else 0
    if done and done == known.get("total"):
        return
    headers = {"Accept-Encoding": "identity"}  # a Range counts the bytes that are sent
    if done:
        headers["Range"] = f"bytes={done}-"
        if known.get("etag"):
            headers["If-Range"] = known["etag"]
    with open_url(session, url, headers) as response:
        etag = response.headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag  # a weak one does not vouch for the bytes
        sent = response.headers.get("Content-Range", "")
        resumes = response.status_code == 206
        fits = sent.startswith(f"bytes {done}-") and sent.endswith(f"/{known.get('total')}")
        if response.status_code == 416 or (resumes and not (fits and etag == known.get("etag"))):
            part.unlink()
            raise InterruptionError("the file changed on the server: starting over")
        if done and not resumes:
            print(f"{remote.name}: the server sends it from the start again", file=sys.stderr)
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        check_space(part.parent, total - done if total else 0)
        with part.open("ab" if resumes else "wb") as file:
            entry = {"md5": remote.md5, "etag": etag, "total": total}
            update_receipt(part.parent, part.name, entry)
            bar = show_bar(desc=remote.name, total=total, initial=done, unit="B", unit_scale=True)
            with bar:
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    file.flush()  # so that a kill loses nothing that arrived
                    bar.update(len(chunk))
    update_receipt(part.parent, part.name, {**entry, "total": part.stat().st_size})


def fetch_part(session: requests.Session, url: str, remote: RemoteFile, part: Path) -> None:
    """Fetch a file until its md5 is right; raise a DownloadError where it never is."""
    for _ in range(FETCHES):
        retry(
            lambda: fetch_rest(session, url, remote, part),
            remote.name,
            ATTEMPTS,
            lambda: part.stat().st_size if part.exists() else 0,
        )
        etag = read_receipt(part.parent)[part.name]["etag"].strip('"')
        expected = remote.md5 or (etag if re.fullmatch("[0-9a-f]{32}", etag) else None)
        found = compute_md5(part)
        if found == expected or (expected is None and remote.name.endswith(".zip")):
            return  # an archive is checked once more by what it holds
        with part.open("rb") as file:
            is_tab = remote.name.endswith(".csv") and b"\t" in file.readline()
        part.unlink()
        hint = " (it is the server's tab-separated copy, not the original)" if is_tab else ""
        problem = f"{remote.name}: md5 {found} instead of {expected}{hint}"
        print(f"{problem}: thrown away", file=sys.stderr)
    raise DownloadError(f"{problem}, {FETCHES} times: {ELSEWHERE}")


@contextmanager
def stage_folder(target: Path, source: str) -> Iterator[Path]:
    """Give a folder to fill, which gets the target's name when it is whole and never before."""
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a kill
    temporary.mkdir()
    try:
        yield temporary
        publish_target(temporary, target, source)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def list_members(archive: zipfile.ZipFile, packed: int) -> dict[str, zipfile.ZipInfo]:
    """List an archive's files by name, without folders; refuse an archive that means harm.

    Raises:
        DownloadError: with all problems: paths out of the folder, links and other special files,
            a name that comes twice, a size out of proportion to its `packed` bytes.
    """
    members, problems = {}, []
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:]", info.filename):
            problems.append(f"{info.filename!r} leads out of the folder")
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problems.append(f"{info.filename!r} is a link or a special file")
        elif info.filename.endswith("/") or path.name[:1] in ("", ".") or "__MACOSX" in path.parts:
            continue
        elif path.name in members:
            problems.append(f"{path.name!r} comes twice")
        else:
            members[path.name] = info
    unpacked = sum(info.file_size for info in members.values())
    if unpacked > min(MAX_UNPACKED_BYTES, MAX_RATIO * packed):
        problems.append(f"{packed:,} bytes would become {unpacked:,}")
    if problems:
        more = f" and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        raise DownloadError(
            f"{archive.filename} is refused: {'; '.join(problems[:5])}{more}. That is not the "
            "published archive: delete it and fetch from the publisher, without --base-url"
        )
    return members


def unpack_archive(path: Path, target: Path, source: str) -> None:
    """Unpack all files of an archive into one flat folder, whole or not at all.

    Raises:
        DownloadError: the archive is broken or means harm, or the disk is too small.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = list_members(archive, path.stat().st_size)
            check_space(path.parent, sum(info.file_size for info in members.values()))
            with (
                stage_folder(target, source) as folder,
                show_bar(members.items(), desc=f"unpacking {target.name}", unit=" files") as bar,
            ):
                for name, info in bar:
                    with archive.open(info) as packed, (folder / name).open("wb") as file:
                        shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise DownloadError(
            f"{path} cannot be unpacked ({error}): delete it and run the same command again"
        ) from error


def find_missing(folder: Path, source: str, files: list[RemoteFile]) -> list[RemoteFile]:
    """Sort out what is still to be fetched; a file that got there otherwise is taken by its md5.

    Raises:
        DownloadError: with all that is in the way; nothing is ever written over.
    """
    missing, problems = [], []
    for remote in files:
        target = folder / remote.target
        if not target.exists():
            missing.append(remote)
        elif target.is_dir():
            count = measure_target(target, source)["files"]
            problems.append(f"{target} ({count:,} files) is not as unpacked from {source}")
        elif (found := compute_md5(target)) != remote.md5:
            problems.append(f"{target} has md5 {found}, {source} lists {remote.md5 or 'none'}")
        else:
            update_receipt(folder, target.name, measure_target(target, source))
    if problems:
        raise DownloadError(
            f"{'; '.join(problems)}: move it away or delete it, then run the same command again"
        )
    return missing


def clear_part(part: Path) -> None:
    """Remove what was needed on the way, and its entry in the receipt."""
    part.unlink(missing_ok=True)
    if part.name in read_receipt(part.parent):
        update_receipt(part.parent, part.name, None)


def fetch_files(folder: Path, source: str, server: str, files: list[RemoteFile]) -> None:
    """Fetch, check and unpack files one by one; after an error, what was finished stays."""
    with requests.Session() as session:
        session.headers["User-Agent"] = USER_AGENT
        if source == "dataverse":
            files = list_dataverse_files(session, server, files)
        for remote in find_missing(folder, source, files):
            part, target = folder / f"{remote.name}.part", folder / remote.target
            with explain_disk_errors(part):
                fetch_part(session, server + remote.path, remote, part)
                if remote.name.endswith(".zip"):
                    unpack_archive(part, target, source)
                else:
                    publish_target(part, target, source)
                clear_part(part)


def fetch_from_kaggle() -> Path:
    """Let kagglehub, which checks the md5 itself, fetch the dataset into its cache.

    Raises:
        DownloadError: kagglehub is not installed, or fails.
    """
    try:
        import kagglehub
    except ImportError:
        raise DownloadError(
            "--source kaggle needs the package kagglehub, which is not installed: "
            "pip install kagglehub, or leave --source out to fetch from Dataverse"
        ) from None
    cache = Path(os.environ.get("KAGGLEHUB_CACHE", Path.home() / ".cache" / "kagglehub"))
    if not (cache / "datasets" / KAGGLE_DATASET).exists():
        cache.mkdir(parents=True, exist_ok=True)
        check_space(cache, KAGGLE_BYTES)
    try:
        return Path(kagglehub.dataset_download(KAGGLE_DATASET))
    except Exception as error:  # its errors have no base class in common
        reason = re.sub(r"\?\S+", "", str(error))  # signed links belong in no log
        raise DownloadError(
            f"{KAGGLE_DATASET}: kagglehub failed ({type(error).__name__}: {reason}): run the same "
            "command again, or leave --source out to fetch from Dataverse"
        ) from None


def link_file(path: Path, target: Path) -> None:
    """Give a file a second name, which costs no space, or copy it where the disk cannot do that."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def copy_from_kaggle(folder: Path, files: list[RemoteFile]) -> None:
    """Lay Kaggle's copy out like Dataverse's: every image once instead of twice.

    Raises:
        DownloadError: it is not the copy that is known.
    """
    files = find_missing(folder, "kaggle", files)
    found = fetch_from_kaggle()
    if found.stat().st_dev != folder.stat().st_dev:
        check_space(folder, sum(remote.size for remote in files))
    images = {path.stem: path for path in sorted(found.rglob("*.jpg"))}
    table, known = found / FILES["kaggle"][0].name, FILES["kaggle"][0].md5
    md5 = compute_md5(table)
    with table.open(encoding="utf-8", newline="") as rows:
        lost = {row.get("image_id") for row in csv.DictReader(rows)} - images.keys()
    if md5 != known or lost:
        raise DownloadError(
            f"{table} has md5 {md5}, known is {known}, and {len(lost):,} of its images lack: "
            f"delete {found} and run the same command again, or leave --source out"
        )
    for remote in files:
        if remote.name == table.name:
            temporary = folder / f"{table.name}.part"
            temporary.unlink(missing_ok=True)
            link_file(table, temporary)
            publish_target(temporary, folder / remote.target, "kaggle")
            continue
        with stage_folder(folder / remote.target, "kaggle") as temporary:
            for path in images.values():
                if path.parent.name.lower() == remote.name.lower():
                    link_file(path, temporary / path.name)


def estimate_need(folder: Path, source: str, files: list[RemoteFile]) -> int:
    """Estimate the bytes to be written: all contents, and the largest archive beside its own."""
    if source == "kaggle":
        return 0  # links; copy_from_kaggle checks where they have to be copies
    parts = [folder / f"{remote.name}.part" for remote in files]
    present = sum(part.stat().st_size for part in parts if part.exists())
    return sum(remote.size for remote in files) + max(remote.size for remote in files) - present


def download_dataset(
    folder: Path | str, source: str = "dataverse", test: bool = False, base_url: str | None = None
) -> list[Path]:
    """Fetch HAM10000, or what is missing of it, and check it; do nothing where all is there.

    Args:
        folder: for the training data; the official test goes into a folder of the same name with
            ``-test`` behind it.
        source: "dataverse", "isic" (the challenge's own files: truth one-hot, no ages, no sites)
            or "kaggle" (which has no official test: that then comes from Dataverse).
        test: also fetch the official test of ISIC 2018 task 3.
        base_url: address of a mirror, instead of the source's server.

    Returns:
        The folders, training data first.

    Raises:
        DownloadError: with the remedy; what was fetched by then is kept.
    """
    folder = Path(folder)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    jobs = [(folder, source, False)]
    if test:
        test_source = "dataverse" if source == "kaggle" else source
        jobs.append((folder.with_name(f"{folder.name}-test"), test_source, True))
    with explain_disk_errors(folder):
        plans = []
        for place, origin, is_test in jobs:
            files = []
            for remote in FILES[origin]:
                if ("_Test_" in remote.name) != is_test:
                    continue
                if is_verified(place / remote.target, origin):
                    clear_part(place / f"{remote.name}.part")  # left by a kill after unpacking
                else:
                    files.append(remote)
            if files:
                place.mkdir(parents=True, exist_ok=True)
                plans.append((place, origin, files))
        check_space(folder, sum(estimate_need(*plan) for plan in plans))
        for place, origin, files in plans:
            if origin == "kaggle":
                copy_from_kaggle(place, files)
            else:
                fetch_files(place, origin, (base_url or SERVERS[origin]).rstrip("/"), files)
    return [place for place, _, _ in jobs]


def summarise_folder(folder: Path) -> str:
    """Say what lies where, a line each."""
    lines = [f"{folder}:"]
    for name, entry in sorted(read_receipt(folder).items()):
        if "source" not in entry or not (folder / name).exists():
            continue  # a part, perhaps of another source
        count = f"{entry['files']:,} files, " if "files" in entry else ""
        lines.append(f"  {name}: {count}{entry['bytes'] / 1e6:,.1f} MB from {entry['source']}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code, see the parser's epilog."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.data.download",
        description="Fetch HAM10000 (2.8 GB, and 1.4 GB more while unpacking) and check it. "
        "A run that was interrupted resumes; a run with nothing to do ends at once.",
        epilog="Exit code: 0 all is there and checked, 1 a problem (said on stderr), 2 a wrong "
        "command line, 130 stopped by Ctrl-C.",
    )
    parser.add_argument("folder", type=Path, help="where to put the data, such as data/ham10000")
    parser.add_argument(
        "--test",
        action="store_true",
        help="also the official test (0.4 GB), into FOLDER-test, apart from the training data",
    )
    parser.add_argument(
        "--source",
        choices=sorted(FILES),
        default="dataverse",
        help="dataverse (the default: complete), isic (the challenge's files: no ages, no sites) "
        "or kaggle (needs the package kagglehub, and 11 GB for its cache)",
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="a mirror, instead of the source's server"
    )
    options = parser.parse_args(arguments)
    try:
        folders = download_dataset(options.folder, options.source, options.test, options.base_url)
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped: {AGAIN}", file=sys.stderr)
        return 130
    print("\n".join(summarise_folder(folder) for folder in folders))
    print(LICENCE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
