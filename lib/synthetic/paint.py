"""Painting: patches (outline + texture) onto a pair of canvases, one sound and one damaged."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from lib.synthetic.materials import Material

FRACTION = 4  # bits of sub-pixel precision for OpenCV's polygon routines


@dataclass(frozen=True)
class Patch:
    """One painted shape.

    tags: names of the parts it belongs to, the narrowest first ("left hand", "left arm").
    outline: float32 [N, 2]. angle: of the texture, radians.
    when: "both", "sound" or "damaged", the canvases it is painted on.
    stump: what is left of it when its part is missing. line: thickness of the contour, 0 for none.
    """

    tags: tuple[str, ...]
    outline: np.ndarray
    material: Material
    angle: float = 0.0
    anchor: tuple[float, float] = (0.0, 0.0)
    shade: float = 0.3
    line: float = 1.0
    when: str = "both"
    stump: np.ndarray | None = None

    def moved(self, matrix: np.ndarray, **changes) -> "Patch":
        """The patch under a 2x3 affine matrix (a turn and a shift)."""
        outline = (self.outline @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
        anchor = tuple(matrix[:, :2] @ np.asarray(self.anchor) + matrix[:, 2])
        angle = self.angle + np.arctan2(matrix[1, 0], matrix[0, 0])
        return replace(self, outline=outline, anchor=anchor, angle=angle, **changes)


@dataclass
class Group:
    """A figure or an object: patches in painting order.

    pivots: part -> the joint about which a copy of it turns. fusable: pairs of parts that can grow together.
    hands: part -> a function of the number of fingers that gives the patches of such a hand.
    """

    name: str
    words: str
    patches: list[Patch]
    pivots: dict[str, tuple[float, float]] = field(default_factory=dict)
    limbs: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    textured: tuple[str, ...] = ()
    fusable: tuple[tuple[str, str], ...] = ()
    hands: dict[str, Callable[[int], list[Patch]]] = field(default_factory=dict)

    @property
    def figure(self) -> bool:
        return self.name in ("man", "woman", "boy", "girl")

    def of(self, part: str) -> list[Patch]:
        """The patches of a part."""
        return [patch for patch in self.patches if part in patch.tags]

    def mask(self, part: str, shape: tuple[int, int]) -> np.ndarray:
        """The area of a part on the damaged canvas, uint8 [H, W] of 0 and 255."""
        mask = np.zeros(shape, np.uint8)
        for patch in self.of(part):
            if patch.when != "sound":
                cv2.fillPoly(mask, [fixed(patch.outline)], 255, cv2.LINE_8, FRACTION)
        return mask


def fixed(outline: np.ndarray) -> np.ndarray:
    """Outline in OpenCV's fixed-point coordinates, int32."""
    return np.round(outline * (1 << FRACTION)).astype(np.int32)


def paint(patch: Patch, canvases: list[np.ndarray], light: float, alpha=None) -> None:
    """Paint a patch onto each uint8 RGB canvas [H, W, 3] in place.

    Args:
        light: -1 (from the right) .. 1 (from the left).
        alpha: uint8 [H, W] that collects the cover of the group.
    """
    height, width = canvases[0].shape[:2]
    low = np.floor(patch.outline.min(axis=0)).astype(int) - 2
    high = np.ceil(patch.outline.max(axis=0)).astype(int) + 3
    x0, y0, x1, y1 = max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height)
    if x0 >= x1 or y0 >= y1:
        return
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    points = fixed(patch.outline - (x0, y0))
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, FRACTION)
    colour = _texture(patch, x0, y0, mask.shape)
    if patch.shade:
        shading = _shading(mask, patch.shade, light)
        colour = cv2.multiply(colour, cv2.merge([shading] * 3), dtype=cv2.CV_8U)
    if patch.line:
        edge = [float(c) for c in patch.material.colour * 0.42]
        cv2.polylines(colour, [points], True, edge, max(1, int(round(patch.line))), cv2.LINE_AA, FRACTION)
    cover = mask.astype(np.float32) / 255
    for canvas in canvases:
        region = canvas[y0:y1, x0:x1]
        region[:] = cv2.blendLinear(colour, region, cover, 1 - cover)
    if alpha is not None:
        np.maximum(alpha[y0:y1, x0:x1], mask, out=alpha[y0:y1, x0:x1])


def _texture(patch: Patch, x0: int, y0: int, shape) -> np.ndarray:
    tile, (height, width) = patch.material.tile, shape
    if patch.material.flat:  # in rows, which NumPy repeats faster than pixels of three bytes
        return np.tile(np.tile(tile[0, 0], width), (height, 1)).reshape(height, width, 3)
    dx, dy = x0 - patch.anchor[0], y0 - patch.anchor[1]
    if patch.angle == 0 and dx % 1 == dy % 1 == 0:  # nothing to interpolate
        rows, columns = np.arange(height) + int(dy), np.arange(width) + int(dx)
        return tile.take(rows, axis=0, mode="wrap").take(columns, axis=1, mode="wrap")
    cos, sin = np.cos(patch.angle), np.sin(patch.angle)
    inverse = np.array([[cos, sin, cos * dx + sin * dy], [-sin, cos, -sin * dx + cos * dy]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tile, inverse, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP)


def _shading(mask: np.ndarray, strength: float, light: float) -> np.ndarray:
    # A box blur whose window lies on the side away from the light: the far edge fades into shadow.
    size = int(np.clip(min(mask.shape) * 0.45, 3, 61))
    x = size - 1 if light < 0 else 0
    inside = cv2.blur(mask, (size, size), anchor=(x, size // 3), borderType=cv2.BORDER_REPLICATE)
    return (1 + 0.25 * strength) - strength * (1 - inside.astype(np.float32) / 255) * 1.15
