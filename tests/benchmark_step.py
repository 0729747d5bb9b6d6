"""What a training step spends beside its kernels: the measurements behind the table in data_cards/scale.md.

    python tests/benchmark_step.py    # a minute, less than 2 GB

Florence-2-large under heads of the recipe, without memory for its weights (torch's meta device): host work does not
depend on what the weights are. Medians of interleaved repetitions; bytes and waits follow from counting.
"""

import statistics
import time

import torch
from florence2_sizes import LARGE
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Florence2Config

from lib.config import Experiment
from lib.model.detector import DistortionDetector
from lib.model.encoders.backbone import SHIPPED, load_tokenizer
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.lora import own_weights, set_trainable

REPETITIONS = 15
RANKS = 8
LORA_0 = {"lora_rank": 128, "lora_dropout": 0.0}
# Two gatherings that read a count for each rank and compare them, known scores and plcc, two norms, the losses.
WAITS_BEFORE = 2 * 2 * RANKS + 3 + 2 + 1
WAITS_NOW = 2  # the losses; transformers looks whether an attention mask hides anything


def detector_on_meta(**changes) -> DistortionDetector:
    with torch.device("meta"):
        encoder = Florence2Encoder(Florence2Config(**LARGE))
        detector = DistortionDetector(Experiment(**changes), encoder, load_tokenizer(SHIPPED / "florence2-tiny", 51289))
    set_trainable(detector, "main")
    return detector


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
    detector, parts = detector_on_meta(**changes), {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        detector.to_empty(device="cpu").train()
        own = {p.untyped_storage()._cdata for p in detector.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            parts[storage._cdata] = storage  # held, so that no other one gets its address
            return tensor

        text = torch.ones(1, 64, dtype=torch.int64)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            detector(torch.zeros(1, 3, 768, 768), text, text)
    return sum(storage.nbytes() for key, storage in parts.items() if key not in own) / 1e9


def main() -> None:
    print("| host work a step, ms of one CPU core | full | LoRA rank 128 |\n|---|---|---|")
    found = [host_work(detector_on_meta(lora_rank=rank)) for rank in (0, 128)]
    for what in found[0]:
        cells = [f"{before:.1f} -> {after:.2f}" for before, after in (one[what] for one in found)]
        print(f"| {what} | " + " | ".join(cells) + " |")
    weights = sum(p.numel() for p in detector_on_meta().parameters())
    print(f"\n{weights / 1e6:.0f} M trained weights; bytes of memory traffic a step, counted:")
    print(f"- scaling gradients by 1 for an infinite bound: {2 * 4 * weights / 1e9:.1f} GB, now none")
    # A fused step reads weight, gradient and two moments and writes three; the list of operations it replaces does
    # ten passes more (decay, two lerps and squares, root, division, addition).
    print(f"- AdamW: {7 * 4 * weights / 1e9:.0f} GB fused, {20 * 4 * weights / 1e9:.0f} GB as single operations")
    for name, changes in {"full": {}, "LoRA": {"lora_rank": 128}, "LoRA without dropout": LORA_0}.items():
        print(
            f"- {name} keeps {kept(False, **changes):.2f} GB of an image in fp32, {kept(True, **changes):.2f} in bf16"
        )
    print(f"- waits for the device at {RANKS} ranks: {WAITS_BEFORE} before, {WAITS_NOW} now (tests/test_training.py)")


if __name__ == "__main__":
    main()
