"""The figures: each function draws values and returns a matplotlib Figure."""

from helpers.plots import data, evaluation
