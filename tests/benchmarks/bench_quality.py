"""Quality against processor time: the original net and the compact one, on the same images.

    python tests/benchmarks/bench_quality.py DATA_DIR OUT_DIR [--size 28 28] [--fold 0]

Trains both as the main notebook does, one after the other, each in a process of its own, and
scores the test part after every epoch; the curves would tempt one to choose by the test, so no
epoch is chosen. What counts is the processor time (user and system, all threads) of training
alone; scoring, validation and start are left out. Writes quality.csv and quality.png, and prints
after which share of the original's time the compact net has passed its best scores. The compact
net is trained by short schedules, since along a cosine only the last epochs are good.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pandas as pd

from helpers.scores import PRIOR_ADJUSTED

# name: MODEL, epochs, schedule (None: the recipe's)
WAYS = {
    "original, 30 epochs": ("cnn", 30, "cosine"),
    "compact, 4 epochs": ("compact", 4, None),
    "compact, 8 epochs": ("compact", 8, None),
}
SCORES = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    PRIOR_ADJUSTED: "balanced accuracy, prior-adjusted",
    "accuracy": "accuracy",
}


def train(way: str, data_dir: str, size: tuple[int, int], fold: int, seed: int) -> list[dict]:
    """Train one way in this process.

    Returns:
        A row per epoch: way, epoch, cpu_seconds of training so far, and the test scores.
    """
    import keras
    import numpy as np
    from bench_training import build_net

    from helpers import (
        calibration,
        dataset,
        images,
        models,
        pipelines,
        recipes,
        scores,
        splits,
        training,
    )

    name, epochs, schedule = WAYS[way]
    given = dict.fromkeys(recipes.NAMES) | {"MODEL": name, "EPOCHS": epochs, "SCHEDULE": schedule}
    recipe = recipes.choose_recipe(given)
    table = splits.split_by_lesion(dataset.read_dataset(data_dir), fold)
    pixels = np.asarray(images.load_images(table, size, cache_dir="data/cache"))
    labels = table["label"].to_numpy()
    train_rows, validation, test = (np.flatnonzero(table["split"] == p) for p in splits.PARTS)

    training.make_reproducible(seed)
    keras.mixed_precision.set_global_policy(training.choose_precision())
    net = build_net(size=size) if name == "cnn" else models.build_net(name, size)
    steps = pipelines.count_steps(len(train_rows), recipe.batch_size)
    rate = training.make_learning_rate(recipe.learning_rate, recipe.schedule, steps * epochs)
    net.compile(
        training.make_optimizer(net, rate, recipe.weight_decay, recipe.optimizer),
        "sparse_categorical_crossentropy",
        jit_compile=training.choose_jit_compile(),
    )
    rows, spent = [], 0.0

    class Score(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.process_time()

        def on_epoch_end(self, epoch, logs=None):
            nonlocal spent
            spent += time.process_time() - self.start
            answers = {
                part: pipelines.predict_rows(net, pixels, where, 256, views=recipe.views)
                for part, where in (("val", validation), ("test", test))
            }
            adjusted = calibration.adjust_prior(labels[validation], answers["val"], answers["test"])
            found = scores.score_predictions(labels[test], answers["test"])
            found[PRIOR_ADJUSTED] = scores.score_predictions(labels[test], adjusted)[
                "balanced_accuracy"
            ]
            rows.append({"way": way, "epoch": epoch + 1, "cpu_seconds": spent, **found})
            print(f"{way}: epoch {epoch + 1}, AUC {found['auc']:.3f}", file=sys.stderr, flush=True)

    batches = pipelines.training_batches(
        pixels, labels, train_rows, recipe.batch_size,
        seed=seed, epochs=range(epochs), augment=recipe.augment,
    )  # fmt: skip
    net.fit(
        batches, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=[Score()], shuffle=False
    )
    return rows


def compare(table: pd.DataFrame) -> list[str]:
    """Say when each compact way has passed the original's best, of each score and of all."""
    original = table[table["way"] == next(iter(WAYS))].set_index("epoch")
    best = original[list(SCORES)].max()
    reached = original.loc[original[list(SCORES)].idxmax(), "cpu_seconds"].to_numpy()
    lines = [
        f"original at its best: {told} {best[name]:.3f} after {seconds / 60:.1f} CPU minutes"
        for (name, told), seconds in zip(SCORES.items(), reached, strict=True)
    ]
    for way, rows in table.groupby("way", sort=False):
        if way == original["way"].iloc[0]:
            continue
        for (name, told), seconds in zip(SCORES.items(), reached, strict=True):
            passed = rows[rows[name] > best[name]]
            lines.append(
                f"{way}: {told} "
                + (
                    f"passed after {passed['cpu_seconds'].iloc[0] / 60:.1f} CPU minutes, "
                    f"{passed['cpu_seconds'].iloc[0] / seconds:.2f} of that time"
                    if len(passed)
                    else f"not passed ({rows[name].max():.3f})"
                )
            )
    return lines


def plot(table: pd.DataFrame, path: Path) -> None:
    """Draw three scores against CPU minutes, a curve per way."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axs = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axes, name in zip(axs, ("auc", PRIOR_ADJUSTED, "accuracy"), strict=True):
        for way, rows in table.groupby("way", sort=False):
            minutes = rows["cpu_seconds"] / 60
            axes.plot(minutes, rows[name], label=way, marker=".", markersize=4, linewidth=1.2)
        axes.set(title=SCORES[name], xlabel="CPU minutes of training")
    axs[0].set_ylim(bottom=0.8)
    axs[0].legend(frameon=False, fontsize=8)
    sns.despine(figure)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train the ways in turn, then compare and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=[28, 28])
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        size = tuple(options.size)
        rows = train(options.one, options.data_dir, size, options.fold, options.seed)
        print(json.dumps(rows))
        return
    options.out_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
    table = pd.DataFrame(rows)
    table.to_csv(options.out_dir / "quality.csv", index=False, float_format="%.5g")
    plot(table, options.out_dir / "quality.png")
    print(*compare(table), sep="\n")


if __name__ == "__main__":
    main()
