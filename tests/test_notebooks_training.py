"""Notebook 2 executed by papermill on a tiny checkpoint, as `make demo` does."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from lib.model.detector import DistortionDetector
from lib.pipeline.kernel import execute as execute_step
from lib.train.checkpoint import latest_checkpoint, read_state

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def execute(name: str, out: Path, **parameters):
    return papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        out / f"{name}.ipynb",
        parameters,
        kernel_name="python3",
        progress_bar=False,
        cwd=str(NOTEBOOKS),
    )


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs if output["output_type"] == "stream")


def test_the_training_notebook_shows_pictures_and_leaves_a_loadable_model(prepared, micro_checkpoint, tmp_path):
    notebook = execute(
        "2_train", tmp_path, experiment_name="tiny", runs=str(tmp_path), data_path=str(prepared),
        checkpoint=str(micro_checkpoint), input_size=32, mask_size=32, mask_stride=8, epoch=2, warmup_epoch=1,
        batch_size=8, batch_size_warmup=8, accumulate_step=1, val_iter=1, num_workers=0, log_iter=1,
    )  # fmt: skip
    assert DistortionDetector.from_pretrained(tmp_path / "tiny").config.epoch == 2
    assert "step 9/9" in printed(notebook) and "of the encoder's" in printed(notebook)
    images = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(images) >= 2


def two_processes(data: Path, checkpoint: Path, runs: Path) -> dict:
    """Parameters of notebook 2 for two processes: 24 images, eight a step, two epochs, so six steps."""
    return {
        "experiment_name": "two", "runs": str(runs), "data_path": str(data), "checkpoint": str(checkpoint),
        "input_size": 32, "mask_size": 32, "mask_stride": 8, "epoch": 1, "warmup_epoch": 1, "batch_size": 4,
        "batch_size_warmup": 4, "accumulate_step": 1, "num_workers": 0, "log_iter": 1, "num_processes": 2,
    }  # fmt: skip


@pytest.mark.slow
def test_lines_of_several_processes_appear_in_the_cell_and_in_the_log(prepared, micro_checkpoint, tmp_path, capsys):
    executed, parameters = tmp_path / "executed.ipynb", two_processes(prepared, micro_checkpoint, tmp_path)
    assert execute_step(NOTEBOOKS / "2_train.ipynb", executed, parameters, NOTEBOOKS.parent) is None
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
