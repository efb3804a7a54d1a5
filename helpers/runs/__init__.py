"""The runs: their folders, many of them in batches, and what is done with a trained model."""

from helpers.runs import folder
