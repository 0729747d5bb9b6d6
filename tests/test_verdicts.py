"""The file of verdicts: what is put is there again, whoever else writes and whatever breaks."""

import json

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.widgets.verdicts import VerdictFile


@pytest.fixture
def file(tmp_path) -> VerdictFile:
    return VerdictFile(tmp_path / "run/verdicts/test.jsonl")


def line(**changes) -> bytes:
    row = {"id": "b", "verdict": "unsure", "note": "", "threshold": 90, "time": "2025-01-01"} | changes
    return json.dumps(row).encode() + b"\n"


def test_a_change_appends_a_line_and_the_last_one_counts(file):
    assert file.rows() == {}
    regions = [{"shape": "rectangle", "points": [[1, 2], [30, 40]]}]
    file.put("a", verdict="model wrong", note="six fingers\nné", threshold=90)
    file.put("b", note='a "quoted", note')
    before = file.path.read_bytes()
    file.put("a", regions=regions)
    assert file.path.read_bytes().startswith(before)
    again = VerdictFile(file.path)
    assert list(again.rows()) == ["b", "a"]
    row = {"id": "a", "verdict": "model wrong", "note": "six fingers\nné", "threshold": 90, "regions": regions}
    assert again.rows()["a"] | {"time": ""} == row | {"time": ""}
    table = pd.read_csv(again.export(pd.DataFrame({"prompt": ["p"], "iou": [0.5]}, index=["b"])))
    assert table[["id", "note", "corrected", "iou"]].values.tolist()[0] == ["b", 'a "quoted", note', False, 0.5]
    again.put("a", verdict="", note="", regions=None)
    assert list(file.rows()) == ["b"]
    assert file.put("c", regions=[])["regions"] == []  # a label without a region is a correction, too
    assert "c" in file.rows()


@settings(max_examples=25)
@given(st.text(), st.text(min_size=1))
@example("pasted\u2028text", "a\u2029\x85\x0b\x0c\x1c\r\n")
def test_any_text_survives(file, id, note):
    file.path.unlink(missing_ok=True)
    file.put(id, note=note)
    file.put("last", note="half of an emoji: \ud83d")
    rows = VerdictFile(file.path).rows()
    assert (rows[id]["note"] if id != "last" else note, rows["last"]["note"]) == (note, "half of an emoji: ?")
    assert rows == file.rows()


def test_what_cannot_be_written_or_read_is_told(file, tmp_path):
    with pytest.raises(InputError, match="'great' is no verdict; choose among model right"):
        file.put("a", verdict="great")
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="verdicts cannot be written .*give the run's folder write access"):
        file.put("a", verdict="unsure")
    assert file.rows() == {}
    (tmp_path / "run").unlink()
    file.path.mkdir(parents=True)
    assert file.rows() == {}


@pytest.mark.parametrize(
    "added",
    [b"[" * 100_000 + b"\n", b'"b"\n', b"null\n", line(id=7), line(verdict=["unsure"]), line(note=None), line()[:-20]],
)
def test_a_line_that_cannot_be_used_is_named_and_does_no_harm(file, added):
    file.put("a", verdict="model wrong", note="é")
    file.path.write_bytes(file.path.read_bytes() + added)  # the last one as a full disk cuts it
    file.put("d", verdict="unsure")
    assert set(file.rows()) == {"a", "d"}
    assert file.problem.startswith(f"{file.path}: line 2 ") and file.problem.endswith("; mend or delete")


POINTS = [[1, 1], [20, 20], [5, 30]]


@pytest.mark.parametrize(
    "regions",
    [
        False, {}, "x", [None], [[]], ["x"], [{"shape": "polygon"}], [{"points": POINTS}],
        *([{"shape": shape, "points": POINTS}] for shape in (None, {}, "circle", 2, "rectangle")),
        *([{"shape": "polygon", "points": points}] for points in (None, 1e29, {}, "x", [1], POINTS[:2], [POINTS])),
        *([{"shape": "polygon", "points": [*POINTS, [1, value]]}] for value in (None, "2", float("nan"), [1], True)),
        *([{"shape": "polygon", "points": POINTS, "annotator": value}] for value in (-1, "0", None, 0.5)),
    ],
)  # fmt: skip
def test_corrected_regions_that_are_none_are_named_and_do_no_harm(file, regions):
    file.put("a", verdict="model wrong", regions=[{"shape": "polygon", "points": POINTS}])
    file.path.write_bytes(file.path.read_bytes() + line(regions=regions))
    assert set(file.rows()) == {"a"}
    assert "line 2 holds regions" in file.problem or "the regions of b are none" in file.problem


def test_files_of_earlier_versions_and_of_editors_are_read(file):
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"\xef\xbb\xbf" + line(reviewer="x").replace(b"\n", b"\r\n") + b"\n  \n" + line(id="c"))
    assert list(file.rows()) == ["b", "c"]
    file.put("b", note="y")
    assert (file.problem, file.rows()["b"]["reviewer"], file.rows()["b"]["verdict"]) == ("", "x", "unsure")
