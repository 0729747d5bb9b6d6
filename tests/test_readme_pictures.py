"""The README's pictures of the inspector, taken from the demo's own runs in a browser.

    make demo
    SCREENSHOTS=data_cards/pictures make test-slow ARGS="-k readme_pictures"

The runs are copied first: what is judged here does not enter the verdicts of the demo.
"""

import json
import shutil

import pytest
from lab import (
    ROOT,
    needs_chromium,
    open_and_run,
    place_notebook,
    set_theme,
    wait_for,
    wait_until_ranked,
    wait_until_run,
)

pytest_plugins = ["lab"]
RUNS = ("demo_full", "demo_lora")
FAR = 60  # images; a note that was true of one picture must not end up under another
pytestmark = [
    *needs_chromium,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((ROOT / "runs" / run / "predictions/test/scores.parquet").is_file() for run in RUNS),
        reason="the demo has not run: make demo",
    ),
]


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A folder like the repository's with copies of the demo's two runs and its test images."""
    root = tmp_path_factory.mktemp("kit")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "data/demo", root / "data/demo")
    for run in RUNS:
        unneeded = shutil.ignore_patterns("verdicts", "checkpoints", "tensorboard")
        shutil.copytree(ROOT / "runs" / run, root / "runs" / run, ignore=unneeded)
    return root


@pytest.mark.parametrize(
    ("name", "theme", "width", "parameters", "id", "note"),
    [
        (
            "inspector_light_wide", "Light", 1120, {"compare_with": "runs/demo_lora", "sort_by": "missed area"},
            "test_000215", "the bent arm is found at its hand only; the other hand is sound",
        ),
        ("inspector_dark_narrow", "Dark", 520, {}, "test_000104", "missed: the melted arm; legs in the air are sound"),
    ],
)  # fmt: skip
def test_readme_pictures(lab, kit, page, screenshot, name, theme, width, parameters, id, note):
    place_notebook(kit, "5_mask_inspection", run="runs/demo_full", **parameters)
    page.set_viewport_size({"width": width, "height": 1400})
    open_and_run(page, lab("notebooks/5_mask_inspection.ipynb"))
    page.wait_for_selector(".mask-inspector .mi-panel img")
    wait_until_run(page)
    wait_until_ranked(page)
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    set_theme(page, theme)
    inspector = page.locator(".mask-inspector")
    inspector.locator(".mi-panel img").nth(1).click()
    step_to(page, inspector, id)
    page.keyboard.press("x")
    page.keyboard.press("t")
    page.keyboard.type(note)
    page.keyboard.press("Escape")
    verdicts = kit / "runs/demo_full/verdicts/test.jsonl"
    wait_for(lambda: verdicts.is_file() and note in verdicts.read_text())
    row = json.loads(verdicts.read_text().splitlines()[-1])
    assert (row["id"], row["verdict"], row["note"]) == (id, "model wrong", note)
    picture = screenshot(inspector, name)
    assert picture.std() > 20


def step_to(page, inspector, id: str) -> None:
    for _ in range(FAR):
        shown = inspector.locator(".mi-title").first.inner_text().strip()
        if shown == id:
            return
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "old => document.querySelector('.mask-inspector .mi-title').innerText.trim() !== old", arg=shown
        )
    pytest.fail(f"{id} is not among the first {FAR} images: choose another image and a note that is true of it")
