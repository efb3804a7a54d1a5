"""How fast, how exact and how lean load_images is beside a plain loop over Pillow.

Run by hand: python tests/benchmarks/bench_images.py DATA_DIR [--size 75 100] [--rounds 7]
Both are timed in turn in every round, so that other work on the machine slows down both.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from helpers.data.images import load_images
from helpers.data.reading import read_dataset

try:
    import resource
except ImportError:  # Windows
    resource = None


def time_call(function, *args):
    """Gives the wall-clock and the processor seconds of a call, and its result."""
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

    plain, first, second, plain_cpu, first_cpu = [], [], [], [], []
    for _ in range(options.rounds):
        wall, cpu, expected = time_call(load_plainly, table, size)
        plain.append(wall)
        plain_cpu.append(cpu)
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu, _ = time_call(load_images, table, size, folder)
            first.append(wall)
            first_cpu.append(cpu)
            wall, _, images = time_call(load_images, table, size, folder)
            second.append(wall)
            pairs = zip(images, expected, strict=True)
            difference = np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs])
            del images

    ratios = [slow / fast for slow, fast in zip(plain, first, strict=True)]
    cpu_ratio = statistics.median(plain_cpu) / statistics.median(first_cpu)
    share = statistics.median(second) / statistics.median(first)
    print(f"plain loop         {len(table) / statistics.median(plain):7.0f} images/s")
    print(f"load_images        {len(table) / statistics.median(first):7.0f} images/s")
    print(
        f"ratio              {statistics.median(ratios):7.2f} "
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f}; of the fastest of each, least disturbed "
        f"by other work, {min(plain) / min(first):.2f}; processor time alone {cpu_ratio:.2f})"
    )
    print(f"second call        {share:7.1%} of the first")
    print(f"difference         {difference:7.2f} grey levels on average from Pillow's bicubic")
    if resource:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"peak memory        {peak:7.0f} MiB (Linux), of the process with both")


if __name__ == "__main__":
    main()
