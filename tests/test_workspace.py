"""Where notebooks work, and the lines of progress they print."""

import subprocess
import sys
from pathlib import Path

import pytest

from lib.errors import InputError
from lib.workspace import ProgressLines, enter


def test_enter_finds_the_root_from_below_and_twice(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "params")
    assert enter() == enter() == tmp_path.resolve()
    assert (tmp_path / "pyproject.toml").samefile("pyproject.toml")


def test_a_notebook_of_another_clone_takes_that_clone_s_lib(tmp_path):
    """In an environment made for the first clone."""
    for folder in ("notebooks", "lib"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "lib" / "__init__.py").touch()
    (tmp_path / "lib" / "mine.py").write_text("print('of this clone')")
    cells = "from lib.workspace import enter\nenter()\nenter()\nfrom lib import mine"
    path = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + cells], cwd=tmp_path / "notebooks", capture_output=True, text=True
    )
    told, last = done.stdout.splitlines()
    assert told.startswith(f"lib is taken from {tmp_path}, the environment") and last == "of this clone"


def test_enter_outside_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="make lab"):
        enter()


def test_progress_prints_few_lines(capsys):
    progress = ProgressLines("prepared", every=1000)
    for done in range(1, 101):
        progress("train", done, 100)
    assert capsys.readouterr().out.splitlines() == ["prepared train 100/100"]
