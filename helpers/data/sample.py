"""Draw a small sample in the HAM10000 layout, so that everything runs offline in minutes.

The images are drawn, not photographed: they imitate what a dermatoscope shows (a brown network,
a blue-grey veil, milia-like cysts, branching vessels, lacunae ...) well enough to try every step
of the project, and say nothing about how well a net reads real skin. Their identifiers start at
ISIC_9000000 and HAM_9000000, far from any real image, lesion or official test image.
"""

import hashlib
import os
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from helpers.data import drawing
from helpers.data.files import show_bar

FIRST_ID = 9_000_000
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
TABLE = "HAM10000_metadata.csv"
MARKER = "DRAWN.txt"
DRAWN_FILE = rf"({'|'.join(PARTS)})/ISIC_9\d{{6}}\.jpg|{TABLE}|{MARKER}"
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]

# How many lesions have 1, 2, ... 6 views. Ten lesions are the fewest that put every class into
# train, validation and test of each of five folds.
LESIONS_WITH_VIEWS = {
    "bkl": (18, 8, 2, 0, 1, 0),
    "nv": (172, 34, 6, 0, 0, 1),
    "df": (6, 3, 1, 0, 0, 0),
    "mel": (10, 9, 4, 1, 0, 0),
    "vasc": (7, 2, 1, 0, 0, 0),
    "bcc": (7, 5, 1, 0, 0, 0),
    "akiec": (7, 3, 1, 0, 0, 0),
}

# Shares below are those of the real metadata, rounded.
SOURCES = ("vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias")
SOURCE_SHARES = {
    "akiec": (0.00, 0.10, 0.90, 0.00),
    "bcc": (0.00, 0.41, 0.58, 0.01),
    "bkl": (0.11, 0.43, 0.45, 0.01),
    "df": (0.26, 0.44, 0.26, 0.04),
    "mel": (0.02, 0.61, 0.31, 0.06),
    "nv": (0.56, 0.27, 0.12, 0.05),
    "vasc": (0.38, 0.58, 0.02, 0.02),
}
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot")
SITES += ("neck", "scalp", "hand", "ear")
SITE_SHARES = {
    "akiec": (9, 20, 0, 19, 2, 35, 4, 0, 3, 4, 4, 0),
    "bcc": (36, 11, 2, 10, 4, 20, 9, 1, 3, 4, 0, 0),
    "bkl": (18, 16, 7, 9, 4, 29, 7, 1, 3, 3, 1, 2),
    "df": (2, 71, 0, 21, 3, 0, 0, 3, 0, 0, 0, 0),
    "mel": (29, 17, 4, 19, 6, 9, 6, 3, 3, 1, 1, 2),
    "nv": (21, 22, 20, 11, 13, 1, 4, 4, 1, 1, 2, 0),
    "vasc": (15, 19, 22, 8, 19, 6, 5, 0, 2, 0, 4, 0),
}
# Share of men, mean age in years.
PATIENTS = {
    "akiec": (0.68, 67),
    "bcc": (0.62, 67),
    "bkl": (0.57, 64),
    "df": (0.55, 53),
    "mel": (0.62, 61),
    "nv": (0.52, 46),
    "vasc": (0.49, 51),
}


def draw_sample(folder: str | Path, seed: int = 0) -> Path:
    """Draw the sample into a folder, unless it is there already.

    Everything is drawn into a sibling folder that takes its place at the very end: a kill
    half-way leaves no folder, and two processes that draw at once do not disturb each other.

    Args:
        folder: where the sample shall lie, in the HAM10000 layout: two folders of JPEGs of
            600x450 pixels, HAM10000_metadata.csv and DRAWN.txt, which marks it as drawn.
        seed: the same seed gives the same bytes on the same machine.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds something that was not drawn by this function.
    """
    folder = Path(folder)
    # A sample that another seed or other code drew is drawn anew.
    code = hashlib.sha256(
        Path(__file__).read_bytes() + Path(drawing.__file__).read_bytes()
    ).hexdigest()[:16]
    marker = f"Drawn by this project's helpers, not photographed. Seed {seed}, code {code}.\n"
    if _is_complete(folder, marker):
        return folder
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.drawing-{uuid.uuid4().hex[:8]}")
    try:
        _fill_folder(work, seed)
        (work / MARKER).write_text(marker, encoding="utf-8")
        _move_into_place(work, folder, marker)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def make_table(seed: int = 0) -> pd.DataFrame:
    """Make up the metadata of the sample.

    Returns:
        A row per image, with the eight columns of HAM10000_metadata.csv, ordered by class as
        the real file is. Age in years, in steps of 5, NaN where missing.
    """
    rng = np.random.default_rng([seed, FIRST_ID])
    views = [
        (dx, count)
        for dx, lesions in LESIONS_WITH_VIEWS.items()
        for count, times in enumerate(lesions, start=1)
        for _ in range(times)
    ]
    # Lesion and image numbers say nothing about the class, as in reality.
    numbers = FIRST_ID + rng.permutation(len(views))
    lesions = pd.DataFrame([_make_patient(dx, rng) for dx, _ in views])
    lesions["lesion_id"] = [f"HAM_{number}" for number in numbers]
    unknown = rng.permutation(len(lesions))
    lesions.loc[unknown[:4], "age"] = np.nan
    lesions.loc[unknown[2:5], "sex"] = "unknown"
    lesions.loc[unknown[4:12], "localization"] = "unknown"
    table = lesions.loc[lesions.index.repeat([count for _, count in views])].reset_index(drop=True)
    table["image_id"] = [f"ISIC_{FIRST_ID + n}" for n in rng.permutation(len(table))]
    return table[COLUMNS]


def _is_complete(folder: Path, marker: str) -> bool:
    """Say whether a folder holds a whole sample of this seed and this code."""
    path = folder / MARKER
    if not path.is_file() or path.read_text(encoding="utf-8") != marker:
        return False
    images = sum(1 for part in PARTS for _ in (folder / part).glob("ISIC_*.jpg"))
    return (folder / TABLE).is_file() and images == len(pd.read_csv(folder / TABLE))


def _check_replaceable(folder: Path) -> None:
    """Raise FileExistsError where something other than an older sample is in the way."""
    files = [folder.name] if folder.is_file() else []
    files += sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    if MARKER in files:
        files = [file for file in files if not re.fullmatch(DRAWN_FILE, file)]
    if files:
        raise FileExistsError(
            f"{folder} holds {len(files)} files that draw_sample did not draw, such as "
            f"{files[0]}. Nothing was changed. Give another folder, or move these files away."
        )


def _move_into_place(work: Path, folder: Path, marker: str) -> None:
    """Put a finished sample where it belongs, unless another process was faster."""
    if _is_complete(folder, marker):
        return
    old = work.with_name(work.name + "-old")
    try:
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    except OSError:
        if not _is_complete(folder, marker):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _fill_folder(folder: Path, seed: int) -> None:
    """Draw all images and write the table into a new folder."""
    table = make_table(seed)
    for part in PARTS:
        (folder / part).mkdir(parents=True)
    table.to_csv(folder / TABLE, index=False, lineterminator="\n")
    half = FIRST_ID + len(table) // 2

    def draw_group(item: tuple[str, pd.DataFrame]) -> None:
        lesion_id, rows = item
        # A generator of its own for each lesion: the number of threads changes nothing.
        rng = np.random.default_rng([seed, int(lesion_id.removeprefix("HAM_"))])
        first = rows.iloc[0]
        pictures = drawing.draw_lesion(first["dx"], rng, first["dataset"], len(rows))
        for image_id, picture in zip(rows["image_id"], pictures, strict=True):
            part = PARTS[int(image_id.removeprefix("ISIC_")) >= half]
            path = folder / part / f"{image_id}.jpg"
            bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])
            path.write_bytes(data.tobytes())

    groups = list(table.groupby("lesion_id"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(draw_group, groups)
        list(show_bar(done, total=len(groups), desc="Drawing lesions", leave=False))


def _make_patient(dx: str, rng: np.random.Generator) -> dict:
    """Make up what the metadata say of one lesion of a class."""
    dataset = str(rng.choice(SOURCES, p=SOURCE_SHARES[dx]))
    sites = np.array(SITE_SHARES[dx]) / sum(SITE_SHARES[dx])
    male, age = PATIENTS[dx]
    return {
        "dx": dx,
        "dx_type": _choose_dx_type(dx, dataset, rng),
        "age": float(np.clip(5 * round(rng.normal(age, 14) / 5), 5, 85)),
        "sex": "male" if rng.random() < male else "female",
        "localization": str(rng.choice(SITES, p=sites)),
        "dataset": dataset,
    }


def _choose_dx_type(dx: str, dataset: str, rng: np.random.Generator) -> str:
    """Choose how the diagnosis was made; only nevi were merely followed up."""
    if dx == "nv":
        if dataset == "vidir_molemax":
            return "follow_up"
        return "histo" if rng.random() < 0.83 else "consensus"
    if dx == "bkl":
        return str(rng.choice(["histo", "consensus", "confocal"], p=[0.7, 0.24, 0.06]))
    if dx in ("df", "vasc"):
        return str(rng.choice(["histo", "consensus"]))
    return "histo"
