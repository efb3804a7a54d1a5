"""The challenge's figures by hand, against a recorded case and against the official scorer.

The official scorer needs Python 3.13; elsewhere its test is skipped, and a case that it scored
stands for it. With it: pip install isic-challenge-scoring "numpy<2.5" (NumPy 2.5 is too new for
scorer 5.8.0 once a ROC curve has more than 100 points).
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import draw_case, predict

from helpers.data.files import InputError
from helpers.data.reading import CLASSES, UNSCORED_IMAGE
from helpers.evaluation import challenge, scores

CASE = Path(__file__).parents[1] / "reference" / "challenge_case.json"
MEL, NV = CLASSES.index("mel"), CLASSES.index("nv")


def compute_figures(p) -> pd.Series:
    return challenge.score_challenge(replace(p, resamples=0))["value"]


def assert_same(ours: pd.Series, official: pd.Series) -> None:
    assert set(ours.index) == set(official.index)
    assert ours.to_dict() == pytest.approx(official.to_dict(), abs=1e-9, rel=0)


def test_recorded_case_of_official_scorer():
    """Probabilities of one digit: ties, and a class that is never answered."""
    case = json.loads(CASE.read_text())
    p = predict(case["labels"], np.array(case["probabilities"]), case["classes"])
    official = pd.DataFrame(case["figures"]).T.stack().dropna()
    assert_same(compute_figures(p), official)
    assert_same(compute_figures(replace(p, classes=p.classes[::-1])), official)


@pytest.mark.parametrize("digits", [1, 2, 16])
@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_official_scorer(tmp_path, seed, digits):
    scorer = pytest.importorskip("isic_challenge_scoring", reason="it needs Python 3.13")
    p = draw_case(seed, images=90, classes=CLASSES)
    p = p.with_probabilities(p.probabilities.round(digits))
    p.table.loc[89, "image_id"] = UNSCORED_IMAGE
    challenge.write_submission(tmp_path / "submission.csv", p)
    challenge.write_submission(tmp_path / "truth.csv", p.with_probabilities(np.eye(7)[p.labels]))
    metric = scorer.ClassificationMetric.BALANCED_ACCURACY
    files = (tmp_path / "truth.csv", tmp_path / "submission.csv")
    found = scorer.ClassificationScore.from_file(*files, metric)
    per_class = found.per_category.rename(index=str.lower)
    per_class.loc["mean"] = found.macro_average
    official = per_class.stack()
    official["all", "balanced_accuracy"] = found.overall
    assert_same(compute_figures(p.select(np.arange(90) < 89)), official)


def make_pair(labels: list[int], mel: list[float]):
    """Make predictions of mel as given and of nv the rest."""
    probabilities = np.zeros((len(mel), 7))
    probabilities[:, MEL], probabilities[:, NV] = mel, 1 - np.array(mel)
    return predict(labels, probabilities, CLASSES)


def test_figures_by_hand():
    """ROC points (0, 0), (0, 1/2), (1/2, 1), (1, 1); sensitivity 0.8 is reached at 0.3."""
    figures = compute_figures(make_pair([MEL, MEL, NV, NV], [0.9, 0.5, 0.5, 0.1]))
    expected = {
        "accuracy": 3 / 4,
        "sensitivity": 1 / 2,  # 0.5 is not above the threshold
        "specificity": 1,
        "dice": 2 / 3,
        "ppv": 1,
        "npv": 2 / 3,
        "auc": 1 / 2 * 3 / 4 + 1 / 2,
        "auc_sens_80": 0.2 * 0.9 + 0.5,
        "ap": 1 / 2 * 1 + 1 / 2 * 2 / 3,
    }
    assert figures["mel"].to_dict() == pytest.approx(expected)
    assert figures["all", "balanced_accuracy"] == 0.5  # a tie counts as wrong
    unsure = compute_figures(predict([MEL, NV], 0.1 + 0.3 * np.eye(7)[[MEL, NV]], CLASSES))
    assert unsure["all", "balanced_accuracy"] == 1
    assert unsure["mel", "sensitivity"] == 0  # .4 is the highest, and below the threshold


@pytest.mark.parametrize(
    ("labels", "mel", "auc", "auc_sens_80"),
    [
        # Four of five melanomas at 1/3 false alarms, none more until 2/3.
        ("mnmmmnmn", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], (0.2 + 0.8 + 1) / 3, (0.8 + 1) / 3),
        ("mn", [0.3, 0.3], 0.5, 0.18),
    ],
    ids=["exactly 80 percent", "chance"],
)
def test_areas_by_hand(labels, mel, auc, auc_sens_80):
    figures = compute_figures(make_pair([MEL if x == "m" else NV for x in labels], mel))
    assert figures["mel", "auc"] == pytest.approx(auc)
    assert figures["mel", "auc_sens_80"] == pytest.approx(auc_sens_80)


def test_class_that_does_not_occur():
    p = draw_case(1, classes=CLASSES)
    figures = compute_figures(p.select(p.labels != 3))
    assert figures[CLASSES[3]][["auc", "auc_sens_80", "ap"]].isna().all()
    others = [figures[dx, "ap"] for dx in CLASSES if dx != CLASSES[3]]
    assert figures["mean", "ap"] == pytest.approx(np.mean(others))
    assert figures.drop(CLASSES[3], level="dx").notna().all()


def test_intervals_without_ties_are_those_of_the_scores():
    p = replace(draw_case(7, images=90, classes=CLASSES), resamples=100)
    table = challenge.score_challenge(p)
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    expected = scores.score_with_intervals(p).loc["balanced_accuracy", ["value", "low", "high"]]
    found = table.loc[("all", "balanced_accuracy")]
    assert found.to_dict() == pytest.approx(expected.to_dict())


def test_submission_goes_by_name_and_keeps_every_digit(tmp_path):
    assert challenge.is_official(pd.DataFrame({"image_id": ["ISIC_0034524", "ISIC_0036064"]}))
    assert not challenge.is_official(pd.DataFrame({"image_id": ["ISIC_0034524", "ISIC_0034320"]}))
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
