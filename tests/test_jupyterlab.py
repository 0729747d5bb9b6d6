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
# What JupyterLab itself writes to the console, offline and without this kit; everything else is a failure.
BENIGN = (
    "Plugin 'jupyter.extensions.",
)  # fmt: skip


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
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={kit}", "--LabApp.expose_app_in_browser=True"]
    command += ["--LabApp.extension_manager=readonly", "--ServerApp.port_retries=0"] + ["--allow-root"] * (os.name == "posix")
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
