"""The mask inspector without a browser: what the kernel answers, filters, corrections, verdicts, and errors."""

import asyncio
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from example_runs import CASES, SIZE, write_run, write_split
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.data.prepare import prepare
from lib.data.readers import read_challenge
from lib.errors import InputError
from lib.evaluate.run_on_split import open_run
from lib.stores import LabelStore
from lib.widgets import MaskInspector, corrections, ranking
from lib.widgets import inspector as inspector_module
from lib.widgets.verdicts import VerdictFile

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    write_split(tmp_path / "data/test", kinds=["melted+warped", "warped", "", ""])
    return open_run(write_run(tmp_path / "runs/one", tmp_path / "data"), "test")


@pytest.fixture
def inspector(run):
    return MaskInspector(run).wait()  # a busy machine takes more than the first second


def test_the_browser_gets_a_whole_image_in_one_answer(inspector, run):
    assert inspector.ids == ["false", "missed", "perfect", "sound"]
    answer, (picture, label, predicted) = inspector.answer("image", id="false", thresholds=[90])
    assert picture == run.labels.image_path("false").read_bytes()
    assert (answer["size"], answer["sizes"]) == ([SIZE, SIZE], [(SIZE, SIZE)] * 2)
    for bytes_, store in ((label, run.labels), (predicted, run.predictions)):
        np.testing.assert_array_equal(np.frombuffer(zlib.decompress(bytes_), np.uint8), store.heatmap("false").ravel())
    [figures], [regions] = answer["figures"], answer["regions"]
    assert (figures["precision"], figures["n_predicted"], figures["mos"], figures["true_mos"]) == (1 / 3, 3, 3, 3)
    assert (figures["iou"], figures["false_area"]) == (pytest.approx(10000 / 17200), 2 * 60 * 60 / SIZE**2)
    assert sorted((side, status) for side, status, _ in regions) == [
        ("predicted", "false"), ("predicted", "false"), ("predicted", "hit"), ("true", "hit")
    ]  # fmt: skip
    assert [300, 300] in np.reshape(next(points for side, _, points in regions if side == "true"), (-1, 2)).tolist()
    assert (answer["prompt"], answer["problems"]) == ("a picture of a false <thing>", [])
    assert answer["facts"] == ["512 x 512 px", "1 annotators"]
    assert answer["annotators"] == [{"annotator": 0, "shape": "rectangle", "points": [[300, 300], [399, 399]]}]
    json.dumps(answer, allow_nan=False)
    compared, _ = inspector.answer("compare", id="false", thresholds=[200])
    assert (compared["figures"][0]["missed"], compared["figures"][0]["precision"]) == (1, None)
    path = run.labels.image_path("missed")  # a format that browsers cannot read comes as PNG
    image = cv2.imread(str(path))
    path.write_bytes(cv2.imencode(".tiff", image)[1].tobytes())
    _, (picture, *_) = inspector.answer("image", id="missed", thresholds=[90])
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR), image)


def test_it_is_found_by_a_filter_a_list_and_a_view(inspector, run):
    answer, _ = inspector.answer("find", query="missed > 0 or false > 0", sort_by="id ascending")
    assert answer["ids"] == ["false", "missed"] == list(inspector.ranked().index)
    assert "missed" in [column["name"] for column in answer["columns"]]
    assert set(inspector.ranked()) - {"kinds"} <= set(ranking.COLUMNS)
    view = {"id": "missed", "query": "missed > 0", "sort_by": "iou", "thresholds": [120], "layer": "difference"}
    inspector.answer("save_view", name="à revoir", view=view)
    again = MaskInspector(run, view="à revoir")
    assert (again.ids, again.ranking.runs[0][1], again.setup["start"]) == (["missed"], 120, view)
    chosen = MaskInspector(run, ids=again.ranked().index.append(pd.Index(["sound"])), query='kinds == ""')
    assert chosen.ids == ["sound"]
    assert "0 of 2 images judged" in chosen.status()[-1]
    for refused, reason in (
        ({"ids": ["sound", "lost"]}, "ids: 'lost' is not predicted"),
        ({"sort_by": "best"}, "sort_by: 'best' is no order"),
        ({"query": "best > 1"}, "there is no column best"), ({"view": "x"}, "view: 'x' is not in .*it has à revoir"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            MaskInspector(run, **refused)


def test_errors_become_sentences_on_the_screen(inspector, monkeypatch):
    messages = []
    monkeypatch.setattr(inspector, "send", lambda content, buffers=None: messages.append(content))
    monkeypatch.setattr(ranking, "compare", lambda *_: 1 / 0)
    for question, told in (
        ({"do": "find", "query": "best > 1", "sort_by": "worst"}, "the filter 'best > 1' cannot be used: there is no"),
        ({"do": "compare", "id": "false", "thresholds": [91]}, "ZeroDivisionError: division by zero (see `last_error`"),
        ({"do": "judge", "id": "false", "verdict": "great"}, "'great' is no verdict"),
    ):
        data = {"method": "custom", "content": {"number": "1", **question}}
        inspector._handle_msg({"content": {"data": data}, "buffers": []})
        assert messages[-1]["number"] == "1" and messages[-1]["error"].startswith(told)


def test_files_that_cannot_be_read_are_told(run):
    run.labels.image_path("false").unlink()
    run.predictions.heatmap_path("missed").write_bytes(b"")
    run.labels.image_path("perfect").write_bytes(b"no picture")  # found when it is shown
    inspector, told = MaskInspector(run), ("does not exist", "is not a readable", "is not an image")
    for id, problem in zip(("false", "missed", "perfect"), told, strict=True):
        answer, buffers = inspector.answer("image", id=id, thresholds=[90])
        assert f"{id}." in answer["problems"][0] and problem in answer["problems"][0] and b"" in buffers
    assert '3 images have files that cannot be read; the filter problem != "" finds them.' in inspector.status()
    assert inspector.find('problem != ""', "id ascending") == ["false", "missed", "perfect"]


def test_a_split_without_labels(tmp_path):
    write_split(tmp_path / "data/test", labelled=False)
    run = open_run(write_run(tmp_path / "run", tmp_path / "data", scores=[0.9, 0.1, 0.5, 0.7]), "test")
    inspector = MaskInspector(run, sort_by="predicted_mos ascending")
    assert (inspector.ids[0], inspector.setup["labelled"]) == ("missed", False)
    answer, buffers = inspector.answer("image", id="false", thresholds=[90])
    assert (answer["sizes"][0], buffers[1]) == (None, b"")
    assert {status for _, status, _ in answer["regions"][0]} == {"unjudged"}
    assert (answer["figures"][0]["n_predicted"], answer["figures"][0]["missed"]) == (3, None)


def test_two_runs_side_by_side(run, tmp_path):
    cases = CASES | {"false": ([], [(300, 300, 100, 100)])}
    other = open_run(write_run(tmp_path / "runs/two", tmp_path / "data", cases), "test", threshold=60)
    inspector = MaskInspector(run, other, sort_by="gain ascending")
    assert inspector.ids[0] == "false"
    answer, buffers = inspector.answer("image", id="false", thresholds=[90, 60])
    assert ([one["false"] for one in answer["figures"]], len(buffers)) == ([2, 0], 4)
    write_split(tmp_path / "else/test")
    with pytest.raises(InputError, match="compare runs on the same prepared split"):
        MaskInspector(run, open_run(run.folder, "test", data_path=tmp_path / "else"))


def test_verdicts_and_corrections_are_kept_filtered_and_exported(inspector, run):
    triangle = [{"shape": "polygon", "points": [[10, 10], [60, 10], [10, 60]]}]
    inspector.answer("judge", id="missed", verdict="label wrong", threshold=90)
    answer, _ = inspector.answer("judge", id="missed", regions=triangle)
    assert "1 of 4 images judged, 1 corrected" in answer["status"][-1]
    again = MaskInspector(run, query='verdict == "label wrong" and corrected').wait()
    assert again.ids == ["missed"]
    assert again.answer("image", id="missed", thresholds=[90])[0]["said"]["regions"] == triangle
    news = again.answer("export")[0]["news"]
    assert all(name in news for name in ("test.csv", "corrected_info.json", "coco.json", "label_studio.json"))
    table = pd.read_csv(run.verdicts_path.with_suffix(".csv"))
    assert table.loc[0, ["id", "verdict", "corrected", "missed"]].tolist() == ["missed", "label wrong", True, 1]


def test_ten_thousand_images_are_open_at_once(tmp_path):
    """They share the files of a few; the list is there before all are ranked."""
    names = [list(CASES)[k % len(CASES)] for k in range(10_000)]
    run = write_run(tmp_path / "run", tmp_path / "data", size=64)
    split, store = write_split(tmp_path / "data/test", size=64), run / "predictions/test"
    table = LabelStore(split).table.loc[names].assign(id=[f"{k:05d}" for k in range(10_000)])
    for folder in (split / "heatmaps", store / "heatmaps"):
        for name, id in zip(names, table["id"], strict=True):
            os.symlink(f"{name}.png", folder / f"{id}.png")
    table.to_parquet(split / "manifest.parquet", index=False)
    pd.DataFrame({"id": table["id"], "score": np.linspace(0, 1, 10_000)}).to_parquet(store / "scores.parquet")
    inspector = MaskInspector(open_run(run, "test"), sort_by="predicted_mos ascending")
    assert (inspector.ids[0], len(inspector.ids), inspector.ranking.finished) == ("00000", 10_000, False)
    assert "of 10,000 images done" in inspector.status()[0]
    assert inspector.answer("image", id="00000", thresholds=[90])[0]["problems"] == []
    assert inspector.find('prompt.str.contains("sound") and id < "00009"', "worst") == ["00003", "00007"]


def test_looking_at_images_imports_no_torch():
    """It takes seconds that only training and predicting need."""
    names = "lib.widgets, lib.plots, lib.evaluate.tables, lib.evaluate.comparison, lib.data.prepare, lib.config"
    read = "lib.config.Experiment.from_yaml('notebooks/params/demo_full.yaml')"  # as of a run that is opened
    code = f"import sys, {names}; {read}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_ranking_goes_on_in_a_kernel(run, monkeypatch):
    monkeypatch.setattr(inspector_module, "FIRST_RANKING", 0)
    monkeypatch.setattr(inspector_module, "PIECE", 0.001)
    events = []

    async def kernel() -> MaskInspector:
        inspector = MaskInspector(run)
        assert (inspector.ids[0], inspector.ranking.finished) == ("perfect", False)
        monkeypatch.setattr(inspector, "send", events.append)
        await inspector.ranking_task
        return inspector

    inspector = asyncio.run(kernel())
    assert events[-1]["event"] == "ranked"
    assert inspector.find() == ["false", "missed", "perfect", "sound"]


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspection")
    write_split(root / "data/test", kinds=["melted+warped", "warped", "", None], domain=["shown", "shifted"] * 2)
    return open_run(write_run(root / "runs/one", root / "data"), "test")


def test_filters(inspected):
    facts, _ = ranking.overview([inspected])
    found = ranking.Ranking([inspected], [inspected.threshold], list(facts.index))
    assert found.work() and not found.problems
    table = facts.join(found.table)
    for query, ids in {
        "": ["perfect", "missed", "false", "sound"],
        'domain == "shifted" and score > 0.9': ["sound"],
        "false > 0 or missed > 0": ["missed", "false"],
        "recall < 1": ["missed"],  # it is not defined for sound images
        'kinds.str.contains("melt")': ["perfect"],
        'id in ["sound", "false"]': ["false", "sound"],
        'prompt.str.contains("<THING", case=False, regex=False) and not labelled': [],
    }.items():
        assert list(ranking.select(table, query).index) == ids
    for query, reason in {
        "domian == 1": r"'domian == 1' cannot be used: there is no column domian \(did you mean domain\?\)",
        "score >": "cannot be used: invalid syntax",
        "score": "'score' is no condition; write one such as",
        "prompt > 3": "cannot be used: ",
        "@run": "cannot be used: ",
    }.items():
        with pytest.raises(InputError, match=reason) as caught:
            ranking.select(table, query)
        assert "\n" not in str(caught.value)


def test_corrections_become_label_sets_that_can_be_prepared(inspected, tmp_path):
    drawn = inspected.labels.regions.groupby("id")
    [region] = corrections.label_regions(drawn, "missed")
    assert region == {"annotator": 0, "shape": "rectangle", "points": [[100, 100], [299, 199]]}
    assert corrections.label_regions(drawn, "sound") == []
    triangle = {"shape": "polygon", "points": [[10, 10], [60, 10], [10, 60]]}
    verdicts = {
        "missed": {"regions": [region, triangle]},
        "sound": {"regions": [{"shape": "rectangle", "points": [[50, 40], [20, 30]]}]},
        "false": {"regions": []},
        "perfect": {"regions": None},
        "gone": {"regions": [triangle]},
    }
    before = {path: path.read_bytes() for path in inspected.labels.path.rglob("*") if path.is_file()}
    written = corrections.export(inspected.labels, verdicts, tmp_path / "set")
    assert [path.name for path in written] == ["corrected_info.json", "coco.json", "label_studio.json"]
    ids, records, problems = read_challenge(tmp_path / "set", "corrected")
    assert (ids, problems, [record.problems for record in records]) == (["missed", "sound", "false"], [], [[], [], []])
    manifest = prepare(tmp_path / "set", tmp_path / "prepared", splits=("corrected",), workers=1)["corrected"]
    assert manifest["score"].tolist() == [0.5, 1, 0.5]
    assert manifest["prompt"].tolist() == [inspected.labels.table.at[id, "prompt"] for id in manifest["id"]]
    store = LabelStore(tmp_path / "prepared/corrected")
    levels = [store.heatmap("missed")[place] for place in ((20, 20), (150, 200))]
    assert [*levels, store.heatmap("false").max()] == [64, 64, 0]
    assert np.count_nonzero(store.heatmap("sound")) == 30 * 10
    assert {path: path.read_bytes() for path in before} == before
    several = LabelStore(inspected.labels.path)
    several.__dict__["table"] = several.table.assign(n_annotators=3)
    rows = {"missed": {"regions": [triangle, triangle | {"annotator": 1}]}}
    drawn = json.loads(corrections.export(several, rows, tmp_path / "three")[0].read_text())
    assert [len(by) for by in drawn["missed"]["bbox_info"]] == [1, 2, 1]

    coco = json.loads(written[1].read_text())
    assert [image["file_name"] for image in coco["images"]] == ["missed.jpg", "sound.jpg", "false.jpg"]
    assert [one["image_id"] for one in coco["annotations"]] == [1, 1, 2]
    assert coco["annotations"][1]["segmentation"] == [[10.5, 10.5, 60.5, 10.5, 10.5, 60.5]]
    assert coco["annotations"][1]["area"] == 1250
    tasks = json.loads(written[2].read_text())
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [2, 1, 0]


def test_a_run_that_cannot_be_opened_is_named(inspected, tmp_path):
    with pytest.raises(InputError, match="val holds no scores.parquet; run notebooks/3_evaluate.ipynb first"):
        open_run(inspected.folder, "val")
    with pytest.raises(InputError, match="manifest.parquet"):
        open_run(inspected.folder, "test", data_path=tmp_path)


@pytest.fixture
def file(tmp_path) -> VerdictFile:
    return VerdictFile(tmp_path / "run/verdicts/test.jsonl")


def line(**changes) -> bytes:
    return json.dumps({"id": "b", "verdict": "unsure", "note": "", "threshold": 90} | changes).encode() + b"\n"


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


POINTS = [[1, 1], [20, 20], [5, 30]]
NO_REGIONS = [
    False, {}, "x", [None], [[]], ["x"], [{"shape": "polygon"}], [{"points": POINTS}],
    *([{"shape": shape, "points": POINTS}] for shape in (None, {}, "circle", 2, "rectangle")),
    *([{"shape": "polygon", "points": points}] for points in (None, 1e29, {}, "x", [1], POINTS[:2], [POINTS])),
    *([{"shape": "polygon", "points": [*POINTS, [1, value]]}] for value in (None, "2", float("nan"), [1], True)),
    *([{"shape": "polygon", "points": POINTS, "annotator": value}] for value in (-1, "0", None, 0.5)),
]  # fmt: skip
NO_VERDICTS = [b"[" * 100_000 + b"\n", b'"b"\n', b"null\n", line(id=7), line(verdict=["unsure"]), line(note=None)]


@pytest.mark.parametrize("added", [*NO_VERDICTS, line()[:-20], *(line(regions=regions) for regions in NO_REGIONS)])
def test_a_line_that_cannot_be_used_is_named_and_does_no_harm(file, added):
    file.put("a", verdict="model wrong", note="é")
    file.path.write_bytes(file.path.read_bytes() + added)  # one as a full disk cuts it
    file.put("d", verdict="unsure")
    assert set(file.rows()) == {"a", "d"}
    assert file.problem.startswith(f"{file.path}: ") and file.problem.endswith("; mend or delete")
    assert "line 2 " in file.problem


def test_files_of_earlier_versions_and_of_editors_are_read(file):
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"\xef\xbb\xbf" + line(reviewer="x").replace(b"\n", b"\r\n") + b"\n  \n" + line(id="c"))
    assert list(file.rows()) == ["b", "c"]
    file.put("b", note="y")
    assert (file.problem, file.rows()["b"]["reviewer"], file.rows()["b"]["verdict"]) == ("", "x", "unsure")
