"""Colours and textures: a material is a small tile that repeats seamlessly in both directions."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

COLOURS = {
    "red": (201, 62, 60), "coral": (238, 122, 98), "orange": (232, 138, 52), "mustard": (222, 174, 62),
    "olive": (124, 132, 66), "green": (70, 140, 92), "mint": (150, 208, 178), "teal": (38, 132, 138),
    "sky blue": (118, 178, 222), "blue": (58, 104, 186), "navy": (38, 52, 98), "purple": (118, 82, 158),
    "lilac": (188, 166, 216), "pink": (236, 156, 180), "brown": (122, 82, 58), "beige": (222, 200, 168),
    "cream": (250, 240, 220), "white": (246, 246, 244), "grey": (142, 148, 156), "charcoal": (58, 60, 70),
}  # fmt: skip
CLOTH_COLOURS = tuple(name for name in COLOURS if name not in ("white", "cream", "beige", "grey"))
PATTERNS = {
    "shown": ("striped", "pinstriped", "diagonally striped", "checked", "plaid", "polka dot", "grid patterned",
              "diamond patterned"),
    "shifted": ("zigzag", "leopard spotted", "scale patterned"),
}  # fmt: skip


@dataclass(frozen=True)
class Material:
    """A repeating texture: `tile` uint8 RGB [T, T', 3] in canvas pixels; `words` describe it in a prompt."""

    tile: np.ndarray
    words: str = ""
    flat: bool = False

    @cached_property
    def colour(self) -> np.ndarray:
        """The mean colour, float [3]."""
        return self.tile.reshape(-1, 3).mean(axis=0)


def plain(colour, words: str = "") -> Material:
    """A material of one colour (RGB 0..255)."""
    return Material(np.full((4, 4, 3), np.clip(colour, 0, 255), dtype=np.uint8), words, flat=True)


def luminance(colour) -> float:
    """Perceived brightness of an RGB colour, 0..255 (Rec. 601 weights)."""
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def cloth(rng: np.random.Generator, period: float, domain: str = "shown", avoid=()) -> Material:
    """A strongly patterned cloth in two contrasting colours.

    Args:
        period: repeat of the pattern in canvas pixels.
        domain: "shifted" draws from patterns that "shown" never uses.
        avoid: colour names already worn.
    """
    name = str(rng.choice([c for c in CLOTH_COLOURS if c not in avoid]))
    base = COLOURS[name]
    others = [c for c in COLOURS.values() if abs(luminance(c) - luminance(base)) > 75]
    bright = [COLOURS[c] for c in ("white", "cream") if abs(luminance(COLOURS[c]) - luminance(base)) > 75]
    second = bright[rng.integers(len(bright))] if bright and rng.random() < 0.6 else others[rng.integers(len(others))]
    pattern = str(rng.choice(PATTERNS[domain]))
    return Material(pattern_tile(pattern, base, second, period), f"{pattern} {name}")


def pattern_tile(pattern: str, base, second, period: float) -> np.ndarray:
    """One seamless tile uint8 [T, T, 3] of a named pattern with the given repeat (canvas pixels)."""
    side = max(6, int(round(period)))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side  # one period in 0..1
    cover = _COVER[pattern](x, y)
    soft = np.clip(cover * side / 2.5 + 0.5, 0, 1)[..., None]  # edge about two pixels wide
    tile = np.asarray(base) * (1 - soft) + np.asarray(second) * soft
    if pattern == "plaid":
        line = np.clip((0.05 - np.minimum(abs(x - 0.75), abs(y - 0.75))) * side / 2 + 0.5, 0, 1)[..., None]
        tile = tile * (1 - 0.6 * line) + np.asarray(second) * 0.6 * line
    return np.clip(tile, 0, 255).astype(np.uint8)


def _wave(t):
    return abs((t % 1) - 0.5)  # 0.5 at whole numbers, 0 half-way


def _plaid(x, y):
    # Where one band crosses the yarn is half mixed, where both cross it is full: soft levels, not edges.
    return np.where(x < 0.5, 0.02, -0.02) + np.where(y < 0.5, 0.02, -0.02) - 0.005


def _leopard(x, y):
    best = np.full_like(x, -1.0)
    for cx, cy, r, gap in ((0.25, 0.28, 0.2, 0.6), (0.75, 0.72, 0.22, 2.4), (0.74, 0.2, 0.15, 4.0),
                           (0.22, 0.78, 0.15, 5.2)):  # fmt: skip
        dx, dy = (x - cx + 0.5) % 1 - 0.5, (y - cy + 0.5) % 1 - 0.5
        ring = 0.055 - abs(np.hypot(dx * 1.15, dy) - r * 0.8)
        opening = np.cos(np.arctan2(dy, dx) - gap) * 0.1 - 0.07
        best = np.maximum(best, np.minimum(ring, -opening))
    return best


def _scales(x, y):
    upper = 0.07 - abs(np.hypot(x - 0.5, y) - 0.5)
    left = 0.07 - abs(np.hypot((x + 0.5) % 1 - 0.5, y - 0.5) - 0.5)
    return np.where(y < 0.5, np.maximum(upper, -1), np.maximum(left, -1))


_COVER = {
    "striped": lambda x, y: _wave(y) - 0.25,
    "pinstriped": lambda x, y: _wave(x) - 0.34,
    "diagonally striped": lambda x, y: _wave(x + y) - 0.25,
    "checked": lambda x, y: np.where((x < 0.5) ^ (y < 0.5), 0.25, -0.25),
    "plaid": _plaid,
    "polka dot": lambda x, y: np.maximum(0.2 - np.hypot(x - 0.25, y - 0.25), 0.2 - np.hypot(x - 0.75, y - 0.75)),
    "grid patterned": lambda x, y: np.maximum(_wave(x), _wave(y)) - 0.38,
    "diamond patterned": lambda x, y: 0.36 - abs(x - 0.5) - abs(y - 0.5),
    "zigzag": lambda x, y: _wave(y + abs(x - 0.5) * 1.0) - 0.25,
    "leopard spotted": _leopard,
    "scale patterned": _scales,
}


def planks(colour, period: float, contrast: float = 0.14, vertical: bool = False) -> Material:
    """Wood: boards of `period` pixels with slightly different tones and dark seams."""
    side = max(8, int(period))
    tones = 1 + contrast * np.array([0.4, -0.5, 0.1, -0.15])
    rows = np.repeat(tones, side)[:, None] * np.ones((1, side * 2))
    rows[::side] *= 0.72
    along, across = np.arange(side * 2)[None, :], np.arange(side * 4)[:, None]
    grain = 1 + 0.05 * np.sin(along * 2 * np.pi / side) * np.sin(across * 1.9)
    tile = np.clip((rows * grain)[..., None] * np.asarray(colour), 0, 255).astype(np.uint8)
    return Material(np.ascontiguousarray(tile.transpose(1, 0, 2)) if vertical else tile)


def bricks(colour, mortar, period: float) -> Material:
    """A brick bond: rows of `period` pixels, every second row shifted by half a brick."""
    h = max(6, int(period))
    w = 2 * h
    tile = np.empty((2 * h, w, 3), np.uint8)
    tile[:] = np.clip(colour, 0, 255)
    tile[h:, : w // 2] = np.clip(np.asarray(colour) * 0.92, 0, 255)
    joint = max(1, h // 8)
    for top, shift in ((0, 0), (h, w // 2)):
        cv2.rectangle(tile, (0, top), (w, top + joint - 1), [float(c) for c in mortar], -1)
        cv2.rectangle(tile, (shift, top), (shift + joint - 1, top + h), [float(c) for c in mortar], -1)
    return Material(tile)


def strands(colour, period: float) -> Material:
    """Hair: fine upright waves in two near tones."""
    side = max(4, int(period))
    wave = 1 + 0.16 * np.sin(np.arange(side) * 2 * np.pi / side)
    tile = np.clip(wave[None, :, None] * np.asarray(colour), 0, 255) * np.ones((side, 1, 1))
    return Material(tile.astype(np.uint8))
