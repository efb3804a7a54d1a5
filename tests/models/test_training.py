"""Pipelines, class weights, the set-up, and the checkpoint that lets a killed training go on."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.metrics import balanced_accuracy_score

from helpers.training import batches, fit, optimizers
from helpers.training.layers import speed_up

EPOCHS, ALL = 5, 70
TRAINED, HELD_OUT = np.arange(48), np.arange(48, 70)


def make_data():
    """Draw 24x26 images of seven classes whose colour tells them apart."""
    labels = np.arange(ALL) % 7
    pixels = np.random.default_rng(0).integers(0, 256, (ALL, 24, 26, 3), dtype=np.uint8)
    for k in range(7):
        pixels[labels == k, :, :, k % 3] //= k // 3 + 2
    return pixels, labels


PIXELS, LABELS = make_data()


def read_epochs(count=1, rows=TRAINED, pixels=PIXELS, **options):
    """Read so many epochs of training batches of 16: images and labels."""
    data = batches.training_batches(pixels, LABELS, rows, 16, seed=3, **options)
    pairs = list(data.take(count * batches.count_steps(len(rows), 16)))
    return [np.concatenate([pair[i].numpy() for pair in pairs]) for i in (0, 1)]


def test_each_epoch_holds_every_row_once_in_a_new_order():
    rows = np.arange(5, 55)
    images, truth = read_epochs(2, rows)
    assert images.dtype == np.uint8
    first, second = images[:50], images[50:]
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        assert {image.tobytes() for image in epoch} == {PIXELS[row].tobytes() for row in rows}
    of_image = {PIXELS[row].tobytes(): LABELS[row] for row in rows}
    assert truth.tolist() == [of_image[image.tobytes()] for image in images]


@pytest.mark.parametrize("augment", [False, True])
def test_later_epochs_do_not_depend_on_the_earlier(augment):
    whole, _ = read_epochs(3, augment=augment)
    rest, _ = read_epochs(1, augment=augment, first_epoch=2)
    assert np.array_equal(whole[96:], rest)


def test_eight_views_of_a_square_are_all_different_and_the_first_is_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    views = [batches.turn_images(pixels, view) for view in batches.list_views(8, (5, 5))]
    expected = [np.rot90(p, k, (1, 2)) for p in (pixels, pixels[:, :, ::-1]) for k in range(4)]
    assert (views[0] == pixels).all()
    assert {v.tobytes() for v in views} == {e.tobytes() for e in expected}
    assert len({v.tobytes() for v in views}) == 8


def test_views_of_an_oblong_image_are_never_squashed():
    pixels = PIXELS[:2]
    views = [batches.turn_images(pixels, view) for view in batches.list_views(8, (24, 26))]
    expected = [pixels, pixels[:, ::-1], pixels[:, :, ::-1], pixels[:, ::-1, ::-1]]
    assert {v.tobytes() for v in views} == {e.tobytes() for e in expected}
    assert list(batches.list_views(1, (24, 26))) == [0]
    with pytest.raises(ValueError, match="view 4 is for square images"):
        batches.turn_images(pixels, 4)


def vary(pixels, seed):
    return batches.vary_images(pixels, np.random.default_rng(seed))


def test_varied_images_are_moved_about_the_centre_and_depend_on_the_seed_alone():
    pixels = np.full((64, 33, 33, 3), 100, np.uint8)
    pixels[:, 16, 16] = 250
    varied = vary(pixels, 1)
    assert np.array_equal(varied, vary(pixels, 1))
    assert not np.array_equal(varied, vary(pixels, 2))
    assert abs(varied.mean() - pixels.mean()) < 10, "the light is varied mildly"
    bright = [np.unravel_index(one.argmax(), one.shape) for one in varied.mean(axis=3)]
    offsets = np.abs(np.array(bright) - 16)
    assert 1 <= offsets.max() <= 33 * 0.08 * np.exp(0.3) * 2**0.5 + 1
    assert len(set(map(tuple, bright))) > 8


def test_varied_images_show_all_quarter_turns_and_both_mirror_images():
    pixels = np.zeros((200, 24, 24, 3), np.uint8)
    pixels[:, :12, :12] = 240  # top left
    pixels[:, :12, 12:] = 120  # top right
    grey = vary(pixels, 0).mean(axis=3)
    corners = grey[:, [6, 6, 17, 17], [6, 17, 17, 6]]  # clockwise from the top left
    brightest, second = np.argsort(-corners, axis=1).T[:2]
    ways = {(int(b), int((s - b) % 4)) for b, s in zip(brightest, second, strict=True)}
    assert {way for way in ways if way[1] in (1, 3)} == {(b, s) for b in range(4) for s in (1, 3)}


@pytest.mark.parametrize("resampled, blurred", [(0.5, 0.0), (0.0, 0.2)])
def test_some_varied_images_are_resampled_or_blurred_and_the_others_stay_sharp(
    monkeypatch, resampled, blurred
):
    """Of two grey levels, moving whole pixels makes two; resampling or blurring makes many."""
    monkeypatch.setattr(batches, "HAIRY", 0.0)
    monkeypatch.setattr(batches, "CORNERS", 0.0)
    monkeypatch.setattr(batches, "SHARP", 1 - resampled)
    monkeypatch.setattr(batches, "BLURRED", blurred)
    noise = np.random.default_rng(0).integers(0, 2, (200, 23, 30, 1), np.uint8)
    pixels = np.repeat(60 + 120 * noise, 3, axis=3)
    varied = vary(pixels, 3)
    levels = np.array([len(np.unique(one)) for one in varied[..., 0]])
    changed = 200 * (resampled + blurred)
    assert abs((levels > 2).sum() - changed) < 30
    assert levels[levels > 2].min() > 5
    assert abs(varied.mean() - pixels.mean()) < 10


def test_a_quarter_of_the_varied_images_get_hair_and_some_get_dark_corners():
    varied = vary(np.full((400, 60, 80, 3), 150, np.uint8), 5)
    middle = varied[:, 15:-15, 20:-20].astype(int)
    has_hair = (np.ptp(middle, axis=(1, 2)) > 5).any(axis=1)
    assert 0.15 < has_hair.mean() < 0.3
    assert np.ptp(middle, axis=(1, 2)).max() > 80
    hairy = middle[has_hair]
    assert 0.02 < (hairy < hairy.max(axis=(1, 2), keepdims=True) - 5).mean() < 0.25, "thin lines"
    dark = (varied[:, [0, 0, -1, -1], [0, -1, 0, -1]].max(axis=2) < 40).all(axis=1)
    assert 0.08 < dark.mean() < 0.2


def test_patients_fields_travel_with_their_images():
    known = np.zeros((ALL, 20), np.float32)
    known[:, 0] = np.arange(ALL) / 100
    options = {"seed": 3, "fields": known, "augment": True}
    dropped = 0
    for inputs, truth in batches.training_batches(PIXELS, LABELS, TRAINED, 16, **options).take(3):
        rows = (inputs["fields"].numpy()[:, 0] * 100).round().astype(int)
        kept = inputs["fields"].numpy()[:, 1] == 0
        assert (LABELS[rows[kept]] == truth.numpy()[kept]).all()
        assert inputs["image"].dtype == "uint8"
        dropped += (~kept).sum()
    assert 5 <= dropped <= 32  # 0.36 of 48 expected
    for inputs, _ in batches.evaluation_batches(PIXELS, LABELS, np.arange(3), 2, fields=known):
        assert (inputs["fields"].numpy()[:, 1] == 0).all()


def test_evaluation_batches_keep_the_order():
    rows = np.arange(0, ALL, 3)
    data = batches.evaluation_batches(PIXELS, LABELS, rows, 10)
    assert int(data.cardinality()) == len(list(data)) == 3
    assert not data.options().autotune.enabled  # its thread would hold up the end
    images, truth = (np.concatenate(part) for part in zip(*data.as_numpy_iterator(), strict=True))
    assert np.array_equal(images, PIXELS[rows])
    assert np.array_equal(truth, LABELS[rows])


def test_predictions_are_the_mean_over_views():
    model = keras.Sequential(
        [keras.Input((24, 26, 3), dtype="uint8"), layers.Flatten(), layers.Dense(3, "softmax")]
    )
    rows = np.arange(9, 40, 3)
    views = [PIXELS[rows][:, ::x, ::y] for x in (1, -1) for y in (1, -1)]
    expected = np.mean([model(view) for view in views], axis=0)
    found = batches.predict_rows(model, PIXELS, rows, 4, views=8)
    assert found == pytest.approx(expected, abs=1e-6)
    once = batches.predict_rows(model, PIXELS, rows, 4)
    assert once == pytest.approx(np.asarray(model(PIXELS[rows])), abs=1e-6)


def test_set_up_sets_precision_and_seed():
    policy = keras.mixed_precision.dtype_policy()
    try:
        assert fit.set_up(5, "mixed_bfloat16") == "mixed_bfloat16"
        assert layers.Dense(1).compute_dtype == "bfloat16"
        assert fit.set_up(5) in ("float32", "mixed_bfloat16")
        first = [*keras.random.normal((3,)), np.random.random()]
        assert fit.set_up(5, depthwise=True) == "float32"  # without a GPU
        assert first == [*keras.random.normal((3,)), np.random.random()]
        with pytest.raises(ValueError, match=r"PRECISION is 'half': choose one of auto"):
            fit.set_up(5, "half")
    finally:
        keras.mixed_precision.set_dtype_policy(policy)


def make_model(rate=0.01, units=8, plain=False, optimizer="muon"):
    """Build and compile a tiny net; unless it is plain, with fast normalisation and dropout."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((24, 26, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, strides=2, activation="relu"),
            *([] if plain else [layers.BatchNormalization(momentum=0.9), layers.Dropout(0.25)]),
            layers.Flatten(),
            layers.Dense(units, activation="relu"),
            layers.Dense(7, activation="softmax"),
        ]
    )
    model = model if plain else speed_up(model)
    scheduled = optimizers.make_learning_rate(rate, "cosine", 3 * EPOCHS)
    model.compile(
        optimizers.make_optimizer(scheduled, optimizer, 0.1),
        "sparse_categorical_crossentropy",
        metrics=[fit.BalancedAccuracy(7)],
        jit_compile=fit.choose_jit_compile(),
    )
    return model


def train(path, size=16, augment=True, **options):
    """Train a tiny net, and keep a copy of what would be left by a kill in the third epoch."""
    model = make_model(**options)
    checkpoint = fit.Checkpoint(path, {"SEED": 1}, EPOCHS, patience=99)
    message, first = checkpoint.restore(model), checkpoint.first_epoch

    def copy(epoch, logs=None):
        if epoch == 2:
            path.with_suffix(".cut").write_bytes(path.read_bytes())

    train_rows = {"seed": 3, "first_epoch": first, "augment": augment}
    model.fit(
        batches.training_batches(PIXELS, LABELS, TRAINED, size, **train_rows),
        validation_data=batches.evaluation_batches(PIXELS, LABELS, HELD_OUT[:16], size),
        epochs=EPOCHS,
        initial_epoch=first,
        steps_per_epoch=3,
        class_weight={k: 1 + k / 7 for k in range(7)},
        callbacks=[checkpoint, keras.callbacks.LambdaCallback(on_epoch_begin=copy)],
        shuffle=False,
        verbose=0,
    )
    return checkpoint, np.asarray(model(PIXELS[HELD_OUT], training=False)), message


def drop_seconds(checkpoint):
    return checkpoint.history.drop(columns="seconds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing disturbed, and what a kill in its third epoch would have left."""
    path = tmp_path_factory.mktemp("whole") / "c.npz"
    checkpoint, answers, message = train(path)
    assert message == "" and len(checkpoint.history) == EPOCHS
    return checkpoint, answers, path.with_suffix(".cut").read_bytes()


def test_killed_training_ends_as_it_would_have_bit_for_bit(whole, tmp_path):
    expected, answers, cut = whole
    path = tmp_path / "c.npz"
    path.write_bytes(cut)
    resumed, found, message = train(path)
    assert message == f"going on after epoch 2 of {EPOCHS}"
    assert drop_seconds(resumed).equals(drop_seconds(expected))
    assert np.array_equal(found, answers)
    best = expected.history["val_balanced_accuracy"]
    assert resumed.kept_epoch == best.idxmax()
    score = balanced_accuracy_score(LABELS[HELD_OUT[:16]], found[:16].argmax(1))
    assert score == pytest.approx(best.max(), abs=1e-6)
    # Once more: nothing is left to train.
    model, settings = make_model(), {"SEED": 1, "RUN_DIR": "folders do not matter"}
    finished = fit.Checkpoint(path, settings, EPOCHS, patience=99)
    assert "going on after epoch 5" in finished.restore(model)
    assert finished.first_epoch == EPOCHS
    assert np.array_equal(np.asarray(model(PIXELS[HELD_OUT], training=False)), answers)


@pytest.mark.parametrize(
    ("settings", "changed", "named"),
    [
        ({"SEED": 2}, {}, "SEED (1, now 2)"),
        ({"SEED": 1}, {"units": 9}, "net"),
        ({"SEED": 1}, {"plain": True}, "net"),
        ({"SEED": 1}, {"rate": 0.02}, "optimizer, loss or metrics"),
    ],
)
def test_checkpoint_of_another_training_is_set_aside(whole, settings, changed, named, tmp_path):
    path, cut = tmp_path / "c.npz", whole[2]
    path.write_bytes(cut)
    checkpoint = fit.Checkpoint(path, settings, EPOCHS, patience=99)
    message = checkpoint.restore(make_model(**changed))
    assert message.startswith("starting at epoch 1") and f"other {named} is kept" in message
    assert checkpoint.first_epoch == 0
    assert (tmp_path / "c.previous.npz").read_bytes() == cut
    assert not path.exists()


@pytest.mark.parametrize(("patience", "kept", "ended"), [(2, 2, 4), (3, 5, 6), (0, 6, 6)])
def test_best_epoch_is_kept_or_without_patience_the_last(patience, kept, ended, tmp_path):
    """The weights are the number of the epoch; of equally good epochs the first counts."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    checkpoint = fit.Checkpoint(tmp_path / "c.npz", {}, 6, patience)
    checkpoint.restore(model)
    checkpoint.set_model(model)
    model.stop_training = False
    for epoch, score in enumerate([0.2, 0.5, 0.5, 0.3, 0.6, 0.4]):
        checkpoint.on_epoch_begin(epoch)
        model.set_weights([np.array([[epoch + 1.0]])])
        checkpoint.on_epoch_end(epoch, {"val_balanced_accuracy": score})
        if model.stop_training:
            break
    checkpoint.on_train_end()
    assert (checkpoint.kept_epoch, len(checkpoint.history)) == (kept, ended)
    assert model.get_weights()[0] == kept
    assert checkpoint.first_epoch == 6
    again = fit.Checkpoint(tmp_path / "c.npz", {}, 6, patience)
    model.set_weights([np.array([[0.0]])])
    again.restore(model)
    assert model.get_weights()[0] == kept


@pytest.mark.parametrize(("watched", "lines"), [(True, 1), (False, 2)])
def test_progress_is_a_bar_where_a_person_watches_else_a_line(watched, lines, monkeypatch):
    monkeypatch.setattr(fit, "is_interactive", lambda: watched)
    assert fit.choose_verbose() == lines
