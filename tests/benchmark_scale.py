"""What a training step costs by geometry: the measurements behind data_cards/scale.md.

    python tests/benchmark_scale.py                  # every row, about ten minutes and 19 GB
    python tests/benchmark_scale.py base base-lora  # some of them

Random weights, one image at 768 px, one process. Operations and the bytes that the backward pass keeps do not depend on
the machine; seconds and peak memory do.
"""

import json
import resource
import sys
import time

import torch
from benchmarking import detector_of, in_own_process, kept_bytes
from florence2_sizes import BASE, LARGE
from torch.utils.flop_counter import FlopCounterMode

from lib.model.losses import mask_loss, score_loss

SIDE = 768
# Their backward passes need more memory on a CPU than a machine of 24 GB has; of the warm-up what it keeps is enough.
FORWARD_ONLY = ("large", "large-lora", "large-warmup")
ROWS = {
    "base": (BASE, {}),
    "base-checkpointing": (BASE, {"gradient_checkpointing": True}),
    "base-stride8": (BASE, {"mask_stride": 8}),
    "base-lora": (BASE, {"lora_rank": 8}),
    "large": (LARGE, {}),
    "large-checkpointing": (LARGE, {"gradient_checkpointing": True}),
    "large-warmup": (LARGE, {}),
    "large-lora": (LARGE, {"lora_rank": 128}),
    "large-lora-checkpointing": (LARGE, {"gradient_checkpointing": True, "lora_rank": 128}),
}
COLUMNS = {
    "parameters M": ("parameters", 1e6, 0), "trained M": ("trained", 1e6, 1), "kept fp32 GB": ("kept_fp32", 1e9, 2),
    "kept bf16 GB": ("kept_bf16", 1e9, 2), "s a step": ("step_seconds", 1, 1), "peak GB": ("peak_bytes", 1e9, 1),
    "TFLOP a prediction": ("prediction_operations", 1e12, 2), "s a prediction": ("prediction_seconds", 1, 1),
}  # fmt: skip


def loss_of(detector, batch):
    heatmap, score = detector(**batch)
    target = torch.zeros_like(heatmap, dtype=torch.float32)
    return mask_loss("dice-mse")(heatmap, target).sum() + score_loss("mse")(score, torch.tensor([0.5]))


def seconds_of_a_step(detector, batch, trained) -> float:
    """Median of three optimizer steps of one image."""
    optimizer, seconds = torch.optim.AdamW(trained, lr=1e-5), []
    for _ in range(3):
        started = time.perf_counter()
        loss_of(detector, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[1]


def measure(name: str) -> dict:
    """One row, in this process."""
    geometry, changes = ROWS[name]
    stage = "warmup" if name.endswith("warmup") else "main"
    detector = detector_of(geometry, stage, input_size=SIDE, mask_size=SIDE, **changes)
    batch = {"pixel_values": torch.randn(1, 3, SIDE, SIDE), **detector.text(["a woman waving beside a wooden chair"])}
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    found = {
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "trained": sum(parameter.numel() for parameter in trained),
    }
    for precision in ("fp32", "bf16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), kept_bytes(detector) as kept:
            loss_of(detector, batch)
        found[f"kept_{precision}"] = kept[0]
    if name not in FORWARD_ONLY:
        found["step_seconds"] = seconds_of_a_step(detector, batch, trained)
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    detector.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        detector(**batch)  # not the backward pass: the counter forgets there that depthwise convolutions have groups
    found["prediction_operations"] = counter.get_total_flops()
    with torch.inference_mode():
        started = time.perf_counter()
        detector(**batch)
        found["prediction_seconds"] = time.perf_counter() - started
    return found


def main(names: list[str]) -> None:
    """Measure every row in a process of its own and print them as a table."""
    print("| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (1 + len(COLUMNS)) + "|")
    for name in names or ROWS:
        found = in_own_process(__file__, "--row", name)
        cells = [f"{found[key] / unit:.{digits}f}" if key in found else "-" for key, unit, digits in COLUMNS.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(sys.argv[1:])
