"""The metadata files of HAM10000 and of the ISIC 2018 challenge, each read to one checked table.

The source of classes and columns is Tschandl, Rosendahl and Kittler, Sci. Data 5:180161 (2018),
doi:10.1038/sdata.2018.161; of the challenge's, Codella et al., arXiv:1902.03368 (2018), task 3.
"""

import csv
import io
import os
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

# The challenge's truth: a column per class, 1.0 in one of them; read by name, whatever the order.
TRUTH_COLUMNS = {dx.upper(): dx for dx in CLASSES}
WEIGHT_COLUMNS = ("score_weight", "validation_weight")  # of the official scorer; not needed here
# These truths have no lesion groupings, nor need them: nothing is split that only tests a model.
TEST_TRUTHS = ("isic2018_task3_test_groundtruth", "isic2018_task3_validation_groundtruth")
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
GROUPING_COLUMNS = ("image", "lesion_id", "diagnosis_confirm_type")
DX_TYPES = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
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


def read_metadata(
    csv_path: str | os.PathLike, groupings_path: str | os.PathLike | None = None
) -> pd.DataFrame:
    """Reads and checks metadata in the format of HAM10000 or of the challenge, without images.

    Args:
        csv_path: UTF-8 text with a header, separated by commas, semicolons or tabs: the columns of
            HAM10000, or the challenge's truth (image and a column of 1.0 and 0.0 per class).
        groupings_path: the challenge's lesion groupings (image, lesion_id,
            diagnosis_confirm_type); needed with its training truth, else not looked at.

    Returns:
        A row per image, sorted by image_id. Columns: image_id, lesion_id, dx, dx_type (str), age
        (float64, years, 0 to 120, NaN when missing), sex, localization (str), dataset and split
        (str, only if the file has them; split is train, val or test), label (int64, index into
        `CLASSES`) and group (str: the lesion_id, or one of them where `DUPLICATE_PAIRS` shows
        several to be one lesion). Empty dx_type, sex, localization and dataset become "unknown";
        other columns of the file are left out.

        The challenge gives no ages, sexes and sites; dx_type is its diagnosis_confirm_type in the
        codes of HAM10000. In its test truth each image stands for a lesion of its own, with
        lesion_id = image_id, which is not known to be true: test with it, never split it.

    Raises:
        DatasetError: naming all problems of the files.
    """
    groupings = Path(groupings_path).expanduser() if groupings_path is not None else None
    table, problems = parse_metadata(Path(csv_path).expanduser(), groupings)
    if problems:
        raise DatasetError(str(csv_path), problems)
    return table


def parse_metadata(
    path: Path, groupings: Path | None = None
) -> tuple[pd.DataFrame | None, list[str]]:
    """Gives the table, None if the file is no table, and all that is wrong with it."""
    table, problems = _parse_rows(path)
    if table is None:
        return None, problems
    if is_truth(table.columns):
        table, more = _parse_truth(path, table, groupings)
    else:
        table, more = _parse_ham(path, table)
    if problems or more:
        return table, problems + more
    return _complete_table(table), []


def is_ham(columns: Iterable[str]) -> bool:
    """Whether a header is that of HAM10000."""
    return {"image_id", "dx"} <= set(columns)


def is_truth(columns: Iterable[str]) -> bool:
    """Whether a header is that of a challenge's truth, perhaps with faults."""
    columns = set(columns)
    return "dx" not in columns and len(columns & TRUTH_COLUMNS.keys()) > 1


def is_groupings(columns: Iterable[str]) -> bool:
    """Whether a header is that of the challenge's lesion groupings."""
    return set(GROUPING_COLUMNS) <= set(columns)


def _parse_rows(path: Path) -> tuple[pd.DataFrame | None, list[str]]:
    """Gives a file's strings under its own header, with its lines as the index."""
    name = path.name
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return None, [f"{name} cannot be read: {error.strerror}; check the path and permissions"]
    except UnicodeDecodeError as error:
        return None, [
            f"{name} is not UTF-8 text (byte {error.start}); save it again as CSV in UTF-8"
        ]
    head = "".join(text.lstrip().splitlines()[:1])  # also where \r alone ends a line
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",\t;", key=head.count))
    try:
        lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        return None, [f"{name} is no CSV: line {reader.line_num}: {error}; download it again"]
    lines = [(line, row) for line, row in lines if any(row)]
    if not lines:
        return None, [f"{name} is empty; download it again"]
    header = lines.pop(0)[1]
    problems = [] if lines else [f"{name}: it has a header but no rows; download it again"]
    uneven = [line for line, row in lines if len(row) != len(header)]
    if uneven:
        problems.append(f"{name}: line {join(uneven)} has not {len(header)} values; correct it")
    even = {line: row for line, row in lines if len(row) == len(header)}
    return pd.DataFrame(list(even.values()), index=list(even), columns=header, dtype=str), problems


def _parse_ham(path: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Checks the rows of a file with the columns of HAM10000."""
    table, problems = _take_columns(table, REQUIRED_COLUMNS, OPTIONAL_COLUMNS)
    problems += _check_ids(table, "image_id")
    if "dx" in table:
        wrong = table[~table["dx"].isin(CLASSES)]
        problems += _describe_values(wrong, "dx", f"it must be one of {', '.join(CLASSES)}")
    problems += _check_lesions(table)
    if "age" in table:
        age = _parse_age(table["age"])
        wrong = table[~(age.between(0, 120) | age.isna())]
        problems += _describe_values(wrong, "age", "it must be 0 to 120 years, or empty")
    if "split" in table:
        wrong = table[~table["split"].isin(SPLITS)]
        problems += _describe_values(wrong, "split", f"it must be one of {', '.join(SPLITS)}")
    return table, [f"{path.name}: {problem}" for problem in problems]


def _parse_truth(
    path: Path, truth: pd.DataFrame, groupings: Path | None
) -> tuple[pd.DataFrame, list[str]]:
    """Brings the challenge's truth and its groupings into the columns of HAM10000."""
    foreign = {*truth.columns} - {"image", *TRUTH_COLUMNS, *WEIGHT_COLUMNS}
    truth, problems = _take_columns(truth, ("image", *TRUTH_COLUMNS))
    if foreign:
        problems.append(
            f"it has the columns {join(sorted(foreign), 20)}, which are no class of HAM10000; take "
            "the truth of ISIC 2018 task 3"
        )
    problems += _check_ids(truth, "image")
    table = truth[[]].copy()
    if "image" in truth:
        table["image_id"] = truth["image"]
    if {*TRUTH_COLUMNS} <= {*truth.columns}:
        values = truth[list(TRUTH_COLUMNS)].apply(pd.to_numeric, errors="coerce")
        ones = values.eq(1)
        right = (ones.sum(axis=1) == 1) & values.isin([0, 1]).all(axis=1)
        names = np.array(list(TRUTH_COLUMNS.values()))
        table["dx"] = np.where(right, names[ones.to_numpy().argmax(axis=1)], "")
        wrong = truth.index[~right]
        if len(wrong):
            problems.append(
                f"line {join(wrong)} has not a 1 for one class and a 0 for each other; correct it"
            )
    others = []
    if groupings is not None:
        groups, others = _parse_groupings(groupings)
        if groups is not None and "image" in groups and "image" in truth:
            others += _compare_images(truth["image"], path.name, groups["image"], groupings.name)
            of_image = groups.drop_duplicates("image").set_index("image")
            of_image = of_image.reindex(truth["image"], fill_value="")
            table[list(of_image)] = of_image.to_numpy()
    elif path.stem.lower() not in TEST_TRUTHS:
        problems.append(
            f"{GROUPINGS} is missing, without which images of one lesion would lie in training and "
            "test: put it beside this file; python -m helpers.data.download FOLDER --source isic gets it"
        )
    elif "image" in truth:
        table["lesion_id"] = truth["image"]
    problems = [f"{path.name}: {problem}" for problem in problems + _check_lesions(table)] + others
    if problems:
        return table, problems
    found = table.get("diagnosis_confirm_type", pd.Series("", table.index, dtype=str))
    table["dx_type"] = found.replace(DX_TYPES)
    table[["age", "sex", "localization"]] = ""
    return table[list(REQUIRED_COLUMNS)], []


def _parse_groupings(path: Path) -> tuple[pd.DataFrame | None, list[str]]:
    table, problems = _parse_rows(path)
    if table is None:
        return None, problems
    table, more = _take_columns(table, GROUPING_COLUMNS)
    more += _check_ids(table, "image")
    return table, problems + [f"{path.name}: {problem}" for problem in more]


def _compare_images(truth: pd.Series, truth_name: str, groups: pd.Series, name: str) -> list[str]:
    """Compares the images of the challenge's two files, which must be the same."""
    problems = []
    for ours, our_name, theirs, their_name in (
        (truth, truth_name, groups, name),
        (groups, name, truth, truth_name),
    ):
        images = [image for image in ours.unique() if image]
        theirs = set(theirs)
        alone = [image for image in images if image not in theirs]
        if alone:
            problems.append(
                f"{their_name}: it lacks {len(alone)} of the {len(images)} images of {our_name}: "
                f"{join(alone)}; take both files from the same download"
            )
    return problems


def _take_columns(
    table: pd.DataFrame, required: Iterable[str], optional: Iterable[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Gives the known columns, each once, and what is wrong with the header."""
    problems = []
    header = list(table.columns)
    absent = [column for column in required if column not in header]
    if absent:
        problems.append(f"it lacks the columns {join(absent, 20)}; it has {join(header, 20)}")
    wanted = [column for column in (*required, *optional) if column in header]
    repeated = [column for column in wanted if header.count(column) > 1]
    if repeated:
        problems.append(f"it has the columns {join(repeated)} twice; keep one of each")
    return table.loc[:, ~table.columns.duplicated()][wanted], problems


def _check_ids(table: pd.DataFrame, image_column: str) -> list[str]:
    """Checks the ids in the columns that are there: none empty, no image twice."""
    problems = []
    for column in (image_column, "lesion_id"):
        empty = table.index[table[column] == ""] if column in table else ()
        if len(empty):
            problems.append(f"{column} is empty in line {join(empty)}; fill it in")
    if image_column in table:
        images = table[image_column]
        repeated = table[images.duplicated(keep=False) & (images != "")]
        problems += _describe_values(repeated, image_column, "keep one of these lines")
    return problems


def _check_lesions(table: pd.DataFrame) -> list[str]:
    """Checks that each lesion has one diagnosis, where the table has both columns."""
    if not {"dx", "lesion_id"} <= {*table.columns}:
        return []
    known = table[(table["lesion_id"] != "") & table["dx"].isin(CLASSES)]
    several = known.groupby("lesion_id")["dx"].transform("nunique") > 1
    return shorten(
        f"lesion {lesion_id} has several diagnoses: "
        + ", ".join(f"{dx} in line {lines}" for dx, lines in _group_lines(rows, "dx"))
        + "; correct dx or lesion_id"
        for lesion_id, rows in known[several].groupby("lesion_id")
    )


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
    return shorten(
        f"{column} {value!r} in line {lines}; {remedy}"
        for value, lines in _group_lines(rows, column)
    )


def _group_lines(rows: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    """Lists the values of a column, each with the lines where it stands."""
    return [(value, join(part.index)) for value, part in rows.groupby(column, sort=False)]


def join(values: Iterable, limit: int = 5) -> str:
    """Names the first values and counts the others."""
    values = [str(value)[:200] for value in values]
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more


def shorten(problems: Iterable[str], limit: int = 5) -> list[str]:
    """Keeps a message readable when a whole column is wrong."""
    problems = list(problems)
    more = [f"… and {len(problems) - limit} more like it"] if len(problems) > limit else []
    return problems[:limit] + more
