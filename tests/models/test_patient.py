"""Age, sex and site: encoded by hand, dropped, joined to nets, folded away again."""

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from helpers.data import metadata
from helpers.nets import patient

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no metadata in ../shared/data")
SIDE, CLASSES = 24, "akiec_bcc_mel"


@pytest.fixture(autouse=True)
def restore_precision():
    policy = keras.mixed_precision.dtype_policy()
    yield
    keras.mixed_precision.set_dtype_policy(policy)


def make_table(ages, sexes, sites):
    return pd.DataFrame({"age": ages, "sex": sexes, "localization": sites})


def test_columns_stand_where_saved_models_expect_them():
    assert patient.COLUMNS == (
        "age / 100", "age missing", "male", "female", "sex missing", "abdomen", "acral", "back",
        "chest", "ear", "face", "foot", "genital", "hand", "lower extremity", "neck", "scalp",
        "trunk", "upper extremity", "localization missing",
    )  # fmt: skip
    assert [(s.start, s.stop) for s in patient.FIELDS.values()] == [(0, 2), (2, 5), (5, 20)]
    assert np.flatnonzero(patient.MISSING).tolist() == [1, 4, 19]


def test_encoding_by_hand():
    table = make_table([45.0, 5.0], ["female", "male"], ["back", "upper extremity"])
    found = patient.encode_fields(table)
    assert found.dtype == np.float32
    expected = np.zeros((2, 20))
    expected[0, [0, 3, 7]] = 0.45, 1, 1
    expected[1, [0, 2, 18]] = 0.05, 1, 1
    assert found == pytest.approx(expected, abs=1e-7)
    assert patient.encode_fields(table.iloc[:0]).shape == (0, 20)


@pytest.mark.parametrize("age", [np.nan, None, 0.0, -5.0, 121.0, np.inf])
def test_every_kind_of_missing_age(age):
    found = patient.encode_fields(make_table([age, 85.0], ["male"] * 2, ["ear"] * 2))
    assert found[0].nonzero()[0].tolist() == [1, 2, 9]
    assert found[1].nonzero()[0].tolist() == [0, 2, 9]


@pytest.mark.parametrize("word", ["unknown", "", np.nan, None, pd.NA, "elsewhere"])
def test_every_kind_of_missing_sex_and_site(word):
    table = make_table([50.0, 50.0], ["male", word], [word, "ear"])
    assert patient.encode_fields(table)[:, [4, 19]].tolist() == [[0, 1], [1, 0]]
    nothing = patient.encode_fields(make_table([np.nan], [word], [word]))
    assert np.array_equal(nothing, [patient.MISSING])


@needs_data
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("metadata/HAM10000_metadata.csv", [57 + 39, 57, 234]),
        ("metadata/ISIC2018_Task3_Test_GroundTruth.csv", [282 + 6, 295, 335]),
    ],
)
def test_real_metadata_are_known_but_where_they_are_missing(name, missing):
    table = metadata.read_metadata(SHARED / name)
    found = patient.encode_fields(table)
    flags = [columns.stop - 1 for columns in patient.FIELDS.values()]
    assert found[:, flags].sum(axis=0).tolist() == missing
    named = np.array(patient.COLUMNS)[5 + found[:, 5:].argmax(axis=1)]
    sites = table["localization"].replace("unknown", "localization missing")
    assert named.tolist() == sites.tolist()


def encode_rows(count, seed=0):
    """Encode rows of which nothing is missing."""
    rng = np.random.default_rng(seed)
    sexes, sites = rng.choice(patient.SEXES, count), rng.choice(patient.SITES, count)
    return patient.encode_fields(make_table(rng.integers(1, 18, count) * 5.0, sexes, sites))


def test_fields_are_dropped_whole_and_as_often_as_said():
    encoded = encode_rows(20_000)
    before = encoded.copy()
    dropped = patient.drop_fields(encoded, 0.2, np.random.default_rng(1))
    assert np.array_equal(encoded, before)
    assert dropped.dtype == np.float32
    lost = []
    for columns in patient.FIELDS.values():
        same = (dropped[:, columns] == encoded[:, columns]).all(axis=1)
        lost.append((dropped[:, columns] == patient.MISSING[columns]).all(axis=1))
        assert np.array_equal(same, ~lost[-1])
    lost = np.stack(lost, axis=1)
    assert lost.mean(axis=0) == pytest.approx([1 - 0.8**2] * 3, abs=0.015)
    assert lost.all(axis=1).mean() == pytest.approx(0.2 + 0.8 * 0.2**3, abs=0.015)
    assert (lost[:, 0] & ~lost[:, 1]).mean() == pytest.approx(0.8 * 0.2 * 0.8, abs=0.015)
    again = patient.drop_fields(encoded, 0.2, np.random.default_rng(1))
    assert np.array_equal(again, dropped)
    everything = patient.drop_fields(encoded, 1, np.random.default_rng(1))
    assert (everything == patient.MISSING).all()


def make_cnn():
    """Build a small net like that of the main notebook."""
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", dtype="float32", name=CLASSES),
        ],
        name="cnn",
    )


def make_residual():
    """Build a small Functional net with a shortcut, and dropout before the last layer."""
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    found = layers.Conv2D(5, 3, strides=2, activation="relu")(layers.Rescaling(1 / 255)(image))
    found = layers.Add()([found, layers.Conv2D(5, 3, padding="same")(found)])
    found = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(found))
    output = layers.Dense(3, activation="softmax", dtype="float32", name=CLASSES)(found)
    return keras.Model(image, output, name="residual")


NETS = pytest.mark.parametrize("make_net", [make_cnn, make_residual])
POLICIES = pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])


def draw_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def compute(model, images, encoded=None):
    """Compute as `predict` does, without its start, which takes longer than these nets."""
    given = images if encoded is None else {"image": images, "fields": encoded}
    return keras.ops.convert_to_numpy(model(given, training=False))


@NETS
@POLICIES
def test_joined_net_takes_both_and_answers_as_the_other_did(make_net, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    alone = make_net()
    model = patient.join_fields(alone, units=6)
    shapes = {name: tensor.shape for name, tensor in model.input.items()}
    assert shapes == {"image": (None, SIDE, SIDE, 3), "fields": (None, 20)}
    last, before = model.layers[-1], alone.layers[-1]
    assert last.get_config() == before.get_config() and last is not before
    assert model.count_params() - alone.count_params() == (20 + 1) * 6 + 6 * 3
    # Where nothing comes from the fields, the answer is that of the net alone.
    kernel, bias = before.get_weights()
    last.set_weights([np.concatenate([kernel, np.zeros((6, 3))]), bias])
    images, encoded = draw_images(4), encode_rows(4)
    assert patient.fold_missing(alone) is alone
    assert compute(model, images, encoded) == pytest.approx(compute(alone, images), abs=1e-6)
    # And each field changes it where something does.
    last.set_weights([np.concatenate([kernel, np.ones((6, 1)) * [3, 0, -3]]), bias])
    known = compute(model, images, encoded)
    for columns in patient.FIELDS.values():
        without = encoded.copy()
        without[:, columns] = patient.MISSING[columns]
        assert np.abs(compute(model, images, without) - known).max() > 1e-3


def test_nets_that_cannot_be_joined_or_folded_are_refused():
    image = keras.Input((4, 4, 3), dtype="uint8", name="photo")
    flat = layers.Flatten()(layers.Rescaling(1.0)(image))
    with pytest.raises(ValueError, match="odd must have one"):
        patient.join_fields(keras.Model(image, layers.Dense(3)(flat), name="odd"))
    first, second = keras.Input((2,), name="image"), keras.Input((3,), name="fields")
    net = keras.Model([first, second], layers.Concatenate()([first, second]), name="foreign")
    with pytest.raises(ValueError, match="No such layer: image_and_fields"):
        patient.fold_missing(net)


def test_learns_from_fields_alone_and_answers_the_shares_without_them():
    """Images are noise; 60 % of the rows are of class 0 (back), 30 % of 1 and 10 % of 2."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 1200, p=[0.6, 0.3, 0.1])
    site = np.array(["back", "face", "foot"])[labels]
    table = make_table(rng.integers(1, 18, 1200) * 5.0, rng.choice(patient.SEXES, 1200), site)
    encoded, images = patient.encode_fields(table), draw_images(1200)
    model = patient.join_fields(make_residual())
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", jit_compile=False)
    for _ in range(10):
        dropped = patient.drop_fields(encoded, 0.3, rng)
        model.fit({"image": images, "fields": dropped}, labels, batch_size=50, verbose=0)
    fresh = draw_images(300, seed=1)
    assert (compute(model, fresh, encoded[:300]).argmax(1) == labels[:300]).mean() > 0.97
    shares = np.bincount(labels) / len(labels)
    nothing = compute(patient.fold_missing(model), fresh)
    assert nothing.mean(axis=0) == pytest.approx(shares, abs=0.1)


@NETS
@POLICIES
def test_folded_net_answers_as_the_joined_one_without_fields(make_net, policy, tmp_path):
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = patient.join_fields(make_net())
    rng = np.random.default_rng(1)
    for name in ("fields_hidden", CLASSES):  # weights that make every part of it matter
        layer = model.get_layer(name)
        layer.set_weights([rng.normal(0, 0.5, weights.shape) for weights in layer.get_weights()])
    folded = patient.fold_missing(model)
    assert [tensor.name for tensor in folded.inputs] == ["image"]
    assert folded.layers[-1].name == CLASSES
    images = draw_images(8)
    expected = compute(model, images, np.tile(patient.MISSING, (8, 1)))
    assert compute(folded, images) == pytest.approx(expected, abs=1e-6)
    assert np.abs(compute(model, images, encode_rows(8)) - expected).max() > 0.01
    model.save(tmp_path / "model.keras")
    loaded = patient.load_image_model(tmp_path / "model.keras")
    assert compute(loaded, images) == pytest.approx(expected, abs=1e-6)
