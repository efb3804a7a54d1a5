"""What stands around `model.fit`: seeds, precision, class weights, checkpoints, progress."""

import json
import os
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm.keras import TqdmCallback

from helpers.data.files import is_interactive
from helpers.nets.models import SMALLEST_SIDE
from helpers.nets.pretrained import BODY_RATE, NETS, FineTuning, find_problems
from helpers.runs.folder import RunError
from helpers.training.devices import scale_rate
from helpers.training.optimizers import ConvolutionMuon
from helpers.training.recipes import MODELS, Recipe

LOWEST = {
    "IMAGE_HEIGHT": SMALLEST_SIDE,
    "IMAGE_WIDTH": SMALLEST_SIDE,
    "EPOCHS": 1,
    "PATIENCE": 0,
    "BATCH_SIZE": 1,
    "LEARNING_RATE": 1e-12,
    "WEIGHT_DECAY": 0,
    "CLASS_WEIGHT_POWER": 0,
    "FOLD": 0,
    "FOLDS": 2,
    "SEED": 0,
}
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("adam", "muon")
CHOICES = {
    "MODEL": MODELS,
    "PRECISION": PRECISIONS,
    "SCHEDULE": SCHEDULES,
    "OPTIMIZER": OPTIMIZERS,
    "VIEWS": (1, 8),
}


def check_parameters(parameters: dict) -> None:
    """Raise a RunError that names every parameter of the main notebook that is out of range.

    Args:
        parameters: name to value, of the right types (`runs.check_parameters`), none of them open
            (`recipes.complete_parameters`).
    """
    problems = [
        f"{name} is {parameters[name]}, the lowest that works is {lowest}"
        for name, lowest in LOWEST.items()
        if not parameters[name] >= lowest
    ]
    problems += [
        f"{name} is {parameters[name]!r}, choose one of {', '.join(map(str, choices))}"
        for name, choices in CHOICES.items()
        if parameters[name] not in choices
    ]
    if parameters["MODEL"] in NETS:
        size = parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"]
        problems += find_problems(parameters["MODEL"], size, parameters["WEIGHTS"])
        if parameters["WEIGHTS"] != "none" and parameters["OPTIMIZER"] != "adam":
            problems.append(
                f"OPTIMIZER is {parameters['OPTIMIZER']!r}: pretrained weights are fine-tuned with "
                "adam; choose that, or WEIGHTS none"
            )
    if parameters["BATCH_NORM"] and parameters["MODEL"] != "cnn":
        problems.append(
            f"BATCH_NORM belongs to the cnn: with MODEL {parameters['MODEL']!r} leave it out"
        )
    if parameters["FOLD"] >= parameters["FOLDS"]:
        problems.append("FOLD must be below FOLDS: the first fold is 0")
    if problems:
        raise RunError("\n".join(problems))


def make_reproducible(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow and use deterministic kernels only.

    On the same machine and number of cores, equal seeds then give equal figures.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def choose_precision(precision: str = "auto") -> str:
    """Return the Keras dtype policy for this machine.

    Args:
        precision: "auto", or a policy that is returned as it is. "auto" gives mixed_bfloat16
            where every GPU, or without one the processor, multiplies bfloat16 natively (NVIDIA
            compute capability 8.0; AVX512-BF16 or AMX on x86), else float32.

    Raises:
        ValueError: an unknown name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"PRECISION is {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if gpus := tf.config.list_physical_devices("GPU"):
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        native = all(d.get("compute_capability", (0, 0)) >= (8, 0) for d in details)
    else:
        native = _has_native_bfloat16()
    return "mixed_bfloat16" if native else "float32"


def choose_jit_compile() -> bool | str:
    """Return `jit_compile` for `model.compile`: "auto" on one GPU, False on a CPU or several GPUs.

    XLA on a CPU replaces oneDNN's convolutions by slower ones (tests/benchmarks measures it), and
    it cannot compile a step that sums gradients over several devices.
    """
    one_gpu = tf.config.list_physical_devices("GPU") and not tf.distribute.has_strategy()
    return "auto" if one_gpu else False


def _has_native_bfloat16() -> bool:
    """Tell whether the processor has bfloat16 multiplication (Linux lists it; elsewhere: no)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def weigh_classes(labels: np.ndarray, power: float, classes: int) -> dict[int, float]:
    """Compute class weights (N / (K n_k)) ** power, scaled so that the mean image weighs 1.

    Args:
        labels: int (N,), of the training part.
        power: 0 no weights, 0.5 square root, 1 inverse frequency.
        classes: number of classes; one that does not occur weighs 0.
    """
    counts = np.bincount(labels, minlength=classes)
    occurs = counts > 0
    weights = np.where(occurs, len(labels) / (occurs.sum() * np.maximum(counts, 1)), 0.0)
    weights[occurs] **= power
    weights *= len(labels) / (weights * counts).sum()
    return {k: round(float(weight), 6) for k, weight in enumerate(weights)}


def make_learning_rate(rate: float, schedule: str, total_steps: int, warmup: float = 0.05):
    """Return what the optimizer takes as its learning rate.

    Args:
        rate: the highest rate.
        schedule: "constant", or "cosine": linear warm-up over the first `warmup` of the steps,
            then half a cosine down to zero (Loshchilov & Hutter, 2017).
        total_steps: optimizer steps of the whole training.
        warmup: share of the steps, 0 … 1.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"SCHEDULE is {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if schedule == "constant":
        return rate
    warmup_steps = max(1, round(warmup * total_steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total_steps - warmup_steps), warmup_target=rate, warmup_steps=warmup_steps
    )


def make_optimizer(
    model: keras.Model,
    rate,
    weight_decay: float,
    optimizer: str = "adam",
    *,
    head_steps: int | None = None,
) -> keras.optimizers.Optimizer:
    """Make the optimizer; `pretrained.FineTuning` for a pretrained net.

    Biases and what belongs to a normalisation do not decay (He et al., Bag of tricks for image
    classification with CNNs, CVPR 2019).

    Args:
        model: the net.
        rate: as from `make_learning_rate`.
        weight_decay: decoupled (AdamW: Loshchilov & Hutter, ICLR 2019); 0 leaves it out.
        optimizer: "adam", or "muon": `muon.ConvolutionMuon`, for nets that are trained from
            nothing.
        head_steps: of a net whose body is pretrained, the steps in which the head alone is
            trained; None for a net that is trained from nothing.

    Raises:
        ValueError: an unknown optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"OPTIMIZER is {optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
    if head_steps is not None:
        return FineTuning(
            rate,
            weight_decay,
            head=model.layers[-1].name,
            head_steps=head_steps,
            body_rate=BODY_RATE,
        )
    if optimizer == "muon":
        made = ConvolutionMuon(rate, adam_weight_decay=weight_decay, weight_decay=weight_decay)
    elif weight_decay:
        made = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    else:
        return keras.optimizers.Adam(rate)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


def compile_net(
    model: keras.Model,
    recipe: Recipe,
    steps: int,
    *,
    devices: int = 1,
    head_epochs: int | None = None,
) -> None:
    """Compile a net for a training from its start, with a new optimizer; call it in the scope.

    Args:
        model: the net; gives probabilities (N, K).
        recipe: epochs, learning rate, schedule, optimizer and weight decay.
        steps: per epoch.
        devices: that share a batch (`devices.scale_rate`).
        head_epochs: of a net whose body is pretrained, see `make_optimizer`.
    """
    highest = scale_rate(recipe.learning_rate, devices)
    rate = make_learning_rate(highest, recipe.schedule, steps * recipe.epochs)
    head_steps = None if head_epochs is None else head_epochs * steps
    model.compile(
        optimizer=make_optimizer(
            model, rate, recipe.weight_decay, recipe.optimizer, head_steps=head_steps
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy", BalancedAccuracy(model.output_shape[-1])],
        jit_compile=choose_jit_compile(),
    )


@keras.saving.register_keras_serializable("skin_cancer_detection")
class BalancedAccuracy(keras.metrics.Metric):
    """Mean recall over the classes that occur, from class probabilities.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int, name: str = "balanced_accuracy", **options):
        super().__init__(name=name, **options)
        self.classes = classes
        self.hits = self.add_variable((classes,), "zeros", name="hits")
        self.images = self.add_variable((classes,), "zeros", name="images")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count; the sample weight is ignored, each image counts once."""
        truth = keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), self.classes)
        answer = keras.ops.one_hot(keras.ops.argmax(y_pred, axis=-1), self.classes)
        self.hits.assign_add(keras.ops.sum(truth * answer, axis=0))
        self.images.assign_add(keras.ops.sum(truth, axis=0))

    def result(self):
        """Return the mean recall so far."""
        occurs = keras.ops.cast(self.images > 0, "float32")
        recall = self.hits / keras.ops.maximum(self.images, 1)
        return keras.ops.sum(recall) / keras.ops.maximum(keras.ops.sum(occurs), 1)

    def get_config(self):
        """Return what the constructor needs."""
        return {**super().get_config(), "classes": self.classes}


class Checkpoint(keras.callbacks.Callback):
    """Keeps the best or the last epoch's weights, stops early, and lets a killed run go on.

    After every epoch one file, replaced in one step, holds all that training depends on:
    weights, optimizer, the state of the dropout's random numbers, the history and the weights
    to keep so far. At the end of `fit` the model carries the weights that are kept.

    Args:
        path: the checkpoint file (.npz).
        settings: what must be equal for a checkpoint to be continued, as JSON values.
        epochs: epochs of the whole training.
        patience: stop after so many epochs without a better validation balanced accuracy; 0: never
            stop early, and keep the last epoch's weights, not the best one's.
    """

    def __init__(
        self,
        path: Path,
        settings: dict,
        epochs: int,
        patience: int,
    ):
        super().__init__()
        self.path, self.settings = Path(path), json.loads(json.dumps(settings))
        self.epochs, self.patience = epochs, patience
        self.rows: list[dict] = []
        self.kept_weights: list[np.ndarray] = []

    @property
    def first_epoch(self) -> int:
        """The epoch to go on with, for `fit(initial_epoch=…)`; `epochs` if none is left."""
        return self.epochs if self._is_stalled() else len(self.rows)

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept, from 1: the best one, or the earliest of equals.

        Best is the highest validation balanced accuracy. With a patience of 0, the last epoch.
        """
        if not self.patience:
            return len(self.rows)
        return 1 + int(np.argmax([row["val_balanced_accuracy"] for row in self.rows]))

    @property
    def history(self) -> pd.DataFrame:
        """A row per epoch, from 1: loss, accuracy, validation figures if any, seconds."""
        return pd.DataFrame(self.rows, index=pd.RangeIndex(1, len(self.rows) + 1, name="epoch"))

    def restore(self, model: keras.Model) -> str:
        """Load the checkpoint, if there is one of the same settings, into a compiled model.

        A checkpoint of other settings is set aside as `<name>.previous.npz`.

        Returns:
            A sentence that says what was found; empty where training starts as usual.
        """
        if not self.path.exists():
            return ""
        with np.load(self.path) as saved:
            notes = json.loads(str(saved["notes"]))
            if notes["settings"] != self.settings:
                previous = self.path.with_suffix(".previous.npz")
                self.path.replace(previous)
                return (
                    "starting at epoch 1: the checkpoint is of an unfinished run with other "
                    f"settings ({_name_differences(notes['settings'], self.settings)}) is kept as "
                    f"{previous.name}"
                )
            self.rows = notes["rows"]
            self.kept_weights = [saved[f"kept_{i}"] for i in range(len(model.weights))]
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
            for i, variable in enumerate(_state_of(model)):
                variable.assign(saved[f"state_{i}"])
        if self.first_epoch == self.epochs:
            model.set_weights(self.kept_weights)
        return f"going on after epoch {len(self.rows)} of {self.epochs}"

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_test_begin(self, logs=None):
        """Give every device the first one's BatchNormalization statistics: those are kept."""
        if self.model.distribute_strategy.num_replicas_in_sync > 1:
            self.model.set_weights(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        """Add a row to the history, keep the weights if they are to be, write the checkpoint."""
        seconds = time.perf_counter() - self._start
        self.rows.append({name: float(v) for name, v in logs.items()} | {"seconds": seconds})
        if self.kept_epoch == len(self.rows):
            self.kept_weights = self.model.get_weights()
        self._write()
        self.model.stop_training = self._is_stalled()

    def on_train_end(self, logs=None):
        """Give the model the weights that are kept."""
        if self.kept_weights:
            self.model.set_weights(self.kept_weights)

    def delete(self) -> None:
        """Delete the file, once the run is saved."""
        self.path.unlink(missing_ok=True)

    def _is_stalled(self) -> bool:
        waited = len(self.rows) - self.kept_epoch if self.rows else 0
        return bool(self.patience) and waited >= self.patience

    def _write(self) -> None:
        notes = json.dumps({"settings": self.settings, "rows": self.rows})
        arrays = {f"state_{i}": np.asarray(v) for i, v in enumerate(_state_of(self.model))}
        arrays |= {f"kept_{i}": weights for i, weights in enumerate(self.kept_weights)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, notes=notes, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)


def _state_of(model: keras.Model) -> list:
    """List the variables of model, dropout seeds and optimizer; metrics start anew each epoch."""
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics] + model.optimizer.variables


def _name_differences(there: dict, here: dict) -> str:
    names = [n for n in sorted(there | here) if there.get(n) != here.get(n)]
    return ", ".join(f"{n} {there.get(n)} there, {here.get(n)} here" for n in names)


class EpochLines(keras.callbacks.Callback):
    """Prints one line per epoch, for runs that nobody watches.

    Args:
        number, of: which training of how many this is.
    """

    FIGURES = ("loss", "val_loss", "accuracy", "val_accuracy", "val_balanced_accuracy")

    def __init__(self, number: int = 1, of: int = 1):
        super().__init__()
        self.prefix = f"training {number}/{of}, " if of > 1 else ""

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Print the line."""
        figures = ", ".join(f"{name} {logs[name]:.3f}" for name in self.FIGURES if name in logs)
        seconds = time.perf_counter() - self._start
        at = f"{self.prefix}epoch {epoch + 1}/{self.params['epochs']}"
        print(f"{at}: {figures} ({seconds:.0f} s)", flush=True)


def show_progress(number: int = 1, of: int = 1) -> keras.callbacks.Callback:
    """Make the progress callback: one bar where a person watches, else a line per epoch.

    Args:
        number, of: which training of how many this is.
    """
    if not is_interactive():
        return EpochLines(number, of)
    progress = TqdmCallback(verbose=0)
    # The validation figures alone: with all of them there is no room for the bar.
    progress.on_epoch_end = progress.bar2callback(
        progress.epoch_bar, pop=["loss", "accuracy", "balanced_accuracy"]
    )
    return progress
