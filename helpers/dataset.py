"""The checked table of a HAM10000 folder: one row per image, whatever the folder's layout.

The source of classes, columns and layouts is Tschandl, Rosendahl and Kittler, Sci. Data 5:180161
(2018), doi:10.1038/sdata.2018.161. For research and teaching; not a medical device.
"""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

CLASS_NAMES = {
    "akiec": "actinic keratoses and Bowen's disease",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesions",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevi",
    "vasc": "vascular lesions",
}
# The one class order of the project: position = label = column of every probability table.
CLASSES = tuple(CLASS_NAMES)

REQUIRED_COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization")
OPTIONAL_COLUMNS = ("dataset", "split")
SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# Images of one lesion that HAM10000 lists under two lesion ids: 18 confirmed duplicates and, last,
# 2 near-duplicates. Published with the corrected DermaMNIST: Abhishek, Jain and Hamarneh, Sci. Data
# 12:196 (2025), doi:10.1038/s41597-025-04382-5.
_PAIRS = """
0033481-0033421 0033556-0032634 0029152-0033173 0029036-0027027 0027820-0028209 0027689-0032647
0030906-0024879 0033391-0034186 0025226-0030074 0026087-0025664 0024736-0029748 0024770-0027811
0027162-0029061 0024602-0032283 0029625-0024629 0030000-0031392 0024437-0031299 0033374-0033417
0025323-0025141 0025947-0029023
"""
DUPLICATE_PAIRS = tuple(
    tuple(f"ISIC_{number}" for number in pair.split("-")) for pair in _PAIRS.split()
)


class DatasetError(ValueError):
    """Everything that is wrong with a dataset, reported at once.

    Attributes:
        problems: one sentence per problem, each with its file, row or value and the remedy.
    """

    def __init__(self, where: str, problems: list[str]):
        super().__init__(where, problems)
        self.where = where
        self.problems = problems

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        return "\n".join([f"{self.where}: {count}", *(f"- {text}" for text in self.problems)])


def read_dataset(data_dir: str | os.PathLike) -> pd.DataFrame:
    """Reads and checks a folder of images with their metadata.

    Known layouts: Dataverse (HAM10000_images_part_1 and _2 beside HAM10000_metadata, with or
    without .csv, or as .tab), Kaggle (the same with every image twice, and no `dataset` column)
    and any other folder with the images anywhere in it and one metadata CSV. Images are found by
    file stem in all subfolders; hidden files, macOS junk and images without a row are ignored.

    Args:
        data_dir: the folder.

    Returns:
        The table of `read_metadata` with a column `path` (str) before `label`: the image file,
        relative if `data_dir` is. The same folder always gives the same table.

    Raises:
        DatasetError: naming all problems of the folder, its metadata and its images.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        what = "is a file; unpack it and name the folder" if folder.exists() else "does not exist"
        raise DatasetError(str(data_dir), [f"the folder {what}; DATA_DIR must name a folder"])
    files = _list_files(folder)
    # ISIC challenge folders (one-hot truth + lesion groupings) will branch off here.
    metadata, problems = _find_metadata(folder, files)
    table = None
    if metadata:
        table, problems = _parse_metadata(metadata)
    images = _index_images(files)
    if not images:
        problems.append(f"no {'/'.join(IMAGE_SUFFIXES)} file in it{_hint_archives(files)}")
    elif table is not None and "image_id" in table:
        problems += _check_images(table, images, files)
    if problems:
        raise DatasetError(str(data_dir), problems)
    paths = [str(images[image_id][0]) for image_id in table["image_id"]]
    table.insert(table.columns.get_loc("label"), "path", paths)
    return table


def read_metadata(csv_path: str | os.PathLike) -> pd.DataFrame:
    """Reads and checks a metadata file in the HAM10000 format, without looking for images.

    Args:
        csv_path: UTF-8 text with a header, separated by commas, semicolons or tabs.

    Returns:
        A row per image, sorted by image_id. Columns: image_id, lesion_id, dx, dx_type (str), age
        (float64, years, 0 to 120, NaN when missing), sex, localization (str), dataset and split
        (str, only if the file has them; split is train, val or test), label (int64, index into
        `CLASSES`) and group (str: the lesion_id, or one of them where `DUPLICATE_PAIRS` shows
        several to be one lesion). Empty dx_type, sex, localization and dataset become "unknown";
        other columns of the file are left out.

    Raises:
        DatasetError: naming all problems of the file.
    """
    table, problems = _parse_metadata(Path(csv_path).expanduser())
    if problems:
        raise DatasetError(str(csv_path), problems)
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
    tables = [path for path in files if path.suffix.lower() in (".csv", ".tab", ".tsv")]
    official = [path for path in files if path.name.lower() == "ham10000_metadata"]
    official += [path for path in tables if path.stem.lower() == "ham10000_metadata"]
    named = official or [path for path in tables if _has_metadata_header(path)] or tables
    if not named:
        return None, [
            "no metadata file (HAM10000_metadata.csv or HAM10000_metadata) in it; download it "
            f"from doi:10.7910/DVN/DBW86T and put it beside the images{_hint_archives(files)}"
        ]
    if len(named) > 1 and len({_read_bytes(path) for path in named}) > 1:
        names = _join(str(path.relative_to(folder)) for path in named)
        return None, [f"several files could be the metadata: {names}; keep one of them here"]
    return named[0], []


def _has_metadata_header(path: Path) -> bool:
    header = _read_bytes(path, 4096).split(b"\n")[0]
    return b"image_id" in header and b"dx" in header


def _read_bytes(path: Path, size: int = -1) -> bytes:
    """Reads a file's bytes, none if it cannot be read: the parser then says why."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _hint_archives(files: Iterable[Path]) -> str:
    archives = [path.name for path in files if path.suffix.lower() == ".zip"]
    return f" (unpack {_join(archives)} first)" if archives else ""


def _check_images(
    table: pd.DataFrame, images: dict[str, list[Path]], files: list[Path]
) -> list[str]:
    problems = []
    ids = [image_id for image_id in pd.unique(table["image_id"]) if image_id]
    missing = [image_id for image_id in ids if image_id not in images]
    if missing:
        problems.append(
            f"{len(missing)} of {len(ids)} images are missing: {_join(missing)}; complete the "
            f"download or delete their rows{_hint_archives(files)}"
        )
    differing = []
    for image_id in ids:
        copies = images.get(image_id, ())
        # Kaggle holds every image twice; files of different sizes are no copies.
        if len(copies) > 1 and len({path.stat().st_size for path in copies}) > 1:
            sizes = _join(f"{path} ({path.stat().st_size} bytes)" for path in copies)
            differing.append(f"image {image_id} has files that differ: {sizes}; keep the right one")
    return problems + _shorten(differing)


def _parse_metadata(path: Path) -> tuple[pd.DataFrame | None, list[str]]:
    """Gives the table, None if the file is no table, and all that is wrong with it."""
    name = path.name
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return None, [f"{name} cannot be read: {error.strerror}; check the path and permissions"]
    except UnicodeDecodeError as error:
        return None, [
            f"{name} is not UTF-8 text (byte {error.start}); save it again as CSV in UTF-8"
        ]
    head = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",\t;", key=head.count))
    try:
        lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        return None, [f"{name} is no CSV: line {reader.line_num}: {error}; download it again"]
    lines = [(line, row) for line, row in lines if any(row)]
    if not lines:
        return None, [f"{name} is empty; download it again"]
    header = lines.pop(0)[1]
    problems = []
    absent = [column for column in REQUIRED_COLUMNS if column not in header]
    if absent:
        problems.append(f"it lacks the columns {_join(absent, 20)}; it has {_join(header, 20)}")
    wanted = [column for column in REQUIRED_COLUMNS + OPTIONAL_COLUMNS if column in header]
    repeated = [column for column in wanted if header.count(column) > 1]
    if repeated:
        problems.append(f"it has the columns {_join(repeated)} twice; keep one of each")
    if not lines:
        problems.append("it has a header but no rows; download it again")
    uneven = [line for line, row in lines if len(row) != len(header)]
    if uneven:
        problems.append(f"line {_join(uneven)} has not {len(header)} values; correct it")
    even = {line: row for line, row in lines if len(row) == len(header)}
    table = pd.DataFrame(
        {column: [row[header.index(column)] for row in even.values()] for column in wanted},
        index=list(even),
        dtype=str,
    )
    problems += _check_rows(table)
    if problems:
        return table, [f"{name}: {problem}" for problem in problems]
    return _complete_table(table), []


def _check_rows(table: pd.DataFrame) -> list[str]:
    """Checks the columns that are there, strings, with the lines of the file as the index."""
    problems = []
    for column in ("image_id", "lesion_id"):
        empty = table.index[table[column] == ""] if column in table else ()
        if len(empty):
            problems.append(f"{column} is empty in line {_join(empty)}; fill it in")
    if "image_id" in table:
        repeated = table["image_id"].duplicated(keep=False) & (table["image_id"] != "")
        problems += _describe_values(table[repeated], "image_id", "keep one of these lines")
    if "dx" in table:
        wrong = table[~table["dx"].isin(CLASSES)]
        problems += _describe_values(wrong, "dx", f"it must be one of {', '.join(CLASSES)}")
    if "dx" in table and "lesion_id" in table:
        known = table[(table["lesion_id"] != "") & table["dx"].isin(CLASSES)]
        several = known.groupby("lesion_id")["dx"].transform("nunique") > 1
        problems += _shorten(
            f"lesion {lesion_id} has several diagnoses: "
            + ", ".join(f"{dx} in line {lines}" for dx, lines in _group_lines(rows, "dx"))
            + "; correct dx or lesion_id"
            for lesion_id, rows in known[several].groupby("lesion_id")
        )
    if "age" in table:
        age = _parse_age(table["age"])
        wrong = table[~(age.between(0, 120) | age.isna())]
        problems += _describe_values(wrong, "age", "it must be 0 to 120 years, or empty")
    if "split" in table:
        wrong = table[~table["split"].isin(SPLITS)]
        problems += _describe_values(wrong, "split", f"it must be one of {', '.join(SPLITS)}")
    return problems


def _parse_age(values: pd.Series) -> pd.Series:
    """Turns strings into years: NaN when missing, -1 when not a number."""
    missing = values.str.lower().isin(["", "na", "nan", "none", "null", "unknown"])
    return pd.to_numeric(values, errors="coerce").astype(float).fillna(-1.0).mask(missing)


def _complete_table(table: pd.DataFrame) -> pd.DataFrame:
    """Sorts a checked table of strings and gives it its types, label and group."""
    table = table.sort_values("image_id", ignore_index=True)
    table["age"] = _parse_age(table["age"])
    for column in ("dx_type", "sex", "localization", "dataset"):
        if column in table:
            table[column] = table[column].replace("", "unknown")
    table["label"] = table["dx"].map(CLASSES.index).astype(np.int64)
    table["group"] = _merge_lesions(table)
    return table


def _merge_lesions(table: pd.DataFrame) -> pd.Series:
    """Gives each row its lesion_id, the same one for lesions joined by a duplicate pair."""
    group = table["lesion_id"].copy()
    row_of = {image_id: row for row, image_id in table["image_id"].items()}
    for first, second in DUPLICATE_PAIRS:
        if first in row_of and second in row_of:
            # Looked up anew for each pair, so that pairs that share a lesion make one group.
            pair = sorted([group[row_of[first]], group[row_of[second]]])
            group[group == pair[1]] = pair[0]
    return group


def _describe_values(rows: pd.DataFrame, column: str, remedy: str) -> list[str]:
    return _shorten(
        f"{column} {value!r} in line {lines}; {remedy}"
        for value, lines in _group_lines(rows, column)
    )


def _group_lines(rows: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    """Lists the values of a column, each with the lines where it stands."""
    return [(value, _join(part.index)) for value, part in rows.groupby(column, sort=False)]


def _join(values: Iterable, limit: int = 5) -> str:
    values = [str(value)[:200] for value in values]
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more


def _shorten(problems: Iterable[str], limit: int = 5) -> list[str]:
    """Keeps a message readable when a whole column is wrong."""
    problems = list(problems)
    more = [f"… and {len(problems) - limit} more like it"] if len(problems) > limit else []
    return problems[:limit] + more
