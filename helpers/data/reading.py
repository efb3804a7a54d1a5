"""The checked table of a HAM10000 folder: one row per image, whatever the folder's layout.

The source of the layouts is what Harvard Dataverse, Kaggle and the ISIC 2018 challenge hand out;
`helpers.metadata` reads their tables. For research and teaching; not a medical device.
"""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from helpers.data.metadata import (
    CLASS_NAMES,
    CLASSES,
    DUPLICATE_PAIRS,
    GROUPINGS,
    DatasetError,
    is_groupings,
    is_ham,
    is_truth,
    join,
    parse_metadata,
    read_metadata,
    shorten,
)

__all__ = [
    "CLASSES",
    "CLASS_NAMES",
    "DUPLICATE_PAIRS",
    "DatasetError",
    "read_dataset",
    "read_metadata",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# In the truth of the official test, but not in Dataverse's archive of its images; its weight in the
# official scorer (PyPI isic-challenge-scoring) is 0.
UNSCORED_IMAGE = "ISIC_0035068"


def read_dataset(data_dir: str | os.PathLike) -> pd.DataFrame:
    """Reads and checks a folder of images with their metadata.

    Known layouts, with the images anywhere in the folder, found by file stem:

    - Dataverse: HAM10000_images_part_1 and _2 beside HAM10000_metadata, with or without .csv, or
      as .tab; its official test: ISIC2018_Task3_Test_Images and ISIC2018_Task3_Test_GroundTruth.csv
      with the same columns;
    - Kaggle: the same with every image twice, and no `dataset` column;
    - the ISIC 2018 challenge: ISIC2018_Task3_Training_GroundTruth.csv (a column per class) and
      ISIC2018_Task3_Training_LesionGroupings.csv, each in a folder of its own or not; its test
      truth has no groupings: see `read_metadata` for what that means;
    - any other folder with one CSV in one of these formats.

    Hidden files and folders, macOS junk and images without a row are ignored.

    Args:
        data_dir: the folder.

    Returns:
        The table of `read_metadata` with a column `path` (str) before `label`: the image file,
        relative if `data_dir` is. The same folder always gives the same table. The one image that
        the official scorer does not count is left out, with a UserWarning: 1,511 of 1,512 remain.

    Raises:
        DatasetError: naming all problems of the folder, its metadata and its images.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        what = "is a file; unpack it and name the folder" if folder.exists() else "does not exist"
        raise DatasetError(str(data_dir), [f"the folder {what}; DATA_DIR must name a folder"])
    files = _list_files(folder)
    metadata, problems = _find_metadata(folder, files)
    table, has_unscored = None, False
    if not problems:
        groupings = None
        if is_truth(_read_header(metadata)):
            groupings, problems = _find_groupings(folder, files)
        table, more = parse_metadata(metadata, groupings)
        problems += more
    if table is not None and "image_id" in table:
        is_unscored = table["image_id"] == UNSCORED_IMAGE
        has_unscored = is_unscored.any()
        table = table[~is_unscored].reset_index(drop=True)
    images = _index_images(files)
    if not images:
        problems.append(f"no {'/'.join(IMAGE_SUFFIXES)} file in it{_hint_archives(files)}")
    elif table is not None and "image_id" in table:
        problems += _check_images(table, images, files)
    if problems:
        raise DatasetError(str(data_dir), problems)
    if has_unscored:
        warnings.warn(
            f"{metadata.name}: {UNSCORED_IMAGE} is left out, {len(table)} images remain: the "
            "official scorer gives it weight 0 and Dataverse's archive of the test lacks it",
            stacklevel=2,
        )
    paths = [str(images[image_id][0]) for image_id in table["image_id"]]
    table.insert(table.columns.get_loc("label"), "path", paths)
    return table


def _list_files(folder: Path) -> list[Path]:
    """Lists all files below a folder in a fixed order, leaving out hidden and macOS junk."""
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in files if path.is_file()]  # not: links to nowhere


def _index_images(files: Iterable[Path]) -> dict[str, list[Path]]:
    images = defaultdict(list)
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images[path.stem].append(path)
    return images


def _find_metadata(folder: Path, files: list[Path]) -> tuple[Path | None, list[str]]:
    """Picks the metadata file: by its official name, else by its header, else the only CSV."""
    tables = _list_tables(files)
    groupings = _list_groupings(files)
    official = [path for path in files if path.name.lower() == "ham10000_metadata"]
    official += [path for path in tables if path.stem.lower() == "ham10000_metadata"]
    named = official or _select_by_header(tables, lambda header: is_ham(header) or is_truth(header))
    named = named or [path for path in tables if path not in groupings]
    if not named and groupings:
        return None, [
            f"{groupings[0].name} lacks its truth, ISIC2018_Task3_Training_GroundTruth.csv; put it "
            f"there{_hint_archives(files)}; python -m helpers.data.download FOLDER --source isic "
            "gets both"
        ]
    if not named:
        return None, [
            "no metadata file (HAM10000_metadata.csv or HAM10000_metadata) in it; download it "
            f"from doi:10.7910/DVN/DBW86T and put it beside the images{_hint_archives(files)}"
        ]
    remedy = "keep one of them here (a test belongs in a folder of its own)"
    return _pick_one(folder, named, "metadata", remedy)


def _find_groupings(folder: Path, files: list[Path]) -> tuple[Path | None, list[str]]:
    """Picks the challenge's lesion groupings, None if there are none."""
    return _pick_one(folder, _list_groupings(files), "lesion groupings", "keep one of them here")


def _pick_one(
    folder: Path, paths: list[Path], what: str, remedy: str
) -> tuple[Path | None, list[str]]:
    """Gives the first of the files, and the problem if they are not all the same."""
    problems = []
    if len(paths) > 1 and len({_read_bytes(path) for path in paths}) > 1:
        names = join(str(path.relative_to(folder)) for path in paths)
        problems.append(f"several files could be the {what}: {names}; {remedy}")
    return (paths[0] if paths else None), problems


def _list_groupings(files: list[Path]) -> list[Path]:
    """Lists what can be lesion groupings: by their official name, else by their header."""
    tables = _list_tables(files)
    official = [path for path in tables if path.stem.lower() == Path(GROUPINGS).stem.lower()]
    return official or _select_by_header(tables, is_groupings)


def _list_tables(files: Iterable[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() in (".csv", ".tab", ".tsv")]


def _select_by_header(
    tables: Iterable[Path], is_wanted: Callable[[Iterable[str]], bool]
) -> list[Path]:
    return [path for path in tables if is_wanted(_read_header(path))]


def _read_header(path: Path) -> list[str]:
    """Reads the names of the columns, if it is a table, to tell what sort of table it is."""
    text = _read_bytes(path, 4096).decode("utf-8-sig", errors="replace")
    first = "".join(text.lstrip().splitlines()[:1])
    return [name.strip(' "') for name in re.split("[,;\t]", first)]


def _read_bytes(path: Path, size: int = -1) -> bytes:
    """Reads a file's bytes, none if it cannot be read: the parser then says why."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _hint_archives(files: Iterable[Path]) -> str:
    archives = [path.name for path in files if path.suffix.lower() == ".zip"]
    return f" (unpack {join(archives)} first)" if archives else ""


def _check_images(
    table: pd.DataFrame, images: dict[str, list[Path]], files: list[Path]
) -> list[str]:
    problems = []
    ids = [image_id for image_id in pd.unique(table["image_id"]) if image_id]
    missing = [image_id for image_id in ids if image_id not in images]
    if missing:
        problems.append(
            f"{len(missing)} of {len(ids)} images are missing: {join(missing)}; complete the "
            f"download or delete their rows{_hint_archives(files)}"
        )
    differing = []
    for image_id in ids:
        copies = images.get(image_id, ())
        # Kaggle holds every image twice; files of different sizes are no copies.
        if len(copies) > 1 and len({path.stat().st_size for path in copies}) > 1:
            sizes = join(f"{path} ({path.stat().st_size} bytes)" for path in copies)
            differing.append(f"image {image_id} has files that differ: {sizes}; keep the right one")
    return problems + shorten(differing)
