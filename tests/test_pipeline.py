"""Plans are checked before anything starts; runs stream, fail clearly, resume and sum up."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from example_plans import DEFAULTS, WORK, fetched, start, write_books, write_notebook, write_plan
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.config import Experiment
from lib.errors import InputError
from lib.pipeline import page as page_command
from lib.pipeline.page import export_page
from lib.pipeline.plans import Plan, Step, load_plan
from lib.pipeline.state import State
from lib.pipeline.summary import as_text, duration, figures_of, summarise, write_index
from lib.signals import SAME_REQUEST


@pytest.fixture
def books(tmp_path):
    return write_books(tmp_path / "note books")


def refusal(path, books, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_plan(path, books, overrides)
    return str(caught.value)


# --- checking ---


def test_parameters_are_layered(books):
    (books / "params" / "set.yaml").write_text("size: 10\nname: set\nlr: 1e-4")
    step = {"notebook": "1_prepare", "parameter_set": "set", "parameters": {"flag": True}}
    path = write_plan(books, parameters={"size": 11, "name": "plan"}, steps=[step])
    overrides = ["name=2024", "1_prepare.lr=1"]
    [step] = load_plan(path, books, overrides).steps
    assert step.parameters == {"size": 11, "name": "2024", "lr": 1.0, "flag": True}
    assert isinstance(step.parameters["lr"], float)


def test_all_problems_are_named_at_once_with_the_nearest_name(books):
    step = {"notebook": "1_prepare", "parameters": {"sise": 4, "flag": 1, "items": "a", "lr": "fast"}}
    message = refusal(write_plan(books, steps=[step], parameters={"tabel": {}}), books, "nmae=x", "1_prepar.size=2")
    for part in (
        "'sise' (did you mean size?)",
        "plan.yaml, step 1_prepare, 1_prepare.ipynb: flag: 1 is not true or false, for example False",
        "items: 'a' is not a list",
        "lr: 'fast' is not a number, for example 0.1",
        "'tabel' (did you mean table?)",
        "'nmae' (did you mean name?)",
        "'1_prepar' (did you mean 1_prepare?)",
    ):
        assert part in message
    assert message.count("\n  - ") == 7


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"step": []}, "the plan has no key 'step' (did you mean steps?)"),
        ({"steps": {"a": 1}}, "`steps` must be a list"),
        ({"steps": ["1_prepare"]}, "step 1 must be a mapping"),
        ({"steps": [{"notebok": "1_prepare"}]}, "step 1 has no key 'notebok' (did you mean notebook?)"),
        ({"steps": [{"notebook": "1_prepar"}]}, "there is no notebook 1_prepar"),
        ({"steps": [{"notebook": "1_prepare", "parameter_set": "plna"}]}, "(did you mean plan?)"),
        ({"steps": [{"notebook": "1_prepare"}] * 2}, "two steps are called 1_prepare"),
        ({"steps": [{"notebook": "1_prepare", "name": "../x"}]}, "must be usable as a file name"),
        ({"steps": [{"notebook": "1_prepare", "writes": ["{nmae}"]}]}, "(did you mean name?)"),
        ({"name": "../x"}, "must be usable as a file name"),
    ],
)
def test_a_wrong_plan_is_refused(books, plan, message):
    assert message in refusal(write_plan(books, **plan), books)


def test_a_parameter_set_is_not_a_plan(books):
    path = books / "params" / "set.yaml"
    path.write_text("size: 4")
    assert "it is a parameter set and not a plan" in refusal(path, books)


def test_runs_goes_to_every_notebook_that_has_it(books, tmp_path):
    path = write_plan(books, steps=[{"notebook": "1_prepare"}, {"notebook": "3_evaluate"}])
    first, second = load_plan(path, books, runs=tmp_path).steps
    assert (first.parameters, second.parameters) == ({}, {"runs": str(tmp_path)})


def test_texts_of_a_plan_are_filled(books):
    steps = [{"notebook": "3_evaluate", "parameters": {"experiment": "{runs}/{run}"}, "writes": ["{experiment}/x"]}]
    path = write_plan(books, name="{run}_evaluation", parameters={"run": ""}, steps=steps, summary={"a": "{run}"})
    plan = load_plan(path, books, ["run=best"])
    assert (plan.name, plan.summary) == ("best_evaluation", {"a": "best"})
    assert plan.steps[0].parameters == {"experiment": "runs/best"}
    assert plan.steps[0].writes == ("runs/best/x",)


def test_fingerprints_chain(books):
    path = write_plan(books, steps=[{"notebook": "1_prepare"}, {"notebook": "2_work"}])
    before = [step.fingerprint for step in load_plan(path, books).steps]
    assert [step.fingerprint for step in load_plan(path, books).steps] == before
    second = [step.fingerprint for step in load_plan(path, books, ["mode=x"]).steps]
    assert (second[0] == before[0], second[1] == before[1]) == (True, False)
    write_notebook(books / "1_prepare.ipynb", DEFAULTS, "print('changed')")
    assert not set(before) & {step.fingerprint for step in load_plan(path, books).steps}


@pytest.mark.parametrize("text", ["", "name", "=3", "a b=3", "step.=3"])
def test_a_malformed_override_is_refused(books, text):
    assert "name=value" in refusal(write_plan(books), books, text)


def test_a_wrong_plan_ends_in_two_and_starts_nothing(books, capsys):
    write_plan(books, steps=[{"notebook": "1_prepare"}, {"notebook": "2_work", "parameters": {"sise": 1}}])
    assert start(books) == 2
    captured = capsys.readouterr()
    assert "did you mean size?" in captured.err
    assert "Traceback" not in captured.err
    assert not (books.parent / "runs").exists()


def test_signals_are_as_before_when_it_has_ended(books):
    before = signal.getsignal(signal.SIGTERM)
    write_plan(books)
    assert start(books, "--check") == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_check_runs_nothing(books, capsys):
    write_plan(books)
    assert start(books, "--check") == 0
    assert "is fine: 1_prepare" in capsys.readouterr().out
    assert not (books.parent / "runs").exists()


# --- running ---


def test_a_failing_notebook_is_explained_and_the_run_goes_on_from_there(books, capsys):
    write_plan(books, steps=[{"notebook": "1_prepare"}, {"notebook": "2_work"}])
    folder = books.parent / "runs" / "trial"
    assert start(books, "--set", "mode=fail") == 1
    captured = capsys.readouterr()
    assert "cell [3], which begins with `import json" in captured.err
    assert "InputError: the folder x is empty; put images into it" in captured.err
    assert "Traceback" not in captured.err
    assert "the folder x is empty" in (folder / "2_2_work.html").read_text()
    assert "[1/2] 1_prepare: 1_prepare.ipynb\n    prepared\n" in captured.out
    assert "    a bar 2/2\n" in captured.out
    assert "a bar 1/2" not in captured.out

    assert start(books) == 0
    again = capsys.readouterr().out
    assert "[1/2] 1_prepare: skipped, finished before" in again
    assert "    working on 3\n" in again
    assert str(folder / "index.html") in again

    assert start(books) == 0
    assert "working" not in capsys.readouterr().out
    assert start(books, "--only", "1_prepare") == 0
    assert "Not finished yet: 2_work" in capsys.readouterr().out


def test_a_dead_kernel_is_explained(books, capsys):
    write_plan(books, steps=[{"notebook": "2_work"}])
    assert start(books, "--set", "mode=die") == 1
    assert "the kernel died, probably out of memory (smaller batches help) in cell [3]" in capsys.readouterr().err


def test_the_summary_collects_figures_and_is_the_same_twice(books, capsys):
    steps = [
        {"notebook": "3_evaluate", "name": "full", "parameters": {"experiment": "a", "score": 0.75}},
        {"notebook": "3_evaluate", "name": "lora", "parameters": {"experiment": "b", "score": 0.5}},
    ]
    for step in steps:
        step["writes"] = ["{runs}/{experiment}/evaluation.json"]
    write_plan(books, steps=steps, summary={"full": "a", "lora": "b"})
    assert start(books) == 0
    folder = books.parent / "runs" / "trial"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["full"] == {
        "split": "test",
        "final_score": 0.75,
        "f1_score": 0.5,
        "before_fine_tuning": {"final_score": 0.375, "f1_score": 0.25},
        "by_domain": {"shown": {"final_score": 0.75, "f1_score": 0.5}},
        "threshold": 90,
        "intervals": {"final_score": [0.6875, 0.8125]},
        "trained_share": 0.1,
        "run_megabytes": 2.5,
    }
    assert summary["lora"]["final_score"] == 0.5
    assert summary["trivial"] == {"final_score": 0.25, "f1_score": 0.125}
    assert summary["seconds"] > 0
    assert summary["peak_memory_mb"] > 10
    out = capsys.readouterr().out
    assert re.search(r"full before fine-tuning +0.3750 +0.2500", out)
    assert "lora: trained 10.0% of the encoder's weights, run folder 2.5 MB" in out
    assert "<td>0.750<small>0.69 to 0.81</small></td>" in (folder / "index.html").read_text()

    assert start(books) == 0
    assert json.loads((folder / "summary.json").read_text()) == summary

    # What a step wrote is gone: it runs again, and so does what follows.
    (books.parent / "runs" / "b" / "evaluation.json").unlink()
    capsys.readouterr()
    assert start(books) == 0
    out = capsys.readouterr().out
    assert "full: skipped" in out
    assert "lora: 3_evaluate.ipynb" in out


def test_a_step_that_needs_labels_is_left_out_without_them(books, capsys):
    evaluation = books.parent / "runs" / "a" / "evaluation.json"
    evaluation.parent.mkdir(parents=True)
    write_plan(books, steps=[{"notebook": "1_prepare", "labelled": "{runs}/a/evaluation.json"}])
    folder = books.parent / "runs" / "trial"
    for _ in range(2):
        evaluation.write_text('{"split": "hidden", "figures": null}')
        assert start(books) == 0
        out = capsys.readouterr().out
        assert "1_prepare: left out, hidden has no labels" in out or "skipped, finished before" in out
        assert ">left out<" in (folder / "index.html").read_text() and not (folder / "1_1_prepare.html").exists()
    evaluation.write_text('{"split": "hidden", "figures": {"f1_score": 0.5}}')
    assert start(books, "--fresh") == 0
    assert "left out" not in capsys.readouterr().out and (folder / "1_1_prepare.html").exists()
    evaluation.unlink()
    assert start(books, "--fresh") == 2
    assert "evaluation.json does not exist" in capsys.readouterr().err


def test_a_step_that_writes_nothing_is_not_finished(books, capsys):
    write_plan(books, steps=[{"notebook": "1_prepare", "writes": ["nowhere/{name}.json"]}])
    assert start(books) == 1
    assert "it ended without writing nowhere/a.json" in capsys.readouterr().err


def begin(books, mode: str) -> subprocess.Popen:
    """The pipeline in a process and a group of its own, its notebook in the middle of the cell."""
    saved = str(books.parent / "saved")
    later = {"notebook": "1_prepare"}
    path = write_plan(books, steps=[{"notebook": "2_work", "parameters": {"mode": mode, "saved": saved}}, later])
    command = [sys.executable, "-m", "lib.pipeline", path, "--notebooks", books, "--runs", books.parent / "runs"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **streams)
    while "a bar" not in process.stdout.readline():
        assert process.poll() is None
    return process


def test_an_interrupted_pipeline_ends_a_cell_that_saves_nothing_and_says_how_to_go_on(books):
    process = begin(books, "sleep")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - began < 20
    assert err.startswith("SIGINT: waiting for the cell")
    assert err.endswith(
        "\n\nInterrupted in cell [3], which begins with `import json, os, pathlib, time`\n"
        "  KeyboardInterrupt: \n"
        "The same command goes on at the first unfinished step.\n"
    )
    state = json.loads((books.parent / "runs" / "trial" / "state.json").read_text())
    assert state["steps"]["2_work"]["finished"] is False
    index = (books.parent / "runs" / "trial" / "index.html").read_text()
    assert "<strong>2_work was interrupted</strong>" in index and "failed" not in index.partition("</style>")[2]


def test_an_interrupted_pipeline_waits_for_a_cell_that_saves(books):
    process = begin(books, "save")
    for _ in range(2):  # some schedulers send it twice
        os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (books.parent / "saved").is_file()
    assert "Interrupted: SIGINT: stopped and saved." in err
    folder = books.parent / "runs" / "trial"
    assert "SIGINT: stopped and saved." in (folder / "notebooks" / "1_2_work.ipynb").read_text()
    assert "SIGINT: stopped and saved." in (folder / "1_2_work.html").read_text()


@pytest.mark.slow
def test_a_second_signal_ends_a_cell_that_hangs(books):
    process = begin(books, "hang")
    [kernel] = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME_REQUEST + 0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.endswith("\nInterrupted. The same command goes on at the first unfinished step.\n")
    assert not kernel.is_running()


@pytest.mark.slow
def test_no_cell_begins_after_one_that_missed_the_signal(books):
    write_notebook(books / "2_work.ipynb", "size = 3\nmode = 'ok'\nsaved = ''", WORK, "print('the next cell')")
    process = begin(books, "deaf")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "not heard" in out
    assert "the next cell" not in out
    assert err.endswith("\nInterrupted. The same command goes on at the first unfinished step.\n")


def test_two_pipelines_do_not_share_a_folder(books, capsys):
    import filelock

    write_plan(books)
    folder = books.parent / "runs" / "trial"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"):
        assert start(books) == 2
    assert "in use by another pipeline" in capsys.readouterr().err


def test_a_damaged_state_is_named(books, capsys):
    write_plan(books)
    folder = books.parent / "runs" / "trial"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{")
    assert start(books) == 2
    assert "--fresh" in capsys.readouterr().err


def test_unknown_steps_are_named(books, capsys):
    write_plan(books)
    assert start(books, "--from", "1_prepar") == 2
    assert "did you mean 1_prepare?" in capsys.readouterr().err


# --- reports ---


def test_seconds_of_unfinished_attempts_add_up(books, tmp_path):
    [step] = load_plan(write_plan(books), books).steps
    state = State(tmp_path / "state.json", tmp_path)
    state.add(step, "interrupted", 10.0, 100.0)
    state.forget([step.name])
    state.add(step, None, 5.0, 50.0)
    entry = State(tmp_path / "state.json", tmp_path).steps[step.name]
    assert (entry["seconds"], entry["peak_memory_mb"], entry["finished"]) == (15.0, 100.0, True)
    state.forget([step.name])
    state.add(step, None, 7.0, 1.0)
    assert state.steps[step.name]["seconds"] == 7.0


def test_a_missing_or_malformed_evaluation_is_named(tmp_path):
    plan = Plan("trial", (), {"full": "a"})
    with pytest.raises(InputError, match="a/evaluation.json does not exist"):
        summarise(plan, tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "evaluation.json").write_text('{"figures": 3}')
    with pytest.raises(InputError, match="is not what notebook 3 writes"):
        summarise(plan, tmp_path)


def test_the_table_shows_counts_whole_and_undefined_figures_as_a_dash():
    before = {"plcc": 0.125, "f1_score": 0.25}
    full = {"plcc": 0.25, "f1_score": 0.5, "threshold": 90, "trained_share": 0.1, "before_fine_tuning": before}
    summary = {"full": full, "trivial": {"f1_score": 0.5, "plcc": None}}
    table = figures_of(summary)
    assert list(table) == ["f1_score", "plcc", "threshold"]
    assert list(table.index) == ["full", "full before fine-tuning", "trivial"]
    lines = [line.split() for line in as_text(summary | {"seconds": 3.0, "peak_memory_mb": 7}).splitlines()]
    assert ["full", "0.5000", "0.2500", "90"] in lines
    assert ["trivial", "0.5000", "-", "-"] in lines
    assert lines[-1] == ["time", "3", "s,", "peak", "memory", "7", "MiB"]


STEPS = {
    "train": {"status": "finished", "seconds": 61.0, "peak_memory_mb": 1024.0},
    "evaluate": {"status": "failed", "seconds": 2.0, "peak_memory_mb": 100.0, "failure": "cell [3] <b>\n  no file"},
    "compare": {"status": "not run"},
}


def index(folder, summary=None) -> str:
    """index.html of a plan whose last page is that of an earlier result, on one line without spaces between tags."""
    steps = [Step(name, folder / "x.ipynb", {}, (), "", f"{k}_{name}") for k, name in enumerate(STEPS, 1)]
    (folder / "trial").mkdir(exist_ok=True, parents=True)
    for name in ("1_train", "3_compare"):
        (folder / "trial" / f"{name}.html").touch()
    write_index(Plan("trial <1>", tuple(steps), {"full": "a", "lora": "b"}), folder / "trial", STEPS, summary)
    page = (folder / "trial" / "index.html").read_text(encoding="utf-8")
    assert fetched(page) == []
    return re.sub(r">\s+<", "><", page)


def test_the_index_shows_states_and_why_a_step_failed(tmp_path):
    page = index(tmp_path)
    assert "<title>trial &lt;1&gt;</title>" in page
    assert "1 of 3 steps finished; time 1 min 03 s." in page
    assert "cell [3] &lt;b&gt;\n  no file" in page
    assert '<a href="1_train.html">1. train</a></th>' in page
    assert '<th>2. evaluate</th><td><span class="bad">failed</span></td><td>2 s</td><td>100 MiB</td>' in page
    assert "3_compare.html" not in page
    assert "Figures" not in page


def test_the_index_shows_figures_with_intervals_and_parameters_that_differ(tmp_path):
    for name, rank in (("a", 0), ("b", 4)):
        Experiment(experiment_name=name, lora_rank=rank).save(tmp_path / name / "config.yaml")
    interval = {"final_score": [0.71, 0.79], "plcc": [None, None]}
    full = {"split": "test", "final_score": 0.75, "plcc": 0.5, "threshold": 90, "intervals": interval}
    page = index(tmp_path, {"full": full, "lora": {"final_score": 0.5}, "trivial": {"plcc": None}, "seconds": 3.0})
    assert "<p>Final score: full 0.750, lora 0.500.</p>" in page
    assert "<th>Final score</th><th>PLCC</th><th>Threshold</th>" in page
    assert "<th>full</th><td>0.750<small>0.71 to 0.79</small></td><td>0.500</td><td>90</td>" in page
    assert "<th>trivial</th><td>-</td><td>-</td><td>-</td>" in page
    assert "<th>lora_rank</th><td>0</td><td>4</td>" in page
    assert "nothing could be measured" in index(tmp_path, {"full": {"split": "test"}, "seconds": 1.0})


def test_pages_hold_their_pictures_and_need_no_network(tmp_path):
    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo="})
    cell = new_code_cell("plot()", outputs=[picture], execution_count=1)
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Title"), cell]), tmp_path / "a.ipynb")
    export_page(tmp_path / "a.ipynb", tmp_path / "a.html", "step")
    page = (tmp_path / "a.html").read_text()
    assert "data:image/png;base64,iVBORw0KGgo=" in page
    assert "<title>step</title>" in page
    assert fetched(page) == []


def test_an_executed_notebook_becomes_a_page_by_a_command(tmp_path, capsys):
    cell = new_code_cell("1 + 1", outputs=[new_output("stream", text="two")], execution_count=1)
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    command = [sys.executable, "-W", "error", "-m", "lib.pipeline.page", str(tmp_path / "a.ipynb")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'a.html'}\n", "")
    assert "two" in (tmp_path / "a.html").read_text()
    assert page_command.main([str(tmp_path / "a.ipynb"), str(tmp_path / "none" / "a.html")]) == 2
    (tmp_path / "half.ipynb").write_text((tmp_path / "a.ipynb").read_text()[:-20])
    assert page_command.main([str(tmp_path / "half.ipynb")]) == 2
    assert "half.ipynb is no whole notebook" in capsys.readouterr().err
    assert page_command.main([]) == 2


def test_of_a_widget_a_page_keeps_the_picture_that_it_brings(tmp_path):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "Widget()"}
    bundles = [view, view, view | {"image/png": "iVBORw0KGgo="}, {"text/plain": "Widget() as text"}]
    outputs = [new_output("execute_result", data=data, execution_count=1) for data in bundles]
    state = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}}}}
    cells = [new_code_cell("widget", outputs=outputs, execution_count=1)]
    nbformat.write(new_notebook(cells=cells, metadata={"widgets": state}), tmp_path / "a.ipynb")
    export_page(tmp_path / "a.ipynb", tmp_path / "a.html", "step")
    page = (tmp_path / "a.html").read_text()
    assert page.count("Out[1]:") == 2
    assert "data:image/png;base64,iVBORw0KGgo=" in page
    assert page.count("Widget()") == 1
    assert "vnd.jupyter.widget" not in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")]
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
