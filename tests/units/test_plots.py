"""What the figures of the evaluation show, read back from them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers.data.metadata import CLASSES
from helpers.evaluation import scores
from helpers.plots import evaluation
from tests.units.cases import draw_case, predict


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(("images", "curves"), [(199, 0), (200, 3)])
def test_reliability_is_drawn_from_200_images_on(images, curves):
    p = draw_case(1, images)
    (axes,) = evaluation.plot_reliability(p, p).axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert bool(drawn) == bool(curves)
    if curves:
        assert len(axes.containers) == 2, "before and after, with intervals"
    else:
        assert "199 images: too few" in axes.texts[0].get_text()


def test_each_class_has_its_roc_curve():
    p = draw_case(2, 300, "abcdefg")
    table = scores.judge_classes(p)
    figure = evaluation.plot_roc(p, table)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == 7
    for k, axes in enumerate(panels):
        auc = table.loc[("abcdefg"[k], "auc"), "value"]
        assert axes.get_title() == f"{'abcdefg'[k]}, AUC {auc:.3f}".replace("0.", ".")
        x, y = axes.lines[1].get_data()
        assert np.trapezoid(y, x) == pytest.approx(auc, abs=0.002)


def test_groups_of_too_few_lesions_are_not_in_the_figure():
    labels = np.arange(60) % 7
    sexes = ["male"] * 40 + ["female"] * 15 + ["unknown"] * 5
    p = predict(labels, np.eye(7)[labels] * 0.4 + 0.6 / 7, CLASSES, sex=sexes)
    figure = evaluation.plot_groups(scores.score_groups(p, 0.3))
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == ["all", "sex: male", "sex: female"]


def test_colours_differ_in_lightness():
    """So that they are told apart in grey, too, and in the order of their names."""
    weights = (0.2126, 0.7152, 0.0722)
    lightness = [
        np.dot(c[:3], weights) for c in (evaluation.DARK, evaluation.MIDDLE, evaluation.LIGHT)
    ]
    assert np.diff(lightness).min() > 0.12
