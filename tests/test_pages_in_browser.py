"""What a pipeline leaves to look at, opened from the disk in a real Chromium: notebooks' pages and the index."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from example_plans import start, write_plan
from example_runs import CASES, write_run, write_split
from lab import ROOT, WIDE, needs_chromium
from test_comparison import BETTER, evaluation_of

from lib.evaluate.own_images import own_split, scored, unreadable
from lib.metrics.setting import Setting
from lib.plots import write_score_page
from lib.stores import PredictionStore, write_heatmap

pytest_plugins = ["lab"]
pytestmark = needs_chromium
# What a reader would stumble over: (what, where) for each flaw of the page as it is at this width.
FLAWS = """async () => {
  const found = [], all = (selector) => [...document.querySelectorAll(selector)];
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push(["the page scrolls sideways", root.scrollWidth]);
  for (const details of all("details")) details.open = true;
  for (const image of all("img")) {
    image.loading = "eager";
    await image.decode().catch(() => {});
    if (!image.naturalWidth || !image.width) found.push(["no picture", image.src.slice(0, 60)]);
  }
  for (const one of all("body *")) {
    const cut = getComputedStyle(one).overflowX === "hidden" && one.scrollWidth > one.clientWidth + 1;
    if (cut) found.push(["cut off", one.className, one.innerText]);
  }
  for (const output of all(".jp-OutputArea-child")) {
    if (!output.innerText.trim() && !output.querySelector("img")) found.push(["empty output", output.className]);
  }
  for (const text of all("pre")) {
    if (/Traceback|Error:/.test(text.innerText)) found.push(["traceback", text.innerText]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a pipeline that inspected and compared two small runs."""
    root = tmp_path_factory.mktemp("pages")
    (root / "notebooks/params").mkdir(parents=True)
    for name in ("5_mask_inspection", "6_compare_runs"):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", root / "notebooks")
    write_split(root / "data/test")
    for name, cases in (("worse", CASES), ("better", BETTER)):
        evaluation_of(write_run(root / "runs" / name, root / "data", cases, lora_rank=len(name)), root / "data")
    runs = {"run": str(root / "runs/worse"), "compare_with": str(root / "runs/better")}
    inspection = {"notebook": "5_mask_inspection", "parameters": runs | {"n_static": 3}}
    comparison = {"notebook": "6_compare_runs", "parameters": {"bootstrap": 20, "names": ["worse", "better"]}}
    write_plan(root / "notebooks", steps=[inspection, comparison], summary={"one": "worse", "two": "better"})
    assert start(root / "notebooks") == 0
    return root / "runs/trial"


@pytest.fixture
def offline(page):
    """The page of `lab`, which must fetch nothing but files and what pages hold themselves."""
    fetched = []
    page.on("request", lambda request: fetched.append(request.url))
    yield page
    assert [url[:80] for url in fetched if not url.startswith(("file:", "data:"))] == []


def flaws(page) -> list:
    """Flaws at three widths."""
    found = []
    for size in (WIDE, {"width": 800, "height": 1000}, {"width": 390, "height": 850}):
        page.set_viewport_size(size)
        found += [(size["width"], *flaw) for flaw in page.evaluate(FLAWS)]
    return found


def test_a_page_shows_pictures_where_the_widget_was(folder, offline, screenshot):
    page = folder / "1_5_mask_inspection.html"
    offline.goto(page.as_uri())
    assert flaws(offline) == []
    assert offline.locator("img").count() == 1
    widget = offline.locator(".jp-CodeCell", has_text="MaskInspector(chosen")
    assert widget.locator(".jp-OutputArea-child").count() == 0
    assert "widget-state" not in page.read_text(encoding="utf-8")
    offline.set_viewport_size(WIDE)
    # The next code cell holds the picture: as wide as the text, and no empty frame.
    picture = screenshot(widget.locator("xpath=following::img[1]"), "page_inspection")
    assert picture.shape[1] > 800
    assert picture.std() > 20


def test_the_index_leads_to_all_pages(folder, offline):
    offline.goto((folder / "index.html").as_uri())
    assert flaws(offline) == []
    assert offline.locator("table").count() >= 2
    links = set(offline.evaluate("[...document.links].map(link => link.href)"))
    pages = {link.partition("#")[0].rpartition("/")[2] for link in links}
    assert pages == {"1_5_mask_inspection.html", "2_6_compare_runs.html", "summary.json"}
    for link in sorted(links):
        offline.goto(link)  # a file that is missing ends the test here
        assert link.endswith("summary.json") or flaws(offline) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_scored_folder_shows_the_worst_first(tmp_path, offline, screenshot, scheme):
    """Five images of noise, the second worst with two regions and a prompt that is no HTML; one file is no image."""
    rng, out = np.random.default_rng(0), tmp_path / "out"
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (60, 90, 3), np.uint8))
        heatmap = np.zeros((64, 64), np.uint8)
        if number == 1:
            heatmap[5:20, 5:20] = heatmap[40:60, 30:50] = 200
        write_heatmap(out / "heatmaps" / f"{number}.png.png", heatmap)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "prompts.csv").write_text("path,prompt\n1.png,</script><b>two hands</b>\n")
    scores = pd.DataFrame({"id": [f"{n}.png" for n in range(5)], "score": [0, 0.25, 0.5, 0.75, 1]})
    scores.to_parquet(out / "scores.parquet")
    labels, predictions, setting = own_split(tmp_path, out, tmp_path / "prompts.csv"), PredictionStore(out), Setting(90)
    images, _ = scored(labels, predictions, setting, tmp_path, out)
    facts = (labels, predictions, setting, images, unreadable(labels))
    page = write_score_page(out / "index.html", "a <b>", *facts, pictures=3)
    offline.emulate_media(color_scheme=scheme)
    offline.goto(page.as_uri())
    assert flaws(offline) == []
    offline.set_viewport_size(WIDE)
    assert offline.locator("h1").inner_text() == "a <b>"
    assert "1 of 5 images have a distorted region: 20%" in offline.locator(".verdict").inner_text()
    assert "1 files could not be read" in offline.locator("footer").inner_text()
    cards = offline.locator(".card")
    assert [text.splitlines()[1] for text in cards.all_inner_texts()] == [f"MOS {n}.00" for n in range(1, 6)]
    assert cards.locator("img:not(.heat)").count() == 3 and cards.last.locator(".picture").count() == 0
    assert "The 3 worst scores have their picture here" in offline.locator("header").inner_text()
    assert "<b>two hands</b>" in cards.nth(1).inner_text() and cards.nth(1).locator("path:not(.rim)").count() == 2
    offline.set_viewport_size({"width": 390, "height": 844})
    assert offline.evaluate("document.documentElement.scrollWidth") == 390
    screenshot(offline.locator("body"), f"page_scores_{scheme}")
    offline.locator("#broken").click()
    assert offline.locator("#count").inner_text() == "1 of 5 images" and cards.count() == 1
    offline.locator("#broken").click()
    offline.locator("#search").fill("4.PNG")
    assert cards.count() == 1 and "MOS 5.00" in cards.first.inner_text()
    offline.locator("#search").fill("")
    offline.select_option("#sort", "area")
    cards.first.click()
    rows = offline.locator("#large tr").all_inner_texts()
    assert len(rows) == 3 and rows[1].split()[:2] == ["1", "42"]  # the larger one first: 30 of 64 of 90 pixels
    offline.keyboard.press("ArrowRight")
    assert offline.locator("#place").inner_text() == "2 of 5"
    offline.locator("#close").click()
    offline.locator("#histogram button").last.click()
    assert cards.count() == 1 and "MOS 5.00" in cards.first.inner_text()
