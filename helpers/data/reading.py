"""The checked table of a folder of labelled images: one row per image, whatever its layout."""

import hashlib
import os
import shutil
import tempfile
import unicodedata
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from helpers.data.files import InputError, name_some, raise_problems, resolve_path
from helpers.data.images import IMAGE_SUFFIXES, find_cache_dir
from helpers.data.metadata import (
    CLASS_NAMES,
    CLASSES,
    DUPLICATE_PAIRS,
    SPLITS,
    clean_id,
    complete_table,
    find_class,
    find_split,
    is_truth,
    parse_metadata,
    read_header,
    read_metadata,
)

__all__ = ["CLASSES", "CLASS_NAMES", "DUPLICATE_PAIRS", "read_dataset", "read_metadata"]

# In the truth of the official test, but not in Dataverse's archive of its images; its weight in the
# official scorer (PyPI isic-challenge-scoring) is 0.
UNSCORED_IMAGE = "ISIC_0035068"


def read_dataset(folder: str | os.PathLike) -> pd.DataFrame:
    """Read and check a folder of labelled images.

    Known layouts, with the images anywhere in the folder:

    - a table of diagnoses as `read_metadata` reads them: that of Dataverse (HAM10000_metadata,
      or ISIC2018_Task3_Test_GroundTruth.csv of its test), of Kaggle (every image twice), of the
      ISIC 2018 challenge (GroundTruth.csv, with or without LesionGroupings.csv), or any other one;
      images are found by file name, and those without a row are ignored;
    - else a DermaMNIST file (.npz, of any size), whose pixels become PNG files beside the cache;
    - else a folder for each class (mel or melanoma, …), inside train, val and test or not.

    Hidden files and folders and macOS junk are ignored.

    Args:
        folder: the folder, or a DermaMNIST file; below the working folder or the project.

    Returns:
        The table of `read_metadata` with a column `path` (str) before `label`: the image file,
        relative if `folder` is below the working folder. The same folder always gives the same
        table. The one image that the official scorer does not count is left out, with a warning.

    Raises:
        InputError: naming all problems of the folder, its table and its images.
    """
    where = Path(folder).expanduser()
    where = where if where.exists() else resolve_path(folder)
    files = [where] if where.suffix == ".npz" else _list_files(where)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [path for path in files if path.suffix == ".npz"]
    in_classes = [path for path in images if _find_word(path, where, find_class)]
    metadata, groupings, problems = _find_tables(where, files, not arrays and not in_classes)
    if metadata is not None:
        table, more = parse_metadata(metadata, groupings)
        if table is not None and "image_id" in table:
            table = _leave_out_unscored(table, metadata.name)
            more += _find_paths(table, images, files)
    elif arrays:
        table, more = _read_arrays(arrays)
    else:
        table, more = _read_classes(where, images)
    raise_problems(folder, problems + more)
    return complete_table(table, (metadata or where).name)


def _list_files(folder: Path) -> list[Path]:
    """List all files below a folder in a fixed order, leaving out hidden and macOS junk."""
    if not folder.is_dir():
        what = "is a file; unpack it and name the folder" if folder.exists() else "does not exist"
        raise InputError(folder, [f"the folder {what}; DATA_DIR must name a folder"])
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "@", "__MACOSX")))
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in files if path.is_file()]  # not: links to nowhere


def _find_tables(
    folder: Path, files: list[Path], needed: bool
) -> tuple[Path | None, Path | None, list[str]]:
    """Pick the table of diagnoses, by name, by header or as the only one, and the groupings."""
    official = [path for path in files if path.name.lower() == "ham10000_metadata"]
    tables = [path for path in files if path.suffix.lower() in (".csv", ".tab", ".tsv")]
    headers = {path: read_header(path) for path in tables}
    groupings = [
        path
        for path, header in headers.items()
        if "lesiongroupings" in path.name.lower()
        or ({"image_id", "lesion_id", "dx_type"} <= header and "dx" not in header)
    ]
    named = official + [path for path in tables if path.stem.lower() == "ham10000_metadata"]
    named = named or [
        path
        for path, header in headers.items()
        if {"image_id", "dx"} <= header or is_truth(header)
    ]
    if needed:
        named = named or [path for path in tables if path not in groupings]
    problems = []
    if needed and not named:
        packed = [p.name for p in files if p.suffix.lower() in (".zip", ".xlsx", ".xls", ".ods")]
        hint = f"; unpack or save as CSV what is in {name_some(packed)}" if packed else ""
        problems = [
            "no table of diagnoses (HAM10000_metadata.csv) in it, no folders named by class and no "
            f"DermaMNIST .npz; python -m helpers download --help tells how to get the data{hint}"
        ]
    for paths, what in ((named, "table of diagnoses"), (groupings, "lesion groupings")):
        if len({path.read_bytes() for path in paths}) > 1:
            names = name_some(path.relative_to(folder) for path in paths)
            problems.append(
                f"several files could be the {what}: {names}; keep one of them here (a test "
                "belongs in a folder of its own)"
            )
    metadata = named[0] if named else None
    is_wanted = metadata is not None and groupings and is_truth(read_header(metadata))
    return metadata, groupings[0] if is_wanted else None, problems


def _leave_out_unscored(table: pd.DataFrame, name: str) -> pd.DataFrame:
    is_scored = table["image_id"] != UNSCORED_IMAGE
    if not is_scored.all():
        warnings.warn(
            f"{name}: {UNSCORED_IMAGE} is left out, {is_scored.sum()} images remain: the official "
            "scorer gives it weight 0 and Dataverse's archive of the test lacks it",
            stacklevel=3,
        )
    return table[is_scored].copy()


def _find_paths(table: pd.DataFrame, images: list[Path], files: list[Path]) -> list[str]:
    """Add each image's file, found by its name in this case or, where there is none, in any."""
    copies = defaultdict(list)
    for path in images:
        for name in {clean_id(path.name), clean_id(path.name).casefold()}:
            copies[name].append(path)
    found = [copies.get(i) or copies.get(i.casefold(), []) for i in table["image_id"]]
    table["path"] = [str(paths[0]) if paths else "" for paths in found]
    missing = table.loc[(table["path"] == "") & (table["image_id"] != ""), "image_id"].unique()
    problems = []
    if len(missing):
        packed = [path.name for path in files if path.suffix.lower() == ".zip"]
        hint = f" (unpack {name_some(packed)} first)" if packed else ""
        problems.append(
            f"{len(missing)} of {table['image_id'].nunique()} images are missing: "
            f"{name_some(missing)}; complete the download or delete their rows{hint}"
        )
    shared = table[(table["path"] != "") & table.duplicated("path", keep=False)]
    for path, rows in shared.groupby("path"):
        if rows["image_id"].nunique() > 1:
            problems.append(f"{path} is the file of {name_some(rows['image_id'])}; keep one of them")
    # Kaggle holds every image twice; files of different sizes are no copies.
    differing = [
        name_some(f"{path} ({path.stat().st_size} bytes)" for path in paths)
        for paths in found
        if len(paths) > 1 and len({path.stat().st_size for path in paths}) > 1
    ]
    if differing:
        problems.append(
            f"{len(differing)} images have files that differ: {name_some(differing)}; keep the "
            "right ones"
        )
    return problems


def _find_word(path: Path, folder: Path, find) -> str:
    """Give what the nearest folder of a file means, looking upwards as far as the data's folder."""
    names = path.relative_to(folder).parts[-2::-1] if path != folder else ()
    return next(filter(None, map(find, names)), "")


def _read_classes(folder: Path, images: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Make the table of images that lie in folders named by their class."""
    table = pd.DataFrame({"path": images, "image_id": [clean_id(path.name) for path in images]})
    for column, find in (("dx", find_class), ("split", find_split)):
        table[column] = [_find_word(path, folder, find) for path in images]
    problems = []
    if not images:
        problems.append(f"no {'/'.join(IMAGE_SUFFIXES)} file in it")
    repeated = table[table["image_id"].duplicated(keep=False)]
    for image_id in repeated["image_id"].unique():
        if image_id.startswith("ISIC_"):
            paths = repeated.loc[repeated["image_id"] == image_id, "path"]
            problems.append(f"{image_id} is there twice: {name_some(paths)}; keep one of them")
    for row, path in repeated["path"].items():
        table.loc[row, "image_id"] = path.relative_to(folder).with_suffix("").as_posix()
    strange = table.loc[table["dx"] == "", "path"]
    if (table["dx"] != "").any() and len(strange):
        folders = {path.parent.relative_to(folder).as_posix() for path in strange}
        problems.append(
            f"{len(strange)} images lie in no folder named by a class: in {name_some(sorted(folders))}; "
            f"name it after {', '.join(CLASSES)}, or take it out"
        )
    if table["split"].nunique() < 2:
        table = table.drop(columns="split")
    elif (table["split"] == "").any():
        alone = table.loc[table["split"] == "", "path"]
        problems.append(f"{len(alone)} images lie outside {', '.join(SPLITS)}: {name_some(alone)}")
    table["path"] = table["path"].map(str)
    return table, problems


def _read_arrays(paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Make the table of a DermaMNIST file, writing its pixels as PNG files the first time.

    Source: Yang et al., MedMNIST v2, Sci. Data 10:41 (2023), doi:10.1038/s41597-022-01721-8. Its
    class order is that of `CLASSES`.
    """
    path, table = paths[0], pd.DataFrame()
    if len(paths) > 1:
        return table, [f"several .npz files: {name_some(paths)}; keep one of them here"]
    stat = path.stat()
    key = hashlib.sha256(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    target = find_cache_dir() / f"{path.stem}-{key[:20]}"
    try:
        with np.load(path) as arrays:
            labels = {split: arrays[f"{split}_labels"].ravel() for split in SPLITS}
            if not np.isin(np.concatenate(list(labels.values())), range(7)).all():
                raise ValueError("its labels are not 0 to 6")
            if not target.is_dir():
                _write_arrays(arrays, target)
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return table, [f"{path.name} is no DermaMNIST file ({error}); download it again"]
    except OSError as error:
        return table, [
            f"{path.name} cannot be unpacked into {target} ({error.strerror}); free space there, or "
            "name another folder by the environment variable SKIN_CACHE_DIR"
        ]
    table = pd.DataFrame([(s, k) for s in SPLITS for k in labels[s]], columns=["split", "label"])
    table["dx"] = [CLASSES[label] for label in table.pop("label")]
    numbers = table.groupby("split").cumcount()
    names = [f"{s}_{n:05d}" for s, n in zip(table["split"], numbers, strict=True)]
    table["image_id"] = [f"{path.stem}_{name}" for name in names]
    table["path"] = [str(target / f"{name}.png") for name in names]
    return table, []


def _write_arrays(arrays: np.lib.npyio.NpzFile, target: Path) -> None:
    """Write a file's pixels as PNG files into a folder that appears only when complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".partial.", dir=target.parent))
    try:
        for split in SPLITS:
            pixels = arrays[f"{split}_images"]
            if pixels.dtype != np.uint8 or pixels.shape[3:] != (3,):
                raise ValueError(f"{split}_images is {pixels.dtype} of shape {pixels.shape}")
            for number, image in enumerate(pixels):
                cv2.imwrite(str(work / f"{split}_{number:05d}.png"), image[..., ::-1])
        if not target.is_dir():
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
DatasetError = InputError  # the old name, until no room calls it
