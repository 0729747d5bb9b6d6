"""Parameters of notebooks, typed or injected by papermill: names, types, sets; where notebooks work, their progress."""

import subprocess
import sys
from pathlib import Path

import pytest
from example_plans import write_notebook
from papermill.iorw import read_yaml_file

from lib.config import Experiment
from lib.errors import InputError
from lib.notebook_parameters import as_kind, experiment, read_notebook, read_parameters
from lib.pipeline.plans import load_plan
from lib.workspace import ProgressLines, enter
from lib.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
SETS = [path for path in sorted(ROOT.glob("notebooks/params/*.yaml")) if "steps" not in read_yaml(path)]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def kernel(notebook: str, *cells: str) -> dict:
    """The namespace in which a notebook's parameters cell and further cells ran, before the cell that reads them."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    sources, _ = read_notebook(path)
    own = sources[0]
    namespace: dict = {}
    for source in (own, *cells):
        exec(source, namespace)  # noqa: S102 (our own cells of literals)
    return namespace | {"In": ["", own, *cells, "read_parameters(...)"]}


def injected(**values) -> str:
    return "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in values.items())


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("batch_size", 0, "batch_size: 0 must be at least 1"),
        ("scales", [1.0, 0.0], r"scales: 0.0 must be in 0.1..8"),
        ("min_areas", [2], r"min_areas: 2.0 must be in 0.0006..0.99"),
        ("min_areas", ["a"], "min_areas: 'a' is not a number"),
        ("smoothings", [], "smoothings: an empty list leaves nothing to do"),
        ("threshold", 255, r"threshold: 255 must be in 0..254"),
        ("num_processes", 0, "num_processes: 0 must be at least 1"),
        ("split", "../prepared/test", "split: '../prepared/test' must be the plain name of a split"),
    ],
)
def test_values_that_no_notebook_can_use_are_refused_before_it_begins(name, value, told):
    """In the notebook's first cell, and by a plan before its first step."""
    with pytest.raises(InputError, match=told):
        read_parameters(kernel("3_evaluate") | {name: value}, "3_evaluate")
    with pytest.raises(InputError, match=told):
        load_plan(ROOT / "notebooks/params/demo.yaml", ROOT / "notebooks", [f"evaluate_full.{name}={value}"])


@pytest.mark.parametrize(
    ("value", "default", "expected"),
    [
        ("false", True, False), ("True", False, True), ("7", 1, 7), ("1e-4", 0.5, 1e-4), (1, 0.5, 1.0),
        ("[1, 1.25]", [1.0], [1.0, 1.25]), ((1.0,), [1.0], [1.0]), ("[a, b]", [], ["a", "b"]),
        ("{train: 4}", {"train": 1}, {"train": 4}), ("false", "text", "false"), ("2024", "", "2024"), (3, None, 3),
    ],
)  # fmt: skip
def test_text_that_means_a_value_becomes_it(value, default, expected):
    read = as_kind("x", value, default)
    assert (read, type(read)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "default", "told"),
    [
        ("fast", 0.1, "x: 'fast' is not a number, for example 0.1"),
        (True, 0.1, "x: True is not a number"),
        (True, 3, "x: True is not a whole number, for example 3"),
        (4.0, 3, "x: 4.0 is not a whole number"),
        (0, False, "x: 0 is not true or false, for example False"),
        ("runs/demo_lora", [], "x: 'runs/demo_lora' is not a list"),
        (["a"], [0.5], "x: 'a' is not a number, for example 0.5"),
        ([], {"a": 1}, "x: [] is not a mapping, for example {'a': 1}"),
        (2024, "demo", "x: 2024 is not text, for example 'demo'; papermill gives text with -r"),
        ("a: [", 3, "x: 'a: [' is not a whole number"),
    ],
)
def test_anything_else_is_refused_with_an_example(value, default, told):
    with pytest.raises(InputError) as caught:
        as_kind("x", value, default)
    assert str(caught.value).startswith(told)


def test_papermill_s_values_are_checked_and_typed():
    namespace = kernel("3_evaluate", injected(flip="false", scales="[1, 1.25]", threshold="90"))
    read_parameters(namespace, "3_evaluate")
    assert (namespace["flip"], namespace["scales"], namespace["threshold"]) == (False, [1.0, 1.25], 90)
    with pytest.raises(InputError, match="ensemble: 'runs/demo_lora' is not a list"):
        read_parameters(kernel("3_evaluate", injected(ensemble="runs/demo_lora")), "3_evaluate")
    for book, name, near in (("3_evaluate", "treshold", "threshold"), ("2_train", "lrr", "lr")):
        with pytest.raises(InputError, match=rf"no parameter of.*{book}.ipynb: '{name}' \(did you mean {near}\?\)"):
            read_parameters(kernel(book, injected(**{name: 9})), book)


def test_a_mended_cell_may_run_again():
    """Somebody in JupyterLab mends papermill's cell, or runs others in between: only what stands there now counts."""
    namespace = kernel("3_evaluate", injected(treshold=9))
    call = namespace["In"][-1]
    namespace["In"].append(call)  # the same cell again: still refused
    with pytest.raises(InputError, match="treshold"):
        read_parameters(namespace, "3_evaluate")
    for cell in (injected(threshold=9), "further = 1"):
        namespace["In"] += [cell, call]
        read_parameters(namespace, "3_evaluate")


def training(*cells: str) -> Experiment:
    namespace = kernel("2_train", *cells)
    read_parameters(namespace, "2_train")
    return experiment(namespace)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_parameter_set_is_the_same_by_file_by_name_and_typed(path):
    """`papermill -f <set>` (which reads YAML 1.1), `-p parameter_set <name>`, and the name typed into the cell."""
    expected = Experiment.from_yaml(path).resolved()
    assert training(injected(**read_yaml_file(str(path)))) == expected
    assert training(injected(parameter_set=path.stem)) == expected
    assert training(f"parameter_set = {path.stem!r}") == expected


def test_what_somebody_gives_wins_over_the_set():
    """Also a value that is the recipe's default, and a parameter that the cell does not list."""
    demo = ROOT / "notebooks/params/demo_full.yaml"
    assert training("lr = 1e-4\nema = False") == Experiment.from_yaml(demo, lr=1e-4, ema=False)
    assert training(injected(parameter_set="demo_full", epoch=50)) == Experiment.from_yaml(demo, epoch=50)
    assert training("parameter_set = ''\nepoch = 3") == Experiment(epoch=3).resolved()
    # A function that somebody imports under a parameter's name is none.
    assert training("from lib.model.losses import mask_loss\nlr = 1e-4") == Experiment.from_yaml(demo, lr=1e-4)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("parameter_set = 'demo_ful'", r"'demo_ful' is none of notebooks/params \(did you mean demo_full\?\): altc"),
        ("parameter_set = 'full'", "'full' is none of"),  # a plan
        ("batch_size = 0", "batch_size: 0 must be at least 1"),
    ],
)
def test_a_set_that_is_none_is_refused(cell, told):
    with pytest.raises(InputError, match=told):
        training(cell)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("size = 2 ** 3", "line 1"), ("import os", "import os"), ("a = 1\na += 2", "a += 2"),
        ("a = b = 1", "a = b = 1"), ("a, b = 1, 2", "a, b = "), ("a = (", "line 1"),
    ],
)  # fmt: skip
def test_a_parameters_cell_holds_literals_only(tmp_path, source, told):
    write_notebook(tmp_path / "a.ipynb", source)
    with pytest.raises(InputError) as caught:
        read_notebook(tmp_path / "a.ipynb")
    assert told in str(caught.value)


def test_a_parameters_cell_is_read(tmp_path):
    write_notebook(tmp_path / "a.ipynb", "size: int = 3  # pixels\nlr = -1e-4", "print()")
    assert read_notebook(tmp_path / "a.ipynb") == (
        ["size: int = 3  # pixels\nlr = -1e-4", "print()"],
        {"size": 3, "lr": -1e-4},
    )
    for text, told in (('{"cells": []}', "one cell tagged `parameters`, and has 0"), ("x", "not a Jupyter notebook")):
        (tmp_path / "a.ipynb").write_text(text)
        with pytest.raises(InputError, match=told):
            read_notebook(tmp_path / "a.ipynb")


def test_a_notebook_finds_its_root_and_takes_the_lib_of_its_clone(tmp_path, monkeypatch):
    """In an environment made for the first clone, from below the root, and twice."""
    for folder in ("notebooks/params", "lib"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "params")
    with pytest.raises(InputError, match="make lab"):  # outside
        enter()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "lib" / "__init__.py").touch()
    (tmp_path / "lib" / "mine.py").write_text("import os; print('of this clone', os.getcwd())")
    cells = "from lib.workspace import enter\nenter()\nenter()\nfrom lib import mine"
    path = f"import sys; sys.path.append({str(ROOT)!r})\n"
    told, last = subprocess.check_output([sys.executable, "-c", path + cells], text=True).splitlines()
    assert told.startswith(f"lib is taken from {tmp_path}, the environment") and last == f"of this clone {tmp_path}"


def test_progress_prints_few_lines(capsys):
    progress = ProgressLines("prepared", every=1000)
    for done in range(1, 101):
        progress("train", done, 100)
    assert capsys.readouterr().out.splitlines() == ["prepared train 100/100"]
