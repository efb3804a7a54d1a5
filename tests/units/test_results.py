"""RESULTS.md: its table is that of the committed scores."""

from pathlib import Path

import pandas as pd

from results import collect


def test_table_is_made_of_the_committed_scores():
    page = Path(collect.PAGE).read_text(encoding="utf-8")
    (_, rest) = page.split(collect.MARKS[0])
    assert rest.split(collect.MARKS[1])[0] == collect.write_table(pd.read_csv(collect.FILE))


def test_means_over_folds_and_their_intervals_by_hand():
    rows = [{"net": "a", "size": "1x1", "train": 4, "test": 1, "seconds": 60} for _ in range(4)]
    # Two seeds of a fold count as one.
    table = pd.DataFrame(rows).assign(fold=[0, 1, 1, 2], unseen=[1, 0, 0, 0])
    for name in collect.SHOWN:
        table[name], table[f"unseen_{name}"] = [0.5, 0.5, 0.7, 0.7], [0.4, 0.4, 0.6, 0.6]
    lines = collect.write_table(table).splitlines()
    # mean .6, variance .01, times (1/3 + 1/4); Student's quantile of two degrees is 4.303
    assert lines[2].startswith("| a, 1x1 | 3 | test | .600 [.271, .929] |")
    assert lines[3].startswith("|  |  | unseen | .500 [.171, .829] |")
    assert lines[2].endswith("| 1 |")
    two = collect.write_table(table[table["fold"] < 2]).splitlines()
    assert two[2].startswith("| a, 1x1 | 2 | test | .550 |"), "no interval"
    alone = collect.write_table(table[table["fold"] == 0]).splitlines()
    assert len(alone) == 3 and "unseen" not in alone[2], "all test images of fold 0 are unseen"
