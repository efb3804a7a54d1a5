"""The challenge's figures by hand, against a recorded case and against the official scorer.

The official scorer needs Python 3.13; elsewhere its tests are skipped and the recorded case stands
for it. To run them, and to record the case anew after the scorer changed:

    python3.13 -m venv ~/scorer
    ~/scorer/bin/pip install isic-challenge-scoring "numpy<2.5" pandas scikit-learn pytest tqdm
    ~/scorer/bin/python -m pytest tests/units/test_challenge.py
    PYTHONPATH=. ~/scorer/bin/python tests/units/test_challenge.py

NumPy 2.5 is too new for scorer 5.8.0 once a ROC curve has more than 100 points: its rdp 0.8 calls
`numpy.cross` with vectors of two numbers, which then ends in a ValueError.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import draw_case, predict

from helpers.data.files import InputError
from helpers.data.reading import CLASSES, UNSCORED_IMAGE
from helpers.evaluation import challenge, scores

CASE = Path(__file__).parents[1] / "reference" / "challenge_case.json"
NOT_INSTALLED = "isic-challenge-scoring is not installed (it needs Python 3.13)"
TOLERANCE = 1e-9  # wanted are 1e-6; seen are 2e-16
MEL, NV = CLASSES.index("mel"), CLASSES.index("nv")


def make_case(seed: int, images: int = 60, digits: int = 1):
    """Make predictions that hold every class, with ties where digits are few."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(7), rng.integers(0, 7, images - 7)]
    probabilities = rng.dirichlet(np.full(7, 0.3), images)
    probabilities[np.arange(images), labels] += 2 * rng.random(images)
    probabilities = (probabilities / probabilities.sum(1, keepdims=True)).round(digits)
    return predict(labels, probabilities, CLASSES)


def make_recorded_case():
    p = make_case(2018)
    probabilities = p.probabilities.copy()
    probabilities[:, CLASSES.index("df")] = 0  # never answered: nothing to divide its ppv by
    return p.with_probabilities(probabilities)


def compute_figures(p) -> pd.Series:
    return challenge.score_challenge(replace(p, resamples=0))["value"]


def score_officially(p) -> pd.Series:
    """Write truth and submission as CSV files and let the official scorer read and score them."""
    from isic_challenge_scoring import ClassificationMetric, ClassificationScore

    with tempfile.TemporaryDirectory() as folder:
        truth, submission = Path(folder, "truth.csv"), Path(folder, "submission.csv")
        challenge.write_submission(truth, p.with_probabilities(np.eye(7)[p.labels]))
        challenge.write_submission(submission, p)
        metric = ClassificationMetric.BALANCED_ACCURACY
        found = ClassificationScore.from_file(truth, submission, metric)
    per_class = found.per_category.rename(index=str.lower)
    per_class.loc["mean"] = found.macro_average
    figures = per_class.stack()
    figures["all", "balanced_accuracy"] = found.overall
    return figures


def record_case() -> None:
    p = make_recorded_case()
    figures = score_officially(p)
    entries = {
        "about": "figures of the official scorer; record anew: see test_challenge.py",
        "scorer": f"isic-challenge-scoring {version('isic-challenge-scoring')}",
        "classes": CLASSES,
        "labels": p.labels.tolist(),
        "probabilities": p.probabilities.tolist(),
        "figures": {dx: figures[dx].to_dict() for dx in ("all", *CLASSES, "mean")},
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
    CASE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def assert_same(ours: pd.Series, official: pd.Series) -> None:
    assert set(ours.index) == set(official.index)
    assert ours.to_dict() == pytest.approx(official.to_dict(), abs=TOLERANCE, rel=0)


def test_recorded_case_of_official_scorer():
    case = json.loads(CASE.read_text())
    assert tuple(case["classes"]) == CLASSES
    p = predict(case["labels"], np.array(case["probabilities"]), CLASSES)
    highest = p.probabilities == p.probabilities.max(1, keepdims=True)
    assert (highest.sum(1) > 1).sum() >= 3
    assert not highest[:, CLASSES.index("df")].any()
    official = pd.DataFrame(case["figures"]).T.stack().dropna()
    assert_same(compute_figures(p), official)
    shuffled = replace(p, classes=p.classes[::-1])
    assert_same(compute_figures(shuffled), official)


def test_recorded_case_is_what_the_official_scorer_says():
    pytest.importorskip("isic_challenge_scoring", reason=NOT_INSTALLED)
    official = score_officially(make_recorded_case())
    recorded = json.loads(CASE.read_text())["figures"]
    assert_same(pd.DataFrame(recorded).T.stack().dropna(), official)


@pytest.mark.parametrize("digits", [1, 2, 16])
@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_official_scorer(seed, digits):
    pytest.importorskip("isic_challenge_scoring", reason=NOT_INSTALLED)
    p = make_case(seed, images=90, digits=digits)
    assert_same(compute_figures(p), score_officially(p))


def test_official_scorer_leaves_the_unscored_image_out():
    pytest.importorskip("isic_challenge_scoring", reason=NOT_INSTALLED)
    p = make_case(4)
    ours = compute_figures(p.select(np.arange(len(p)) < 59))
    p.table.loc[59, "image_id"] = UNSCORED_IMAGE
    assert_same(ours, score_officially(p))


def make_pair(labels: list[int], mel: list[float]):
    """Make predictions of mel as given and of nv the rest."""
    probabilities = np.zeros((len(mel), 7))
    probabilities[:, MEL], probabilities[:, NV] = mel, 1 - np.array(mel)
    return predict(labels, probabilities, CLASSES)


def test_figures_by_hand():
    """ROC points (0, 0), (0, 1/2), (1/2, 1), (1, 1); sensitivity 0.8 is reached at 0.3."""
    figures = compute_figures(make_pair([MEL, MEL, NV, NV], [0.9, 0.5, 0.5, 0.1]))
    assert figures["mel"].to_dict() == pytest.approx(
        {
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
    )
    assert figures["all", "balanced_accuracy"] == 0.5  # a tie counts as wrong


def test_highest_probability_answers_even_below_one_half():
    probabilities = np.full((2, 7), 0.1)
    probabilities[[0, 1], [MEL, NV]] = 0.4
    figures = compute_figures(predict([MEL, NV], probabilities, CLASSES))
    assert figures["all", "balanced_accuracy"] == 1
    assert figures["mel", "sensitivity"] == 0


def test_area_from_a_sensitivity_of_exactly_80_percent():
    """Four of five melanomas at 1/3 false alarms, none more until 2/3."""
    mel = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    figures = compute_figures(make_pair([MEL, NV, MEL, MEL, MEL, NV, MEL, NV], mel))
    assert figures["mel", "auc"] == pytest.approx((0.2 + 0.8 + 1) / 3)
    assert figures["mel", "auc_sens_80"] == pytest.approx((0.8 + 1) / 3)


def test_area_at_chance():
    figures = compute_figures(make_pair([MEL, NV], [0.3, 0.3]))
    assert figures["mel", "auc"] == pytest.approx(0.5)
    assert figures["mel", "auc_sens_80"] == pytest.approx(0.18)


def test_class_that_does_not_occur():
    p = make_case(1)
    figures = compute_figures(p.select(p.labels != 3))
    assert figures[CLASSES[3]][["auc", "auc_sens_80", "ap"]].isna().all()
    others = [figures[dx, "ap"] for dx in CLASSES if dx != CLASSES[3]]
    assert figures["mean", "ap"] == pytest.approx(np.mean(others))
    assert figures.drop(CLASSES[3], level="dx").notna().all()


def test_intervals_without_ties_are_those_of_the_scores():
    p = replace(draw_case(7, images=90, classes=CLASSES), resamples=100)
    table = challenge.score_challenge(p)
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    columns = ["value", "low", "high"]
    expected = scores.score_with_intervals(p).loc["balanced_accuracy", columns].to_dict()
    assert table.loc[("all", "balanced_accuracy")].to_dict() == pytest.approx(expected)


def test_official_test_is_known_by_its_images():
    p = make_case(0)
    assert not challenge.is_official(p.table)
    p.table["image_id"] = [f"ISIC_00{number}" for number in range(34524, 34584)]
    assert challenge.is_official(p.table)


def test_submission_goes_by_name(tmp_path):
    row = {"akiec": 0.1, "bcc": 0.2, "bkl": 0.3, "df": 0.4, "mel": 0.5, "nv": 0.6, "vasc": 0.7}
    path = tmp_path / "new" / "submission.csv"
    challenge.write_submission(path, predict([0], [[row[dx] for dx in CLASSES]], CLASSES))
    assert path.read_bytes() == (
        b"image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\ni00000,0.5,0.6,0.2,0.1,0.3,0.4,0.7\n"
    )


def test_submission_holds_floats_even_of_integers_and_keeps_every_digit(tmp_path):
    path = tmp_path / "submission.csv"
    challenge.write_submission(path, predict([MEL], np.eye(7, dtype=int)[[MEL]], CLASSES))
    assert path.read_text().splitlines()[1] == "i00000,1.0,0.0,0.0,0.0,0.0,0.0,0.0"
    p = make_case(0, digits=16)
    challenge.write_submission(path, p)
    read = pd.read_csv(path, float_precision="round_trip")
    assert all((read[dx.upper()] == p.table[f"p_{dx}"]).all() for dx in CLASSES)


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
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]
    assert path.read_text() == "old"


def test_other_classes_are_named():
    with pytest.raises(InputError, match="the classes are a, b, wanted are akiec, bcc"):
        challenge.score_challenge(predict([0, 1], np.eye(2), "ab"))


def test_evaluation_needs_no_tensorflow_and_no_runs():
    code = "import sys; from helpers.evaluation import comparisons, challenge; "
    code += "print({'tensorflow', 'keras', 'helpers.runs'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "set()", done.stderr


if __name__ == "__main__":
    record_case()
