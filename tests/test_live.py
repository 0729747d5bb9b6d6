"""The live view: what it draws, which lines it takes, how it ends, what it costs."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from xml.etree import ElementTree

import pytest

from lib import workspace
from lib.config import Experiment
from lib.errors import InputError
from lib.pipeline import run
from lib.train import live
from lib.train.launch import launch
from lib.train.live import RECORD, Lines, View, live_view, watch
from lib.train.live_html import Progress, last_shown, points, render, ticks
from lib.train.run_folder import LOCK, is_being_trained
from lib.train.signals import Interrupted, StopRequest
from lib.train.tracking import Tracker, read_metrics
from lib.workspace import in_jupyterlab

# Warm-up: 3 steps. Main: 2 epochs of 6 steps; an evaluation after each of the three epochs.
SHORT = {"val_iter": 1, "epoch": 2}


def row(step, stage="main", epoch=1, **values):
    return {"step": step, "stage": stage, "epoch": epoch, **values, "seconds": 1.5 * step}


def parsed(text: str) -> ElementTree.Element:
    """The display without its style sheet; fails when a tag is not closed or a name was not escaped."""
    return ElementTree.fromstring(text.partition("</style>")[2])


def polylines(text: str) -> list[list[tuple[float, float]]]:
    lines = (element.get("points").split() for element in parsed(text).iter("polyline"))
    return [[tuple(map(float, place.split(","))) for place in line] for line in lines]


@pytest.fixture
def in_lab(monkeypatch):
    """As if JupyterLab had started this process as a kernel; returns the bundles that were displayed, in order."""
    shown = []
    handle = types.SimpleNamespace(update=lambda bundle, raw: shown.append(bundle))
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/2_train.ipynb")
    monkeypatch.setattr(workspace, "get_ipython", lambda: types.SimpleNamespace(kernel="a kernel"))
    monkeypatch.setattr(live, "display", lambda bundle, raw, display_id: shown.append(bundle) or handle)
    return shown


# Where it is shown


def test_lab_is_a_kernel_with_a_session(in_lab, monkeypatch):
    assert in_jupyterlab()
    monkeypatch.delenv("JPY_SESSION_NAME")  # papermill, nbclient
    assert not in_jupyterlab()


def test_a_command_started_from_a_cell_is_not_lab(in_lab, monkeypatch):
    monkeypatch.setattr(workspace, "get_ipython", lambda: None)
    assert not in_jupyterlab()


def test_a_pipeline_started_from_lab_stays_plain(in_lab, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    run._prepare_environment()
    assert not in_jupyterlab()


def test_elsewhere_nothing_changes(in_lab, monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME")
    before = sys.stdout
    with live_view(Experiment(experiment_name="run")):
        assert sys.stdout is before
    assert not in_lab


# A training


def test_a_training_is_shown_and_its_other_lines_are_printed(experiment, in_lab, capsys):
    config = experiment(**SHORT)
    with live_view(config):
        run = launch(config)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run:", "Trained"]
    assert in_lab[0]["text/plain"] == "Starting: run, 0:00 elapsed"
    assert in_lab[-1]["text/plain"].startswith("Trained: run, step 15 of 15, main stage, epoch 2 of 2, 0:")
    losses, masks, scores, final, *figures = polylines(in_lab[-1]["text/html"])
    assert len(losses) == len(masks) == len(scores) == 15 and len(final) == 3
    # Again: it is finished, which is said at once, and the same curve is shown.
    del in_lab[:]
    with live_view(config):
        assert launch(config) == run
    assert "already trained" in capsys.readouterr().out
    assert polylines(in_lab[0]["text/html"])[0] == polylines(in_lab[-1]["text/html"])[0] == losses
    assert in_lab[-1]["text/plain"].startswith("Trained: run, step 15 of 15")


def test_a_stopped_training_goes_on_with_the_earlier_curve(experiment, in_lab, monkeypatch, capsys):
    config = experiment(**SHORT)
    log = Tracker.log

    def log_and_stop(tracker, step, *arguments, **values):
        log(tracker, step, *arguments, **values)
        if step == 7:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGINT: stopped at step 8 of 15 and saved"):
        patch.setattr(Tracker, "log", log_and_stop)
        with live_view(config):
            launch(config)
    assert in_lab[-1]["text/plain"].startswith("Stopped; run the cell again to go on: run, 0:")
    assert len(polylines(in_lab[-1]["text/html"])[0]) == 8
    del in_lab[:]
    with live_view(config):
        launch(config)
    assert len(polylines(in_lab[0]["text/html"])[0]) == 8
    assert len(polylines(in_lab[-1]["text/html"])[0]) == 15
    assert "Going on from" in capsys.readouterr().out


def test_an_error_passes_and_is_told(experiment, in_lab):
    config = experiment(num_processes=1, data_path="nowhere")
    with pytest.raises(InputError, match="nowhere"), live_view(config):
        launch(config)
    assert in_lab[-1]["text/plain"].startswith("Failed; the reason is below: run")


def test_it_is_drawn_while_the_training_runs_and_says_that_a_stop_was_heard(experiment, in_lab, monkeypatch):
    monkeypatch.setattr(live, "PERIOD", 0.01)

    def shown(text):
        deadline = time.monotonic() + 10
        while not any(text in bundle["text/plain"] for bundle in in_lab):
            assert time.monotonic() < deadline, in_lab[-1]["text/plain"]
            time.sleep(0.01)

    config = experiment()
    config.folder.mkdir(parents=True)
    with live_view(config):
        tracker = Tracker(config.folder, 40, 0)
        tracker.started -= 532
        tracker.log(5, "main", 1, loss=1.25)
        tracker.close()
        shown("Training: run, step 5 of 40, main stage, epoch 1 of 2, 8:52 elapsed, 1:02:04 left")
        shown("8:53 elapsed, 1:02:03 left")  # the clock runs between two records
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
            shown("Stopping; the run is saved first: run, step 5 of 40")
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(_draw_on)")]
    assert not StopRequest.requested


def test_an_interrupt_while_it_loads_is_one_sentence(experiment, in_lab, monkeypatch):
    monkeypatch.setattr("lib.train.launch.train", lambda config: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted, match="Stopped; the same call goes on from the newest checkpoint"):
        launch(experiment())


def test_a_name_with_a_date_is_settled_when_the_run_begins(experiment, monkeypatch):
    given = []
    monkeypatch.setattr("lib.train.launch.train", given.append)
    launch(experiment(experiment_name=""))
    assert given[0].experiment_name == experiment(experiment_name="").name != ""


# A training elsewhere

TRAINER = """
import sys, time
from pathlib import Path
from lib.train.run_folder import sole_owner
from lib.train.tracking import Tracker
folder = Path(sys.argv[1])
with sole_owner(folder):
    for line in sys.stdin:
        if line == "record\\n":
            tracker = Tracker(folder, 40, 0)
            tracker.log(8, "main", 1, loss=1.25)
            tracker.close()
        if line == "finish\\n":
            (folder / "finished.json").write_text("{}")
        print("done", flush=True)
"""


@pytest.fixture
def elsewhere(experiment, monkeypatch):
    """elsewhere(): begins the training of a run in another process; returns (config, tell)."""
    monkeypatch.setattr(live, "PERIOD", 0.01)
    config, started = experiment(), []
    config.save(config.folder / "config.yaml")

    def begin():
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(config.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)

        def tell(what: str) -> None:
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
            assert "done\n" in iter(process.stdout.readline, "")

        tell("go")
        return tell

    yield config, begin
    for process in started:
        process.kill()
        process.wait()


def watched(config, shown) -> tuple[threading.Thread, callable]:
    """Watch in a thread; `see(text)` waits until what is shown begins so."""
    thread = threading.Thread(target=watch, args=(config.folder, 1.0))
    thread.start()

    def see(text: str) -> None:
        deadline = time.monotonic() + 20
        while not (shown and shown[-1]["text/plain"].startswith(text)):
            assert time.monotonic() < deadline, shown[-1:]
            time.sleep(0.01)

    return thread, see


def test_a_run_trained_elsewhere_is_watched_to_its_end(elsewhere, in_lab):
    config, begin = elsewhere
    tell = begin()
    thread, see = watched(config, in_lab)
    see("Starting: run, 0:0")
    tell("record")
    see("Training: run, step 8 of 40, main stage, epoch 1 of 2, 0:0")
    assert re.search(r"0:\d\d left$", in_lab[-1]["text/plain"])
    tell("finish")
    see("Trained: run, step 8 of 40")
    thread.join(10)
    assert not thread.is_alive()


def test_a_run_that_nobody_trains_is_left_after_a_while(elsewhere, in_lab):
    config, begin = elsewhere
    watch(config.folder, 0)
    assert [bundle["text/plain"] for bundle in in_lab] == ["Not being trained now: run"]
    begin()("record")
    # The process that goes on has told nothing yet: what stands in the file is from the one before.
    later = time.time() + 60
    os.utime(config.folder / LOCK, (later, later))
    thread, see = watched(config, in_lab)
    see("Starting: run, step 8 of 40, main stage, epoch 1 of 2, 0:0")
    os.utime(config.folder / LOCK, (0, 0))
    see("Training: run, step 8 of 40")
    (config.folder / "finished.json").touch()
    thread.join(10)
    assert not thread.is_alive()


def test_elsewhere_than_in_lab_watching_prints_a_line_a_change(elsewhere, capsys):
    config, begin = elsewhere
    begin()("record")
    threading.Timer(0.5, (config.folder / "finished.json").touch).start()
    watch(config.folder)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Training: run, step 8 of 40") and last.startswith("Trained: run, step 8 of 40")


def test_the_stop_button_ends_the_watching_only(elsewhere, in_lab, monkeypatch):
    config, begin = elsewhere
    begin()("record")
    monkeypatch.setattr(time, "sleep", lambda seconds: signal.raise_signal(signal.SIGINT))
    watch(config.folder)
    assert is_being_trained(config.folder)


def test_a_run_that_is_not_there_is_refused_with_those_that_are(experiment):
    config = experiment()
    with pytest.raises(InputError, match="there is no run .*/other; train one first"):
        watch(config.folder.with_name("other"))
    config.save(config.folder / "config.yaml")
    with pytest.raises(InputError, match=f"there is no run .*/other; there are {config.folder}"):
        watch(config.folder.with_name("other"))


# Lines


def test_records_are_recognised_as_the_tracker_prints_them(tmp_path, capsys):
    tracker = Tracker(tmp_path, total_steps=40000, first_step=0)
    tracker.started -= 100
    tracker.log(10, "warmup", 1, loss=1.0, lr=1e-3)
    tracker.log(20, "main", 2, val_final_score=0.5, val_threshold=120)
    tracker.log(21, "main", 2, skipped="a, b")
    tracker.close()
    loss, figures, skipped = capsys.readouterr().out.splitlines()
    assert RECORD.fullmatch(loss) and RECORD.fullmatch(figures)
    assert re.search(r"  \d+:\d\d:\d\d left$", loss)
    assert not RECORD.fullmatch(skipped)  # a warning: it stays a line


def test_lines_are_taken_whole_and_everything_else_passes():
    out = io.StringIO()
    with Lines(out, lambda line: line.startswith("step")) as lines:
        print("one", end="", file=lines)
        print(" line\nstep 1", file=lines)
        print("st", "ep 2\n", sep="", end="", file=lines)
        lines.flush()
        print("steps of another kind are kept\nno line end", end="", file=lines)
    assert out.getvalue() == "one line\nno line end"


# The picture


def test_points_are_placed_by_hand():
    """Steps 0..20 over a width of 408 units from 40; losses 1 and 3, with 6 % of room, over a height of 145."""
    text = render(Progress("run", "training", 20, 20), [row(10, loss=3.0), row(20, loss=1.0)], evaluates=False)
    low, high = 1 - 0.12, 3 + 0.12
    expected = [(40 + 408 / 2, 161 - 145 * (3 - low) / (high - low)), (448, 161 - 145 * (1 - low) / (high - low))]
    (line,) = polylines(text)
    assert line == [pytest.approx(place, abs=0.06) for place in expected]


def test_values_that_are_no_numbers_are_left_out():
    rows = [row(1, loss=2.0), row(2, loss=float("nan")), row(3, skipped="a"), row(4, loss=1.0), row(4, val_srcc=0.5)]
    assert points(rows, "loss") == [(1, 2.0), (4, 1.0)]


@pytest.mark.parametrize("value", [0.0, 1.0, -3e20])
def test_one_value_is_drawn_in_the_middle(value):
    [[(_, y)]] = polylines(render(Progress("run", "training", 1, 1), [row(1, loss=value)], evaluates=False))
    assert y == pytest.approx((16 + 161) / 2, abs=0.1)


def test_a_long_log_is_averaged_in_pieces():
    rows = [row(step, loss=float(step)) for step in range(1, 1001)]
    line = points(rows, "loss")
    assert len(line) == 250 and line[0] == (2.5, 2.5) and line[-1] == (998.5, 998.5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 375, [0, 50, 100, 150, 200, 250, 300, 350]), (0.09, 1.23, [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]),
     (-0.35, 0.7, [-0.2, 0, 0.2, 0.4, 0.6]), (0.76, 0.81, [0.76, 0.77, 0.78, 0.79, 0.8, 0.81])],
)  # fmt: skip
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "total", "end"), [(1, 400, 1.5625), (60, 400, 100), (201, 400, 400), (400, 400, 400),
                                                    (30, 0, 30), (0, 0, 1)])  # fmt: skip
def test_the_axis_doubles_when_the_curve_reaches_its_end(step, total, end):
    assert last_shown(step, total) == end


def test_stages_are_marked_and_figures_told():
    rows = [row(10, "warmup", loss=2.0), row(20, "warmup", val_final_score=0.75), row(30, loss=1.0),
            row(30, val_final_score=0.625)]  # fmt: skip
    text = render(Progress("run", "training", 30, 40, "main", 1), rows, evaluates=True)
    told = " ".join(parsed(text).itertext())
    assert "loss 1.000" in told and "Final score 0.625" in told and "best final score 0.750" in told
    assert told.count("warm-up") == 2 and text.count('class="stage"') == 2  # in both charts
    assert 'aria-valuenow="75"' in text


def test_a_stage_without_room_for_its_name_has_none():
    """The last steps of the warm-up are at 408 * 20 / 40 and 408 * 2 / 40 units."""
    for ended, names in ((20, ["warm-up", "main"]), (2, ["main"])):
        rows = [row(ended, "warmup", loss=2.0), row(40, loss=1.0)]
        svg = next(parsed(render(Progress("run", "training", 40, 40), rows, evaluates=False)).iter("svg"))
        assert [text for text in svg.itertext() if text in ("warm-up", "main")] == names


def test_the_beginning_and_an_odd_name():
    progress = Progress("<b>&run")
    told = " ".join(parsed(render(progress, [], evaluates=True)).itertext())
    assert "Starting: <b>&run" in told and told.count("nothing measured yet") == 2
    assert len(list(parsed(render(progress, [], evaluates=False)).iter("svg"))) == 1


# What it costs


def test_a_long_run_is_drawn_in_little_time(tmp_path, in_lab):
    """50 epochs at 20 steps a line make about 1,000 rows; here ten times as many."""
    config = Experiment(experiment_name="run", runs=str(tmp_path))
    config.folder.mkdir()
    values = {"loss": 1.0, "mask_loss": 0.5, "score_loss": 0.5, "lr": 1e-4}
    lines = [json.dumps(row(step, **values)) + "\n" for step in range(10_000)]
    (config.folder / "metrics.jsonl").write_text("".join(lines))
    view = View(config)
    view.bundle()
    assert len(read_metrics(config.folder)) == len(view.rows) == 10_000
    spent = []
    for _ in range(5):
        start = time.process_time()
        bundle = view.bundle()
        spent.append(time.process_time() - start)
    assert sorted(spent)[2] < 0.1  # seconds, once a second at most
    assert len(bundle["text/html"]) < 30_000
