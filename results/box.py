"""Make a run the model that comes with the project: its weights rounded to half the bytes.

python results/box.py runs/lite0/FOLD=0 models/ham10000

The weights are rounded to float16, which Keras turns into float32 when it loads them, and the
validation and test images are answered anew: all scores in the folder are of the rounded weights.
"""

import io
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from helpers.data import files, images, reading, splits
from helpers.evaluation import calibration, predictions, scores
from helpers.plots.evaluation import plot_confusion
from helpers.runs import folder
from helpers.training import batches

WEIGHTS = "model.weights.h5"


def round_weights(source: Path, target: Path) -> None:
    """Write a .keras file anew with its weights as float16."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(zipfile.ZipInfo(name), _round(content) if name == WEIGHTS else content)


def _round(content: bytes) -> bytes:
    written = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as old, h5py.File(written, "w") as new:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                made = new.require_group(name)
            else:
                values = item[()].astype("f2") if item.dtype == np.float32 else item[()]
                packed = (
                    {"shuffle": True, "compression": "gzip", "compression_opts": 9}
                    if values.size > 500
                    else {}
                )
                made = new.create_dataset(name, data=values, **packed)
            made.attrs.update(item.attrs)

        old.visititems(copy)
    return written.getvalue()


def main(run_dir: str, box: str) -> None:
    """Write the folder."""
    run, target = folder.load_run(run_dir), Path(box)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run.path / "figures", target / "figures", dirs_exist_ok=True)
    files.replace_file(target / folder.MODEL, lambda path: round_weights(run.model_path, path))
    parameters = run.metrics["parameters"] | {"RUN_DIR": box}
    size = parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"]
    table = reading.read_dataset(files.resolve_path(parameters["DATA_DIR"]))
    pixels = images.load_images(table, size)
    table = splits.split_by_lesion(table, parameters["FOLD"])
    held_out = np.concatenate([np.flatnonzero(table["split"] == part) for part in ("val", "test")])
    model = folder.load_model(folder.Run(target, run.metrics, *[None] * 2, target / folder.MODEL))
    answers = batches.predict_rows(model, pixels, held_out, views=parameters["VIEWS"])
    found = predictions.make_predictions(
        table.iloc[held_out], answers.astype(float).round(5), run.classes
    )
    ids = [p.table["image_id"].tolist() for p in (found, run.predictions)]
    files.raise_problems(run_dir, [] if ids[0] == ids[1] else ["other images than the run has"])
    change = np.abs(found.probabilities - run.predictions.probabilities)
    print(f"probabilities change by {change.max():.4f} at most, {change.mean():.6f} on average")
    test = found.part("test")
    adjusted = calibration.adjust_prior(found.part("val"), test)
    metrics = run.metrics | {"parameters": parameters}
    metrics["scores"] = {"test": scores.score_with_intervals(test, adjusted)}
    folder.save_figures(target, {"confusion": plot_confusion(test)})
    for path in (target / "figures").glob("*.png"):
        Image.open(path).quantize(64).save(path, optimize=True)
    folder.write_run(target, metrics, run.history, found, [folder.MODEL])


if __name__ == "__main__":
    main(*sys.argv[1:])
