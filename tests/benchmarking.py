"""What the benchmarks share: detectors of real size, what autograd keeps, processes of their own."""

import json
import subprocess
import sys
from contextlib import contextmanager

import torch
from transformers import Florence2Config

from lib.config import Experiment
from lib.model.detector import DistortionDetector
from lib.model.encoders.backbone import SHIPPED, load_tokenizer
from lib.model.encoders.encoder import recompute_activations
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.lora import set_trainable


def detector_of(geometry: dict, stage: str = "main", on_meta: bool = False, **changes) -> DistortionDetector:
    """Florence-2 of this geometry under heads of the recipe, as a stage trains it; with random weights, or on torch's
    meta device without memory for any."""
    config = Experiment(**changes)
    torch.manual_seed(0)
    with torch.device("meta"):
        encoder = Florence2Encoder(Florence2Config(**geometry))
    if not on_meta:
        encoder.to_empty(device="cpu")
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        for buffer in encoder.buffers():
            buffer.zero_()
    blocks = encoder.blocks
    with torch.device("meta" if on_meta else "cpu"):
        detector = DistortionDetector(config, encoder, load_tokenizer(SHIPPED / "florence2-tiny", 51289))
    if config.gradient_checkpointing:
        recompute_activations(detector, blocks)
    set_trainable(detector, stage)
    detector.train()
    detector.encoder.train(stage == "main")
    return detector


@contextmanager
def kept_bytes(detector):
    """Yields a list that at the end holds the bytes that autograd keeps, without parameters and buffers."""
    own = {tensor.untyped_storage()._cdata for tensor in detector.state_dict(keep_vars=True).values()}
    storages, total = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield total
    total.append(sum(storage.nbytes() for key, storage in storages.items() if key not in own))


def in_own_process(*arguments) -> dict:
    """What a program prints as JSON in its last line."""
    command = [sys.executable, *map(str, arguments)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])
