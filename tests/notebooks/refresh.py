"""Execute the committed notebooks anew on the sample, from top to bottom, and keep the outputs.

python tests/notebooks/refresh.py Skin_Cancer_Detection.ipynb
"""

import sys
from pathlib import Path

import nbformat
import nbval_streams  # noqa: F401 - the same environment as in the comparison
from nbclient import NotebookClient

from helpers.data.files import PROJECT, replace_file


def refresh_notebook(path: Path) -> None:
    """Execute a notebook in its own folder and write it back; on an error nothing is written."""
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, timeout=None, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell in book.cells:
        if cell.cell_type == "code":  # start-up lines, progress bars and paths are of this machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                for text in (output, output.get("data", {})):
                    for key in {"text", "text/plain", "text/markdown"} & set(text):
                        text[key] = text[key].replace(f"{PROJECT}/", "")
    book.metadata.pop("widgets", None)
    book.metadata["language_info"] = {"name": "python"}
    replace_file(path, lambda partial: nbformat.write(book, partial))
    print(f"{path}: executed")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh_notebook(Path(name))
