"""Verdicts and notes in the inspector: two notebooks, hand-edited files, pictures and saves that fail."""

import json

import pytest
from example_runs import write_run, write_split

from lib.evaluate.run_on_split import open_run
from lib.widgets import MaskInspector, image
from lib.widgets.verdicts import VerdictFile


@pytest.fixture
def run(tmp_path):
    write_split(tmp_path / "data/test")
    return open_run(write_run(tmp_path / "runs/one", tmp_path / "data"), "test")


def said(inspector) -> tuple[str, str]:
    """(verdict, note) on the screen."""
    return inspector.controls.verdict.value, inspector.controls.note.value


def kept(run, id: str) -> tuple[str, str]:
    """(verdict, note) in the file."""
    row = VerdictFile(run.verdicts_path).read().get(id, {"verdict": "", "note": ""})
    return row["verdict"], row["note"]


def write_lines(run, *rows: dict) -> None:
    run.verdicts_path.parent.mkdir(parents=True, exist_ok=True)
    base = {"verdict": "unsure", "note": "", "threshold": 90, "time": "2025-01-01"}
    run.verdicts_path.write_text("".join(json.dumps(base | row) + "\n" for row in rows))


# Two notebooks -------------------------------------------------------------------------------------------------------


def test_a_verdict_leaves_the_note_of_another_notebook(run):
    mine, theirs = MaskInspector(run), MaskInspector(run)
    theirs.press("x")
    theirs.controls.note.value = "six fingers"
    mine.press("g")
    assert kept(run, "false") == ("model right", "six fingers") == said(mine)


def test_a_note_leaves_verdict_and_note_of_another_notebook(run):
    mine, theirs = MaskInspector(run), MaskInspector(run)
    theirs.press("x")
    theirs.controls.note.value = "six fingers"
    mine.controls.note.value = "mine"
    assert kept(run, "false") == ("model wrong", "six fingers\nmine") == said(mine)
    mine.controls.note.value = "seven"
    assert kept(run, "false") == ("model wrong", "seven")


def test_showing_an_image_reads_what_another_notebook_wrote(run):
    mine, theirs = MaskInspector(run), MaskInspector(run)
    theirs.press("x")
    mine.step(1)
    assert "1 of 4 images judged" in mine.controls.status.value
    mine.step(-1)
    assert said(mine) == ("model wrong", "")
    theirs.press("u")
    mine.controls.show.value = "unsure"
    assert mine.ids == ["false"]


# Files that people edit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"verdict": "model bad"}, "line 2 holds the verdict &#x27;model bad&#x27;; write model right"),
        ({"note": None}, "line 2 holds the note None; write a text"),
    ],
)
def test_an_unusable_line_is_told_while_images_are_looked_at(run, change, told):
    write_lines(run, {"id": "perfect"}, {"id": "missed"} | change)
    whole = run.verdicts_path.read_bytes()
    inspector = MaskInspector(run)
    for _ in range(3):
        assert told in inspector.controls.unsaved.value
        assert inspector.controls.panels[0].picture.value
        assert inspector.id in inspector.controls.headline.value
        inspector.step(1)
    assert (inspector.id, said(inspector), inspector.last_error) == ("sound", ("", ""), "")
    inspector.press("x")
    assert run.verdicts_path.read_bytes() == whole
    run.verdicts_path.write_bytes(whole.split(b"\n")[0] + b"\n\n")
    inspector.step(-1)
    assert inspector.controls.unsaved.value == ""
    assert (kept(run, "sound"), kept(run, "perfect")) == (("model wrong", ""), ("unsure", ""))


# Only what is on the screen is judged --------------------------------------------------------------------------------


def test_an_image_whose_picture_fails_cannot_be_judged(run, monkeypatch):
    inspector = MaskInspector(run)
    before = [panel.picture.value for panel in inspector.controls.panels]
    monkeypatch.setattr(image, "draw", lambda *_, **__: 1 / 0)
    inspector.step(1)
    parts = inspector.controls
    assert "ZeroDivisionError" in parts.error.value and "ZeroDivisionError" in inspector.last_error
    assert not any(panel.picture.value for panel in parts.panels) and "false" not in parts.headline.value
    assert parts.verdict.disabled and parts.note.disabled
    inspector.press("x")
    inspector.judge(verdict="unsure")
    assert "nothing was noted" in parts.error.value
    assert not run.verdicts_path.exists()
    monkeypatch.undo()
    inspector.step(-1)
    assert [panel.picture.value for panel in parts.panels] == before
    assert not parts.verdict.disabled
    inspector.press("x")
    assert kept(run, "false") == ("model wrong", "")


# Saves that fail -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_saved_stays_and_is_told_until_it_is_saved(run):
    inspector, folder = MaskInspector(run), run.verdicts_path.parent
    folder.write_text("a file where the folder should be")
    inspector.controls.note.value = "six fingers"
    inspector.controls.thresholds[0].value = 100
    assert "verdicts cannot be written" in inspector.controls.unsaved.value
    inspector.step(1)
    assert said(inspector) == ("", "")
    inspector.press("u")
    assert "What you said of 2 images is kept here" in inspector.controls.unsaved.value
    inspector.step(-1)
    assert said(inspector) == ("", "six fingers")
    inspector.press("x")
    folder.unlink()
    inspector.step(1)
    assert inspector.controls.unsaved.value == ""
    assert (kept(run, "false"), kept(run, "missed")) == (("model wrong", "six fingers"), ("unsure", ""))
