"""What tests of runs use: a run made in no time, of a model that is not one; a notebook."""

from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd

from helpers.evaluation.predictions import make_predictions
from helpers.runs import folder

CLASSES = ("a", "b")
IMAGE = Path(__file__).parents[2] / folder.BOX / "figures/history.png"
PARAMETERS = {"DATA_DIR": "", "IMAGE_HEIGHT": 28, "IMAGE_WIDTH": 28}


class FakeModel:
    """Stands for a Keras model of Keras' own layers."""

    dtype_policy = SimpleNamespace(name="float32")

    def save(self, path):
        path.write_bytes(b"weights")

    def count_params(self):
        return 7


def make_table(path, ids="000"):
    """Make a table whose images are the file `path`."""
    names = [f"{ids}{i}" for i in range(1, 5)]
    table = pd.DataFrame({"image_id": names, "dx": list("aaba"), "label": [0, 0, 1, 0]})
    lesions = ["NA", *names[1:]]
    sexes = ["male", "female", "female", "male"]
    split = ["train", "val", "test", "test"]
    return table.assign(lesion_id=lesions, group=lesions, split=split, sex=sexes, path=str(path))


def save(run_dir, parameters=PARAMETERS, ids="000", model=None, **more):
    table = make_table(IMAGE, ids)
    index = pd.RangeIndex(1, 3, name="epoch")
    scores = pd.DataFrame({"value": [0.5, np.nan], "low": 0.25, "high": np.float64(0.75)})
    return folder.save_run(
        run_dir,
        parameters=parameters,
        model=model or FakeModel(),
        table=table,
        history=pd.DataFrame({"loss": [0.75, 0.5], "seconds": [2.0, 3.0]}, index),
        predictions=make_predictions(
            table[1:], np.array([[0.9, 0.1], [0.25, 0.75], [1 / 3, 2 / 3]]), CLASSES
        ),
        scores={"test": scores.set_axis(["accuracy", "auc"])},
        more=more,
    )


def make_notebook(path, *sources):
    """Write a notebook of code cells; the first one holds the parameters."""
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), path)
    return str(path)
