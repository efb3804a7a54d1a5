"""Draw a small sample in the layout of HAM10000, so that everything runs offline in minutes.

The images are drawn, not photographed, and say nothing about how well a net reads real skin. Their
identifiers start at ISIC_9000000 and HAM_9000000, outside HAM10000.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock

from helpers.data import drawing
from helpers.data.files import PROJECT, InputError, name_some, show_bar

FIRST_ID = 9_000_000
FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
TABLE, MARKER = "HAM10000_metadata.csv", "DRAWN.txt"
COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "hand")
CHOICES = {
    "dx_type": ("histo", "follow_up", "consensus", "confocal"),
    "dataset": ("vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias"),
    "localization": SITES,
}
# By class: lesions with 1, 2, ... 6 views (ten lesions put a class into every part of five folds);
# mean age in years; per cent of men; shares of `CHOICES`, about the real ones.
LESIONS = {
    "akiec": ((7, 3, 1), 67, 68, (100,), (0, 10, 90), (11, 20, 4, 20, 2, 38, 5)),
    "bcc": ((7, 5, 1), 67, 62, (100,), (0, 41, 58, 1), (37, 12, 11, 10, 4, 26)),
    "bkl": ((18, 8, 2, 0, 1), 64, 57, (70, 0, 24, 6), (11, 43, 46), (18, 17, 15, 9, 4, 36, 1)),
    "df": ((6, 3, 1), 53, 55, (50, 0, 50), (26, 44, 26, 4), (2, 74, 0, 21, 3)),
    "mel": ((10, 9, 4, 1), 61, 62, (100,), (2, 61, 31, 6), (29, 20, 10, 19, 6, 14, 2)),
    "nv": ((100, 20, 4, 0, 0, 1), 46, 52, (37, 55, 8), (56, 27, 12, 5), (21, 26, 25, 11, 13, 2, 2)),
    "vasc": ((7, 2, 1), 51, 49, (50, 0, 50), (38, 58, 2, 2), (15, 19, 29, 8, 19, 6, 4)),
}


def draw_sample(folder: str | os.PathLike = "data/sample", seed: int = 0) -> Path:
    """Draw the sample into a folder, unless it is there already.

    A kill half-way leaves no sample; of two processes that want it, one waits for the other. The
    folder, below the project if relative, gets two folders of JPEGs of 600x450 pixels,
    HAM10000_metadata.csv and DRAWN.txt, which marks it as drawn: it may hold nothing else.
    """
    folder = PROJECT / Path(folder).expanduser()
    code = hashlib.sha256(Path(__file__).read_bytes() + Path(drawing.__file__).read_bytes())
    marker = f"Drawn, not photographed: seed {seed}, code {code.hexdigest()[:16]}\n"
    if _is_complete(folder, marker):
        return folder
    work = folder.with_name(f".{folder.name}.drawing")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{work}.lock"):
            if not _is_complete(folder, marker):
                _check_replaceable(folder)
                shutil.rmtree(work, ignore_errors=True)  # left by a kill
                _fill_folder(work, seed)
                (work / MARKER).write_text(marker, encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                work.rename(folder)
    except OSError as error:
        problem = f"the sample cannot be drawn here ({error}); free space, or name your DATA_DIR"
        raise InputError(folder, [problem]) from error
    return folder


def is_drawn(image_ids: Iterable[str]) -> bool:
    """Tell whether most of the images are the sample's; the ISIC archive has such ids, but few."""
    return float(np.mean([bool(re.fullmatch(r"ISIC_9000\d{3}", i)) for i in image_ids])) > 0.5


def make_table(seed: int = 0) -> pd.DataFrame:
    """Make up the metadata of the sample: `COLUMNS`, a row per image, by class."""
    rng = np.random.default_rng([seed, FIRST_ID])
    patients, views = [], []
    for dx, (lesions, age, men, *shares) in LESIONS.items():
        for view in np.repeat(np.arange(len(lesions)) + 1, lesions):
            views.append(view)
            patients.append({"dx": dx})
            for (name, values), share in zip(CHOICES.items(), shares, strict=True):
                choice = rng.choice(values[: len(share)], p=np.divide(share, sum(share)))
                patients[-1][name] = str(choice)
            patients[-1]["age"] = float(np.clip(5 * round(rng.normal(age, 14) / 5), 5, 85))
            patients[-1]["sex"] = "male" if rng.random() < men / 100 else "female"
    table = pd.DataFrame(patients)
    # Lesion and image numbers tell nothing of the class, as in reality.
    table["lesion_id"] = [f"HAM_{FIRST_ID + n}" for n in rng.permutation(len(table))]
    unknown = rng.permutation(len(table))
    table.loc[unknown[:4], "age"] = np.nan
    table.loc[unknown[2:5], "sex"] = "unknown"
    table.loc[unknown[4:12], "localization"] = "unknown"
    table = table.loc[table.index.repeat(views)].reset_index(drop=True)
    table["image_id"] = [f"ISIC_{FIRST_ID + n}" for n in rng.permutation(len(table))]
    return table[COLUMNS]


def _is_complete(folder: Path, marker: str) -> bool:
    path, images = folder / MARKER, list(folder.glob("*/ISIC_*.jpg"))
    is_ours = path.is_file() and path.read_text(encoding="utf-8") == marker
    is_ours = is_ours and (folder / TABLE).is_file()
    return is_ours and len(images) == len(pd.read_csv(folder / TABLE))


def _check_replaceable(folder: Path) -> None:
    """Raise an InputError where something other than an older sample is in the way."""
    files = [folder.name] if folder.is_file() else []
    files += sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    if MARKER in files:
        ours = rf"({'|'.join(FOLDERS)})/ISIC_9\d{{6}}\.jpg|{TABLE}|{MARKER}"
        files = [file for file in files if not re.fullmatch(ours, file)]
    if files:
        problem = f"it holds files that were not drawn ({name_some(files)}); move them away"
        raise InputError(folder, [f"{problem}, or give another folder; nothing was changed"])


def _fill_folder(folder: Path, seed: int) -> None:
    """Draw all images and write the table into a new folder."""
    table = make_table(seed)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    table.to_csv(folder / TABLE, index=False, lineterminator="\n")

    def draw_group(lesion_id: str, rows: pd.DataFrame) -> None:
        # A generator of its own for each lesion: the number of threads changes nothing.
        rng = np.random.default_rng([seed, int(lesion_id.removeprefix("HAM_"))])
        first = rows.iloc[0]
        pictures = drawing.draw_lesion(first["dx"], rng, first["dataset"], len(rows))
        for number, image_id, picture in zip(rows.index, rows["image_id"], pictures, strict=True):
            path = folder / FOLDERS[number % 2] / f"{image_id}.jpg"
            quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
            path.write_bytes(cv2.imencode(".jpg", picture[..., ::-1], quality)[1])

    groups = list(table.groupby("lesion_id"))
    with ThreadPoolExecutor() as pool:
        done = pool.map(draw_group, *zip(*groups, strict=True))
        list(show_bar(done, total=len(groups), desc="Drawing lesions", leave=False))
