"""Age, sex and site beside the image: encoded, dropped at random in training, joined to a net.

Only what is known before a diagnosis is encoded. dx_type tells how the diagnosis was made, and thus
often which one it was; `dataset`, the source of an image, is a shortcut to the class. Neither is
ever looked at. The site still hints at the source: 81 % of the images of a "trunk" are of one.
"""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers

from helpers.data.metadata import SEXES, SITES

OLDEST = 120  # years
# What the encoded columns mean, in their order. Saved models depend on it: change neither.
COLUMNS = ("age / 100", "age missing", *SEXES, "sex missing", *SITES, "localization missing")
# Columns of each field; its last one is the flag that is 1 where the field is missing.
FIELDS = {"age": slice(0, 2), "sex": slice(2, 5), "localization": slice(5, 20)}
# float32 (20,): a row of which nothing is known, all values 0 and all flags 1.
MISSING = np.array([name.endswith("missing") for name in COLUMNS], np.float32)
MISSING.flags.writeable = False
_HIDDEN, _JOINED = "fields_hidden", "image_and_fields"


def encode_fields(table: pd.DataFrame) -> np.ndarray:
    """Encode age, sex and site of each image.

    A field that is missing is 0 in all its columns but the flag, which is 1. Missing are: an age
    that is nan, not above 0 (most of the 39 ages of 0 in HAM10000 look like stand-ins) or above
    120; a sex or site that is none of `SEXES` and `SITES`.

    Args:
        table: a row per image, with the columns age (years), sex and localization.

    Returns:
        float32 (N, 20), 0 … 1, with the columns `COLUMNS`, those of a field at `FIELDS`.
    """
    age = table["age"].to_numpy(np.float64, na_value=np.nan)
    is_known = (age > 0) & (age <= OLDEST)
    encoded = [np.where(is_known, age / 100, 0), ~is_known]
    for name, values in (("sex", SEXES), ("localization", SITES)):
        encoded += [table[name].isin([value]) for value in values]
        encoded.append(~table[name].isin(values))
    return np.column_stack(encoded).astype(np.float32)


def drop_fields(encoded: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Set fields to missing at random, so that a net learns to answer without them.

    After ModDrop (Neverova et al., IEEE TPAMI 38(8), 2016): each row loses all its fields with
    probability `rate`, and in the other rows each field is lost with probability `rate`. It also
    keeps a net from reading a diagnosis out of the flags: most missing fields are of nevi.

    Takes float32 (N, 20) of `encode_fields`, which stays as it is; the rate, 0 … 1; and a generator
    of which each call draws N x 4 numbers.
    """
    lost = rng.random((len(encoded), 1 + len(FIELDS))) < rate
    lost = lost[:, :1] | lost[:, 1:]
    widths = [columns.stop - columns.start for columns in FIELDS.values()]
    return np.where(np.repeat(lost, widths, axis=1), MISSING, encoded)


def join_fields(model: keras.Model, units: int = 32) -> keras.Model:
    """Build a net that answers from image and fields, out of one that answers from the image.

    The encoded fields go through a hidden layer and are put beside the features from which the
    given net's last layer answers; a new last layer takes both (after Pacheco & Krohling, Comput.
    Biol. Med. 116, 2020, arXiv:1909.12912). The other layers are shared.

    Takes a net with one input, "image", that ends in a Dense, and the units of the hidden layer.
    Returns a net, not compiled, that takes {"image": as the given net, "fields": float32 (N, 20)}.
    """
    last = model.layers[-1]
    if [tensor.name for tensor in model.inputs] != ["image"] or not isinstance(last, layers.Dense):
        raise ValueError(f"{model.name} must have one Input(name='image') and end in a Dense")
    fields = keras.Input((len(COLUMNS),), dtype="float32", name="fields")
    hidden = layers.Dense(units, activation="relu", dtype="float32", name=_HIDDEN)(fields)
    joined = layers.Concatenate(dtype="float32", name=_JOINED)([last.input, hidden])
    output = layers.Dense.from_config(last.get_config())(joined)
    inputs = {"image": model.inputs[0], "fields": fields}
    return keras.Model(inputs, output, name=f"{model.name}_with_fields")


def fold_missing(model: keras.Model) -> keras.Model:
    """Make the net for images alone that answers as the joined net does without any field.

    The hidden layer's answer to `MISSING` is a constant that goes into the bias of the last layer.

    Args:
        model: a net of `join_fields`, trained, or a net with one input. The layers before the last
            are shared with it: fold again after further training.
    """
    if len(model.inputs) == 1:
        return model
    features, _ = model.get_layer(_JOINED).input
    hidden = keras.ops.convert_to_numpy(model.get_layer(_HIDDEN)(MISSING[None]))[0]
    last = model.layers[-1]
    kernel, bias = last.get_weights()
    of_image, of_fields = np.split(kernel, [features.shape[-1]])
    folded = layers.Dense.from_config(last.get_config())
    output = folded(features)
    folded.set_weights([of_image, bias + hidden @ of_fields])
    return keras.Model(model.input["image"], output, name=model.name)


def load_image_model(path: str | Path) -> keras.Model:
    """Load model.keras of a run for images alone: of one with fields, what `fold_missing` makes."""
    return fold_missing(keras.models.load_model(path))
