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


def test_verdicts_survive_and_change(tmp_path):
    file = VerdictFile(tmp_path / "run/verdicts/test.jsonl")
    assert file.read() == {}
    file.put("a", "model wrong", "six fingers\nné", threshold=90)
    file.put("b", note="look again")
    file.put("a", "label wrong", "", threshold=80)
    again = VerdictFile(file.path)
    assert list(again.read()) == ["b", "a"]
    assert again.read()["a"] | {"time": ""} == {
        "id": "a",
        "verdict": "label wrong",
        "note": "",
        "threshold": 80,
        "time": "",
    }
    again.put("a", "")
    assert list(file.read()) == ["b"]
    assert [path.name for path in file.path.parent.iterdir() if ".part" in path.name] == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.text(min_size=1))
@example("pasted\u2028text", "a\u2029\x85\x0b\x0c\x1c\r\n")
def test_any_text_survives(tmp_path, id, note):
    file = VerdictFile(tmp_path / "test.jsonl")
    file.path.unlink(missing_ok=True)
    file.put(id, note=note)
    file.put("last", note="x")
    rows = VerdictFile(file.path).read()
    assert (rows[id]["note"] if id != "last" else note, rows["last"]["note"]) == (note, "x")
    assert len(rows) == len({id, "last"})


def test_half_a_character_harms_no_other_verdict(tmp_path):
    file = VerdictFile(tmp_path / "test.jsonl")
    file.put("a", note="half of an emoji: \ud83d")
    file.put("b", "unsure")
    assert [row["note"] for row in VerdictFile(file.path).read().values()] == ["half of an emoji: ?", ""]


def test_verdicts_are_exported_with_facts(tmp_path):
    file = VerdictFile(tmp_path / "test.jsonl")
    file.put("a", "unsure", 'a "quoted", note')
    path = file.export(pd.DataFrame({"prompt": ["p"], "iou": [0.5]}, index=["a"]))
    table = pd.read_csv(path)
    assert table.loc[0, ["id", "verdict", "note", "prompt", "iou"]].tolist() == [
        "a",
        "unsure",
        'a "quoted", note',
        "p",
        0.5,
    ]


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "test.jsonl"
    writers = [
        threading.Thread(target=lambda name=name: [VerdictFile(path).put(f"{name}{n}", "unsure") for n in range(20)])
        for name in "ab"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(VerdictFile(path).read()) == 40


def test_bad_verdicts_and_folders_are_told(tmp_path):
    file = VerdictFile(tmp_path / "test.jsonl")
    with pytest.raises(InputError, match="'great' is no verdict; choose among model right"):
        file.put("a", "great")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        VerdictFile(tmp_path / "file/test.jsonl").put("a", "unsure")


# What people and editors do to the file ------------------------------------------------------------------------------


def line(**changes) -> bytes:
    row = {"id": "b", "verdict": "unsure", "note": "", "threshold": 90, "time": "2025-01-01"} | changes
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        (b'{"id": "b"\n', "line 2 is no JSON in UTF-8; mend or delete it"),
        (line(note="x").replace(b'"x"', b'"caf\xe9"'), "line 2 is no JSON in UTF-8; mend or delete it"),
        (b"[" * 100_000 + b"\n", "line 2 is no JSON in UTF-8"),
        (b'"b"\n', "line 2 holds no id, verdict, note, threshold, time; add what is missing or delete it"),
        (line().replace(b'"note": "", ', b""), "line 2 holds no note; add what is missing or delete it"),
        (line(id=7), "line 2 holds the id 7; write a text in quotes there"),
        (line(verdict="model bad"), "line 2 holds the verdict 'model bad'; write model right, .* or nothing between"),
        (line(verdict=["unsure"]), r"line 2 holds the verdict \['unsure'\]; write model right"),
        (line(note=None), "line 2 holds the note None; write a text in quotes there"),
        (line(id="a"), "line 2 holds the id 'a' for the second time; delete one of the two lines"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_and_nothing_is_lost(tmp_path, added, problem):
    file = VerdictFile(tmp_path / "test.jsonl")
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


def test_marks_blank_lines_and_further_columns_of_an_editor_do_no_harm(tmp_path):
    file = VerdictFile(tmp_path / "test.jsonl")
    file.path.write_bytes(b"\xef\xbb\xbf\r\n" + line(reviewer="x").replace(b"\n", b"\r\n") + b"\n  \n" + line(id="c"))
    assert list(file.read()) == ["b", "c"]
    file.put("b", note="y")
    assert file.problem == ""
    assert (file.read()["b"]["reviewer"], file.read()["b"]["verdict"]) == ("x", "unsure")


# Two notebooks on one file -------------------------------------------------------------------------------------------


def test_what_another_notebook_wrote_is_read_when_it_changed(tmp_path, monkeypatch):
    mine, theirs = (VerdictFile(tmp_path / "test.jsonl") for _ in range(2))
    mine.put("a", "unsure")
    theirs.put("a", "model right")
    assert mine.read()["a"]["verdict"] == "model right"
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it did not change"))
    assert mine.read()["a"]["verdict"] == "model right"


def test_only_what_changed_is_written(tmp_path):
    mine, theirs = (VerdictFile(tmp_path / "test.jsonl") for _ in range(2))
    theirs.put("a", "model wrong", "a hand too many", threshold=90)
    mine.put("a", note="and a foot", threshold=120, seen="a hand too many")
    row = theirs.read()["a"]
    assert (row["verdict"], row["note"], row["threshold"]) == ("model wrong", "and a foot", 90)
    mine.put("a", "unsure", threshold=100)
    row = theirs.read()["a"]
    assert (row["verdict"], row["note"], row["threshold"]) == ("unsure", "and a foot", 100)
    mine.put("a", "")
    assert theirs.read()["a"]["note"] == "and a foot"
    mine.put("a", note="")
    assert theirs.read() == {}


def test_of_two_notes_both_stay(tmp_path):
    file = VerdictFile(tmp_path / "test.jsonl")
    file.put("a", note="theirs")
    assert file.put("a", note="mine", seen="")["a"]["note"] == "theirs\nmine"
    assert file.put("a", note="mine", seen="theirs\nmine")["a"]["note"] == "mine"
    assert file.put("a", note="", seen="else")["a"]["note"] == "mine"
    assert file.put("a", note="mine", seen="else")["a"]["note"] == "mine"
