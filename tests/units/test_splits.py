"""The split: whole lesions, every class in every part; and what a careless one gives away."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from helpers.data import splits
from helpers.data.files import InputError
from helpers.data.metadata import CLASSES


def make_table(lesions_per_class, seed):
    """Make a table of `lesions_per_class[k]` lesions of class k with one to five images each."""
    rng = np.random.default_rng(seed)
    rows = [
        {"group": f"lesion-{k}-{i}", "dx": CLASSES[k], "label": k}
        for k, lesions in enumerate(lesions_per_class)
        for i in range(lesions)
        for _ in range(rng.choice([1, 2, 3, 5], p=[0.7, 0.2, 0.07, 0.03]))
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)


tables = st.builds(
    make_table, st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 2**16)
)


@settings(max_examples=25, deadline=None)
@given(tables, st.integers(0, 9), st.integers(2, 8))
def test_split_keeps_lesions_whole_and_classes_everywhere(table, fold, folds):
    try:
        split = splits.split_by_lesion(table, fold % folds, folds)
    except InputError as error:
        scarce = table.groupby("dx")["group"].nunique().min() < max(folds, 4) + 2
        assert scarce, f"{error} for a table with enough lesions of every class"
        return
    assert (split.groupby("group")["split"].nunique() == 1).all()
    assert (pd.crosstab(split["dx"], split["split"])[[*splits.PARTS]] > 0).all(axis=None)
    assert split[table.columns.tolist()].equals(table)


@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(24, 60), min_size=2, max_size=7), st.integers(0, 2**16))
def test_folds_share_out_all_images_once(lesions, seed):
    table = make_table(lesions, seed)
    parts = [splits.split_by_lesion(table, fold, 4)["split"] == "test" for fold in range(4)]
    assert (np.sum(parts, axis=0) == 1).all()
    largest = np.mean(parts, axis=1).max()
    assert largest < 0.25 + 5 * len(lesions) / len(table), "a fold is far larger than its share"


def test_split_is_the_same_whenever_it_is_asked():
    table = make_table([40, 30, 20], 1)
    first = splits.split_by_lesion(table, 1)
    assert first.equals(splits.split_by_lesion(table, 1))
    assert not first.equals(splits.split_by_lesion(table, 2))
    assert not first.equals(splits.split_by_lesion(table, 1, seed=1))
    assert 0.1 < (first["split"] == "val").mean() < 0.25


def test_too_few_lesions_are_named_together():
    with pytest.raises(InputError, match="lower FOLDS") as error:
        splits.split_by_lesion(make_table([30, 4, 3], 0))
    assert [text[:13] for text in error.value.problems] == ["bcc has 4 les", "bkl has 3 les"]


@pytest.mark.parametrize(("fold", "folds"), [(5, 5), (-1, 5), (0, 1)])
def test_fold_that_does_not_exist_is_an_error(fold, folds):
    with pytest.raises(InputError, match="FOLD"):
        splits.split_by_lesion(make_table([30, 30], 0), fold, folds)


def test_split_that_came_with_the_data_is_kept_and_has_one_fold():
    table = splits.split_by_lesion(make_table([30, 30], 0), 3)
    assert splits.split_by_lesion(table).equals(table)
    with pytest.raises(InputError, match="set FOLD to 0"):
        splits.split_by_lesion(table, 3)
    without = table.assign(split=table["split"].replace("val", "train"))
    split = splits.split_by_lesion(without)["split"]
    assert (split == "test").equals(table["split"] == "test")
    assert (split.groupby(table["group"]).nunique() == 1).all()
    assert 0.1 < (split == "val").mean() < 0.25, "validation is taken from train where it lacks"
    table.loc[(table["dx"] == "akiec") & (table["split"] == "val"), "split"] = "train"
    with pytest.raises(InputError, match="akiec is in val"):
        splits.split_by_lesion(table)


def test_leaks_are_found_by_lesion_and_by_pixels():
    table = pd.DataFrame({"group": list("aabcdde"), "split": ["train"] * 3 + ["test"] * 4})
    table.loc[1, "split"] = "test"
    assert splits.find_leaks(table) == ["a"]
    pixels = np.random.default_rng(0).integers(0, 256, (7, 6, 8, 3), np.uint8)
    pixels[5] = pixels[2]  # of d and b: one lesion under two names, named once
    pixels[6] = pixels[3]  # of e and c, both in the test
    assert splits.find_leaks(table, pixels) == ["a", "b"]


def test_copies_under_other_ids_are_counted_one_by_one():
    """66 of 126 test images are copies of training images under new ids."""
    parts = ["train"] * 200 + ["test"] * 126
    table = pd.DataFrame({"group": [f"lesion {n:03d}" for n in range(326)], "split": parts})
    pixels = np.random.default_rng(0).integers(0, 256, (326, 4, 5, 3), np.uint8)
    pixels[200:266] = pixels[:66]
    assert splits.find_leaks(table) == []
    assert splits.find_leaks(table, pixels) == [f"lesion {n:03d}" for n in range(66)]


def test_a_test_that_shares_images_lesions_or_pixels_is_refused():
    table = pd.DataFrame({"image_id": ["1", "2", "3"], "group": ["a", "a", "b"]})
    other = pd.DataFrame({"image_id": ["4", "5"], "group": ["c", "d"]})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 5, 3), np.uint8)
    splits.check_apart(table, other, pixels[:3], pixels[3:])
    splits.check_apart(table, other.iloc[:0], pixels[:3], pixels[:0])
    with pytest.raises(InputError) as error:
        splits.check_apart(table, table.iloc[1:2], pixels[:3], pixels[1:2])
    assert len(error.value.problems) == 3
    with pytest.raises(InputError, match=r"1 lesions are in the training data, too \(b\)"):
        splits.check_apart(table, other.assign(group=["b", "d"]))
    with pytest.raises(InputError, match=r"1 images by their pixels .*\(5\)"):
        splits.check_apart(table, other, pixels[:3], pixels[[3, 0]])


def test_leak_is_the_share_of_test_images_with_a_known_lesion():
    classes = ["mel", "mel", "mel", "nv", "nv", "nv", "df", "df"]
    table = pd.DataFrame({"group": list("aabccdee"), "dx": classes})
    is_test = [True, False, True, True, True, True, False, False]
    # Of the five test images only the first has its lesion (a) outside the test as well.
    leak = splits.measure_leak(table, is_test)
    assert leak["all"] == pytest.approx(1 / 5)
    assert leak["mel"] == pytest.approx(1 / 2)
    assert leak["nv"] == 0
    assert np.isnan(leak["df"]), "no test image of this class"


def test_random_split_leaks_what_counting_tells():
    # Pairs only: the other image of a pair is outside the test with probability 80 / 99.
    table = pd.DataFrame({"group": np.repeat(np.arange(50), 2), "dx": "nv"})
    leaks = splits.measure_random_leaks(table, 200)
    assert len(leaks) == 200
    assert leaks["all"].mean() == pytest.approx(80 / 99, abs=0.02)
    assert leaks["all"].std() > 0.02, "every seed gives the same split"


def make_clues(lesions=25, classes=CLASSES):
    """Make a table in which dx_type tells everything and dataset nothing."""
    table = make_table([lesions] * len(classes), 0)
    table["dataset"] = np.random.default_rng(0).choice(["a", "b"], len(table))
    return table.assign(dx_type="by " + table["dx"], age=np.nan, sex="unknown", localization="back")


def score(table, columns):
    answers = splits.predict_from_columns(table, columns).argmax(axis=1)
    return balanced_accuracy_score(table["label"], answers)


def test_a_perfect_and_a_useless_column_are_told_apart():
    table = make_clues()
    assert splits.list_clues(table) == {"dx_type": ["dx_type"], "dataset": ["dataset"]}
    assert score(table, ["dx_type"]) == 1
    assert score(table, ["dataset"]) == pytest.approx(1 / 7, abs=0.09)
    table["dataset"] = table["group"]  # which tells nothing of the lesions held out
    assert score(table, ["dataset"]) < 0.3


def test_known_and_missing_ages_are_both_used_and_classes_that_do_not_occur_get_nothing():
    table = make_clues(30, ("akiec", "bcc"))
    table["age"] = np.where(table["dx"] == "bcc", 70.0, np.nan)
    table["sex"] = np.resize(["male", "female"], len(table))
    assert splits.list_clues(table)["age, sex"] == ["age", "sex"]
    assert score(table, ["age", "sex"]) == 1
    assert (splits.predict_from_columns(table, ["age"])[:, 2:] == 0).all()


def test_copies_of_pixels_under_another_lesion_leak_too():
    table = pd.DataFrame({"group": list("abcd"), "dx": ["nv", "nv", "mel", "mel"]})
    is_test = np.array([True, False, True, False])
    assert splits.measure_leak(table, is_test)["all"] == 0
    leak = splits.measure_leak(table.assign(pixels=["x", "x", "y", "z"]), is_test)
    assert leak.to_dict() == {"all": 0.5, "nv": 1, "mel": 0}


def test_a_handful_of_images_gets_fewer_folds_and_one_class_no_clue():
    table = make_clues(3, ("akiec", "bcc"))
    answers = splits.predict_from_columns(table, ["dx_type"])
    assert answers.shape == (len(table), len(CLASSES))
    assert splits.list_clues(table[table["dx"] == "bcc"]) == {}
