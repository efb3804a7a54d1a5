"""Progress: a live bar where a person watches, few lines where nobody does."""

import os
import sys

import tqdm
import tqdm.auto

# Set for the kernels that they start by JupyterLab and Notebook, VS Code and Colab;
# papermill, nbval and nbconvert set none of them.
FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")


def is_interactive() -> bool:
    """Tell whether a person watches: a notebook front end or a terminal, not papermill or CI."""
    if "ipykernel" in sys.modules:
        return any(name in os.environ for name in FRONT_ENDS)
    return sys.stderr.isatty()


def show_bar(iterable=None, **options) -> tqdm.tqdm:
    """Make a tqdm bar; headless it writes a state every five seconds at most.

    A kernel passes what is written to the process's own stderr on to the terminal that
    started it, so that papermill's user sees it too.

    Args:
        iterable: what to go through; or give `total` and call `update`.
        options: as for tqdm.
    """
    if is_interactive():
        return tqdm.auto.tqdm(iterable, **options)
    return tqdm.tqdm(iterable, file=sys.__stderr__, mininterval=5, **options)
