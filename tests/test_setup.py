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


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    matches = [PIN.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    names = [normal(match[1]) for match in matches]
    assert len(names) == len(set(names)), f"{file} names a package twice"
    return dict(zip(names, (match[2] for match in matches), strict=True))


# --- versions in two places: what the project admits (pyproject.toml), what was tested (constraints.txt) ---


def requirements(*extras: str) -> dict[str, str]:
    """{package: range} that pyproject.toml asks for, of `lib` itself and of the extras named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {normal(re.match(r"[\w.-]+", line)[0]): re.sub(r"^[\w.-]+", "", line) for line in lines}


def test_requirements_are_ranges_that_hold_the_tested_versions():
    tested, ranges = pins("constraints.txt"), requirements("notebooks", "dev")
    for name, admitted in ranges.items():
        assert name in tested, f"{name}: run `make lock`"
        assert SpecifierSet(admitted).contains(tested[name]), name
        assert "==" not in admitted and "<" not in admitted, f"{name} could not be installed beside other packages"
    assert all(requirements().values()), "each requirement of lib itself has a lowest version"


def test_environment_yml_takes_its_versions_from_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "nitre2025"
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[notebooks,dev]"]}


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
        for module in imported_modules(ast.parse(file.read_text(encoding="utf-8"))) - OPTIONAL:
            if module in sys.stdlib_module_names or (ROOT / module).is_dir() or (file.parent / f"{module}.py").exists():
                continue
            names = {normal(name) for name in distributions.get(module, [module])}
            assert names & requirements(*extras).keys(), f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.slow
def test_lib_alone_installs_without_notebooks_and_tests_and_predicts(tmp_path):
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT], check=True)
    subprocess.run([*pip, "check"], check=True)
    listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    installed = {normal(line.partition("==")[0]) for line in listed.splitlines()}
    assert not installed & {"pytest", "playwright", "jupyterlab", "matplotlib", "papermill"}
    script = (
        "import numpy\nfrom lib.config import Experiment\nfrom lib.model import DistortionDetector\n"
        "detector = DistortionDetector.from_checkpoint(Experiment(checkpoint='florence2-tiny', input_size=128))\n"
        "found = detector.predict(numpy.zeros((90, 120, 3), numpy.uint8), 'a chair')\nprint(found.heatmap.shape)"
    )
    result = subprocess.run(
        [folder / "bin/python", "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "(90, 120)"


def imported_modules(tree: ast.Module) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module.partition(".")[0])
    return modules


# --- make ---


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
    assert make(clone, "demo").returncode != 0
    assert asked(clone) == [VENV, BUILDER, PROJECT]
    (clone / "break_down").unlink()
    assert make(clone, "demo").returncode == 0  # begins anew after an unfinished installation
    assert asked(clone) == [VENV, BUILDER, PROJECT, "-m lib.pipeline notebooks/params/demo.yaml"]
    assert make(clone, "install").returncode == 0
    assert asked(clone) == []
    os.utime(clone / "pyproject.toml", (3e9, 3e9))
    make(clone, "install")
    assert asked(clone) == [BUILDER, PROJECT]
    moved = clone.rename(clone.with_name("else where"))
    os.utime(moved / "pyproject.toml", (1e9, 1e9))
    make(moved, "install")
    assert asked(moved) == [BUILDER, PROJECT]


def test_make_keeps_other_environments_out_and_the_index_in(clone):
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_TARGET")
    outside = dict.fromkeys(names, "/elsewhere") | {"PIP_USER": "1", "PIP_INDEX_URL": "https://mirror.example/simple"}
    make(clone, "install", **outside)
    seen = dict(line.split("=", 1) for line in (clone / "environment.txt").read_text().splitlines() if "=" in line)
    assert seen["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert seen["PIP_USER"] == "0"
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
