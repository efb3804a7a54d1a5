"""Muon for the kernels of convolutions: steps of equal size in all directions."""

import math

import keras


@keras.saving.register_keras_serializable("skin_cancer_detection")
class ConvolutionMuon(keras.optimizers.Muon):
    """Keras' Muon, which takes matrices only, for kernels of convolutions too.

    Muon replaces the momentum of a matrix by the nearest one with orthogonal rows or columns, so
    that rare directions are learned as fast as common ones (Jordan et al., Muon: An optimizer for
    hidden layers in neural networks, 2024). A kernel (height, width, in, out) counts as a matrix
    of height x width x in rows and out columns, as there. Updates are scaled to the size of
    AdamW's, whose rates and weight decay thus fit (Liu et al., Muon is scalable for LLM training,
    2025, arXiv:2502.16982). Everything that is no kernel of a convolution is trained by AdamW.

    Args: as for `keras.optimizers.Muon`.
    """

    # Keras asks this before it makes a variable's moments; there is no public way to answer.
    def _should_use_adamw(self, variable) -> bool:
        return len(variable.shape) != 4

    def zeropower_via_newtonschulz5(self, x, steps: int):
        """Orthogonalise a kernel, float (height, width, in, out), as a matrix."""
        matrix = keras.ops.reshape(x, (-1, x.shape[-1]))
        return keras.ops.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)

    def lr_adjust(self, x):
        """Scale an update, float (height, width, in, out), as that of its matrix."""
        longer = max(math.prod(x.shape[:-1]), x.shape[-1])
        return x * (self.rms_rate * math.sqrt(longer))
