"""The checked table of a folder of labelled images: one row per image, whatever its layout."""

import os
import shutil
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image

from helpers.data import metadata
from helpers.data.files import InputError, name_some, raise_problems, resolve_path
from helpers.data.images import IMAGE_SUFFIXES, find_cache_dir, hash_files
from helpers.data.metadata import CLASS_NAMES, CLASSES, DUPLICATE_PAIRS, SPLITS, read_metadata

__all__ = ["CLASSES", "CLASS_NAMES", "DUPLICATE_PAIRS", "read_dataset", "read_metadata"]

# Weight 0 in the official scorer (PyPI isic-challenge-scoring); not in Dataverse's archive.
UNSCORED_IMAGE = "ISIC_0035068"
PACKED = (".zip", ".tar", ".gz", ".xlsx", ".xls", ".ods", ".numbers", ".txt")


def read_dataset(folder: str | os.PathLike) -> pd.DataFrame:
    """Read and check a folder of labelled images.

    The images may lie anywhere in it, beside one of these:

    - a table as `read_metadata` reads it: of Dataverse, its official test too, of Kaggle (every
      image twice), of the ISIC 2018 challenge, or any other; images without a row are ignored;
    - else a DermaMNIST file (.npz of any size), whose pixels become PNG files beside the cache;
    - else a folder for each class (mel or melanoma, …), inside train, val and test or not.

    Args:
        folder: the folder, or a DermaMNIST file, below the working folder or the project.

    Returns:
        The table of `read_metadata` with a column `path` (str) before `label`: the image file,
        relative if `folder` is and lies below the working folder. The one image that the official
        scorer does not count is left out, with a warning. An InputError names all problems.
    """
    where = Path(folder).expanduser()
    where = where if where.exists() else resolve_path(folder)
    files = [where] if where.suffix == ".npz" and where.is_file() else _list_files(where)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [path for path in files if path.suffix == ".npz"]
    is_sorted = any(_find_word(path, where, metadata.find_class) for path in images)
    tables, groupings = _find_tables(files, any_other=not arrays and not is_sorted)
    problems = _name_several(where, tables) + _name_several(where, groupings)
    if tables:
        table, more = metadata.parse_metadata(tables[0], groupings[0] if groupings else None)
        if table is not None and "image_id" in table:
            table = _leave_out_unscored(table, tables[0].name)
            more += _find_paths(table, images)
    elif arrays:
        problems += _name_several(where, arrays)
        table, more = _read_arrays(arrays[0])
    elif is_sorted:
        table, more = _read_classes(where, images)
        others = sorted(set(files) - set(images))
        others = [path for path in others if _find_word(path, where, metadata.find_class)]
        if others:
            names = name_some(path.relative_to(where) for path in others)
            told = f"{len(others)} files in folders of classes are left out: {names}"
            warnings.warn(f"{told}; images are {', '.join(IMAGE_SUFFIXES)}", stacklevel=2)
    else:
        more = [
            "no table of diagnoses (HAM10000_metadata.csv) in it, no folders of images that are "
            "named by class, no DermaMNIST .npz; get the data by python -m helpers download --help"
        ]
    problems += more
    packed = [path.name for path in files if path.suffix.lower() in PACKED]
    if problems and packed:
        problems.append(f"unpack {name_some(packed)}, or save it as CSV in UTF-8 if it is a table")
    raise_problems(where.absolute(), problems)
    return metadata.complete_table(table, tables[0].name if tables else where.name)


def _list_files(folder: Path) -> list[Path]:
    """List all files below a folder in a fixed order, leaving out hidden ones and macOS junk."""
    if not folder.is_dir():
        what = "is a file; unpack it and name the folder" if folder.exists() else "does not exist"
        raise InputError(folder.absolute(), [f"the folder {what}; DATA_DIR must name a folder"])
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "@", "__MACOSX")))
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    if dead := [path.relative_to(folder) for path in files if not path.is_file()]:
        warnings.warn(f"{folder}: links to nowhere are left out: {name_some(dead)}", stacklevel=3)
    return [path for path in files if path.is_file()]


def _find_tables(files: list[Path], any_other: bool) -> tuple[list[Path], list[Path]]:
    """Find what can be the table of diagnoses, by name or header, and the challenge's groupings."""
    tables, groupings, others = [], [], []
    for path in files:
        is_official = path.stem.lower() == "ham10000_metadata"
        bare = is_official and not path.suffix
        if not bare and path.suffix.lower() not in (".csv", ".tab", ".tsv"):
            continue
        header = metadata.read_header(path)
        has_classes = "dx" in header or metadata.is_truth(header)
        if "lesiongroupings" in path.name.lower() or header == {"image_id", "lesion_id", "dx_type"}:
            groupings.append(path)
        elif is_official or ("image_id" in header and has_classes):
            tables.append(path)
        else:
            others.append(path)
    official = [path for path in tables if path.stem.lower() == "ham10000_metadata"]
    return official or tables or others * any_other, groupings


def _name_several(folder: Path, paths: list[Path]) -> list[str]:
    """Name the files of which only one can be meant, unless they are all the same."""
    if len(paths) < 2 or len({path.read_bytes() for path in paths}) == 1:
        return []
    names = name_some(path.relative_to(folder) for path in paths)
    return [f"it is not clear which file to read: {names}; keep one of them in this folder"]


def _leave_out_unscored(table: pd.DataFrame, name: str) -> pd.DataFrame:
    is_scored = table["image_id"] != UNSCORED_IMAGE
    if not is_scored.all():
        remain = f"{UNSCORED_IMAGE} is left out, {is_scored.sum()} images remain"
        why = "the official scorer gives it weight 0 and Dataverse's archive of the test lacks it"
        warnings.warn(f"{name}: {remain}: {why}", stacklevel=3)
    return table[is_scored].copy()


def _find_paths(table: pd.DataFrame, images: list[Path]) -> list[str]:
    """Add each image's file, found by its name in this case or, where there is none, in any."""
    copies = defaultdict(list)
    for path in images:
        name = metadata.clean_id(path.name)
        copies[name].append(path)
        copies["any case", name.casefold()].append(path)
    ids = table["image_id"]
    found = [copies.get(i) or copies.get(("any case", i.casefold())) or [Path()] for i in ids]
    table["path"] = [str(paths[0]) for paths in found]
    shared = table.duplicated("path", keep=False) & ~table.duplicated("image_id", keep=False)
    # Kaggle holds every image twice; files of different sizes are no copies.
    sizes = [len({_measure(path) for path in paths}) if len(paths) > 1 else 1 for paths in found]
    is_missing = table["path"] == "."
    checks = {
        "are missing; complete the download or delete their rows": is_missing & (ids != ""),
        "share a file with another; keep one row for each file": ~is_missing & shared,
        "have files that differ; keep the right one of each": np.array(sizes) > 1,
    }
    return [
        f"{rows.sum()} of {len(table)} images {fault}: {name_some(ids[rows])}"
        for fault, rows in checks.items()
        if rows.any()
    ]


def _measure(path: Path) -> tuple[int, bytes]:
    """Give what copies have in common: the size, and the bytes where equal sizes mean little."""
    is_packed = path.suffix.lower() not in (".bmp", ".tif", ".tiff")
    return path.stat().st_size, b"" if is_packed else path.read_bytes()


def _find_word(path: Path, folder: Path, find: Callable[[str], str]) -> str:
    """Give what the nearest folder of a file that means something means, "" if none does."""
    return next(filter(None, map(find, path.relative_to(folder).parts[-2::-1])), "")


def _read_classes(folder: Path, images: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Make the table of images that lie in folders named by their class."""
    names = pd.Series([path.relative_to(folder).as_posix() for path in images])
    table = pd.DataFrame({"image_id": [metadata.clean_id(path.name) for path in images]})
    table["dx"] = [_find_word(path, folder, metadata.find_class) for path in images]
    table["split"] = [_find_word(path, folder, metadata.find_split) for path in images]
    table["path"] = list(map(str, images))
    problems = []
    repeated = table["image_id"].duplicated(keep=False)
    is_isic = repeated & table["image_id"].str.startswith("ISIC_")
    if is_isic.any():
        problems.append(f"images lie in several folders: {name_some(names[is_isic])}; keep one")
    # Files of one name in several folders are other images.
    table["image_id"] = table["image_id"].mask(repeated, names)
    if table["split"].nunique() < 2:
        table = table.drop(columns="split")
    for column, right in (("dx", CLASSES), ("split", SPLITS)):
        if column in table and (outside := table[column] == "").any():
            problems.append(
                f"{outside.sum()} images lie in no folder named {', '.join(right)}: "
                f"{name_some(names[outside])}; rename their folders or take them out"
            )
    return table, problems


def _read_arrays(path: Path) -> tuple[pd.DataFrame | None, list[str]]:
    """Make the table of a DermaMNIST file, writing its pixels as PNG files the first time.

    Its class order is that of `CLASSES` (Yang et al., MedMNIST v2, Sci. Data 10:41, 2023).
    """
    target = find_cache_dir() / f"{path.stem}-{hash_files([path.name], [path])}"
    rows = []
    try:
        with np.load(path) as arrays:
            for split in SPLITS:
                labels = arrays[f"{split}_labels"].astype(np.uint8).ravel()
                rows += [(f"{split}_{n:05d}", split, CLASSES[k]) for n, k in enumerate(labels)]
            if max(arrays[f"{split}_labels"].max() for split in SPLITS) != len(CLASSES) - 1:
                raise ValueError(f"its labels are not those of {len(CLASSES)} classes")
            _write_arrays(arrays, target)
    except (KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        return None, [f"{path.name} is no DermaMNIST file ({error}); download it again"]
    except OSError as error:
        where = f"{path.name} cannot be unpacked into {target} ({error.strerror})"
        return None, [f"{where}; free space there, or name another folder in SKIN_CACHE_DIR"]
    table = pd.DataFrame(rows, columns=["image_id", "split", "dx"])
    table["path"] = [str(target / f"{name}.png") for name in table["image_id"]]
    table["image_id"] = f"{path.stem}_" + table["image_id"]
    return table, []


def _write_arrays(arrays: np.lib.npyio.NpzFile, target: Path) -> None:
    """Write a file's pixels as PNG files into a folder that appears only when complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".partial.{target.name}")
    with FileLock(target.parent / "images.lock"):
        if target.is_dir():
            return
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir()
        for split in SPLITS:
            pixels = arrays[f"{split}_images"]
            if pixels.dtype != np.uint8 or pixels.shape[3:] != (3,):
                raise ValueError(f"{split}_images is {pixels.dtype} of shape {pixels.shape}")
            for number, image in enumerate(pixels):
                Image.fromarray(image).save(work / f"{split}_{number:05d}.png", compress_level=1)
        work.rename(target)
