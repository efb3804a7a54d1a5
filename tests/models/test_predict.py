"""Answers for one's own images: from files of any kind, averaged, calibrated, in order."""

import keras
import numpy as np
import pandas as pd
import pytest
import tiny_run
from PIL import Image

from helpers.evaluation import calibration
from helpers.nets import patient as fields
from helpers.runs import folder as runs
from helpers.runs import predict, strange


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny_run.make_images(tmp_path_factory.mktemp("predict") / "images")


@pytest.fixture(scope="module")
def run_dirs(data_dir):
    return [
        tiny_run.save_tiny_run(data_dir.with_name(f"run{seed}"), data_dir, seed) for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def classifier(run_dirs):
    return predict.load_classifier([runs.load_run(run_dirs[0])])


def make_picture(seed=0, shape=(*tiny_run.SIZE, 3)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8))


def probabilities_of(table):
    return table.filter(like="p_").to_numpy()


def test_probabilities_are_the_nets_calibrated_by_hand(classifier, run_dirs, tmp_path):
    picture = make_picture()
    picture.save(tmp_path / "a.png")
    run = runs.load_run(run_dirs[0])
    labels, validation, _ = run.part("val")
    temperature = calibration.fit_temperature(labels, validation)
    assert temperature != pytest.approx(1, abs=0.05), "the test could not see whether it is used"
    raw = keras.models.load_model(run.model_paths[0]).predict(np.asarray(picture)[None], verbose=0)
    powers = raw.astype(float) ** (1 / temperature)
    found = predict.predict_images(classifier, [tmp_path / "a.png"])
    assert probabilities_of(found) == pytest.approx(powers / powers.sum(), abs=1e-5)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photograph_on_its_side_gets_the_answer_of_the_upright_one(
    classifier, tmp_path, orientation
):
    turn = Image.Transpose
    undo = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    picture = make_picture(shape=(32, 48, 3))
    picture.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.transpose(undo[orientation]).save(tmp_path / "turned.png", exif=exif)
    found = predict.predict_images(classifier, [tmp_path / "upright.png", tmp_path / "turned.png"])
    upright, turned = probabilities_of(found)
    assert turned == pytest.approx(upright, abs=1e-6)


def test_bad_files_are_listed_and_the_rest_is_answered_in_order(run_dirs, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(5):
        make_picture(number).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"")
    (folder / "3.png").write_text("no image")
    (folder / "4.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.txt").write_text("left alone")
    csv = tmp_path / "new" / "answers.csv"
    missing = tmp_path / "missing.png"
    code = predict.main([str(run_dirs[0]), str(folder), str(missing), "--csv", str(csv)])
    table = pd.read_csv(csv, keep_default_na=False)
    names = [path.rsplit("/", 1)[-1] for path in table["image"]]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.heic", "4.png", "missing.png"]
    assert (table["answer"] != "").tolist() == [True, False, True, False, False, True, False]
    assert (table["problem"] == "").equals(table["answer"] != "")
    assert code == predict.SOME_UNREADABLE
    said = capsys.readouterr()
    assert "3 of 7 images read by 1 net" in said.out
    assert "1.png: the file is empty" in said.err
    assert "3.png: not an image of the formats" in said.err
    assert "missing.png: No such file" in said.err


def test_nothing_readable_is_a_failure(run_dirs, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert predict.main([str(run_dirs[0]), str(tmp_path / "a.png")]) == 1


def test_many_batches_keep_their_order(classifier, tmp_path, monkeypatch):
    paths = []
    for number in range(11):
        paths.append(tmp_path / f"{number}.png")
        make_picture(number).save(paths[-1])
    paths[6].write_bytes(b"")
    whole = probabilities_of(predict.predict_images(classifier, paths))
    monkeypatch.setattr(predict, "BATCH", 3)
    assert probabilities_of(predict.predict_images(classifier, paths)) == pytest.approx(
        whole, abs=1e-6, nan_ok=True
    )
    assert np.isnan(whole[6]).all()


def test_two_runs_are_averaged(run_dirs, tmp_path):
    make_picture().save(tmp_path / "a.png")
    loaded = [runs.load_run(path) for path in run_dirs]
    alone, both = (
        [
            probabilities_of(
                predict.predict_images(
                    predict.load_classifier(some, warn=False), [tmp_path / "a.png"]
                )
            )
            for some in groups
        ]
        for groups in ([[run] for run in loaded], [loaded])
    )
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    assert both[0] == pytest.approx((alone[0] + alone[1]) / 2, abs=1e-7)


def test_ensemble_answers_as_its_members(run_dirs, tmp_path):
    make_picture().save(tmp_path / "a.png")
    loaded = [runs.load_run(path) for path in run_dirs]
    tables = [run.predictions.assign(fold=fold) for fold, run in enumerate(loaded)]
    folder = runs.save_ensemble(
        run_dirs[0].with_name("ensemble"),
        {"classes": loaded[0].classes},
        loaded[0].history,
        pd.concat(tables),
        loaded,
    )
    found, expected = (
        predict.predict_images(predict.load_classifier(some), [tmp_path / "a.png"])
        for some in ([runs.load_run(folder)], loaded)
    )
    assert found.equals(expected)


def test_eight_views_of_a_symmetric_image_answer_as_one(tmp_path, data_dir):
    model = tiny_run.make_model(size=(16, 16))
    run = runs.load_run(tiny_run.save_tiny_run(tmp_path / "square", data_dir, model=model))
    corner = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    corner = np.maximum(corner, corner.swapaxes(0, 1))
    half = np.concatenate([corner, corner[:, ::-1]], axis=1)
    Image.fromarray(np.concatenate([half, half[::-1]])).save(tmp_path / "symmetric.png")
    make_picture(shape=(16, 16, 3)).save(tmp_path / "other.png")
    one, eight = (
        probabilities_of(
            predict.predict_images(
                predict.load_classifier([run], views=views, warn=False),
                [tmp_path / "symmetric.png", tmp_path / "other.png"],
            )
        )
        for views in (1, 8)
    )
    assert eight[0] == pytest.approx(one[0], abs=1e-5)
    assert np.abs(eight[1] - one[1]).max() > 1e-4


def make_predictions(surety, is_right, part="val"):
    surety = np.asarray(surety)
    return pd.DataFrame(
        {
            "split": part,
            "dx": np.where(is_right, "a", "b"),
            "p_a": surety,
            "p_b": 1 - surety,
        }
    )


@pytest.mark.parametrize(
    ("accuracy", "threshold", "answered"),
    [(1.0, 0.9, 0.4), (0.75, 0.7, 0.8), (0.6, 0.6, 1.0), (0.1, 0.6, 1.0)],
)
def test_threshold_answers_most_images_at_the_wanted_accuracy(accuracy, threshold, answered):
    rows = make_predictions([0.6, 0.7, 0.8, 0.9, 0.95], [False, True, False, True, True])
    point = predict.choose_operating_point(rows, ["a", "b"], accuracy)
    assert point.threshold == threshold
    assert point.outcomes.loc["val", "answered"] == pytest.approx(answered)
    assert point.outcomes.loc["val", "right"] >= accuracy


def test_equal_probabilities_are_answered_together():
    rows = make_predictions([0.9, 0.9, 0.9, 0.6], [True, False, False, True])
    point = predict.choose_operating_point(rows, ["a", "b"], 0.9)
    assert np.isinf(point.threshold)
    assert "every image is unsure" in predict.describe_operating_point(point)


def test_the_test_part_has_no_say_but_is_told():
    rows = [make_predictions([0.6, 0.9], [False, True])]
    rows.append(make_predictions([0.95, 0.95, 0.95, 0.7], [True, False, False, True], "test"))
    point = predict.choose_operating_point(pd.concat(rows), ["a", "b"], 0.9)
    assert point.threshold == 0.9
    assert point.outcomes.loc["test"].tolist() == pytest.approx([4, 0.75, 1 / 3])
    assert "75% of the 4 test images are answered, 33% of these right" in (
        predict.describe_operating_point(point)
    )


def test_image_below_the_threshold_is_unsure(classifier, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):
        make_picture(number).save(path)
    top = probabilities_of(predict.predict_images(classifier, paths)).max(axis=1)
    point = predict.OperatingPoint(float(np.median(top)), 0.9, classifier.point.outcomes)
    strict = predict.Classifier(**{**vars(classifier), "point": point})
    answers = predict.predict_images(strict, paths)["answer"]
    assert ((answers == predict.UNSURE) == (top < point.threshold)).all()
    assert 0 < (answers == predict.UNSURE).sum() < len(paths)


def test_strange_pictures_get_a_warning_and_held_out_images_seldom(classifier, data_dir, tmp_path):
    found = predict.predict_images(classifier, strange.save_pictures(tmp_path))
    assert (found["warning"] == predict.WARNING).all()
    own = predict.predict_images(classifier, sorted(data_dir.glob("*.png")))
    assert (own["warning"] == predict.WARNING).mean() < 0.15
    assert (own["novelty"] > 1).equals(own["warning"] == predict.WARNING)


def test_uploaded_bytes_answer_as_the_file(classifier, tmp_path):
    path = tmp_path / "mine.png"
    make_picture().save(path)
    uploads = ({"name": "../mine.png", "content": memoryview(path.read_bytes())},)
    saved = predict.save_uploads(uploads, tmp_path / "uploads")
    assert saved == [tmp_path / "uploads" / "mine.png"]
    found = predict.predict_images(classifier, [path, *saved])
    assert found.loc[0, "p_nv"] == found.loc[1, "p_nv"]
    assert predict.save_uploads((), tmp_path / "none") == []


def test_submission_holds_the_readable_images(run_dirs, tmp_path):
    make_picture().save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"")
    arguments = [str(run_dirs[0]), str(tmp_path), "--isic", str(tmp_path / "out" / "isic.csv")]
    assert predict.main([*arguments, "--no-novelty"]) == predict.SOME_UNREADABLE
    submission = pd.read_csv(tmp_path / "out" / "isic.csv")
    assert submission["image"].tolist() == ["b"]
    assert submission.drop(columns="image").sum(axis=1).to_numpy() == pytest.approx([1], abs=1e-4)


def test_all_problems_of_the_arguments_are_named_before_any_work(run_dirs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    arguments = [str(tmp_path / "empty"), "--csv", str(tmp_path / "file" / "a.csv")]
    assert predict.main([*arguments, "--isic", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "empty holds no image" in said
    assert "no run among the arguments: a run is a folder with metrics.json" in said
    assert "a.csv cannot be written" in said
    assert f"{tmp_path} is a folder: name a file" in said
    assert predict.main([str(run_dirs[0])]) == 1
    assert "no image among the arguments" in capsys.readouterr().err


def test_runs_that_do_not_belong_together_are_named(run_dirs, data_dir, tmp_path, capsys):
    other = tiny_run.make_model(size=(20, 20), classes=("akiec", "bcc", "bkl"))
    tiny_run.save_tiny_run(tmp_path / "other", data_dir, model=other)
    arguments = [str(run_dirs[0]), str(tmp_path / "other"), str(data_dir)]
    assert predict.main(arguments) == 1
    said = capsys.readouterr().err
    assert "has the classes akiec, bcc, bkl" in said
    assert "takes images of 20x20 pixels" in said


def test_options_out_of_range_are_named_together(run_dirs):
    with pytest.raises(runs.RunError) as caught:
        predict.load_classifier([runs.load_run(run_dirs[0])], accuracy=1.5, views=4)
    assert "views is 4, wanted is 1 or 8" in str(caught.value)
    assert "the accuracy is 1.5" in str(caught.value)


def test_figures_are_drawn(classifier, data_dir):
    table = predict.predict_images(classifier, sorted(data_dir.glob("*.png"))[:3])
    assert len(predict.plot_answers(classifier, table).axes) == 12
    rates = predict.measure_warnings(classifier, variants=3)
    assert list(rates.index) == ["test images", *strange.KINDS]
    assert predict.plot_warnings(rates, 0.05).axes


def test_net_with_metadata_answers_for_images_alone_as_it_was_calibrated(tmp_path, data_dir):
    """Its predictions with the fields, which are far too sure here, must not be looked at."""
    net = tiny_run.make_model()
    alone = runs.load_run(tiny_run.save_tiny_run(tmp_path / "alone", data_dir, model=net))
    joined = fields.join_fields(net)
    kernel, bias = net.layers[-1].get_weights()
    joined.layers[-1].set_weights([np.concatenate([kernel, np.zeros((32, 7))]), bias])
    columns = [f"p_{dx}" for dx in alone.classes]
    sure = alone.predictions.copy()
    sure[columns] = (sure[columns] ** 9).div((sure[columns] ** 9).sum(axis=1), axis=0)
    metrics = alone.metrics | {"parameters": alone.metrics["parameters"] | {"USE_METADATA": True}}
    folder = runs.save_run(
        tmp_path / "joined", metrics, alone.history, sure, joined, alone.predictions
    )
    assert (
        runs.load_run(folder).predictions[columns].max(axis=1)
        >= runs.load_run(folder, image_only=True).predictions[columns].max(axis=1)
    ).all()
    image = tmp_path / "a.png"
    make_picture().save(image)
    expected, found = (
        predict.load_classifier([runs.load_run(path)], warn=False) for path in (alone.path, folder)
    )
    assert found.members[0].temperature == pytest.approx(expected.members[0].temperature)
    assert probabilities_of(predict.predict_images(found, [image])) == pytest.approx(
        probabilities_of(predict.predict_images(expected, [image])), abs=1e-5
    )


def test_views_are_those_of_the_run_unless_they_are_given(tmp_path, data_dir):
    model = tiny_run.make_model(size=(16, 16))
    run = runs.load_run(tiny_run.save_tiny_run(tmp_path / "square", data_dir, model=model))
    assert predict.load_classifier([run], warn=False).views == 1
    metrics = run.metrics | {"parameters": run.metrics["parameters"] | {"VIEWS": 8}}
    folder = runs.save_run(tmp_path / "eight", metrics, run.history, run.predictions, model)
    run = runs.load_run(folder)
    assert predict.load_classifier([run], warn=False).views == 8
    assert predict.load_classifier([run], views=1, warn=False).views == 1
