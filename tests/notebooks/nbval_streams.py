"""nbval plugin: the environment of a comparison, and stderr left out of it.

python -m pytest --nbval -p tests.notebooks.nbval_streams Skin_Cancer_Detection.ipynb

TensorFlow's start-up lines on stderr differ by machine. The runs go to a folder of their own, so
that nobody's run in runs/notebook is in the way; notebooks that take the last run take the
sample's.
"""

import os
from pathlib import Path

RUNS = Path(__file__).parents[2] / "runs" / "check"
os.environ["SKIN_RUNS_DIR"] = str(RUNS)
os.environ["LAST_RUN"] = str(RUNS / "sample_grid" / "BATCH_NORM=true,FOLD=0")


def pytest_collectstart(collector):
    """Add stderr to what nbval skips."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare = (*collector.skip_compare, "stderr")
