"""Every parameter of the recipe does something: other values lead to other weights, or to what the name promises.

What exactly a parameter does is tested where its code is; here none can be parsed and forgotten.
"""

import dataclasses
import hashlib

import pytest

from lib.config import Experiment
from lib.train import read_metrics, train

# {parameter: a value that must change the final weights}, and with what beside it.
LEARNS = {
    "mask_head": "last", "score_head": "linear2", "input_size": 64, "input_width": 64, "mask_size": 16,
    "mask_stride": 16, "text_padding": "max_length", "lora_rank": 2, "freeze_params": "score_head",
    "mask_norm": "batch", "align_corners": True,
    "epoch": 2, "warmup_epoch": 0, "batch_size": 3, "batch_size_warmup": 4, "accumulate_step": 2, "lr": 2e-3,
    "backbone_lr_decay": 0.5, "min_lr": 5e-4, "weight_decay": 0.5, "backbone_weight_decay": 0.5, "clip_grad_norm": 1e-3,
    "ema": True, "mask_loss": "bce", "score_loss": "mse", "mask_loss_weight": 3.0, "score_loss_weight": 3.0,
    "val_split": 5, "hflip": 1.0, "random_crop": 1.0, "colour_jitter": 1.0, "grey": 1.0,
    "mixed_precision": "bf16", "seed": 7, "warmup_encoder": "train", "carry_optimizer": True, "resampling": "lanczos",
    "lora_alpha": 32, "lora_dropout": 0.9, "lora_targets": "qkv, conv", "unfreeze_params": "multi_modal_projector",
    "ema_decay": 0.5, "iters": 5, "augment_after_resize": True,
}  # fmt: skip
LORA = dict.fromkeys(("lora_alpha", "lora_dropout", "lora_targets", "unfreeze_params"), {"lora_rank": 2})
BESIDE = LORA | {"ema_decay": {"ema": True}, "iters": {"epoch": 0}, "augment_after_resize": {"colour_jitter": 1.0}}
# Must not change the weights: how a run is watched, split up and kept.
RUNS = {
    "gradient_checkpointing": True, "batch_size_val": 3, "num_workers": 1, "val_iter": 1, "save_iter": 1,
    "keep_checkpoints": 2, "log_iter": 3, "nonfinite": "skip", "process_timeout": 1, "deterministic": True,
}  # fmt: skip
# Cannot be told from the weights of one small run; the module that tests each.
ELSEWHERE = {
    "experiment_name": "test_config", "runs": "test_training", "data_path": "test_dataset", "model": "test_altclip",
    "fusion": "test_altclip", "checkpoint": "test_model", "num_processes": "test_distributed",
    "compile": "test_model", "fp16": "test_training", "wandb": "test_tracking", "negative_num": "test_dataset",
    "pseudo_labels": "test_pseudo_labels",
}  # fmt: skip


def test_every_parameter_is_in_one_of_the_tables():
    assert sorted([*LEARNS, *RUNS, *ELSEWHERE]) == sorted(field.name for field in dataclasses.fields(Experiment))


@pytest.fixture(scope="module")
def trained(micro_experiment, tmp_path_factory):
    """trained(**changes) -> (run folder, digest of its final weights); the same changes are trained once."""
    runs, known = tmp_path_factory.mktemp("runs"), {}

    def make(**changes):
        key = repr(changes)
        if key not in known:
            values = {"epoch": 1, "experiment_name": f"run_{len(known)}"}
            run = train(micro_experiment(runs, **(values | changes)))
            known[key] = run, digest(run / "model")
        return known[key]

    return make


def digest(model) -> str:
    files = sorted(model.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNS)
def test_another_value_learns_something_else(trained, name):
    beside = BESIDE.get(name, {})
    assert trained(**beside, **{name: LEARNS[name]})[1] != trained(**beside)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_how_a_run_is_kept_and_watched_changes_no_weight(trained, name):
    run, weights = trained(**{name: RUNS[name]})
    assert weights == trained()[1]
    seen = {
        "val_iter": any("val_final_score" in row for row in read_metrics(run)),
        "log_iter": [row["step"] for row in read_metrics(run)] == [3, 6, 9],
        "keep_checkpoints": len(list((run / "checkpoints").iterdir())) == 2,
    }
    assert seen.get(name, True)
