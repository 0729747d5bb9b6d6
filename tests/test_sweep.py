"""Sweeps: rows become runs that keep their names, that wait for nobody, and that notebook 6 and the index compare."""

import json
import re
from pathlib import Path

import pytest
from example_plans import EVALUATE, start, write_books, write_notebook, write_plan

from lib.errors import InputError
from lib.pipeline.plans import load_plan, read_rows

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """\
import pathlib
from lib.config import Experiment
from lib.errors import InputError
if lr == fails_at:
    raise InputError("this rate is too high; lower it")
config = Experiment(experiment_name=experiment_name, runs=runs, lr=lr, score_loss=score_loss)
config.save(config.folder / "config.yaml")
with open(config.folder / "trained.txt", "a") as file:
    file.write(f"{lr} {score_loss}\\n")
"""
TRAIN_PARAMETERS = "runs = 'runs'\nexperiment_name = ''\nlr = 0.1\nscore_loss = 'mse'\nfails_at = 0.0\nflag = False"
WRITES = ["{runs}/{experiment_name}/config.yaml"]
STEPS = [
    {"notebook": "1_prepare"},
    {"name": "train", "notebook": "2_train", "each_row": True, "writes": WRITES},
    {"name": "evaluate", "notebook": "3_evaluate", "each_row": True, "parameters": {"experiment": "{experiment_name}"}},
    {"notebook": "4_compare", "parameters": {"names": "{sweep}"}},
]
TABLE = [{"lr": 0.5}, {"lr": 0.25, "score_loss": "mse-plcc"}]


@pytest.fixture
def books(tmp_path):
    folder = write_books(tmp_path / "note books")
    write_notebook(folder / "2_train.ipynb", TRAIN_PARAMETERS, TRAIN)
    write_notebook(folder / "3_evaluate.ipynb", "runs = 'runs'\nexperiment = ''\nscore = 0.5", EVALUATE)
    write_notebook(folder / "4_compare.ipynb", "names = []", "print('comparing', *names)")
    return folder


def plan_of(books, sweep=TABLE, steps=STEPS, overrides=()):
    path = write_plan(books, sweep=sweep, steps=steps)
    return load_plan(path, books, overrides)


def test_names_come_from_the_values():
    rows = read_rows("trial", [{"lr": 1e-5, "lora_rank": 2}, {"ema": True, "score_loss": "mse-plcc"}])
    assert [label for label, _ in rows] == ["lr1e-05_lora_rank2", "ema-true_score_loss-mse-plcc"]
    assert rows[0][1] == {"lr": 1e-5, "lora_rank": 2, "experiment_name": "trial_lr1e-05_lora_rank2"}
    named = {"lr": 1e-5, "experiment_name": "slow"}
    assert read_rows("trial", [named]) == [("slow", named)]
    assert read_rows("trial", [{"checkpoint": "../my models/a"}])[0][0] == "checkpoint-..-my-models-a"
    grid = read_rows("trial", {"lora_rank": [2, 8], "lr": [0.1, 0.2]})
    assert [label for label, _ in grid] == [f"lora_rank{rank}_lr{lr}" for rank in (2, 8) for lr in (0.1, 0.2)]


def test_a_row_becomes_its_steps_and_rows_come_and_go_without_a_change_to_the_others(books):
    plan, second = plan_of(books), "lr0.25_score_loss-mse-plcc"
    names = ["1_prepare", "train_lr0.5", "evaluate_lr0.5", f"train_{second}", f"evaluate_{second}", "4_compare"]
    assert [step.name for step in plan.steps] == names
    before = dict(zip(names, plan.steps, strict=True))
    train = before[f"train_{second}"]
    assert train.parameters == {"lr": 0.25, "score_loss": "mse-plcc", "experiment_name": f"trial_{second}"}
    assert train.writes == (f"runs/trial_{second}/config.yaml",)
    assert before[f"evaluate_{second}"].parameters == {"experiment": f"trial_{second}"}
    assert before["4_compare"].parameters == {"names": ["trial_lr0.5", f"trial_{second}"]}
    assert plan.summary == {"lr0.5": "trial_lr0.5", second: f"trial_{second}"}
    after = {step.name: step for step in plan_of(books, [{"lr": 0.125}, *TABLE]).steps}
    for name in ("1_prepare", "train_lr0.5", "evaluate_lr0.5"):
        assert after[name] == before[name]  # fingerprint, and the stem of its files, too
    assert after["4_compare"].fingerprint != before["4_compare"].fingerprint
    write_notebook(books / "1_prepare.ipynb", "size = 4")
    assert not {step.fingerprint for step in plan_of(books).steps} & {step.fingerprint for step in plan.steps}


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"sweep": [3]}, (), "not [3]"),
        ({"sweep": {"lr": 0.1}}, (), "not {'lr': 0.1}"),
        ({"steps": STEPS[:1]}, (), "needs steps with `each_row: true`"),
        ({"sweep": [{"lr": 0.5}, {"lr": 0.5}]}, (), "'train_lr0.5' must be the name of one step only"),
        ({"sweep": [{"score_loss": "x" * 200}]}, (), "its row of the sweep another `experiment_name`"),
        ({"sweep": [{"lr": 0.5}, {"lrr": 0.5}]}, (), "with `each_row` has a parameter 'lrr' (did you mean lr?)"),
        ({"sweep": [{"size": 4}]}, (), "no step with `each_row` has a parameter 'size'"),  # one of 1_prepare only
        ({"sweep": [{"lr": "fast"}]}, (), "plan.yaml, row lr-fast, 2_train.ipynb: lr: 'fast' is not a number"),
        ({}, ("lr=3",), "--set: lr differs from row to row; change the sweep"),
        ({}, ("sweep=x",), "no notebook of this plan has a parameter 'sweep'"),
        ({"sweep": [{"experiment_name": "a"}], "steps": [*STEPS, {"name": "train_a", "notebook": "1_prepare"}]}, (),
         "'train_a' must be the name of one step only"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused(books, changes, overrides, message):
    with pytest.raises(InputError) as caught:
        plan_of(books, **changes, overrides=overrides)
    assert message in str(caught.value)


def test_a_value_that_the_recipe_refuses_is_found_before_anything_trains():
    plan = ROOT / "notebooks/params/sweep_demo.yaml"
    with pytest.raises(InputError) as caught:
        load_plan(plan, ROOT / "notebooks", ["train.score_loss=msee"])
    assert "step train_lora_rank2_lr5e-06: score_loss: 'msee' is none of mse, plcc, srcc" in str(caught.value)


def test_a_row_that_fails_stops_the_sweep_the_same_command_goes_on_and_a_new_row_trains_alone(books, capsys):
    write_plan(books, sweep=TABLE, steps=STEPS)
    runs, index = books.parent / "runs", books.parent / "runs/trial/index.html"
    assert start(books, "--set", "train_lr0.25_score_loss-mse-plcc.fails_at=0.25") == 1
    assert "train_lr0.25_score_loss-mse-plcc failed" in capsys.readouterr().err
    page = index.read_text()
    assert '<span class="bad">failed</span>' in page and "this rate is too high; lower it" in page
    assert page.count(">finished</span>") == 3 and page.count(">not run</span>") == 2

    assert start(books) == 0
    out = capsys.readouterr().out
    assert "[2/6] train_lr0.5: skipped, finished before" in out
    assert "comparing trial_lr0.5 trial_lr0.25_score_loss-mse-plcc" in out
    summary = json.loads((runs / "trial/summary.json").read_text())
    assert {"lr0.5", "lr0.25_score_loss-mse-plcc"} < summary.keys()
    page = re.sub(r">\s+<", "><", index.read_text())
    assert "<th>score_loss</th><td>mse</td><td>mse-plcc</td>" in page  # what differs, a row a parameter
    assert 'class="bad">failed' not in page

    write_plan(books, sweep=[{"lr": 0.125}, *TABLE], steps=STEPS)
    assert start(books) == 0
    assert "comparing trial_lr0.125 trial_lr0.5 trial_lr0.25_score_loss-mse-plcc" in capsys.readouterr().out
    assert [(runs / f"trial_lr{lr}/trained.txt").read_text() for lr in (0.125, 0.5)] == ["0.125 mse\n", "0.5 mse\n"]
    # A row that is made again does not make the others again.
    (runs / "trial_lr0.5/config.yaml").unlink()
    assert start(books) == 0
    out = capsys.readouterr().out
    assert out.count("skipped") == 5 and "[4/8] train_lr0.5: 2_train.ipynb" in out
