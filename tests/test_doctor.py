"""Each check with good and bad facts; the report; the command on this machine."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fake_hub import FakeHub, Repository
from huggingface_hub import constants

from lib import doctor
from lib.config import Experiment
from lib.doctor import BAD, OK, WARN, main

ROOT = Path(__file__).resolve().parents[1]
LARGE = Experiment(checkpoint="florence-community/Florence-2-large")


def expect(finding: tuple, state: str, *parts: str) -> None:
    """The finding has this state and says these things; whatever is not fine has a remedy."""
    found, line, remedy = finding
    assert found == state and bool(remedy) == (state != OK), finding
    for part in parts:
        assert part in f"{line} -> {remedy}"


def test_packages_of_another_version_or_absent(monkeypatch):
    pins = (ROOT / "constraints.txt").read_text().lower()
    versions = dict(re.findall(r"^([\w.-]+)==(.*)", pins, re.M))

    def version(name):
        if name.lower() not in versions:
            raise importlib.metadata.PackageNotFoundError
        return versions[name.lower()]

    monkeypatch.setattr(importlib.metadata, "version", version)
    expect(doctor.packages(), OK, "at the versions of constraints.txt")
    versions["scipy"] = "0.1"
    expect(doctor.packages(), WARN, "scipy 0.1 (not ", "make install")
    del versions["torch"]
    expect(doctor.packages(), BAD, "not installed: torch", "make install")


def test_kernel_and_widgets_of_this_environment_of_another_or_none(monkeypatch):
    def kernels(text: str):
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout=text))

    spec = '{"kernelspecs": {"python3": {"resource_dir": "/me/python3", "spec": {"argv": ["%s"]}}}}'
    kernels(spec % "/opt/other/bin/python")
    expect(doctor.kernel(), BAD, "/opt/other/bin/python", "remove /me/python3")
    kernels('{"kernelspecs": {}}')
    expect(doctor.kernel(), BAD, "no kernel named python3", "make install")
    kernels(spec % "python")
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    expect(doctor.kernel(), BAD, "lacks the extension @jupyter-widgets", "restart JupyterLab")


def test_disk_and_shared_memory_by_what_a_run_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=20e9))
    run = {"runs": str(tmp_path / "runs"), "checkpoint": "org/Florence-2-large"}
    expect(doctor.disk(), OK, "20 GB free")
    expect(doctor.disk(Experiment(**run)), BAD, f"20 GB free in {tmp_path}, about 34 GB needed")
    expect(doctor.disk(Experiment(**run, lora_rank=8)), OK, "about 9.2 GB needed")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    expect(doctor.disk(Experiment(**run)), BAD, f"{tmp_path} cannot be written", "the parameter runs")
    # 8 processes x 4 workers x 2 batches x 32 images x 4 bytes x 768 x 768 pixels = 4.8 GB.
    values = {"num_processes": 8, "num_workers": 4, "batch_size": 4, "batch_size_warmup": 32, "batch_size_val": 4}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2e9))
    expect(doctor.shared(Experiment(**values)), BAD, "2.0 GB free in /dev/shm, about 4.8 GB needed", "num_workers")
    expect(doctor.shared(Experiment(**values | {"warmup_epoch": 0})), OK, "about 0.6 GB needed")


def test_the_checkpoint_from_the_hub_its_cache_or_a_folder(monkeypatch, tmp_path):
    server = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    expect(doctor.hub(), OK, "florence2-tiny is a folder")
    expect(doctor.hub(Experiment(checkpoint=str(tmp_path))), OK, "not needed")
    expect(doctor.hub(LARGE), BAD, f"{LARGE.checkpoint} cannot be fetched", "404", "hf auth login")
    server.repositories[LARGE.checkpoint] = Repository(private=False)
    expect(doctor.hub(LARGE), OK, f"{server.address} gives {LARGE.checkpoint}")
    server.close()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    expect(doctor.hub(LARGE), BAD, "connection to http://127.0.0.1:9 (HF_ENDPOINT)")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expect(doctor.hub(LARGE), BAD, "unset HF_HUB_OFFLINE")
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
