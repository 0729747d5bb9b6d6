"""Parameters: those of the recipe, types, limits, YAML in and out, names, notebook cells."""

import datetime
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import Experiment
from lib.errors import InputError
from lib.reference_flags import FLAGS
from lib.yaml_files import dump_yaml, parse_value, read_yaml

ROOT = Path(__file__).parents[1]


def test_parameter_sets_of_the_seed_give_its_experiment_names():
    for name, seed_name in [
        ("florence2_full", "florence2_dice-mse_mse-plcc-srcc_lora0_linear_concat_warmup20_gpu8"),
        ("florence2_lora", "florence2_dice-mse_mse_lora128_linear_concat_gpu8"),
    ]:
        config = Experiment.from_yaml(ROOT / "notebooks" / "params" / f"{name}.yaml")
        assert config.folder == Path("runs") / f"{datetime.date.today():%Y%m%d}_{seed_name}"


# The flags of the seed's scripts, and the checkpoint, which it has in its code.
BOTH = {
    "model": "florence2", "checkpoint": "florence-community/Florence-2-large", "lr": 1e-4, "epoch": 50,
    "batch_size_warmup": 32, "accumulate_step": 1, "val_iter": -1, "save_iter": 5, "input_size": 768, "mask_size": 768,
    "val_split": 0, "mask_loss": "dice-mse", "fp16": True, "score_head": "linear", "mask_head": "concat",
    "negative_num": 0, "num_processes": 8,
    "mask_norm": "batch", "align_corners": True, "text_padding": "max_length",  # what the seed has in its code
}  # fmt: skip
FULL = {"batch_size": 4, "score_loss": "mse-plcc-srcc", "lora_rank": 0, "warmup_epoch": 20, "unfreeze_params": "all"}
# The script says `all` here, too, which would train every weight: the file tells why it is not followed.
LORA = {
    "batch_size": 3, "score_loss": "mse", "lora_rank": 128, "warmup_epoch": 0, "unfreeze_params": "",
    "lora_targets": "qkv,proj,fc1,fc2,q_proj,k_proj,v_proj,conv",
}  # fmt: skip


@pytest.mark.parametrize("name, own", [("florence2_full", FULL), ("florence2_lora", LORA)])
def test_parameter_sets_of_the_seed_are_its_scripts_value_for_value(name, own):
    """What they give beside the flags of the scripts are parameters of ours that make it as the reference does it."""
    values = read_yaml(ROOT / "notebooks" / "params" / f"{name}.yaml")
    assert BOTH | own == {key: value for key, value in values.items() if key in BOTH | own}
    flags = json.loads((ROOT / "tests/golden/reference_flags.json").read_text())
    assert not (values.keys() - (BOTH | own).keys()) & set(flags)


def test_every_flag_of_the_reference_is_a_parameter_or_answered_with_ours():
    flags = json.loads((ROOT / "tests/golden/reference_flags.json").read_text())
    parameters = Experiment().to_dict()
    for flag in flags:
        name = flag.lstrip("-").replace("-", "_")
        if name not in parameters:
            with pytest.raises(InputError, match=rf"{flag}' is no parameter \(the reference's flag; here it is "):
                Experiment.from_dict({flag: 1})
    assert not FLAGS.keys() & parameters.keys()


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


BAD = [
    ({"epoch": "5"}, "epoch: '5' is not a whole number"),
    ({"epoch": 5.0}, "epoch: 5.0 is not a whole number"),
    ({"epoch": True}, "epoch: True is not a whole number"),
    ({"lr": "1e-4"}, "lr: '1e-4' is not a number"),
    ({"ema": 1}, "ema: 1 is not true or false"),
    ({"checkpoint": None}, "checkpoint: None is not text"),
    ({"lr": float("nan")}, "lr: nan must be a number of at least 0"),
    ({"batch_size": 0}, "batch_size: 0 must be at least 1"),
    ({"hflip": 1.5}, "hflip: 1.5 must lie in 0..1"),
    ({"val_iter": 0}, "val_iter: 0 must be -1"),
    ({"epoch": -1, "mask_loss_weight": -1.0}, "^epoch: -1 must .*; mask_loss_weight: -1.0 must [^;]*$"),
    ({"epoch": 0, "warmup_epoch": 0}, "nothing to train"),
    ({"iters": 100}, "epoch: 50 and iters: 100 both say how long to train; set one to 0"),
    ({"seed": 10**400}, "seed: 1000.* must lie in 0..9223372036854775807"),
    ({"mask_loss_weight": 0.0, "score_loss_weight": 0.0}, "nothing to learn"),
    ({"min_lr": 1e-3}, "min_lr: 0.001 is above lr"),
    ({"mask_head": "concat_cl"}, r"mask_head: 'concat_cl' is none of .*did you mean concat_cls\?"),
    ({"mask_loss": "dice-mes"}, r"mask_loss: 'mes' is none of .*did you mean mse\?"),
    ({"fp16": True, "mixed_precision": "bf16"}, "fp16: true contradicts"),
    ({"experiment_name": "../x"}, "experiment_name: '../x' must be one plain folder name"),
]


def test_bad_values_are_told():
    for changes, told in BAD:
        with pytest.raises(InputError, match=told):
            Experiment(**changes)


@settings(max_examples=40)
@given(st.floats(min_value=1e-12, max_value=1.0), st.text(alphabet="ab01e.: #'\"\n-{}é", max_size=8))
def test_yaml_keeps_numbers_and_text(tmp_path_factory, lr, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    config = Experiment(lr=lr, data_path=text, lora_rank=4, ema=True)
    config.save(path)
    assert Experiment.from_yaml(path) == config
    assert Experiment.from_yaml(path, epoch=1).epoch == 1


# As YAML 1.2 has it, whose numbers and words are not those of most readers.
VALUES = {
    "1e-4": 1e-4, "1.5e3": 1500.0, "010": 10, "1:30": "1:30", "no": "no", "2024-01-01": "2024-01-01", "1_000": "1_000",
    ".5": 0.5, "true": True, "~": None, "": None, "9" * 5000: "9" * 5000, "[" * 1200: "[" * 1200, "'1e-4'": "1e-4",
}  # fmt: skip


def test_values_are_read_as_yaml_1_2_does():
    for text, value in VALUES.items():
        assert parse_value(text) == value
        if isinstance(value, str):  # text that looks like a value to this or another reader of YAML stays text
            written = dump_yaml({"a": text})
            assert parse_value(written)["a"] == text == yaml.safe_load(written)["a"]


def test_bad_yaml_is_told(tmp_path):
    for content, told in [
        (b"- 1\n- 2\n", "must hold a mapping of names to values, not a list"),
        (b"lr: [1,\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"lr: 1\nepoch: 2\nlr: 3\n", "'lr' is given twice.*line 3"),
    ]:
        (tmp_path / "a.yaml").write_bytes(content)
        with pytest.raises(InputError, match=rf"a\.yaml.*{told}"):
            read_yaml(tmp_path / "a.yaml")
