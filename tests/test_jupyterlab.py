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
READ_INSPECTOR = """
window.inspected = () => {
  const text = (selector) => document.querySelector(".mask-inspector " + selector)?.innerText;
  const pictures = [...document.querySelectorAll(".mask-inspector .mi-panel img")];
  const picture = pictures[1]?.complete && pictures[1].naturalWidth && pictures[1].src;
  return { headline: text(".mi-title")?.trim(), figures: text(".mi-figures"), picture };
};
"""
LONG = "endless words "
# Seconds that a reader of the demo's 300 images waits at the most, on machines of half the usual speed as well.
FIRST_PICTURE, STEP = 3.0, 0.4


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
        label = cv2.GaussianBlur(cv2.resize(labels.heatmap(id), (128, 128)), None, sigmaX=4).astype(float)
        noise = cv2.GaussianBlur(rng.normal(size=(128, 128)), None, sigmaX=8)
        heatmap = label * rng.uniform(0.6, 1.2) + 40 * noise / noise.std()
        write_heatmap(folder / "heatmaps" / f"{id}.png", np.clip(heatmap, 0, 255).astype(np.uint8))
        rows.append((id, float(rng.uniform())))
    pd.DataFrame(rows, columns=["id", "score"]).to_parquet(folder / "scores.parquet")
    Experiment(experiment_name=name, data_path="data/prepared").save(root / "runs" / name / "config.yaml")


@pytest.fixture(scope="module")
def kit(lab_root) -> Path:
    """A folder like the repository's: a prepared split as large as the demo's, thirty images ten times, two runs."""
    root = lab_root / "inspection"
    root.mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    write_dataset(root / "data/raw", {"test": 30}, size=256, workers=1)
    prepare(root / "data/raw", root / "data/prepared", splits=("test",))
    multiply(root / "data/prepared/test", 10)
    manifest = pd.read_parquet(root / "data/prepared/test/manifest.parquet")
    manifest.loc[0, "prompt"] = LONG * 250
    manifest.to_parquet(root / "data/prepared/test/manifest.parquet")
    fake_run(root, "blurred", 1)
    fake_run(root, "noisy", 2)
    place_notebook(root, "5_mask_inspection", run="runs/blurred", compare_with="runs/noisy", threshold=90)
    return root


def changed(page, before: dict, *names: str) -> dict:
    """Wait until the inspector is whole and each of these parts differs from before; all parts, read together."""
    differ = """([before, names]) => {
      const now = inspected();
      return Object.values(now).every(Boolean) && names.every(name => now[name] !== before[name]) && now;
    }"""
    return page.wait_for_function(differ, arg=[before, list(names)]).json_value()


def step_time(page) -> float:
    """Seconds from the arrow key to the next image with its figures: the median of nine steps.

    Other work on the machine can only make it longer, so the best of three rounds counts when the first is too slow.
    """
    medians = []
    while len(medians) < 3 and min(medians, default=STEP) >= STEP:
        taken = []
        for _ in range(9):
            before, start = page.evaluate("inspected()"), time.perf_counter()
            page.keyboard.press("ArrowRight")
            changed(page, before, "headline", "picture")
            taken.append(time.perf_counter() - start)
        medians.append(float(np.median(taken)))
    print("steps took", ", ".join(f"{1000 * median:.0f} ms" for median in medians), "from key to picture")
    return min(medians)


def test_inspect_masks(lab, kit, page, screenshot):
    page.add_init_script(READ_INSPECTOR)
    open_and_run(page, lab("inspection/notebooks/5_mask_inspection.ipynb"))
    inspector = page.locator(".mask-inspector")
    page.wait_for_selector(".mask-inspector .mi-panel img")
    wait_until_run(page)
    inspector.scroll_into_view_if_needed()
    cells = page.locator(".jp-Cell").count()
    page.evaluate("window.jupyterapp.shell.collapseLeft()")

    # The cell again: another widget takes the place of the first, soon.
    old, start = page.evaluate("inspected()"), time.perf_counter()
    run_cell(page, "MaskInspector(chosen")
    changed(page, old, "picture")
    taken = time.perf_counter() - start
    print(f"the first picture took {taken:.1f} s from running the cell")
    assert taken < FIRST_PICTURE
    wait_until_ranked(page)
    first = page.evaluate("inspected()")

    # The threshold by mouse: picture and figures follow.
    track = inspector.locator(".noUi-base").first.bounding_box()
    page.mouse.click(track["x"] + 0.55 * track["width"], track["y"] + track["height"] / 2)
    moved = changed(page, first, "picture", "figures")
    assert moved["headline"] == first["headline"]

    # By keyboard: to the next image and back, which Lab must not take for its own shortcuts.
    inspector.locator(".mi-panel img").nth(1).click()
    page.keyboard.press("ArrowRight")
    second = changed(page, moved, "headline", "picture")
    page.keyboard.press("3")
    difference = changed(page, second, "picture")
    page.keyboard.press("ArrowLeft")
    assert changed(page, difference, "headline")["headline"] == first["headline"]

    # A verdict and a note by keyboard: both in the file; "dd" in it deletes no cell.
    page.keyboard.press("x")
    page.keyboard.press("t")
    page.keyboard.type("an odd sleeve")
    page.keyboard.press("Escape")
    path = kit / "runs/blurred/verdicts/test.jsonl"
    wait_for(lambda: path.exists() and "an odd sleeve" in path.read_text())
    row = json.loads(path.read_text())
    assert (row["verdict"], row["note"], row["id"]) == ("model wrong", "an odd sleeve", first["headline"].split()[0])
    page.keyboard.press("ArrowRight")
    changed(page, first, "headline")
    assert page.locator(".jp-Cell").count() == cells

    # A click on a small picture; the keys work on from there.
    before = page.evaluate("inspected()")
    place = page.locator(".mi-strip [aria-current]").get_attribute("data-place")
    page.locator(f".mi-strip [data-place='{int(place) + 2}'] img").click()
    clicked = changed(page, before, "headline", "picture")
    page.keyboard.press("ArrowRight")
    changed(page, clicked, "headline", "picture")

    # Step after step.
    assert step_time(page) < STEP

    # Two widths, two themes.
    page.keyboard.press("Home")
    page.keyboard.press("1")
    pictures = {}
    for theme, width in views(page):
        assert inspector.evaluate("one => one.scrollWidth <= one.clientWidth + 1"), f"{width}: parts stick out"
        pictures[theme, width] = screenshot(inspector, f"inspector_test_{theme}_{width}")
    assert pictures["light", "wide"][:8].mean() > 200
    assert pictures["dark", "wide"][:8].mean() < 80

    # What a screen reader hears, and a prompt of 3,500 words.
    page.set_viewport_size(WIDE)
    names_are_heard_and_long_prompts_scroll(page, inspector)


def names_are_heard_and_long_prompts_scroll(page, inspector) -> None:
    page.get_by_label("words of prompt or id").fill(LONG)
    page.wait_for_function("() => document.querySelector('.mi-prompt').innerText.length > 3000")
    page.get_by_role("button", name="model right").click()
    heard = inspector.aria_snapshot()
    for name in (
        'button "previous image (left arrow)"', 'button "next image (right arrow)"', "button \"rank all images again",
        'spinbutton "go to this place in the list"', 'combobox "kind of distortion"',
        'textbox "words of prompt or id"', 'textbox "note on this image"', 'slider "Threshold blurred"',
        'slider "Threshold noisy"', 'slider "Opacity"', 'button "prediction" [pressed]', 'button "label"\n',
        'button "model right" [pressed]', 'img "label of test_', 'img "prediction of blurred for test_',
    ):  # fmt: skip
        assert name in heard, name
    assert re.findall(r"- (?:button|img|slider|textbox|combobox|checkbox|spinbutton)(?::| \[|\n| \"\")", heard) == []
    assert page.locator(".mi-prompt").bounding_box()["height"] < 80
    assert inspector.locator(".mi-panel img").nth(1).is_visible()
