"""Speed of the train-time layers against Keras' own, by hand.

python tests/benchmarks/bench_layers.py [ROUNDS]

In one run and in turn, so that a busy machine slows all alike: the original and the compact net at
75x100, training and prediction, with Keras' layers and with those of helpers/training/layers.py, in
the precision that `fit.set_up` takes; the original net as a user of plain Keras would
train it (float32, compile("adam"), arrays in memory); PyTorch on the original net where torch is
installed; and a product of two 4096 x 4096 matrices. Medians over the rounds, images/s. The last
line holds the medians of the ratios: compact and original ours over Keras', plain ours over plain
Keras.
"""

import importlib.util
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # before Keras

import keras
import numpy as np
import tensorflow as tf

from helpers.nets.models import build_net
from helpers.training import fit
from helpers.training.batches import evaluation_batches
from helpers.training.layers import speed_up

SIZE = (75, 100)
IMAGES = {"compact": 512, "original": 128}
BATCH = {"compact": 64, "original": 32}


def make_arrays(images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (images, *SIZE, 3), np.uint8), rng.integers(0, 7, images)


def prepare(model: keras.Model, kind: str) -> dict:
    """Compile a net and return what is timed: a training and a prediction of its images."""
    pixels, labels = make_arrays(IMAGES[kind])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    batches = evaluation_batches(pixels, labels, np.arange(len(labels)), BATCH[kind])
    return {
        "training": lambda: model.fit(batches, verbose=0, shuffle=False),
        "prediction": lambda: model.predict(batches, verbose=0),
    }


def prepare_plain() -> dict:
    """The original net as plain Keras trains it: float32, scaled arrays in memory."""
    keras.mixed_precision.set_global_policy("float32")
    model = build_net("original", SIZE)
    model.compile("adam", "sparse_categorical_crossentropy")
    pixels, labels = make_arrays(IMAGES["original"])
    return {
        "training": lambda: model.fit(pixels, labels, batch_size=BATCH["original"], verbose=0),
        "prediction": lambda: model.predict(pixels, batch_size=BATCH["original"], verbose=0),
    }


def prepare_torch() -> dict:
    """The original net in PyTorch, float32."""
    import torch
    from torch import nn

    blocks, channels = [], 3
    for filters in (256, 128, 64):
        blocks += [nn.Conv2d(channels, filters, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
        channels = filters
    dense = [nn.Flatten(), nn.Linear(4480, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU()]
    net = nn.Sequential(*blocks, *dense, nn.Linear(128, 7))
    optimizer, loss = torch.optim.Adam(net.parameters()), nn.CrossEntropyLoss()
    pixels, labels = make_arrays(IMAGES["original"])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(labels)

    def train():
        net.train()
        for start in range(0, len(x), BATCH["original"]):
            optimizer.zero_grad()
            part = slice(start, start + BATCH["original"])
            loss(net(x[part]), y[part]).backward()
            optimizer.step()

    def predict():
        net.eval()
        with torch.no_grad():
            for start in range(0, len(x), BATCH["original"]):
                net(x[start : start + BATCH["original"]])

    return {"training": train, "prediction": predict}


def main(rounds: int) -> None:
    """Time everything in turn and print the table."""
    precision = fit.set_up(0)
    timed, images = {}, {}
    for kind, build in {
        "compact": lambda: build_net("compact", SIZE),
        "original": lambda: build_net("original", SIZE),
    }.items():
        for name, change in {"Keras": lambda net: net, "ours": speed_up}.items():
            for what, run in prepare(change(build()), kind).items():
                timed[kind, name, what], images[kind, name, what] = run, IMAGES[kind]
    others = {"plain Keras": prepare_plain}
    if importlib.util.find_spec("torch"):
        others["PyTorch"] = prepare_torch
    for name, make in others.items():
        for what, run in make().items():
            timed["original", name, what], images["original", name, what] = run, IMAGES["original"]
    matrix = tf.random.stateless_normal((4096, 4096), [0, 0])
    seconds = {key: [] for key in [*timed, "product"]}
    for number in range(rounds + 1):  # the first round builds and warms up
        for key, run in [*timed.items(), ("product", lambda: (matrix @ matrix).numpy())]:
            start = time.perf_counter()
            run()
            if number:
                seconds[key].append(time.perf_counter() - start)
    print(f"{precision}, {os.cpu_count()} cores, {rounds} rounds; images/s, medians")
    for key, values in seconds.items():
        if key == "product":
            print(f"4096 x 4096 product: {2 * 4096**3 / np.median(values) / 1e9:.0f} GFLOP/s")
        else:
            print(f"{' '.join(key):<28} {images[key] / np.median(values):8.1f}")
    speed = {key: 1 / np.array(values) for key, values in seconds.items()}
    ratios = {
        kind: np.median(speed[kind, "ours", "training"] / speed[kind, "Keras", "training"])
        for kind in ("compact", "original")
    }
    ratios["plain"] = np.median(
        speed["original", "ours", "training"] / speed["original", "plain Keras", "training"]
    )
    print(" ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
