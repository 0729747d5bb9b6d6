"""Where notebooks work, and the lines of progress they print."""

import pytest

from lib.errors import InputError
from lib.workspace import ProgressLines, enter


def test_enter_finds_the_root_from_below_and_twice(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "params")
    assert enter() == enter() == tmp_path.resolve()
    assert (tmp_path / "pyproject.toml").samefile("pyproject.toml")


def test_enter_outside_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="make lab"):
        enter()


def test_progress_prints_few_lines(capsys):
    progress = ProgressLines("prepared", every=1000)
    for done in range(1, 101):
        progress("train", done, 100)
    assert capsys.readouterr().out.splitlines() == ["prepared train 100/100"]
