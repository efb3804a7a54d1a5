"""The evaluation: scores with intervals, calibration, comparisons; no TensorFlow here."""

from helpers.evaluation import calibration, challenge, comparisons, predictions, scores
