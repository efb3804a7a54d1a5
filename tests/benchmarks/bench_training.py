"""Training speed of the default net: the plain way, this project's way, the machine's limit.

    python tests/benchmarks/bench_training.py [--rounds 3]

The plain way is float32 pixels in memory, `compile("adam", …)` and `fit`. Every way runs in a
process of its own, in turn, round after round; the ratios are taken within a round. The limit is
what one 4096 x 4096 x 4096 matrix product of the same dtype reaches in the same process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

IMAGES, BATCH, HEIGHT, WIDTH = 256, 32, 75, 100
FORWARD, STEP = 544e6, 1582e6  # multiply-adds per image at 75x100
MATRIX = 4096
ROOT = Path(__file__).parents[1]


def build_net(batch_norm: bool = False, size: tuple[int, int] = (HEIGHT, WIDTH)):
    """Build the default net from the cell of the main notebook that defines it."""
    import keras
    import nbformat
    from keras import layers

    from helpers.data import reading as dataset
    from helpers.nets import models
    from helpers.training import devices

    book = nbformat.read(ROOT / "Skin_Cancer_Detection.ipynb", as_version=4)
    (cell,) = [c for c in book.cells if c.cell_type == "code" and "keras.Sequential" in c.source]
    values = {"IMAGE_HEIGHT": size[0], "IMAGE_WIDTH": size[1], "BATCH_NORM": batch_norm}
    values |= {"MODEL": "cnn", "strategy": devices.choose_strategy()}
    space = {"keras": keras, "layers": layers, "models": models, "dataset": dataset, **values}
    exec(cell.source, space)
    return space["model"]


def time_way(way: str) -> dict:
    """Time one way in this process.

    Args:
        way: "plain", "ours", or a dtype policy for our way with that precision.

    Returns:
        Images per second of training and prediction, and multiply-adds per second of training
        and of the matrix product.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from helpers.training import batches as pipelines
    from helpers.training import fit as training

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = rng.integers(0, 7, IMAGES)
    loss = "sparse_categorical_crossentropy"
    steps = pipelines.count_steps(IMAGES, BATCH)
    rows = np.arange(IMAGES)
    if way == "plain":
        net = build_net()
        model = keras.Sequential([keras.Input((HEIGHT, WIDTH, 3)), *net.layers[1:]])
        model.compile("adam", loss, metrics=["accuracy"])
        data = {"x": pixels.astype("float32") / 255, "y": labels, "batch_size": BATCH}
        to_predict = data["x"]
    else:
        training.make_reproducible(0)
        keras.mixed_precision.set_global_policy(
            training.choose_precision("auto" if way == "ours" else way)
        )
        model = build_net()
        metrics = ["accuracy", training.BalancedAccuracy(7)]
        model.compile("adam", loss, metrics=metrics, jit_compile=training.choose_jit_compile())
        batches = pipelines.training_batches(pixels, labels, rows, BATCH, seed=0, epochs=range(9))
        data = {"x": batches, "steps_per_epoch": steps, "shuffle": False}
        to_predict = pipelines.evaluation_batches(pixels, labels, rows, BATCH)
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(time.perf_counter() - self.start)

    model.fit(**data, epochs=4, verbose=0, callbacks=[Clock()])
    model.predict(to_predict, verbose=0)
    start = time.perf_counter()
    model.predict(to_predict, verbose=0)
    predicting = time.perf_counter() - start
    rate = IMAGES / statistics.median(seconds[1:])  # the first epoch traces and warms up
    return {
        "way": way,
        "dtype": model.layers[1].compute_dtype,
        "training": rate,
        "prediction": IMAGES / predicting,
        "multiply_adds": rate * STEP,
        "limit": time_matrix(tf.bfloat16 if "16" in model.layers[1].compute_dtype else tf.float32),
    }


def time_matrix(dtype) -> float:
    """Return the multiply-adds per second of a square matrix product."""
    import tensorflow as tf

    matrix = tf.cast(tf.random.normal((MATRIX, MATRIX)), dtype)
    multiply = tf.function(lambda a: tf.matmul(a, a))
    multiply(matrix).numpy()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(matrix).numpy()
        seconds.append(time.perf_counter() - start)
    return MATRIX**3 / statistics.median(seconds)


def main() -> None:
    """Run the ways in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["plain", "float32", "ours"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(time_way(options.one)))
        return
    rounds = []
    for number in range(options.rounds):
        results = {}
        for way in options.ways:
            command = [sys.executable, __file__, "--one", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[way] = json.loads(done.stdout.splitlines()[-1])
        rounds.append(results)
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)

    def median(way, value):
        return statistics.median(value(results, results[way]) for results in rounds)

    print("| way | dtype | training images/s | of plain | prediction images/s | share of limit |")
    print("|---|---|---|---|---|---|")
    for way in options.ways:
        print(
            f"| {way} | {rounds[0][way]['dtype']} | {median(way, lambda _, r: r['training']):.1f} "
            f"| {median(way, lambda a, r: r['training'] / a['plain']['training']):.2f} "
            f"| {median(way, lambda _, r: r['prediction']):.0f} "
            f"| {median(way, lambda _, r: r['multiply_adds'] / r['limit']):.2f} |"
        )


if __name__ == "__main__":
    main()
