"""Images and heatmaps between their own size and the network's."""

import cv2
import numpy as np
import torch
from torch import Tensor

# Mean and standard deviation of the channels, by `model`, as each one's own image processor has them.
STATISTICS = {
    "florence2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
    "altclip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # CLIP
}


def resize(image: np.ndarray, height: int, width: int, grow: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Resize [H, W] or [H, W, C]; each side by area averages when it shrinks, by `grow` when it grows.

    Interpolating between distant pixels would alias stripes into something that looks like damage.
    """
    h, w = image.shape[:2]
    if height < h or width < w:
        image = cv2.resize(image, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    if height > h or width > w:
        image = cv2.resize(image, (width, height), interpolation=grow)
    return image


def to_pixels(image: np.ndarray, shape: tuple[int, int], model: str) -> Tensor:
    """uint8 RGB [H, W, 3] -> float32 [3, *shape], normalised; the aspect ratio is not kept, as in the reference."""
    resized = resize(image, *shape, grow=cv2.INTER_CUBIC)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[model])
    # (x / 255 - mean) / std as one product and one sum, in place, on planes that lie together in memory.
    planes = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))).float()
    return planes.mul_(1 / (255 * std)).add_(-mean / std)


def to_image(pixels: Tensor, model: str) -> np.ndarray:
    """The inverse of `to_pixels` but for the size: [3, H, W] -> uint8 RGB [H, W, 3]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[model])
    return ((pixels * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
