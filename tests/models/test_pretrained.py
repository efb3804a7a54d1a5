"""Pretrained nets: what they take and give, whose weights they have, how they are fine-tuned."""

import subprocess
import sys
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from keras.src.backend import config
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from helpers.data import reading as dataset
from helpers.evaluation import heatmaps as explain
from helpers.nets import pretrained
from helpers.runs import folder as runs
from helpers.training import fit as training

SMALL = "MobileNetV3Small"
SIZE = (32, 40)
HEAD = "_".join(dataset.CLASSES)
UNREACHABLE = "http://127.0.0.1:9/"  # the port that discards: nothing listens


@pytest.fixture(scope="module")
def nets():
    """Every net at random, built once."""
    return {name: pretrained.build_pretrained(name, SIZE, "none") for name in pretrained.NETS}


@pytest.fixture(scope="module")
def data():
    """Fourteen images of seven classes."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (14, *SIZE, 3), dtype=np.uint8), np.arange(14) % 7


@pytest.fixture(scope="module")
def files(tmp_path_factory, data):
    """Weights of a body, as Keras 3 writes them and in the older format of the ImageNet files."""
    body = pretrained.NETS[SMALL].make(
        include_top=False, pooling="avg", weights=None, input_shape=(*SIZE, 3)
    )
    for layer in body.layers:  # one batch gives statistics that fit, as those of ImageNet do
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    body(data[0], training=True)
    folder = tmp_path_factory.mktemp("weights")
    body.save_weights(folder / "new.weights.h5")
    with h5py.File(folder / "old.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, body)
    return folder, body.get_weights()


def compile_eagerly(model, optimizer):
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)


def note_weights(model):
    return {v.path: v.numpy() for v in model.weights}


def name_changes(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


@pytest.mark.parametrize("name", pretrained.NETS)
def test_net_takes_raw_pixels_and_names_its_classes(nets, name, data):
    model = nets[name]
    assert (model.input_shape, model.input.dtype) == ((None, *SIZE, 3), "uint8")
    assert model.output_names == [HEAD]
    assert model.layers[2].name == name
    probabilities = model.predict(data[0][:2], verbose=0)
    assert probabilities.shape == (2, 7)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)

    body = model.layers[2]
    first = next(layer for layer in body.layers if layer.weights)
    scaling = keras.Model(body.input, first.input)
    darkest, lightest = (
        scaling(np.full((1, *SIZE, 3), value, np.float32)).numpy()[0, 0, 0] for value in (0, 255)
    )
    if name == SMALL:
        assert (darkest, lightest) == (pytest.approx([-1] * 3), pytest.approx([1] * 3))
    else:  # mean and standard deviation of ImageNet
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        assert darkest == pytest.approx(-mean / deviation, abs=1e-4)
        assert lightest == pytest.approx((1 - mean) / deviation, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*is undefined or non-square")
@pytest.mark.parametrize("name", pretrained.NETS)
def test_weights_are_those_that_keras_itself_downloads(name, monkeypatch):
    wanted = {}

    def note(file, url, cache_subdir, file_hash):
        wanted.update(file=file, url=url, checksum=file_hash)
        raise InterruptedError

    monkeypatch.setattr(file_utils, "get_file", note)
    net = pretrained.NETS[name]
    with pytest.raises(InterruptedError):
        net.make(include_top=False, weights="imagenet", input_shape=(32, 32, 3))
    assert wanted == {"file": net.file, "url": net.url, "checksum": net.checksum}


def test_saved_net_loads_where_there_are_no_helpers(nets, data, tmp_path):
    # The one of the three with layers that Keras does not export.
    path = tmp_path / "net.keras"
    nets["ConvNeXtTiny"].save(path)
    np.save(tmp_path / "pixels.npy", data[0][:2])
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model('net.keras')\n"
        "np.save('found.npy', model.predict(np.load('pixels.npy'), verbose=0))\n"
        "assert not any(name.startswith('helpers') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    path.unlink()  # 110 MB
    expected = nets["ConvNeXtTiny"].predict(data[0][:2], verbose=0)
    assert np.load(tmp_path / "found.npy") == pytest.approx(expected, abs=1e-5)


def test_net_at_random_learns_and_its_statistics_follow(nets, data):
    model = nets[SMALL]
    before = note_weights(model)
    compile_eagerly(model, keras.optimizers.Adam(0.003))
    losses = [float(model.train_on_batch(*data)) for _ in range(5)]
    assert losses[-1] < 0.8 * losses[0]
    changed = name_changes(before, note_weights(model))
    assert {path for path in before if "moving" in path} <= changed


def test_body_has_the_weights_of_the_file_and_keeps_its_statistics(files, data):
    folder, saved = files
    model = pretrained.build_pretrained(SMALL, SIZE, str(folder / "new.weights.h5"))
    body = model.layers[2]
    assert all(map(np.array_equal, body.get_weights(), saved))
    assert len(body.get_weights()) == len(saved) > 200

    heat = explain.compute_grad_cam(model, data[0][:2], [0, 1])
    assert heat.shape == (2, 1, 2) and np.isfinite(heat).all()

    compile_eagerly(model, pretrained.FineTuning(0.01, head=HEAD, head_steps=2, body_rate=0.1))
    start = note_weights(model)
    for _ in range(2):
        model.train_on_batch(*data)
    head_only = note_weights(model)
    assert name_changes(start, head_only) == {f"{HEAD}/kernel", f"{HEAD}/bias"}
    model.train_on_batch(*data)
    changed = name_changes(head_only, note_weights(model))
    statistics = {path for path in start if "moving" in path}
    assert changed == set(start) - statistics and len(statistics) == 68


def test_downloaded_weights_are_checked_and_used(files, tmp_path, monkeypatch):
    folder, saved = files
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    net = replace(pretrained.NETS[SMALL], folder=f"{folder.as_uri()}/", file="old.h5")
    monkeypatch.setitem(pretrained.NETS, SMALL, net)
    with pytest.raises(runs.RunError, match=r"hash does not match .*: download file:.*old\.h5"):
        pretrained.build_pretrained(SMALL, SIZE)
    net = replace(net, checksum=file_utils.hash_file(folder / "old.h5"))
    monkeypatch.setitem(pretrained.NETS, SMALL, net)
    body = pretrained.build_pretrained(SMALL, SIZE).layers[2]
    assert all(map(np.array_equal, body.get_weights(), saved))


def test_without_a_network_the_file_to_fetch_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    net = replace(pretrained.NETS[SMALL], folder=UNREACHABLE)
    monkeypatch.setitem(pretrained.NETS, SMALL, net)
    with pytest.raises(runs.RunError) as caught:
        pretrained.build_pretrained(SMALL, SIZE)
    assert f"download {UNREACHABLE}{net.file} on a machine that has one" in str(caught.value)
    assert f"give the path of {net.file} as WEIGHTS" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_file_that_does_not_fit_is_named(files, tmp_path):
    folder, _ = files
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(b"not HDF5")
    keras.Sequential([keras.Input((2,)), layers.Dense(1)]).save_weights(tmp_path / "x.weights.h5")
    for path in (damaged, tmp_path / "x.weights.h5"):
        with pytest.raises(runs.RunError) as caught:
            pretrained.build_pretrained(SMALL, SIZE, str(path))
        assert f"{path} does not fit the body of {SMALL} (" in str(caught.value)
        assert pretrained.NETS[SMALL].url in str(caught.value)
    for file in ("new.weights.h5", "old.h5"):
        with pytest.raises(runs.RunError, match=r"does not fit the body of EfficientNetV2B0"):
            pretrained.build_pretrained("EfficientNetV2B0", SIZE, str(folder / file))


def test_all_problems_are_named_together(tmp_path):
    assert pretrained.find_problems(SMALL, (32, 32)) == []
    assert pretrained.find_problems("ConvNeXtTiny", (75, 100), "none") == []
    text = tmp_path / "weights.txt"
    text.touch()
    assert pretrained.find_problems(SMALL, SIZE, str(text)) == [
        f"WEIGHTS is {str(text)!r}: Keras reads weights from files whose names end in .h5 or .hdf5"
    ]
    with pytest.raises(runs.RunError) as caught:
        pretrained.build_pretrained("ResNet", (31, 20), "random")
    assert str(caught.value).splitlines() == [
        "no net 'ResNet': choose one of MobileNetV3Small, EfficientNetV2B0, ConvNeXtTiny",
        "IMAGE_HEIGHT is 31, the lowest that a pretrained net takes is 32",
        "IMAGE_WIDTH is 20, the lowest that a pretrained net takes is 32",
        "WEIGHTS is 'random', and there is no such file: choose imagenet, none or the path of a "
        "weights file",
    ]


def make_tiny_net():
    """Build a body with normalisation, nested as one layer, and a head after a dropout."""
    keras.backend.clear_session()
    training.make_reproducible(2)
    pixels = keras.Input((4,))
    inner = layers.BatchNormalization(name="norm")(layers.Dense(6, name="inner")(pixels))
    body = keras.Model(pixels, inner, name="body")
    features = keras.Input((4,))
    last = layers.Dense(3, activation="softmax", name="last")
    return keras.Model(features, last(layers.Dropout(0.2)(body(features))))


def train_tiny_net(optimizer, epochs=1, checkpoint=None, rows=64, eagerly=False):
    """Train, 16 rows per step; return the weights at the start and after each."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(rows, 4)).astype("float32"), rng.integers(0, 3, rows)
    model = make_tiny_net()
    model.compile(
        optimizer,
        "sparse_categorical_crossentropy",
        metrics=[training.BalancedAccuracy(3)],
        run_eagerly=eagerly,
        jit_compile=False,
    )
    weights = [note_weights(model)]
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(note_weights(model))
    )
    options = {"callbacks": [watch]}
    if checkpoint:
        checkpoint.restore(model)
        options = {
            "initial_epoch": checkpoint.first_epoch,
            "callbacks": [watch, checkpoint],
            "validation_data": data,
        }
    model.fit(*data, batch_size=16, epochs=epochs, shuffle=False, verbose=0, **options)
    return weights


def make_fine_tuning(head_steps, rate=0.03125):
    return pretrained.FineTuning(rate, 0.5, head="last", head_steps=head_steps, body_rate=0.25)


def test_body_learns_like_adamw_at_its_share_of_the_rate_and_does_not_decay():
    # One step: from then on, what the head learned makes other gradients for the body.
    start, found = train_tiny_net(make_fine_tuning(head_steps=0), rows=16, eagerly=True)
    *_, as_body = train_tiny_net(keras.optimizers.Adam(0.03125 * 0.25), rows=16, eagerly=True)
    *_, as_head = train_tiny_net(keras.optimizers.AdamW(0.03125, 0.5), rows=16, eagerly=True)
    for path, expected in {"inner/kernel": as_body, "norm/gamma": as_body, "last/kernel": as_head,
                           "last/bias": as_head}.items():  # fmt: skip
        assert np.array_equal(found[path], expected[path]), path
        assert not np.array_equal(found[path], start[path]), path


def test_body_moves_after_the_head_steps_and_not_before():
    start, *rest = train_tiny_net(make_fine_tuning(head_steps=3))
    changes = [name_changes(start, weights) for weights in rest]
    body = {"inner/kernel", "inner/bias", "norm/gamma", "norm/beta"} & set(start)
    assert len(body) == 4 and len(changes) == 4
    for changed in changes[:3]:
        assert {"last/kernel", "last/bias"} <= changed and not changed & body
    assert {"inner/kernel", "norm/gamma", "norm/beta"} <= changes[3]


def test_interrupted_fine_tuning_ends_as_it_would_have(tmp_path):
    def train(name, epochs):
        schedule = training.make_learning_rate(0.02, "cosine", 12)
        checkpoint = training.Checkpoint(tmp_path / name, {}, epochs, patience=99)
        *_, last = train_tiny_net(make_fine_tuning(6, schedule), epochs, checkpoint)
        return checkpoint.history.drop(columns="seconds"), last

    expected, weights = train("whole.npz", 3)
    train("cut.npz", 1)  # 4 of 12 steps; the body learns from the seventh on
    found, resumed = train("cut.npz", 3)
    assert found.equals(expected)
    assert not name_changes(weights, resumed)


def test_fine_tuning_is_made_again_from_its_configuration():
    optimizer = make_fine_tuning(5)
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(optimizer, pretrained.FineTuning)
    found = optimizer.head, optimizer.head_steps, optimizer.body_rate, optimizer.weight_decay
    assert found == ("last", 5, 0.25, 0.5)
    assert float(optimizer.learning_rate) == 0.03125


def test_fine_tuning_names_what_it_cannot_use():
    with pytest.raises(ValueError, match=r"head_steps is -1 and body_rate is 0.25: wanted is at"):
        make_fine_tuning(-1)
    variables = make_tiny_net().trainable_variables
    optimizer = pretrained.FineTuning(0.1, head="top", head_steps=0, body_rate=1.0)
    with pytest.raises(ValueError, match="6 of 6 variables are outside the head 'top'"):
        optimizer.build(variables)
    optimizer = pretrained.FineTuning(0.1, head="last", head_steps=0, body_rate=1.0)
    with pytest.raises(ValueError, match="0 of 2 variables are outside the head 'last'"):
        optimizer.build(variables[-2:])
