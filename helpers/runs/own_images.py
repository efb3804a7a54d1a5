"""One's own image files: found or uploaded, and their answers as a table and as a page."""

import base64
import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader

from helpers.data.files import InputError, raise_problems, replace_file
from helpers.data.metadata import CLASS_NAMES
from helpers.runs.folder import METRICS

# Beside what is hidden (.…, .ipynb_checkpoints among it): thumbnails and notes of file systems.
LEFT_OUT = ("@eaDir", "__MACOSX", "Thumbs.db", "desktop.ini")


def find_images(paths: Sequence[str | os.PathLike]) -> tuple[list[Path], list[Path]]:
    """List the files to answer for: files as they are, folders with everything below them.

    No ending is asked for: what a file holds is found when it is read. Links to folders are
    followed, each folder once. What does not exist stays in the list, to be named with the others.

    Returns the files, and what is left out in folders: hidden and `LEFT_OUT` files and folders, and
    what is no file, such as a socket. An InputError names empty folders, folders of runs, or that
    no path is given.
    """
    files, left_out, seen = {}, [], set()  # a file once, however often it is named
    problems = [] if paths else ["no image is given: name image files or folders of them"]
    for path in map(Path, paths):
        found = [] if path.is_dir() else [path]
        is_new, unread = os.path.realpath(path) not in seen, []
        for here, folders, names in os.walk(path, onerror=unread.append, followlinks=True):
            if (real := os.path.realpath(here)) in seen:
                folders.clear()
                continue
            seen.add(real)
            if METRICS in names:
                problems.append(f"{here} is a run: name it with --run (RUN_DIR in a notebook)")
            inside = [Path(here, name) for name in sorted(folders) + sorted(names)]
            out = [p for p in inside if p.name.startswith(".") or p.name in LEFT_OUT]
            out += [p for p in inside if p.exists() and not (p.is_file() or p.is_dir())]
            folders[:] = [p.name for p in inside if p.is_dir() and p not in out]
            found += [p for p in inside if not p.is_dir() and p not in out]
            left_out += out
        found += [Path(error.filename) for error in unread if path.is_dir()]  # no permission
        if not found and is_new:
            problems.append(f"{path} holds no image: name image files or folders of them")
        for one in found:
            files.setdefault(one.absolute(), one)
    raise_problems("the images", problems)
    return list(files.values()), left_out


def save_uploads(uploads: Sequence[dict], folder: Path) -> list[Path]:
    """Write what an ipywidgets.FileUpload holds into a folder, so that it is read like any file.

    Args:
        uploads: the widget's `value`: dicts with name and content (bytes or memoryview).
        folder: made if it is missing. A file of an earlier call is replaced; of two uploads of one
            name, the second is numbered.
    """
    paths, taken = [], set()
    for upload in uploads:
        folder.mkdir(parents=True, exist_ok=True)
        name = re.split(r"[/\\]", upload["name"])[-1].strip(". ") or "upload"
        path = first = folder / name
        for number in itertools.count(2):
            if path.name.casefold() not in taken:
                break
            path = first.with_stem(f"{first.stem} ({number})")
        taken.add(path.name.casefold())
        path.write_bytes(bytes(upload["content"]))
        paths.append(path)
    return paths


def check_output(path: Path) -> list[str]:
    """List what keeps a file from being written, before any work is done; makes its folder."""
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # fails where a spreadsheet keeps the file to itself
        if is_new:
            path.unlink()
    except OSError as error:
        remedy = "close the program that has it open, or name another file"
        return [f"{path} cannot be written ({error.strerror}): {remedy}"]
    return []


def write_answers(path: Path, table: pd.DataFrame) -> Path:
    """Write answers as CSV (UTF-8 with a mark, by which spreadsheets know it), and return where.

    What cannot be written there any more is kept beside it under another name, or among the
    system's temporary files.
    """
    spare = f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}.csv"
    options = {"encoding": "utf-8-sig", "errors": "backslashreplace", "float_format": "%.6g"}
    problems = []
    for place in (path, path.with_name(spare), Path(tempfile.gettempdir()) / spare):
        try:
            replace_file(place, lambda partial: table.to_csv(partial, index=False, **options))
            return place
        except OSError as error:
            problems.append(f"{place} cannot be written ({error})")
    raise InputError("the answers", problems)


def write_cards(table: pd.DataFrame, pictures: dict[int, Sequence[np.ndarray]], link: bool) -> str:
    """Write answers as HTML, a card for each image, which needs no other file.

    Args:
        table: of `predict.predict_images`.
        pictures: rows of the table to uint8 (height, width, 3), the image first; the rows to show,
            beside those with a problem.
        link: offer the whole table as a CSV to download.
    """
    cards = []
    for row in table.index[(table["problem"] != "") | table.index.isin(pictures)]:
        probabilities = table.loc[row].filter(like="p_").items()
        named = [(CLASS_NAMES.get(n[2:], n[2:]), p) for n, p in probabilities]
        shown = [cv2.imencode(".jpg", one[..., ::-1])[1] for one in pictures.get(row, ())]
        card = dict(table.loc[row, ["answer", "warning", "problem"]], probabilities=named)
        if card["answer"] in CLASS_NAMES:
            card["answer"] += f": {CLASS_NAMES[card['answer']]}"
        card["pictures"] = [base64.b64encode(one).decode() for one in shown]
        cards.append(card | {"name": Path(table.loc[row, "image"]).name})
    csv = base64.b64encode(table.to_csv(index=False).encode("utf-8-sig")).decode()
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True).get_template("answers.html.jinja")
    return template.render(cards=cards, csv=csv if link else "")
