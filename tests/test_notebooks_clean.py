"""Every notebook is fit for git and for papermill; every plan fits the notebooks."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib.config import read_yaml
from lib.notebook_parameters import read_notebook
from lib.pipeline.plans import load_plan

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLANS = [path for path in sorted(FOLDER.glob("params/*.yaml")) if "steps" in read_yaml(path)]

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def tree(path: Path) -> ast.Module:
    lines = [line for cell in cells(path, "code") for line in "".join(cell["source"]).splitlines()]
    return ast.parse("\n".join(line for line in lines if not line.startswith(("%", "!"))))


def test_the_notebooks_of_the_kit_are_there():
    names = ["1_data_processing", "2_train", "3_evaluate", "4_error_analysis", "5_mask_inspection", "6_compare_runs"]
    assert [path.stem for path in NOTEBOOKS] == names


@every_notebook
def test_outputs_are_stripped(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@every_notebook
def test_the_hook_would_change_nothing(path):
    command = [sys.executable, "-m", "nbstripout", "--verify", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@every_notebook
def test_it_begins_with_its_purpose(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    told = "".join(first["source"])
    assert told.startswith("# ") and all(f"**{word}**" in told for word in ("Takes", "Gives", "Time"))


@every_notebook
def test_cells_are_short(path):
    for cell in cells(path, "code"):
        assert len(cell["source"]) <= 25, cell["source"][0]


@every_notebook
def test_parameters_are_literals(path):
    _, defaults = read_notebook(path)
    assert defaults


@every_notebook
def test_no_cell_gives_a_parameter_another_value(path):
    """Or the cell that reads the parameters could not run again."""
    others = [cell for cell in cells(path, "code") if "parameters" not in cell["metadata"].get("tags", [])]
    others = ast.parse("\n".join("".join(cell["source"]) for cell in others))
    stored = {node.id for node in ast.walk(others) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = [node for node in ast.walk(others) if isinstance(node, ast.Import | ast.ImportFrom)]
    stored |= {alias.asname or alias.name for node in imported for alias in node.names}
    assert not stored & read_notebook(path)[1].keys()


@every_notebook
def test_classes_live_in_lib(path):
    assert not [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]


def test_ruff_finds_nothing_in_the_notebooks():
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache", str(FOLDER)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_fit_the_notebooks(path):
    assert load_plan(path, FOLDER).steps
