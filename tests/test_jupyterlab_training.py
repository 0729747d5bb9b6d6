"""Notebook 2 as people use it: watch a training grow in JupyterLab, stop it, go on (see `lab.py`)."""

import json
import re
import shutil
from pathlib import Path

import pytest
from lab import ROOT, needs_chromium, open_and_run, place_notebook, run_cell
from playwright.sync_api import expect

from lib.train import read_metrics

pytest_plugins = ["lab"]
pytestmark = needs_chromium
RECIPE = {
    "parameter_set": "", "experiment_name": "watched", "input_size": 32, "mask_size": 32, "mask_stride": 8,
    "warmup_epoch": 10, "epoch": 110, "batch_size": 8, "batch_size_warmup": 8, "accumulate_step": 1, "val_iter": 20,
    "save_iter": -1, "num_workers": 0, "log_iter": 2, "lr": 1e-3,
}  # fmt: skip
# A fast machine would be at the end before anybody could stop it.
SLOW = """import time
from pathlib import Path
from lib.train.loop import Run
update = Run._update
Run._update = lambda run, *rest: (time.sleep(0 if Path("hurry").exists() else 0.05), update(run, *rest))[1]"""


@pytest.fixture(scope="module")
def kit(prepared, micro_checkpoint, lab_root) -> Path:
    """A folder like the repository's with notebook 2, set to a training of 120 epochs, 3 slow steps each."""
    root = lab_root / "training"
    root.mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    place_notebook(root, "2_train", data_path=str(prepared), checkpoint=str(micro_checkpoint), **RECIPE)
    path = root / "notebooks/2_train.ipynb"
    notebook = json.loads(path.read_text())
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    notebook["cells"].append({**first, "id": "slow", "source": SLOW, "metadata": {}})
    launching = next(n for n, cell in enumerate(notebook["cells"]) if "launch(config" in "".join(cell["source"]))
    notebook["cells"].insert(launching, notebook["cells"].pop())
    path.write_text(json.dumps(notebook))
    return root


def test_watch_a_training_stop_it_and_go_on(lab, kit, page):
    open_and_run(page, lab("training/notebooks/2_train.ipynb"))
    output = page.locator(".jp-OutputArea").filter(has_text="watched: 24 images, 360 steps on 1 x cpu")
    curve = output.locator("img")
    curve.wait_for()
    expect(curve).not_to_have_attribute("src", curve.get_attribute("src"), timeout=120_000)  # it grows

    page.click("[data-command='notebook:interrupt-kernel']")
    output.get_by_text(re.compile(r"SIGINT: stopped at step \d+ of 360 and saved; the same .* from here\.")).wait_for()
    assert not (kit / "runs/watched/finished.json").exists()

    (kit / "notebooks/hurry").touch()
    run_cell(page, "launch(config")
    output.get_by_text(re.compile("Trained 360 steps in")).wait_for()
    assert "Going on from runs/watched/checkpoints/step_" in output.inner_text()
    assert curve.count() == 1
    assert len([row for row in read_metrics(kit / "runs/watched") if "loss" in row]) == 180
