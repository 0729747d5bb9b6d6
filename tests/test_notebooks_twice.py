"""Re-running a cell is safe: every notebook with each of its cells executed twice, one after the other."""

import copy
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "input_size": 32, "mask_size": 32, "mask_stride": 8, "epoch": 1, "warmup_epoch": 1, "batch_size": 8,
    "batch_size_warmup": 8, "accumulate_step": 1, "val_iter": 1, "num_workers": 0, "log_iter": 1,
}  # fmt: skip


def execute_twice(name: str, out: Path, **parameters) -> nbformat.NotebookNode:
    """Execute a notebook with every code cell doubled, but the one of the parameters."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            again = copy.deepcopy(cell)
            again.id = f"{cell.id}-again"
            cells.append(again)
    notebook.cells = cells
    nbformat.write(notebook, out / f"{name}.ipynb")
    where = {"kernel_name": "python3", "cwd": str(ROOT), "progress_bar": False}
    return papermill.execute_notebook(out / f"{name}.ipynb", out / f"{name}_executed.ipynb", parameters, **where)


@pytest.mark.slow
def test_every_cell_may_run_twice(raw, micro_checkpoint, tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    run = runs / "one"
    execute_twice("1_data_processing", tmp_path, data_root=str(raw), data_path=str(data), workers=1)
    where = {"experiment_name": "one", "runs": str(runs), "data_path": str(data), "checkpoint": str(micro_checkpoint)}
    trained = execute_twice("2_train", tmp_path, **where, **TINY)
    printed = "".join(o.get("text", "") for cell in trained.cells for o in cell.get("outputs", []))
    assert "is already trained" in printed  # and the second time nothing was trained anew
    execute_twice(
        "3_evaluate", tmp_path, run=str(run), threshold_step=50, resamples=5, flip=True, effects=True, submission=True
    )
    execute_twice("4_error_analysis", tmp_path, run=str(run), resamples=5, workers=1)
    execute_twice("5_mask_inspection", tmp_path, run=str(run), n_static=2)
    execute_twice("6_compare_runs", tmp_path, runs=str(runs), bootstrap=10)
