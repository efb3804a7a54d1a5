"""Pipelines, class weights, schedules and the checkpoint that lets a killed run go on."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.metrics import balanced_accuracy_score

from helpers.nets import models, pretrained
from helpers.nets import patient as fields
from helpers.runs import folder as runs
from helpers.training import batches as pipelines
from helpers.training import fit as training
from helpers.training import recipes

EPOCHS = 5
RECIPE = recipes.Recipe(
    epochs=EPOCHS, learning_rate=0.01, schedule="cosine", optimizer="muon", weight_decay=0.1
)


@pytest.fixture(scope="module")
def data():
    """Seventy 24x26 images of seven classes whose colour tells them apart."""
    labels = np.arange(70) % 7
    pixels = np.random.default_rng(0).integers(0, 256, (70, 24, 26, 3), dtype=np.uint8)
    for k in range(7):
        pixels[labels == k, :, :, k % 3] //= k // 3 + 2
    return pixels, labels


def read_all(batches):
    pairs = [(x.numpy(), y.numpy()) for x, y in batches]
    return [np.concatenate(part) for part in zip(*pairs, strict=True)]


def make_batches(data, epochs, rows=None, **options):
    rows = np.arange(70) if rows is None else rows
    return pipelines.training_batches(*data, rows, 16, seed=3, epochs=epochs, **options)


def test_each_epoch_holds_every_row_once_in_a_new_order(data):
    pixels, labels = data
    rows = np.arange(5, 55)
    images, truth = read_all(make_batches(data, range(2), rows))
    assert images.dtype == np.uint8
    first, second = images[:50], images[50:]
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        found = {image.tobytes() for image in epoch}
        assert found == {pixels[row].tobytes() for row in rows}
    of_image = {pixels[row].tobytes(): labels[row] for row in rows}
    assert truth.tolist() == [of_image[image.tobytes()] for image in images]


@pytest.mark.parametrize("augment", [False, True])
def test_later_epochs_do_not_depend_on_the_earlier(data, augment):
    whole, _ = read_all(make_batches(data, range(3), augment=augment))
    rest, _ = read_all(make_batches(data, range(2, 3), augment=augment))
    assert np.array_equal(whole[140:], rest)


def test_augmentation_varies_images_mildly(data):
    ramp = np.linspace(60, 180, 24 * 26).reshape(24, 26, 1).astype(np.uint8)
    pixels = np.broadcast_to(ramp, (70, 24, 26, 3))
    images, _ = read_all(make_batches((pixels, data[1]), range(1), augment=True))
    different = {image.tobytes() for image in images}
    assert len(different) == 70, "two images were varied alike"
    assert images.dtype == np.uint8
    assert abs(images.mean() - pixels.mean()) < 10
    assert np.abs(images.mean(axis=(1, 2, 3)) - pixels.mean()).max() < 70


def make_views(pixels):
    return np.stack([pipelines.turn_images(pixels, view) for view in range(8)])


def test_eight_views_are_all_different_and_the_first_is_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    views = make_views(pixels)
    expected = [np.rot90(p, k, (1, 2)) for p in (pixels, pixels[:, :, ::-1]) for k in range(4)]
    assert views.shape == (8, 2, 5, 5, 3)
    assert (views[0] == pixels).all()
    assert {v.tobytes() for v in views} == {e.tobytes() for e in expected}
    assert len({v.tobytes() for v in views}) == 8


def test_turned_views_of_an_oblong_image_are_squashed():
    pixels = np.zeros((1, 4, 8, 3), np.uint8)
    pixels[:, :, :4] = 200  # left half bright
    views = make_views(pixels)
    assert views.shape == (8, 1, 4, 8, 3)
    assert (views[4, 0, :2] == 200).all()  # top half bright
    assert (views[4, 0, 2:] == 0).all()


def test_varied_images_are_moved_about_the_centre_and_depend_on_the_seed_alone():
    pixels = np.full((64, 33, 33, 3), 100, np.uint8)
    pixels[:, 16, 16] = 250
    varied = pipelines.vary_images(pixels, [1, 2]).numpy()
    assert np.array_equal(varied, pipelines.vary_images(pixels, [1, 2]).numpy())
    assert not np.array_equal(varied, pipelines.vary_images(pixels, [1, 3]).numpy())
    grey = varied.mean(axis=3)
    bright = [np.unravel_index(one.argmax(), one.shape) for one in grey]
    offsets = np.abs(np.array(bright) - 16)
    farthest = 33 * pipelines.SHIFT * np.exp(2 * pipelines.ZOOM) * 2**0.5 + 1
    assert 1 <= offsets.max() <= farthest
    assert len(set(map(tuple, bright))) > 8


def test_varied_images_show_all_quarter_turns_and_both_mirror_images():
    pixels = np.zeros((200, 24, 24, 3), np.uint8)
    pixels[:, :12, :12] = 240  # top left
    pixels[:, :12, 12:] = 120  # top right
    grey = pipelines.vary_images(pixels, [0, 0]).numpy().mean(axis=3)
    corners = grey[:, [6, 6, 17, 17], [6, 17, 17, 6]]  # clockwise from the top left
    brightest, second = np.argsort(-corners, axis=1).T[:2]
    ways = {(int(b), int((s - b) % 4)) for b, s in zip(brightest, second, strict=True)}
    assert {way for way in ways if way[1] in (1, 3)} == {(b, s) for b in range(4) for s in (1, 3)}


@pytest.mark.parametrize("size", [(24, 24), (23, 30)])
def test_half_of_the_varied_images_stay_sharp(size):
    """Of two grey levels, moving whole pixels makes two; resampling makes many."""
    noise = np.random.default_rng(0).integers(0, 2, (200, *size, 1), np.uint8)
    pixels = np.repeat(60 + 120 * noise, 3, axis=3)
    varied = pipelines.vary_images(pixels, [3, 4]).numpy()
    levels = np.array([len(np.unique(one)) for one in varied[..., 0]])
    assert 70 <= (levels == 2).sum() <= 130
    assert levels[levels != 2].min() > 20


def test_patients_fields_travel_with_their_images(data):
    labels = data[1]
    known = np.zeros((70, fields.WIDTH), np.float32)
    known[:, 0] = np.arange(70) / 100
    batches = make_batches(data, range(1), np.arange(5, 55), fields=known, augment=True)
    dropped = 0
    for inputs, truth in batches:
        rows = (inputs["fields"].numpy()[:, 0] * 100).round().astype(int)
        kept = inputs["fields"].numpy()[:, 1] == 0
        assert (labels[rows[kept]] == truth.numpy()[kept]).all()
        assert inputs["image"].dtype == "uint8"
        dropped += (~kept).sum()
    assert 5 <= dropped <= 35  # 0.36 of 50 expected
    for inputs, _ in pipelines.evaluation_batches(*data, np.arange(3), 2, fields=known):
        assert (inputs["fields"].numpy()[:, 1] == 0).all()


def test_predictions_are_the_mean_over_views(data):
    model = keras.Sequential(
        [keras.Input((24, 26, 3), dtype="uint8"), layers.Flatten(), layers.Dense(3, "softmax")]
    )
    pixels, rows = data[0], np.arange(9, 40, 3)
    found = pipelines.predict_rows(model, pixels, rows, 4, views=8)
    expected = np.mean([model.predict(v, verbose=0) for v in make_views(pixels[rows])], axis=0)
    assert found == pytest.approx(expected, abs=1e-6)
    once = pipelines.predict_rows(model, pixels, rows, 4)
    assert once == pytest.approx(model.predict(pixels[rows], verbose=0), abs=1e-6)


def test_evaluation_batches_keep_the_order(data):
    pixels, labels = data
    rows = np.arange(0, 70, 3)
    batches = pipelines.evaluation_batches(pixels, labels, rows, 10)
    assert int(batches.cardinality()) == 3
    images, truth = read_all(batches)
    assert np.array_equal(images, pixels[rows])
    assert np.array_equal(truth, labels[rows])


def test_class_weights_by_hand():
    labels = np.array([0] * 6 + [2] * 2)
    assert training.weigh_classes(labels, 0, 4) == {0: 1, 1: 0, 2: 1, 3: 0}
    full = training.weigh_classes(labels, 1, 3)
    assert full == pytest.approx({0: 8 / 12, 1: 0, 2: 8 / 4}, abs=1e-6)
    half = training.weigh_classes(labels, 0.5, 3)
    assert half[2] / half[0] == pytest.approx(3**0.5, rel=1e-5)
    assert (6 * half[0] + 2 * half[2]) / 8 == pytest.approx(1, abs=1e-6)


def test_cosine_schedule_warms_up_and_ends_at_zero():
    rate = training.make_learning_rate(0.01, "cosine", total_steps=200)
    steps = [float(rate(step)) for step in (0, 5, 10, 105, 200)]
    assert steps == pytest.approx([0, 0.005, 0.01, 0.005, 0], abs=1e-6)
    assert training.make_learning_rate(0.01, "constant", 200) == 0.01
    with pytest.raises(ValueError, match="SCHEDULE is 'cosin'"):
        training.make_learning_rate(0.01, "cosin", 200)


def test_parameters_out_of_range_are_named_together():
    good = dict.fromkeys(training.LOWEST, 30) | {"FOLD": 0, "PRECISION": "auto", "VIEWS": 8}
    good |= {"SCHEDULE": "cosine", "MODEL": "compact", "WEIGHTS": "none", "BATCH_NORM": False}
    good |= {"OPTIMIZER": "muon"}
    training.check_parameters(good)
    bad = {"IMAGE_HEIGHT": 21, "EPOCHS": 0, "LEARNING_RATE": -0.1, "FOLD": 30, "PRECISION": "half"}
    bad |= {"MODEL": "ConvNeXtTiny", "WEIGHTS": "here.h5", "VIEWS": 4, "BATCH_NORM": True}
    with pytest.raises(runs.RunError) as caught:
        training.check_parameters(good | bad)
    assert str(caught.value).splitlines() == [
        "IMAGE_HEIGHT is 21, the lowest that works is 22",
        "EPOCHS is 0, the lowest that works is 1",
        "LEARNING_RATE is -0.1, the lowest that works is 1e-12",
        "PRECISION is 'half', choose one of auto, float32, mixed_bfloat16, mixed_float16",
        "VIEWS is 4, choose one of 1, 8",
        "IMAGE_HEIGHT is 21, the lowest that a pretrained net takes is 32",
        "IMAGE_WIDTH is 30, the lowest that a pretrained net takes is 32",
        "WEIGHTS is 'here.h5', and there is no such file: choose imagenet, none or the path of a "
        "weights file",
        "OPTIMIZER is 'muon': pretrained weights are fine-tuned with adam; choose that, or WEIGHTS "
        "none",
        "BATCH_NORM belongs to the cnn: with MODEL 'ConvNeXtTiny' leave it out",
        "FOLD must be below FOLDS: the first fold is 0",
    ]


def test_unknown_model_is_refused():
    good = dict.fromkeys(training.LOWEST, 30) | {"FOLD": 0, "PRECISION": "auto", "VIEWS": 8}
    good |= {"SCHEDULE": "cosine", "WEIGHTS": "none", "BATCH_NORM": False, "OPTIMIZER": "adam"}
    with pytest.raises(runs.RunError, match="MODEL is 'resnet', choose one of cnn, compact, Mob"):
        training.check_parameters(good | {"MODEL": "resnet"})


def test_precision_is_a_policy_that_keras_knows():
    assert training.choose_precision("float32") == "float32"
    assert training.choose_precision("auto") in ("float32", "mixed_bfloat16")
    with pytest.raises(ValueError, match=r"PRECISION is 'half': choose one of auto"):
        training.choose_precision("half")


def test_balanced_accuracy_equals_sklearn():
    rng = np.random.default_rng(1)
    truth, output = rng.integers(0, 5, 200), rng.random((200, 7)).astype("float32")
    metric = training.BalancedAccuracy(7)
    for part in (slice(0, 90), slice(90, 200)):
        metric.update_state(truth[part], output[part])
    answer = output.argmax(1)
    expected = np.mean([(answer[truth == k] == k).mean() for k in np.unique(truth)])
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    inside = answer < 5
    metric.reset_state()
    metric.update_state(truth[inside], output[inside])
    expected = balanced_accuracy_score(truth[inside], answer[inside])
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_net_is_compiled_along_its_recipe():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(7, activation="softmax")])
    training.compile_net(model, RECIPE, 20, devices=4)
    rates = [float(model.optimizer._learning_rate(step)) for step in (0, 5, 100)]
    assert rates == pytest.approx([0, 0.02, 0], abs=1e-6)  # twice the rate for four devices
    first = model.optimizer
    training.compile_net(model, recipes.Recipe(), 20, head_epochs=2)
    assert isinstance(model.optimizer, pretrained.FineTuning)
    assert model.optimizer is not first
    assert model.optimizer.get_config()["head_steps"] == 40


class Interruption(keras.callbacks.Callback):
    """Interrupts the training in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.at = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.at == self.epoch and batch == 1:
            raise KeyboardInterrupt


def train(data, path, interrupt_in=None, patience=99, settings=None):
    """Train a tiny net with normalisation, dropout, augmentation and a schedule."""
    keras.backend.clear_session()
    training.make_reproducible(1)
    model = keras.Sequential(
        [
            keras.Input((24, 26, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            *models.conv_block(6, batch_norm=True),
            layers.Flatten(),
            *models.dense_block(8, batch_norm=True),
            layers.Dense(7, activation="softmax"),
        ]
    )
    training.compile_net(model, RECIPE, 4)
    checkpoint = training.Checkpoint(path, settings or {"a": 1}, EPOCHS, patience)
    message = checkpoint.restore(model)
    epochs = range(checkpoint.first_epoch, EPOCHS)
    callbacks = [checkpoint] + ([] if interrupt_in is None else [Interruption(interrupt_in)])
    validation = pipelines.evaluation_batches(*data, np.arange(50, 70), 16)
    try:
        model.fit(
            make_batches(data, epochs, np.arange(50), augment=True),
            validation_data=validation,
            epochs=EPOCHS,
            initial_epoch=checkpoint.first_epoch,
            steps_per_epoch=4,
            class_weight=training.weigh_classes(data[1][:50], 0.5, 7),
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
    except KeyboardInterrupt:
        return checkpoint, None, message
    return checkpoint, model.predict(validation, verbose=0), message


def drop_seconds(checkpoint):
    return checkpoint.history.drop(columns="seconds")


def test_interrupted_training_ends_as_it_would_have(data, tmp_path):
    whole, expected, message = train(data, tmp_path / "whole.npz")
    assert message == ""
    assert len(whole.history) == EPOCHS

    train(data, tmp_path / "cut.npz", interrupt_in=2)
    (tmp_path / "cut.partial").write_bytes(b"half a checkpoint")
    resumed, found, message = train(data, tmp_path / "cut.npz")
    assert message == f"going on after epoch 2 of {EPOCHS}"
    assert drop_seconds(resumed).equals(drop_seconds(whole))
    assert np.array_equal(found, expected)

    finished, found, _ = train(data, tmp_path / "cut.npz")
    assert len(finished.history) == EPOCHS, "a finished training was trained on"
    assert np.array_equal(found, expected)


def test_best_epoch_is_kept_and_training_stops_early(data, tmp_path):
    checkpoint, found, _ = train(data, tmp_path / "c.npz", patience=1)
    history = checkpoint.history["val_balanced_accuracy"]
    assert len(history) < EPOCHS
    assert checkpoint.kept_epoch == history.idxmax()
    assert checkpoint.first_epoch == EPOCHS
    truth = data[1][50:]
    assert balanced_accuracy_score(truth, found.argmax(1)) == pytest.approx(history.max(), abs=1e-6)


def test_without_patience_the_last_epoch_is_kept(data, tmp_path):
    best, expected, _ = train(data, tmp_path / "best.npz")
    last, found, _ = train(data, tmp_path / "last.npz", patience=0)
    assert drop_seconds(last).equals(drop_seconds(best))
    assert best.kept_epoch < last.kept_epoch == EPOCHS
    assert not np.array_equal(found, expected)
    truth = data[1][50:]
    history = last.history["val_balanced_accuracy"]
    assert balanced_accuracy_score(truth, found.argmax(1)) == pytest.approx(history.iloc[-1])

    train(data, tmp_path / "cut.npz", patience=0, interrupt_in=EPOCHS - 1)
    resumed, again, _ = train(data, tmp_path / "cut.npz", patience=0)
    assert resumed.kept_epoch == EPOCHS and np.array_equal(again, found)
    finished, again, _ = train(data, tmp_path / "cut.npz", patience=0)
    assert len(finished.history) == EPOCHS and np.array_equal(again, found)


def test_checkpoint_of_other_settings_is_set_aside(data, tmp_path):
    train(data, tmp_path / "c.npz", interrupt_in=1)
    before = (tmp_path / "c.npz").read_bytes()
    _, _, message = train(data, tmp_path / "c.npz", interrupt_in=0, settings={"a": 2})
    assert "a 1 there, 2 here" in message
    assert (tmp_path / "c.previous.npz").read_bytes() == before
    assert not (tmp_path / "c.npz").exists()


def test_one_line_per_epoch_when_nobody_watches(capsys, monkeypatch):
    monkeypatch.setattr(training, "is_interactive", lambda: False)
    lines = training.show_progress()
    assert isinstance(lines, training.EpochLines)
    lines.set_params({"epochs": 3})
    lines.on_epoch_begin(1)
    lines.on_epoch_end(1, {"loss": 1.5, "accuracy": 0.25, "val_loss": 2.0})
    out = capsys.readouterr().out
    assert out == "epoch 2/3: loss 1.500, val_loss 2.000, accuracy 0.250 (0 s)\n"
    lines = training.show_progress(2, 2)
    lines.set_params({"epochs": 3})
    lines.on_epoch_begin(0)
    lines.on_epoch_end(0, {"loss": 1.0})
    assert capsys.readouterr().out == "training 2/2, epoch 1/3: loss 1.000 (0 s)\n"


def test_one_bar_where_a_person_watches(capsys, monkeypatch):
    monkeypatch.setattr(training, "is_interactive", lambda: True)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    data = np.zeros((4, 2)), np.zeros(4)
    progress = training.show_progress()
    model.fit(*data, validation_data=data, epochs=3, verbose=0, callbacks=[progress])
    out, err = capsys.readouterr()
    assert "3/3" in err and "val_loss=" in err
    assert " loss=" not in err and "epoch" not in out
