"""Figures of the data: classes, ages, sites, sources, leaks."""

from helpers.plots.evaluation import plot_class_counts, plot_examples

__all__ = ["plot_class_counts", "plot_examples"]
