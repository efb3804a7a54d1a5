"""The challenge's figures by hand, against a recorded case and against the official scorer.

The official scorer needs Python 3.13; elsewhere its tests are skipped and the recorded case stands
for it. To run them, and to record the case anew after the scorer changed:

    python3.13 -m venv ~/scorer
    ~/scorer/bin/pip install isic-challenge-scoring "numpy<2.5" pandas scikit-learn pytest
    ~/scorer/bin/python -m pytest tests/test_challenge.py
    ~/scorer/bin/python -m tests.test_challenge

NumPy 2.5 is too new for scorer 5.8.0 once a ROC curve has more than 100 points: its rdp 0.8 calls
`numpy.cross` with vectors of two numbers, which then ends in a ValueError.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.data import reading as dataset
from helpers.data.reading import CLASSES
from helpers.evaluation import challenge, scores

CASE = Path(__file__).parents[1] / "reference" / "challenge_case.json"
NOT_INSTALLED = "isic-challenge-scoring is not installed (it needs Python 3.13)"
TOLERANCE = 1e-9  # wanted are 1e-6; seen are 2e-16


def make_case(seed: int, images: int = 60, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Make labels that hold every class, and probabilities with ties where digits are few."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(7), rng.integers(0, 7, images - 7)]
    probabilities = rng.dirichlet(np.full(7, 0.3), images)
    probabilities[np.arange(images), labels] += 2 * rng.random(images)
    return labels, (probabilities / probabilities.sum(1, keepdims=True)).round(digits)


def make_recorded_case() -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = make_case(2018)
    probabilities[:, CLASSES.index("df")] = 0  # never answered: nothing to divide its ppv by
    return labels, probabilities


def name_images(images: int) -> list[str]:
    return [f"ISIC_{number:07}" for number in range(images)]


def score_officially(
    labels: np.ndarray, probabilities: np.ndarray, image_ids: list[str] | None = None
) -> pd.Series:
    """Write truth and submission as CSV files and let the official scorer read and score them."""
    from isic_challenge_scoring import ClassificationMetric, ClassificationScore

    image_ids = image_ids or name_images(len(labels))
    with tempfile.TemporaryDirectory() as folder:
        truth, submission = Path(folder, "truth.csv"), Path(folder, "submission.csv")
        challenge.write_submission(truth, image_ids, np.eye(7)[labels])
        challenge.write_submission(submission, image_ids, probabilities)
        metric = ClassificationMetric.BALANCED_ACCURACY
        found = ClassificationScore.from_file(truth, submission, metric)
    per_class = found.per_category.rename(index=str.lower)
    per_class.loc["mean"] = found.macro_average
    figures = per_class.stack()
    figures["all", "balanced_accuracy"] = found.overall
    return figures


def record_case() -> None:
    labels, probabilities = make_recorded_case()
    figures = score_officially(labels, probabilities)
    entries = {
        "about": "figures of the official scorer; record anew: see test_challenge.py",
        "scorer": f"isic-challenge-scoring {version('isic-challenge-scoring')}",
        "classes": CLASSES,
        "labels": labels.tolist(),
        "probabilities": probabilities.tolist(),
        "figures": {dx: figures[dx].to_dict() for dx in ("all", *CLASSES, "mean")},
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
    CASE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def assert_same(ours: pd.Series, official: pd.Series) -> None:
    assert set(ours.index) == set(official.index)
    assert ours.to_dict() == pytest.approx(official.to_dict(), abs=TOLERANCE, rel=0)


def test_recorded_case_of_official_scorer():
    case = json.loads(CASE.read_text())
    labels, probabilities = np.array(case["labels"]), np.array(case["probabilities"])
    assert tuple(case["classes"]) == CLASSES
    highest = probabilities == probabilities.max(1, keepdims=True)
    assert (highest.sum(1) > 1).sum() >= 3
    assert not highest[:, CLASSES.index("df")].any()
    official = pd.DataFrame(case["figures"]).T.stack().dropna()
    assert_same(challenge.compute_figures(labels, probabilities), official)


def test_recorded_case_is_what_the_official_scorer_says():
    pytest.importorskip("isic_challenge_scoring", reason=NOT_INSTALLED)
    official = score_officially(*make_recorded_case())
    assert_same(challenge.compute_figures(*make_recorded_case()), official)
    recorded = json.loads(CASE.read_text())["figures"]
    assert_same(pd.DataFrame(recorded).T.stack().dropna(), official)


@pytest.mark.parametrize("digits", [1, 2, 16])
@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_official_scorer(seed, digits):
    pytest.importorskip("isic_challenge_scoring", reason=NOT_INSTALLED)
    labels, probabilities = make_case(seed, images=90, digits=digits)
    official = score_officially(labels, probabilities)
    assert_same(challenge.compute_figures(labels, probabilities), official)


def test_official_scorer_leaves_the_unscored_image_out():
    pytest.importorskip("isic_challenge_scoring", reason=NOT_INSTALLED)
    labels, probabilities = make_case(4)
    with_it = [*name_images(59), dataset.UNSCORED_IMAGE]
    official = score_officially(labels, probabilities, with_it)
    assert_same(challenge.compute_figures(labels[:-1], probabilities[:-1]), official)


def make_pair(mel: list[float]) -> np.ndarray:
    """Make probabilities of mel as given and of nv the rest."""
    probabilities = np.zeros((len(mel), 7))
    probabilities[:, CLASSES.index("mel")] = mel
    probabilities[:, CLASSES.index("nv")] = 1 - np.array(mel)
    return probabilities


MEL, NV = CLASSES.index("mel"), CLASSES.index("nv")


def test_figures_by_hand():
    """ROC points (0, 0), (0, 1/2), (1/2, 1), (1, 1); sensitivity 0.8 is reached at 0.3."""
    figures = challenge.compute_figures([MEL, MEL, NV, NV], make_pair([0.9, 0.5, 0.5, 0.1]))
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


def test_tie_counts_as_wrong():
    """The two rows of 0.5 and 0.5 are wrong, whichever class is true."""
    figures = challenge.compute_figures([MEL, MEL, NV, NV], make_pair([0.9, 0.5, 0.5, 0.1]))
    assert figures["all", "balanced_accuracy"] == 0.5


def test_highest_probability_answers_even_below_one_half():
    probabilities = np.full((2, 7), 0.1)
    probabilities[[0, 1], [MEL, NV]] = 0.4
    figures = challenge.compute_figures([MEL, NV], probabilities)
    assert figures["all", "balanced_accuracy"] == 1
    assert figures["mel", "sensitivity"] == 0


def test_area_from_a_sensitivity_of_exactly_80_percent():
    """Four of five melanomas at 1/3 false alarms, none more until 2/3."""
    mel = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    figures = challenge.compute_figures([MEL, NV, MEL, MEL, MEL, NV, MEL, NV], make_pair(mel))
    assert figures["mel", "auc"] == pytest.approx((0.2 + 0.8 + 1) / 3)
    assert figures["mel", "auc_sens_80"] == pytest.approx((0.8 + 1) / 3)


def test_area_at_chance():
    figures = challenge.compute_figures([MEL, NV], make_pair([0.3, 0.3]))
    assert figures["mel", "auc"] == pytest.approx(0.5)
    assert figures["mel", "auc_sens_80"] == pytest.approx(0.18)


def test_class_never_answered_has_ppv_1():
    labels, probabilities = make_recorded_case()
    figures = challenge.compute_figures(labels, probabilities)["df"]
    assert (figures["sensitivity"], figures["dice"], figures["ppv"]) == (0, 0, 1)


def test_class_that_does_not_occur():
    labels, probabilities = make_case(1)
    figures = challenge.compute_figures(*(x[labels != 3] for x in (labels, probabilities)))
    assert figures[CLASSES[3]][["auc", "auc_sens_80", "ap"]].isna().all()
    others = [figures[dx, "ap"] for dx in CLASSES if dx != CLASSES[3]]
    assert figures["mean", "ap"] == pytest.approx(np.mean(others))
    assert figures.drop(CLASSES[3], level="dx").notna().all()


def test_image_weights_are_repetitions():
    labels, probabilities = make_case(5)
    times = np.random.default_rng(0).integers(1, 4, len(labels))
    weighted = challenge._score(labels, probabilities, times[None].astype(float))[0]
    repeated = [np.repeat(x, times, axis=0) for x in (labels, probabilities)]
    assert weighted == pytest.approx(challenge.compute_figures(*repeated).to_numpy())


def test_image_of_weight_zero_is_out():
    labels, probabilities = make_case(6)
    weights = np.r_[np.zeros(20), np.ones(40)]
    weighted = challenge._score(labels, probabilities, weights[None])[0]
    expected = challenge.compute_figures(labels[20:], probabilities[20:])
    assert weighted == pytest.approx(expected.to_numpy(), nan_ok=True)


def test_intervals():
    labels, probabilities = make_case(7, images=90, digits=16)
    groups = np.arange(90) // 2
    table = challenge.score_challenge(labels, probabilities, groups, resamples=200, seed=3)
    assert list(table) == ["value", "low", "high"]
    assert table["value"].equals(challenge.compute_figures(labels, probabilities))
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["low"] < table["high"]).mean() > 0.9


def test_interval_without_ties_is_that_of_scores():
    labels, probabilities = make_case(8, images=90, digits=16)
    groups = np.arange(90) // 3
    ours = challenge.score_challenge(labels, probabilities, groups, resamples=200, seed=1)
    others = scores.score_with_intervals(labels, probabilities, groups, resamples=200, seed=1)
    expected = others.loc["balanced_accuracy"].to_dict()
    assert ours.loc[("all", "balanced_accuracy")].to_dict() == pytest.approx(expected)


def test_problems_of_scores_are_named_together():
    labels, probabilities = make_case(9)
    labels[3], probabilities[5, MEL], probabilities[6, NV] = 7, np.nan, 1.5
    with pytest.raises(ValueError, match=r"(?s)labels are 7.*2 prob.*: 5 mel nan, 6 nv 1\.5;"):
        challenge.compute_figures(labels, probabilities)


def test_shapes_that_do_not_fit_are_named_together():
    with pytest.raises(ValueError, match=r"(?s)\(4, 6\), wanted is \(N, 7\).*labels have .*\(3,\)"):
        challenge.compute_figures([0, 1, 2], np.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"groups have the shape \(2,\), wanted is \(3,\)"):
        challenge.score_challenge([0, 1, 2], np.eye(7)[:3], ["a", "b"])
    with pytest.raises(ValueError, match="groups are missing in 1 of 3 rows"):
        challenge.score_challenge([0, 1, 2], np.eye(7)[:3], ["a", None, "b"])


def test_submission_goes_by_name(tmp_path):
    row = {"akiec": 0.1, "bcc": 0.2, "bkl": 0.3, "df": 0.4, "mel": 0.5, "nv": 0.6, "vasc": 0.7}
    path = tmp_path / "new" / "submission.csv"
    challenge.write_submission(path, ["ISIC_0034524"], [[row[dx] for dx in CLASSES]])
    assert path.read_bytes() == (
        b"image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_0034524,0.5,0.6,0.2,0.1,0.3,0.4,0.7\n"
    )


def test_submission_holds_floats_even_of_integers(tmp_path):
    path = tmp_path / "submission.csv"
    challenge.write_submission(path, ["a", "b"], np.eye(7, dtype=int)[[MEL, NV]])
    rows = path.read_text().splitlines()[1:]
    assert rows == ["a,1.0,0.0,0.0,0.0,0.0,0.0,0.0", "b,0.0,1.0,0.0,0.0,0.0,0.0,0.0"]


def test_submission_keeps_every_digit(tmp_path):
    _, probabilities = make_case(0, digits=16)
    path = tmp_path / "submission.csv"
    challenge.write_submission(path, name_images(60), probabilities)
    rows = [line.split(",")[1:] for line in path.read_text().splitlines()]
    read = dict(zip(rows[0], np.array(rows[1:], dtype=float).T, strict=True))
    assert all((read[dx.upper()] == probabilities[:, k]).all() for k, dx in enumerate(CLASSES))


@pytest.mark.parametrize(
    ("image_ids", "value", "message"),
    [
        (["a", "b", "a"], 0.1, r"more than once: a;"),
        (["a", None, "c"], 0.1, r"no text in the rows 1"),
        (["a", "b"], 0.1, r"image_ids have the shape \(2,\), wanted is \(3,\)"),
        (["a", "b", "c"], np.nan, r"1 probabilities .*: c vasc nan;"),
        (["a", "b", "c"], -0.1, r"c vasc -0\.1;"),
        (["a", "b", "b"], 1.1, r"more than once: b;.*b vasc 1\.1;"),
    ],
)
def test_submission_that_cannot_be_keeps_the_old_file(tmp_path, image_ids, value, message):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    probabilities = np.full((3, 7), 0.1)
    probabilities[2, 6] = value
    with pytest.raises(ValueError, match=rf"(?s)submission\.csv not written:.*{message}"):
        challenge.write_submission(path, image_ids, probabilities)
    assert [file.name for file in tmp_path.iterdir()] == ["submission.csv"]
    assert path.read_text() == "old"


def test_needs_no_tensorflow():
    code = "import sys, helpers.evaluation.challenge as _; "
    code += "print({'tensorflow', 'keras'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "set()", done.stderr


if __name__ == "__main__":
    record_case()
