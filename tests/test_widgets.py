"""The mask inspector without a browser: what buttons, keys and sliders do, and what happens to errors."""

import asyncio
import json
import os
import re
import time

import numpy as np
import pandas as pd
import pytest
from example_runs import CASES, write_run, write_split

from lib.errors import InputError
from lib.evaluate.run_on_split import open_run
from lib.stores import LabelStore
from lib.widgets import MaskInspector, html, image, ranking
from lib.widgets import inspector as inspector_module
from lib.widgets.verdicts import VerdictFile


@pytest.fixture
def run(tmp_path):
    write_split(tmp_path / "data/test", kinds=["melted+warped", "warped", "", ""])
    return open_run(write_run(tmp_path / "runs/one", tmp_path / "data"), "test")


@pytest.fixture
def inspector(run):
    return MaskInspector(run)


def pictures(inspector):
    return [panel.picture.value for panel in inspector.controls.panels]


def said(inspector) -> tuple[str, str]:
    """(verdict, note) on the screen."""
    return inspector.controls.verdict.value, inspector.controls.note.value


def kept(run, id: str) -> tuple[str, str]:
    """(verdict, note) in the file."""
    row = VerdictFile(run.verdicts_path).read().get(id, {"verdict": "", "note": ""})
    return row["verdict"], row["note"]


def test_it_begins_with_the_worst_image(inspector):
    assert inspector.ids == ["false", "missed", "perfect", "sound"]
    parts = inspector.controls
    assert (inspector.id, parts.place.value, parts.total.value) == ("false", 1, "of 4")
    assert "0.33" in parts.figures.value and "2 of 3" in parts.figures.value
    assert "&lt;thing&gt;" in parts.headline.value
    assert all(bytes(picture[:2]) == b"\xff\xd8" for picture in pictures(inspector))
    assert parts.keys.texts == [
        "label of false: 1 true regions", "prediction of one for false: 1 hit, 0 missed, 2 false"
    ]  # fmt: skip
    assert parts.error.value == ""


def test_neighbours_in_the_order_are_small_pictures_to_click_on(run):
    run.labels.image_path("missed").unlink()
    inspector = MaskInspector(run)
    strip = inspector.controls.strip
    found = re.findall(r'data-place="(\d)" title="(\w+)"(?: aria-current="true")?>(<img|\?)', strip.value)
    assert found == [("0", "false", "<img"), ("1", "missed", "?"), ("2", "perfect", "<img"), ("3", "sound", "<img")]
    message = {"content": {"data": {"method": "custom", "content": {"place": 2}}}, "buffers": []}
    inspector.controls.keys._handle_msg(message)
    assert inspector.id == "perfect"
    assert 'title="perfect" aria-current' in strip.value
    many = [f"image{k}" for k in range(30)]
    shown = {at: re.findall(r'data-place="(\d+)"', html.strip(many, at, lambda _: b"")) for at in (0, 15, 29)}
    assert {at: (places[0], places[-1]) for at, places in shown.items()} == {
        0: ("0", "8"), 15: ("11", "19"), 29: ("21", "29")
    }  # fmt: skip


def test_the_threshold_moves_picture_and_figures_and_ranks_again(inspector):
    parts, before = inspector.controls, pictures(inspector)[1]
    parts.thresholds[0].value = 200
    assert pictures(inspector)[1] != before
    assert "0 of 1" in parts.figures.value
    assert not parts.rank_again.disabled
    parts.rank_again.click()
    assert inspector.wait().ids == ["missed", "perfect", "false", "sound"]
    assert parts.rank_again.disabled


def test_keys_and_buttons(inspector, run):
    parts, seen = inspector.controls, [inspector.id]
    for key in ("ArrowRight", "n", "ArrowRight", "ArrowRight"):
        inspector.press(key)
        seen.append(inspector.id)
    assert seen == ["false", "missed", "perfect", "sound", "sound"]
    assert parts.next.disabled
    parts.previous.click()
    assert inspector.id == "perfect"
    parts.place.value = 2
    assert inspector.id == "missed"
    inspector.press("Home")
    assert (inspector.id, parts.keys.handled) == ("false", 5)
    before = pictures(inspector)[1]
    for key, part, value in (
        ("3", parts.layers, "difference"), ("r", parts.regions, False), ("a", parts.annotators, True)
    ):  # fmt: skip
        inspector.press(key)
        assert part.value == value
        assert pictures(inspector)[1] != before
        before = pictures(inspector)[1]
    for key in "l][?":
        inspector.press(key)
    assert (parts.panels[0].layout.display, parts.thresholds[0].value, parts.error.value) == ("none", 90, "")
    assert not run.verdicts_path.exists()  # looking writes nothing


def test_filters_narrow_the_list(inspector):
    parts = inspector.controls
    parts.kind.value = "warped"
    assert inspector.ids == ["missed", "perfect"]
    parts.text.value = "nowhere"
    assert (inspector.ids, parts.body.layout.display) == ([], "none")
    assert "widen the search" in parts.status.value
    inspector.press("ArrowRight")
    inspector.press("x")
    parts.text.value, parts.kind.value = "", ""
    assert len(inspector.ids) == 4
    inspector.press("u")
    parts.show.value = "not judged"
    assert inspector.ids == ["missed", "perfect", "sound"]
    assert parts.body.layout.display is None


def test_two_runs_side_by_side(run, tmp_path):
    cases = CASES | {"false": ([], [(300, 300, 100, 100)])}
    other = open_run(write_run(tmp_path / "runs/two", tmp_path / "data", cases), "test", threshold=60)
    inspector = MaskInspector(run, other, sort_by="other run better")
    assert inspector.id == "false"
    assert inspector.controls.figures.value.count("<tr>") == 3
    before = pictures(inspector)
    inspector.controls.thresholds[1].value = 220
    after = pictures(inspector)
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False]
    assert len(MaskInspector(run, run).controls.thresholds) == 2  # of the same name
    write_split(tmp_path / "else/test")
    elsewhere = open_run(run.folder, "test", data_path=tmp_path / "else")
    with pytest.raises(InputError, match="compare runs on the same prepared split"):
        MaskInspector(run, elsewhere)


def test_it_opens_on_a_list_of_ids(run):
    inspector = MaskInspector(run, ids=["sound", "missed"])
    assert inspector.ids == list(inspector.ranked().index) == ["missed", "sound"]
    assert set(inspector.ranked()) - {"kinds"} <= set(ranking.COLUMNS)
    assert "0 of 2 images judged" in inspector.controls.status.value
    with pytest.raises(InputError, match="ids: 'lost' is not predicted"):
        MaskInspector(run, ids=["sound", "lost"])
    with pytest.raises(InputError, match="sort_by: 'best' is no order"):
        MaskInspector(run, sort_by="best")


def test_files_that_cannot_be_read_are_told(run):
    run.labels.image_path("false").unlink()
    run.predictions.heatmap_path("missed").write_bytes(b"")
    run.labels.image_path("perfect").write_bytes(b"no picture")  # found when it is shown
    inspector = MaskInspector(run, sort_by="id")
    for problem in ("false.jpg does not exist", "missed.png is not a readable", "perfect.jpg is not an image"):
        assert problem in inspector.controls.error.value
        inspector.step(1)
    assert inspector.controls.error.value == ""
    assert "3 images have files that cannot be read; find them under Show" in inspector.controls.status.value
    inspector.controls.show.value = "unreadable"
    assert inspector.ids == ["false", "missed", "perfect"]


def test_an_empty_store_says_so(tmp_path):
    write_split(tmp_path / "data/test")
    run = open_run(write_run(tmp_path / "run", tmp_path / "data", {}), "test")
    inspector = MaskInspector(run).wait()
    assert "holds no prediction of an image" in inspector.controls.error.value
    assert inspector.controls.body.layout.display == "none"
    for key in ("ArrowRight", "x", "3", "End"):
        inspector.press(key)
    assert inspector.last_error == ""
    assert not run.verdicts_path.exists()


def test_a_split_without_labels(tmp_path):
    write_split(tmp_path / "data/test", labelled=False)
    run = open_run(write_run(tmp_path / "run", tmp_path / "data", scores=[0.9, 0.1, 0.5, 0.7]), "test")
    inspector = MaskInspector(run, sort_by="predicted score")
    assert inspector.ids == ["missed", "false", "sound", "perfect"]
    parts = inspector.controls
    assert (parts.layers.options, parts.panels[0].layout.display) == (("prediction", "image"), "none")
    assert "MOS" in parts.figures.value and "false" not in parts.legend.value
    assert parts.keys.texts == ["no label of missed", "prediction of run for missed: 0 regions"]
    assert "sorted by" in MaskInspector(run).controls.status.value
    inspector.press("3")
    assert inspector.last_error == ""


def test_text_from_data_is_escaped():
    row = pd.Series({"prompt": "<script>", "width": 1, "height": 2, "labelled": False, "kinds": "<b>"})
    headline = html.headline("<i>", row)
    assert not any(tag in headline for tag in ("<script>", "<b>", "<i>"))
    assert "&lt;" in html.error("<x>")


# Verdicts -----------------------------------------------------------------------------------------------------------


def test_verdicts_are_written_at_once_shown_again_and_exported(inspector, run):
    inspector.press("x")
    inspector.controls.note.value = "six fingers"
    row = json.loads(run.verdicts_path.read_text())
    assert (row["id"], row["verdict"], row["note"], row["threshold"]) == ("false", "model wrong", "six fingers", 90)
    inspector.step(1)
    assert said(inspector) == ("", "")
    inspector.controls.export.click()
    table = pd.read_csv(run.verdicts_path.with_suffix(".csv"), dtype={"id": str})
    assert table.loc[0, ["id", "verdict", "false_regions", "predicted"]].tolist() == ["false", "model wrong", 2, 0.5]
    assert "test.csv" in inspector.controls.status.value
    again = MaskInspector(run)
    assert said(again) == ("model wrong", "six fingers")
    assert "1 of 4 images judged" in again.controls.status.value
    again.controls.note.value = ""
    again.press("x")
    assert run.verdicts_path.read_text() == ""


def test_two_notebooks_leave_each_other_s_words(run):
    mine, theirs = MaskInspector(run), MaskInspector(run)
    theirs.press("x")
    theirs.controls.note.value = "six fingers"
    mine.controls.note.value = "mine"
    assert kept(run, "false") == ("model wrong", "six fingers\nmine") == said(mine)
    mine.press("g")
    mine.controls.note.value = "seven"
    assert kept(run, "false") == ("model right", "seven")
    theirs.step(1)
    theirs.step(-1)
    assert said(theirs) == ("model right", "seven")
    theirs.press("u")
    mine.controls.show.value = "unsure"
    assert mine.ids == ["false"]


def test_an_unusable_line_is_told_while_images_are_looked_at(run):
    row = {"verdict": "unsure", "note": "", "threshold": 90, "time": "2025-01-01"}
    lines = [json.dumps(row | change) for change in ({"id": "perfect"}, {"id": "missed", "verdict": "model bad"})]
    run.verdicts_path.parent.mkdir(parents=True)
    run.verdicts_path.write_text("\n".join(lines))
    inspector = MaskInspector(run)
    for _ in range(3):
        assert "line 2 holds the verdict &#x27;model bad&#x27;; write" in inspector.controls.unsaved.value
        assert pictures(inspector)[0] and inspector.id in inspector.controls.headline.value
        inspector.step(1)
    inspector.press("x")
    inspector.export()
    assert "line 2 holds the verdict" in inspector.controls.error.value
    assert run.verdicts_path.read_text() == "\n".join(lines)
    run.verdicts_path.write_text(lines[0] + "\n\n")
    inspector.step(-1)
    assert inspector.controls.unsaved.value == ""
    assert (kept(run, "sound"), kept(run, "perfect")) == (("model wrong", ""), ("unsure", ""))


def test_an_image_whose_picture_fails_cannot_be_judged(inspector, run, monkeypatch):
    before, parts = pictures(inspector), inspector.controls
    monkeypatch.setattr(image, "draw", lambda *_, **__: 1 / 0)
    inspector.step(1)
    assert "ZeroDivisionError" in parts.error.value and "ZeroDivisionError" in inspector.last_error
    assert not any(pictures(inspector)) and "false" not in parts.headline.value
    assert parts.verdict.disabled and parts.note.disabled
    inspector.press("x")
    inspector.judge(verdict="unsure")
    assert "nothing was noted" in parts.error.value
    assert not run.verdicts_path.exists()
    monkeypatch.undo()
    inspector.step(-1)
    assert pictures(inspector) == before
    inspector.press("x")
    assert kept(run, "false") == ("model wrong", "")


def test_what_cannot_be_saved_stays_and_is_told_until_it_is_saved(inspector, run):
    folder = run.verdicts_path.parent
    folder.write_text("a file where the folder should be")
    inspector.controls.note.value = "six fingers"
    inspector.controls.thresholds[0].value = 100
    assert "verdicts cannot be written" in inspector.controls.unsaved.value
    inspector.step(1)
    assert said(inspector) == ("", "")
    inspector.press("u")
    assert "Not saved yet: false, missed. Every step tries again." in inspector.controls.unsaved.value
    inspector.step(-1)
    assert said(inspector) == ("", "six fingers")
    inspector.press("x")
    folder.unlink()
    inspector.step(1)
    assert inspector.controls.unsaved.value == ""
    assert (kept(run, "false"), kept(run, "missed")) == (("model wrong", "six fingers"), ("unsure", ""))


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
    inspector = MaskInspector(run, sort_by="predicted score", side=128)
    assert time.process_time() - start < 3
    assert (inspector.id, len(inspector.ids), inspector.ranking.finished) == ("00000", 10_000, False)
    assert "of 10,000 images done" in inspector.controls.status.value
    for _ in range(100):
        inspector.step(1)
    kept = inspector.scene, inspector.heatmap, inspector.comparison, inspector.thumbnail
    assert [one.cache_info().currsize for one in kept] == [4, 8, 8, 64]  # browsing does not fill the memory
    inspector.controls.text.value = "00000"
    assert inspector.ids == ["00000"]


def test_ranking_goes_on_in_a_kernel_and_keeps_the_reader_s_image(run, monkeypatch):
    monkeypatch.setattr(inspector_module, "FIRST_RANKING", 0)
    monkeypatch.setattr(inspector_module, "PIECE", 0.001)

    async def kernel(*keys: str) -> MaskInspector:
        inspector = MaskInspector(run)
        assert (inspector.id, inspector.ranking.finished) == ("perfect", False)
        for key in keys:
            inspector.press(key)
        await inspector.ranking_task
        return inspector

    calm, moved, typing = (asyncio.run(kernel(*keys)) for keys in ((), ("End",), ("Focus",)))
    assert calm.ids == moved.ids == typing.ids == ["false", "missed", "perfect", "sound"]
    assert [one.id for one in (calm, moved, typing)] == ["false", "sound", "perfect"]


@pytest.fixture
def large(tmp_path) -> list:
    """Two runs on six images of 768 px with a dozen regions each, dear to encode."""
    rng, cases = np.random.default_rng(0), {}
    for k in range(6):
        boxes = [(int(x), int(y), 90, 70) for x, y in rng.integers(0, 660, (12, 2))]
        cases[f"image{k}"] = (boxes[:6], boxes[3:])
    write_split(tmp_path / "data/test", cases, size=768)
    return [open_run(write_run(tmp_path / name, tmp_path / "data", cases, size=768), "test") for name in ("one", "two")]


def seconds(action, values) -> float:
    """The median of the processor's time, since other work may go on beside the tests."""
    taken = []
    for value in values:
        start = time.process_time()
        action(value)
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def test_a_slider_answers_within_100_ms_and_a_step_within_200_with_two_runs(large):
    inspector = MaskInspector(*large).wait()
    parts = inspector.controls
    for slider in parts.thresholds:
        assert seconds(lambda value, slider=slider: setattr(slider, "value", value), range(100, 120)) < 0.1
    assert seconds(lambda value: setattr(parts.opacity, "value", value), np.linspace(0.2, 0.4, 20)) < 0.1
    assert seconds(lambda _: inspector.step(1), range(5)) < 0.2


def test_a_slider_draws_only_what_depends_on_it(inspector, monkeypatch):
    layers, draw = [], image.draw
    monkeypatch.setattr(image, "draw", lambda *what, **style: layers.append(what[3]) or draw(*what, **style))
    parts = inspector.controls
    parts.thresholds[0].value = 100
    assert layers == ["prediction"]
    parts.thresholds[0].value = 200  # the hit becomes a miss, which the label shows, too
    assert layers == ["prediction", "label", "prediction"]
    parts.opacity.value = 0.3
    assert layers[3:] == ["label", "prediction"]
    inspector.draw()
    assert len(layers) == 5
