"""What notebooks make of their parameters, typed in JupyterLab or injected by papermill."""

from pathlib import Path

import pytest
from papermill.iorw import read_yaml_file

from lib.config import Experiment, read_yaml
from lib.errors import InputError
from lib.notebook_parameters import DEMO, data_places, experiment, refuse_unknown_parameters

ROOT = Path(__file__).parents[1]
SETS = [path for path in sorted(ROOT.glob("notebooks/params/*.yaml")) if "steps" not in read_yaml(path)]
INJECTED = ["", "lr = 1e-4", "# Parameters\nlr = 1e-4\n", "later = 1"]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_an_experiment_takes_parameters_only():
    config = experiment({"epoch": 3, "lr": 2e-4, "plots": object(), "In": [], "__name__": "__main__"})
    assert (config.epoch, config.lr) == (3, 2e-4)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_papermill_reads_a_parameter_set_as_the_kit_does(path):
    """`papermill notebooks/2_train.ipynb out.ipynb -f <set>`: papermill reads YAML 1.1."""
    values = Experiment().to_dict() | {"parameter_set": "demo_full"} | read_yaml_file(str(path))
    assert experiment(values, INJECTED) == Experiment.from_yaml(path).settled()


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_a_set_may_be_named_instead(path):
    values = Experiment().to_dict() | {"parameter_set": path.stem}
    assert experiment(values, ["", "a = 1"]) == Experiment.from_yaml(path).settled()


def test_what_the_cell_says_wins_over_the_set():
    values = Experiment().to_dict() | {"parameter_set": "demo_full", "epoch": 3}
    assert experiment(values) == Experiment.from_yaml(ROOT / "notebooks/params/demo_full.yaml", epoch=3)
    assert experiment(values | {"parameter_set": ""}) == Experiment(epoch=3).settled()


def test_what_a_set_gives_against_the_cell_is_printed(capsys):
    # A value typed into the cell that equals its default looks as if nobody had touched it.
    experiment(Experiment().to_dict() | {"parameter_set": "demo_full", "epoch": 3, "lr": 1e-4})
    said = capsys.readouterr().out
    assert (
        said.startswith("From demo_full: ") and "lr 0.001," in said and "epoch" not in said.replace("warmup_epoch", "")
    )
    experiment(Experiment().to_dict() | {"parameter_set": ""})
    assert capsys.readouterr().out == ""


def test_papermill_may_name_a_set_and_wins_over_it():
    cells = ["", "epoch = 50", "# Parameters\nparameter_set = 'demo_full'\nepoch = 50\n"]
    config = experiment(Experiment().to_dict() | {"parameter_set": "demo_full"}, cells)
    assert (config.epoch, config.checkpoint) == (50, "florence2-tiny")


def test_a_set_that_is_none_is_refused():
    with pytest.raises(
        InputError, match=r"'demo_ful' is none of notebooks/params \(did you mean demo_full\?\): altclip"
    ):
        experiment({"parameter_set": "demo_ful"})
    with pytest.raises(InputError, match="'full' is none of"):  # a plan
        experiment({"parameter_set": "full"})


def test_unknown_injected_parameters_are_refused():
    defined = "lr = 1e-4  # rate\nepoch = 5\n"
    refuse_unknown_parameters(["", defined, "# Parameters\nlr = 2\n", "x = 1"])
    refuse_unknown_parameters(["", defined, "y = 1"])
    with pytest.raises(InputError, match=r"no parameter of this notebook: 'lrr' \(did you mean lr\?\)"):
        refuse_unknown_parameters(["", defined, "# Parameters\nlrr = 2\nepoch = 1\n"])


def test_where_the_data_are(monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    with pytest.raises(InputError, match="DATA_ROOT"):
        data_places("", "")
    assert data_places("/here", "") == (Path("/here"), Path("/here/prepared"))
    assert data_places(DEMO, "") == (DEMO, Path("data/demo/prepared"))
    monkeypatch.setenv("DATA_ROOT", "/there")
    assert data_places("", "mine") == (Path("/there"), Path("mine"))
    assert data_places("/here", "")[0] == Path("/here")
