"""A whole two-stage run, looked at from every side; then what single parameters change."""

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import re
import shutil
import traceback
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from ranks import step_gradients
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from watching import assert_identical, model_weights, watched

from lib.config import Experiment
from lib.distributed import precision
from lib.errors import InputError
from lib.model import weights
from lib.model.detector import DistortionDetector
from lib.stores import LabelStore, PredictionStore
from lib.train import checkpoint as checkpoints
from lib.train import read_metrics, train
from lib.train.accelerator import make_accelerator
from lib.train.checkpoint import opened_folder
from lib.train.loop import Run
from lib.train.step import GlobalStep

# Warm-up: 2 epochs of 2 steps (16 and 8 images). Main: 2 epochs of 3 steps (10, 10 and 4 images).
RECIPE = {
    "warmup_epoch": 2, "epoch": 2, "batch_size_warmup": 8, "batch_size": 5, "accumulate_step": 2, "lr": 2e-3,
    "backbone_lr_decay": 0.25, "min_lr": 4e-4, "weight_decay": 0.01, "backbone_weight_decay": 0.05,
    "clip_grad_norm": 0.5, "ema": True, "ema_decay": 0.8, "val_iter": 1, "save_iter": 1, "keep_checkpoints": 2,
    "mask_loss_weight": 2.0, "score_loss_weight": 0.5,
}  # fmt: skip


def group(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / f"{name}.safetensors")


@pytest.fixture(scope="module")
def watched_run(micro_experiment, tmp_path_factory):
    """(what was seen, the run's folder, what it printed)"""
    config = micro_experiment(tmp_path_factory.mktemp("runs"), **RECIPE)
    printed = io.StringIO()
    with watched() as seen, contextlib.redirect_stdout(printed):
        run = train(config)
    return seen, run, printed.getvalue()


def test_stages_take_their_steps_and_the_encoder_rests_in_the_warm_up(watched_run):
    steps = watched_run[0]["steps"]
    assert [[len(ids) for ids in row["ids"]] for row in steps] == [
        [8, 8], [8], [8, 8], [8], [5, 5], [5, 5], [4], [5, 5], [5, 5], [4]
    ]  # fmt: skip
    for number, row in enumerate(steps):
        stage = "warmup" if number < 4 else "main"
        moved = {name for name in row["before"] if not torch.equal(row["before"][name], row["after"][name])}
        parts = {name.partition(".")[0] for name in moved}
        assert row["stage"] == stage and parts >= {"mask_head", "score_head"}
        assert ("encoder" in parts) == (stage == "main")
        # Its dropout rests too: frozen features are not disturbed.
        assert row["modes"] == {"encoder": stage == "main", "heads": True}


def test_rates_are_constant_in_the_warm_up_and_torchs_cosine_in_the_main_stage(watched_run):
    groups = [row["groups"] for row in watched_run[0]["steps"]]
    assert groups[:4] == [[(2e-3, 0.01)]] * 4  # heads only: the encoder has no optimizer state yet
    for group, (base, floor, decay) in enumerate([(5e-4, 1e-4, 0.05), (2e-3, 4e-4, 0.01)]):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6, eta_min=floor)
        for row in groups[4:]:
            assert row[group] == (pytest.approx(cosine.get_last_lr()[0], rel=1e-9), decay)
            optimizer.step()
            cosine.step()
        assert cosine.get_last_lr()[0] == pytest.approx(floor)  # completed: the next step would be at min_lr


def test_averages_are_what_is_evaluated_and_saved_and_the_best_is_kept(watched_run):
    seen, run, _ = watched_run
    average = {name: value.clone() for name, value in seen["initial"].items()}
    evaluated = dict(seen["evaluated"])
    for number, row in enumerate(seen["steps"], start=1):
        for name, value in row["after"].items():
            average[name] = torch.lerp(average[name], value, 1 - 0.8) if value.is_floating_point() else value
        for name, value in evaluated.get(number, {}).items():
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)
    assert list(evaluated) == [2, 4, 7, 10]
    saved, last = model_weights(run), seen["steps"][-1]["after"]
    for name, value in saved.items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)
    norm = "score_head.mlp.1.running_mean"
    assert not torch.allclose(saved[norm], last[norm]) and not torch.allclose(saved[norm], seen["initial"][norm])
    scores = {row["step"]: row["val_final_score"] for row in read_metrics(run) if "val_final_score" in row}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert set(scores) == {2, 4, 7, 10}
    assert_identical(model_weights(run, "best"), evaluated[best])
    # After an evaluation the run goes on with its own weights.
    for number in (2, 4, 7):
        assert_identical(seen["steps"][number]["before"], seen["steps"][number - 1]["after"])


def test_rows_lines_and_tensorboard_tell_the_progress(watched_run):
    seen, run, printed = watched_run
    rows = [row for row in read_metrics(run) if "loss" in row]
    assert [row["step"] for row in rows] == [*range(1, 11)]
    assert [row["stage"] for row in rows] == ["warmup"] * 4 + ["main"] * 6
    assert [row["epoch"] for row in rows] == [1, 1, 2, 2, 1, 1, 1, 2, 2, 2]
    for row, step in zip(rows, seen["steps"], strict=True):
        (mask, score), rate = step["losses"][0], max(lr for lr, _ in step["groups"])
        assert (row["mask_loss"], row["score_loss"], row["lr"]) == pytest.approx((mask, score, rate))
        assert row["loss"] == pytest.approx(2.0 * mask + 0.5 * score)
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/mask_loss", "train/score_loss", "train/lr"} <= set(board.Tags()["scalars"])
    loss = {event.step: event.value for event in board.Scalars("train/loss")}
    assert loss == pytest.approx({row["step"]: row["loss"] for row in rows}, rel=1e-5)
    assert [event.step for event in board.Scalars("val/final_score")] == [2, 4, 7, 10]
    assert re.match(r"run: 24 images, 10 steps on 1 x cpu in fp32; ([\d,]+) of \1 parameters train", printed)
    assert len(re.findall(r"(?m)^step \d+/10  (?:warmup|main) epoch \d  loss .* \d:\d\d:\d\d left$", printed)) == 10
    assert printed.count("val_final_score") == 4


def test_the_run_keeps_its_parameters_and_a_closing_note(watched_run):
    _, run, _ = watched_run
    config = Experiment.from_yaml(run / "config.yaml").to_dict()
    assert {name: config[name] for name in RECIPE} == RECIPE
    note = json.loads((run / "finished.json").read_text())
    count = sum(parameter.numel() for parameter in DistortionDetector.from_pretrained(run).parameters())
    assert (note["steps"], note["images"], note["parameters"], note["trained"]) == (10, 24, count, count)
    assert note["trained_share_of_encoder"] == 1.0
    kept = sorted((run / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step_00000007", "step_00000010"] and not list(run.rglob("*.part"))
    assert_identical(group(kept[1], "model"), watched_run[0]["steps"][-1]["after"])


# One parameter at a time


def test_the_optimizer_goes_on_in_the_main_stage_on_request(experiment):
    """Adam's own counters say how many updates each weight has seen: 3 in the warm-up, 3 in the main stage."""
    with watched() as seen:
        run = train(experiment(carry_optimizer=True, epoch=1, batch_size=8, warmup_encoder="train"))
    state = group(checkpoints.latest_checkpoint(run), "optimizer")
    updates = {int(value) for name, value in state.items() if name.endswith(".step")}
    assert updates == {3, 6}
    assert all(row["modes"] == {"encoder": True, "heads": True} for row in seen["steps"])


def test_iters_end_a_stage_within_an_epoch_and_keep_checkpoints_0_leaves_the_model_only(experiment):
    """Three steps an epoch: warm-up 3, main 4, of which the last is evaluated like an epoch's end."""
    umask = os.umask(0o022)
    run = train(experiment(epoch=0, iters=4, batch_size=8, val_iter=1, save_iter=1, keep_checkpoints=0))
    os.umask(umask)
    rows = read_metrics(run)
    assert [row["step"] for row in rows if "val_final_score" in row] == [3, 6, 7]
    assert [row["lr"] for row in rows if "lr" in row and row["stage"] == "main"] == pytest.approx(
        [1e-3, 1e-3 * (2 + 2**0.5) / 4, 5e-4, 1e-3 * (2 - 2**0.5) / 4]
    )
    weights = list(run.rglob("*.safetensors"))
    assert weights and {path.stat().st_mode & 0o777 for path in weights} == {0o644}  # safetensors makes it 600
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "checkpoints", "config.yaml", "finished.json", "metrics.jsonl", "model", "predictions", "tensorboard"
    }  # fmt: skip
    assert not list((run / "checkpoints").iterdir()) and not list((run / "predictions").iterdir())


def test_epochs_between_saves_and_evaluations_count_from_a_stage_and_val_split_is_held_out(
    experiment, prepared, monkeypatch
):
    saved, save = [], checkpoints.save_checkpoint
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda *a: (saved.append(a[1]), save(*a)))
    with watched() as seen:
        run = train(experiment(save_iter=2, val_iter=2, val_split=8, epoch=3, batch_size=8))
    # Two steps an epoch: the warm-up's end, then epochs 2 and 3.
    assert saved == [number for number, _ in seen["evaluated"]] == [2, 6, 8]
    trained = {id for row in seen["steps"] for ids in row["ids"] for id in ids}
    held_out = set(PredictionStore(run / "predictions" / "validation").ids)
    assert len(trained) == 16 and len(held_out) == 8 and not trained & held_out
    assert trained | held_out == set(LabelStore(prepared / "train").ids)


# LoRA


def test_lora_trains_adapters_heads_and_what_is_asked_for_only(experiment):
    config = experiment(
        lora_rank=2, warmup_epoch=0, epoch=1, batch_size=8, unfreeze_params="layernorm_embedding", ema=True
    )
    with watched() as seen:
        run = train(config)
    before, after = seen["initial"], seen["steps"][-1]["after"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    in_encoder = {name for name in moved if name.startswith("encoder.")}
    assert in_encoder == {name for name in before if "lora_" in name or "layernorm_embedding" in name}
    assert any(name.startswith("mask_head.") for name in moved) and any("running_mean" in name for name in moved)
    # Checkpoints and the model are free of the base.
    kept = group(run / "checkpoints" / "step_00000003", "model")
    assert {name for name in kept if name.startswith("encoder.")} == in_encoder
    assert set(group(run / "checkpoints" / "step_00000003", "ema")) == set(kept)
    share = json.loads((run / "finished.json").read_text())["trained_share_of_encoder"]
    assert 0 < share < 0.5


# What goes wrong


REFUSED = {
    "fp16": ({"fp16": True}, "fp16 needs a GPU; on this machine set mixed_precision: auto"),
    "num_processes": ({"num_processes": 2}, "num_processes: 2, but 1 were started"),
    "no torchrun": ({"num_processes": 2}, "WORLD_SIZE is 2, but torchrun .*; start all 2 by torchrun"),
    "val_iter": ({"val_iter": 1, "data_path": "train only"}, "val_iter is 1, but .* has no labelled val split"),
    "runs": ({"runs": "a file"}, "a file/run cannot be written .*parameter runs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_and_can_be_corrected(experiment, prepared, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    shutil.copytree(prepared / "train", tmp_path / "train only" / "train")
    changes, told = REFUSED[case]
    with monkeypatch.context() as patch, pytest.raises(InputError, match=told):
        patch.setenv("WORLD_SIZE", "2" if case == "no torchrun" else "1")
        train(dataclasses.replace(experiment(), **changes))
    config = experiment(lr=2e-3)
    with opened_folder(config) as folder:
        assert Experiment.from_yaml(folder / "config.yaml") == config


@pytest.mark.parametrize(
    ("changes", "gpu", "has_bf16", "expected"),
    [
        ({}, False, False, "no"), ({}, True, True, "bf16"), ({}, True, False, "fp16"),
        ({"fp16": True}, True, True, "fp16"), ({"mixed_precision": "bf16"}, False, False, "bf16"),
        ({"mixed_precision": "no"}, True, True, "no"),
    ],
)  # fmt: skip
def test_precision_is_what_was_asked_for_or_what_the_device_can_do(
    experiment, monkeypatch, changes, gpu, has_bf16, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # By default torch says yes to a GPU that emulates it, slower than float32.
    supported = lambda including_emulation=True: has_bf16 or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision(experiment(**changes)) == expected


@pytest.fixture
def spoilt(monkeypatch):
    """spoilt(*steps): in these calls the activations are no numbers, nor is the loss; or only their gradients."""

    def spoil(*steps, gradient=False):
        forward, calls = DistortionDetector.forward, []

        def bad_forward(detector, pixel_values, *inputs):
            calls.append(None)
            if len(calls) not in steps:
                return forward(detector, pixel_values, *inputs)
            if not gradient:
                return forward(detector, pixel_values * math.nan, *inputs)
            heatmap, score = forward(detector, pixel_values, *inputs)
            heatmap.register_hook(lambda gradients: gradients * math.inf)
            return heatmap, score

        monkeypatch.setattr(DistortionDetector, "forward", bad_forward)

    return spoil


@pytest.mark.parametrize("gradient", [False, True])
def test_a_loss_or_gradient_that_is_no_number_stops_and_names_the_images(experiment, spoilt, gradient):
    spoilt(5, gradient=gradient)
    config = experiment(batch_size=8, save_iter=1, mask_loss="bce-dice")
    with watched() as seen, pytest.raises(InputError, match="nonfinite: skip") as stopped:
        train(config)
    ids = ", ".join(seen["steps"][-1]["ids"][0])
    assert len(seen["steps"]) == 5 and f"not finite at step 5 (images {ids})" in str(stopped.value)
    assert {row["step"]: row["skipped"] for row in read_metrics(config.folder) if "skipped" in row} == {5: ids}
    newest = checkpoints.latest_checkpoint(config.folder)
    assert newest.name == "step_00000003" and all(value.isfinite().all() for value in group(newest, "model").values())


def test_a_loss_that_is_no_number_is_skipped_on_request(experiment, spoilt):
    spoilt(2, 5)
    with watched() as seen:
        run = train(experiment(batch_size=8, nonfinite="skip", epoch=1, ema=True))
    assert [row["updated"] for row in seen["steps"]] == [True, False, True, True, False, True]
    for row in (seen["steps"][1], seen["steps"][4]):
        assert_identical(row["before"], row["after"])  # buffers of BatchNorm too
    skipped = {row["step"]: row["skipped"] for row in read_metrics(run) if "skipped" in row}
    assert skipped == {n: ", ".join(seen["steps"][n - 1]["ids"][0]) for n in (2, 5)}
    assert all(value.isfinite().all() for value in model_weights(run).values())


def test_a_run_that_skips_all_or_most_of_its_steps_is_not_trained(experiment, spoilt):
    spoilt(1, 2, 4)
    config = experiment(nonfinite="skip", warmup_epoch=0, epoch=1, batch_size=6)
    with pytest.raises(InputError, match="not finite in 3 of 4 steps, so this is no trained model; begin another"):
        train(config)
    assert not (config.folder / "model").exists() and not (config.folder / "finished.json").exists()
    spoilt(*range(50))
    config = experiment(experiment_name="short", batch_size=24, batch_size_warmup=24, epoch=2, nonfinite="skip")
    with pytest.raises(InputError, match=r"step 3 .* and 16 more, all in metrics.jsonl\) and 2 steps before it"):
        train(config)


@pytest.fixture
def scaled(monkeypatch):
    """scaled(scale, half): a loss scaler, and with `half` fp16 by autocast and Accelerate's own unscaling."""

    def begin(scale: float, half: bool):
        def with_scaler(config):
            accelerator = make_accelerator(config)
            if half:  # all of a GPU's way but the GPU
                accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            return accelerator

        monkeypatch.setattr("lib.train.loop.make_accelerator", with_scaler)

    return begin


def test_the_search_for_a_loss_scale_changes_nothing_and_ends(experiment, scaled):
    scaled(2.0**126, half=False)  # gradients of about one overflow
    with watched() as seen:
        run = train(experiment(batch_size=8, batch_size_warmup=1, ema=True))
    skips = [number for number, row in enumerate(seen["steps"], 1) if not row["updated"]]
    assert skips and skips[-1] < len(seen["steps"])
    for number in skips:
        row = seen["steps"][number - 1]
        assert row["losses"] == []
        assert_identical(row["before"], row["after"])
    skipped = {row["step"]: row["skipped"] for row in read_metrics(run) if "skipped" in row}
    assert list(skipped) == skips
    assert skipped[skips[0]] == f"the gradients overflow, the loss scale is {2.0**125:g} now"


def test_gradients_are_clipped_in_their_own_scale_under_fp16(experiment, scaled):
    with watched() as seen:
        whole = train(experiment(experiment_name="whole", epoch=1, clip_grad_norm=0.1))
    scaled(1024.0, half=True)
    with watched() as halved:
        half = train(experiment(experiment_name="half", epoch=1, clip_grad_norm=0.1))
    norms = [[row["norm"] for row in one["steps"]] for one in (seen, halved)]
    assert min(norms[0]) > 0.099 and norms[1] == pytest.approx(norms[0], rel=1e-3)  # every step is clipped
    losses = [[row["loss"] for row in read_metrics(run) if "loss" in row] for run in (half, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_a_full_disk_ends_clearly_and_loses_nothing(experiment, monkeypatch):
    config = experiment(save_iter=1, batch_size=8, epoch=1)
    save_file = weights.save_file

    def full(tensors, path):
        if "step_00000006" in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", full)
        with pytest.raises(InputError, match="run cannot be written: the disk is full; free space"):
            train(config)
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step_00000003"]
    assert (train(config) / "finished.json").is_file()


@pytest.mark.parametrize("evaluating", [False, True])
def test_memory_that_runs_out_and_data_of_somebody_else_are_told(experiment, monkeypatch, evaluating):
    forward = DistortionDetector.forward

    def greedy_forward(detector, *inputs):
        if detector.training != evaluating:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
        return forward(detector, *inputs)

    monkeypatch.setattr(DistortionDetector, "forward", greedy_forward)
    remedy = "while evaluating; lower batch_size_val" if evaluating else "with 8 images .* gradient_checkpointing: true"
    with pytest.raises(InputError, match=f"out of memory {remedy}"):
        train(experiment(val_iter=1))
    denied = PermissionError(errno.EACCES, "Permission denied", "/data/train/manifest.parquet")
    monkeypatch.setattr("lib.train.loop.training_data", Mock(side_effect=denied))
    with pytest.raises(InputError, match="^/data/train/manifest.parquet: Permission denied; ask its owner"):
        train(experiment(experiment_name="other"))


# The step


class HostReads(TorchDispatchMode):
    """Collects operations whose result the host reads, each of which would wait for a GPU: [(name, asking file)]."""

    NAMES = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "is_nonzero"}

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.NAMES or masked:
            asking = [frame.filename for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            self.found.append((name, "/".join(Path(asking[-1]).parts[-3:])))
        return function(*args, **(kwargs or {}))


def test_a_step_reads_back_its_losses_alone(experiment, monkeypatch):
    """Up to the optimizer, whose counters lie on a CPU beside the weights; with accumulation and clipping."""
    reads = {"__call__": [], "_agree": []}

    def recorded(function):
        def call(*arguments):
            with HostReads() as mode:
                result = function(*arguments)
            reads[function.__name__].append(mode.found)
            return result

        return call

    monkeypatch.setattr(GlobalStep, "__call__", recorded(GlobalStep.__call__))
    monkeypatch.setattr(Run, "_agree", recorded(Run._agree))
    train(experiment(epoch=1, batch_size=4, accumulate_step=2, clip_grad_norm=0.1))
    # Which labels are known is asked of labels on the host; transformers looks once a pass for a mask that hides.
    allowed = {("nonzero", "lib/model/losses.py")}
    in_lib = {read for step in reads["__call__"] for read in step if "transformers" not in read[1]}
    assert len(reads["_agree"]) >= 3 and in_lib <= allowed, reads
    assert all(step == [] for step in reads["_agree"]), reads  # its one `tolist` copies; nothing else waits


def gradients_of_step(config, step=0, **options) -> dict[str, torch.Tensor]:
    """Of the main stage, in eval mode: micro-batches have their own BatchNorm statistics and their own dropout."""
    return step_gradients(config, make_accelerator(config), "main", step, double=True, training=False, **options)


# Step 1 is the uneven rest: 24 = 15 + 9. Of `unknown` scores the mean is over the known ones.
@pytest.mark.parametrize(
    ("score_loss", "step", "unknown"), [("mse-plcc-srcc", 0, 0), ("mse-plcc-srcc", 1, 0), ("mse", 1, 3)]
)
def test_accumulated_gradients_are_those_of_the_whole_batch(experiment, score_loss, step, unknown):
    recipe = {"score_loss": score_loss, "epoch": 1}
    whole = gradients_of_step(experiment(batch_size=15, accumulate_step=1, **recipe), step, unknown=unknown)
    parts = gradients_of_step(experiment(batch_size=5, accumulate_step=3, **recipe), step, unknown=unknown)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_both_passes_of_an_accumulated_correlation_are_one(experiment, monkeypatch):
    """The gradients of the first pass hold for the scores of the second only when dropout gives the same numbers."""
    config, scores, forward = experiment(batch_size=4, accumulate_step=2), [], DistortionDetector.forward

    def recording_forward(*inputs):
        heatmap, score = forward(*inputs)
        scores.append(score.detach().clone())
        return heatmap, score

    monkeypatch.setattr(DistortionDetector, "forward", recording_forward)
    found = step_gradients(config, make_accelerator(config), "main", 0)
    assert torch.equal(scores[0], scores[2]) and torch.equal(scores[1], scores[3]) and len(scores) == 4
    assert not torch.equal(scores[0], scores[1])
    assert found["score_head.mlp.1.num_batches_tracked"] == 2  # not 4: the first pass leaves no trace
