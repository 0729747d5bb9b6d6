"""A real JupyterLab in a real Chromium, offline: fixtures and steps that the browser tests share.

Needs Debian's `chromium` (`apt-get install chromium`) or another one named by the environment variable CHROMIUM.
Screenshots are kept in the folder SCREENSHOTS, when that variable names one. A test module takes the fixtures with
`pytest_plugins = ["lab"]` and makes a folder of its own below `lab_root`; all share one server and one browser.
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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = [
    pytest.mark.alone,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium, or name one by CHROMIUM"),
]
WIDE = {"width": 1280, "height": 1000}
WIDTHS = {"wide": WIDE, "narrow": {"width": 800, "height": 1500}, "phone": {"width": 390, "height": 1800}}
KERNEL = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
NOTEBOOK = "window.jupyterapp.shell.currentWidget.content"
CELLS = f"{NOTEBOOK}.model.toJSON().cells"


def place_notebook(root: Path, name: str, **parameters) -> None:
    """Copy a notebook with other values in its parameters cell, as somebody would type them."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    cell["source"] = "".join(cell["source"]) + "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture(scope="session")
def lab_root(tmp_path_factory) -> Path:
    """The folder that JupyterLab shows."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def lab(lab_root, tmp_path_factory):
    """lab(path below `lab_root`) -> its address in a JupyterLab on a free loopback port, with settings of its own."""
    home, token = tmp_path_factory.mktemp("jupyter"), secrets.token_hex(16)
    settings = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    own = {name: str(home / name) for name in places} | {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    own |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={lab_root}", "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | own, cwd=lab_root, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}"):
                break
            if server.poll() is not None:
                break
            time.sleep(0.2)
        assert server.poll() is None, (home / "log").read_text()[-2000:]
        # A workspace of its own for each notebook, or Lab would open those of earlier tests beside it.
        space = f"http://127.0.0.1:{port}/lab/workspaces"
        yield lambda path: f"{space}/{secrets.token_hex(4)}/tree/{path}?token={token}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="session")
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
    page.on("requestfailed", lambda request: complaints.append(f"{request.failure}: {request.url}"))
    page.set_default_timeout(120_000)
    yield page
    complaints = [text for text in complaints if "ERR_ABORTED" not in text]  # by the page itself, as when it is left
    page.close()
    assert complaints == []


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


def run_cell(page, source: str) -> None:
    """Choose the first cell whose source holds this text, and start it, without waiting until it has run."""
    page.evaluate(
        f"text => {{ {NOTEBOOK}.activeCellIndex = {CELLS}.findIndex(one => one.source.includes(text)) }}", source
    )
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell') }")


def views(page) -> Iterator[tuple[str, str]]:
    """Two themes, three widths: (light | dark, wide | narrow | phone) as the page shows them at that moment."""
    for theme in ("Light", "Dark"):
        page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
        for width, size in WIDTHS.items():
            page.set_viewport_size(size)
            page.wait_for_timeout(400)
            yield theme.lower(), width


def wait_until_run(page) -> None:
    """Every code cell has a number, and the kernel rests."""
    cells = f"{CELLS}.filter(one => one.outputs)"
    page.wait_for_function(f"() => {cells}.every(one => one.execution_count) && {KERNEL}.status === 'idle'")
    assert page.evaluate(f"{cells}.flatMap(one => one.outputs).filter(one => one.ename).map(one => one.evalue)") == []


def wait_for(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
