"""Age, sex and site: encoded by hand, dropped, joined to nets, folded away again."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from helpers.data import metadata, sample
from helpers.evaluation import heatmaps as explain
from helpers.nets import models
from helpers.nets import patient as fields
from helpers.runs import export

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


def place(column):
    return fields.COLUMNS.index(column)


def test_columns_stand_where_saved_models_expect_them():
    assert fields.COLUMNS == (
        "age / 100", "age missing", "male", "female", "sex missing", "abdomen", "acral", "back",
        "chest", "ear", "face", "foot", "genital", "hand", "lower extremity", "neck", "scalp",
        "trunk", "upper extremity", "localization missing",
    )  # fmt: skip
    assert fields.WIDTH == 20
    of_field = {name: fields.COLUMNS[columns] for name, columns in fields.FIELDS.items()}
    assert list(of_field) == ["age", "sex", "localization"]
    assert [column for columns in of_field.values() for column in columns] == [*fields.COLUMNS]
    assert all(columns[-1] == f"{name} missing" for name, columns in of_field.items())
    assert np.flatnonzero(fields.MISSING).tolist() == [1, 4, 19]


def test_encoding_by_hand():
    table = make_table([45.0, 5.0], ["female", "male"], ["back", "upper extremity"])
    found = fields.encode_fields(table)
    assert found.dtype == np.float32
    expected = np.zeros((2, 20))
    expected[0, [0, 3, 7]] = 0.45, 1, 1
    expected[1, [0, 2, 18]] = 0.05, 1, 1
    assert found == pytest.approx(expected, abs=1e-7)


AGES = [np.nan, None, 0.0, -5.0, 121.0, np.inf]
WORDS = ["unknown", "", np.nan, None, pd.NA, "elsewhere", "Male", "back "]


@pytest.mark.parametrize("age", AGES)
def test_every_kind_of_missing_age(age):
    found = fields.encode_fields(make_table([age, 85.0], ["male"] * 2, ["ear"] * 2))
    assert found[0].nonzero()[0].tolist() == [place("age missing"), place("male"), place("ear")]
    assert found[1].nonzero()[0].tolist() == [place("age / 100"), place("male"), place("ear")]


@pytest.mark.parametrize("word", WORDS)
def test_every_kind_of_missing_sex_and_site(word):
    table = make_table([50.0, 50.0], ["male", word], [word, "ear"])
    flags = [place("sex missing"), place("localization missing")]
    assert fields.encode_fields(table)[:, flags].tolist() == [[0, 1], [1, 0]]
    nothing = fields.encode_fields(make_table([np.nan], [word], [word]))
    assert np.array_equal(nothing, [fields.MISSING])


def test_no_row_and_absent_columns():
    table = make_table([50.0], ["male"], ["back"])
    assert fields.encode_fields(table.iloc[:0]).shape == (0, 20)
    with pytest.raises(ValueError, match="lacks the columns age, localization: take that of"):
        fields.encode_fields(table[["sex"]])


def test_diagnosis_and_source_never_matter():
    table = sample.make_table()
    order = np.random.default_rng(0).permutation(len(table))
    mixed = table.copy()
    others = ["dx", "dx_type", "dataset", "lesion_id", "image_id"]
    mixed[others] = table[others].to_numpy()[order]
    assert not mixed["dataset"].equals(table["dataset"])
    expected = fields.encode_fields(table)
    assert np.array_equal(fields.encode_fields(mixed), expected)
    assert np.array_equal(fields.encode_fields(table.drop(columns=others)), expected)
    assert np.array_equal(fields.encode_fields(table.iloc[order]), expected[order])


@needs_data
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("metadata/HAM10000_metadata.csv", [57 + 39, 57, 234]),
        ("metadata/ISIC2018_Task3_Test_GroundTruth.csv", [282 + 6, 295, 335]),
        ("ham10000-28px/HAM10000_metadata.csv", [49 + 31, 52, 198]),
    ],
)
def test_real_metadata_are_known_but_where_they_are_missing(name, missing):
    table = metadata.read_metadata(SHARED / name)
    assert set(table["localization"]) <= {*fields.SITES, "unknown"}
    assert set(table["sex"]) == {*fields.SEXES, "unknown"}
    found = fields.encode_fields(table)
    flags = [columns.stop - 1 for columns in fields.FIELDS.values()]
    assert found[:, flags].sum(axis=0).tolist() == missing
    for name in ("sex", "localization"):
        assert (found[:, fields.FIELDS[name]].sum(axis=1) == 1).all()
    named = np.array(fields.COLUMNS)[5 + found[:, 5:].argmax(axis=1)]
    sites = table["localization"].replace("unknown", "localization missing")
    assert named.tolist() == sites.tolist()
    if name == "metadata/HAM10000_metadata.csv":
        assert table["localization"].nunique() == len(fields.SITES) + 1 == 15


def encode_rows(count, seed=0):
    """Encode rows of which nothing is missing."""
    rng = np.random.default_rng(seed)
    ages = rng.integers(1, 18, count) * 5.0
    return fields.encode_fields(
        make_table(ages, rng.choice(fields.SEXES, count), rng.choice(fields.SITES, count))
    )


def test_fields_are_dropped_whole_and_as_often_as_said():
    encoded = encode_rows(20_000)
    before = encoded.copy()
    dropped = fields.drop_fields(encoded, 0.2, np.random.default_rng(1))
    assert np.array_equal(encoded, before)
    assert dropped.dtype == np.float32
    lost = []
    for columns in fields.FIELDS.values():
        same = (dropped[:, columns] == encoded[:, columns]).all(axis=1)
        lost.append((dropped[:, columns] == fields.MISSING[columns]).all(axis=1))
        assert np.array_equal(same, ~lost[-1])
    lost = np.stack(lost, axis=1)
    assert lost.mean(axis=0) == pytest.approx([1 - 0.8**2] * 3, abs=0.015)
    assert lost.all(axis=1).mean() == pytest.approx(0.2 + 0.8 * 0.2**3, abs=0.015)
    assert (lost[:, 0] & ~lost[:, 1]).mean() == pytest.approx(0.8 * 0.2 * 0.8, abs=0.015)


def test_dropping_depends_on_the_generator_alone():
    encoded = encode_rows(100)
    first, again, other = (
        fields.drop_fields(encoded, 0.5, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_extreme_rates_and_impossible_ones():
    encoded, rng = encode_rows(50), np.random.default_rng(0)
    kept = fields.drop_fields(encoded, 0, rng)
    assert np.array_equal(kept, encoded)
    assert not np.shares_memory(kept, encoded)
    everything = fields.drop_fields(encoded, 1, rng)
    assert np.array_equal(everything, np.tile(fields.MISSING, (50, 1)))
    assert np.array_equal(fields.drop_fields(everything, 0.5, rng), everything)
    for rate in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=f"the rate is {rate}: choose a probability"):
            fields.drop_fields(encoded, rate, rng)


def make_cnn():
    """Build a small net like that of the main notebook."""
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image"),
            layers.Rescaling(1 / 255),
            *models.conv_block(6, batch_norm=True),
            *models.conv_block(4),
            layers.Flatten(),
            *models.dense_block(8),
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


NETS = {"cnn": make_cnn, "residual": make_residual}


def draw_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def make_joined(net, policy="float32", units=32):
    """Join fields to a net and give it weights that make every part of it matter."""
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = fields.join_fields(NETS[net](), units)
    rng = np.random.default_rng(1)
    for name in ("fields_hidden", CLASSES):
        layer = model.get_layer(name)
        layer.set_weights([rng.normal(0, 0.5, weights.shape) for weights in layer.get_weights()])
    return model


def answer(model, images, encoded):
    return compute(model, {"image": images, "fields": encoded})


def compute(model, given):
    """Compute as `predict` does, without its start, which takes longer than these nets."""
    return keras.ops.convert_to_numpy(model(given, training=False))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_joined_net_takes_both_and_answers_as_the_other_did(net, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    alone = NETS[net]()
    model = fields.join_fields(alone, units=6)
    assert {name: tensor.shape for name, tensor in model.input.items()} == {
        "image": (None, SIDE, SIDE, 3),
        "fields": (None, 20),
    }
    assert model.input["image"].dtype == "uint8"
    last, before = model.layers[-1], alone.layers[-1]
    assert (last.name, model.output_shape, last.compute_dtype) == (CLASSES, (None, 3), "float32")
    assert last.get_config() == before.get_config()
    assert last is not before
    features = before.kernel.shape[0]
    assert model.count_params() - alone.count_params() == (20 + 1) * 6 + 6 * 3
    assert last.kernel.shape == (features + 6, 3)
    # Where nothing comes from the fields, the answer is that of the net alone.
    kernel, bias = before.get_weights()
    last.set_weights([np.concatenate([kernel, np.zeros((6, 3))]), bias])
    images, encoded = draw_images(4), encode_rows(4)
    expected = compute(alone, images)
    assert answer(model, images, encoded) == pytest.approx(expected, abs=1e-6)
    # And each field changes it where something does.
    last.set_weights([np.concatenate([kernel, np.ones((6, 1)) * [3, 0, -3]]), bias])
    known = answer(model, images, encoded)
    for columns in fields.FIELDS.values():
        without = encoded.copy()
        without[:, columns] = fields.MISSING[columns]
        assert np.abs(answer(model, images, without) - known).max() > 1e-3


def test_nets_that_cannot_be_joined_are_named():
    image = keras.Input((4, 4, 3), dtype="uint8", name="photo")
    flat = layers.Flatten()(layers.Rescaling(1.0)(image))
    net = keras.Model(image, layers.Softmax(name="end")(layers.Dense(3)(flat)), name="odd")
    with pytest.raises(ValueError) as caught:
        fields.join_fields(net)
    assert str(caught.value).splitlines() == [
        "the net odd: its inputs are photo: wanted is one, Input(name='image')",
        "the net odd: it ends in end (Softmax): wanted is a Dense",
    ]


def test_learns_from_fields_alone_and_answers_the_shares_without_them():
    """Images are noise; 60 % of the rows are of class 0 (back), 30 % of 1 and 10 % of 2."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 1200, p=[0.6, 0.3, 0.1])
    site = np.array(["back", "face", "foot"])[labels]
    encoded = fields.encode_fields(
        make_table(rng.integers(1, 18, 1200) * 5.0, rng.choice(fields.SEXES, 1200), site)
    )
    images = draw_images(1200)
    model = fields.join_fields(make_residual())
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", jit_compile=False)
    for _ in range(12):
        dropped = fields.drop_fields(encoded, 0.3, rng)
        model.fit({"image": images, "fields": dropped}, labels, batch_size=50, verbose=0)
    fresh = draw_images(300, seed=1)
    assert (answer(model, fresh, encoded[:300]).argmax(1) == labels[:300]).mean() > 0.97
    nothing = np.tile(fields.MISSING, (300, 1))
    shares = np.bincount(labels) / len(labels)
    assert answer(model, fresh, nothing).mean(axis=0) == pytest.approx(shares, abs=0.1)


LOAD = """
import json, sys
import keras, numpy as np
model = keras.models.load_model("model.keras")
given = np.load("given.npz")
probabilities = model.predict({"image": given["image"], "fields": given["fields"]}, verbose=0)
foreign = [name for name in sys.modules if name.split(".")[0] == "helpers"]
print(json.dumps([model.layers[-1].name, foreign, probabilities.tolist()]))
"""


def test_saved_model_loads_without_this_project(tmp_path):
    model = make_joined("cnn", "mixed_bfloat16")
    images, encoded = draw_images(3), encode_rows(3)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "given.npz", image=images, fields=encoded)
    command = [sys.executable, "-I", "-c", LOAD]  # -I: neither this folder nor PYTHONPATH
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, foreign, found = json.loads(done.stdout.splitlines()[-1])
    assert (name, foreign) == (CLASSES, [])
    assert np.array(found) == pytest.approx(answer(model, images, encoded), abs=1e-6)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_folded_net_answers_as_the_joined_one_without_fields(net, policy, tmp_path):
    model = make_joined(net, policy)
    folded = fields.fold_missing(model)
    assert [tensor.name for tensor in folded.inputs] == ["image"]
    assert folded.layers[-1].name == CLASSES
    images = draw_images(8)
    expected = answer(model, images, np.tile(fields.MISSING, (8, 1)))
    assert compute(folded, images) == pytest.approx(expected, abs=1e-6)
    assert np.abs(answer(model, images, encode_rows(8)) - expected).max() > 0.01
    model.save(tmp_path / "model.keras")
    loaded = fields.fold_missing(keras.models.load_model(tmp_path / "model.keras"))
    assert compute(loaded, images) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_folded_net_is_explained_and_exported_as_any_other(net):
    model = make_joined(net, "mixed_bfloat16")
    folded = fields.fold_missing(model)
    images = draw_images(2)
    exact = export.copy_in_float32(folded)
    assert {layer.compute_dtype for layer in exact.layers[1:]} == {"float32"}
    both = export.copy_in_float32(model)
    expected = answer(both, images, np.tile(fields.MISSING, (2, 1)))
    assert compute(exact, images) == pytest.approx(expected, abs=1e-6)
    heat = explain.compute_grad_cam(folded, images, expected.argmax(axis=1))
    again = explain.compute_grad_cam(exact, images, expected.argmax(axis=1))
    assert heat.max() == 1
    assert heat == pytest.approx(again, abs=1e-5)


def test_net_with_one_input_is_returned_and_a_foreign_one_named():
    alone = make_cnn()
    assert fields.fold_missing(alone) is alone
    first, second = keras.Input((2,), name="image"), keras.Input((3,), name="fields")
    net = keras.Model([first, second], layers.Concatenate()([first, second]), name="foreign")
    with pytest.raises(ValueError, match=r"foreign has the inputs .*'fields': \(None, 3\)"):
        fields.fold_missing(net)
