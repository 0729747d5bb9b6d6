"""The file of verdicts: what is put is there again, whole, whoever else writes and whatever breaks."""

import threading

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.widgets.verdicts import VerdictFile


def test_verdicts_survive_and_change(tmp_path):
    file = VerdictFile(tmp_path / "run/verdicts/test.jsonl")
    assert file.read() == {}
    file.put("a", "model wrong", "six fingers\nné", 90)
    file.put("b", note="look again")
    file.put("a", "label wrong", "", 80)
    again = VerdictFile(file.path)
    assert list(again.read()) == ["b", "a"]
    assert again.read()["a"] | {"time": ""} == {
        "id": "a",
        "verdict": "label wrong",
        "note": "",
        "threshold": 80,
        "time": "",
    }
    again.put("a")
    assert list(file.read()) == ["b"]
    assert [path.name for path in file.path.parent.iterdir() if ".part" in path.name] == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_bad_verdicts_and_damaged_files_are_told(tmp_path):
    file = VerdictFile(tmp_path / "test.jsonl")
    with pytest.raises(InputError, match="'great' is no verdict; choose among model right"):
        file.put("a", "great")
    file.put("a", "unsure")
    file.path.write_text(file.path.read_text() + '{"id": "b"\n')
    with pytest.raises(InputError, match=r"test.jsonl, line 2 is damaged"):
        file.read()
    with pytest.raises(InputError, match="line 2"):
        file.put("c", "unsure")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        VerdictFile(tmp_path / "file/test.jsonl").put("a", "unsure")
