"""Speed of each MODEL in training and prediction, beside the machine's matrix rate.

    python tests/benchmarks/bench_models.py [--rounds 3] [--models cnn compact …]

Every model runs in a process of its own, in turn, round after round; shares are taken within a
process. Multiply-adds are those of convolutions and dense layers; a training step is counted as
three forward passes. The limit is what one 4096 x 4096 x 4096 matrix product of the same dtype
reaches in the same process. Where PyTorch is installed, the default net is timed there too, as
`torch`: channels last, bfloat16 where the processor has it. Prints the README's table.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bench_training import build_net, time_matrix

IMAGES, BATCH, HEIGHT, WIDTH = 256, 32, 75, 100
# ConvNeXtTiny is left out unless it is named: without a GPU a step takes many seconds.
NETS = ("cnn", "compact", "MobileNetV3Small", "EfficientNetV2B0")
TORCH = "torch"
STEP = 3  # forward passes in a training step: the gradients of inputs and of weights cost one each


def time_model(name: str) -> dict:
    """Time a model in this process, trained as the main notebook trains it.

    Returns:
        parameters, multiply_adds (forward, per image), training and prediction (images per
        second), limit (multiply-adds per second of the matrix product), dtype.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from helpers.nets import models
    from helpers.training import batches as pipelines
    from helpers.training import fit as training
    from helpers.training import recipes

    training.make_reproducible(0)
    keras.mixed_precision.set_global_policy(training.choose_precision())
    net = build_net() if name == "cnn" else models.build_net(name, (HEIGHT, WIDTH), "none")
    recipe = recipes.choose_recipe(dict.fromkeys(recipes.NAMES) | {"MODEL": name})
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels, rows = rng.integers(0, 7, IMAGES), np.arange(IMAGES)
    net.compile(
        training.make_optimizer(net, 0.001, recipe.weight_decay, recipe.optimizer),
        "sparse_categorical_crossentropy",
        metrics=["accuracy", training.BalancedAccuracy(7)],
        jit_compile=training.choose_jit_compile(),
    )
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(time.perf_counter() - self.start)

    batches = pipelines.training_batches(
        pixels, labels, rows, BATCH, seed=0, epochs=range(4), augment=recipe.augment
    )
    steps = pipelines.count_steps(IMAGES, BATCH)
    net.fit(batches, steps_per_epoch=steps, epochs=4, verbose=0, callbacks=[Clock()], shuffle=False)
    pipelines.predict_rows(net, pixels, rows, BATCH)
    start = time.perf_counter()
    pipelines.predict_rows(net, pixels, rows, BATCH)
    predicting = time.perf_counter() - start
    dtype = net.layers[1].compute_dtype
    return {
        "parameters": net.count_params(),
        "multiply_adds": models.count_multiply_adds(net),
        "training": IMAGES / statistics.median(seconds[1:]),  # the first epoch traces
        "prediction": IMAGES / predicting,
        "limit": time_matrix(tf.bfloat16 if "16" in dtype else tf.float32),
        "dtype": dtype,
    }


def time_torch() -> dict:
    """Time the default net in PyTorch, as `time_model` does."""
    import torch
    from torch import nn

    from helpers.training import fit as training

    half = training._has_native_bfloat16()
    dtype = torch.bfloat16 if half else torch.float32
    torch.manual_seed(0)
    widths = (3, 256, 128, 64)
    blocks = [
        part
        for before, after in itertools.pairwise(widths)
        for part in (nn.Conv2d(before, after, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25))
    ]
    head = [nn.Flatten(), nn.Linear(4480, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU()]
    net = nn.Sequential(*blocks, *head, nn.Linear(128, 7)).to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (IMAGES, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    labels = torch.randint(0, 7, (IMAGES,))
    optimizer, loss = torch.optim.Adam(net.parameters(), 0.001), nn.CrossEntropyLoss()

    def run_epoch(train: bool) -> float:
        start = time.perf_counter()
        for images, truth in zip(pixels.split(BATCH), labels.split(BATCH), strict=True):
            images = (images.float() / 255).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype, enabled=half), torch.set_grad_enabled(train):
                answer = net(images)
            if train:
                optimizer.zero_grad()
                loss(answer.float(), truth).backward()
                optimizer.step()
        return time.perf_counter() - start

    seconds = [run_epoch(True) for _ in range(4)][1:]
    net.eval()
    run_epoch(False)
    predicting = run_epoch(False)
    a = torch.randn(4096, 4096, dtype=dtype)
    products = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        products.append(time.perf_counter() - start)
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "multiply_adds": sum(
            layer.weight.numel() * places
            for layer, places in zip(
                (x for x in net if isinstance(x, nn.Conv2d | nn.Linear)),
                (73 * 98, 34 * 47, 15 * 21, 1, 1, 1),
                strict=True,
            )
        ),
        "training": IMAGES / statistics.median(seconds),
        "prediction": IMAGES / predicting,
        "limit": 4096**3 / statistics.median(products[1:]),
        "dtype": str(dtype).removeprefix("torch."),
    }


def main() -> None:
    """Run the models in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    torch = [TORCH] if find_spec("torch") else []
    parser.add_argument(
        "--models", nargs="+", default=[*NETS, *torch], choices=[*NETS, "ConvNeXtTiny", TORCH]
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(time_torch() if options.one == TORCH else time_model(options.one)))
        return
    found = {name: [] for name in options.models}
    for number in range(options.rounds):
        for name in options.models:
            command = [sys.executable, __file__, "--one", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    print(
        f"{HEIGHT}x{WIDTH} pixels, batch {BATCH}, {os.cpu_count()} cores, {options.rounds} rounds"
    )
    print(
        "| net | parameters | M multiply-adds per image | dtype | training images/s | share of "
        "matrix rate | prediction images/s | share |\n|---|---|---|---|---|---|---|---|"
    )
    for name, rounds in found.items():
        first = rounds[0]

        def median(value, rounds=rounds):
            return statistics.median(value(r) for r in rounds)

        print(
            f"| {name} | {first['parameters']:,} | {first['multiply_adds'] / 1e6:.0f} "
            f"| {first['dtype']} | {median(lambda r: r['training']):.0f} "
            f"| {median(lambda r: STEP * r['multiply_adds'] * r['training'] / r['limit']):.2f} "
            f"| {median(lambda r: r['prediction']):.0f} "
            f"| {median(lambda r: r['multiply_adds'] * r['prediction'] / r['limit']):.2f} |"
        )


if __name__ == "__main__":
    main()
