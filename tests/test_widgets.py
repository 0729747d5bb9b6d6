"""The mask inspector without a browser: what the kernel answers, and what happens to errors."""

import asyncio
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from example_runs import CASES, SIZE, write_run, write_split

from lib.errors import InputError
from lib.evaluate.run_on_split import open_run
from lib.stores import LabelStore
from lib.widgets import MaskInspector, ranking
from lib.widgets import inspector as inspector_module

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    write_split(tmp_path / "data/test", kinds=["melted+warped", "warped", "", ""])
    return open_run(write_run(tmp_path / "runs/one", tmp_path / "data"), "test")


@pytest.fixture
def inspector(run):
    return MaskInspector(run).wait()  # a busy machine takes more than the first second


def sent(inspector, monkeypatch, **question) -> dict:
    """What the browser hears after a message."""
    messages = []
    monkeypatch.setattr(inspector, "send", lambda content, buffers=None: messages.append(content))
    data = {"method": "custom", "content": {"number": "1", **question}}
    inspector._handle_msg({"content": {"data": data}, "buffers": []})
    [message] = messages
    json.dumps(message, allow_nan=False)
    return message


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
    answer = sent(inspector, monkeypatch, do="find", query="best > 1", sort_by="worst")
    assert answer == {"number": "1", "error": "the filter 'best > 1' cannot be used: there is no column best"}
    monkeypatch.setattr(ranking, "compare", lambda *_: 1 / 0)
    answer = sent(inspector, monkeypatch, do="compare", id="false", thresholds=[91])
    assert answer["error"] == "ZeroDivisionError: division by zero (see `last_error`)"
    assert "ZeroDivisionError" in inspector.last_error
    answer = sent(inspector, monkeypatch, do="judge", id="false", verdict="great")
    assert "'great' is no verdict" in answer["error"]


def test_files_that_cannot_be_read_are_told(run):
    run.labels.image_path("false").unlink()
    run.predictions.heatmap_path("missed").write_bytes(b"")
    run.labels.image_path("perfect").write_bytes(b"no picture")  # found when it is shown
    inspector = MaskInspector(run)
    for id, problem in (
        ("false", "false.jpg does not exist"), ("missed", "missed.png is not a readable"),
        ("perfect", "perfect.jpg is not an image"),
    ):  # fmt: skip
        answer, buffers = inspector.answer("image", id=id, thresholds=[90])
        assert problem in answer["problems"][0] and b"" in buffers
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
    assert (answer["said"]["verdict"], answer["said"]["regions"]) == ("label wrong", triangle)
    assert "1 of 4 images judged, 1 corrected" in answer["status"][-1]
    again = MaskInspector(run, query='verdict == "label wrong" and corrected').wait()
    assert again.ids == ["missed"]
    assert again.answer("image", id="missed", thresholds=[90])[0]["said"]["regions"] == triangle
    news = again.answer("export")[0]["news"]
    assert all(name in news for name in ("test.csv", "corrected_info.json", "coco.json", "label_studio.json"))
    table = pd.read_csv(run.verdicts_path.with_suffix(".csv"))
    assert table.loc[0, ["id", "verdict", "corrected", "missed"]].tolist() == ["missed", "label wrong", True, 1]


# Size and speed -----------------------------------------------------------------------------------------------------


def many(tmp_path, n: int, cases=CASES, size=64):
    """A split of n images that share the files of a few."""
    write_split(tmp_path / "data/test", cases, size=size)
    write_run(tmp_path / "run", tmp_path / "data", cases, size=size)
    table = LabelStore(tmp_path / "data/test").table.reset_index()
    table = pd.concat([table] * (n // len(cases)), ignore_index=True)
    names, table["id"] = table["id"], [f"{k:05d}" for k in range(n)]
    store = tmp_path / "run/predictions/test"
    for folder in (tmp_path / "data/test/heatmaps", store / "heatmaps"):
        for name, id in zip(names, table["id"], strict=True):
            os.symlink(f"{name}.png", folder / f"{id}.png")
    table.to_parquet(tmp_path / "data/test/manifest.parquet")
    pd.DataFrame({"id": table["id"], "score": np.linspace(0, 1, n)}).to_parquet(store / "scores.parquet")
    return open_run(tmp_path / "run", "test")


def test_ten_thousand_images_are_open_at_once(tmp_path):
    run = many(tmp_path, 10_000)
    start = time.process_time()
    inspector = MaskInspector(run, sort_by="predicted_mos ascending")
    assert time.process_time() - start < 3
    assert (inspector.ids[0], len(inspector.ids), inspector.ranking.finished) == ("00000", 10_000, False)
    assert "of 10,000 images done" in inspector.status()[0]
    start = time.process_time()
    for id in inspector.ids[:100]:
        inspector.answer("image", id=id, thresholds=[90])
        inspector.answer("judge", id=id, verdict="unsure")
    assert time.process_time() - start < 3
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
