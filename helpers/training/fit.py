"""What stands around `model.fit`: seeds, precision, checkpoints."""

import json
import os
import re
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from helpers.data.files import is_interactive, replace_file

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def set_up(seed: int, precision: str = "auto", depthwise: bool = False) -> str:
    """Seed everything, use deterministic kernels only, and set the precision.

    On the same machine and number of cores, equal seeds then give equal results. Call it before a
    net is built.

    Args:
        seed: of Python, NumPy and TensorFlow.
        precision: a Keras dtype policy, whose name is returned, or "auto": mixed_bfloat16 where
            every GPU, or without one the processor, multiplies bfloat16 (NVIDIA compute capability
            8.0; AVX512-BF16 or AMX on x86), else float32.
        depthwise: the net has depthwise convolutions, which a processor computes faster in float32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"PRECISION is {precision!r}: choose one of {', '.join(PRECISIONS)}")
    keras.utils.set_random_seed(seed)
    keras.config.set_image_data_format("channels_last")  # whatever keras.json says
    tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    if precision == "auto":
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        native = all(d.get("compute_capability", (0, 0)) >= (8, 0) for d in details)
        if not gpus:
            native = not depthwise and _has_native_bfloat16()
        precision = "mixed_bfloat16" if native else "float32"
    keras.mixed_precision.set_dtype_policy(precision)
    return precision


def _has_native_bfloat16() -> bool:
    """Tell whether the processor has bfloat16 multiplication (Linux lists it; elsewhere: no)."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def choose_jit_compile() -> bool | str:
    """Return `jit_compile` for `model.compile`: False on a CPU, where XLA is slower than oneDNN."""
    return "auto" if tf.config.list_physical_devices("GPU") else False


@keras.saving.register_keras_serializable("skin_cancer_detection")
class BalancedAccuracy(keras.metrics.Metric):
    """Mean recall over the classes that occur, from class probabilities; each image counts once.

    Takes the number of classes.
    """

    def __init__(self, classes: int, name: str = "balanced_accuracy", **options):
        super().__init__(name=name, **options)
        self.classes = classes
        self.hits = self.add_variable((classes,), "zeros", name="hits")
        self.images = self.add_variable((classes,), "zeros", name="images")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count."""
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
    """Keeps the best or the last epoch's weights, stops early, and lets a killed training go on.

    After every epoch one file holds all that the training depends on: weights, optimizer, the state
    of the dropout's random numbers, the history and the weights to keep so far. At the end of `fit`
    the model carries the weights that are kept.

    Args:
        path: the checkpoint file (.npz).
        settings: what must be equal for a checkpoint to be continued, beside the net and how it is
            compiled; JSON values. Names that end in _DIR do not count.
        epochs: epochs of the whole training.
        patience: stop after so many epochs without a better validation balanced accuracy; 0: never
            stop early, and keep the last epoch's weights, not the best one's.
    """

    def __init__(self, path: str | os.PathLike, settings: dict, epochs: int, patience: int):
        super().__init__()
        counted = {name: v for name, v in settings.items() if not name.endswith("_DIR")}
        self.path, self.settings = Path(path), json.loads(json.dumps(counted))
        self.epochs, self.patience = epochs, patience
        self.rows: list[dict] = []
        self.kept_weights: list[np.ndarray] = []

    @property
    def first_epoch(self) -> int:
        """The epoch to go on with, for `fit(initial_epoch=…)`; `epochs` if none is left."""
        return self.epochs if self._is_stalled() else len(self.rows)

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept, from 1; of equally good ones the earliest."""
        if not self.patience:
            return len(self.rows)
        return 1 + int(np.argmax([row["val_balanced_accuracy"] for row in self.rows]))

    @property
    def history(self) -> pd.DataFrame:
        """A row per epoch, from 1: loss, accuracy, validation figures if any, seconds."""
        return pd.DataFrame(self.rows, index=pd.RangeIndex(1, len(self.rows) + 1, name="epoch"))

    def restore(self, model: keras.Model) -> str:
        """Load the checkpoint, if there is one, into a compiled model; say so in a sentence.

        One of other settings, or of a net with other layers or another optimizer, loss or metric,
        is set aside as `<name>.previous.npz`. Without any, the sentence is empty.
        """
        self.settings |= _describe(model)
        if not self.path.exists():
            return ""
        with np.load(self.path) as saved:
            notes = json.loads(str(saved["notes"]))
            if differences := _name_differences(notes["settings"], self.settings):
                previous = self.path.with_suffix(".previous.npz")
                self.path.replace(previous)
                found = f"the checkpoint of an unfinished training with other {differences}"
                return f"starting at epoch 1; {found} is kept as {previous.name}"
            self.rows = notes["rows"]
            self.kept_weights = [saved[f"kept_{i}"] for i in range(len(model.weights))]
            model.optimizer.build(model.trainable_variables)
            for i, variable in enumerate(_list_state(model)):
                variable.assign(saved[f"state_{i}"])
        if self.first_epoch == self.epochs:
            model.set_weights(self.kept_weights)
        return f"going on after epoch {len(self.rows)} of {self.epochs}"

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Add a row to the history, keep the weights if they are to be, write the checkpoint."""
        seconds = time.perf_counter() - self._start
        self.rows.append({name: float(v) for name, v in logs.items()} | {"seconds": seconds})
        if self.kept_epoch == len(self.rows):
            self.kept_weights = self.model.get_weights()
        replace_file(self.path, self._write)
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

    def _write(self, path: Path) -> None:
        notes = json.dumps({"settings": self.settings, "rows": self.rows})
        arrays = {f"state_{i}": np.asarray(v) for i, v in enumerate(_list_state(self.model))}
        arrays |= {f"kept_{i}": weights for i, weights in enumerate(self.kept_weights)}
        with path.open("wb") as file:
            np.savez(file, notes=notes, **arrays)
            file.flush()
            os.fsync(file.fileno())


def _list_state(model: keras.Model) -> list:
    """List the variables of model, dropout seeds and optimizer; metrics start anew each epoch."""
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics] + model.optimizer.variables


def _describe(model: keras.Model) -> dict[str, str]:
    """Describe a net and how it is compiled; names do not count, as a session numbers them."""
    net = json.dumps(model.get_config(), default=str)
    for number, layer in enumerate(model._flatten_layers()):
        for before in ('"name": ', "["):
            net = net.replace(f'{before}"{layer.name}"', f'{before}"layer {number}"')
    compiled = json.dumps(model.get_compile_config(), default=str)
    compiled = re.sub(r'"name": "[^"]*"', "", compiled)
    return {"net": net, "optimizer, loss or metrics": compiled}


def _name_differences(there: dict, here: dict) -> str:
    """Name what differs, with the values that are short: not a net or its compilation."""
    names = [n for n in sorted(there | here) if there.get(n) != here.get(n)]
    values = [f" ({there.get(n)}, now {here.get(n)})" for n in names]
    return ", ".join(n + v if len(v) < 80 else n for n, v in zip(names, values, strict=True))


def choose_verbose() -> int:
    """Return `verbose` for `fit`: a bar (1) where a person watches, else a line per epoch (2)."""
    return 1 if is_interactive() else 2
