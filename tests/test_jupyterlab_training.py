"""Notebook 2 as people use it: watch a training grow in JupyterLab, stop it, go on (see `lab.py`)."""

import re
import shutil
from pathlib import Path

import pytest
from lab import ROOT, execute, needs_chromium, open_and_run, place_notebook, run_cell, views, wait_until_run

from lib.train.tracking import read_metrics

pytest_plugins = ["lab"]
pytestmark = needs_chromium
RECIPE = {
    "parameter_set": "", "experiment_name": "watched", "input_size": 32, "mask_size": 32, "mask_stride": 8,
    "warmup_epoch": 10, "epoch": 110, "batch_size": 8, "batch_size_warmup": 8, "accumulate_step": 1, "val_iter": 20,
    "save_iter": -1, "num_workers": 0, "log_iter": 2, "lr": 1e-3,
}  # fmt: skip
POINTS = "(document.querySelector('.live-training polyline')?.points.length ?? 0)"  # of the first line, the loss


@pytest.fixture(scope="module")
def kit(prepared, micro_checkpoint, lab_root) -> Path:
    """A folder like the repository's with notebook 2, set to a training of 120 epochs, 3 steps each."""
    root = lab_root / "training"
    root.mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    place_notebook(root, "2_train", data_path=str(prepared), checkpoint=str(micro_checkpoint), **RECIPE)
    return root


def test_watch_a_training_stop_it_and_go_on(lab, kit, page, screenshot):
    open_and_run(page, lab("training/notebooks/2_train.ipynb"))
    live = page.locator(".live-training")
    output = page.locator(".jp-OutputArea").filter(has=live)
    live.wait_for()
    page.evaluate("window.jupyterapp.shell.collapseLeft()")

    # The curve grows, and the end is foretold.
    page.wait_for_function(f"{POINTS} > 2")
    early = page.evaluate(POINTS)
    page.wait_for_function(f"early => {POINTS} > early + 2", arg=early)
    place = r"step \d+ of 360, (warm-up|main) stage, epoch \d+ of (10|110)\s+\d+:\d\d elapsed, \d+:\d\d left"
    assert re.search(place, live.inner_text())

    # The stop button: saved, with a sentence; nothing of what was printed is lost but the records of steps.
    page.click("[data-command='notebook:interrupt-kernel']")
    output.get_by_text("Stopped; run the cell again to go on: watched").wait_for()
    output.get_by_text(re.compile(r"SIGINT: stopped at step \d+ of 360 and saved; the same .* from here\.")).wait_for()
    stopped, told = page.evaluate(POINTS), output.inner_text()
    assert "watched: 24 images, 360 steps on 1 x cpu" in told and "score_loss 0." not in told
    assert not (kit / "runs/watched/finished.json").exists()

    # The cell again: it begins with the earlier curve and comes to its end.
    run_cell(page, "with live_view(config)")
    live.get_by_text("Training: watched").wait_for()
    page.wait_for_function(f"stopped => {POINTS} >= stopped", arg=stopped)
    live.get_by_text("Trained: watched").wait_for()
    assert page.evaluate(POINTS) == len([row for row in read_metrics(kit / "runs/watched") if "loss" in row]) == 180
    assert "Going on from runs/watched/checkpoints/step_" in output.inner_text()

    # And once more, with everything after it: already trained, the same curve.
    execute(page, "notebook:run-all-cells")
    wait_until_run(page)
    assert "already trained" in output.inner_text()
    assert page.evaluate(POINTS) == 180

    # Two widths, two themes.
    pictures = {}
    for theme, width in views(page):
        live.scroll_into_view_if_needed()
        assert live.evaluate("one => one.scrollWidth <= one.clientWidth + 1"), f"{width}: parts stick out"
        pictures[theme, width] = screenshot(live, f"training_{theme}_{width}")
    assert pictures["light", "wide"].mean() > 200
    assert pictures["dark", "wide"].mean() < 80
