"""Notebooks 5 and 6 executed headless, from the repository's root and from notebooks/, and exported as pages."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest
from example_plans import fetched
from example_runs import CASES, write_run, write_split
from test_comparison import BETTER, evaluation_of

from lib.pipeline.page import export_page

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("notebooks")
    write_split(root / "data/test")
    for name, cases in (("worse", CASES), ("better", BETTER)):
        evaluation_of(write_run(root / "runs" / name, root / "data", cases), root / "data")
    return root / "runs"


def execute(name: str, out: Path, cwd: Path, monkeypatch, **parameters) -> tuple[nbformat.NotebookNode, str]:
    """The executed notebook and its page."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    executed, where = out / "executed.ipynb", {"kernel_name": "python3", "cwd": str(cwd)}
    source = str(ROOT / "notebooks" / f"{name}.ipynb")
    notebook = papermill.execute_notebook(source, str(executed), parameters, progress_bar=False, **where)
    export_page(executed, out / "page.html", name)
    page = (out / "page.html").read_text(encoding="utf-8")
    assert fetched(page) == []
    return notebook, page


def test_mask_inspection_leaves_a_picture_where_the_widget_was(runs, tmp_path, monkeypatch):
    verdicts = runs / "worse/verdicts/test.jsonl"
    verdicts.parent.mkdir()
    verdicts.write_text("broken\n")
    parameters = {"run": str(runs / "worse"), "compare_with": str(runs / "better"), "n_static": 2}
    parameters["n_exported"] = 3
    notebook, page = execute("5_mask_inspection", tmp_path, ROOT / "notebooks", monkeypatch, **parameters)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    assert page.count("<img ") == 1
    assert "wrong_area" in page
    assert "0 of 4 images judged" in page
    assert page.count("line 1 is no JSON; mend or delete") == 1
    assert verdicts.read_text() == "broken\n"
    # The predicted regions of the first images come back from either format: two false ones and a hit, then none.
    tasks = json.loads((verdicts.parent / "test_predicted/label_studio.json").read_text())
    assert [task["data"]["image"].rpartition("=")[2] for task in tasks] == ["false.jpg", "missed.jpg", "perfect.jpg"]
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [3, 0, 1]
    assert len(json.loads((verdicts.parent / "test_predicted/coco.json").read_text())["annotations"]) == 4


def test_comparison_names_the_better_run(runs, tmp_path, monkeypatch):
    _, page = execute("6_compare_runs", tmp_path, ROOT, monkeypatch, runs=str(runs), bootstrap=20, n_gallery=1)
    assert "2 runs on test; the others are compared with better." in page
    assert "worse has less wrong area than better on 0 of 4 images, more on 2." in page
    assert page.count("<img ") == 5


def test_comparison_of_a_single_run(runs, tmp_path, monkeypatch):
    _, page = execute("6_compare_runs", tmp_path, ROOT, monkeypatch, runs=str(runs), names=["worse"], bootstrap=5)
    assert "nothing to compare" in page
