"""Every parameter of the recipe does something: other values lead to other weights, or to what the name promises.

What exactly a parameter does is tested where its code is; here none can be parsed and forgotten.
"""

import dataclasses
import hashlib
import shutil

import pytest
from test_pseudo_labels import predictions_of

from lib.config import Experiment
from lib.data.negatives import add_negatives
from lib.data.prepare import prepare
from lib.train import read_metrics, train

# One value that must change the final weights, for every parameter of which that can be said.
LEARNS = {
    "mask_head": "last", "score_head": "linear2", "input_size": 64, "input_width": 64, "mask_size": 16,
    "mask_stride": 16, "text_padding": "max_length", "lora_rank": 2, "freeze_params": "score_head",
    "epoch": 2, "warmup_epoch": 0, "batch_size": 3, "batch_size_warmup": 4, "accumulate_step": 2, "lr": 2e-3,
    "backbone_lr_decay": 0.5, "min_lr": 5e-4, "weight_decay": 0.5, "backbone_weight_decay": 0.5, "clip_grad_norm": 1e-3,
    "ema": True, "mask_loss": "bce", "score_loss": "mse", "mask_loss_weight": 3.0, "score_loss_weight": 3.0,
    "val_split": 5, "negative_num": 2, "hflip": 1.0, "random_crop": 1.0, "colour_jitter": 1.0, "grey": 1.0,
    "mixed_precision": "bf16", "seed": 7,
}  # fmt: skip
# The same beside another value that it depends on.
LEARNS_WITH = {
    "lora_alpha": ({"lora_rank": 2}, 32),
    "lora_dropout": ({"lora_rank": 2}, 0.9),
    "unfreeze_params": ({"lora_rank": 2}, "multi_modal_projector"),
    "ema_decay": ({"ema": True}, 0.5),
}
# Must not change the weights: how a run is watched, split up and kept.
RUNS = {
    "gradient_checkpointing": True, "batch_size_val": 3, "num_workers": 1, "val_iter": 1, "save_iter": 1,
    "keep_checkpoints": 2, "log_iter": 3, "nonfinite": "skip",
}  # fmt: skip
# Cannot be told from the weights of one small run; the module that tests each.
ELSEWHERE = {
    "experiment_name": "test_config", "runs": "test_training", "data_path": "test_dataset", "model": "test_altclip",
    "checkpoint": "test_model", "num_processes": "test_distributed",
    "fp16": "test_training", "wandb": "test_tracking", "pseudo_labels": "test_pseudo_labels",
}  # fmt: skip


def test_every_parameter_is_in_one_of_the_tables():
    tables = [LEARNS, LEARNS_WITH, RUNS, ELSEWHERE]
    named = [name for table in tables for name in table]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(Experiment))


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    """The prepared data with photographs as negatives."""
    folder = tmp_path_factory.mktemp("parameters") / "data"
    prepare(raw, folder, workers=1)
    photographs = folder.parent / "photographs"
    photographs.mkdir()
    images = sorted((raw / "test" / "images").iterdir())[:3]
    for image in images:
        shutil.copy(image, photographs)
    lines = ["image,caption", *(f"{image.name},a photograph" for image in images)]
    (photographs / "captions.csv").write_text("\n".join(lines))
    add_negatives(photographs, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def trained(micro_experiment, data, tmp_path_factory):
    """trained(**changes) -> (run folder, digest of its final weights); the same changes are trained once."""
    runs, known = tmp_path_factory.mktemp("runs"), {}

    def make(**changes):
        key = repr(changes)
        if key not in known:
            values = {"data_path": str(data), "epoch": 1, "experiment_name": f"run_{len(known)}"}
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
    assert trained(**{name: LEARNS[name]})[1] != trained()[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNS_WITH)
def test_another_value_beside_what_it_needs(trained, name):
    beside, value = LEARNS_WITH[name]
    assert trained(**beside, **{name: value})[1] != trained(**beside)[1]


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


@pytest.mark.slow
def test_pseudo_labels_learn_something_else(trained, tmp_path):
    folder = predictions_of(tmp_path / "before", "test", ["test_000000", "test_000001"])
    assert trained(pseudo_labels=str(folder))[1] != trained()[1]
