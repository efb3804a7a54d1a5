"""The official test of the ISIC 2018 challenge, task 3, and the file that the challenge takes.

It ranks by balanced accuracy, as `scores` computes it: the mean recall over the classes. Its scorer
(https://pypi.org/project/isic-challenge-scoring) leaves the image ISIC_0035068 out (weight 0).
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data.files import name_some, raise_problems, replace_file
from helpers.data.reading import CLASSES
from helpers.evaluation.predictions import Predictions

# The columns of a submission. Not the project's order: go by name (MEL is mel), never by position.
COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
FIRST_ID, LAST_ID, IMAGES = "ISIC_0034524", "ISIC_0036064", 1511  # of the official test


def is_official(table: pd.DataFrame) -> bool:
    """Tell whether the images of a table are those of the official test, all of them."""
    return len(table) >= IMAGES and bool(table["image_id"].between(FIRST_ID, LAST_ID).all())


def write_submission(path: str | os.PathLike, p: Predictions) -> None:
    """Write the CSV that the challenge takes: image,MEL,NV,BCC,AKIEC,BKL,DF,VASC.

    The official scorer wants the images of its truth file, all of them and no others: beside the
    truth of 1,512 images, a row for ISIC_0035068 too, any probabilities, since its weight is 0.

    Raises:
        InputError: what is wrong with ids and probabilities; nothing is written.
    """
    path, ids = Path(path), p.table["image_id"]
    problems = _find_problems(p)
    if nameless := int((ids.isna() | (ids == "")).sum()):
        problems.append(f"{nameless} image ids are missing")
    if twice := list(ids[ids.duplicated()].dropna().unique()):
        problems.append(f"image ids occur more than once: {name_some(twice)}; keep one row each")
    raise_problems(path, problems)
    table = pd.DataFrame({"image": ids})
    for name in COLUMNS:  # as floats: the scorer refuses a column of integers
        table[name] = p.table[f"p_{name.lower()}"].astype(float)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))


def _find_problems(p: Predictions) -> list[str]:
    """List what the challenge does not take."""
    problems = []
    if set(p.classes) != set(CLASSES):
        problems.append(f"the classes are {', '.join(p.classes)}, wanted are {', '.join(CLASSES)}")
    wrong = np.argwhere(~((p.probabilities >= 0) & (p.probabilities <= 1)))
    if len(wrong):
        ids = p.table["image_id"]
        named = [f"{ids[i]} {p.classes[k]} {p.probabilities[i, k]:g}" for i, k in wrong]
        problems.append(
            f"{len(wrong)} probabilities are not within 0 … 1: {name_some(named)}; where they are "
            "nan train again with a lower LEARNING_RATE"
        )
    return problems
