"""The mask inspector as people use it: a real JupyterLab, a real Chromium, offline.

Needs Debian's `chromium` (`apt-get install chromium`) or another one named by the environment variable CHROMIUM.
Screenshots are kept in the folder SCREENSHOTS, when that variable names one.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import sync_playwright

from lib.config import Experiment
from lib.prepare import prepare
from lib.stores import LabelStore, write_heatmap
from lib.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium, or name one by CHROMIUM"),
]
# What JupyterLab itself writes to the console without this kit; everything else is a failure.
BENIGN: tuple[str, ...] = ()
WIDE, NARROW = {"width": 1280, "height": 1000}, {"width": 520, "height": 1500}
KERNEL = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
NOTEBOOK = "window.jupyterapp.shell.currentWidget.content"
CELLS = f"{NOTEBOOK}.model.toJSON().cells"
READ_INSPECTOR = """
window.inspected = () => {
  const text = (selector) => document.querySelector(".mask-inspector " + selector)?.innerText;
  const pictures = [...document.querySelectorAll(".mask-inspector .mi-panel img")];
  return { headline: text(".mi-title")?.trim(), figures: text(".mi-figures"), picture: pictures[1]?.src };
};
"""


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


def place_notebook(root: Path, name: str, **parameters) -> None:
    """Copy a notebook with other values in its parameters cell, as somebody would type them."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    cell["source"] = "".join(cell["source"]) + "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    """A folder like the repository's, with a small prepared split and two runs."""
    root = tmp_path_factory.mktemp("kit")
    shutil.copy(ROOT / "pyproject.toml", root)
    write_dataset(root / "data/raw", {"test": 12}, size=256, workers=1)
    prepare(root / "data/raw", root / "data/prepared", splits=("test",))
    fake_run(root, "blurred", 1)
    fake_run(root, "noisy", 2)
    place_notebook(root, "5_mask_inspection", run="runs/blurred", compare_with="runs/noisy", threshold=90)
    return root


@pytest.fixture(scope="module")
def lab(kit, tmp_path_factory):
    """The address of a JupyterLab on a free loopback port, with a token; its settings are this test's own."""
    home, token = tmp_path_factory.mktemp("jupyter"), secrets.token_hex(16)
    settings = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={kit}",
        "--LabApp.expose_app_in_browser=True",
    ]
    command += ["--LabApp.extension_manager=readonly", "--ServerApp.port_retries=0"] + ["--allow-root"] * (
        os.name == "posix"
    )
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=kit, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, home / "log")
        yield lambda path: f"http://127.0.0.1:{port}/lab/tree/{path}?token={token}"
    finally:
        server.terminate()
        server.wait(20)


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page whose console is read: an error that Lab does not write itself fails the test at its end."""
    page, complaints = browser.new_page(viewport=WIDE), []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda answer: answer.status >= 400 and complaints.append(f"{answer.status} {answer.url}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.set_default_timeout(60_000)
    yield page
    page.close()
    assert [text for text in complaints if not any(known in text for known in BENIGN)] == []


@pytest.fixture
def screenshot(request, tmp_path):
    """screenshot(locator, name): a PNG in the folder SCREENSHOTS, else among the test's temporary files."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(locator, name: str) -> np.ndarray:
        locator.screenshot(path=folder / f"{name}.png", animations="disabled")
        return cv2.imread(str(folder / f"{name}.png"))

    return take


def open_and_run(page, address: str) -> None:
    """Open a notebook, wait for its kernel and choose Run > Run All Cells."""
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(f"() => {KERNEL}?.status === 'idle' && {KERNEL}.connectionStatus === 'connected'")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def wait_until_run(page) -> None:
    """Every code cell has a number, and the kernel rests."""
    cells = f"{CELLS}.filter(one => one.outputs)"
    page.wait_for_function(f"() => {cells}.every(one => one.execution_count) && {KERNEL}.status === 'idle'")
    assert page.evaluate(f"{cells}.flatMap(one => one.outputs).filter(one => one.ename).map(one => one.evalue)") == []


def changed(page, before: dict, *names: str) -> dict:
    """Wait until each of these parts of the inspector differs from before; all parts, read together."""
    differ = "([before, names]) => { const now = inspected(); return names.every(name => now[name] !== before[name]) }"
    page.wait_for_function(differ, arg=[before, list(names)])
    return page.evaluate("inspected()")


def test_inspect_masks(lab, kit, page, screenshot):
    page.add_init_script(READ_INSPECTOR)
    open_and_run(page, lab("notebooks/5_mask_inspection.ipynb"))
    inspector = page.locator(".mask-inspector")
    page.wait_for_selector(".mask-inspector .mi-panel img")
    wait_until_run(page)
    inspector.scroll_into_view_if_needed()
    cells = page.locator(".jp-Cell").count()
    page.evaluate("window.jupyterapp.shell.collapseLeft()")

    # The cell again: another widget takes the place of the first, soon.
    old, start = page.evaluate("inspected()"), time.perf_counter()
    page.evaluate(f"{NOTEBOOK}.activeCellIndex = {CELLS}.findIndex(one => one.source.includes('MaskInspector(chosen'))")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-cell')")
    changed(page, old, "picture")
    print(f"the first picture took {time.perf_counter() - start:.1f} s from running the cell")
    assert time.perf_counter() - start < 6
    first = page.evaluate("inspected()")

    # The threshold by mouse: picture and figures follow.
    track = inspector.locator(".noUi-base").first.bounding_box()
    page.mouse.click(track["x"] + 0.55 * track["width"], track["y"] + track["height"] / 2)
    moved = changed(page, first, "picture", "figures")
    assert moved["headline"] == first["headline"]

    # By keyboard: to the next image and back, which Lab must not take for its own shortcuts.
    inspector.locator(".mi-panel img").nth(1).click()
    start = time.perf_counter()
    page.keyboard.press("ArrowRight")
    second = changed(page, moved, "headline", "picture")
    print(f"a step took {1000 * (time.perf_counter() - start):.0f} ms from key to picture")
    page.keyboard.press("3")
    difference = changed(page, second, "picture")
    page.keyboard.press("ArrowLeft")
    assert changed(page, difference, "headline")["headline"] == first["headline"]

    # A verdict and a note by keyboard: both in the file.
    page.keyboard.press("x")
    page.keyboard.press("t")
    page.keyboard.type("six fingers, d d")
    page.keyboard.press("Escape")
    path = kit / "runs/blurred/verdicts/test.jsonl"
    wait_for(lambda: path.exists() and "six fingers" in path.read_text())
    row = json.loads(path.read_text())
    assert (row["verdict"], row["note"], row["id"]) == ("model wrong", "six fingers, d d", first["headline"].split()[0])
    page.keyboard.press("ArrowRight")
    changed(page, first, "headline")
    assert page.locator(".jp-Cell").count() == cells

    # Two widths, two themes.
    page.keyboard.press("Home")
    page.keyboard.press("1")
    pictures = {}
    for theme in ("Light", "Dark"):
        page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
        for name, size in (("wide", WIDE), ("narrow", NARROW)):
            page.set_viewport_size(size)
            page.wait_for_timeout(400)
            assert inspector.evaluate("one => one.scrollWidth <= one.clientWidth + 1"), f"{name}: parts stick out"
            pictures[theme, name] = screenshot(inspector, f"inspector_{theme.lower()}_{name}")
    assert pictures["Light", "wide"][:8].mean() > 200
    assert pictures["Dark", "wide"][:8].mean() < 80


def wait_for(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
