"""Images and heatmaps between their own size and the network's."""

import cv2
import numpy as np


def resize(heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize [H, W] linearly, by area averages where a side shrinks to less than half: linear would skip pixels."""
    h, w = heatmap.shape
    if 2 * height >= h and 2 * width >= w:  # a sixth of the time of area averages
        return cv2.resize(heatmap, (width, height))
    return _by_area(heatmap, height, width, cv2.INTER_LINEAR)


def _by_area(image: np.ndarray, height: int, width: int, grow: int) -> np.ndarray:
    """Resize [H, W] or [H, W, C]; each side by area averages when it shrinks, by `grow` when it grows.

    Interpolating between distant pixels would alias stripes into something that looks like damage.
    """
    h, w = image.shape[:2]
    if height < h or width < w:
        image = cv2.resize(image, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    if height > h or width > w:
        image = cv2.resize(image, (width, height), interpolation=grow)
    return image


def resize_image(image: np.ndarray, height: int, width: int, resampling: str = "area") -> np.ndarray:
    """uint8 RGB [H, W, 3] -> uint8 [height, width, 3]; the aspect ratio is not kept, as in the reference.

    `resampling`: `area` averages where a side shrinks and interpolates by cubics where it grows; `lanczos` is Pillow's,
    as in the reference, but for rounding (one grey level, two in noise) and in a fifth of its time.
    """
    if resampling != "lanczos":
        return _by_area(image, height, width, cv2.INTER_CUBIC)
    import torch  # here and below: notebooks that prepare or look at images do without its seconds
    from torch.nn.functional import interpolate

    h, w = image.shape[:2]
    image = np.require(image, requirements=("C", "W"))  # torch warns of arrays that cannot be written
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    if height < h and width > w:  # then Pillow begins with the height
        planes = interpolate(planes, (height, w), mode="lanczos", antialias=True)
    planes = interpolate(planes, (height, width), mode="lanczos", antialias=True)
    return cv2.merge(list(planes[0].numpy()))


def to_planes(image: np.ndarray):
    """uint8 [H, W, 3] -> tensor, uint8 [3, H, W]."""
    import torch

    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)


def to_pixels(image: np.ndarray, shape: tuple[int, int], resampling: str = "area"):
    """uint8 RGB [H, W, 3] -> tensor, uint8 [3, *shape], what the detector reads."""
    return to_planes(resize_image(image, *shape, resampling))
