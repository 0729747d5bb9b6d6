"""The mask inspector as people use it: a real JupyterLab, a real Chromium, offline (see `lab.py`)."""

import json
import re
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from lab import (
    ROOT,
    WIDE,
    needs_chromium,
    open_and_run,
    place_notebook,
    run_cell,
    views,
    wait_for,
    wait_until_ranked,
    wait_until_run,
)

from lib.config import Experiment
from lib.data.prepare import prepare
from lib.stores import LabelStore, write_heatmap
from lib.synthetic import write_dataset

pytest_plugins = ["lab"]
pytestmark = needs_chromium
TABLES = ("manifest.parquet", "regions.parquet")
SIDE = 1024  # pixels, as the geometric mean of width and height
# Seconds that a reader waits at the most. Two busy cores needed 0.05 for the threshold and 0.1 for a step.
# Seconds that only a flaw would take: a quiet machine needs 1.6 and 0.07, a crowded one several times that.
FIRST_PICTURE, ANSWER = 20.0, 1.0
# What the inspector shows: `shown` is the image and the thresholds of picture and figures together.
READ_INSPECTOR = """
window.inspected = () => {
  const root = document.querySelector(".mask-inspector"), text = (one) => root.querySelector(one)?.textContent.trim();
  const canvases = [...root.querySelectorAll(".mi-panel canvas")];
  return { shown: root.dataset.shown, id: text(".mi-title"), figures: text(".mi-figures"), error: text(".mi-error"),
    total: text(".mi-nav"), titles: [...root.querySelectorAll(".mi-panel-title")].map((one) => one.textContent).join(),
    pictures: canvases.map((one) => one.toDataURL()) };
};
window.waited = async (act, answered) => {
  const root = document.querySelector(".mask-inspector"), start = performance.now();
  act(root);
  while (!answered(root)) await new Promise((resolve) => setTimeout(resolve, 2));
  return performance.now() - start;
};
"""
STEP = """async () => {
  const before = document.querySelector(".mask-inspector").dataset.shown;
  const key = new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true});
  return waited((root) => root.dispatchEvent(key), (root) => root.dataset.shown && root.dataset.shown !== before);
}"""
MOVE = """async (value) => waited((root) => {
  const slider = root.querySelector("input[type=range]");
  slider.value = value;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
}, (root) => root.dataset.shown?.split(" ")[1].startsWith(`${value},`))"""
LONG = "endless words "


def multiply(split: Path, times: int) -> None:
    """Show every image of a prepared split so many times, under names of their own, each with its label's file."""
    labels, tables = LabelStore(split), {name: pd.read_parquet(split / name) for name in TABLES}
    heatmaps = {id: labels.heatmap_path(id).read_bytes() for id in labels.ids}
    for name, table in tables.items():
        copies = [table.assign(id=table["id"] + f"_{k}") for k in range(times)]
        pd.concat(copies, ignore_index=True).to_parquet(split / name)
    for id, heatmap in heatmaps.items():
        for k in range(times):
            (split / "heatmaps" / f"{id}_{k}.png").write_bytes(heatmap)


def fake_run(root: Path, name: str, seed: int) -> None:
    """A run that saw the labels through a blur and some noise."""
    labels, rng = LabelStore(root / "data/prepared/test"), np.random.default_rng(seed)
    folder, rows = root / "runs" / name / "predictions/test", []
    for id in labels.ids:
        label = labels.heatmap(id)
        seen = cv2.GaussianBlur(cv2.resize(label, (128, 128)), None, sigmaX=4).astype(float)
        noise = cv2.GaussianBlur(rng.normal(size=(128, 128)), None, sigmaX=8)
        heatmap = np.clip(seen * rng.uniform(0.6, 1.2) + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
        write_heatmap(folder / "heatmaps" / f"{id}.png", cv2.resize(heatmap, label.shape[::-1]))
        rows.append((id, float(rng.uniform())))
    pd.DataFrame(rows, columns=["id", "score"]).to_parquet(folder / "scores.parquet")
    Experiment(experiment_name=name, data_path="data/prepared").save(root / "runs" / name / "config.yaml")


@pytest.fixture(scope="module")
def kit(lab_root) -> Path:
    """A folder like the repository's: a prepared split of large images, each three times, and two runs."""
    root = lab_root / "inspection"
    root.mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    write_dataset(root / "data/raw", {"test": 10}, size=SIDE, workers=1)
    prepare(root / "data/raw", root / "data/prepared", splits=("test",))
    multiply(root / "data/prepared/test", 3)
    manifest = pd.read_parquet(root / "data/prepared/test/manifest.parquet")
    manifest.loc[0, "prompt"] = LONG * 250
    manifest.to_parquet(root / "data/prepared/test/manifest.parquet")
    fake_run(root, "blurred", 1)
    fake_run(root, "noisy", 2)
    place_notebook(root, "5_mask_inspection", run="runs/blurred", compare_with="runs/noisy", threshold=90, n_static=2)
    return root


def changed(page, before: dict, *names: str) -> dict:
    """Wait until each of these parts differs from before and the picture is whole; all parts, read together."""
    differ = """([before, names]) => {
      const now = inspected(), same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
      return now.shown && names.every(name => !same(now[name], before[name])) && now;
    }"""
    return page.wait_for_function(differ, arg=[before, list(names)]).json_value()


@pytest.fixture
def inspector(lab, kit, page):
    """The inspector of notebook 5 after all cells have run."""
    page.add_init_script(READ_INSPECTOR)
    open_and_run(page, lab("inspection/notebooks/5_mask_inspection.ipynb"))
    page.wait_for_selector(".mask-inspector[data-shown]")
    wait_until_run(page)
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    wait_until_ranked(page)
    found = page.locator(".mask-inspector")
    found.scroll_into_view_if_needed()
    return found


def find(page, query: str) -> dict:
    """Type a filter and read what it finds."""
    before = page.evaluate("inspected()")
    page.locator(".mi-filter").fill(query)
    page.keyboard.press("Enter")
    changed(page, before, "total") if query != "nothing > 0" else changed(page, before, "error")
    return page.evaluate("inspected()")


def test_look_at_masks(inspector, page, screenshot):
    # The cell again: another widget takes the place of the first, soon.
    old, start = page.evaluate("inspected()"), time.perf_counter()
    page.evaluate("delete document.querySelector('.mask-inspector').dataset.shown")
    run_cell(page, "MaskInspector(chosen")
    page.wait_for_selector(".mask-inspector[data-shown]")
    taken = time.perf_counter() - start
    print(f"the first picture took {taken:.1f} s from running the cell")
    assert taken < FIRST_PICTURE
    wait_until_ranked(page)
    canvas = inspector.locator(".mi-panel canvas").nth(1)
    canvas.click()
    cells = page.locator(".jp-Cell").count()

    # Keys step and change the layer; Lab must not take them for its own shortcuts.
    first = page.evaluate("inspected()")
    page.keyboard.press("ArrowRight")
    second = changed(page, first, "id", "pictures")
    page.keyboard.press("3")
    difference = changed(page, second, "pictures", "titles")
    page.keyboard.press("1")
    page.get_by_label("go to this place in the list").fill("1")
    page.keyboard.press("Enter")
    assert changed(page, difference, "id", "pictures")["id"] == first["id"]
    canvas.click()
    assert page.locator(".jp-Cell").count() == cells

    # f shows the label in the prediction's place, v the other run; both again, and all is as before.
    page.wait_for_timeout(400)
    calm = page.evaluate("inspected()")
    assert calm["titles"] == "label,blurred,noisy"
    page.keyboard.press("v")
    assert changed(page, calm, "pictures")["titles"] == "label,noisy,blurred"
    page.keyboard.press("v")
    page.keyboard.press("f")
    assert changed(page, calm, "pictures")["titles"] == "label,blurred: label,noisy: label"
    page.keyboard.press("f")
    page.wait_for_timeout(400)
    assert page.evaluate("inspected()")["pictures"] == calm["pictures"]

    # Wheel, drag, double click and keys move all pictures alike; at the whole image the page scrolls.
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -300)
    near = changed(page, calm, "pictures")["pictures"]
    assert all(one != other for one, other in zip(near, calm["pictures"], strict=True))
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 130, steps=3)
    page.mouse.up()
    panned = changed(page, {"pictures": near}, "pictures")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("-")
    changed(page, panned, "pictures")
    page.keyboard.press("0")
    page.wait_for_timeout(400)
    assert page.evaluate("inspected()")["pictures"] == calm["pictures"]
    canvas.dblclick(position={"x": 50, "y": 50})
    page.wait_for_timeout(400)
    close = page.evaluate("inspected()")
    assert close["pictures"] != calm["pictures"]

    # Threshold and step answer at once, picture and figures together.
    page.keyboard.press("0")
    assert quick(page, "the threshold", lambda n: page.evaluate(MOVE, 95 + 5 * n)) < ANSWER
    assert quick(page, "a step", lambda _: page.evaluate(STEP)) < ANSWER

    # Three widths, two themes.
    page.get_by_label("go to this place in the list").fill("1")
    page.keyboard.press("Enter")
    page.wait_for_function("id => inspected().id === id", arg=first["id"])
    pictures = {}
    for theme, width in views(page):
        assert inspector.evaluate("one => one.scrollWidth <= one.clientWidth + 1"), f"{width}: parts stick out"
        wide = inspector.evaluate(
            "one => [...one.querySelectorAll('canvas')].map(c => c.clientWidth / one.clientWidth)"
        )
        assert min(wide) > (0.9 if width == "phone" else 0.3)
        pictures[theme, width] = screenshot(inspector, f"inspector_test_{theme}_{width}")
    assert pictures["light", "wide"][:8].mean() > 200
    assert pictures["dark", "wide"][:8].mean() < 80
    assert old["titles"] == calm["titles"]


def quick(page, what: str, act) -> float:
    """Seconds from key or slider to the picture with its figures, in the browser: the median of nine.

    Other work on the machine can only make it longer, so the best of three rounds counts when the first is too slow.
    """
    medians = []
    while len(medians) < 3 and min(medians, default=ANSWER) >= ANSWER:
        taken = []
        for n in range(9):
            page.wait_for_timeout(250)  # a reader looks; the neighbours are fetched meanwhile
            taken.append(act(n + 10 * len(medians)) / 1000)
        medians.append(float(np.median(taken)))
    print(what, "took", ", ".join(f"{1000 * median:.0f} ms" for median in medians))
    return min(medians)


def test_find_judge_and_correct(inspector, kit, page, screenshot):
    # An expression, fields that write one, and a sentence for one that cannot be used.
    everything = page.evaluate("inspected()")
    assert everything["total"].endswith("of 30›")
    found = find(page, 'domain == "shifted" and false > 0')
    assert found["id"] != "" and 0 < int(re.search(r"of (\d+)", found["total"])[1]) < 30
    assert "there is no column nothing" in find(page, "nothing > 0")["error"]
    page.get_by_role("button", name="clear the filter").click()
    changed(page, found, "total")
    page.get_by_label("column to filter").select_option("prompt")
    page.get_by_label("value to compare with").fill(LONG)
    page.get_by_role("button", name="add this condition").click()
    page.wait_for_function("() => document.querySelector('.mi-prompt').textContent.length > 3000")
    assert page.locator(".mi-prompt").bounding_box()["height"] < 80
    page.get_by_role("button", name="clear the filter").click()
    page.wait_for_function("() => inspected().total.endsWith('of 30›') && inspected().shown")

    # A verdict and a note by keyboard: both in the file; "dd" in it deletes no cell.
    canvas, cells = inspector.locator(".mi-panel canvas").nth(1), page.locator(".jp-Cell").count()
    canvas.click()
    id, path = page.evaluate("inspected()")["id"], kit / "runs/blurred/verdicts/test.jsonl"
    page.keyboard.press("t")
    page.keyboard.type("an odd sleeve")
    page.keyboard.press("Escape")
    page.get_by_label("next after a verdict").check()
    canvas.click()
    before = page.evaluate("inspected()")
    page.keyboard.press("x")
    second = changed(page, before, "id")["id"]
    row = last_line(path)
    assert (row["id"], row["verdict"], row["note"]) == (id, "model wrong", "an odd sleeve")
    assert page.locator(".jp-Cell").count() == cells

    # A rectangle and a polygon, one moved, one erased and brought back.
    page.keyboard.press("c")
    known = page.evaluate("document.querySelectorAll('.mi-panel').length")
    box = canvas.bounding_box()
    page.keyboard.press("b")
    drag(page, box, (60, 60), (140, 120))
    wait_for(lambda: last_line(path)["id"] == second and last_line(path)["regions"])
    drawn = last_line(path)["regions"]
    assert drawn[-1]["shape"] == "rectangle"
    page.keyboard.press("o")
    for x, y in ((180, 180), (230, 190), (200, 230)):
        page.mouse.click(box["x"] + x, box["y"] + y)
    page.keyboard.press("Enter")
    wait_for(lambda: len(last_line(path)["regions"]) == len(drawn) + 1)
    page.keyboard.press("m")
    drag(page, box, (100, 90), (120, 100))
    wait_for(lambda: last_line(path)["regions"][-2] != drawn[-1])
    scale = LabelStore(kit / "data/prepared/test").table.at[second, "width"] / box["width"]
    by = np.subtract(last_line(path)["regions"][-2]["points"], drawn[-1]["points"])
    np.testing.assert_allclose(by, [[20 * scale, 10 * scale]] * 2, atol=2 * scale)
    page.keyboard.press("Delete")
    wait_for(lambda: len(last_line(path)["regions"]) == len(drawn))
    page.keyboard.press("z")
    wait_for(lambda: len(last_line(path)["regions"]) == len(drawn) + 1)
    screenshot(inspector, "inspector_test_correct")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="write verdicts as CSV").click()
    corrected = path.with_suffix("") / "corrected/corrected_info.json"
    wait_for(corrected.is_file)
    assert list(json.loads(corrected.read_text())) == [second]
    assert known == 3

    # A view brings back image, filter and setting, also in another widget.
    find(page, "corrected")
    page.keyboard.press("Escape")
    canvas.click()
    page.keyboard.press("3")
    page.get_by_label("name of the view to save").fill("mine")
    page.get_by_role("button", name="save image, filter").click()
    page.get_by_text('MaskInspector(run, view="mine") opens it').wait_for()
    page.get_by_role("button", name="clear the filter").click()
    page.wait_for_function("() => inspected().total.endsWith('of 30›')")
    page.get_by_label("saved views").select_option("mine")
    page.wait_for_function("() => inspected().total.endsWith('of 1›') && inspected().shown")
    again = page.evaluate("inspected()")
    assert (again["id"], again["titles"]) == (second, "label,blurred: difference,noisy: difference")
    page.set_viewport_size(WIDE)


def last_line(path: Path) -> dict:
    return json.loads(path.read_text().splitlines()[-1])


def drag(page, box: dict, start: tuple, end: tuple) -> None:
    page.mouse.move(box["x"] + start[0], box["y"] + start[1])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0], box["y"] + end[1], steps=4)
    page.mouse.up()
