"""Which code made a run: short checksums of its notebook and of the helper modules it imported."""

import ast
import hashlib
import json
import os
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from helpers.data.files import PROJECT

NOTEBOOK_CODE = "SKIN_NOTEBOOK_CODE"  # environment variable: JSON, file to its `fingerprint_code`


def fingerprint_code(path: Path) -> str:
    """Return a short checksum of a module's or a notebook's code, "" for a missing file.

    Comments, docstrings, layout and the cells of parameters do not count.
    """
    if not path.is_file():
        return ""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        skipped = {"parameters", "injected-parameters"}
        cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        cells = [c for c in cells if not skipped & set(c["metadata"].get("tags", []))]
        source = "\n".join("".join(cell["source"]) for cell in cells)
    return _fingerprint_source(source)


@lru_cache
def _fingerprint_source(source: str) -> str:
    with suppress(SyntaxError):  # a notebook with magics counts as it is
        tree = ast.parse(source)
        for node in ast.walk(tree):
            match getattr(node, "body", None):
                case [ast.Expr(ast.Constant()), *rest]:
                    node.body = rest
        source = ast.unparse(tree)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def fingerprint_imports() -> dict[str, str]:
    """Fingerprint the code behind this process: its notebook, if told, and the helper modules."""
    files = [m.__file__ for n, m in list(sys.modules.items()) if n.split(".")[0] == "helpers"]
    paths = [Path(file) for file in files if file]
    marks = {path.relative_to(PROJECT).as_posix(): fingerprint_code(path) for path in paths}
    return json.loads(os.environ.get(NOTEBOOK_CODE, "{}")) | marks
