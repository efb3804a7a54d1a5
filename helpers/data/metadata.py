"""The tables of HAM10000, of the ISIC challenges and of others like them, each read and checked.

The source of classes and columns is Tschandl, Rosendahl and Kittler, Sci. Data 5:180161 (2018),
doi:10.1038/sdata.2018.161; of the challenge's, Codella et al., arXiv:1902.03368 (2018), task 3.
"""

import csv
import io
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.files import name_some, raise_problems
from helpers.data.images import IMAGE_SUFFIXES

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
# Other spellings, in lower case and without spaces and signs; "actinic keratoses and …" too.
_SPELLINGS = {
    "akiec": "ak ack actinickeratosis actinickeratoses bowen bowens bowensdisease",
    "bcc": "basalcellcarcinoma",
    "bkl": "bk sk sek benignkeratosis benignkeratosislikelesions pigmentedbenignkeratosis "
    "seborrheickeratosis seborrhoeickeratosis solarlentigo lichenplanuslikekeratosis",
    "df": "dermatofibroma dermatofibromas",
    "mel": "melanoma melanomas malignantmelanoma",
    "nv": "nev nevus nevi naevus naevi melanocyticnevus melanocyticnevi melanocyticnaevi mole",
    "vasc": "vascular vascularlesion vascularlesions vasclesion vasclesions angioma angiomas "
    "hemangioma haemangioma angiokeratoma pyogenicgranuloma pyogenicgranulomas",
}
_CLASS_OF = {word: dx for dx in CLASSES for word in (dx, *_SPELLINGS[dx].split())}

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_WORDS |= dict.fromkeys(("val", "valid", "validation"), "val")
COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization")
KEPT = (*COLUMNS, "dataset", "split", "path")
# Names of columns elsewhere: the ISIC archive and its challenges, PAD-UFES-20.
_COLUMN_NAMES = {
    **dict.fromkeys(("image", "image_name", "isic_id", "img_id"), "image_id"),
    **dict.fromkeys(("diagnosis", "diagnostic"), "dx"),
    **dict.fromkeys(("anatom_site_general", "region"), "localization"),
}
_COLUMN_NAMES |= {"diagnosis_confirm_type": "dx_type", "age_approx": "age", "gender": "sex"}
# Words for a missing value, in lower case and without spaces and signs.
_MISSING = {"", "na", "nan", "nat", "none", "null", "nil", "unk", "unknown", "missing", "undefined"}
_MISSING |= {"notavailable", "notapplicable", "notspecified", "unspecified", "notknown"}
_MISSING |= {"notreported", "notrecorded", "notgiven"}
# The words of HAM10000, and what others write for them.
SEXES = ("male", "female")
SITES = ("abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand")
SITES += ("lower extremity", "neck", "scalp", "trunk", "upper extremity")
_WORDS = {
    "sex": {"m": "male", "man": "male", "f": "female", "w": "female", "woman": "female"},
    "localization": {
        **dict.fromkeys(("anterior torso", "lateral torso", "torso"), "trunk"),
        "posterior torso": "back",
        "palms/soles": "acral",
        "oral/genital": "genital",
    },
    "dx_type": {
        "histopathology": "histo",
        "serial imaging showing no change": "follow_up",
        "single image expert consensus": "consensus",
        "confocal microscopy with consensus dermoscopy": "confocal",
    },
    "split": SPLIT_WORDS,
}

# Images of one lesion that HAM10000 lists under two lesion ids: 18 confirmed duplicates and, last,
# 2 near-duplicates. Published with the corrected DermaMNIST: Abhishek, Jain and Hamarneh, Sci. Data
# 12:196 (2025), doi:10.1038/s41597-025-04382-5.
_PAIRS = """
0033481-0033421 0033556-0032634 0029152-0033173 0029036-0027027 0027820-0028209 0027689-0032647
0030906-0024879 0033391-0034186 0025226-0030074 0026087-0025664 0024736-0029748 0024770-0027811
0027162-0029061 0024602-0032283 0029625-0024629 0030000-0031392 0024437-0031299 0033374-0033417
0025323-0025141 0025947-0029023
"""
DUPLICATE_PAIRS = tuple(tuple(f"ISIC_{n}" for n in pair.split("-")) for pair in _PAIRS.split())


def read_metadata(
    path: str | os.PathLike, groupings: str | os.PathLike | None = None
) -> pd.DataFrame:
    """Read and check a table of diagnoses, without images.

    Args:
        path: text (UTF-8 or UTF-16) with a header, separated by commas, semicolons or tabs: the
            columns of HAM10000, of which image_id and dx must be there, or the challenge's truth
            (image and a column of 1.0 and 0.0 per class). Common spellings are understood.
        groupings: the challenge's lesion groupings (image, lesion_id, diagnosis_confirm_type).

    Returns:
        A row per image, sorted by image_id: image_id, lesion_id (missing: the image_id), dx,
        dx_type, age (float64, years, 0 to 120, NaN when missing), sex, localization, dataset and
        split (if the file has them), label (int64, index into `CLASSES`) and group (the lesion_id,
        or one of several that `DUPLICATE_PAIRS` shows to be one lesion). Missing words are
        "unknown". Warnings name what is missing or not known; an InputError names all problems.
    """
    path = Path(path).expanduser()
    table, problems = parse_metadata(path, groupings and Path(groupings).expanduser())
    raise_problems(path, problems)
    return complete_table(table, path.name)


def parse_metadata(
    path: Path, groupings: Path | None = None
) -> tuple[pd.DataFrame | None, list[str]]:
    """Give a table of strings, None if the file is none, and all that is wrong with it."""
    table, problems = _read_rows(path)
    if table is not None:
        if is_truth(table.columns):
            table["dx"] = _read_truth(table)
        problems += _check_rows(table, ("image_id", "dx"))
    problems = [f"{path.name}: {problem}" for problem in problems]
    if groupings and table is not None and "lesion_id" not in table:
        groups, more = _read_rows(groupings)
        if groups is not None:
            more += _check_rows(groups, ("image_id", "lesion_id", "dx_type"))
        problems += [f"{groupings.name}: {problem}" for problem in more]
        if not problems:
            groups = groups.set_index("image_id")
            for column in ("lesion_id", "dx_type"):
                table[column] = table["image_id"].map(groups[column]).fillna("")
            problems = [f"{groupings.name}: {problem}" for problem in _check_rows(table, ())]
    return table, problems


def complete_table(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Order and complete a checked table of strings; warnings name what `where` lacks."""
    table = table.sort_values("image_id", ignore_index=True)
    notes = []
    lacking = [column for column in COLUMNS[4:] if column not in table]
    if 0 < len(lacking) < 3:
        notes.append(f"it has no {' and no '.join(lacking)} among {name_some(table.columns, 20)}")
    table = table.reindex(columns=[c for c in KEPT if c in {*table, *COLUMNS}], fill_value="")
    table["age"] = _parse_numbers(table["age"])
    for column, known in (("sex", SEXES), ("localization", SITES)):
        others = table.loc[~table[column].isin([*known, ""]), column]
        if len(others):
            notes.append(
                f"{column} is {name_some(others.unique())} in {len(others)} of {len(table)} rows, "
                f"none of {', '.join(known)}: it is kept, but a net takes it for missing"
            )
    alone = table["lesion_id"] == ""
    table["lesion_id"] = table["lesion_id"].mask(alone, table["image_id"])
    if alone.any():
        notes.append(
            f"lesion_id is missing in {alone.sum()} of {len(table)} rows: each of these images is "
            "its own lesion; leaks (one lesion in training and test) cannot be seen, scores rise"
        )
    for note in notes:
        warnings.warn(f"{where}: {note}", stacklevel=3)
    words = [c for c in ("dx_type", "sex", "localization", "dataset") if c in table]
    table[words] = table[words].replace("", "unknown")
    table["label"] = table["dx"].map(CLASSES.index).astype(np.int64)
    table["group"] = table["lesion_id"]
    for pair in DUPLICATE_PAIRS:
        lesions = table.loc[table["image_id"].isin(pair), "group"]
        if len(lesions) == 2:
            table["group"] = table["group"].mask(table["group"].isin(lesions), lesions.min())
    return table


def find_split(name: str) -> str:
    """Read a folder's name as a part of the data: train, val_dir, test-set; "" for another."""
    return SPLIT_WORDS.get(re.split(r"[ _.-]", name.lower())[0], "")


def find_class(word: str) -> str:
    """Give the class that a word means in any common spelling, "" if none.

    Numbers around it do not count, nor does a second spelling in brackets: "3. Melanoma (MEL) 12".
    """
    found = set()
    for part in re.split(r"[()\[\]]", word.casefold()):
        key = re.sub(r"^\d+|\d+$", "", re.sub(r"[\W_]+", "", part))
        key = re.sub("^(actinickeratos[ei]s)(and|or)?(bowen|intraepi).*", r"\1", key)
        if key:
            found.add("akiec" if key.startswith("intraepithelialcarc") else _CLASS_OF.get(key, ""))
    return found.pop() if len(found) == 1 else ""


def is_missing(values: pd.Series) -> pd.Series:
    """Tell which strings stand for a missing value, in any common spelling."""
    words = values.str.casefold()
    return (words == "-1") | words.str.replace(r"[\W_]+", "", regex=True).isin(_MISSING)


def clean_id(text: str) -> str:
    """Give an image's id in one Unicode form, without folder and ending, ISIC in capitals."""
    text = re.split(r"[/\\]", unicodedata.normalize("NFC", text))[-1]
    stem, dot, suffix = text.rpartition(".")
    text = stem if dot + suffix.lower() in (*IMAGE_SUFFIXES, ".gif", ".jp2", ".heic") else text
    return text.upper() if re.fullmatch(r"isic_\d+", text, re.IGNORECASE) else text


def read_header(path: Path) -> set[str]:
    """Read the names of a table's columns, as this project calls them; none if it has none."""
    try:
        with path.open("rb") as file:
            lines = _split_lines(file.read(2**17), errors="replace")
            return set(_name_columns(next(lines, (0, []))[1]))
    except (OSError, csv.Error):
        return set()


def is_truth(columns: Iterable[str]) -> bool:
    """Whether a header is that of a challenge's truth: no dx, but columns named by class."""
    return "dx" not in columns and sum(bool(find_class(column)) for column in columns) > 1


def _read_rows(path: Path) -> tuple[pd.DataFrame | None, list[str]]:
    """Give a file's strings under this project's names, with its lines as the index."""
    if "pixel0000" in read_header(path):
        problem = "it holds pixels without image ids; get the images and HAM10000_metadata.csv"
        return None, [f"{problem} instead: python -m helpers download --help"]
    try:
        data = path.read_bytes()
        if data[:2] in (b"PK", b"\xd0\xcf"):
            return None, ["it is a spreadsheet, whatever its ending says; save it as CSV in UTF-8"]
        if b"\0" in data[:100] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            return None, ["it is UTF-16 without its mark, or no text; save it as CSV in UTF-8"]
        lines = list(_split_lines(data))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return None, [f"it cannot be read as a table ({error}); save it as CSV in UTF-8"]
    if len(lines) < 2:
        return None, ["it is empty or has no rows below its header; download it again"]
    header, lines = _name_columns(lines[0][1]), lines[1:]
    uneven = [line for line, row in lines if len(row) != len(header)]
    problems = [f"line {name_some(uneven)} has not {len(header)} values; correct it"] * bool(uneven)
    even = {line: row for line, row in lines if len(row) == len(header)}
    table = pd.DataFrame(list(even.values()), list(even), header, dtype=str)
    names = [find_class(name) or name for name in header]
    repeated = {n for n in names if n in (*KEPT, *CLASSES) and names.count(n) > 1}
    if repeated:
        problems.append(f"it has the columns {', '.join(repeated)} twice; keep one of each")
    return table.loc[:, ~table.columns.duplicated()].apply(_clean_values), problems


def _split_lines(data: bytes, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """Give each line's number and values, but for blank lines and the sep=; of spreadsheets."""
    is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16" if is_utf16 else "utf-8-sig", errors)
    first = "".join(text.lstrip()[: 2**17].splitlines()[:1])  # also where \r alone ends a line
    mark = re.match(r'"?sep\s*=\s*([,;|\t])', first, re.IGNORECASE)
    delimiter = mark[1] if mark else max(",\t;|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        row = [value.strip() for value in row]
        if any(row) and not (mark and re.match(r"sep\s*=", row[0], re.IGNORECASE)):
            yield reader.line_num, row


def _name_columns(header: Iterable[str]) -> list[str]:
    """Give each column the name that it has in HAM10000, unless another one has it."""
    names = [name.lower() for name in header]
    return [
        name if _COLUMN_NAMES.get(name, name) in names else _COLUMN_NAMES[name] for name in names
    ]


def _clean_values(values: pd.Series) -> pd.Series:
    """Bring a column's words into those of HAM10000; "" where missing."""
    column = values.name
    if column == "image_id":
        return values.map(clean_id)
    values = values.mask(is_missing(values), "")
    if column == "dx":
        return values.map(lambda word: find_class(word) or word)
    if column in _WORDS:
        return values.str.casefold().replace(_WORDS[column])
    return values.str.normalize("NFC")


def _read_truth(truth: pd.DataFrame) -> pd.Series:
    """Give the class of each row of a challenge's truth, or what is there instead."""
    columns = [column for column in truth if find_class(column) or column in ("scc", "unk")]
    values = truth[columns].apply(_parse_numbers)
    is_right = values.isin([0, 1]).all(axis=1) & (values.sum(axis=1) == 1)
    dx = values.eq(1).idxmax(axis=1).map(lambda column: find_class(column) or column)
    return dx.where(is_right, "not a 1 and else 0")


def _check_rows(table: pd.DataFrame, required: Iterable[str]) -> list[str]:
    """Find all that is wrong in the columns that are there."""
    absent = [column for column in required if column not in table]
    has = name_some(table.columns, 20)
    problems = [f"it lacks the columns {', '.join(absent)}; it has {has}"] if absent else []
    checks = [
        ("image_id", lambda ids: ids == "", "must be filled in"),
        ("lesion_id", _is_rounded, "was rounded by a spreadsheet; format the column as text"),
        ("image_id", lambda ids: ids.duplicated(keep=False) & (ids != ""), "must be there once"),
        ("dx", lambda dx: ~dx.isin(CLASSES), f"must be one of {', '.join(CLASSES)}"),
        ("age", lambda age: (age != "") & ~_parse_numbers(age).between(0, 120), "must be 0 to 120"),
        ("split", lambda split: ~split.isin(SPLITS), f"must be one of {', '.join(SPLITS)}"),
    ]
    for column, is_wrong, rule in checks:
        if column in table:
            wrong = table.loc[is_wrong(table[column]), column]
            problems += [f"{column} {rule}: {_name_lines(wrong)}"] if len(wrong) else []
    if {"dx", "lesion_id"} <= {*table}:
        known = table[(table["lesion_id"] != "") & table["dx"].isin(CLASSES)]
        several = known[known.groupby("lesion_id")["dx"].transform("nunique") > 1]
        if len(several):
            names = _name_lines(several["lesion_id"] + " is " + several["dx"])
            problems.append(f"a lesion has one dx: {names}; correct dx or lesion_id")
    return problems


def _is_rounded(ids: pd.Series) -> pd.Series:
    """Tell which ids a spreadsheet has turned into powers of ten, such as 1.23E+11."""
    return ids.str.fullmatch(r"\d+([.,]\d+)?[eE]\+?\d+") & ids.str.contains("[.,+]")


def _name_lines(values: pd.Series) -> str:
    """Name values, each with the lines where it stands."""
    groups = values.groupby(values, sort=False)
    return name_some(f"{value!r} in line {name_some(rows.index)}" for value, rows in groups)


def _parse_numbers(values: pd.Series) -> pd.Series:
    """Turn strings into numbers, with a decimal point or comma; NaN where there is none."""
    return pd.to_numeric(values.str.replace(",", "."), errors="coerce").astype(float)
