"""RESULTS.md: its table is that of the committed scores."""

from pathlib import Path

import pandas as pd

from results import collect


def test_table_is_made_of_the_committed_scores():
    page = Path(collect.PAGE).read_text(encoding="utf-8")
    (_, rest) = page.split(collect.MARKS[0])
    assert rest.split(collect.MARKS[1])[0] == collect.write_table(pd.read_csv(collect.FILE))


def test_means_over_folds_and_their_intervals_by_hand():
    rows = [{"net": "a", "size": "1x1", "train": 4, "test": 1, "seconds": 60} for _ in range(3)]
    # Two seeds of a fold count as one.
    table = pd.DataFrame(rows).assign(fold=[0, 1, 1], unseen=[1, 0, 0])
    for name in collect.SHOWN:
        table[name], table[f"unseen_{name}"] = [0.5, 0.5, 0.7], [0.4, 0.4, 0.6]
    lines = collect.write_table(table).splitlines()
    # mean .55, variance .005, times (1/2 + 1/4); Student's quantile of one degree is 12.706
    assert lines[2].startswith("| a, 1x1 | 2 | test | .550 [-0.228, 1.328] |")
    assert lines[3].startswith("|  |  | unseen | .450 [-0.328, 1.228] |")
    assert lines[2].endswith("| 1 |")
    alone = collect.write_table(table[table["fold"] == 0]).splitlines()
    assert len(alone) == 3 and "unseen" not in alone[2], "all test images of fold 0 are unseen"
