"""What `make demo` promises, by running its plan: the figures, the time, the memory, and the same again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from executed import ROOT, execute

SMALL = {
    "synthetic_counts": "{train: 40, val: 12, test: 16}", "synthetic_size": 128, "train_full.epoch": 1, "resamples": 20,
    "threshold_step": 50, "n_examples": 2, "checkpoint": "florence2-tiny", "train_full.warmup_epoch": 0,
}  # fmt: skip


def run_plan(folder: Path, settings: dict) -> dict:
    """Run demo.yaml with everything written below `folder`; returns summary.json."""
    settings = {"data_root": folder / "raw", "data_path": folder / "prepared", **settings}
    command = [sys.executable, "-m", "lib.pipeline", "notebooks/params/demo.yaml", "--runs", str(folder / "runs")]
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    # The demo is measured as users run it, with all cores, whatever the other tests set.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "runs" / "demo" / "summary.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(folder) -> dict:
    return run_plan(folder, {})


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("name", "least"), [("full", 0.70), ("lora", 0.68)])
def test_the_demo_learns(demo, name, least):
    figures = demo[name]
    assert figures["final_score"] >= least
    assert figures["final_score"] >= demo["trivial"]["final_score"] + 0.25
    assert figures["encoder_frozen"]["ahead"]["low"] > 0  # fine-tuning earns more than heads on a frozen encoder
    assert set(figures["by_domain"]) == {"shown", "shifted"}


@pytest.mark.slow
@pytest.mark.alone
def test_the_demo_is_small_and_quick(demo, folder):
    assert demo["lora"]["trained_share"] < 0.20
    saved = sum(path.stat().st_size for path in (folder / "runs" / "demo_lora" / "model").rglob("*"))
    assert saved < 3e6  # without the base; the full run's model has 8 MB
    assert demo["seconds"] < 2700  # five to nine minutes on a quiet machine; crowded ones took three times as long
    assert demo["peak_memory_mb"] < 4096


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("small")
    return folder / "runs", run_plan(folder, SMALL)


@pytest.mark.slow
@pytest.mark.ci
def test_the_demo_runs_to_its_end_at_a_reduced_size(small):
    runs, summary = small
    assert {"full", "lora", "trivial", "seconds", "peak_memory_mb"} <= summary.keys()
    assert len(list((runs / "demo").glob("[0-9]*_*.html"))) == 10
    for name in ("full", "lora"):
        figures = json.loads((runs / f"demo_{name}" / "evaluation.json").read_text())["figures"]
        assert summary[name]["final_score"] == pytest.approx(figures["final_score"])
        assert (runs / f"demo_{name}" / "model").is_dir()


@pytest.mark.slow
def test_the_same_plan_twice_gives_the_same_figures(small, tmp_path):
    first, second = small[1], run_plan(tmp_path, SMALL)
    for summary in (first, second):
        del summary["seconds"], summary["peak_memory_mb"]
        for name in ("full", "lora"):
            del summary[name]["run_megabytes"]  # the log holds times
    assert first == second


@pytest.mark.slow
def test_every_notebook_runs_as_it_is_opened(tmp_path, monkeypatch):
    """Run All Cells in each, in their order, with nothing changed and nothing there before."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("DATA_ROOT", raising=False)
    books = sorted((tmp_path / "notebooks").glob("*.ipynb"))
    assert len(books) == 8
    for book in books:
        execute(book.stem, tmp_path, book.parent, book)
    evaluation = json.loads((tmp_path / "runs/demo_full/evaluation.json").read_text())
    assert evaluation["figures"]["final_score"] > 0.7
