"""What a training step spends beside its kernels: measurements of the table in data_cards/scale.md.

    python tests/benchmark_step.py    # a minute, less than 2 GB

Florence-2-large under heads of the recipe, without memory for its weights (torch's meta device): host work does not
depend on what the weights are. Medians of interleaved repetitions; what autograd keeps is counted on fake tensors.
"""

import statistics
import time

import torch
from benchmarking import detector_of, kept_bytes
from florence2_sizes import LARGE
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from lib.model.lora import own_weights

REPETITIONS = 15


def median_ms(*works) -> list[float]:
    """Milliseconds of CPU time of each, measured in turn."""
    seconds = [[] for _ in works]
    for _ in range(REPETITIONS):
        for work, found in zip(works, seconds, strict=True):
            began = time.process_time()
            work()
            found.append(time.process_time() - began)
    return [1e3 * statistics.median(found) for found in seconds]


def host_work(detector) -> dict[str, tuple[float, float]]:
    """{what: (ms a step when every module is walked, ms on lists made once)}."""
    cached = own_weights(detector)
    statistics_of = [b for module in detector.modules() if isinstance(module, _BatchNorm) for b in module.buffers()]
    walks = median_ms(
        detector.train,
        lambda: [b.clone() for m in detector.modules() if isinstance(m, _BatchNorm) for b in m.buffers()],
        lambda: [b.clone() for b in statistics_of],
        lambda: [value for value in own_weights(detector).values() if value.is_floating_point()],
        lambda: list(cached.values()),
    )
    return {
        "`train()`": (walks[0], 0.0),
        "copies of running statistics": (walks[1], walks[2]),
        "collecting weights for `ema`": (walks[3], walks[4]),
    }


def kept(bf16: bool, **changes) -> float:
    """GB that autograd holds of one image at 768 px for the backward pass, without weights, on fake tensors."""
    detector, text = detector_of(LARGE, on_meta=True, **changes), torch.ones(1, 64, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True):
        detector.to_empty(device="cpu").train()
        with kept_bytes(detector) as total, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            detector(torch.zeros(1, 3, 768, 768), text, text)
    return total[0] / 1e9


def main() -> None:
    print("| host work a step, ms of one CPU core | full | LoRA rank 128 |\n|---|---|---|")
    found = [host_work(detector_of(LARGE, on_meta=True, lora_rank=rank)) for rank in (0, 128)]
    for what in found[0]:
        cells = [f"{before:.1f} -> {after:.2f}" for before, after in (one[what] for one in found)]
        print(f"| {what} | " + " | ".join(cells) + " |")
    print()
    rows = {"full": {}, "LoRA": {"lora_rank": 128}, "LoRA without dropout": {"lora_rank": 128, "lora_dropout": 0.0}}
    for name, changes in rows.items():
        single, half = kept(False, **changes), kept(True, **changes)
        print(f"- {name} keeps {single:.2f} GB of an image in fp32, {half:.2f} in bf16")


if __name__ == "__main__":
    main()
