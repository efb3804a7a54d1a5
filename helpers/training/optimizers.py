"""Learning rates and optimizers: Adam, AdamW, and Muon for convolutions."""

import math

import keras


def make_learning_rate(rate: float, schedule: str, total_steps: int):
    """Return what the optimizer takes as its learning rate.

    Args:
        rate: the highest rate.
        schedule: "constant", or "cosine": linear warm-up over the first twentieth of the steps,
            then half a cosine down to zero (Loshchilov & Hutter, SGDR, ICLR 2017).
        total_steps: optimizer steps of the whole training.
    """
    if schedule == "constant":
        return rate
    if schedule != "cosine":
        raise ValueError(f"the schedule is {schedule!r}: choose constant or cosine")
    warmup = max(1, round(total_steps / 20))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total_steps - warmup), warmup_target=rate, warmup_steps=warmup
    )


def make_optimizer(rate, optimizer: str, weight_decay: float = 0.0) -> keras.optimizers.Optimizer:
    """Make the optimizer. Biases and normalisations do not decay (He et al., CVPR 2019).

    Args:
        rate: as from `make_learning_rate`.
        optimizer: "adam", or "muon", `ConvolutionMuon`.
        weight_decay: decoupled, per step and unit of learning rate (AdamW: Loshchilov & Hutter,
            ICLR 2019); 0 leaves it out.
    """
    if optimizer == "muon":
        made = ConvolutionMuon(rate, adam_weight_decay=weight_decay, weight_decay=weight_decay)
    elif optimizer == "adam":
        made = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    else:
        raise ValueError(f"the optimizer is {optimizer!r}: choose adam or muon")
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


@keras.saving.register_keras_serializable("skin_cancer_detection")
class ConvolutionMuon(keras.optimizers.Muon):
    """Keras' Muon, which takes matrices only, for kernels of convolutions.

    Muon replaces the momentum of a matrix by the nearest one with orthogonal rows or columns, so
    that rare directions are learned as fast as common ones (Jordan et al., Muon: An optimizer for
    hidden layers in neural networks, 2024). A kernel (height, width, in, out) counts as a matrix
    of height x width x in rows and out columns. Updates are scaled to the size of AdamW's (Liu et
    al., Muon is scalable for LLM training, 2025, arXiv:2502.16982). AdamW trains all the rest.
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
        return x * (self.rms_rate * math.sqrt(max(math.prod(x.shape[:-1]), x.shape[-1])))
