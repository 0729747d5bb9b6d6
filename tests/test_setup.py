"""The set-up holds together: versions stand in one place, and `make` survives interruption, moving and spaces."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")

# Stands in for python3.11 and for the Python of .venv: tells what it was asked for and keeps the environment.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> asked.txt
env > environment.txt
case "$*" in
  *"venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
  *"pip install -c"*) test ! -e break_down;;
esac
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras: str) -> dict[str, str]:
    """{package: range} that pyproject.toml asks for, of `lib` itself and of the extras named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {normal(re.match(r"[\w.-]+", line)[0]): re.sub(r"^[\w.-]+", "", line) for line in lines}


def test_requirements_are_ranges_that_hold_the_tested_versions():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(PIN.fullmatch(line) for line in lines)
    tested = {normal(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert len(tested) == len(lines), "constraints.txt names a package twice"
    for name, admitted in requirements("notebooks", "dev").items():
        assert name in tested, f"{name}: run `make lock`"
        assert SpecifierSet(admitted).contains(tested[name]), name
        assert "==" not in admitted and "<" not in admitted, f"{name} could not be installed beside other packages"
    assert all(requirements().values()), "each requirement of lib itself has a lowest version"


def test_environment_yml_takes_its_versions_from_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = {"pip": ["-c constraints.txt", "-e .[notebooks,dev]"]}
    assert environment["name"] == "nitre2025" and environment["dependencies"] == ["python=3.11", "pip", pip]


def test_every_file_of_lib_is_installed_with_it():
    lib, project = ROOT / "lib", tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = ["**/*.py", *project["tool"]["setuptools"]["package-data"]["lib"]]
    installed = {path for pattern in patterns for path in lib.glob(pattern)}
    assert not {path for path in lib.rglob("*") if path.is_file() and path.suffix != ".pyc"} - installed


NOTEBOOK_ROOMS = ("plots", "widgets", "pipeline", "workspace", "sharing", "doctor")  # of lib: need `notebooks`
OPTIONAL = {"wandb"}


def test_whatever_is_imported_is_a_requirement_of_that_part():
    distributions = importlib.metadata.packages_distributions()
    for file in [*ROOT.glob("lib/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        part, room = file.relative_to(ROOT).with_suffix("").parts[:2]
        extras = ["notebooks", "dev"] if part == "tests" or room == "tiny" else ["notebooks"] * (room in NOTEBOOK_ROOMS)
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
        for module in {name.partition(".")[0] for name in found} - OPTIONAL:
            if module in sys.stdlib_module_names or (ROOT / module).is_dir() or (file.parent / f"{module}.py").exists():
                continue
            names = {normal(name) for name in distributions.get(module, [module])}
            assert names & requirements(*extras).keys(), f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.slow
def test_lib_alone_installs_without_notebooks_and_tests_and_predicts(tmp_path):
    python = tmp_path / "environment/bin/python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    script = (
        "import numpy\nfrom lib.config import Experiment\nfrom lib.model import DistortionDetector\n"
        "detector = DistortionDetector.from_checkpoint(Experiment(checkpoint='florence2-tiny', input_size=128))\n"
        "found = detector.predict(numpy.zeros((90, 120, 3), numpy.uint8), 'a chair')\nprint(found.heatmap.shape)"
    )
    told = [
        subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True).stdout
        for command in (
            [sys.executable, "-m", "venv", tmp_path / "environment"],
            [*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT],
            [*pip, "check"],
            [*pip, "list", "--format=freeze"],
            [python, "-c", script],
        )
    ]
    installed = {normal(line.partition("==")[0]) for line in told[3].splitlines()}
    assert not installed & {"pytest", "playwright", "jupyterlab", "matplotlib", "papermill"}
    assert told[4].strip() == "(90, 120)"


@pytest.fixture
def clone(tmp_path):
    """A folder with spaces that holds what `make install` needs, and a stand-in for Python."""
    if not shutil.which("make"):
        pytest.skip("needs make")
    folder = tmp_path / "a clone with spaces"
    folder.mkdir()
    for file in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
        os.utime(folder / file, (1e9, 1e9))
    (folder / "fake_python").write_text(FAKE_PYTHON)
    (folder / "fake_python").chmod(0o755)
    return folder


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    (folder / "asked.txt").write_text("")
    command = ["make", "PYTHON=./fake_python", *arguments]
    # The tests themselves may have been started by make, whose flags are not meant for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True)


def asked(folder: Path) -> list[str]:
    """What was asked of Python, without the looks at the state of things."""
    lines = (folder / "asked.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("-c") and "--version" not in line]


VENV = "-m venv --clear .venv"
BUILDER = "-m pip install --quiet -c constraints.txt setuptools"
PROJECT = "-m pip install -c constraints.txt --no-build-isolation -e .[notebooks,dev]"


def test_make_installs_what_is_missing_old_unfinished_or_moved_and_nothing_else(clone):
    (clone / "break_down").touch()
    assert make(clone, "demo").returncode != 0 and asked(clone) == [VENV, BUILDER, PROJECT]
    (clone / "break_down").unlink()
    assert make(clone, "demo").returncode == 0  # begins anew after an unfinished installation
    assert asked(clone) == [VENV, BUILDER, PROJECT, "-m lib.pipeline notebooks/params/demo.yaml"]
    assert make(clone, "install").returncode == 0 and asked(clone) == []
    os.utime(clone / "pyproject.toml", (3e9, 3e9))
    assert make(clone, "install").returncode == 0 and asked(clone) == [BUILDER, PROJECT]
    moved = clone.rename(clone.with_name("else where"))
    os.utime(moved / "pyproject.toml", (1e9, 1e9))
    assert make(moved, "install").returncode == 0 and asked(moved) == [BUILDER, PROJECT]


def test_make_keeps_other_environments_out_and_the_index_in(clone):
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_TARGET")
    outside = dict.fromkeys(names, "/elsewhere") | {"PIP_USER": "1", "PIP_INDEX_URL": "https://mirror.example/simple"}
    make(clone, "install", **outside)
    seen = dict(line.split("=", 1) for line in (clone / "environment.txt").read_text().splitlines() if "=" in line)
    assert (seen["PIP_INDEX_URL"], seen["PIP_USER"]) == ("https://mirror.example/simple", "0")
    assert "/elsewhere" not in seen.values()


def test_make_passes_arguments_on_as_they_are(clone):
    data = clone / "data with 'quotes'"
    data.mkdir()
    pipeline, more = "-m lib.pipeline", "--set epoch=2 --set lr=1e-5"
    for arguments, command in {
        ("full", f"DATA_ROOT={data}", "SET=epoch=2 lr=1e-5"):
            f"{pipeline} notebooks/params/full.yaml --set data_root={data} {more}",
        ("sweep",): f"{pipeline} notebooks/params/sweep_demo.yaml",
        ("sweep", "SWEEP=my sweep.yaml", "SET=epoch=2 lr=1e-5"): f"{pipeline} my sweep.yaml {more}",
        ("doctor", "ARGS=notebooks/params/florence2_full.yaml"): "-m lib.doctor notebooks/params/florence2_full.yaml",
    }.items():  # fmt: skip
        assert make(clone, *arguments).returncode == 0
        assert asked(clone)[-1] == command
    assert make(clone, "lab").returncode == 0
    assert "--ServerApp.ip=127.0.0.1" in asked(clone)[-1] and "token" not in asked(clone)[-1]
    assert ("--allow-root" in asked(clone)[-1]) == (os.getuid() == 0)


def test_make_asks_for_what_it_needs_and_doctor_installs_nothing(clone):
    assert make(clone, "doctor").returncode != 0 and asked(clone) == []
    for target, missing in (("full", "DATA_ROOT"), ("lora", "DATA_ROOT"), ("evaluate", "RUN")):
        result = make(clone, target, "DATA_ROOT=", "RUN=")
        assert result.returncode != 0 and f"make {target} {missing}=" in result.stderr
