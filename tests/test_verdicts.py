"""The file of verdicts: what is put is there again, whole, whoever else writes and whatever breaks."""

import json
import re
import threading
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.widgets.verdicts import VerdictFile


@pytest.fixture
def file(tmp_path) -> VerdictFile:
    return VerdictFile(tmp_path / "run/verdicts/test.jsonl")


def test_verdicts_survive_change_and_are_exported(file):
    assert file.read() == {}
    file.put("a", "model wrong", "six fingers\nné", threshold=90)
    file.put("b", note='a "quoted", note')
    file.put("a", "label wrong", "", threshold=80)
    again = VerdictFile(file.path)
    assert list(again.read()) == ["b", "a"]
    row = {"id": "a", "verdict": "label wrong", "note": "", "threshold": 80, "time": ""}
    assert again.read()["a"] | {"time": ""} == row
    again.put("a", "")
    table = pd.read_csv(file.export(pd.DataFrame({"prompt": ["p"], "iou": [0.5]}, index=["b"])))
    assert table[["id", "note", "prompt", "iou"]].values.tolist() == [["b", 'a "quoted", note', "p", 0.5]]
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["test.csv", "test.jsonl", "test.jsonl.lock"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.text(min_size=1))
@example("pasted\u2028text", "a\u2029\x85\x0b\x0c\x1c\r\n")
def test_any_text_survives(file, id, note):
    file.path.unlink(missing_ok=True)
    file.put(id, note=note)
    file.put("last", note="half of an emoji: \ud83d")
    rows = VerdictFile(file.path).read()
    assert (rows[id]["note"] if id != "last" else note, rows["last"]["note"]) == (note, "half of an emoji: ?")
    assert len(rows) == len({id, "last"})


def test_two_writers_lose_nothing(file):
    def write(name: str) -> None:
        for n in range(20):
            VerdictFile(file.path).put(f"{name}{n}", "unsure")

    writers = [threading.Thread(target=write, args=name) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(file.read()) == 40


def test_bad_verdicts_and_folders_are_told(file, tmp_path):
    with pytest.raises(InputError, match="'great' is no verdict; choose among model right"):
        file.put("a", "great")
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        file.put("a", "unsure")
    (tmp_path / "run").unlink()
    file.path.mkdir(parents=True)
    assert file.read() == {}
    assert "test.jsonl cannot be read (Is a directory)" in file.problem


def line(**changes) -> bytes:
    row = {"id": "b", "verdict": "unsure", "note": "", "threshold": 90, "time": "2025-01-01"} | changes
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        (line(note="x").replace(b'"x"', b'"caf\xe9"'), "line 2 is no JSON in UTF-8; mend or delete it"),
        (b"[" * 100_000 + b"\n{\n", r"line 2 is no JSON in UTF-8; mend or delete it \(and 1 more lines\)"),
        (b'"b"\n', "line 2 holds no id, verdict, note, threshold, time; add what is missing or delete it"),
        (line(id=7), "line 2 holds the id 7; write a text in quotes there"),
        (line(verdict=["unsure"]), r"line 2 holds the verdict \['unsure'\]; write model right, .* or nothing between"),
        (line(note=None), "line 2 holds the note None; write a text in quotes there"),
        (line(id="a"), "line 2 holds the id 'a' for the second time; delete one of the two lines"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_and_nothing_is_lost(file, added, problem):
    file.put("a", "model wrong", "é")
    whole = file.path.read_bytes() + added + line(id="c")
    file.path.write_bytes(whole)
    assert set(file.read()) == {"a", "c"}
    assert re.search(f"test.jsonl, {problem}", file.problem)
    for refused in (lambda: file.put("d", "unsure"), lambda: VerdictFile(file.path).put("a", "unsure"), file.export):
        with pytest.raises(InputError, match=problem):
            refused()
    assert file.path.read_bytes() == whole
    file.path.write_bytes(whole.replace(added, b""))
    file.put("d", "unsure")
    assert (file.problem, set(file.read())) == ("", {"a", "c", "d"})


def test_marks_blank_lines_and_further_columns_of_an_editor_do_no_harm(file):
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"\xef\xbb\xbf\r\n" + line(reviewer="x").replace(b"\n", b"\r\n") + b"\n  \n" + line(id="c"))
    assert list(file.read()) == ["b", "c"]
    file.put("b", note="y")
    assert (file.problem, file.read()["b"]["reviewer"], file.read()["b"]["verdict"]) == ("", "x", "unsure")


def test_what_another_notebook_wrote_is_read_and_stays(file, monkeypatch):
    theirs = VerdictFile(file.path)
    file.put("a", "unsure")
    theirs.put("a", "model wrong", "a hand too many", threshold=90)
    assert file.put("a", note="and a foot", threshold=120, seen="")["a"]["note"] == "a hand too many\nand a foot"
    assert file.put("a", note="a foot", threshold=120, seen="a hand too many\nand a foot")["a"]["note"] == "a foot"
    row = theirs.read()["a"]
    assert (row["verdict"], row["note"], row["threshold"]) == ("model wrong", "a foot", 90)
    theirs.put("a", "")
    assert file.read()["a"]["note"] == "a foot"
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it did not change"))
    assert file.read()["a"]["note"] == "a foot"
