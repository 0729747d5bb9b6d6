"""The mask inspector and the training notebook as people use them: a real JupyterLab, a real Chromium, offline."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_runs import write_run, write_split
from executed import TINY
from lab import ROOT, WIDE, needs_chromium, open_and_run, place_notebook, run_cell, views, wait_for, wait_until_run
from playwright.sync_api import expect

from lib.train import read_metrics

pytest_plugins = ["lab"]
pytestmark = needs_chromium
SIDE = 1024  # pixels
# Thirty images: two true regions, of which one is predicted beside one that is false; every third is sound.
TRUE, FALSE = [(700, 100, 250, 200), (700, 600, 200, 300)], (650, 350, 100, 150)
CASES = {f"image_{k:02d}": (TRUE if k % 3 else [], [TRUE[0], FALSE] if k % 3 else []) for k in range(30)}
# What the inspector shows: `shown` is the image and the thresholds of picture and figures together.
READ_INSPECTOR = """
window.inspected = () => {
  const root = document.querySelector(".mask-inspector"), text = (one) => root.querySelector(one)?.textContent.trim();
  const canvases = [...root.querySelectorAll(".mi-panel canvas")];
  return { shown: root.dataset.shown, id: text(".mi-title"), figures: text(".mi-figures"), error: text(".mi-error"),
    total: text(".mi-nav"), titles: [...root.querySelectorAll(".mi-panel-title")].map((one) => one.textContent).join(),
    pictures: canvases.map((one) => one.toDataURL()) };
};
"""
MOVE = """(value) => {
  const slider = document.querySelector(".mask-inspector input[type=range]");
  slider.value = value;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
}"""
# At the ranking's end the inspector sorts its list anew, which may bring another image.
RANKED = "() => !document.querySelector('.mask-inspector').textContent.includes('Ranking,')"
LONG = "endless words "


@pytest.fixture(scope="module")
def kit(lab_root) -> Path:
    """A folder like the repository's: a prepared split of large images and two runs."""
    root = lab_root / "inspection"
    split = write_split(root / "data/prepared/test", CASES, size=SIDE, domain=["shown", "shifted"] * 15)
    shutil.copy(ROOT / "pyproject.toml", root)
    manifest = pd.read_parquet(split / "manifest.parquet")
    manifest.loc[0, "prompt"] = LONG * 250
    manifest.to_parquet(split / "manifest.parquet")
    write_run(root / "runs/blurred", Path("data/prepared"), CASES, size=SIDE)
    better = {id: (true, true) for id, (true, _) in CASES.items()}
    write_run(root / "runs/noisy", Path("data/prepared"), better, size=SIDE)
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
    page.wait_for_function(RANKED)
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
    # The cell again: another widget takes the place of the first.
    old = page.evaluate("inspected()")
    page.evaluate("delete document.querySelector('.mask-inspector').dataset.shown")
    run_cell(page, "MaskInspector(chosen")
    page.wait_for_selector(".mask-inspector[data-shown]")
    page.wait_for_function(RANKED)
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
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("-")
    changed(page, {"pictures": near}, "pictures")
    page.keyboard.press("0")
    page.wait_for_timeout(400)
    assert page.evaluate("inspected()")["pictures"] == calm["pictures"]
    canvas.dblclick(position={"x": 50, "y": 50})
    changed(page, calm, "pictures")

    # The threshold moves picture and figures together.
    page.keyboard.press("0")
    page.evaluate(MOVE, 210)
    assert changed(page, calm, "shown", "figures")["shown"].split()[1].startswith("210,")

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
    scale = SIDE / box["width"]
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


CHANGES = {"warmup_epoch": 10, "epoch": 110, "val_iter": 20, "save_iter": -1, "log_iter": 2, "lr": 1e-3}
# A fast machine would be at the end before anybody could stop it.
SLOW = """import time
from pathlib import Path
from lib.train.loop import Run
update = Run._update
Run._update = lambda run, *rest: (time.sleep(0 if Path("hurry").exists() else 0.05), update(run, *rest))[1]"""


@pytest.fixture(scope="module")
def training_kit(prepared, micro_checkpoint, lab_root) -> Path:
    """A folder like the repository's with notebook 2, set to a training of 120 epochs, 3 slow steps each."""
    root = lab_root / "training"
    root.mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    where = {"experiment_name": "watched", "data_path": str(prepared), "checkpoint": str(micro_checkpoint)}
    place_notebook(root, "2_train", parameter_set="", **where, **TINY | CHANGES)
    path = root / "notebooks/2_train.ipynb"
    notebook = json.loads(path.read_text())
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    notebook["cells"].append({**first, "id": "slow", "source": SLOW, "metadata": {}})
    launching = next(n for n, cell in enumerate(notebook["cells"]) if "launch(config" in "".join(cell["source"]))
    notebook["cells"].insert(launching, notebook["cells"].pop())
    path.write_text(json.dumps(notebook))
    return root


def test_watch_a_training_stop_it_and_go_on(lab, training_kit, page):
    open_and_run(page, lab("training/notebooks/2_train.ipynb"))
    output = page.locator(".jp-OutputArea").filter(has_text="watched: 24 images, 360 steps on 1 x cpu")
    curve = output.locator("img")
    curve.wait_for()
    expect(curve).not_to_have_attribute("src", curve.get_attribute("src"), timeout=120_000)  # it grows

    page.click("[data-command='notebook:interrupt-kernel']")
    output.get_by_text(re.compile(r"SIGINT: stopped at step \d+ of 360 and saved; the same .* from here\.")).wait_for()
    assert not (training_kit / "runs/watched/finished.json").exists()

    (training_kit / "notebooks/hurry").touch()
    run_cell(page, "launch(config")
    output.get_by_text(re.compile("Trained 360 steps in")).wait_for()
    assert "Going on from runs/watched/checkpoints/step_" in output.inner_text()
    assert curve.count() == 1
    assert len([row for row in read_metrics(training_kit / "runs/watched") if "loss" in row]) == 180
