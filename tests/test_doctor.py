"""Each check with good and bad facts; the report; the command on this machine."""

import http.server
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest
import torch

from lib.config import Experiment
from lib.doctor import examination, examine, inputs, machine, software
from lib.doctor.__main__ import main
from lib.doctor.report import BAD, OK, WARN, Finding, Report, gigabytes

ROOT = Path(__file__).resolve().parents[1]
LARGE = Experiment(checkpoint="florence-community/Florence-2-large")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No variable that a check reads, whatever this machine has set."""
    for name in (
        "JPY_SESSION_NAME", "JPY_PARENT_PID", "CHROMIUM", "CUDA_VISIBLE_DEVICES", "CONDA_PREFIX", "DATA_ROOT",
        "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def mend(finding: Finding, state: str, *parts: str) -> None:
    """The finding has this state and says these things; whatever is not fine has a remedy."""
    assert finding.state == state, finding
    assert bool(finding.remedy) == (state != OK), finding
    for part in parts:
        assert part in f"{finding.told} -> {finding.remedy}"


# Software


def test_python_of_this_project_another_environment_and_another_version(monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    mend(software.python(), OK, ".venv")
    monkeypatch.setattr(sys, "prefix", "/usr")
    mend(software.python(), WARN, "/usr, which is not this project's .venv", "make lab")
    monkeypatch.setenv("CONDA_PREFIX", "/usr")
    mend(software.python(), OK)
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    mend(software.python(), BAD, "Python 3.12.1", "make install PYTHON=")


def test_packages_that_are_absent_or_of_another_version(monkeypatch):
    mend(software.packages(), OK, "at their versions")
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "scipy" else version(name))
    mend(software.packages(), WARN, "scipy 0.1 (not ", "make install")

    def absent(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    mend(software.packages(), BAD, "not installed: torch", "make install")


def kernel_of(monkeypatch, program: str) -> None:
    spec = {"argv": [program, "-m", "ipykernel_launcher"]}
    found = {"python3": {"resource_dir": "/home/me/kernels/python3", "spec": spec}}
    monkeypatch.setattr(software, "_kernels", lambda: found)


@pytest.mark.parametrize("program", ["python", sys.executable])
def test_kernel_of_this_environment(monkeypatch, program):
    kernel_of(monkeypatch, program)
    mend(software.kernel(), OK, "this environment")


def test_kernel_of_another_environment_or_none(monkeypatch):
    kernel_of(monkeypatch, "/opt/other/bin/python")
    mend(software.kernel(), BAD, "/opt/other/bin/python", "remove /home/me/kernels/python3")
    monkeypatch.setattr(software, "_kernels", dict)
    mend(software.kernel(), BAD, "no kernel named python3", "make install")


def lab_runs(monkeypatch, program: str) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    process = types.SimpleNamespace(cmdline=lambda: [program, "-m", "jupyterlab"])
    monkeypatch.setattr(psutil, "Process", {7: process}.get)


def test_kernel_and_lab_in_different_environments(monkeypatch):
    kernel_of(monkeypatch, "python")
    lab_runs(monkeypatch, sys.executable)
    mend(software.kernel(), OK, "as JupyterLab does")
    lab_runs(monkeypatch, "/opt/lab/bin/python3")
    mend(software.kernel(), WARN, "JupyterLab in /opt/lab", "make lab")


def test_widgets_need_their_half_in_labs_environment(monkeypatch, tmp_path):
    mend(software.widgets(), OK, "ipywidgets 8", "anywidget")
    lab_runs(monkeypatch, str(tmp_path / "bin/python"))
    extensions = tmp_path / "share/jupyter/labextensions"
    (extensions / "anywidget").mkdir(parents=True)
    (extensions / "anywidget/package.json").write_text("{}")
    mend(software.widgets(), BAD, f"{tmp_path} lacks the JupyterLab extension of ipywidgets:", "restart JupyterLab")
    monkeypatch.delenv("JPY_SESSION_NAME")
    version = importlib.metadata.version
    old = {"jupyterlab_widgets": "1.1.9"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old.get(name) or version(name))
    mend(software.widgets(), BAD, "jupyterlab_widgets 1.1.9, but ipywidgets needs 3.0", "make install")


def test_browser(monkeypatch):
    monkeypatch.setattr(shutil, "which", {"chromium": "/usr/bin/chromium", "/usr/bin/chromium": "yes"}.get)
    mend(software.browser(), OK, "/usr/bin/chromium")
    monkeypatch.setenv("CHROMIUM", "/nowhere/chrome")
    mend(software.browser(), WARN, "CHROMIUM is /nowhere/chrome", "apt-get install chromium")
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    mend(software.browser(), WARN, "tests are skipped", "apt-get install chromium")


# Machine


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_no_gpu_is_fine_for_the_demo_only(no_gpu):
    mend(machine.gpu(), OK, "suits the demo")
    mend(machine.gpu(Experiment(checkpoint="florence2-tiny")), OK)
    mend(machine.gpu(LARGE), WARN, "far too slow for florence-community/Florence-2-large")
    mend(machine.gpu(Experiment(checkpoint="florence2-tiny", fp16=True)), BAD, "cannot do fp16", "fp16: false")


def test_a_gpu_that_torch_cannot_use(no_gpu, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    mend(machine.gpu(), WARN, "built without CUDA", "CUDA build")
    monkeypatch.setattr(torch.version, "cuda", "12.8")

    def too_old():
        import warnings

        warnings.warn("the NVIDIA driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    mend(machine.gpu(), WARN, "torch for CUDA 12.8", "the NVIDIA driver is too old", "update the driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mend(machine.gpu(), WARN, "CUDA_VISIBLE_DEVICES is '': unset it")


def test_gpus_are_named_and_counted(monkeypatch):
    card = types.SimpleNamespace(name="NVIDIA H100", total_memory=80e9)
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    mend(machine.gpu(LARGE), OK, "2 x NVIDIA H100, 80 GB each, bf16, CUDA 12.8")
    mend(machine.gpu(Experiment(num_processes=8)), BAD, "num_processes is 8", "num_processes: 2")


def test_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=3e9))
    mend(machine.memory(), OK, "3.0 GB free, about 1.6 GB needed")
    mend(machine.memory(LARGE), WARN, "3.0 GB free, about 4.8 GB needed")  # 2 x 4 bytes x 0.6e9


def test_shared_memory(monkeypatch):
    workers = Experiment(num_workers=4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=64e6))
    mend(machine.shared_memory(), OK, "not needed")
    mend(machine.shared_memory(workers), WARN, "0.1 GB free in /dev/shm for 4 data workers", "--shm-size")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=8e9))
    mend(machine.shared_memory(workers), OK, "8.0 GB")


def test_disk_by_what_a_run_writes(monkeypatch, tmp_path):
    """Full: 0.6e9 weights x 4 bytes x 3 = 7.2 GB a checkpoint, three of them, two models of 2.4 GB, 0.1 GB."""
    run = {"runs": str(tmp_path / "runs"), "data_path": str(tmp_path), "checkpoint": "org/Florence-2-large"}
    free = types.SimpleNamespace(free=20e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    mend(machine.disk(), OK, "20 GB free", "about 0.2 GB needed")
    mend(machine.disk(Experiment(**run)), BAD, f"20 GB free in {tmp_path}, about 26 GB needed", "keep_checkpoints")
    mend(machine.disk(Experiment(**run, lora_rank=8)), OK, "about 8.1 GB needed")  # 0.15 x 21.6 + 4.8 + 0.1
    mend(machine.disk(Experiment(**{**run, "checkpoint": "florence2-tiny"})), OK)


def test_disk_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    mend(
        machine.disk(Experiment(runs=str(tmp_path))), BAD, f"{tmp_path} and", "cannot be written", "the parameters runs"
    )


def test_weights_of_a_folder_are_those_of_its_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    assert machine._weights(Experiment(checkpoint=str(tmp_path))) == 500
    assert machine._weights(Experiment(checkpoint="BAAI/AltCLIP")) == 0.9e9


def test_ports(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(machine, "LAB_PORT", listener.getsockname()[1])
        mend(machine.ports(), OK, "127.0.0.1 works")
        listener.listen()
        mend(machine.ports(), OK, f"{machine.LAB_PORT} is in use")

    def refuse(probe, address):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    mend(machine.ports(), BAD, "Operation not permitted", "firewall")


# Inputs


def test_raw_data(monkeypatch, raw, tmp_path):
    mend(inputs.raw_data(), OK, "not set")
    monkeypatch.setenv("DATA_ROOT", str(raw))
    mend(inputs.raw_data(), OK, f"{raw} with train, val, test")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    mend(inputs.raw_data(), BAD, "lacks train/images and train/train_info.json", "train/, val/ and test/")


def test_prepared_data(monkeypatch, prepared, tmp_path):
    mend(inputs.prepared_data(Experiment(data_path=str(prepared))), OK, "with test, train, val")
    mend(inputs.prepared_data(Experiment(data_path=str(tmp_path))), BAD, f"{tmp_path} holds no", "1_data_processing")
    monkeypatch.setattr(inputs, "ROOT", tmp_path)
    mend(inputs.prepared_data(), OK, "make demo draws its own")


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """A hub on this machine that answers with the status in its list; nothing is in the cache."""
    status, asked = [200], []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802 (the library's name)
            asked.append(self.path)
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield status, asked
    server.shutdown()
    server.server_close()


def test_the_hub_answers(mirror, monkeypatch):
    status, asked = mirror
    mend(inputs.hub(LARGE), OK, "http://127.0.0.1:", "gives florence-community/Florence-2-large")
    assert asked == ["/florence-community/Florence-2-large/resolve/main/config.json"]
    status[0] = 404
    mend(inputs.hub(LARGE), BAD, "has no florence-community/Florence-2-large", "correct checkpoint")
    status[0] = 401
    mend(inputs.hub(LARGE), BAD, "only with a token (401)", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "a token")
    mend(inputs.hub(LARGE), OK)
    status[0] = 503
    mend(inputs.hub(LARGE), BAD, "cannot be reached (503)", "mirror")
    mend(inputs.hub(), WARN, "the demo does not need it")


def test_the_hub_does_not_answer(mirror, monkeypatch):
    with socket.socket() as silent:  # accepts and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(inputs, "PATIENCE", 0.2)
        start = time.monotonic()
        mend(inputs.hub(LARGE), BAD, "cannot be reached")
        assert time.monotonic() - start < 5
    monkeypatch.setenv("HF_ENDPOINT", "no address")
    mend(inputs.hub(LARGE), BAD, "no address cannot be reached", "HF_ENDPOINT")


def test_the_hub_is_not_needed(mirror, monkeypatch, tmp_path):
    mend(inputs.hub(Experiment(checkpoint="florence2-tiny")), OK, "florence2-tiny is a folder")
    mend(inputs.hub(Experiment(checkpoint=str(tmp_path))), OK, "not needed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mend(inputs.hub(LARGE), BAD, "HF_HUB_OFFLINE is set", str(tmp_path / "hub"), "unset HF_HUB_OFFLINE")
    snapshot = tmp_path / "hub/models--florence-community--Florence-2-large/snapshots/0123"
    snapshot.mkdir(parents=True)
    mend(inputs.hub(LARGE), BAD)  # its weights are not there
    (snapshot / "model.safetensors").touch()
    mend(inputs.hub(LARGE), OK, "in the cache")
    assert not mirror[1]


# All together


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def shared_memory(config):
        raise KeyError("x")

    monkeypatch.setattr(examination, "CHECKS", (shared_memory, lambda config: Finding("disk", BAD, "full", "free it")))
    report = examine()
    assert report[0] == Finding("shared memory", WARN, "could not be looked at (KeyError: 'x')", report[0].remedy)
    assert report.missing == ["disk"]


def test_the_report_is_lines():
    report = Report([Finding("gpu", OK, "one"), Finding("raw data", BAD, "none", "get some")])
    expected = "ok    gpu       one\nbad   raw data  none\n                -> get some\nMissing: raw data."
    assert repr(report) == expected
    assert repr(Report([Finding("gpu", OK, "one")])).endswith("\nNothing that is needed is missing.")


def test_sizes():
    assert [gigabytes(size) for size in (0.46e9, 9.44e9, 9.6e9, 1200e9)] == ["0.5 GB", "9.4 GB", "10 GB", "1200 GB"]


def test_the_command_tells_by_its_exit_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(examination, "CHECKS", (inputs.prepared_data,))
    Experiment(data_path=str(tmp_path)).save(tmp_path / "run.yaml")
    assert main([str(tmp_path / "run.yaml")]) == 1
    assert "Missing: prepared data." in capsys.readouterr().out
    monkeypatch.setattr(inputs, "ROOT", tmp_path)
    assert main([]) == 0
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err
    assert main(["a", "b"]) == 2


def test_nothing_is_imported_that_may_be_what_is_missing():
    """In an environment without any package the command still says what is not installed."""
    code = "import sys; from lib.doctor.__main__ import main; sys.exit(main([]))"
    # -S -E: without site-packages
    result = subprocess.run([sys.executable, "-S", "-E", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "not installed: torch" in result.stdout and "Missing: packages" in result.stdout


def test_everything_is_looked_at_within_seconds(tmp_path):
    """Offline, torch included; the demo misses nothing here."""
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "127.0.0.1", "HF_HOME": str(tmp_path)}
    before = sum(os.times()[2:4])
    result = subprocess.run(
        [sys.executable, "-m", "lib.doctor"], cwd=ROOT, env=os.environ | closed, capture_output=True, text=True
    )
    spent = sum(os.times()[2:4]) - before  # seconds of processor time: other work does not count
    *lines, end = result.stdout.splitlines()
    names = [line[6:20].strip() for line in lines if line[:6].strip()]
    assert len(names) == len(examination.CHECKS)
    assert end == "Nothing that is needed is missing." and result.returncode == 0, result.stdout
    assert spent < 6


def test_make_doctor_says_when_there_is_no_environment(tmp_path):
    if not shutil.which("make"):
        pytest.skip("needs make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    result = subprocess.run(["make", "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0 and "Run: make install" in result.stderr


def test_notebook_2_names_the_doctor():
    notebook = json.loads((ROOT / "notebooks/2_train.ipynb").read_text(encoding="utf-8"))
    assert "from lib.doctor import examine; examine(config)" in "".join(notebook["cells"][0]["source"])
