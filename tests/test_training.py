"""A whole two-stage run, looked at from every side; then what single parameters change."""

import contextlib
import io
import json
import math
import re
import shutil

import pytest
import torch
from safetensors import SafetensorError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from watching import assert_identical, model_weights, watched

from lib.config import Experiment
from lib.data.dataset import make_loader, training_data
from lib.errors import InputError
from lib.model.detector import DistortionDetector, set_trainable
from lib.stores import LabelStore, PredictionStore
from lib.train import checkpoint as checkpoints
from lib.train import read_metrics, train
from lib.train.__main__ import main
from lib.train.checkpoint import open_folder
from lib.train.processes import make_accelerator
from lib.train.schedule import plan_stages
from lib.train.step import GlobalStep

# Warm-up: 2 epochs of 2 steps (16 and 8 images). Main: 2 epochs of 3 steps (10, 10 and 4 images).
RECIPE = {
    "warmup_epoch": 2, "epoch": 2, "batch_size_warmup": 8, "batch_size": 5, "accumulate_step": 2, "lr": 2e-3,
    "backbone_lr_decay": 0.25, "min_lr": 4e-4, "weight_decay": 0.01, "backbone_weight_decay": 0.05,
    "clip_grad_norm": 0.5, "ema": True, "ema_decay": 0.8, "val_iter": 1, "save_iter": 1, "keep_checkpoints": 2,
    "mask_loss_weight": 2.0, "score_loss_weight": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def watched_run(micro_experiment, tmp_path_factory):
    """(what was seen, the run's folder, what it printed)"""
    config = micro_experiment(tmp_path_factory.mktemp("runs"), **RECIPE)
    printed = io.StringIO()
    with watched() as seen, contextlib.redirect_stdout(printed):
        run = train(config)
    return seen, run, printed.getvalue()


def test_stages_and_partial_accumulations_take_their_steps(watched_run):
    steps = watched_run[0]["steps"]
    assert [row["stage"] for row in steps] == ["warmup"] * 4 + ["main"] * 6
    assert [[len(ids) for ids in row["ids"]] for row in steps] == [
        [8, 8], [8], [8, 8], [8], [5, 5], [5, 5], [4], [5, 5], [5, 5], [4]
    ]  # fmt: skip
    assert all(row["updated"] for row in steps)


def test_the_encoder_rests_in_the_warm_up_and_learns_in_the_main_stage(watched_run):
    for row in watched_run[0]["steps"]:
        moved = {name for name in row["before"] if not torch.equal(row["before"][name], row["after"][name])}
        encoder = {name for name in moved if name.startswith("encoder.")}
        assert bool(encoder) == (row["stage"] == "main")
        assert any(name.startswith("mask_head.") for name in moved)
        assert any(name.startswith("score_head.") for name in moved)
        # Its dropout rests too: frozen features are not disturbed.
        assert row["modes"] == {"encoder": row["stage"] == "main", "heads": True}


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


def test_gradients_are_clipped(watched_run):
    norms = [row["norm"] for row in watched_run[0]["steps"]]
    assert all(norm <= 0.5 * 1.0001 for norm in norms)
    assert max(norms) > 0.49  # otherwise there was nothing to clip


def test_averages_follow_weights_and_buffers_and_are_what_is_evaluated_and_saved(watched_run):
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
    # After an evaluation the run goes on with its own weights.
    for number in (2, 4, 7):
        assert_identical(seen["steps"][number]["before"], seen["steps"][number - 1]["after"])


def test_the_last_checkpoints_remain_and_hold_the_weights_as_they_were(watched_run):
    seen, run, _ = watched_run
    kept = sorted((run / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step_00000007", "step_00000010"]
    assert_identical(checkpoints.read_group(kept[1], "model"), seen["steps"][-1]["after"])
    assert not list(run.rglob("*.part"))


def test_the_best_model_is_that_of_the_highest_figure(watched_run):
    seen, run, _ = watched_run
    scores = {row["step"]: row["val_final_score"] for row in read_metrics(run) if "val_final_score" in row}
    assert set(scores) == {2, 4, 7, 10}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert_identical(model_weights(run, "best"), dict(seen["evaluated"])[best])


def test_rows_and_lines_tell_the_progress(watched_run):
    seen, run, printed = watched_run
    rows = [row for row in read_metrics(run) if "loss" in row]
    assert [(row["step"], row["stage"], row["epoch"]) for row in rows] == [
        (1, "warmup", 1), (2, "warmup", 1), (3, "warmup", 2), (4, "warmup", 2), (5, "main", 1), (6, "main", 1),
        (7, "main", 1), (8, "main", 2), (9, "main", 2), (10, "main", 2),
    ]  # fmt: skip
    for row, step in zip(rows, seen["steps"], strict=True):
        (mask, score), rate = step["losses"][0], max(lr for lr, _ in step["groups"])
        assert (row["mask_loss"], row["score_loss"], row["lr"]) == pytest.approx((mask, score, rate))
        assert row["loss"] == pytest.approx(2.0 * mask + 0.5 * score)
    seconds = [row["seconds"] for row in read_metrics(run)]
    assert seconds == sorted(seconds) and seconds[-1] > 0
    lines = printed.splitlines()
    assert re.match(r"run: 24 images, 10 steps on 1 x cpu in fp32; ([\d,]+) of \1 parameters train", lines[0])
    assert (
        sum(bool(re.match(r"step \d+/10  (warmup|main) epoch \d  loss .* \d+:\d\d left$", line)) for line in lines)
        == 10
    )
    assert sum("val_final_score" in line for line in lines) == 4
    assert lines[-1].startswith("Trained 10 steps in")


def test_tensorboard_holds_the_same_figures(watched_run):
    _, run, _ = watched_run
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/loss", "train/mask_loss", "train/score_loss", "train/lr", "val/final_score"} <= set(
        board.Tags()["scalars"]
    )
    loss = {event.step: event.value for event in board.Scalars("train/loss")}
    assert loss == pytest.approx({row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}, rel=1e-5)
    assert [event.step for event in board.Scalars("val/final_score")] == [2, 4, 7, 10]


def test_the_run_keeps_its_parameters_and_a_closing_note(watched_run):
    _, run, _ = watched_run
    config = Experiment.from_yaml(run / "config.yaml").to_dict()
    assert {name: config[name] for name in RECIPE} == RECIPE
    note = json.loads((run / "finished.json").read_text())
    count = sum(parameter.numel() for parameter in DistortionDetector.from_pretrained(run).parameters())
    assert (note["steps"], note["images"], note["parameters"], note["trained"]) == (10, 24, count, count)
    assert note["trained_share_of_encoder"] == 1.0
    assert note["versions"]["torch"] == torch.__version__


def test_a_finished_run_is_left_alone(watched_run, capsys):
    _, run, _ = watched_run

    def written():
        paths = [path for path in run.rglob("*") if path.is_file() and path.name not in ("config.yaml", ".lock")]
        return {path: path.stat().st_mtime_ns for path in paths}

    before = written()
    assert train(Experiment.from_yaml(run / "config.yaml")) == run
    assert "already trained" in capsys.readouterr().out
    assert written() == before


# One parameter at a time


def test_keep_checkpoints_0_leaves_the_final_model_only(experiment):
    with watched() as seen:
        run = train(experiment(val_iter=1, keep_checkpoints=0, warmup_epoch=0, epoch=1, batch_size=8))
    assert [row["stage"] for row in seen["steps"]] == ["main"] * 3
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        "checkpoints", "config.yaml", "finished.json", "metrics.jsonl", "model", "predictions", "tensorboard"
    }  # fmt: skip
    assert not list((run / "checkpoints").iterdir()) and not list((run / "predictions").iterdir())


@pytest.mark.parametrize(("save_iter", "saved"), [(-1, [12]), (2, [3, 9, 12])])
def test_save_iter_counts_epochs_of_a_stage_and_its_end_always_counts(experiment, monkeypatch, save_iter, saved):
    steps = []
    save = checkpoints.save_checkpoint
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda *a: (steps.append(a[1]), save(*a)))
    train(experiment(save_iter=save_iter, epoch=3, batch_size=8))
    assert steps == saved


def test_val_iter_counts_epochs_and_val_split_is_held_out_of_training(experiment, prepared):
    config = experiment(val_iter=2, val_split=8, epoch=3, batch_size=8)
    with watched() as seen:
        run = train(config)
    assert [number for number, _ in seen["evaluated"]] == [2, 6, 8]  # 2 steps an epoch: warm-up's end, epochs 2 and 3
    trained = {id for row in seen["steps"] for ids in row["ids"] for id in ids}
    held_out = set(PredictionStore(run / "predictions" / "validation").ids)
    assert len(trained) == 16 and len(held_out) == 8 and not trained & held_out
    assert trained | held_out == set(LabelStore(prepared / "train").ids)


def test_evaluation_without_labelled_images_is_refused(experiment, prepared, tmp_path):
    shutil.copytree(prepared / "train", tmp_path / "data" / "train")
    with pytest.raises(InputError, match="val_iter is 1, but .*data has no labelled val split"):
        train(experiment(data_path=str(tmp_path / "data"), val_iter=1))


def test_the_same_parameters_give_the_same_weights_and_another_seed_others(experiment):
    short = {"epoch": 1, "batch_size": 8, "ema": True}
    runs = [train(experiment(experiment_name=name, **short)) for name in ("a", "b")]
    assert_identical(*(model_weights(run) for run in runs))
    other = model_weights(train(experiment(experiment_name="c", seed=43, **short)))
    assert not torch.equal(other["mask_head.out.weight"], model_weights(runs[0])["mask_head.out.weight"])


def test_the_number_of_data_workers_changes_nothing(experiment):
    runs = [train(experiment(experiment_name=f"w{n}", num_workers=n, epoch=1, batch_size=8)) for n in (0, 2)]
    assert_identical(*(model_weights(run) for run in runs))


def test_precision(experiment, capsys):
    """bf16 runs on a CPU and keeps float32 weights; one process can train with one precision after the other."""
    runs = {
        precision: train(experiment(experiment_name=precision, mixed_precision=precision, epoch=1, batch_size=8))
        for precision in ("bf16", "auto", "no")
    }
    assert re.findall(r"1 x cpu in (\w+);", capsys.readouterr().out) == ["bf16", "fp32", "fp32"]
    weights = {precision: model_weights(run) for precision, run in runs.items()}
    assert_identical(weights["auto"], weights["no"])
    assert all(value.dtype != torch.bfloat16 for value in weights["bf16"].values())
    difference = (weights["bf16"]["mask_head.out.weight"] - weights["no"]["mask_head.out.weight"]).abs().max()
    assert 0 < difference < 0.01


def test_fp16_needs_a_gpu(experiment):
    config = experiment(fp16=True)
    with pytest.raises(InputError, match="fp16 needs a GPU; on this machine set mixed_precision: auto"):
        train(config)
    assert not config.folder.exists()


def test_freeze_params_hold_in_both_stages_and_unfreeze_params_win(experiment):
    config = experiment(freeze_params="mask_head,vision_tower", unfreeze_params="mask_head.out", epoch=1, batch_size=8)
    with watched() as seen:
        run = train(config)
    before, after = seen["initial"], model_weights(run)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name for name in moved if name.startswith("mask_head.")} == {"mask_head.out.weight", "mask_head.out.bias"}
    assert not any("vision_tower" in name for name in moved) and any("text_encoder" in name for name in moved)


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
    kept = checkpoints.read_group(run / "checkpoints" / "step_00000003", "model")
    assert {name for name in kept if name.startswith("encoder.")} == in_encoder
    assert set(checkpoints.read_group(run / "checkpoints" / "step_00000003", "ema")) == set(kept)
    saved = DistortionDetector.from_pretrained(run).state_dict()
    assert_identical(saved, {**before, **seen["steps"][-1]["after"], **checkpoints.read_group(
        run / "checkpoints" / "step_00000003", "ema")})  # fmt: skip
    share = json.loads((run / "finished.json").read_text())["trained_share_of_encoder"]
    assert 0 < share < 0.5


# What goes wrong


def test_a_changed_recipe_is_refused_with_the_difference_and_running_parameters_may_change(experiment):
    train(experiment(epoch=1, batch_size=8))
    with pytest.raises(
        InputError, match=r"begun with other parameters \(epoch: 1 then, 2 now; lr: 0.001 then, 0.01 now\)"
    ):
        train(experiment(epoch=2, batch_size=8, lr=1e-2))
    train(experiment(epoch=1, batch_size=8, num_workers=1, log_iter=7, keep_checkpoints=3, nonfinite="skip"))


@pytest.mark.parametrize(
    "wrong",
    [{"checkpoint": "nowhere"}, {"val_split": 24}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_refused_parameter_can_be_corrected(experiment, wrong):
    with pytest.raises(InputError) as refused:
        train(experiment(**wrong))
    assert "begun" not in str(refused.value)
    config = experiment(lr=2e-3)
    open_folder(config)
    assert Experiment.from_yaml(config.folder / "config.yaml").to_dict() == config.to_dict()


def test_a_folder_that_cannot_be_written_is_refused(micro_experiment, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run cannot be written .*parameter runs"):
        train(micro_experiment(tmp_path / "file"))


def test_processes_that_were_not_started_are_missed(experiment):
    with pytest.raises(InputError, match="num_processes: 2, but 1 were started"):
        train(experiment(num_processes=2))


@pytest.fixture
def spoilt(monkeypatch):
    """spoilt(*steps): the loss of these calls of the forward pass is no number, and so are their activations."""

    def spoil(*steps):
        forward, calls = DistortionDetector.forward, []

        def bad_forward(detector, pixel_values, *inputs):
            calls.append(None)
            if len(calls) in steps:
                pixel_values = pixel_values * math.nan
            return forward(detector, pixel_values, *inputs)

        monkeypatch.setattr(DistortionDetector, "forward", bad_forward)

    return spoil


def test_a_loss_that_is_no_number_stops_and_names_the_images(experiment, spoilt):
    spoilt(5)
    config = experiment(batch_size=8, save_iter=1)
    with watched() as seen, pytest.raises(InputError) as stopped:
        train(config)
    ids = seen["steps"][-1]["ids"][0]
    assert len(seen["steps"]) == 5 and f"at step 5 (images {', '.join(ids)})" in str(stopped.value)
    assert "nonfinite: skip" in str(stopped.value)
    assert {row["step"]: row["skipped"] for row in read_metrics(config.folder) if "skipped" in row} == {
        5: ", ".join(ids)
    }
    newest = checkpoints.latest_checkpoint(config.folder)
    assert newest.name == "step_00000003"
    assert all(value.isfinite().all() for value in checkpoints.read_group(newest, "model").values())


def test_a_loss_that_is_no_number_is_skipped_on_request(experiment, spoilt, capsys):
    spoilt(2, 5)
    with watched() as seen:
        run = train(experiment(batch_size=8, nonfinite="skip", epoch=1, ema=True))
    assert [row["updated"] for row in seen["steps"]] == [True, False, True, True, False, True]
    for row in (seen["steps"][1], seen["steps"][4]):
        assert_identical(row["before"], row["after"])  # buffers of BatchNorm too
    skipped = {row["step"]: row["skipped"] for row in read_metrics(run) if "skipped" in row}
    assert skipped == {n: ", ".join(seen["steps"][n - 1]["ids"][0]) for n in (2, 5)}
    assert "skipped train_" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in model_weights(run).values())


def test_skipping_gives_up_when_nothing_else_happens(experiment, spoilt):
    spoilt(*range(3, 50))
    with pytest.raises(InputError, match="not finite 10 times in a row at step 12"):
        train(experiment(batch_size=2, nonfinite="skip"))


def test_an_infinite_gradient_is_as_bad_as_an_infinite_loss(experiment, monkeypatch):
    class Explosive(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    forward = DistortionDetector.forward

    def bad_forward(*inputs):
        heatmap, score = forward(*inputs)
        return Explosive.apply(heatmap), score

    monkeypatch.setattr(DistortionDetector, "forward", bad_forward)
    with pytest.raises(InputError, match="loss or its gradient is not finite at step 1"):
        train(experiment())


@pytest.fixture
def scaled(monkeypatch):
    """scaled(scale): training on the CPU with a loss scaler that begins with this scale, as fp16 has one on a GPU."""

    def begin(scale: float):
        def with_scaler(config):
            accelerator = make_accelerator(config)
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            return accelerator

        monkeypatch.setattr("lib.train.loop.make_accelerator", with_scaler)

    return begin


def test_a_short_run_does_not_end_without_an_update(experiment, scaled):
    scaled(2.0**127)
    config = experiment(batch_size=24, batch_size_warmup=24, epoch=2)
    with pytest.raises(InputError, match="gradient is not finite 3 times in a row at step 3"):
        train(config)
    assert not (config.folder / "model").exists()


def test_the_search_for_a_loss_scale_changes_nothing_and_ends(experiment, scaled, capsys):
    scaled(2.0**67)  # the squares in the gradients' norm must stay below 2**128
    with watched() as seen:
        run = train(experiment(batch_size=8, batch_size_warmup=2, ema=True, nonfinite="stop"))
    skips = [number for number, row in enumerate(seen["steps"], 1) if not row["updated"]]
    assert skips[:2] == [1, 2] and skips[-1] < 15  # the main stage, whose gradients are larger, begins at 13
    for number in skips:
        row = seen["steps"][number - 1]
        assert row["losses"] == []
        assert_identical(row["before"], row["after"])
    skipped = {row["step"]: row["skipped"] for row in read_metrics(run) if "skipped" in row}
    assert list(skipped) == skips
    assert skipped[1] == "the gradients overflow, the loss scale is 7.3787e+19 now"
    assert "skipped the gradients overflow" in capsys.readouterr().out


def test_gradients_are_clipped_in_their_own_scale_under_fp16(experiment, monkeypatch):
    """Half precision by autocast, Accelerate's own unscaling and a loss scaler: all of a GPU's way but the GPU."""
    norms, step = [], torch.optim.AdamW.step

    def stepping(optimizer, *arguments, **named):
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return step(optimizer, *arguments, **named)

    def halved(config):
        accelerator = make_accelerator(config)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return accelerator

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    whole = train(experiment(experiment_name="whole", epoch=1, clip_grad_norm=0.1))
    in_fp32, norms[:] = list(norms), []
    monkeypatch.setattr("lib.train.loop.make_accelerator", halved)
    with watched() as seen:
        half = train(experiment(experiment_name="half", epoch=1, clip_grad_norm=0.1))
    assert all(row["updated"] for row in seen["steps"]) and len(norms) == len(in_fp32)
    assert min(in_fp32) > 0.099  # every step is clipped
    assert norms == pytest.approx(in_fp32, rel=1e-3)
    losses = [[row["loss"] for row in read_metrics(run) if "loss" in row] for run in (half, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_a_full_disk_ends_clearly_and_loses_nothing(experiment, monkeypatch):
    config = experiment(save_iter=1, batch_size=8, epoch=1)
    save_file = checkpoints.save_file

    def full(tensors, path):
        if "step_00000006" in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(InputError, match="run cannot be written: the disk is full; free space"):
            train(config)
    assert checkpoints.latest_checkpoint(config.folder).name == "step_00000003"
    assert (train(config) / "finished.json").is_file()


@pytest.mark.parametrize("evaluating", [False, True])
def test_memory_that_runs_out_is_told_with_its_remedy(experiment, monkeypatch, evaluating):
    forward = DistortionDetector.forward

    def greedy_forward(detector, *inputs):
        if detector.training != evaluating:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
        return forward(detector, *inputs)

    monkeypatch.setattr(DistortionDetector, "forward", greedy_forward)
    remedy = "while evaluating; lower batch_size_val" if evaluating else "with 8 images .* gradient_checkpointing: true"
    with pytest.raises(InputError, match=f"out of memory {remedy}"):
        train(experiment(val_iter=1))


# Accumulation


def gradients_of_step(config, step=0, training=False, detector=None):
    """(gradients, [mask loss, score loss]) of one step of the main stage."""
    accelerator, data = make_accelerator(config), training_data(config)
    detector = detector or DistortionDetector.from_checkpoint(config)
    set_trainable(detector, "main")
    detector.train(training)
    sampler = plan_stages(config, len(data))[-1].sampler
    batches = list(make_loader(data, detector.text, sampler.flat(step, step + 1), 0))
    losses = GlobalStep(config, accelerator, detector, detector)(batches, sampler.images_in_step(step), (1, step))
    return {name: parameter.grad for name, parameter in detector.named_parameters()}, losses


@pytest.mark.parametrize("score_loss", ["mse-plcc-srcc", "mse"])
@pytest.mark.parametrize("step", [0, 1])
def test_accumulated_gradients_are_those_of_the_whole_batch(experiment, score_loss, step):
    """In eval mode, so that only the arithmetic of the losses is compared: micro-batches have their own BatchNorm
    statistics and their own dropout, which no accumulation could undo. Step 1 is the uneven rest: 24 = 15 + 9."""
    recipe = {"score_loss": score_loss, "epoch": 1}
    whole, whole_losses = gradients_of_step(experiment(batch_size=15, accumulate_step=1, **recipe), step)
    parts, part_losses = gradients_of_step(experiment(batch_size=5, accumulate_step=3, **recipe), step)
    torch.testing.assert_close(part_losses, whole_losses, rtol=1e-6, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    assert largest > 1e-3
    for name in whole:
        torch.testing.assert_close(
            parts[name], whole[name], rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_unknown_scores_do_not_dilute_the_others(experiment):
    """Nine images in three micro-batches, one of them without any score: the mean is over the scores that are known."""
    configs = [
        experiment(batch_size=9, accumulate_step=1, score_loss="mse"),
        experiment(batch_size=3, accumulate_step=3, score_loss="mse"),
    ]
    losses = []
    for config in configs:
        accelerator, detector, data = (
            make_accelerator(config),
            DistortionDetector.from_checkpoint(config).eval(),
            training_data(config),
        )
        sampler = plan_stages(config, len(data))[-1].sampler
        unknown = {key[1] for key in sampler.micro_batches(0)[0][:3]}
        data.entries = [
            entry._replace(score=math.nan) if i in unknown else entry for i, entry in enumerate(data.entries)
        ]
        batches = list(make_loader(data, detector.text, sampler.flat(0, 1), 0))
        losses.append(GlobalStep(config, accelerator, detector, detector)(batches, 9, (1, 0)))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-7)


def test_the_first_pass_of_an_accumulated_correlation_leaves_no_trace(experiment):
    config = experiment(batch_size=4, accumulate_step=2)
    detector = DistortionDetector.from_checkpoint(config)
    gradients_of_step(config, training=True, detector=detector)
    assert detector.score_head.mlp[1].num_batches_tracked == 2  # not 4


def test_both_passes_of_an_accumulated_correlation_see_the_same_dropout(experiment, monkeypatch):
    """The gradients of the first pass hold for the scores of the second only when these are the same numbers."""
    scores, forward = [], DistortionDetector.forward

    def recording_forward(*inputs):
        heatmap, score = forward(*inputs)
        scores.append(score.detach().clone())
        return heatmap, score

    monkeypatch.setattr(DistortionDetector, "forward", recording_forward)
    gradients_of_step(experiment(batch_size=4, accumulate_step=2), training=True)
    assert len(scores) == 4
    assert torch.equal(scores[0], scores[2]) and torch.equal(scores[1], scores[3])
    assert not torch.equal(scores[0], scores[1])


def test_several_processes_started_by_hand_need_a_name(experiment, tmp_path, monkeypatch, capsys):
    experiment(experiment_name="").save(tmp_path / "my.yaml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([str(tmp_path / "my.yaml")]) == 2
    assert "my.yaml: give experiment_name; several processes cannot agree on one" in capsys.readouterr().err
