"""Several devices: batches that they can share, and the result that one device gives.

The trainings run in a process of their own: TensorFlow takes the number of logical CPUs only
before it starts.
"""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from helpers.nets import models
from helpers.training import batches as pipelines
from helpers.training import devices, recipes
from helpers.training import fit as training

# Summing in parts rounds differently: 5e-8 was seen on the predictions, 2e-7 on the losses.
TOLERANCE = 1e-5
BATCH_SIZE, EPOCHS, TRAINED, ALL = 8, 2, 49, 66


def make_data():
    """Draw 24x26 images of seven classes whose colour tells them apart."""
    labels = np.arange(ALL) % 7
    pixels = np.random.default_rng(0).integers(0, 256, (ALL, 24, 26, 3), dtype=np.uint8)
    for k in range(7):
        pixels[labels == k, :, :, k % 3] //= k // 3 + 2
    return pixels, labels


class Shares(keras.callbacks.Callback):
    """Notes how many training images each device counted in the last epoch."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.images = strategy, []

    def on_test_begin(self, logs=None):
        (counts,) = (v.value for v in self.model.metrics_variables if v.name == "images")
        parts = self.strategy.experimental_local_results(counts)
        self.images = [int(part.numpy().sum()) for part in parts]


class Interruption(keras.callbacks.Callback):
    """Interrupts the training in the middle of the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 1:
            raise KeyboardInterrupt


def train(strategy, folder, faster=1.0, interrupt=False, batch_norm=False, optimizer="adam"):
    """Train as the main notebook does, two devices' worth of images per batch."""
    training.make_reproducible(1)
    batch_size = 2 * BATCH_SIZE
    recipe = recipes.Recipe(
        epochs=EPOCHS,
        learning_rate=0.01 * faster,
        schedule="cosine",
        optimizer=optimizer,
        weight_decay=0.1,
    )
    steps = pipelines.count_steps(TRAINED, batch_size)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((24, 26, 3), dtype="uint8"),
                layers.Rescaling(1 / 255),
                *models.conv_block(4, batch_norm, dropout=0),
                layers.Flatten(),
                layers.Dense(7, activation="softmax"),
            ]
        )
        training.compile_net(model, recipe, steps, devices=2)
    pixels, labels = make_data()
    validation = pipelines.evaluation_batches(
        pixels, labels, np.arange(TRAINED, ALL), batch_size, devices=2
    )
    checkpoint = training.Checkpoint(folder / "checkpoint.npz", {}, EPOCHS, patience=9)
    checkpoint.restore(model)
    epochs = range(checkpoint.first_epoch, EPOCHS)
    data = pipelines.training_batches(
        pixels, labels, np.arange(TRAINED), batch_size, seed=3, epochs=epochs, devices=2
    )
    shares = Shares(strategy)
    try:
        model.fit(
            data,
            validation_data=validation,
            epochs=EPOCHS,
            initial_epoch=checkpoint.first_epoch,
            steps_per_epoch=steps,
            class_weight=training.weigh_classes(labels[:TRAINED], 0.5, 7),
            callbacks=[checkpoint, shares, *([Interruption()] if interrupt else [])],
            shuffle=False,
            verbose=0,
        )
    except KeyboardInterrupt:
        return {}
    checkpoint.delete()
    keras.Model(model.inputs[0], model.outputs[0]).save(folder / "model.keras")
    return {
        "started_at": epochs.start,
        "shares": shares.images,
        "history": checkpoint.history.drop(columns="seconds").to_dict("list"),
        "predictions": model.predict(validation, verbose=0).tolist(),
        "of_array": model.predict(pixels[TRAINED:], verbose=0).tolist(),
    }


def train_all(folder):
    """Train on one device, on both, on both with another rate, and on both interrupted."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    two = devices.choose_strategy(["CPU:0", "CPU:1"])
    found = {
        "devices": devices.count_devices(two),
        "one": train(tf.distribute.get_strategy(), folder),
        "other rate": train(two, folder, faster=1.001),
        "interrupted": train(two, folder, interrupt=True),
        "resumed": train(two, folder),
        "muon, one": train(tf.distribute.get_strategy(), folder, optimizer="muon"),
        "muon, two": train(two, folder, optimizer="muon"),
        "normalised": train(two, folder, batch_norm=True),
        "normalised, interrupted": train(two, folder, interrupt=True, batch_norm=True),
        "normalised, resumed": train(two, folder, batch_norm=True),
        "two": train(two, folder),
    }
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    code = "from pathlib import Path; from tests import test_devices as t; "
    command = [sys.executable, "-c", f"{code}t.train_all(Path({str(folder)!r}))"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text()) | {"folder": folder}


def measure_distance(a, b):
    """Return the largest difference between two runs' histories and predictions."""
    pairs = [(a["history"][name], b["history"][name]) for name in a["history"]]
    pairs.append((a["predictions"], b["predictions"]))
    return max(np.abs(np.subtract(x, y)).max() for x, y in pairs)


def test_two_devices_give_the_result_of_one(found):
    assert found["devices"] == 2
    assert measure_distance(found["one"], found["two"]) < TOLERANCE
    assert measure_distance(found["muon, one"], found["muon, two"]) < TOLERANCE
    assert measure_distance(found["one"], found["muon, one"]) > TOLERANCE
    assert np.allclose(found["two"]["of_array"], found["two"]["predictions"], atol=TOLERANCE)


def test_a_rate_changed_by_a_thousandth_is_noticed(found):
    assert measure_distance(found["other rate"], found["two"]) > 10 * TOLERANCE


def test_each_device_takes_half_of_the_images(found):
    assert found["one"]["shares"] == [TRAINED + 1]
    assert found["two"]["shares"] == [(TRAINED + 1) // 2] * 2


def test_interrupted_training_on_two_devices_ends_as_it_would_have(found):
    assert found["interrupted"] == {}
    assert found["resumed"]["started_at"] == 1
    assert measure_distance(found["resumed"], found["two"]) == 0
    assert found["normalised, resumed"]["started_at"] == 1
    assert measure_distance(found["normalised, resumed"], found["normalised"]) == 0
    assert measure_distance(found["normalised"], found["two"]) > TOLERANCE


def test_model_trained_on_two_devices_loads_on_one(found):
    model = keras.models.load_model(found["folder"] / "model.keras")
    predictions = model.predict(make_data()[0][TRAINED:], verbose=0)
    assert np.allclose(predictions, found["two"]["predictions"], atol=TOLERANCE)


def test_without_gpus_nothing_changes():
    strategy = devices.choose_strategy([])
    assert strategy is tf.distribute.get_strategy()
    assert devices.choose_strategy(["GPU:0"]) is strategy
    assert devices.count_devices(strategy) == 1
    assert devices.scale_rate(0.003, 1) == 0.003
    assert devices.scale_rate(0.003, 4) == pytest.approx(0.006)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 8])
def test_batches_can_be_shared(number):
    for size in (number, 4 * number):
        for images in range(number * number + 1, 150):
            parts = pipelines.cut_batches(np.arange(images), size, number)
            assert np.array_equal(np.concatenate(parts), np.arange(images))
            assert len(parts[0]) % number == 0, "Keras fails"
            assert all(len(part) == size for part in parts[:-2])
            for part in parts:
                assert len(part) > (number - 1) * -(-len(part) // number), "an empty part"


def test_too_few_images_for_the_devices_are_named():
    with pytest.raises(ValueError, match="3 images are too few for 2 devices: take 5 images"):
        pipelines.cut_batches(np.arange(3), 2, 2)


def test_an_epoch_is_filled_up_so_that_it_can_be_shared():
    pixels = make_data()[0]
    batches = pipelines.training_batches(
        pixels, np.arange(ALL), np.arange(TRAINED), 16, seed=0, epochs=range(2), devices=4
    )
    truth = [y.numpy() for _, y in batches]
    assert [len(y) for y in truth] == [16, 16, 16, 4] * 2
    for epoch in (truth[:4], truth[4:]):
        assert set(np.concatenate(epoch)) == set(range(TRAINED))
