"""Images a second that `predict` answers, beside decoding and model.predict alone, by hand.

python tests/benchmarks/bench_predict.py RUN_DIR FOLDER [ROUNDS]

All three are timed in turn in every round, so that other work on the machine slows down all. What
decoding and the net allow is taken to be one after the other: on a processor both want all cores.
The net is asked as often as `predict` asks it, once for each view. The loading of the nets and one
warming call are not counted.
"""

import sys
import time

import numpy as np

from helpers.data import images
from helpers.runs import folder, own_images, predict
from helpers.training.batches import list_views, turn_images


def main(run_dir: str, image_dir: str, rounds: int) -> None:
    """Time the three in turn and print medians."""
    run = folder.load_run(run_dir)
    classifier, model = predict.load_classifier(run), folder.load_model(run)
    paths, _ = own_images.find_images([image_dir])
    size = classifier.size

    def decode():
        return np.stack([decoding.result() for decoding in images.decode_images(paths, size)])

    pixels = decode()
    views = [turn_images(pixels, view) for view in list_views(classifier.views, size)]
    timed = {
        "decoding": decode,
        "model.predict": lambda: [
            model.predict(turned, batch_size=predict.BATCH, verbose=0) for turned in views
        ],
        "predict": lambda: predict.predict_images(classifier, paths),
    }
    seconds = {name: [] for name in timed}
    for number in range(rounds + 1):  # the first round builds and warms up
        for name, call in timed.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    print(f"{len(paths)} images to {size[0]}x{size[1]}, {len(views)} views, {rounds} rounds")
    for name, values in seconds.items():
        print(f"{name:<14} {len(paths) / np.median(values):8.0f} images/s (median)")
    decoding, predicting, both = map(np.array, seconds.values())
    ratios = (decoding + predicting) / both
    print(f"predict reaches {np.median(ratios):.2f} of what the two allow, one after the other")


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]) if len(sys.argv) > 3 else 5)
