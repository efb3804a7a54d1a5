"""How many images a second helpers.predict answers, beside decoding and model.predict alone.

Run by hand: python tests/benchmarks/bench_predict.py RUN_DIR FOLDER [--rounds 5]
All three are timed in turn in every round, so that other work on the machine slows down all. What
decoding and the net allow is taken to be one after the other: on a processor both want all cores.
The reading of novelty.npz, the loading of the nets and one warming call are not counted.
"""

import argparse
import statistics
import time

import numpy as np

from helpers.data import images
from helpers.runs import predict
from helpers.runs.folder import load_run


def time_call(function, *arguments, **options):
    """Give the seconds of a call and its result."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def decode(paths, size):
    return np.stack([decoding.result() for decoding in images.decode_images(paths, size)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir")
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    classifier = predict.load_classifier([load_run(options.run_dir)])
    paths = predict.find_images([options.folder])
    model, size = classifier.members[0].model, classifier.size
    print(f"{len(paths)} images to {size[0]}x{size[1]}, {options.rounds} rounds")

    pixels = decode(paths, size)
    model.predict(pixels, batch_size=predict.BATCH, verbose=0)
    predict.predict_images(classifier, paths)
    seconds = {"decoding": [], "model.predict": [], "helpers.predict": []}
    for _ in range(options.rounds):
        seconds["decoding"].append(time_call(decode, paths, size)[0])
        spent, _ = time_call(model.predict, pixels, batch_size=predict.BATCH, verbose=0)
        seconds["model.predict"].append(spent)
        seconds["helpers.predict"].append(time_call(predict.predict_images, classifier, paths)[0])
    for name, values in seconds.items():
        print(f"{name:<16} {len(paths) / statistics.median(values):8.0f} images/s (median)")
    ratios = [
        (decoding + predicting) / both
        for decoding, predicting, both in zip(*seconds.values(), strict=True)
    ]
    print(
        f"ratio            {statistics.median(ratios):8.2f} of what decoding and model.predict "
        f"allow (rounds {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
