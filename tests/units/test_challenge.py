"""The file that the challenge takes, and which images are its official test."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import predict

from helpers.data.files import InputError
from helpers.data.reading import CLASSES
from helpers.evaluation import challenge


def test_submission_goes_by_name_and_keeps_every_digit(tmp_path):
    table = pd.DataFrame({"image_id": [f"ISIC_{34524 + i:07}" for i in range(1511)]})
    assert challenge.is_official(table)
    assert not challenge.is_official(table[:-1]), "a part of it is another test"
    assert not challenge.is_official(table.replace("ISIC_0034524", "ISIC_0034320"))
    row = {"akiec": 0.1, "bcc": 0.2, "bkl": 1 / 3, "df": 0.4, "mel": 0, "nv": 1, "vasc": 0.7}
    path = tmp_path / "new" / "submission.csv"
    challenge.write_submission(path, predict([0], [[row[dx] for dx in CLASSES]], CLASSES))
    assert path.read_bytes() == (
        b"image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
        b"i00000,0.0,1.0,0.2,0.1,0.3333333333333333,0.4,0.7\n"  # integers would be refused
    )


@pytest.mark.parametrize(
    ("image_ids", "value", "message"),
    [
        (["a", "b", "a"], 0.1, r"more than once: a;"),
        (["a", None, "c"], 0.1, r"1 image ids are missing"),
        (["a", "b", "c"], np.nan, r"1 probabilities .*: c vasc nan;"),
        (["a", "b", "b"], 1.1, r"b vasc 1\.1;.*more than once: b;"),
    ],
)
def test_submission_that_cannot_be_keeps_the_old_file(tmp_path, image_ids, value, message):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    probabilities = np.full((3, 7), 0.1)
    probabilities[2, 6] = value
    p = predict([0, 1, 2], probabilities, CLASSES)
    p = replace(p, table=p.table.assign(image_id=image_ids))
    with pytest.raises(InputError, match=rf"(?s)submission\.csv: .*{message}"):
        challenge.write_submission(path, p)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="the classes are a, b, wanted are akiec, bcc"):
        challenge.write_submission(path, predict([0, 1], np.eye(2), "ab"))


def test_evaluation_needs_no_tensorflow_and_no_runs():
    code = "import sys; from helpers.evaluation import comparisons, challenge; "
    code += "print({'tensorflow', 'keras', 'helpers.runs'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "set()", done.stderr
