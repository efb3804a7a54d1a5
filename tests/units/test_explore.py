"""What the exploring notebook computes, on cases worked by hand."""

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from sklearn.metrics import mutual_info_score

from helpers.data import drawing, explore, near_duplicates, splits
from helpers.data import reading as dataset

HASH_SIZE, THRESHOLD = 16, 20  # the notebook's defaults


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def lesions():
    """Ten drawn photographs of 450x600 pixels, each of another lesion."""
    classes = ("nv", "nv", "nv", "mel", "mel", "bkl", "bcc", "akiec", "df", "vasc")
    return [drawing.draw_lesion(dx, np.random.default_rng(i))[0] for i, dx in enumerate(classes, 1)]


def shrink(photograph, height=75, width=100):
    return cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)


def save_as_jpeg(photograph, quality):
    return cv2.imdecode(cv2.imencode(".jpg", photograph, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def make_table(lesions_per_class=40, classes=dataset.CLASSES, seed=0):
    """Make a table in which dx_type tells everything and dataset nothing."""
    rng = np.random.default_rng(seed)
    rows = [
        {"group": f"{dx}-{i}", "dx": dx, "dx_type": f"by {dx}", "dataset": rng.choice(["a", "b"])}
        for dx in classes
        for i in range(lesions_per_class)
        for _ in range(1 + i % 3)
    ]
    table = pd.DataFrame(rows)
    table["image_id"] = [f"ISIC_{i}" for i in range(len(table))]
    table["label"] = table["dx"].map(dataset.CLASSES.index)
    table["age"], table["sex"], table["localization"] = np.nan, "unknown", "unknown"
    return table


# ---- leaks of a split ----


def test_leak_is_the_share_of_test_images_with_a_known_lesion():
    table = pd.DataFrame(
        {
            "group": ["a", "a", "b", "c", "c", "d", "e", "e"],
            "dx": ["mel", "mel", "mel", "nv", "nv", "nv", "df", "df"],
        }
    )
    is_test = np.array([True, False, True, True, True, True, False, False])
    # Of the five test images only the first has its lesion (a) outside the test as well.
    leak = explore.measure_leak(table, is_test)
    assert leak["all"] == pytest.approx(1 / 5)
    assert leak["mel"] == pytest.approx(1 / 2)
    assert leak["nv"] == 0
    assert np.isnan(leak["df"]), "no test image of this class"


def test_random_split_leaks_what_counting_says():
    # Pairs only: the other image of a pair is outside the test with probability 80 / 99.
    table = pd.DataFrame({"group": np.repeat(np.arange(50), 2), "dx": "nv"})
    leaks = explore.measure_random_leaks(table, range(200))
    assert len(leaks) == 200
    assert leaks["all"].mean() == pytest.approx(80 / 99, abs=0.02)
    assert leaks["all"].std() > 0.02, "every seed gives the same split"


def test_random_split_of_single_images_leaks_nothing():
    table = pd.DataFrame({"group": np.arange(50), "dx": "nv"})
    assert (explore.measure_random_leaks(table)["all"] == 0).all()


def test_split_by_lesion_leaks_nothing():
    table = make_table()
    for fold in range(5):
        split = splits.split_by_lesion(table, fold)
        assert explore.measure_leak(split, (split["split"] == "test").to_numpy())["all"] == 0
    assert explore.measure_random_leaks(table)["all"].min() > 0.3


# ---- missing values ----


def test_missing_values_are_counted_and_an_absent_column_is_all_missing():
    table = pd.DataFrame(
        {
            "age": [0.0, np.nan, 50.0, 0.0],
            "sex": ["male", "unknown", "female", "male"],
            "localization": ["back"] * 4,
            "dx_type": ["histo"] * 4,
        }
    )
    missing = explore.count_missing(table)
    assert missing["images"].to_dict() == {
        "age": 1,
        "age is 0": 2,
        "sex": 1,
        "localization": 0,
        "dx_type": 0,
        "dataset": 4,
    }
    assert missing.loc["sex", "share"] == 0.25


# ---- what gives the diagnosis away ----


def test_a_perfect_and_a_useless_column_are_told_apart():
    leaks = explore.measure_label_leaks(make_table(), resamples=50)
    assert list(leaks.index) == ["dx_type", "dataset"], "ages, sexes and sites are all unknown"
    assert leaks.loc["dx_type", "balanced_accuracy"] == 1
    assert leaks.loc["dx_type", "auc"] == 1
    assert leaks.loc["dx_type", "information"] > 0.9
    assert leaks.loc["dataset", "balanced_accuracy"] == pytest.approx(1 / 7, abs=0.06)
    assert leaks.loc["dataset", "auc"] == pytest.approx(0.5, abs=0.06)
    assert leaks.loc["dataset", "information"] == pytest.approx(0, abs=0.02)


def test_information_agrees_with_mutual_information():
    # nv is "a" in 90 of 100 lesions, mel in 10 of 100.
    table = make_table(1000, ("mel", "nv"))
    is_a = pd.factorize(table["group"])[0] % 10 == 0
    table["dataset"] = np.where(is_a == (table["dx"] == "mel"), "a", "b")
    expected = mutual_info_score(table["label"], table["dataset"]) / mutual_info_score(
        table["label"], table["label"]
    )
    found = explore.measure_label_leaks(table, resamples=10).loc["dataset", "information"]
    assert expected == pytest.approx(0.53, abs=0.02)
    assert found == pytest.approx(expected, abs=0.01)


def test_prediction_does_not_know_the_images_own_lesion():
    """A column that names the lesion tells nothing of the lesions held out."""
    table = make_table(10)
    table["dataset"] = table["group"]
    leaks = explore.measure_label_leaks(table, resamples=10)
    assert leaks.loc["dataset", "balanced_accuracy"] < 0.3


def test_known_ages_and_missing_ages_are_both_used():
    table = make_table(30, ("mel", "nv"))
    table["age"] = np.where(table["dx"] == "mel", 70.0, np.nan)
    table["sex"] = np.resize(["male", "female"], len(table))
    table["localization"] = np.resize(["back", "face", "hand"], len(table))
    row = explore.measure_label_leaks(table, resamples=10).loc["age, sex, localization"]
    assert row["balanced_accuracy"] == 1


# ---- near-duplicates ----


@pytest.mark.parametrize(
    "copy",
    [
        lambda photograph: save_as_jpeg(photograph, 30),
        lambda photograph: cv2.resize(photograph, (300, 225), interpolation=cv2.INTER_AREA),
        lambda photograph: cv2.resize(photograph, (1200, 900), interpolation=cv2.INTER_CUBIC),
        lambda photograph: np.uint8(photograph * 0.8),
        lambda photograph: photograph[:, ::-1],
        lambda photograph: photograph[::-1],
        lambda photograph: photograph[::-1, ::-1],
    ],
    ids=["JPEG", "half", "double", "darker", "mirrored", "upside down", "turned"],
)
def test_hash_recognises_copies_and_tells_lesions_apart(lesions, copy):
    pixels = np.stack([shrink(p) for p in lesions] + [shrink(copy(p)) for p in lesions])
    hashes = near_duplicates.hash_images(pixels, HASH_SIZE)
    first, second = np.meshgrid(np.arange(10), np.arange(10, 20), indexing="ij")
    distance = near_duplicates.measure_distances(hashes, first.ravel(), second.ravel())
    distance = distance.reshape(10, 10)
    assert distance.diagonal().max() <= THRESHOLD
    assert distance[~np.eye(10, dtype=bool)].min() > 2 * THRESHOLD


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_hash_of_square_images_sees_through_all_eight_views(lesions, quarters, mirrored):
    squares = np.stack([shrink(p[:, 75:525], 64, 64) for p in lesions])
    turned = np.rot90(squares[:, :, ::-1] if mirrored else squares, quarters, axes=(1, 2))
    hashes = near_duplicates.hash_images(np.concatenate([squares, turned]), HASH_SIZE)
    rows = np.arange(10)
    assert near_duplicates.measure_distances(hashes, rows, rows + 10).max() <= 4


def test_hash_has_half_of_its_bits_set(lesions):
    hashes = near_duplicates.hash_images(np.stack([shrink(p) for p in lesions]), 8)
    assert hashes.shape == (8, 10, 63)
    assert (hashes.sum(axis=2) == 31).all()


@pytest.mark.parametrize("size", [1, 29])
def test_hash_size_must_fit_the_images(size):
    with pytest.raises(ValueError, match=rf"size is {size}.*2 … 28.*28x40"):
        near_duplicates.hash_images(np.zeros((1, 28, 40, 3), np.uint8), size)


def test_planted_duplicate_is_found_first_and_none_within_a_lesion(lesions):
    planted = save_as_jpeg(np.uint8(lesions[3][::-1] * 0.9), 60)
    pixels = np.stack([shrink(p) for p in [*lesions, planted, lesions[5]]])
    ids = [*"abcdefghij", "k", "f"]  # the last is a second image of lesion f: no find
    hashes = near_duplicates.hash_images(pixels, HASH_SIZE)
    pairs, counts = near_duplicates.find_pairs(hashes, ids)
    near = pairs[pairs["distance"] <= THRESHOLD]
    assert near[["first", "second"]].to_numpy().tolist() == [[3, 10]]
    assert counts.sum().to_dict() == {"same_lesion": 1, "different_lesions": 12 * 11 / 2 - 1}
    assert counts.loc[0, "same_lesion"] == 1


def test_pairs_are_those_of_comparing_one_by_one(monkeypatch):
    monkeypatch.setattr(near_duplicates, "CHUNK", 7)
    rng = np.random.default_rng(0)
    hashes, ids = rng.random((8, 30, 15)) < 0.5, rng.integers(0, 12, 30)
    hashes[1:] = hashes[0]  # as if all views were alike: the distance is then symmetric
    expected = sorted(
        ((hashes[0, i] != hashes[0, j]).sum(), i, j)
        for i in range(30)
        for j in range(i + 1, 30)
        if ids[i] != ids[j]
    )
    pairs, counts = near_duplicates.find_pairs(hashes, ids, limit=40)
    assert [tuple(row) for row in pairs.to_numpy()] == expected[:40]
    by_distance = np.bincount([distance for distance, _, _ in expected], minlength=16)
    assert counts["different_lesions"].tolist() == by_distance.tolist()


def test_copies_made_by_the_notebook_are_judged(lesions):
    copies = near_duplicates.measure_copies(
        np.stack([shrink(p) for p in lesions]), HASH_SIZE, THRESHOLD
    )
    assert (copies.loc[["mirrored", "a fifth darker"], "found"] == 1).all()
    assert copies.loc["a tenth cut off each side", "found"] == 0


def test_published_pairs_are_found_where_both_images_are():
    (first, second), (alone, _) = dataset.DUPLICATE_PAIRS[:2]
    table = pd.DataFrame({"image_id": [alone, second, "ISIC_9000000", first]})
    assert near_duplicates.find_published(table).to_numpy().tolist() == [[3, 1]]
    assert near_duplicates.find_published(table.iloc[:3]).empty


# ---- figures ----


@pytest.mark.parametrize(
    "columns", [["distance", "first", "second"], ["second", "first", "distance"]]
)
def test_pairs_are_titled_with_their_own_images(columns):
    table = make_table(2, ("mel", "nv"))
    pixels = np.zeros((len(table), 6, 8, 3), np.uint8)
    pairs = pd.DataFrame({"first": [0, 1], "second": [4, 5], "distance": [2, 14]})[columns]
    figure = near_duplicates.plot_pairs(pixels, table, pairs)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["ISIC_0 mel | ISIC_4 nv\n2 bits", "ISIC_1 mel | ISIC_5 nv\n14 bits", ""]


def test_figures_are_drawn_of_a_table_without_ages_and_sites():
    table = make_table(10, ("mel", "nv"))
    random_leaks = explore.measure_random_leaks(table, range(1))
    assert explore.plot_ages(table).axes
    assert explore.plot_sites(table).axes
    assert explore.plot_composition(table, "sex", "Sex").axes
    assert explore.plot_leaks(random_leaks, random_leaks).axes
    assert explore.plot_label_leaks(explore.measure_label_leaks(table, 5), 2).axes


def test_a_table_without_any_clue_gives_no_rows():
    table = make_table(10, ("mel", "nv")).drop(columns="dataset").assign(dx_type="unknown")
    assert explore.list_clues(table) == {}
    assert explore.measure_label_leaks(table, 5).empty


def test_clues_are_the_columns_that_vary():
    table = make_table(10, ("mel", "nv")).drop(columns="dataset")
    table["sex"] = np.resize(["male", "female"], len(table))
    assert explore.list_clues(table) == {"dx_type": ["dx_type"], "sex": ["sex"]}


def test_composition_adds_up_to_all_images_of_a_class():
    table = make_table(10, ("mel", "nv"))
    table.loc[::5, "dataset"] = "unknown"
    axes = explore.plot_composition(table, "dataset", "Source").axes[0]
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(widths.sum(axis=0), 100)
    assert axes.get_legend_handles_labels()[1][-1] == "unknown"
