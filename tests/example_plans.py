"""Small notebooks and plans that run in a second, for the tests of the pipeline."""

import re
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lib.pipeline.__main__ import main

DEFAULTS = "size = 3\nlr = 0.1\nname = 'a'\nflag = False\nnothing = None\nitems = []\ntable = {}"
WORK = """\
import json, os, pathlib, time
print("working on", size)
print("a bar 1/2\\ra bar 2/2")
if mode == "fail":
    # why it fails
    from lib.errors import InputError
    raise InputError("the folder x is empty; put images into it")
if mode == "die":
    os.kill(os.getpid(), 9)
if mode == "sleep":
    time.sleep(60)
if mode == "save":
    from lib.signals import Interrupted, StopRequest
    with StopRequest() as stop:
        while not stop:
            time.sleep(0.05)
        time.sleep(6)  # longer than Jupyter gives a kernel that it shuts down
        pathlib.Path(saved).touch()
        raise Interrupted("SIGINT: stopped and saved.")
"""
# What notebook 3 leaves behind; figures are chosen by hand.
EVALUATE = """\
import json, pathlib
figures = {"final_score": score, "f1_score": 0.5}
evaluation = {"split": "test", "threshold": 90, "figures": figures,
              "intervals": {"final_score": [score - 0.0625, score + 0.0625]},
              "trivial": {"final_score": 0.25, "f1_score": 0.125},
              "frozen": {"final_score": 0.375, "f1_score": 0.25}, "by_domain": {"shown": figures},
              "train": {"seconds": 1.0, "trained_share_of_encoder": 0.1, "run_megabytes": 2.5}}
folder = pathlib.Path(runs) / experiment
folder.mkdir(parents=True, exist_ok=True)
(folder / "evaluation.json").write_text(json.dumps(evaluation))
"""


def fetched(page: str) -> list[str]:
    """What a browser would fetch from elsewhere when it opens a page; links that wait for a click do not count."""
    tags = r"<(?:script|img|iframe|source|video|audio|embed|link)\b"
    address = r"""[^>]*?\b(?:src|href|srcset)\s*+=\s*+["']?+(?!data:)[^\s>]+"""
    return re.findall(tags + address + r"""|url\(["']?(?:https?:)?//[^)]+|@import[^;]+|\b(?:import|require)\(""", page)


def write_notebook(path, parameters: str, *cells: str):
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell("# Purpose"), first, *map(new_code_cell, cells)])
    nbformat.write(notebook, path)


def write_books(folder: Path) -> Path:
    """A folder with three small notebooks and an empty `params`."""
    (folder / "params").mkdir(parents=True)
    write_notebook(folder / "1_prepare.ipynb", DEFAULTS, "print('prepared')")
    write_notebook(folder / "2_work.ipynb", "size = 3\nmode = 'ok'\nsaved = ''", WORK)
    write_notebook(folder / "3_evaluate.ipynb", "runs = 'runs'\nexperiment = ''\nscore = 0.75", EVALUATE)
    return folder


def write_plan(books, **plan):
    path = books / "params" / "plan.yaml"
    path.write_text(yaml.safe_dump({"name": "trial", "steps": [{"notebook": "1_prepare"}]} | plan))
    return path


def start(books, *arguments) -> int:
    """The command line with notebooks and runs in the test's folder."""
    plan = str(books / "params" / "plan.yaml")
    return main([plan, "--notebooks", str(books), "--runs", str(books.parent / "runs"), *arguments])
