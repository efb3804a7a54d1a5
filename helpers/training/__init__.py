"""The training: what stands around `model.fit`."""

from helpers.training import batches, fit, layers, optimizers
