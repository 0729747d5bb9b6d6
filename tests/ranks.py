"""What the processes of the distributed tests do; every function here runs in each of them."""

import contextlib
import math
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from lib.config import Experiment
from lib.data.dataset import make_loader, training_data
from lib.distributed import rank, world_size
from lib.model.detector import DistortionDetector
from lib.model.lora import set_trainable
from lib.train import loop as training
from lib.train.__main__ import main
from lib.train.accelerator import make_accelerator
from lib.train.schedule import plan_stages
from lib.train.step import GlobalStep


def step_gradients(
    config: Experiment, accelerator, stage_name: str, step: int, double: bool = False, training: bool = True,
    unknown: int = 0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Gradients, running statistics and losses of one step as training takes it, dropout (if any) included.

    `double`: in float64, in which two orders of a sum differ by nothing that a wrong gradient could hide behind.
    `unknown`: so many images of the step, the first ones, have no score.
    """
    detector, data = DistortionDetector.from_checkpoint(config), training_data(config)
    names = set_trainable(detector, stage_name)
    detector.train(training)
    if double:
        detector.double()
    stages = {s.name: s for s in plan_stages(config, len(data), accelerator.process_index, accelerator.num_processes)}
    sampler = stages[stage_name].sampler
    without = [key[1] for batch in sampler.micro_batches(step) for key in batch][:unknown]
    rows = [row | {"score": math.nan} if i in without else row for i, row in enumerate(data.entries.to_pylist())]
    data.entries = pa.Table.from_pylist(rows, data.entries.schema)
    batches = list(make_loader(data, detector.text, sampler.flat(step, step + 1), 0))
    if double:
        batches = [{k: v.double() if _is_float(v) else v for k, v in batch.items()} for batch in batches]
    model = accelerator.prepare(detector)
    with as_double() if double else contextlib.nullcontext():
        take_step = GlobalStep(config, accelerator, detector, model, data.scores())
        losses = take_step(batches, sampler.shares(step), (1, step))
    accelerator.free_memory()
    parameters, buffers = dict(detector.named_parameters()), dict(detector.named_buffers())
    found = {name: parameters[name].grad for name in names}
    found |= {name: buffer.clone() for name, buffer in buffers.items() if "running" in name or "tracked" in name}
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
    run = training.train(Experiment.from_dict({**config.to_dict(), "experiment_name": "trained", "val_iter": 1}))
    assert (run / "finished.json").is_file() or rank()
    dist.barrier()
    dist.destroy_process_group()
    return 0


def training_that_breaks(config_path: str, how: str) -> int:
    """`python -m lib.train`, but in the third update rank 1 goes wrong, or in the ninth all wait for a stop signal."""
    update = training.Run._update

    def broken(run, *arguments):
        while how == "wait" and run.step == 8 and not run.stop:
            time.sleep(0.01)
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
