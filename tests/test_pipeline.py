"""Plans are checked before anything starts; runs stream, fail clearly, resume and sum up."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from unittest.mock import Mock

import nbformat
import pytest
from example_plans import fetched, start, write_books, write_plan
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.errors import InputError
from lib.files import locked
from lib.pipeline.plans import Plan, Step, load_plan
from lib.pipeline.summary import export_page, publish

PICTURE = new_output("display_data", data={"image/png": "iVBORw0KGgo="})


def said(text: str):
    return new_output("display_data", data={"text/markdown": text})


@pytest.fixture
def books(tmp_path):
    return write_books(tmp_path / "note books")


def one_step(**parameters) -> dict:
    return {"steps": [{"notebook": "1_prepare", "parameters": parameters}]}


def refusal(path, books, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_plan(path, books, overrides)
    return str(caught.value)


def test_parameters_are_layered_and_texts_filled(books):
    (books / "params" / "set.yaml").write_text("size: 10\nname: set\nlr: 1e-4")
    step = {"notebook": "1_prepare", "parameter_set": "set", "parameters": {"flag": True}}
    path = write_plan(books, parameters={"size": 11, "name": "plan"}, steps=[step])
    overrides = ["name=2024", "1_prepare.lr=1"]
    [step] = load_plan(path, books, overrides, runs=books).steps  # it has no parameter `runs`
    assert step.parameters == {"size": 11, "name": "2024", "lr": 1.0, "flag": True}
    assert isinstance(step.parameters["lr"], float)
    assert "it is a parameter set and not a plan" in refusal(books / "params" / "set.yaml", books)
    # Texts are filled.
    steps = [{"notebook": "3_evaluate", "parameters": {"experiment": "{runs}/{run}"}, "writes": ["{experiment}/x"]}]
    path = write_plan(books, name="{run}_evaluation", parameters={"run": ""}, steps=steps, summary={"a": "{run}"})
    plan = load_plan(path, books, ["run=best"])
    assert (plan.name, plan.summary) == ("best_evaluation", {"a": "best"})
    assert plan.steps[0].parameters == {"experiment": "runs/best"} and plan.steps[0].writes == ("runs/best/x",)


@pytest.mark.parametrize(
    ("plan", "override", "message"),
    [
        ({"step": []}, None, "the plan has no key 'step' (did you mean steps?)"),
        ({"steps": {"a": 1}}, None, "`steps` must be a list"),
        ({"steps": [{"notebok": "1_prepare"}]}, None, "step 1 has no key 'notebok' (did you mean notebook?)"),
        ({"steps": [{"notebook": "1_prepar"}]}, None, "1_prepar.ipynb is not a Jupyter notebook"),
        ({"steps": [{"notebook": "1_prepare", "parameter_set": "plna"}]}, None, "plna.yaml does not exist"),
        ({"steps": [{"notebook": "1_prepare"}] * 2}, None, "'1_prepare' must be the name of one step only"),
        ({"steps": [{"notebook": "1_prepare", "name": "../x"}]}, None, "fit for a file"),
        ({"steps": [{"notebook": "1_prepare", "writes": ["{nmae}"]}]}, None, "(did you mean name?)"),
        (one_step(sise=4), None, "'sise' (did you mean size?)"),
        (one_step(flag=1), None, "plan.yaml, step 1_prepare, 1_prepare.ipynb: flag: 1 is not true or false"),
        ({"parameters": {"tabel": {}}}, None, "'tabel' (did you mean table?)"),
        ({}, "nmae=x", "'nmae' (did you mean name?)"),
        ({}, "1_prepar.size=2", "'1_prepar' (did you mean 1_prepare?)"),
        ({}, "a b=3", "--set a b=3: write name=value, or step.name=value for one step"),
    ],
)
def test_a_wrong_plan_is_refused(books, plan, override, message):
    assert message in refusal(write_plan(books, **plan), books, *filter(None, [override]))


def test_a_failing_notebook_is_explained_and_the_run_goes_on_from_there(books, capsys):
    write_plan(books, steps=[{"notebook": "1_prepare"}, {"notebook": "2_work"}])
    folder = books.parent / "runs" / "trial"
    assert start(books, "--set", "mode=die") == 1
    assert "the kernel died, probably out of memory (smaller batches help) in cell [3]" in capsys.readouterr().err
    assert start(books, "--fresh", "--set", "mode=fail") == 1
    captured = capsys.readouterr()
    assert "cell [3], which begins with `import json" in captured.err
    assert "InputError: the folder x is empty; put images into it" in captured.err
    assert "Traceback" not in captured.err
    assert "the folder x is empty" in (folder / "2_2_work.html").read_text()
    assert "[1/2] 1_prepare: 1_prepare.ipynb\nprepared\n" in captured.out

    for works in (True, False):
        assert start(books) == 0
        again = capsys.readouterr().out
        assert "[1/2] 1_prepare: skipped, finished before" in again and str(folder / "index.html") in again
        assert ("working on 3\n" in again) == works


def test_the_summary_collects_figures_and_is_the_same_twice(books, capsys):
    writes = ["{runs}/{experiment}/evaluation.json"]
    steps = [
        {"notebook": "3_evaluate", "name": name, "parameters": {"experiment": run, "score": score}, "writes": writes}
        for name, run, score in (("full", "a", 0.75), ("lora", "b", 0.5))
    ]
    write_plan(books, steps=steps, summary={"full": "a", "lora": "b"})
    assert start(books) == 0
    folder = books.parent / "runs" / "trial"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["full"] == {
        "split": "test", "final_score": 0.75, "f1_score": 0.5, "threshold": 90, "trained_share": 0.1,
        "encoder_frozen": {"final_score": 0.375, "f1_score": 0.25}, "run_megabytes": 2.5,
        "by_domain": {"shown": {"final_score": 0.75, "f1_score": 0.5}}, "intervals": {"final_score": [0.6875, 0.8125]},
    }  # fmt: skip
    assert summary["lora"]["final_score"] == 0.5 and summary["trivial"] == {"final_score": 0.25, "f1_score": 0.125}
    assert summary["seconds"] > 0 and summary["peak_memory_mb"] > 10
    out = capsys.readouterr().out
    assert re.search(r"full with the encoder frozen +0.3750 +0.2500", out)
    assert "lora: trained 10.0% of the encoder's weights, run folder 2.5 MB" in out
    assert "<td>0.750<small>0.69 to 0.81</small></td>" in (folder / "index.html").read_text()

    assert start(books) == 0
    assert json.loads((folder / "summary.json").read_text()) == summary

    # What a step wrote is gone: it runs again, and so does what follows.
    (books.parent / "runs" / "b" / "evaluation.json").unlink()
    capsys.readouterr()
    assert start(books) == 0
    out = capsys.readouterr().out
    assert "full: skipped" in out and "lora: 3_evaluate.ipynb" in out


def test_a_step_that_needs_labels_is_left_out_without_them(books, capsys):
    evaluation = books.parent / "runs" / "a" / "evaluation.json"
    evaluation.parent.mkdir(parents=True)
    write_plan(books, steps=[{"notebook": "1_prepare", "labelled": "{runs}/a/evaluation.json"}])
    folder = books.parent / "runs" / "trial"
    evaluation.write_text('{"split": "hidden", "threshold": 90, "figures": null}')
    for told in ("1_prepare: left out, hidden has no labels", "skipped, finished before"):
        assert start(books) == 0 and told in capsys.readouterr().out
        assert ">left out<" in (folder / "index.html").read_text() and not (folder / "1_1_prepare.html").exists()
    evaluation.write_text('{"split": "hidden", "threshold": 90, "figures": {"final_score": 0.5, "f1_score": 0.5}}')
    assert start(books, "--fresh") == 0 and (folder / "1_1_prepare.html").exists()
    evaluation.unlink()
    assert start(books, "--fresh") == 2
    assert "evaluation.json does not exist" in capsys.readouterr().err


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
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.startswith("SIGINT: waiting for the cell")
    assert err.endswith(
        "\n\nInterrupted in cell [3], which begins with `import json, os, pathlib, time`\n"
        "  KeyboardInterrupt: \nThe same command goes on at the first unfinished step.\n"
    )
    folder = books.parent / "runs" / "trial"
    assert json.loads((folder / "state.json").read_text())["steps"]["2_work"]["finished"] is False
    index = (folder / "index.html").read_text()
    assert "<strong>2_work was interrupted</strong>" in index and "failed" not in index.partition("</style>")[2]


def test_an_interrupted_pipeline_waits_for_a_cell_that_saves(books):
    process = begin(books, "save")
    for _ in range(2):  # some schedulers send it twice
        os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and (books.parent / "saved").is_file()
    folder = books.parent / "runs" / "trial"
    for told in (err, *[(folder / name).read_text() for name in ("notebooks/1_2_work.ipynb", "1_2_work.html")]):
        assert "SIGINT: stopped and saved." in told


def test_what_keeps_a_pipeline_from_starting_is_named(books, capsys):
    write_plan(books)
    folder = books.parent / "runs" / "trial"
    folder.mkdir(parents=True)
    hold = "import fcntl, sys; fcntl.lockf(file := open(sys.argv[1], 'a'), fcntl.LOCK_EX); print(flush=True); input()"
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, folder / ".lock"], **streams) as other:
        other.stdout.readline()
        assert start(books) == 2
        other.communicate(b"\n")
    assert "in use by another pipeline" in capsys.readouterr().err
    (folder / "state.json").write_text("{")
    assert start(books) == 2
    assert "--fresh" in capsys.readouterr().err


def test_a_file_system_without_locks_is_named_and_worked_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fcntl.lockf", Mock(side_effect=OSError(errno.ENOLCK, "no locks")))
    for _ in range(2):  # the file that the first one leaves does not stop the second
        with locked(tmp_path / ".lock", "not free"):
            pass
        assert "this file system has no locks" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_told_although_a_later_step_fails(books, capsys):
    """As on a full disk; once it can be written the next start writes it, though its step does not run again."""
    write_plan(books, steps=[{"notebook": "1_prepare"}, {"notebook": "2_work"}])
    page = books.parent / "runs" / "trial" / "1_1_prepare.html"
    (page / "in the way").mkdir(parents=True)
    assert start(books, "--set", "mode=fail") == 1
    told = capsys.readouterr().err
    assert f"{page} cannot be written (" in told and "2_work failed" in told
    assert start(books) == 2  # nothing else failed
    assert f"error: {page} cannot be written (" in capsys.readouterr().err
    (page / "in the way").rmdir()
    page.rmdir()
    assert start(books) == 0
    assert "1_prepare: skipped" in capsys.readouterr().out and "prepared" in page.read_text()


def test_the_index_shows_what_came_out_one_picture_states_and_why_a_step_failed(tmp_path):
    """A plan whose last page is that of an earlier result; spaces between tags do not count."""
    folder = tmp_path / "trial"
    (folder / "notebooks").mkdir(parents=True)
    cells = [
        new_code_cell("plot()", outputs=[PICTURE], metadata={"tags": ["picture"]}),
        new_code_cell("say()", outputs=[said("It *learned*.")], metadata={"tags": ["summary"]}),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "notebooks" / "1_train.ipynb")
    (folder / "3_compare.html").touch()
    states = {
        "train": {"status": "finished", "seconds": 61.0, "peak_memory_mb": 1024.0},
        "evaluate": {"status": "failed", "seconds": 2.0, "peak_memory_mb": 100.0, "failure": "cell [3] <b>\n  no file"},
        "compare": {"status": "not run"},
    }
    steps = [Step(name, folder / "x.ipynb", {}, (), "", f"{k}_{name}") for k, name in enumerate(states, 1)]
    publish(Plan("trial <1>", tuple(steps), {}), folder, states, {"full": {"split": "test"}, "seconds": 1.0})
    page = re.sub(r">\s+<", "><", (folder / "index.html").read_text(encoding="utf-8"))
    for told in (
        "<title>trial &lt;1&gt;</title>",
        "<p>It <em>learned</em>.</p>",
        "1 of 3 steps finished; time 1 min 03 s.",
        "cell [3] &lt;b&gt;\n  no file",
        '<li><a href="1_train.html">train</a>: <span>finished</span>, 1 min 01 s, 1,024 MiB</li>',
        '<li>evaluate: <span class="bad">failed</span>, 2 s, 100 MiB</li>',
        "nothing could be measured",
    ):
        assert told in page
    assert page.count("data:image/png;base64,iVBORw0KGgo=") == 1
    assert "3_compare.html" not in page and fetched(page) == []


@pytest.mark.parametrize("failed", [False, True])
def test_a_page_begins_with_a_summary_and_folds_minor_sections_and_long_logs(tmp_path, failed):
    """Unless the notebook failed; spaces between tags do not count."""
    error = new_output("error", ename="InputError", evalue="no <labels>", traceback=["InputError: no"])
    log = new_output("stream", text="\n".join(f"step {k}" for k in range(9)))
    cells = [
        new_markdown_cell("# Title\n\nPurpose."),
        new_markdown_cell("### Columns\n\nWhat they mean."),
        new_code_cell("train()", outputs=[log]),
        new_markdown_cell("## One *word*\n\nFirst."),
        new_markdown_cell("## Two"),
        new_code_cell("say(1)", outputs=[said("Final score 0.75.")], metadata={"tags": ["summary"]}),
        new_code_cell("more()", outputs=[error] if failed else []),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "a.ipynb")
    export_page(tmp_path / "a.ipynb", tmp_path / "a.html", "step")
    page = re.sub(r">\s+<", "><", (tmp_path / "a.html").read_text())
    assert "<title>step</title>" in page and fetched(page) == []
    texts = ("<h1", 'class="summary"><p>Final score 0.75.', "<nav>", "Purpose.", "First.")
    places = [page.index(text) for text in texts]
    assert places == sorted(places) and page.count("Final score 0.75.") == 1
    assert '<li><a href="#One-word">One <em>word</em></a></li><li><a href="#Two">Two</a></li>' in page
    opened = ' open=""' if failed else ""
    before, _, after = page.partition('<h2 id="One-word"')
    fold = before.partition(f"<details{opened}><summary><h3")[2]
    assert "What they mean." in fold and f'<details class="log"{opened}><summary>Log, 9 lines' in fold
    assert before.count("<details") == before.count("</details>") == 2 and "details" not in after
    assert ("did not run to its end" in page) == failed == ("InputError: no &lt;labels&gt;" in page)


def test_half_a_notebook_is_told(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1 + 1")]), tmp_path / "half.ipynb")
    (tmp_path / "half.ipynb").write_text((tmp_path / "half.ipynb").read_text()[:-20])
    with pytest.raises(InputError, match="half.ipynb is no whole notebook"):
        export_page(tmp_path / "half.ipynb", tmp_path / "half.html", "half")
