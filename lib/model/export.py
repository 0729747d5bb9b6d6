"""A trained detector for other programs: a differentiable call on image tensors, and an exported graph.

`data_cards/reward_and_export.md` shows both, and says what a detector as a reward is not.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import InputError
from lib.files import replacing, writing
from lib.model.detector import DistortionDetector

INPUTS = ("pixel_values", "input_ids", "attention_mask")


def detect(detector: DistortionDetector, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] in 0..1 and their prompts -> heatmap [B, *mask_shape] in 0..1, score [B] (1 is sound).

    Gradients reach the pixels, whatever the images' size, device and floating point type; the detector stays where and
    as it is, so call `eval()` and `requires_grad_(False)` on it for a reward. The images are resized to `input_shape`
    with an antialiased bilinear filter (`predict` takes area averages, which differ by a grey level or two).
    Raises InputError for images of another shape, or when the prompts are not as many.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(f"images are {images.dtype} {list(images.shape)}; give floats [B, 3, H, W] in 0..1")
    if isinstance(prompts, str) or len(prompts) != len(images):
        raise InputError(f"{len(images)} images need a list of as many prompts; an empty text stands for none")
    shape = detector.config.input_shape
    images = images.to(detector.device, torch.float32)
    if images.shape[-2:] != shape:
        images = F.interpolate(images, shape, mode="bilinear", antialias=True)
    text = {name: tokens.to(detector.device) for name, tokens in detector.text(prompts).items()}
    return detector(images, **text)


def export_graph(detector: DistortionDetector) -> torch.export.ExportedProgram:
    """The detector as `torch.export` sees it: any number of images of `input_shape` and of tokens.

    It takes pixel_values float32 [B, 3, *input_shape] in 0..1, input_ids and attention_mask int64 [B, T] (which
    `detector.text(prompts)` makes) and returns heatmap [B, *mask_shape] and score [B]. Adapters are merged (in place).
    """
    detector = detector.merged().eval()
    example = torch.zeros(2, 3, *detector.config.input_shape, device=detector.device)
    text = [tokens.to(detector.device) for tokens in detector.text(["a", "a longer prompt"]).values()]
    any_size = torch.export.Dim.DYNAMIC
    sizes = ({0: any_size}, {0: any_size, 1: any_size}, {0: any_size, 1: any_size})
    with torch.no_grad():
        return torch.export.export(detector, (example, *text), dynamic_shapes=sizes)


def export_onnx(detector: DistortionDetector, path) -> Path:
    """Write the graph of `export_graph` as ONNX; returns the path. It takes minutes, and no input but its own.

    The inputs are named as INPUTS, the outputs heatmap and score. Weights above 2 GiB lie in a file beside it.
    It needs `pip install -e ".[onnx]"`. Raises InputError when the file cannot be written.
    """
    path = Path(path)
    with writing(path.parent, "give another path or free some space"):
        path.parent.mkdir(parents=True, exist_ok=True)
        program = torch.onnx.export(export_graph(detector), input_names=INPUTS, output_names=("heatmap", "score"))
        with replacing(path) as part:
            program.save(part)
    return path
