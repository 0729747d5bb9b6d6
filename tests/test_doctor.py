"""Each check with good and bad facts; the report; the command on this machine."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest
import torch
from fake_hub import FakeHub, Repository
from huggingface_hub import constants

from lib import doctor
from lib.config import Experiment
from lib.doctor import BAD, OK, WARN, main

ROOT = Path(__file__).resolve().parents[1]
LARGE = Experiment(checkpoint="florence-community/Florence-2-large")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No variable that a check reads, whatever this machine has set."""
    for name in ("CONDA_PREFIX", "DATA_ROOT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def expect(finding: tuple, state: str, *parts: str) -> None:
    """The finding has this state and says these things; whatever is not fine has a remedy."""
    found, line, remedy = finding
    assert found == state and bool(remedy) == (state != OK), finding
    for part in parts:
        assert part in f"{line} -> {remedy}"


def test_python_of_this_project_another_environment_and_another_version(monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    expect(doctor.python(), OK, ".venv")
    monkeypatch.setattr(sys, "prefix", "/usr")
    expect(doctor.python(), WARN, "/usr, which is not this project's .venv", "make lab")
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    expect(doctor.python(), BAD, "Python 3.12.1", "make install PYTHON=")


def test_packages_and_widgets_of_another_version_or_absent(monkeypatch):
    expect(doctor.packages(), OK, "at their versions")
    expect(doctor.widgets(), OK, "ipywidgets 8", "anywidget")
    version, other = importlib.metadata.version, {"scipy": "0.1", "jupyterlab_widgets": "1.1.9"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: other.get(name) or version(name))
    expect(doctor.packages(), WARN, "scipy 0.1 (not ", "make install")
    expect(doctor.widgets(), BAD, "jupyterlab_widgets 1.1.9, but ipywidgets needs 3.0", "make install")
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    expect(doctor.widgets(), BAD, "lacks the extension of ipywidgets and anywidget", "restart JupyterLab")

    def absent(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    expect(doctor.packages(), BAD, "not installed: torch", "make install")


def test_kernel_of_this_environment_of_another_or_none(monkeypatch):
    def kernels(text: str):
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout=text))

    spec = '{"kernelspecs": {"python3": {"resource_dir": "/me/python3", "spec": {"argv": ["%s"]}}}}'
    for program in ("python", sys.executable):
        kernels(spec % program)
        expect(doctor.kernel(), OK, "this environment")
    kernels(spec % "/opt/other/bin/python")
    expect(doctor.kernel(), BAD, "/opt/other/bin/python", "remove /me/python3")
    kernels('{"kernelspecs": {}}')
    expect(doctor.kernel(), BAD, "no kernel named python3", "make install")


def test_gpu_absent_unusable_or_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    expect(doctor.gpu(), OK, "suits the demo")
    expect(doctor.gpu(LARGE), WARN, "far too slow for florence-community/Florence-2-large")
    expect(doctor.gpu(Experiment(checkpoint="florence2-tiny", fp16=True)), BAD, "cannot do fp16", "fp16: false")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    expect(doctor.gpu(), WARN, "built without CUDA", "CUDA build")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    expect(doctor.gpu(), WARN, "torch for CUDA 12.8 cannot use", "update the driver", "CUDA_VISIBLE_DEVICES")
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    card = types.SimpleNamespace(name="NVIDIA H100", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    expect(doctor.gpu(LARGE), OK, "2 x NVIDIA H100, 80 GB each, bf16, CUDA 12.8")
    expect(doctor.gpu(Experiment(num_processes=8)), BAD, "num_processes is 8", "num_processes: 2")


def test_memory_and_disk_by_what_a_run_takes(monkeypatch, tmp_path):
    """Full: 0.6e9 weights x 4 bytes x 3 = 7.2 GB a checkpoint, three of them, two models of 2.4 GB, 0.1 GB."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=3e9))
    expect(doctor.memory(), OK, "3.0 GB free, about 1.6 GB needed")
    expect(doctor.memory(LARGE), WARN, "3.0 GB free, about 4.8 GB needed")  # 2 x 4 bytes x 0.6e9
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=20e9))
    run = {"runs": str(tmp_path / "runs"), "checkpoint": "org/Florence-2-large"}
    expect(doctor.disk(), OK, "20 GB free", "about 0.2 GB needed")
    expect(doctor.disk(Experiment(**run)), BAD, f"20 GB free in {tmp_path}, about 26 GB needed")
    expect(doctor.disk(Experiment(**run, lora_rank=8)), OK, "about 8.1 GB needed")  # 0.15 x 21.6 + 4.8 + 0.1
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    expect(doctor.disk(Experiment(**run)), BAD, f"{tmp_path} cannot be written", "the parameter runs")


def test_data(monkeypatch, raw, prepared, tmp_path):
    expect(doctor.data(Experiment(data_path=str(prepared))), OK, "with test, train, val")
    expect(doctor.data(Experiment(data_path=str(tmp_path))), BAD, f"{tmp_path} holds no", "1_data_processing")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    expect(doctor.data(), OK, "make demo draws its own")
    monkeypatch.setenv("DATA_ROOT", str(raw))
    expect(doctor.data(), OK)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    expect(doctor.data(), BAD, "lacks train/images and train/train_info.json", "train/, val/ and test/")


def test_the_checkpoint_from_the_hub_its_cache_or_a_folder(monkeypatch, tmp_path):
    server = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    expect(doctor.hub(), OK, "florence2-tiny is a folder")
    expect(doctor.hub(Experiment(checkpoint=str(tmp_path))), OK, "not needed")
    expect(doctor.hub(LARGE), BAD, f"does not give {LARGE.checkpoint} (401)", "hf auth login")
    server.repositories[LARGE.checkpoint] = Repository(private=False)
    expect(doctor.hub(LARGE), OK, f"{server.address} gives {LARGE.checkpoint}")
    server.close()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    expect(doctor.hub(LARGE), BAD, "http://127.0.0.1:9 cannot be reached", "HF_ENDPOINT")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expect(doctor.hub(LARGE), BAD, "HF_HUB_OFFLINE is set", str(tmp_path), "unset it")
    folder = tmp_path / "models--florence-community--Florence-2-large"
    (folder / "snapshots/0123").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0123")
    (folder / "snapshots/0123/model.safetensors").touch()
    expect(doctor.hub(LARGE), OK, "in the cache")


def test_the_command_prints_lines_and_tells_by_its_exit_code(monkeypatch, capsys, tmp_path):
    def broken(config):
        raise KeyError("x")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.data))
    Experiment(data_path=str(tmp_path)).save(tmp_path / "run.yaml")
    assert main([str(tmp_path / "run.yaml")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "warn  broken    could not be looked at (KeyError: 'x')"
    assert lines[2].startswith("bad   data      ") and lines[-1] == "Missing: data."
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert main([]) == 0
    assert capsys.readouterr().out.endswith("\nNothing that is needed is missing.\n")
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("site", [["-S", "-E"], []], ids=["without any package", "installed"])
def test_everything_is_looked_at_offline(site):
    """Without site-packages the command still says what is not installed; here the demo misses nothing."""
    command = [sys.executable, *site, "-m", "lib.doctor"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == bool(site), result.stdout + result.stderr
    told = "not installed: torch" if site else "Nothing that is needed is missing."
    assert told in result.stdout
    assert [line[6:14].strip() for line in result.stdout.splitlines() if line[:4].strip() in (OK, WARN, BAD)] == [
        check.__name__ for check in doctor.CHECKS
    ]
