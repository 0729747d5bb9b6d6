"""The index of a pipeline: states, figures with intervals, what differs, small pictures; one file, no network."""

import base64
import io
import json

import pytest
from example_plans import fetched
from PIL import Image

from lib.config import Experiment
from lib.pipeline.index_page import write_index
from lib.pipeline.plans import Plan, Step
from lib.pipeline.thumbnails import thumbnails

TOLD = {
    "train": {"status": "finished", "seconds": 61.0, "peak_memory_mb": 1024.0},
    "evaluate": {
        "status": "failed",
        "seconds": 2.0,
        "peak_memory_mb": 100.0,
        "failure": "cell [3] <b>\n  no file",
    },
    "compare": {"status": "not run"},
}


def png(width=1000, height=500, colour=(200, 30, 30)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def write_executed(path, *cells):
    """An executed notebook: a text is a markdown cell, a list of pictures a code cell that also printed a line."""
    made = []
    for cell in cells:
        if isinstance(cell, str):
            made.append({"cell_type": "markdown", "source": cell})
        else:
            outputs = [{"output_type": "display_data", "data": {"image/png": picture}} for picture in cell]
            printed = {"output_type": "stream", "text": "a line"}
            made.append({"cell_type": "code", "source": "", "outputs": [printed, *outputs]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made}))


@pytest.fixture
def plan(tmp_path):
    steps = [Step(name, tmp_path / "x.ipynb", {}, (), "", f"{k}_{name}") for k, name in enumerate(TOLD, 1)]
    return Plan("trial <1>", tuple(steps), {"full": "a", "lora": "b"})


@pytest.fixture
def folder(tmp_path):
    write_executed(tmp_path / "runs/trial/notebooks/1_train.ipynb", "# Train", "## How it went", [png()])
    for name in ("1_train", "3_compare"):  # the last one is of an earlier result
        (tmp_path / f"runs/trial/{name}.html").touch()
    write_executed(tmp_path / "runs/trial/notebooks/3_compare.ipynb", "# Compare", [png()])
    return tmp_path / "runs/trial"


def index(plan, folder, summary=None) -> str:
    write_index(plan, folder, TOLD, summary)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_a_section_gives_its_first_picture_made_small(tmp_path):
    cells = ["# Title\n\ntext", [png(), png(10, 10)], "## Two\n### Three words here", [], [png(100, 2000)]]
    write_executed(tmp_path / "a.ipynb", *cells)
    first, second = thumbnails(tmp_path / "a.ipynb")
    assert (first.heading, second.heading, second.anchor) == ("Title", "Three words here", "Three-words-here")
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(one.source.removeprefix("data:image/webp;base64,")))).size
        for one in (first, second)
    ]
    assert sizes == [(480, 240), (20, 400)]
    assert thumbnails(tmp_path / "none.ipynb") == []
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    assert thumbnails(tmp_path / "half.ipynb") == []


def test_states_are_told_and_what_failed_says_why(plan, folder):
    page = index(plan, folder)
    assert "<title>trial &lt;1&gt;</title>" in page
    assert "1 of 3 steps finished; time 1 min 03 s, peak memory 1,024 MiB." in page
    assert "cell [3] &lt;b&gt;\n  no file" in page
    assert '<a href="1_train.html">1. train</a></td><td><span class="good">finished</span>' in page
    assert '<td>2. evaluate</td><td><span class="bad">failed</span></td><td>2 s</td><td>100 MiB</td>' in page
    assert '<td>3. compare</td><td><span class="soft">not run</span></td><td>-</td><td>-</td>' in page
    assert '<a href="1_train.html#How-it-went">' in page
    assert "3_compare" not in page
    assert "Figures" not in page


def test_figures_have_intervals_and_parameters_differ(plan, folder):
    for name, rank in (("a", 0), ("b", 4)):
        Experiment(experiment_name=name, lora_rank=rank).save(folder.parent / name / "config.yaml")
    interval = {"final_score": [0.71, 0.79], "plcc": [None, None]}
    full = {"split": "test", "final_score": 0.75, "plcc": 0.5, "threshold": 90, "intervals": interval}
    page = index(plan, folder, {"full": full, "lora": {"final_score": 0.5}, "trivial": {"plcc": None}, "seconds": 3.0})
    assert "<th>Final score</th><th>PLCC</th><th>Threshold</th>" in page
    assert "<td>full</td><td>0.750<small>0.71–0.79</small></td><td>0.500</td><td>90</td>" in page
    assert "<td>trivial</td><td>-</td><td>-</td><td>-</td>" in page
    assert "<th>lora_rank</th></tr><tr><td>full</td><td>0</td></tr><tr><td>lora</td><td>4</td>" in page


def test_more_parameters_than_runs_run_down_the_page(plan, folder):
    for name, values in (("a", {}), ("b", {"lora_rank": 4, "epoch": 3, "lr": 0.5})):
        Experiment(experiment_name=name, **values).save(folder.parent / name / "config.yaml")
    page = index(plan, folder, {"full": {"final_score": 0.5}})
    assert "<th>full</th><th>lora</th></tr><tr><td>lora_rank</td><td>0</td><td>4</td></tr>" in page


def test_a_summary_without_labels_says_so(plan, folder):
    assert "nothing could be measured" in index(plan, folder, {"full": {"split": "test"}, "seconds": 1.0})


def test_the_index_needs_no_network(plan, folder):
    assert fetched(index(plan, folder)) == []
