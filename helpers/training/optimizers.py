"""Learning rates and optimizers: Adam, AdamW, Muon for convolutions, and fine-tuning."""

import math

import keras
import tensorflow as tf

HEAD_EPOCHS = 3  # of fine-tuning, in which the head alone is trained
BODY_RATE = 0.1  # the body's learning rate after them, as a share of the head's


def make_learning_rate(rate: float, schedule: str, total_steps: int):
    """Return what the optimizer takes as its learning rate.

    On several GPUs, whose batches are larger, it grows by the square root of their number
    (Malladi et al., On the SDEs and scaling rules for adaptive gradient algorithms, NeurIPS 2022).

    Args:
        rate: the highest rate.
        schedule: "constant", or "cosine": linear warm-up over the first twentieth of the steps,
            then half a cosine down to zero (Loshchilov & Hutter, SGDR, ICLR 2017).
        total_steps: optimizer steps of the whole training.
    """
    rate *= math.sqrt(tf.distribute.get_strategy().num_replicas_in_sync)
    if schedule == "constant":
        return rate
    if schedule != "cosine":
        raise ValueError(f"the schedule is {schedule!r}: choose constant or cosine")
    warmup = max(1, round(total_steps / 20))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total_steps - warmup), warmup_target=rate, warmup_steps=warmup
    )


def make_optimizer(
    model: keras.Model, rate, optimizer: str, weight_decay: float = 0.0, head_steps: int = 0
) -> keras.optimizers.Optimizer:
    """Make the optimizer. Biases and what belongs to a normalisation do not decay.

    (He et al., Bag of tricks for image classification with CNNs, CVPR 2019.)

    Args:
        model: the net.
        rate: as from `make_learning_rate`.
        optimizer: "adam"; "muon", `ConvolutionMuon`; "fine-tuning", `FineTuning` with the last
            layer as the head.
        weight_decay: decoupled, per step and unit of learning rate (AdamW: Loshchilov & Hutter,
            ICLR 2019); 0 leaves it out.
        head_steps: of fine-tuning, the steps in which the head alone is trained.
    """
    if optimizer == "fine-tuning":
        return FineTuning(
            rate, weight_decay, head=model.layers[-1].name, head_steps=head_steps
        )  # fmt: skip
    if optimizer == "muon":
        made = ConvolutionMuon(rate, adam_weight_decay=weight_decay, weight_decay=weight_decay)
    elif optimizer == "adam":
        made = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    else:
        raise ValueError(f"the optimizer is {optimizer!r}: choose adam, muon or fine-tuning")
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


@keras.saving.register_keras_serializable("skin_cancer_detection")
class FineTuning(keras.optimizers.AdamW):
    """AdamW that trains a new head first, then the pretrained body too, at a lower rate.

    Gradients through a head at random distort the body (Kumar et al., Fine-Tuning can Distort
    Pretrained Features, ICLR 2022). The body's weights do not decay: they do not come from zero.

    Args:
        learning_rate, weight_decay: of the head.
        head: name of the layer that is the head; all other variables are the body's.
        head_steps: during so many first steps the body does not move.
        body_rate: the body's learning rate after them, as a share of the head's.
    """

    def __init__(self, learning_rate=0.001, weight_decay=0.004, *, head="", head_steps=0,
                 body_rate=BODY_RATE, **options):  # fmt: skip
        super().__init__(learning_rate, weight_decay, **options)
        self.head, self.head_steps, self.body_rate = head, head_steps, body_rate

    def build(self, variables):
        """Tell the body's variables from the head's, by their paths."""
        if self.built:
            return
        body = [v for v in variables if self.head not in v.path.split("/")]
        if len(body) in (0, len(variables)):
            raise ValueError(f"{self.head!r} is not a layer with some of the weights to learn")
        self.exclude_from_weight_decay(body)
        super().build(variables)
        self._body = frozenset(self._get_variable_index(v) for v in body)

    def update_step(self, gradient, variable, learning_rate):
        """Update a variable; one of the body at its own rate."""
        if self._get_variable_index(variable) in self._body:
            share = keras.ops.where(self.iterations < self.head_steps, 0.0, self.body_rate)
            learning_rate = keras.ops.multiply(learning_rate, share)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        """Return what the constructor needs."""
        own = {"head": self.head, "head_steps": self.head_steps, "body_rate": self.body_rate}
        return {**super().get_config(), **own}
