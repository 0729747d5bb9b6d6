"""Images and heatmaps between their own size and the network's."""

import cv2
import numpy as np
import torch
from torch import Tensor

# The statistics of Florence-2's own image processor (ImageNet).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SCALE = 1 / (255 * torch.tensor(STD))[:, None, None]
SHIFT = (-torch.tensor(MEAN) / torch.tensor(STD))[:, None, None]


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


def to_pixels(image: np.ndarray, side: int) -> Tensor:
    """uint8 RGB [H, W, 3] -> normalised float32 [3, side, side]; the aspect ratio is not kept, as in the reference."""
    resized = resize(image, side, side, grow=cv2.INTER_CUBIC)
    # (x / 255 - mean) / std as one product and one sum, in place, on planes that lie together in memory.
    planes = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))).float()
    return planes.mul_(SCALE).add_(SHIFT)
