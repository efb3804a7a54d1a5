"""Ask a model about photographs by telephone, which it was not made for: PAD-UFES-20.

python results/telephones.py PAD_UFES_20 runs/telephones [RUN_DIR]
python -m papermill notebooks/04_judge_a_model.ipynb runs/04.ipynb -p TEST_DIR runs/telephones

The first folder holds the dataset (doi:10.17632/zr7vgbcyr2.1): metadata.csv, and the images below
it. The second one gets links to those that telephones.csv lists, and a table of diagnoses in the
words of HAM10000. Then the model answers as `predict` does, and shares are printed.
"""

import sys
from pathlib import Path

import pandas as pd

from helpers.data import reading
from helpers.runs import folder, predict

# Squamous cell carcinoma counts as akiec, although akiec in HAM10000 holds no invasive carcinoma.
DIAGNOSES = {"BCC": "bcc", "NEV": "nv", "SEK": "bkl", "MEL": "mel", "ACK": "akiec", "SCC": "akiec"}


def prepare(source: Path, target: Path) -> pd.DataFrame:
    """Link the listed images into a folder that notebook 04 takes as TEST_DIR, and read it."""
    listed = pd.read_csv(Path(__file__).with_suffix(".csv"))["image_id"]
    found = {path.stem: path for path in source.rglob("PAT_*.*")}
    table = pd.read_csv(source / "metadata.csv")
    table["image_id"] = table["img_id"].str.removesuffix(".png")
    table = table.set_index("image_id").loc[listed].reset_index()
    # A lesion number may stand for two lesions of a patient: those of one diagnosis count as one.
    numbers = table["patient_id"] + "_" + table["lesion_id"].astype(str)
    table["dx"] = table["diagnostic"].map(DIAGNOSES)
    table["lesion_id"] = numbers + "_" + table["dx"]
    target.mkdir(parents=True, exist_ok=True)
    for name in listed:
        link = target / found[name].name
        link.unlink(missing_ok=True)
        link.symlink_to(found[name].absolute())
    table[["image_id", "lesion_id", "dx"]].to_csv(target / "metadata.csv", index=False)
    return reading.read_dataset(target)


def main(source: str, target: str, run_dir: str = folder.BOX) -> None:
    """Print what the model answers, and for which share it warns."""
    table = prepare(Path(source), Path(target))
    classifier = predict.load_classifier(folder.load_run(run_dir))
    answers = predict.predict_images(classifier, table["path"])
    given, warned = answers["answer"] != predict.UNSURE, answers["warning"] != ""
    right = answers["answer"] == table["dx"]
    print(f"{len(table)} photographs of {table['group'].nunique()} lesions")
    print(f"warned of {warned.mean():.3f}")
    for what, chosen in {"answered": given, "answered, no warning": given & ~warned}.items():
        print(f"{what}: {chosen.mean():.2f}, of these right {right[chosen].mean():.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
