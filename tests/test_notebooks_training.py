"""Notebook 2 executed on a tiny checkpoint, stopped and resumed; and every notebook with each cell run twice."""

import copy
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from executed import ROOT, TINY, execute, pictures, printed

from lib.model.detector import DistortionDetector
from lib.pipeline.kernel import execute as execute_step
from lib.train.checkpoint import latest_checkpoint, read_state


def test_the_training_notebook_shows_pictures_and_leaves_a_loadable_model(prepared, micro_checkpoint, tmp_path):
    where = {"experiment_name": "tiny", "runs": str(tmp_path), "checkpoint": str(micro_checkpoint)}
    notebook = execute("2_train", tmp_path, ROOT / "notebooks", data_path=str(prepared), **where, **TINY)
    assert DistortionDetector.from_pretrained(tmp_path / "tiny").config.epoch == 2
    assert "step 9/9" in printed(notebook) and "of the encoder's" in printed(notebook)
    assert pictures(notebook) >= 2


def two_processes(data: Path, checkpoint: Path, runs: Path) -> dict:
    """Parameters of notebook 2 for two processes: 24 images, eight a step, two epochs, so six steps."""
    where = {"experiment_name": "two", "runs": str(runs), "data_path": str(data), "checkpoint": str(checkpoint)}
    return TINY | where | {"epoch": 1, "batch_size": 4, "batch_size_warmup": 4, "val_iter": -1, "num_processes": 2}


@pytest.mark.slow
def test_lines_of_several_processes_appear_in_the_cell_and_in_the_log(prepared, micro_checkpoint, tmp_path, capsys):
    executed, parameters = tmp_path / "executed.ipynb", two_processes(prepared, micro_checkpoint, tmp_path)
    assert execute_step(ROOT / "notebooks/2_train.ipynb", executed, parameters, ROOT) is None
    steps = [f"step {number}/6" for number in range(1, 7)]
    assert re.findall(r"^step \d+/\d+", printed(nbformat.read(executed, 4)), re.MULTILINE) == steps
    assert re.findall(r"^step \d+/\d+", capsys.readouterr().out, re.MULTILINE) == steps


@pytest.mark.slow
@pytest.mark.ci
def test_a_stopped_pipeline_leaves_a_checkpoint_and_goes_on_from_it(prepared, micro_checkpoint, tmp_path):
    parameters = two_processes(prepared, micro_checkpoint, tmp_path) | {"num_processes": 1, "epoch": 1000}
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"name": "plan", "parameters": parameters, "steps": [{"notebook": "2_train"}]}))
    told, _ = _stopped_after("step 3/", plan)
    newest = latest_checkpoint(tmp_path / "two")
    step = read_state(newest)["step"]
    assert step >= 3
    sentence = f"SIGINT: stopped at step {step} of 6006 and saved; the same command goes on from here."
    assert sentence in told
    assert sentence in (tmp_path / "plan" / "notebooks" / "1_2_train.ipynb").read_text()
    told, first = _stopped_after(f"step {step + 1}/", plan)
    assert f"Going on from {newest}." in told
    assert first == step + 1


def _stopped_after(line: str, plan: Path) -> tuple[str, int]:
    """What the pipeline tells until SIGTERM has ended it, sent when it prints the line; the first step it tells of."""
    command = [sys.executable, "-m", "lib.pipeline", plan, "--runs", plan.parent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for text in process.stdout:
        lines.append(text)
        if text.strip().startswith(line):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 130, "".join(lines)
    told = "".join(lines)
    return told, int(re.search(r"step (\d+)/", told)[1])


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
    return execute(name, out, ROOT, out / f"{name}.ipynb", **parameters)


@pytest.mark.slow
def test_every_cell_may_run_twice(raw, micro_checkpoint, tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    run = runs / "one"
    execute_twice("1_data_processing", tmp_path, data_root=str(raw), data_path=str(data), workers=1)
    where = {"experiment_name": "one", "runs": str(runs), "data_path": str(data), "checkpoint": str(micro_checkpoint)}
    trained = execute_twice("2_train", tmp_path, **where, **TINY | {"epoch": 1})
    assert "is already trained" in printed(trained)  # and the second time nothing was trained anew
    views = {"flip": True, "effects": True, "submission": True}
    execute_twice("3_evaluate", tmp_path, run=str(run), threshold_step=50, resamples=5, **views)
    execute_twice("4_error_analysis", tmp_path, run=str(run), resamples=5, workers=1)
    execute_twice("5_mask_inspection", tmp_path, run=str(run), n_static=2)
    execute_twice("6_compare_runs", tmp_path, runs=str(runs), bootstrap=10)
