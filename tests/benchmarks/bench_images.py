"""How fast, how exact and how lean load_images is beside a plain loop over Pillow.

Run by hand: python tests/benchmarks/bench_images.py DATA_DIR [--size 75 100] [--rounds 7]
Both are timed in turn in every round, so that other work on the machine slows down both.
"""

import argparse
import resource  # not on Windows
import tempfile
import time
from statistics import median

import numpy as np
from PIL import Image

from helpers.data.images import load_images
from helpers.data.reading import read_dataset


def time_call(function, *args):
    """Give the wall-clock and the processor seconds of a call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*args)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def load_plainly(table, size):
    return [np.asarray(Image.open(path).resize(size[::-1])) for path in table["path"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir")
    parser.add_argument("--size", type=int, nargs=2, default=(75, 100), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    size = tuple(options.size)
    table = read_dataset(options.data_dir)
    print(f"{len(table)} images to {size[0]}x{size[1]}, {options.rounds} rounds")

    plain, first, second = [], [], []
    for _ in range(options.rounds):
        *seconds, expected = time_call(load_plainly, table, size)
        plain.append(seconds)
        with tempfile.TemporaryDirectory() as folder:
            first.append(time_call(load_images, table, size, folder)[:2])
            *seconds, images = time_call(load_images, table, size, folder)
            second.append(seconds)
            pairs = zip(images, expected, strict=True)
            difference = np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs])
            del images

    (plain_wall, plain_cpu), (first_wall, first_cpu) = (
        [median(column) for column in zip(*seconds, strict=True)] for seconds in (plain, first)
    )
    share = median(wall for wall, _ in second) / first_wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"plain loop         {len(table) / plain_wall:7.0f} images/s")
    print(f"load_images        {len(table) / first_wall:7.0f} images/s")
    print(
        f"ratio              {plain_wall / first_wall:7.2f}, processor {plain_cpu / first_cpu:.2f}"
    )
    print(f"second call        {share:7.1%} of the first")
    print(f"difference         {difference:7.2f} grey levels on average from Pillow's bicubic")
    print(f"peak memory        {peak:7.0f} MiB (Linux), of the process with both")


if __name__ == "__main__":
    main()
