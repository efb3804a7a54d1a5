"""Every notebook: its structure, its stored outputs, and how much of them nbval compares."""

import itertools
import re
from pathlib import Path

import keras
import nbformat
import pytest
from keras import layers

from helpers.data import reading as dataset
from helpers.nets import models
from helpers.runs import experiments
from helpers.runs import folder as runs
from helpers.training import devices, recipes
from helpers.training import fit as training

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "Skin_Cancer_Detection.ipynb"
NOTEBOOKS = [MAIN, *sorted((ROOT / "notebooks").glob("*.ipynb"))]
TAGS = {"parameters", "nbval-ignore-output"}
LONGEST_CELL = 25

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read_cells(path, kind=None):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if kind is None or cell.cell_type == kind]


def has_tag(cell, tag):
    return tag in cell.metadata.get("tags", [])


@each_notebook
def test_headings_are_one_title_and_no_level_is_skipped(path):
    text = "\n".join(cell.source for cell in read_cells(path, "markdown"))
    levels = [len(mark) for mark in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
    assert read_cells(path)[0].source.startswith("# ")
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert levels[1:], "no sections"


@each_notebook
def test_there_is_one_typed_and_commented_parameters_cell(path):
    (cell,) = [cell for cell in read_cells(path, "code") if has_tag(cell, "parameters")]
    for line in cell.source.splitlines():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*: (bool|int|float|str) = [^=]+  # .+", line), line
    names = [line.split(":")[0] for line in cell.source.splitlines()]
    assert list(experiments.inspect_parameters(path)) == names


@each_notebook
def test_cells_are_short_and_run_anywhere(path):
    for number, cell in enumerate(read_cells(path), start=1):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, f"cell {number} is too long"
        if cell.cell_type == "code":
            assert cell.source.strip(), f"cell {number} is empty"
            assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), f"magic in cell {number}"
            assert "sys.exit" not in cell.source, f"cell {number} ends the kernel"
        assert not re.search(r"""["'(](/|[A-Z]:\\|~/)\w""", cell.source), f"path in cell {number}"


@each_notebook
def test_tags_are_known(path):
    for number, cell in enumerate(read_cells(path), start=1):
        unknown = set(cell.metadata.get("tags", [])) - TAGS
        assert not unknown, f"cell {number}: {unknown} is none of {TAGS}"


@each_notebook
def test_outputs_are_of_one_execution_from_top_to_bottom(path):
    cells = read_cells(path, "code")
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any(output.output_type == "display_data" for output in outputs), "no figure"
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", "start-up lines of one machine: make notebooks"
        assert not any("widget" in kind for kind in output.get("data", {})), "a live widget"


@each_notebook
def test_nbval_compares_most_cells(path):
    """Stripped outputs would make nbval green for nothing; so would an exemption everywhere."""
    with_output = [cell for cell in read_cells(path, "code") if cell.outputs]
    compared = [cell for cell in with_output if not has_tag(cell, "nbval-ignore-output")]
    assert len(with_output) >= len(read_cells(path, "code")) / 2, "outputs are missing"
    assert len(compared) >= 2 / 3 * len(with_output)


def build_model(**parameters):
    """Build the net from the cell of the main notebook that defines it."""
    (cell,) = [cell for cell in read_cells(MAIN, "code") if "keras.Sequential" in cell.source]
    values = {"IMAGE_HEIGHT": 75, "IMAGE_WIDTH": 100, "BATCH_NORM": False} | parameters
    values |= {"MODEL": "cnn", "strategy": devices.choose_strategy()}
    space = {"keras": keras, "layers": layers, "models": models, "dataset": dataset, **values}
    exec(cell.source, space)
    return space["model"]


def list_rows(model):
    """List (output shape, parameters) of the layers that the original README shows."""
    shown = (layers.Conv2D, layers.MaxPooling2D, layers.Flatten, layers.Dense)
    return [(r.output.shape[1:], r.count_params()) for r in model.layers if isinstance(r, shown)]


@pytest.mark.parametrize(("batch_norm", "total"), [(False, 672_007), (True, 674_567)])
def test_net_is_the_original(batch_norm, total):
    model = build_model(BATCH_NORM=batch_norm)
    assert list_rows(model) == [
        ((73, 98, 256), 7168),
        ((36, 49, 256), 0),
        ((34, 47, 128), 295_040),
        ((17, 23, 128), 0),
        ((15, 21, 64), 73_792),
        ((7, 10, 64), 0),
        ((4480,), 0),
        ((64,), 286_784),
        ((128,), 8320),
        ((7,), 903),
    ]
    assert model.count_params() == total
    assert model.layers[-1].name.split("_") == list(dataset.CLASSES)


def test_normalisation_follows_each_pooling_and_hidden_dense():
    kinds = [type(layer).__name__ for layer in build_model(BATCH_NORM=True).layers]
    assert kinds.count("BatchNormalization") == 5
    after = [kinds[i - 1] for i, kind in enumerate(kinds) if kind == "BatchNormalization"]
    assert after == ["MaxPooling2D"] * 3 + ["Dense"] * 2


def test_model_takes_raw_pixels():
    model = build_model()
    assert model.inputs[0].dtype == "uint8"
    first = next(layer for layer in model.layers if layer.name.startswith("rescaling"))
    assert first.scale == 1 / 255


def test_smallest_side_leaves_a_pixel_to_the_last_pooling():
    side = models.SMALLEST_SIDE
    assert build_model(IMAGE_HEIGHT=side, IMAGE_WIDTH=side).output_shape == (None, 7)
    with pytest.raises(ValueError, match=r"negative dimension|Computed output size"):
        build_model(IMAGE_HEIGHT=side - 1)


def test_default_parameters_are_in_range():
    (cell,) = [c for c in read_cells(MAIN, "code") if has_tag(c, "parameters")]
    space = {}
    exec(cell.source, space)
    parameters = recipes.complete_parameters(runs.check_parameters(space, recipes.NAMES))
    training.check_parameters(parameters)
