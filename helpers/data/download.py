"""Fetch HAM10000 from its publishers into a checked folder; an interrupted download resumes.

`python -m helpers download data/ham10000 --test` writes, in the layout of Harvard Dataverse:

    data/ham10000/HAM10000_metadata.csv
    data/ham10000/HAM10000_images_part_1/*.jpg
    data/ham10000/HAM10000_images_part_2/*.jpg
    data/ham10000-test/ISIC2018_Task3_Test_GroundTruth.csv   beside the training data, so that
    data/ham10000-test/ISIC2018_Task3_Test_Images/…          nothing reads the test as part of it

NAME.part is a file under way. What has its own name is complete: it got it after the check.
"""

import argparse
import collections
import hashlib
import shutil
import sys
import zipfile
from pathlib import Path
from time import sleep

import requests
from requests.exceptions import ChunkedEncodingError

from helpers.data.files import InputError, raise_problems, show_bar

USER_AGENT = "skin-cancer-detection (HAM10000 download)"  # Dataverse refuses Python's default
TIMEOUT_S = (15, 60)  # to connect; between two pieces of data
BUSY = (408, 425, 429, 500, 502, 503, 504)
ATTEMPTS = 8  # in a row without a new byte: waits of 1, 2, 4 … 60 s, two minutes together
PASSING = (requests.ConnectionError, requests.Timeout, ChunkedEncodingError, requests.HTTPError)
MAX_WAIT_S = 600  # a server that asks for longer is left alone until the next run
CHUNK_BYTES = 1 << 14  # the most that a kill loses
AGAIN = "run the same command again: it resumes"

SERVER = "https://dataverse.harvard.edu"
LICENCE = """\
Licence: CC BY-NC 4.0 (Kaggle states CC BY-NC-SA 4.0): not for commercial use, nor is a model that
was trained on these images. Commit neither the images nor notebooks that show them.
Please cite: Tschandl, Rosendahl, Kittler: The HAM10000 dataset, a large collection of multi-source
dermatoscopic images of common pigmented skin lesions. Sci. Data 5:180161 (2018),
doi:10.1038/sdata.2018.161, data doi:10.7910/DVN/DBW86T; for the challenge and its test also
Codella et al.: Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv:1902.03368."""

# What lies in the folder in the end, its number at Dataverse, bytes (about) and md5, and how many
# images the archive of that name holds. Version 4.0 of the dataset.
RemoteFile = collections.namedtuple("RemoteFile", "target number size md5 images")
VERSION_4 = (
    ("HAM10000_metadata.csv", 4338392, 7e5, "8f85fb1aa29d80a2797247e434deb79d", 0),
    ("HAM10000_images_part_1", 3172585, 1.37e9, "4639bfa73ab251610530a97c898e6e46", 5000),
    ("HAM10000_images_part_2", 3172584, 1.41e9, "da43d6cc50f6613013be07e8986b384b", 5015),
    ("ISIC2018_Task3_Test_GroundTruth.csv", 6924466, 1e5, "2b5663aacc9644740f27e355cf7f369a", 0),
    ("ISIC2018_Task3_Test_Images", 3855824, 4e8, "0488b6f65849e310857d9207daa55a21", 1511),
)
FILES, TEST_FILES = (tuple(map(RemoteFile._make, part)) for part in (VERSION_4[:3], VERSION_4[3:]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.description = (
        "Fetch HAM10000 (2.8 GB on the disk, 4.2 GB while unpacking) and check it. An interrupted "
        "run resumes; a run with nothing to do ends at once."
    )
    add = parser.add_argument
    add("folder", type=Path, help="where to put the data, such as data/ham10000")
    add("--test", action="store_true", help="also the official test (0.4 GB), into FOLDER-test")
    add("--base-url", default=SERVER, metavar="URL", help="a mirror of Dataverse")


def run(options: argparse.Namespace) -> int:
    """Fetch what is missing; returns 0. After an InputError, what was fetched is kept."""
    folder = options.folder.expanduser().absolute()
    folders = {folder: FILES}
    if options.test:
        folders[folder.with_name(f"{folder.name}-test")] = TEST_FILES
    try:
        missing = {place: _find_missing(place, files) for place, files in folders.items()}
        for place, files in missing.items():
            if files:
                place.mkdir(parents=True, exist_ok=True)
                _fetch_files(place, files, options.base_url.rstrip("/"))
        for place, files in folders.items():
            _find_missing(place, files)
            print(f"{place}: complete: {', '.join(file.target for file in files)}")
    except requests.RequestException as error:
        raise InputError(options.base_url, [f"{type(error).__name__}; check --base-url"]) from None
    except OSError as error:
        problem = f"{error.strerror or error}; see that it can be written and has room; {AGAIN}"
        raise InputError(error.filename or folder, [problem]) from error
    print(LICENCE)
    return 0


def _find_missing(folder: Path, files: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    """List what is not there yet; refuse other contents under these names."""
    missing, problems = [], []
    for file in files:
        target = folder / file.target
        if not target.exists():
            missing.append(file)
        elif not file.images and _compute_md5(target) != file.md5:
            problems.append(f"{target} is not the published file")
        elif (found := sum(1 for _ in target.rglob("ISIC_*.jpg"))) != file.images:
            problems.append(f"{target} holds {found:,} of {file.images:,} images")
    raise_problems(folder, [f"{problem}; move it away, then {AGAIN}" for problem in problems])
    return missing


def _fetch_files(folder: Path, files: list[RemoteFile], server: str) -> None:
    """Fetch, check and unpack files one by one; after an error, what was finished stays."""
    with requests.Session() as session:  # identity: a Range counts the bytes that are sent
        session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        for file in files:
            path = folder / (file.target + ".zip" * bool(file.images))
            if not path.exists() or _compute_md5(path) != file.md5:
                url = f"{server}/api/access/datafile/{file.number}"
                url += "" if file.images else "?format=original"  # else it comes as .tab
                _fetch_file(session, url, file, path)
            if file.images:
                work = folder / f".{file.target}.unpacking"
                shutil.rmtree(work, ignore_errors=True)  # left by a kill
                print(f"unpacking {path.name}", flush=True)
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(work)
                work.rename(folder / file.target)
                path.unlink()


def _fetch_file(session: requests.Session, url: str, file: RemoteFile, path: Path) -> None:
    """Fetch a file, with waits that grow while nothing comes; it gets its name if it is right."""
    part = path.with_name(f"{path.name}.part")
    part.touch()
    failures, is_whole = 0, False
    while not is_whole:
        done = part.stat().st_size
        try:
            _fetch_rest(session, url, part, done)
            is_whole = True
        except PASSING as error:
            failures = 1 if part.stat().st_size > done else failures + 1
            # Not the library's texts, which hold signed links: they belong in no log.
            reason = f"{error}" if type(error) is requests.HTTPError else "the connection broke"
            asked = getattr(error.response, "headers", {}).get("Retry-After", "")
            wait = int(asked) if asked.isdigit() else min(2 ** (failures - 1), 60)
            text = f"{path.name}: {reason}; next attempt in {wait} s"
            if failures == ATTEMPTS or wait > MAX_WAIT_S:
                raise InputError(url, [f"{text}, by you: {AGAIN}"]) from None
            print(text, file=sys.stderr, flush=True)
            sleep(wait)
    if (found := _compute_md5(part)) != file.md5:
        part.unlink()
        problem = f"it came with md5 {found}, not {file.md5}, and was thrown away; try again later"
        raise InputError(url, [problem])
    part.rename(path)


def _fetch_rest(session: requests.Session, url: str, part: Path, done: int) -> None:
    """Fetch what is missing of a file, once; every piece that came is kept."""
    headers = {"Range": f"bytes={done}-"} if done else {}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        code = response.status_code
        if code == 416:  # nothing lies beyond: the md5 tells whether all is there
            return
        # A redirection goes to a link that expires: the next attempt gets a fresh one.
        if code in BUSY or (code >= 400 and response.history):
            raise requests.HTTPError(f"the server answers {code}", response=response)
        if code >= 400:
            remedy = "try later, or give DATA_DIR a copy as Kaggle has it"
            raise InputError(url, [f"the server answers {code}; {remedy}"])
        resumes = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        total = int(response.headers.get("Content-Length", 0)) + done * resumes
        with (
            part.open("ab" if resumes else "wb") as file,
            show_bar(desc=part.stem, total=total, initial=done * resumes, unit="B") as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                file.flush()
                bar.update(len(chunk))


def _compute_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
