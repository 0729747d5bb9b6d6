"""What the processes of the distributed tests do; every function here runs in each of them."""

import contextlib
import json
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from lib.config import Experiment
from lib.data.dataset import make_loader, training_data
from lib.distributed import gather_rows, rank, world_size
from lib.model.detector import DistortionDetector, set_trainable
from lib.model.heads import GlobalBatchNorm1d
from lib.predict import growing
from lib.predict.prediction import predict
from lib.stores import LabelStore
from lib.train import loop as training
from lib.train.__main__ import main
from lib.train.processes import make_accelerator
from lib.train.schedule import plan_stages
from lib.train.step import GlobalStep


def step_gradients(
    config: Experiment, accelerator, stage_name: str, step: int, double: bool = False
) -> dict[str, torch.Tensor]:
    """Gradients, running statistics and losses of one step as training takes it, dropout (if any) included.

    `double`: in float64, in which two orders of a sum differ by nothing that a wrong gradient could hide behind.
    """
    detector, data = DistortionDetector.from_checkpoint(config), training_data(config)
    names = set_trainable(detector, stage_name)
    detector.train()
    if double:
        detector.double()
    stages = {s.name: s for s in plan_stages(config, len(data), accelerator.process_index, accelerator.num_processes)}
    sampler = stages[stage_name].sampler
    batches = list(make_loader(data, detector.text, sampler.flat(step, step + 1), 0))
    if double:
        batches = [{k: v.double() if _is_float(v) else v for k, v in batch.items()} for batch in batches]
    model = accelerator.prepare(detector)
    with as_double() if double else contextlib.nullcontext():
        losses = GlobalStep(config, accelerator, detector, model)(batches, sampler.images_in_step(step), (1, step))
    accelerator.free_memory()
    parameters, buffers = dict(detector.named_parameters()), dict(detector.named_buffers())
    found = {name: parameters[name].grad for name in names}
    found |= {name: buffer.clone() for name, buffer in buffers.items() if "running" in name}
    return found | {"losses": accelerator.reduce(losses, "sum")}


def _is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@contextlib.contextmanager
def as_double():
    """Within the block the losses and heads, which ask for float32 whatever autocast does, get float64."""
    default, single = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.float = single


def case_name(stage: str, accumulate: int, step: int, changes: dict) -> str:
    return "-".join([stage, str(accumulate), str(step), *map(str, changes.values())])


def everything(config_path: str, cases: list, folder: str) -> int:
    """All that two processes must do like one; files for the test to compare."""
    config, folder = Experiment.from_yaml(config_path), Path(folder)
    accelerator = make_accelerator(config)
    for stage, accumulate, step, changes in cases:
        own = Experiment.from_dict({**config.to_dict(), "accumulate_step": accumulate, **changes})
        found = step_gradients(own, accelerator, stage, step, double=True)
        if rank() == 0:
            name = case_name(stage, accumulate, step, changes)
            save_file({k: v.contiguous() for k, v in found.items()}, folder / f"{name}.safetensors")
    _batch_norm(folder)
    _gather()
    _predict(config, folder)
    run = training.train(Experiment.from_dict({**config.to_dict(), "experiment_name": "trained", "val_iter": 1}))
    assert (run / "finished.json").is_file() or rank()
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _batch_norm(folder: Path) -> None:
    """Rank 0 has 3 rows, rank 1 has 2; then rank 1 has none, then there is a single one in all."""
    for number, counts in enumerate([(3, 2), (4, 0), (1, 0)]):
        rows = torch.randn(sum(counts), 6, generator=torch.Generator().manual_seed(number)) * 3 + 1
        weights = torch.randn(sum(counts), 6, generator=torch.Generator().manual_seed(9))
        mine = slice(0, counts[0]) if rank() == 0 else slice(counts[0], None)
        plain, ours = nn.BatchNorm1d(6), GlobalBatchNorm1d(6)
        if number == 2:
            plain.eval()  # one row has no variance
        whole, part = rows.clone().requires_grad_(), rows[mine].clone().requires_grad_()
        expected, found = plain(whole), ours(part)
        torch.testing.assert_close(found, expected[mine], rtol=1e-6, atol=1e-6)
        (expected * weights).sum().backward()
        (found * weights[mine]).sum().backward()
        if number < 2:
            torch.testing.assert_close(part.grad, whole.grad[mine], rtol=1e-5, atol=1e-6)
        scale = ours.weight.grad
        dist.all_reduce(scale)
        torch.testing.assert_close(scale, plain.weight.grad, rtol=1e-5, atol=1e-5)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-6, atol=1e-6)
    (folder / f"batch_norm_{rank()}").touch()


def _gather() -> None:
    own = torch.full((1 + rank(), 2), float(rank()), requires_grad=True)
    rows = gather_rows(own)
    assert rows.tolist() == [[0, 0], [1, 1], [1, 1]]
    (rows * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert own.grad.tolist() == ([[1, 1]] if rank() == 0 else [[2, 2], [3, 3]])


def _predict(config: Experiment, folder: Path) -> None:
    written, write = [], growing.write_heatmap
    growing.write_heatmap = lambda path, heatmap: (written.append(path.stem), write(path, heatmap))
    detector = DistortionDetector.from_checkpoint(config)
    predict(detector, LabelStore(Path(config.data_path) / "train"), folder / "predicted", batch_size=5)
    (folder / f"written_{rank()}.json").write_text(json.dumps(written))


def training_that_breaks(config_path: str, how: str) -> int:
    """`python -m lib.train`, but in the third update rank 1 goes wrong."""
    update = training.Run._update

    def broken(run, *arguments):
        if rank() == 1 and run.step == 2:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise ZeroDivisionError("rank 1 has divided by zero")
        return update(run, *arguments)

    training.Run._update = broken
    assert world_size() == 1  # the processes find each other in train()
    return main([config_path])


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
