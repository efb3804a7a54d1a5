"""The split: whole lesion groups, every class in every part, or a clear error."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data.splits import PARTS, SplitError, check_apart, find_leaks, split_by_lesion


def make_table(lesions_per_class: list[int], seed: int) -> pd.DataFrame:
    """Make a table of `lesions_per_class[k]` lesions of class k with one to five images each."""
    rng = np.random.default_rng(seed)
    rows = [
        {"group": f"lesion-{k}-{i}", "dx": f"class-{k}"}
        for k, lesions in enumerate(lesions_per_class)
        for i in range(lesions)
        for _ in range(rng.choice([1, 2, 3, 5], p=[0.7, 0.2, 0.07, 0.03]))
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)


tables = st.builds(
    make_table,
    st.lists(st.integers(1, 40), min_size=1, max_size=7),
    st.integers(0, 2**16),
)


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 9), st.integers(2, 8))
def test_split_keeps_lesions_whole_and_classes_everywhere(table, fold, folds):
    try:
        split = split_by_lesion(table, fold % folds, folds)
    except SplitError as error:
        scarce = table.groupby("dx")["group"].nunique().min() < max(folds, 4) + 2
        assert scarce, f"{error} for a table with enough lesions of every class"
        return
    assert find_leaks(split) == []
    assert (pd.crosstab(split["dx"], split["split"])[[*PARTS]] > 0).all(axis=None)
    assert split[table.columns.tolist()].equals(table)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(24, 60), min_size=2, max_size=7), st.integers(0, 2**16))
def test_folds_share_out_all_images_once(lesions, seed):
    table = make_table(lesions, seed)
    tests = [np.flatnonzero(split_by_lesion(table, f, 4)["split"] == "test") for f in range(4)]
    assert np.array_equal(np.sort(np.concatenate(tests)), np.arange(len(table)))
    largest = max(len(t) for t in tests) / len(table)
    assert largest < 0.25 + 5 * len(lesions) / len(table), "a fold is far larger than its share"


def test_split_is_the_same_whenever_it_is_asked():
    table = make_table([40, 30, 20], 1)
    first, second = split_by_lesion(table, 1), split_by_lesion(table, 1)
    assert first.equals(second)
    assert not first.equals(split_by_lesion(table, 2))


def test_too_few_lesions_are_named():
    with pytest.raises(SplitError, match=r"class-1 has 4; 5 are needed.*Lower FOLDS"):
        split_by_lesion(make_table([30, 4], 0))


@pytest.mark.parametrize(("fold", "folds"), [(5, 5), (-1, 5), (0, 1)])
def test_fold_that_does_not_exist_is_an_error(fold, folds):
    with pytest.raises(SplitError, match="FOLD"):
        split_by_lesion(make_table([30, 30], 0), fold, folds)


def test_split_that_came_with_the_data_is_honoured():
    table = make_table([30, 30], 0)
    given_split = split_by_lesion(table, 3)
    assert split_by_lesion(given_split, 0).equals(given_split)


def test_validation_is_taken_from_train_where_the_data_has_none():
    table = make_table([30, 30], 0)
    table["split"] = split_by_lesion(table, 0)["split"].replace("val", "train")
    split = split_by_lesion(table)
    assert (split["split"] == "test").equals(table["split"] == "test")
    assert find_leaks(split) == []
    assert 0.1 < (split["split"] == "val").mean() < 0.25


def test_class_missing_from_a_part_is_named():
    table = make_table([30, 30], 0)
    table = split_by_lesion(table)
    table.loc[(table["dx"] == "class-0") & (table["split"] == "val"), "split"] = "train"
    with pytest.raises(SplitError, match="class-0 in val"):
        split_by_lesion(table)


def test_leaks_are_found():
    table = pd.DataFrame({"group": ["a", "a", "b"], "split": ["train", "test", "test"]})
    assert find_leaks(table) == ["a"]


def test_test_that_shares_images_or_lesions_is_refused():
    table = pd.DataFrame({"image_id": ["1", "2", "3"], "group": ["a", "a", "b"]})
    other = pd.DataFrame({"image_id": ["4", "5"], "group": ["c", "d"]})
    check_apart(table, other)
    check_apart(table, other.iloc[:0])
    with pytest.raises(SplitError, match=r"1 images \(2\) and 1 lesions \(a\)"):
        check_apart(table, table.iloc[1:2])
    with pytest.raises(SplitError, match=r"the same 1 lesions \(b\)"):
        check_apart(table, other.assign(group=["b", "d"]))
