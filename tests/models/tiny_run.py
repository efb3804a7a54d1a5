"""A run made by hand in a second: a tiny net that was never trained, on drawn colours."""

import keras
import numpy as np
import pandas as pd
from keras import layers
from PIL import Image

from helpers.data import images
from helpers.data import reading as dataset
from helpers.evaluation import novelty
from helpers.runs import folder as runs

SIZE = (16, 24)
IMAGES_PER_CLASS = 30


def make_images(folder, seed=0):
    """Write a folder in the layout of HAM10000: per class a colour, with some noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for k, dx in enumerate(dataset.CLASSES):
        colour = np.random.default_rng(k).integers(80, 200, 3)
        for _ in range(IMAGES_PER_CLASS):
            name = f"ISIC_98{len(rows):05d}"
            picture = colour + rng.normal(0, 12, 3) + rng.normal(0, 6, (*SIZE, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
            rows.append({"lesion_id": f"HAM_98{len(rows):05d}", "image_id": name, "dx": dx})
    table = pd.DataFrame(rows).assign(
        dx_type="histo", age=50.0, sex="female", localization="back", dataset="rosendahl"
    )
    table.to_csv(folder / "HAM10000_metadata.csv", index=False)
    return folder


def make_model(seed=0, size=SIZE, classes=dataset.CLASSES, dtype="float32"):
    """Build the net; its last layer follows the mean colour, so it is not blind."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((*size, 3), dtype="uint8", name="image"),
            layers.Rescaling(1 / 255, dtype=dtype),
            layers.Conv2D(4, 3, activation="relu", dtype=dtype),
            layers.GlobalAveragePooling2D(dtype=dtype),
            layers.Dense(8, activation="relu", dtype=dtype),
            layers.Dense(
                len(classes), activation="softmax", dtype="float32", name="_".join(classes)
            ),
        ]
    )
    last = model.layers[-1]
    last.set_weights([8 * weights for weights in last.get_weights()])
    return model


def save_tiny_run(folder, data_dir, seed=0, model=None, **parameters):
    """Save a run of the net on the images; validation and test are every third image."""
    model = model or make_model(seed)
    classes = model.layers[-1].name.split("_")
    size = model.input_shape[1:3]
    table = dataset.read_dataset(data_dir)
    table["split"] = np.array(["train", "val", "test"])[np.arange(len(table)) % 3]
    held_out = table[table["split"] != "train"]
    pixels = np.stack([images.read_image(path, size) for path in held_out["path"]])
    _, found = novelty.read_features(novelty.make_reader(model), pixels)
    metrics = {
        "parameters": {
            "DATA_DIR": str(data_dir),
            "IMAGE_HEIGHT": size[0],
            "IMAGE_WIDTH": size[1],
            **parameters,
        },
        "classes": classes,
        "data": {"images": len(table)},
    }
    history = pd.DataFrame({"loss": [1.0]}, index=pd.RangeIndex(1, 2, name="epoch"))
    held_out = held_out[held_out["dx"].isin(classes)] if len(classes) < 7 else held_out
    predictions = runs.make_predictions(held_out, found[: len(held_out)], classes)
    runs.save_run(folder, metrics, history, predictions, model)
    return folder
