"""What every room needs of the file system: one error, one atomic write, paths, progress bars."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import tqdm
import tqdm.auto

PROJECT = Path(__file__).parents[2]
# Set for the kernels that they start by JupyterLab and Notebook, VS Code, Colab and Voilà;
# papermill, nbval and nbconvert set none of them.
FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG", "VOILA_KERNEL_ID")


class InputError(ValueError):
    """Everything that is wrong with `where`, a file, folder or command.

    `problems` are a sentence each, with its file, row or value and the remedy.
    """

    def __init__(self, where: str | os.PathLike, problems: Sequence[str]):
        super().__init__(str(where), list(problems))
        self.where, self.problems = str(where), list(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.where}: {self.problems[0]}"
        count = f"{self.where}: {len(self.problems)} problems"
        return "\n".join([count, *(f"- {text}" for text in self.problems)])


def raise_problems(where: str | os.PathLike, problems: Sequence[str]) -> None:
    """Raise an InputError if there is any problem."""
    if problems:
        raise InputError(where, problems)


def name_some(values: Iterable, limit: int = 5) -> str:
    """Join the first values with commas and say how many more there are."""
    values = list(values)
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + more


def resolve_path(path: str | os.PathLike) -> Path:
    """Find a path below the working folder or else give that below the project's, absolute.

    JupyterLab runs a notebook in the notebook's own folder, papermill in the caller's: a relative
    path means the same in both.
    """
    path = Path(path).expanduser()
    return path.absolute() if path.exists() else PROJECT / path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under another name, then put it in place in one step."""
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_interactive() -> bool:
    """Tell whether a person watches: a notebook front end or a terminal, not papermill or CI."""
    if "ipykernel" in sys.modules:
        return any(name in os.environ for name in FRONT_ENDS)
    return sys.stderr.isatty()


def show_bar(iterable=None, **options) -> tqdm.tqdm:
    """Make a tqdm bar; headless it writes a state every five seconds at most.

    To the process's own stderr, which a kernel passes on to the terminal of papermill's user.
    """
    if is_interactive():
        return tqdm.auto.tqdm(iterable, **options)
    return tqdm.tqdm(iterable, file=sys.__stderr__, mininterval=5, **options)
