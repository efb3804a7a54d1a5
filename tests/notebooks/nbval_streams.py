"""nbval plugin: leave stderr out of the comparison; TensorFlow's start-up lines differ by machine.

python -m pytest --nbval -p tests.notebooks.nbval_streams Skin_Cancer_Detection.ipynb
"""


def pytest_collectstart(collector):
    """Add stderr to what nbval skips."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare = (*collector.skip_compare, "stderr")
