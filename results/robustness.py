"""Score a run's test images again with what photographs suffer from: what does each thing cost?

python results/robustness.py RUN_DIR   writes robustness.csv and robustness.png

Each disturbance is made at the size of the file, before the image is brought to the net's size, by
drawing (hair, a ruler, dark corners) or computing (blur, JPEG at quality 30, a colour cast, a
quarter turn, which squashes the image as any of another shape). No choice depends on the result.
"""

import sys
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.data import files, images, reading
from helpers.evaluation import calibration, predictions, scores
from helpers.runs import folder
from helpers.training import batches

PLACE = Path(__file__).parent
SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    scores.PRIOR_ADJUSTED: "prior-adjusted",
    "auc": "AUC",
}


def draw_hair(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw ten dark hairs: arcs across the image, one in 250 of its width thick."""
    height, width = image.shape[:2]
    scale, drawn = 8, cv2.resize(image, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    for _ in range(10):
        start, end = rng.uniform(0, 1, (2, 2)) * (width, height)
        middle = (start + end) / 2 + rng.normal(0, 0.15 * width, 2)
        t = np.linspace(0, 1, 50)[:, None]
        arc = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        colour = tuple(map(float, rng.uniform(20, 60, 3)))
        points = [np.rint(scale * arc).astype(np.int32)]
        cv2.polylines(drawn, points, False, colour, max(1, scale * width // 250), cv2.LINE_AA)
    return cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)


def draw_ruler(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the marks of a ruler along the lower edge, every twentieth of the width."""
    height, width = image.shape[:2]
    image = image.copy()
    for number in range(1, 20):
        x, length = number * width // 20, (0.12 if number % 5 == 0 else 0.07) * height
        image[height - round(length) :, x : x + max(1, width // 200)] = 30
    return image


def draw_corners(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darken what lies outside a circle that touches the left and the right edge."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width / 2, y - height / 2) / (width / 2)
    light = np.clip((1.0 - distance) / 0.05, 0, 1)[..., None]
    return (image * light).astype(np.uint8)


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur by a Gauss of one hundredth of the width."""
    return cv2.GaussianBlur(image, (0, 0), image.shape[1] / 100)


def compress(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write and read as JPEG of quality 30."""
    written = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    return cv2.imdecode(written, cv2.IMREAD_COLOR)[..., ::-1]


def cast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make red a tenth brighter and blue a tenth darker, as lamps of another colour do."""
    return np.clip(image * np.array([1.1, 1.0, 0.9]), 0, 255).astype(np.uint8)


def turn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn by a quarter."""
    return np.rot90(image)


DISTURBANCES = {
    "as they are": lambda image, rng: image,
    "hair": draw_hair,
    "ruler marks": draw_ruler,
    "dark corners": draw_corners,
    "blur": blur,
    "JPEG at quality 30": compress,
    "colour cast": cast,
    "quarter turn": turn,
}


def measure(run: folder.Run) -> pd.DataFrame:
    """Score the test part under each disturbance, with intervals; validation stays as it is."""
    parameters = run.metrics["parameters"]
    size = parameters["IMAGE_HEIGHT"], parameters["IMAGE_WIDTH"]
    table = reading.read_dataset(files.resolve_path(parameters["DATA_DIR"])).set_index("image_id")
    test, model = run.predictions.part("test"), folder.load_model(run)
    whole = [images.read_image(table.loc[name, "path"]) for name in test.table["image_id"]]
    rows = {}
    for name, disturb in DISTURBANCES.items():
        rng = np.random.default_rng(0)
        pixels = np.stack([images.resize_pixels(disturb(image, rng), size) for image in whole])
        found = batches.predict_rows(model, pixels, np.arange(len(test)), views=parameters["VIEWS"])
        p = predictions.make_predictions(test.table, found, run.classes)
        adjusted = calibration.adjust_prior(run.predictions.part("val"), p)
        rows[name] = scores.score_with_intervals(p, adjusted).loc[list(SHOWN)]
        print(name, rows[name]["value"].round(3).to_dict(), flush=True)
    return pd.concat(rows, names=["disturbance", "score"])[["value", "low", "high"]]


def draw(table: pd.DataFrame) -> plt.Figure:
    """Draw each score with its interval, a panel for each."""
    figure, axs = plt.subplots(1, len(SHOWN), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axes, (score, title) in zip(axs, SHOWN.items(), strict=True):
        rows = table.xs(score, level="score")[::-1]
        ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        axes.errorbar(rows["value"], rows.index, xerr=ends, fmt="o", capsize=3, color="#31688e")
        axes.axvline(rows["value"].iloc[-1], color="0.6", linestyle="--", linewidth=1)
        axes.set(title=title)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    found = measure(folder.load_run(sys.argv[1]))
    found.to_csv(PLACE / "robustness.csv", float_format="%.4f")
    draw(found).savefig(PLACE / "robustness.png", dpi=120)
