"""What a pipeline leaves to look at, opened from the disk in a real Chromium: notebooks' pages and the index."""

import shutil

import pytest
from example_plans import start, write_plan
from example_runs import CASES, write_run, write_split
from lab import NARROW, ROOT, WIDE, needs_chromium
from test_comparison import BETTER, evaluation_of

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
  for (const prompt of all(".jp-OutputPrompt")) {
    const output = prompt.parentElement;
    const says = output.innerText.replace(prompt.innerText, "").trim();
    if (!says && !output.querySelector("img, svg")) found.push(["empty output", prompt.innerText]);
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
    """Flaws at two widths."""
    found = []
    for size in (WIDE, NARROW):
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


def test_a_page_shows_its_charts(folder, offline):
    offline.goto((folder / "2_6_compare_runs.html").as_uri())
    assert flaws(offline) == []
    assert offline.locator("img").count() >= 3


def test_the_index_leads_to_all_pages(folder, offline, screenshot):
    offline.goto((folder / "index.html").as_uri())
    assert flaws(offline) == []
    assert offline.locator("table").count() >= 2
    offline.set_viewport_size(WIDE)
    screenshot(offline.locator("body"), "page_index")
    links = set(offline.evaluate("[...document.links].map(link => link.href)"))
    pages = {link.partition("#")[0].rpartition("/")[2] for link in links}
    assert pages == {"1_5_mask_inspection.html", "2_6_compare_runs.html", "summary.json"}
    for link in sorted(links):
        offline.goto(link)  # a file that is missing ends the test here


def test_flaws_are_seen(tmp_path, offline):
    """The checks above can fail: a page with each of the flaws."""
    (tmp_path / "bad.html").write_text(
        "<body><div style='width: 2000px'>wide</div><img src='data:image/png;base64,xxxx'>"
        "<div style='overflow: hidden; width: 20px'>longerthanitsbox</div>"
        "<div><div class='jp-OutputPrompt'>Out[4]:</div><script>1</script></div>"
        "<pre>Traceback (most recent call last)</pre>"
    )
    offline.goto((tmp_path / "bad.html").as_uri())
    seen = {flaw[0] for flaw in offline.evaluate(FLAWS)}
    assert seen == {"the page scrolls sideways", "no picture", "cut off", "empty output", "traceback"}
