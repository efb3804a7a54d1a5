"""Answers for one's own images: every file answered or named, averaged, calibrated, in order."""

import argparse
import os
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import tiny_run
from PIL import Image

from helpers.data import images
from helpers.data.files import InputError
from helpers.evaluation import calibration
from helpers.evaluation.predictions import Predictions
from helpers.nets import patient
from helpers.runs import folder, own_images, predict
from helpers.training import batches


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny_run.make_images(tmp_path_factory.mktemp("predict") / "images")


@pytest.fixture(scope="module")
def run(data_dir):
    return tiny_run.save_tiny_run(data_dir.with_name("run"), data_dir)


@pytest.fixture(scope="module")
def classifier(run):
    return predict.load_classifier(run)


def save_picture(path, seed=0, size=tiny_run.SIZE):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def answer(classifier, *paths):
    return predict.predict_images(classifier, paths).filter(like="p_").to_numpy()


def call(*arguments):
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    return predict.run(parser.parse_args(list(map(str, arguments))))


def test_probabilities_are_the_nets_calibrated_by_hand(classifier, run, tmp_path):
    path = save_picture(tmp_path / "a.png")
    temperature = calibration.fit_temperature(run.predictions.part("val"))
    assert temperature != pytest.approx(1, abs=0.05), "the test could not see whether it is used"
    pixels = np.asarray(Image.open(path))[None]
    raw = keras.models.load_model(run.model_path).predict(pixels, verbose=0)
    powers = raw.astype(float) ** (1 / temperature)
    assert answer(classifier, path) == pytest.approx(powers / powers.sum(), abs=1e-5)


@pytest.fixture
def photographs(tmp_path):
    """A folder as people have them: odd endings, links, thumbnails, what is no image."""
    mine, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    for place in (mine, elsewhere, mine / "@eaDir", mine / ".ipynb_checkpoints", mine / "sub"):
        place.mkdir()
    for name in ("a.jfif", "b", "c.PNG", "sub/d.jpg", "@eaDir/a.jpg", ".ipynb_checkpoints/a.png"):
        save_picture(mine / name)
    save_picture(elsewhere / "e.gif")
    Image.new("RGB", (16, 24)).save(mine / "h.gif")
    (mine / "f.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (mine / "g.png").write_bytes(b"")
    (mine / "notes.txt").write_text("no image")
    (mine / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (mine / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(mine)
    return mine


def test_every_file_of_a_folder_is_answered_or_named(run, photographs, tmp_path, capsys):
    csv, missing = tmp_path / "new" / "answers.csv", tmp_path / "missing.png"
    code = call(photographs, missing, "--run", run.path, "--csv", csv)
    table = pd.read_csv(csv, keep_default_na=False).set_index("image")
    table.index = [os.path.relpath(path, tmp_path) for path in table.index]
    answered = {"mine/a.jfif", "mine/b", "mine/c.PNG", "mine/sub/d.jpg", "mine/linked/e.gif"}
    named = {
        "mine/f.heic",
        "mine/g.png",
        "mine/notes.txt",
        "mine/dead.png",
        "mine/h.gif",
        "missing.png",
    }
    assert set(table.index[table["problem"] == ""]) == answered
    assert set(table.index[table["problem"] != ""]) == named
    assert (table["answer"] == "").equals(table["problem"] != "")
    said = capsys.readouterr()
    assert code == predict.SOME_NOT_ANSWERED
    assert f"5 of 11 files answered by {run.path.name}: " in said.out
    assert "2 left out" in said.err
    assert all(name in said.err for name in (".ipynb_checkpoints", "@eaDir"))
    files, _ = own_images.find_images([photographs, photographs / "sub", photographs / "a.jfif"])
    assert len(files) == 10, "a file that is named twice is answered once"
    assert all(name in said.err for name in named)
    assert call(photographs / "g.png", "--run", run.path, "--no-novelty") == 1


def test_many_batches_keep_their_order(classifier, tmp_path, monkeypatch):
    paths = [save_picture(tmp_path / f"{number}.png", number) for number in range(11)]
    paths[6].write_bytes(b"")
    whole = answer(classifier, *paths)
    monkeypatch.setattr(predict, "BATCH", 3)
    assert answer(classifier, *paths) == pytest.approx(whole, abs=1e-6, nan_ok=True)
    assert np.isnan(whole[6]).all()
    assert len({tuple(row) for row in whole}) == 11


def test_views_are_those_of_the_run_and_average_before_they_are_calibrated(tmp_path, data_dir):
    model = tiny_run.make_model(size=(16, 16))
    run = tiny_run.save_tiny_run(tmp_path / "square", data_dir, model=model, VIEWS=8)
    corner = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    corner = np.maximum(corner, corner.swapaxes(0, 1))
    half = np.concatenate([corner, corner[:, ::-1]], axis=1)
    Image.fromarray(np.concatenate([half, half[::-1]])).save(tmp_path / "symmetric.png")
    paths = [tmp_path / "symmetric.png", save_picture(tmp_path / "other.png", size=(16, 16))]
    eight = predict.load_classifier(run, warn=False)
    one = replace(eight, views=1)
    assert eight.views == 8
    difference = np.abs(answer(eight, *paths) - answer(one, *paths)).max(axis=1)
    assert difference[0] < 1e-5 < 1e-4 < difference[1]
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    powers = batches.predict_rows(model, pixels, np.arange(2), views=8) ** (1 / eight.temperature)
    assert eight.temperature != pytest.approx(1, abs=0.05)
    by_hand = powers / powers.sum(axis=1, keepdims=True)
    assert answer(eight, *paths) == pytest.approx(by_hand, abs=1e-5)


def test_larger_image_goes_by_way_of_the_size_of_the_training_files(classifier, tmp_path):
    path, by_hand = save_picture(tmp_path / "a.png", size=(64, 96)), tmp_path / "b.png"
    assert classifier.run.file_size == [16, 24]
    pixels = images.read_image(path, (8, 12))
    Image.fromarray(images.resize_pixels(pixels, tiny_run.SIZE)).save(by_hand)
    data = classifier.run.metrics["data"] | {"file_size": [8, 12]}
    metrics = classifier.run.metrics | {"data": data}
    changed = replace(classifier, run=replace(classifier.run, metrics=metrics))
    assert answer(changed, path) == pytest.approx(answer(classifier, by_hand), abs=1e-6)
    assert answer(changed, path) != pytest.approx(answer(classifier, path), abs=1e-4)


def make_answers(surety, is_right, part="val"):
    table = pd.DataFrame({"split": part, "p_a": surety, "dx": np.where(is_right, "a", "b")})
    return table.assign(p_b=1 - table["p_a"])


@pytest.mark.parametrize(
    ("accuracy", "threshold", "answered", "of_test"),
    [(1.0, 0.9, 0.4, 0.75), (0.75, 0.7, 0.8, 1.0), (0.6, 0.6, 1.0, 1.0), (0.1, 0.6, 1.0, 1.0)],
)
def test_threshold_answers_most_at_the_wanted_accuracy(accuracy, threshold, answered, of_test):
    validation = make_answers([0.6, 0.7, 0.8, 0.9, 0.95], [False, True, False, True, True])
    test = make_answers([0.95, 0.95, 0.95, 0.7], [True, False, False, True], "test")
    point = predict.choose_operating_point(
        Predictions(pd.concat([validation, test]), ("a", "b")), accuracy
    )
    assert point.threshold == threshold
    assert point.outcomes["images"].tolist() == [5, 4]
    assert point.outcomes["answered"].tolist() == pytest.approx([answered, of_test])
    assert point.outcomes["right"]["val"] >= accuracy
    assert point.outcomes["right"]["test"] == pytest.approx(1 / 3 if of_test < 1 else 1 / 2)


def test_equal_probabilities_are_answered_together_or_not_at_all():
    table = make_answers([0.9, 0.9, 0.9, 0.6], [True, False, False, True])
    point = predict.choose_operating_point(Predictions(table, ("a", "b")), 0.9)
    assert np.isinf(point.threshold)
    assert "every image is unsure" in predict.describe_operating_point(point)


def test_image_below_the_threshold_is_unsure(classifier, tmp_path):
    paths = [save_picture(tmp_path / f"{number}.png", number) for number in range(8)]
    top = answer(classifier, *paths).max(axis=1)
    point = replace(classifier.point, threshold=float(np.median(top)))
    answers = predict.predict_images(replace(classifier, point=point), paths)["answer"]
    assert ((answers == predict.UNSURE) == (top < point.threshold)).all()
    assert 0 < (answers == predict.UNSURE).sum() < len(paths)


def test_noise_and_walls_get_a_warning_and_held_out_images_seldom(classifier, data_dir, tmp_path):
    strange = [save_picture(tmp_path / f"{number}.png", number) for number in range(3)]
    Image.new("RGB", (40, 30), "white").save(tmp_path / "wall.png")
    found = predict.predict_images(classifier, [*strange, tmp_path / "wall.png"])
    assert (found["warning"] == predict.WARNING).all()
    own = predict.predict_images(classifier, sorted(data_dir.glob("*.png")))
    assert (own["warning"] == predict.WARNING).mean() < 0.15
    assert (own["novelty"] > 1).equals(own["warning"] == predict.WARNING)


def test_two_uploads_of_one_name_give_two_files_and_two_answers(classifier, tmp_path):
    paths = [save_picture(tmp_path / f"{seed}.png", seed) for seed in (0, 1)]
    uploads = [{"name": "../x.png", "content": memoryview(path.read_bytes())} for path in paths]
    assert own_images.save_uploads([], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    for _ in range(2):  # a second round replaces the first one
        saved = own_images.save_uploads(uploads, tmp_path / "uploads")
    assert [path.name for path in saved] == ["x.png", "x (2).png"]
    assert sorted(tmp_path.joinpath("uploads").iterdir()) == sorted(saved)
    assert (answer(classifier, *saved) == answer(classifier, *paths)).all()
    names = ["x (3).png", "x.png", "X.png", "x.png", ".."]
    uploads = [{"name": name, "content": b""} for name in names]
    saved = own_images.save_uploads(uploads, tmp_path / "more")
    assert len({path.name.casefold() for path in saved}) == len(saved) == 5


def test_all_problems_of_the_arguments_are_named_before_any_work(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    wrong = [tmp_path / "empty", run.path.parent, "--run", tmp_path / "none"]
    with pytest.raises(InputError) as caught:
        call(*wrong, "--csv", tmp_path / "file" / "a.csv")
    said = str(caught.value)
    assert "empty holds no image" in said
    assert f"{run.path} is a run: name it with --run" in said
    assert "none: no finished run" in said
    assert "a.csv cannot be written" in said
    with pytest.raises(InputError, match="no image is given"):
        call("--run", run.path)


def test_all_problems_of_the_options_are_named(run):
    with pytest.raises(InputError) as caught:
        predict.load_classifier(run, accuracy=1.5, false_alarm_rate=0)
    assert "the false-alarm rate is 0" in str(caught.value)
    assert "the accuracy is 1.5" in str(caught.value)
    for two in ((run.path, "--run", run.path), ("--run", run.path, "--run", run.path)):
        with pytest.raises(InputError, match="name one run only"):
            call(*two)


def test_answers_that_cannot_be_written_any_more_are_kept_beside(tmp_path):
    table = pd.DataFrame({"image": ["é\udcff.png"], "answer": "nv"})  # a name that is no UTF-8
    path = own_images.write_answers(tmp_path / "answers.csv", table)
    assert path.read_bytes().startswith(b"\xef\xbb\xbfimage,answer")
    assert pd.read_csv(path)["image"].tolist() == ["é\\udcff.png"]
    assert own_images.check_output(path) == []
    path.unlink()
    path.mkdir()
    (path / "in the way").touch()
    kept = own_images.write_answers(path, table)
    assert kept.parent == tmp_path
    assert len(pd.read_csv(kept)) == 1


def test_net_with_fields_answers_for_images_alone_as_it_was_calibrated(tmp_path, data_dir):
    """Its predictions with the fields, which are far too sure here, must not be looked at."""
    net = tiny_run.make_model()
    alone = tiny_run.save_tiny_run(tmp_path / "alone", data_dir, model=net)
    joined = patient.join_fields(net)
    kernel, bias = net.layers[-1].get_weights()
    joined.layers[-1].set_weights([np.concatenate([kernel, np.zeros((32, 7))]), bias])
    more = {"image_only": alone.predictions}
    run = tiny_run.save_tiny_run(tmp_path / "joined", data_dir, model=joined, more=more)
    assert run.predictions.probabilities.min() == 0 < alone.predictions.probabilities.min()
    path = save_picture(tmp_path / "a.png")
    expected, found = (predict.load_classifier(x, warn=False) for x in (alone, run))
    assert found.temperature == pytest.approx(expected.temperature)
    assert answer(found, path) == pytest.approx(answer(expected, path), abs=1e-5)
    assert folder.load_run(run.path).predictions.answers.tolist() == run.predictions.labels.tolist()
