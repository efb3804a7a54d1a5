"""Speed of each net in each precision, beside the machine's matrix rate, by hand.

    python tests/benchmarks/bench_nets.py [--rounds 3] [--nets original compact …]

Every net and precision runs in a process of its own, in turn, round after round; it is trained as
the notebooks train it, at 75x100 pixels. Multiply-adds are those of convolutions and dense layers;
a training step counts as three forward passes. The rate is what a product of two 4096 x 4096
matrices reaches in the same process and precision. Marked is the precision that "auto" takes: the
best of a net should be marked.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

IMAGES, SIZE = 256, (75, 100)
PRECISIONS = ("float32", "mixed_bfloat16")
# ConvNeXtTiny is left out unless it is named: without a GPU a step takes many seconds.
NETS = ("original", "compact", "EfficientNetLite0", "MobileNetV3Small", "EfficientNetV2B0")
# As the recipes have it: batch size, optimizer, augmentation.
RECIPES = {"original": (32, "adam", False), "compact": (64, "muon", True)}
PRETRAINED = (32, "adam", True)


def time_net(name: str, precision: str) -> dict:
    """Time a net in this process.

    Returns:
        parameters, multiply_adds (forward, per image), training and prediction (images per
        second), rate (multiply-adds per second of the matrix product), is_auto.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from helpers import nets, training

    depthwise = name in nets.models.NETS
    is_auto = training.fit.set_up(0, "auto", depthwise) == precision
    training.fit.set_up(0, precision)
    batch_size, optimizer, augment = RECIPES.get(name, PRETRAINED)
    net = nets.models.build_net(name, SIZE)
    net = training.layers.speed_up(net)
    net.compile(
        training.optimizers.make_optimizer(0.001, optimizer, 0.02),
        "sparse_categorical_crossentropy",
        metrics=["accuracy", training.fit.BalancedAccuracy(7)],
        jit_compile=training.fit.choose_jit_compile(),
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, *SIZE, 3), dtype=np.uint8)
    labels, rows = rng.integers(0, 7, IMAGES), np.arange(IMAGES)
    batches = training.batches.training_batches(
        pixels, labels, rows, batch_size, seed=0, augment=augment
    )
    steps = training.batches.count_steps(IMAGES, batch_size)
    moments = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: moments.append(time.perf_counter())
    )
    options = {"callbacks": [clock], "shuffle": False, "verbose": 0}
    net.fit(batches, steps_per_epoch=steps, epochs=4, **options)
    for _ in range(2):  # the first call builds
        start = time.perf_counter()
        training.batches.predict_rows(net, pixels, rows)
        predicting = time.perf_counter() - start
    dtype = tf.bfloat16 if "16" in precision else tf.float32
    matrix = tf.cast(tf.random.stateless_normal((4096, 4096), [0, 0]), dtype)
    products = []
    for _ in range(5):
        start = time.perf_counter()
        tf.reduce_sum(matrix @ matrix).numpy()
        products.append(time.perf_counter() - start)
    return {
        "parameters": net.count_params(),
        "multiply_adds": nets.models.count_multiply_adds(net),
        "training": IMAGES / statistics.median(np.diff(moments)),
        "prediction": IMAGES / predicting,
        "rate": 4096**3 / statistics.median(products),
        "is_auto": is_auto,
    }


def main() -> None:
    """Run the nets in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(time_net(*options.one)))
        return
    found = {(name, precision): [] for name in options.nets for precision in PRECISIONS}
    for number in range(options.rounds):
        for key, results in found.items():
            command = [sys.executable, __file__, "--one", *key]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    print(f"{SIZE[0]}x{SIZE[1]} pixels, {os.cpu_count()} cores, {options.rounds} rounds; images/s")
    print("| net | parameters | M multiply-adds | precision | training | of rate | prediction |")
    print("|---|---|---|---|---|---|---|")
    for (name, precision), rounds in found.items():
        first = rounds[0]
        speeds = [statistics.median(r[what] for r in rounds) for what in ("training", "prediction")]
        shares = [3 * r["multiply_adds"] * r["training"] / r["rate"] for r in rounds]
        print(
            f"| {name} | {first['parameters']:,} | {first['multiply_adds'] / 1e6:.0f} "
            f"| {precision}{' (auto)' * first['is_auto']} | {speeds[0]:.0f} "
            f"| {statistics.median(shares):.2f} | {speeds[1]:.0f} |"
        )


if __name__ == "__main__":
    main()
