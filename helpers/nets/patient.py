"""Age, sex and site beside the image: encoded, dropped at random in training, joined to a net.

Only what is known before a diagnosis is encoded. dx_type tells how the diagnosis was made, and thus
often which one it was; `dataset`, the source of an image, is a shortcut to the class. Neither is
ever looked at. The site still hints at the source: 81 % of the images of a "trunk" come from one.
"""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers

SEXES = ("male", "female")
# The sites of HAM10000 but "unknown".
SITES = ("abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand")
SITES += ("lower extremity", "neck", "scalp", "trunk", "upper extremity")
OLDEST = 120  # years

# What the encoded columns mean, in their order. Saved models depend on it: change neither.
COLUMNS = (
    "age / 100",
    "age missing",
    *SEXES,
    "sex missing",
    *SITES,
    "localization missing",
)
WIDTH = len(COLUMNS)
# Columns of each field; its last one is the flag that is 1 where the field is missing.
FIELDS = {"age": slice(0, 2), "sex": slice(2, 5), "localization": slice(5, 20)}
# float32 (WIDTH,): a row of which nothing is known, all values 0 and all flags 1.
MISSING = np.zeros(WIDTH, np.float32)
MISSING[[columns.stop - 1 for columns in FIELDS.values()]] = 1
MISSING.flags.writeable = False

INPUTS = ("image", "fields")
_HIDDEN, _JOINED = "fields_hidden", "image_and_fields"


def encode_fields(table: pd.DataFrame) -> np.ndarray:
    """Encode age, sex and site of each image; other columns are not looked at.

    A field that is missing is 0 in all its columns but the flag, which is 1. Missing are: an age
    that is nan, not above 0 (39 images of HAM10000 have an age of 0, which `read_dataset` keeps;
    most look like stand-ins) or above 120; a sex or site that is empty, "unknown" or none of
    `SEXES` and `SITES`, which are compared letter by letter.

    Args:
        table: a row per image, with the columns age (years), sex and localization.

    Returns:
        float32 (N, 20), 0 … 1, with the columns `COLUMNS`, those of a field at `FIELDS`.

    Raises:
        ValueError: columns that the table lacks, all together.
    """
    absent = [name for name in FIELDS if name not in table]
    if absent:
        raise ValueError(
            f"the table lacks the columns {', '.join(absent)}: take that of read_dataset, or add "
            "them, with nan as the age and 'unknown' as the sex and site that are not known"
        )
    age = table["age"].to_numpy(np.float64, na_value=np.nan)
    is_known = (age > 0) & (age <= OLDEST)
    encoded = [np.where(is_known, age / 100, 0), ~is_known]
    for name, values in (("sex", SEXES), ("localization", SITES)):
        encoded += [table[name].isin([value]) for value in values]
        encoded.append(~table[name].isin(values))
    return np.column_stack(encoded).astype(np.float32)


def drop_fields(encoded: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Set fields to missing at random, so that a net learns to answer without them.

    Whole modalities are dropped, not numbers, as in ModDrop (Neverova et al., IEEE TPAMI 38(8),
    2016, doi:10.1109/TPAMI.2015.2461544), with a scheme of our own: each row loses all its fields
    with probability `rate`; in the other rows each field is lost with probability `rate`,
    independently. A field is thus lost with probability 1 - (1 - rate)², and at least a share
    `rate` of the rows asks for an answer from the image alone.

    It also keeps a net from reading a diagnosis out of the flags: in HAM10000 few fields are
    missing and most of those are of nevi; in the official test many are, of all classes.

    Args:
        encoded: float32 (N, 20) of `encode_fields`; it stays as it is.
        rate: 0 (nothing is dropped) … 1 (everything is).
        rng: each call draws N x 4 numbers.

    Returns:
        A copy, float32 (N, 20).

    Raises:
        ValueError: a rate outside 0 … 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate is {rate}: choose a probability, 0 to 1")
    lost = rng.random((len(encoded), 1 + len(FIELDS))) < rate
    lost = lost[:, :1] | lost[:, 1:]
    widths = [columns.stop - columns.start for columns in FIELDS.values()]
    return np.where(np.repeat(lost, widths, axis=1), MISSING, encoded)


def join_fields(model: keras.Model, units: int = 32) -> keras.Model:
    """Build a net that answers from image and fields, out of one that answers from the image.

    The encoded fields go through a hidden layer and are put beside the features from which the
    given net's last layer answers; a new last layer takes both. Joining by concatenation is what
    Pacheco & Krohling do (The impact of patient clinical information on automated skin cancer
    detection, Comput. Biol. Med. 116, 2020, arXiv:1909.12912); the hidden layer is added here.
    All layers are Keras' own, so that a saved model loads without this project. What is added
    computes in float32 under any policy.

    Args:
        model: a Sequential or Functional net with one input, "image", that ends in a Dense. Its
            other layers become part of the new net and share their weights with it.
        units: size of the hidden layer.

    Returns:
        A net, not compiled, that takes {"image": as the given net, "fields": float32 (N, 20)}. Its
        last layer has name, size and activation of the given net's, and weights of its own.

    Raises:
        ValueError: the inputs or the last layer are not as wanted, all together.
    """
    problems = []
    names = [tensor.name for tensor in model.inputs]
    if names != ["image"]:
        problems.append(f"its inputs are {', '.join(names)}: wanted is one, Input(name='image')")
    last = model.layers[-1]
    if not (isinstance(last, layers.Dense) and last.use_bias):
        problems.append(f"it ends in {last.name} ({type(last).__name__}): wanted is a Dense")
    if problems:
        raise ValueError("\n".join(f"the net {model.name}: {problem}" for problem in problems))
    fields = keras.Input((WIDTH,), dtype="float32", name="fields")
    hidden = layers.Dense(units, activation="relu", dtype="float32", name=_HIDDEN)(fields)
    joined = layers.Concatenate(dtype="float32", name=_JOINED)([last.input, hidden])
    output = layers.Dense.from_config(last.get_config())(joined)
    inputs = dict(zip(INPUTS, (model.inputs[0], fields), strict=True))
    return keras.Model(inputs, output, name=f"{model.name}_with_fields")


def fold_missing(model: keras.Model) -> keras.Model:
    """Make the net for images alone that answers as the joined net does without any field.

    What the hidden layer makes of `MISSING` is the same for every image, and so is what it adds
    to the logits: a constant that goes into the bias of the last layer. The answers differ by
    rounding in float32 alone.

    Args:
        model: a net of `join_fields`, trained, perhaps loaded from a file, or a net with one
            input.

    Returns:
        A Functional net with the input "image" and a last layer of the same name, or the given
        net itself if it has one input. Layers before the last are shared with the given net:
        fold again after further training.

    Raises:
        ValueError: a net with several inputs that is not of `join_fields`, or takes fields of
            another width.
    """
    if len(model.inputs) == 1:
        return model
    shapes = {tensor.name: tuple(tensor.shape) for tensor in model.inputs}
    is_joined = {layer.name for layer in model.layers} >= {_HIDDEN, _JOINED}
    if not is_joined or shapes.get("fields") != (None, WIDTH):
        raise ValueError(
            f"the net {model.name} has the inputs {shapes}: wanted is one of join_fields, with "
            f"fields of {WIDTH} columns; train it again with this version"
        )
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
    """Load a run's model for images alone; of one that takes fields too, what `fold_missing` makes.

    Args:
        path: model.keras of a run (`Run.model_paths`).
    """
    return fold_missing(keras.models.load_model(path))
