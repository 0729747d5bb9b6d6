"""Every notebook is fit for git and for papermill; every plan fits the notebooks."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib.notebook_parameters import read_notebook
from lib.pipeline.plans import load_plan
from lib.yaml_files import read_yaml

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLANS = [path for path in sorted(FOLDER.glob("params/*.yaml")) if "steps" in read_yaml(path)]


def test_the_notebooks_of_the_kit_are_there():
    names = [
        "1_data_processing", "2_train", "3_evaluate", "4_error_analysis", "5_mask_inspection", "6_compare_runs",
        "7_score_images", "8_compare_generators",
    ]  # fmt: skip
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("command", [["nbstripout", "--verify"], ["ruff", "check", "--quiet", "--no-cache"]])
def test_the_hooks_would_change_nothing(command):
    result = subprocess.run([sys.executable, "-m", *command, *NOTEBOOKS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_its_purpose_and_has_short_cells_without_outputs_and_classes(path):
    first, *cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    told = "".join(first["source"])
    assert told.startswith("# ") and all(f"**{word}**" in told for word in ("Takes", "Gives", "Time"))
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    for cell in cells:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert len(cell["source"]) <= 25, cell["source"][0]
    others = [cell for cell in cells if "parameters" not in cell["metadata"].get("tags", [])]
    nodes = list(ast.walk(ast.parse("\n".join("".join(cell["source"]) for cell in others))))
    assert not [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    for node in nodes:  # no lint looks whether lib still has what a notebook takes from it
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lib"):
            exec(ast.unparse(node), {})
    # No cell gives a parameter another value, or the cell that reads the parameters could not run again.
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    parameters = read_notebook(path)[1].keys()
    assert parameters and not parameters & (stored | {alias.asname or alias.name for alias in imported})


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_fit_the_notebooks(path):
    assert load_plan(path, FOLDER).steps
