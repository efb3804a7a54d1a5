"""A run made by hand in a second: a tiny net that was never trained, on drawn colours."""

import keras
import numpy as np
import pandas as pd
from keras import layers
from PIL import Image

from helpers.data import images, reading
from helpers.evaluation import novelty
from helpers.evaluation.predictions import make_predictions
from helpers.runs import folder

SIZE = (16, 24)


def make_images(data_dir, seed=0, per_class=30):
    """Write a folder in the layout of HAM10000: per class a colour, with some noise."""
    rng = np.random.default_rng(seed)
    data_dir.mkdir(parents=True)
    rows = []
    for k, dx in enumerate(reading.CLASSES):
        colour = np.random.default_rng(k).integers(80, 200, 3)
        for _ in range(per_class):
            name = f"ISIC_98{len(rows):05d}"
            picture = colour + rng.normal(0, 12, 3) + rng.normal(0, 6, (*SIZE, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(data_dir / f"{name}.png")
            rows.append({"lesion_id": f"HAM_98{len(rows):05d}", "image_id": name, "dx": dx})
    table = pd.DataFrame(rows).assign(dx_type="histo", age=50.0, sex="female", localization="back")
    table.to_csv(data_dir / "HAM10000_metadata.csv", index=False)
    return data_dir


def make_model(seed=0, size=SIZE, classes=reading.CLASSES, dtype="float32"):
    """Build the net; its last layer follows the mean colour, so it is not blind."""
    keras.utils.set_random_seed(seed)
    last = layers.Dense(len(classes), "softmax", dtype="float32", name="_".join(classes))
    model = keras.Sequential(
        [
            keras.Input((*size, 3), dtype="uint8", name="image"),
            layers.Rescaling(1 / 255, dtype=dtype),
            layers.Conv2D(4, 3, activation="relu", dtype=dtype),
            layers.GlobalAveragePooling2D(dtype=dtype),
            layers.Dense(8, activation="relu", dtype=dtype),
            last,
        ]
    )
    last.set_weights([8 * weights for weights in last.get_weights()])
    return model


def save_tiny_run(run_dir, data_dir, seed=0, model=None, more=None, **parameters):
    """Save a run of the net on the images; validation and test are every third image."""
    model = model or make_model(seed)
    is_alone = len(model.inputs) == 1
    classes = tuple(model.layers[-1].name.split("_")) if is_alone else reading.CLASSES
    size = next(x for x in model.inputs if x.name == "image").shape[1:3]
    table = reading.read_dataset(data_dir)
    table["split"] = np.array(["train", "val", "test"])[np.arange(len(table)) % 3]
    held_out = table[(table["split"] != "train") & table["dx"].isin(classes)]
    pixels = np.stack([images.read_image(path, size) for path in held_out["path"]])
    found = np.eye(len(classes))[held_out["label"] % len(classes)]  # with fields: of no meaning
    if is_alone:
        _, found = novelty.read_features(novelty.make_reader(model), pixels)
    place = {"IMAGE_HEIGHT": size[0], "IMAGE_WIDTH": size[1], "DATA_DIR": str(data_dir)}
    return folder.save_run(
        run_dir,
        parameters=place | parameters,
        model=model,
        table=table,
        history=pd.DataFrame({"seconds": [1.0]}, pd.RangeIndex(1, 2, name="epoch")),
        predictions=make_predictions(held_out, found, classes),
        scores={},
        more=more,
    )
