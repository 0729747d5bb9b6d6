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

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")

# Stands in for python3.11 and for the Python of .venv: tells what it was asked for and keeps the environment.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> asked.txt
env > environment.txt
case "$*" in
  *"venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python;;
  *"pip install -r"*) test ! -e break_down;;
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


# --- versions in one place ---


def test_constraints_agree_with_requirements():
    requirements, constraints = pins("requirements.txt"), pins("constraints.txt")
    assert requirements.items() <= constraints.items(), "run `make lock`"


def test_installed_versions_are_the_pinned_ones():
    for name, version in pins("requirements.txt").items():
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_whatever_is_pinned_and_installed_has_the_pinned_version():
    installed = {normal(d.name): d.version.split("+")[0] for d in importlib.metadata.distributions()}
    pinned = pins("constraints.txt")
    assert {n: v for n, v in installed.items() if n in pinned} == {n: v for n, v in pinned.items() if n in installed}


def test_environment_yml_takes_its_versions_from_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "nitre2025"
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-r requirements.txt", "-e ."]}


def test_pyproject_takes_its_versions_from_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == "==3.11.*"
    assert "dependencies" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert project["build-system"]["requires"] == ["setuptools"]


@pytest.mark.parametrize(
    "file", ["environment.yml", "pyproject.toml", "Makefile", ".ci/run", ".pre-commit-config.yaml"]
)
def test_no_version_of_a_package_stands_elsewhere(file):
    text = (ROOT / file).read_text()
    for name in pins("requirements.txt"):
        assert not re.search(rf"(?i)\b{re.escape(name)}\W{{0,2}}\s*[=<>~]=?\s*v?\d", text), f"{name} in {file}"


def test_ci_runs_the_commands_of_the_makefile():
    commands = (ROOT / ".ci/run").read_text()
    assert re.findall(r"^timed ([a-z-]+)", commands, re.MULTILINE) == ["lint", "test", "test-ci"]
    assert "pip install" not in commands
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_hooks_use_the_tools_of_the_environment():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert all(hook["entry"].startswith(".venv/bin/python -m ") for hook in hooks["repos"][0]["hooks"])


def test_whatever_is_imported_is_a_requirement():
    distributions, required = importlib.metadata.packages_distributions(), pins("requirements.txt")
    for file in [*ROOT.glob("lib/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        for module in imported_modules(ast.parse(file.read_text(encoding="utf-8"))):
            if module in sys.stdlib_module_names or (ROOT / module).is_dir() or (file.parent / f"{module}.py").exists():
                continue
            names = {normal(name) for name in distributions.get(module, [module])}
            assert names & required.keys(), f"{file.relative_to(ROOT)} imports {module}: add it to requirements.txt"


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
    for file in ("Makefile", "requirements.txt", "constraints.txt", "pyproject.toml"):
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
PACKAGES = "-m pip install -r requirements.txt -c constraints.txt"
PROJECT = "-m pip install --quiet --no-deps --no-build-isolation -e ."


def test_make_installs_once(clone):
    assert make(clone, "install").returncode == 0
    assert asked(clone) == [VENV, PACKAGES, PROJECT]
    assert make(clone, "install").returncode == 0
    assert asked(clone) == []


def test_make_demo_installs_first_and_runs_the_plan(clone):
    assert make(clone, "demo").returncode == 0
    assert asked(clone) == [VENV, PACKAGES, PROJECT, "-m lib.pipeline notebooks/params/demo.yaml"]


def test_make_updates_when_versions_changed(clone):
    make(clone, "install")
    os.utime(clone / "requirements.txt", (3e9, 3e9))
    make(clone, "install")
    assert asked(clone) == [PACKAGES, PROJECT]


def test_make_begins_anew_after_an_unfinished_installation(clone):
    (clone / "break_down").touch()
    assert make(clone, "demo").returncode != 0
    assert asked(clone) == [VENV, PACKAGES]
    (clone / "break_down").unlink()
    assert make(clone, "install").returncode == 0
    assert asked(clone) == [VENV, PACKAGES, PROJECT]


def test_make_installs_again_in_a_moved_folder(clone):
    make(clone, "install")
    moved = clone.rename(clone.with_name("else where"))
    make(moved, "install")
    assert asked(moved) == [PACKAGES, PROJECT]


def test_make_keeps_other_environments_out_and_the_index_in(clone):
    outside = {
        "PYTHONPATH": "/elsewhere",
        "PYTHONHOME": "/elsewhere",
        "VIRTUAL_ENV": "/elsewhere",
        "CONDA_PREFIX": "/elsewhere",
        "PIP_TARGET": "/elsewhere",
        "PIP_USER": "1",
        "PIP_INDEX_URL": "https://mirror.example/simple",
    }
    make(clone, "install", **outside)
    seen = dict(line.split("=", 1) for line in (clone / "environment.txt").read_text().splitlines() if "=" in line)
    assert seen["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert seen["PIP_USER"] == "0"
    assert "/elsewhere" not in seen.values()


def test_make_full_passes_the_data_folder_as_it_is(clone):
    data = clone / "data with 'quotes'"
    data.mkdir()
    assert make(clone, "full", f"DATA_ROOT={data}", "SET=epoch=2 lr=1e-5").returncode == 0
    plan = "-m lib.pipeline notebooks/params/full.yaml"
    assert asked(clone)[-1] == f"{plan} --set data_root={data} --set epoch=2 --set lr=1e-5"


def test_make_sweep_runs_the_given_table(clone):
    assert make(clone, "sweep").returncode == 0
    assert asked(clone)[-1] == "-m lib.pipeline notebooks/params/sweep_demo.yaml"
    assert make(clone, "sweep", "SWEEP=my sweep.yaml", "SET=epoch=2 lr=1e-5").returncode == 0
    assert asked(clone)[-1] == "-m lib.pipeline my sweep.yaml --set epoch=2 --set lr=1e-5"


def test_make_doctor_installs_nothing(clone):
    assert make(clone, "doctor").returncode != 0
    assert asked(clone) == []
    make(clone, "install")
    assert make(clone, "doctor", "ARGS=notebooks/params/florence2_full.yaml").returncode == 0
    assert asked(clone)[-1] == "-m lib.doctor notebooks/params/florence2_full.yaml"


@pytest.mark.parametrize(("target", "missing"), [("full", "DATA_ROOT"), ("lora", "DATA_ROOT"), ("evaluate", "RUN")])
def test_make_asks_for_what_it_needs(clone, target, missing):
    result = make(clone, target, "DATA_ROOT=", "RUN=")
    assert result.returncode != 0
    assert f"make {target} {missing}=" in result.stderr


def test_lab_listens_on_this_machine_only(clone):
    make(clone, "lab")
    assert "--ServerApp.ip=127.0.0.1" in asked(clone)[-1]
    assert ("--allow-root" in asked(clone)[-1]) == (os.getuid() == 0)
    assert "token" not in asked(clone)[-1]


# --- git ---


def test_git_ignores_outputs_and_keeps_the_package(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    ignored = ["runs/x/model.safetensors", "data/a.png", ".venv/bin/python", "lib/__pycache__/a.pyc"]
    kept = ["lib/model.py", "lib/synthetic/figures.py", "data_cards/a.md", "notebooks/params/demo.yaml"]
    result = subprocess.run(
        ["git", "check-ignore", *ignored, *kept], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ignored
