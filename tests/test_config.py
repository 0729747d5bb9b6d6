"""Parameters: defaults of the recipe, types, limits, YAML in and out, names, notebook cells."""

import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import Experiment, differing, free_to_change, parse_value, read_yaml
from lib.errors import InputError

ROOT = Path(__file__).parents[1]


def test_defaults_are_the_reference_s():
    defaults = Experiment()
    expected = {
        "accumulate_step": 16, "batch_size": 8, "batch_size_warmup": 16, "batch_size_val": 16, "lr": 1e-4,
        "backbone_lr_decay": 0.1, "min_lr": 0.0, "epoch": 50, "warmup_epoch": 5, "hflip": 0.5, "score_head": "linear",
        "mask_head": "concat", "mask_loss_weight": 1.0, "score_loss_weight": 1.0, "lora_alpha": 8,
        "lora_dropout": 0.05, "weight_decay": 5e-5, "backbone_weight_decay": 1e-2, "ema_decay": 0.999,
        "input_size": 768, "mask_size": 768,
    }  # fmt: skip
    assert defaults.lora_rank == 0  # unlike the reference's 8: full fine-tuning unless LoRA is asked for
    assert {name: getattr(defaults, name) for name in expected} == expected


@pytest.mark.parametrize(
    "name, seed_name",
    [
        ("florence2_full", "florence2_dice-mse_mse-plcc-srcc_lora0_linear_concat_warmup20_gpu8"),
        ("florence2_lora", "florence2_dice-mse_mse_lora128_linear_concat_gpu8"),
    ],
)
def test_parameter_sets_of_the_seed_give_its_experiment_names(name, seed_name):
    config = Experiment.from_yaml(ROOT / "notebooks" / "params" / f"{name}.yaml")
    assert config.name == f"{datetime.date.today():%Y%m%d}_{seed_name}"
    assert config.folder == Path("runs") / config.name
    assert config.fp16 and config.lr == 1e-4 and config.accumulate_step == 1


# The flags of the seed's scripts, and the checkpoint, which it has in its code.
BOTH = {
    "model": "florence2", "checkpoint": "florence-community/Florence-2-large", "lr": 1e-4, "epoch": 50,
    "batch_size_warmup": 32, "accumulate_step": 1, "val_iter": -1, "save_iter": 5, "input_size": 768, "mask_size": 768,
    "val_split": 0, "mask_loss": "dice-mse", "fp16": True, "score_head": "linear", "mask_head": "concat",
    "negative_num": 0, "num_processes": 8,
}  # fmt: skip
FULL = {"batch_size": 4, "score_loss": "mse-plcc-srcc", "lora_rank": 0, "warmup_epoch": 20, "unfreeze_params": "all"}
# The script says `all` here, too, which would train every weight: the file tells why it is not followed.
LORA = {"batch_size": 3, "score_loss": "mse", "lora_rank": 128, "warmup_epoch": 0, "unfreeze_params": ""}


@pytest.mark.parametrize("name, own", [("florence2_full", FULL), ("florence2_lora", LORA)])
def test_parameter_sets_of_the_seed_are_its_scripts_value_for_value(name, own):
    assert read_yaml(ROOT / "notebooks" / "params" / f"{name}.yaml") == BOTH | own


def test_a_run_named_by_its_date_goes_on_the_next_day(tmp_path, monkeypatch):
    """The same command after midnight; another recipe, or one that has ended, is a run of its own."""

    def on(day: int, **changes) -> str:
        class Day(datetime.date):
            @classmethod
            def today(cls):
                return cls(2026, 11, day)

        monkeypatch.setattr(datetime, "date", Day)
        return Experiment(runs=str(tmp_path), **changes).resolved().experiment_name

    first = on(1)
    assert first.startswith("20261101_florence2_") and on(2) == first.replace("20261101", "20261102")
    Experiment(runs=str(tmp_path), experiment_name=first).save(tmp_path / first / "config.yaml")
    assert on(2) == on(3) == first
    assert on(2, lr=1e-3).startswith("20261102")
    assert on(2, experiment_name="mine") == "mine"
    (tmp_path / first / "finished.json").touch()
    assert on(2).startswith("20261102")


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"epoch": "5"}, "epoch: '5' is not a whole number"),
        ({"epoch": 5.0}, "epoch: 5.0 is not a whole number"),
        ({"epoch": True}, "epoch: True is not a whole number"),
        ({"lr": "1e-4"}, "lr: '1e-4' is not a number"),
        ({"ema": 1}, "ema: 1 is not true or false"),
        ({"checkpoint": None}, "checkpoint: None is not text"),
        ({"lr": float("nan")}, "lr: nan must be a number of at least 0"),
        ({"lr": float("inf")}, "lr: inf must be a number"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0 must be"),
        ({"batch_size": 0}, "batch_size: 0 must be at least 1"),
        ({"hflip": 1.5}, "hflip: 1.5 must lie in 0..1"),
        ({"val_iter": 0}, "val_iter: 0 must be -1"),
        ({"save_iter": -2}, "save_iter: -2 must be -1"),
        ({"seed": -1}, "seed: -1 must be"),
        ({"epoch": 0, "warmup_epoch": 0}, "nothing to train"),
        ({"mask_loss_weight": 0.0, "score_loss_weight": 0.0}, "nothing to learn"),
        ({"min_lr": 1e-3}, "min_lr: 0.001 is above lr"),
        ({"mask_head": "concat_cl"}, r"mask_head: 'concat_cl' is none of .*did you mean concat_cls\?"),
        ({"mask_loss": "dice-mes"}, r"mask_loss: 'mes' is none of .*did you mean mse\?"),
        ({"mask_loss": ""}, "mask_loss: '' is none of"),
        ({"score_loss": "mse-mse"}, "score_loss: 'mse' is given twice"),
        ({"score_loss": "dice"}, "score_loss: 'dice' is none of mse, plcc, srcc"),
        ({"fp16": True, "mixed_precision": "bf16"}, "fp16: true contradicts"),
        ({"experiment_name": "../x"}, "experiment_name: '../x' must be one plain folder name"),
        ({"experiment_name": ".."}, "experiment_name"),
        ({"experiment_name": "/tmp"}, "experiment_name"),
    ],
)
def test_bad_values_are_told(changes, told):
    with pytest.raises(InputError, match=told):
        Experiment(**changes)


def test_every_problem_is_told_at_once():
    with pytest.raises(InputError, match="batch_size: 0.*hflip: 2.0"):
        Experiment(batch_size=0, hflip=2.0)


def test_whole_numbers_serve_as_numbers():
    config = Experiment(lr=1, min_lr=0)
    assert config.lr == 1.0 and type(config.lr) is float


def test_unknown_keys_name_the_nearest():
    with pytest.raises(InputError, match=r"set.yaml: 'epochs' is no parameter \(did you mean epoch\?\)"):
        Experiment.from_dict({"epochs": 3}, source="set.yaml")


def test_yaml_round_trip(tmp_path):
    config = Experiment(lr=1e-5, experiment_name="übung", lora_rank=4, ema=True, freeze_params="encoder, mask")
    config.save(tmp_path / "new" / "config.yaml")
    assert Experiment.from_yaml(tmp_path / "new" / "config.yaml") == config
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.yaml"]  # nothing left beside it
    assert Experiment.from_yaml(tmp_path / "new" / "config.yaml", epoch=1).epoch == 1


@settings(deadline=None)  # the disk may be busy
@given(st.floats(min_value=1e-12, max_value=1.0), st.text(alphabet="ab: #'\"\n-{}é", max_size=8))
def test_yaml_keeps_numbers_and_text(tmp_path_factory, lr, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    config = Experiment(lr=lr, data_path=text)
    config.save(path)
    assert Experiment.from_yaml(path) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5e3", 1500.0),
        ("-2E+1", -20.0),
        ("1e4x", "1e4x"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
        ("[", "["),
    ],
)
def test_values_are_read_as_yaml_1_2_does(text, value):
    assert parse_value(text) == value


def test_what_a_run_may_go_on_with():
    assert free_to_change(finished=False) - free_to_change(finished=True) == {"data_path"}
    assert free_to_change(finished=True) == {
        "experiment_name", "runs", "num_workers", "log_iter", "keep_checkpoints", "save_iter", "batch_size_val",
        "gradient_checkpointing", "nonfinite", "wandb",
    }  # fmt: skip


def test_what_differs_is_found_and_places_do_not_count():
    configs = {"a": {"lr": 1.0, "epoch": 1, "runs": "x"}, "b": {"lr": 1.0, "epoch": 2, "runs": "y"}}
    assert differing(configs) == ["epoch"]
    assert differing({"a": {"lr": 1}}) == []


@pytest.mark.parametrize(
    "content, told",
    [
        (b"- 1\n- 2\n", "must hold a mapping of names to values, not a list"),
        (b"lr: [1,\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"lr: 1\nepoch: 2\nlr: 3\n", "'lr' is given twice.*line 3"),
        (b"text", "not text"),
        (b"? [a, b]\n: 1\n", "is not valid YAML"),
    ],
)
def test_bad_yaml_is_told(tmp_path, content, told):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.yaml.*{told}"):
        read_yaml(tmp_path / "a.yaml")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="none.yaml does not exist; .*notebooks/params"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_parameter_set_is_valid(path):
    values = read_yaml(path)
    if "steps" not in values and "mask_loss" in values:  # a plan of the pipeline has steps
        Experiment.from_dict(values, source=str(path))
