"""Print the README's table of nets from the finished runs of an experiment.

    python tests/benchmarks/table_nets.py notebooks/experiments/nets.yaml

Means over folds with the intervals of `comparisons.estimate_mean`; parameters and multiply-adds
are those of each net at 75x100 pixels, whatever size the runs were of.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd
from bench_training import build_net

from helpers import comparisons, experiments, fields, models
from helpers.scores import PRIOR_ADJUSTED

SIZE = (75, 100)
SCORES = ("accuracy", "balanced_accuracy", PRIOR_ADJUSTED, "auc")
IMAGE_ONLY = "test_image_only"


def write_mean(values: pd.Series, ratio: float) -> str:
    """Write a mean over folds with its interval, without leading zeros."""
    mean, half = comparisons.estimate_mean(values.to_numpy(), ratio)
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]".replace("0.", ".")


def main() -> None:
    """Read the runs, print a row per net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    experiment = experiments.read_experiment(parser.parse_args().experiment)
    finished, others = experiments.load_runs(experiment)
    images = finished[0].metrics["data"]["images"]
    print(f"{len(finished)} of {len(experiment.runs)} runs on {images} images")
    for name, state in others.items():
        print(f"{name}: {state}")
    table = comparisons.tabulate_runs(finished)
    for name in ("MODEL", "USE_METADATA"):
        table[name] = [run.metrics["parameters"][name] for run in finished]
    print("| net | folds | parameters | M multiply-adds | " + " | ".join(SCORES) + " |")
    print("|" + "---|" * (4 + len(SCORES)))
    for (model, with_fields), rows in table.groupby(["MODEL", "USE_METADATA"], sort=False):
        net = build_net() if model == "cnn" else models.build_net(model, SIZE)
        net = fields.join_fields(net) if with_fields else net
        told = f"{model}, USE_METADATA" if with_fields else model
        ratio = rows["test_ratio"].mean()
        scores = [write_mean(rows[f"test_{score}"], ratio) for score in SCORES]
        size = f"{len(rows)} | {net.count_params():,} | {models.count_multiply_adds(net) / 1e6:.0f}"
        print(f"| {told} | {size} | {' | '.join(scores)} |")
        alone = [
            run.metrics["scores"][IMAGE_ONLY]
            for run in finished
            if run.path.name in rows.index and IMAGE_ONLY in run.metrics["scores"]
        ]
        if alone:
            scores = [
                write_mean(pd.Series([found[score]["value"] for found in alone]), ratio)
                for score in SCORES
            ]
            print(f"| {told}, all fields missing | {size} | {' | '.join(scores)} |")


if __name__ == "__main__":
    main()
