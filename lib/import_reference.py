"""A checkpoint of the published 2nd-place solution (`last.pth`) as a run of this kit with equal outputs.

`python -m lib.import_reference last.pth theirs` writes `runs/theirs`, which notebooks 3 to 6 open. The file's names are
those of github.com/mightycatty/AIGC_imagery_distortion_detection (`model/model_final.py`); LoRA adapters are merged,
since its recipe trains the base as well.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.config import Experiment
from lib.errors import InputError, command
from lib.files import what_it_is
from lib.model import DistortionDetector
from lib.model.encoders.backbone import empty_backbone, resolve_checkpoint
from lib.model.weights import load_weights
from lib.train.checkpoint import write_finished
from lib.yaml_files import parse_value

# Theirs -> ours, each rule after those above it.
NAMES = [
    (r"^florence2\.base_model\.model\.", "florence2."),  # around a network with adapters
    (r"^florence2\.encoder\.", "encoder.text_encoder."),
    (r"^florence2\.model\.vision_tower\.", "encoder.vision_tower."),
    (r"^florence2\.model\.image_projection$", "encoder.multi_modal_projector.image_projection.weight"),
    (r"^florence2\.model\.image_pos_embed\.", "encoder.multi_modal_projector.image_position_embed."),
    (r"^florence2\.model\.", "encoder.multi_modal_projector."),
    # Inside the vision tower, whose modules native transformers names otherwise.
    (r"^(encoder\.vision_tower\.convs\.\d+)\.proj\.", r"\1.conv."),
    (r"\.(conv[12])\.fn\.dw\.", r".\1."),
    (r"\.(window|channel)_attn\.norm\.", ".norm1."),
    (r"\.(window|channel)_attn\.fn\.", r".\1_attn."),
    (r"\.ffn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.net\.", ".ffn."),
    (r"^heatmap_predictor\.conv_layers\.([01])\.", r"mask_head.fuse.0.\1."),
    (r"^heatmap_predictor\.conv_layers\.3\.", "mask_head.fuse.1.0."),
    (r"^heatmap_predictor\.conv_layers\.4\.", "mask_head.fuse.1.1."),
    (r"^heatmap_predictor\.deconv_layers\.(\d+)\.0\.", r"mask_head.up.\1.conv."),
    (r"^heatmap_predictor\.deconv_layers\.(\d+)\.2\.", r"mask_head.up.\1.norm."),
    (r"^heatmap_predictor\.final_layers\.0\.", "mask_head.out."),
    (r"^score_predictor\.conv_layers\.", "score_head.convs."),
    (r"^score_predictor\.fc_layers\.", "score_head.mlp."),
]
EMBEDDING = "encoder.text_encoder.embed_tokens.weight"
SIDE = 768  # pixels: the published network has its 24x24 map hard-wired


def import_checkpoint(file, run: str, **given) -> Path:
    """Write the run of a reference checkpoint; returns its folder, `runs/<run>`.

    Args:
        file: `{"model": state_dict}` as `torch.save` writes it; nothing but tensors and plain containers is read.
        given: parameters of the run. `checkpoint` (hub id or folder) gives the encoder's config.json and tokenizer, no
            weights; what the file tells by its names and shapes (heads, LoRA) need not be given.
    Raises InputError for a file of another kind, weights that do not fit, and a run that is there already.
    """
    theirs = read_checkpoint(file)
    config = Experiment.from_dict({**_recognised(theirs, file), **given, "experiment_name": run})
    if config.folder.exists():
        raise InputError(f"{config.folder} exists; delete it or give another RUN")
    weights = merged(renamed(theirs), config.lora_alpha)
    words = weights[EMBEDDING]
    encoder, tokenizer = empty_backbone(resolve_checkpoint(config.checkpoint)[0], config.model, rows=len(words))
    # Rows that only the checkpoint's vocabulary has are 0 and unused.
    weights[EMBEDDING] = F.pad(words, (0, 0, 0, encoder.config.text_config.vocab_size - len(words)))
    detector = DistortionDetector(config, encoder, tokenizer)
    load_weights(detector, weights, file)
    detector.save_pretrained(config.folder / "model")
    config.save(config.folder / "config.yaml")
    write_finished(config.folder, detector, imported=str(file), steps=0, seconds=0.0, images=0)
    return config.folder


def read_checkpoint(file) -> dict[str, Tensor]:
    """The state dict of a reference checkpoint, unpickled by torch's restricted loader."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler and zip reader raise
        reason = str(error).split("\n")[0]
        known = what_it_is(file) or " Give a file saved by torch.save that holds tensors and plain containers only."
        raise InputError(f"{file} cannot be read as a checkpoint ({reason}).{known}") from None
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f'{file} holds no {{"model": tensors by name}}; give the last.pth that the reference wrote')
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _recognised(theirs: dict[str, Tensor], file) -> dict:
    """The parameters that names and shapes tell."""
    try:
        width, incoming = theirs["heatmap_predictor.conv_layers.0.weight"].shape[:2]
        levels = len(theirs["heatmap_predictor.final_layers.0.weight"])
        read = theirs["score_predictor.fc_layers.0.weight"].shape[1]
        rated = len(theirs["score_predictor.fc_layers.6.weight"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{file} lacks {error}: it is no checkpoint of the reference's florence2") from None
    mask = "last" if incoming == width else "concat" + "_cls" * (levels > 1)
    score = "linear" + "2" * (read == 2 * width) + "_cls" * (rated > 1)
    if "score_predictor.conv_layers.0.0.weight" in theirs:
        score = "conv"
    return {
        "model": "florence2", "input_size": SIDE, "mask_size": SIDE, "mask_stride": 1, "mask_norm": "batch",
        "align_corners": True, "text_padding": "max_length", "resampling": "lanczos",
        "mask_head": mask, "score_head": score,
    }  # fmt: skip


def renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in float32 under our names."""
    ours = {}
    for name, value in theirs.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        value = value.float() if value.is_floating_point() else value
        ours[name] = value.T if name.endswith("image_projection.weight") else value
    return ours


def merged(weights: dict[str, Tensor], alpha: int) -> dict[str, Tensor]:
    """Adapters added into their layers, rank-stabilised: W + alpha / sqrt(r) B A."""
    sums = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    for name, a in weights.items():
        if ".lora_A." in name:
            layer, b = name.split(".lora_A.")[0] + ".weight", weights[name.replace(".lora_A.", ".lora_B.")]
            sums[layer] = sums[layer] + alpha / len(a) ** 0.5 * (b.flatten(1) @ a.flatten(1)).view_as(sums[layer])
    return sums


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.import_reference", description=__doc__.split("\n")[0])
    parser.add_argument("file", help="the reference's last.pth")
    parser.add_argument("run", help="name of the run to write in runs/")
    parser.add_argument("parameters", nargs="*", help="name=value, such as checkpoint=/folder/with/config.json")
    options = parser.parse_args(arguments)
    given = {name: parse_value(value) for name, _, value in (text.partition("=") for text in options.parameters)}
    print(f"{import_checkpoint(options.file, options.run, **given)} is a run now; evaluate it with notebook 3.")


if __name__ == "__main__":
    sys.exit(main())
