"""Distortions that move the pixels of a painted group."""

from dataclasses import dataclass

import cv2
import numpy as np

from lib.synthetic.damage import Damage
from lib.synthetic.paint import Group


@dataclass
class Layer:
    """A painted group in its surroundings; all arrays are changed in place.

    canvas: uint8 [H, W, 3], the picture. behind: the same without the group.
    alpha: uint8 [H, W], cover of the group. side: of the canvas, pixels.
    """

    canvas: np.ndarray
    behind: np.ndarray
    alpha: np.ndarray
    side: float


def distort(layer: Layer, group: Group, damage: Damage) -> None:
    """Carry out a damage of the kinds that move pixels; other kinds change nothing here."""
    if damage.kind not in _PIXELS:
        return
    rng = np.random.default_rng(damage.seed)
    mask = group.mask(damage.part, layer.alpha.shape)
    other = group.mask(damage.other, layer.alpha.shape) if damage.other else None
    if cv2.countNonZero(mask):
        _PIXELS[damage.kind](rng, layer, mask, damage.severity, other)


def _roi(mask: np.ndarray, margin: float) -> tuple[slice, slice]:
    x, y, w, h = cv2.boundingRect(mask)
    m = int(margin)
    return (slice(max(0, y - m), min(mask.shape[0], y + h + m)), slice(max(0, x - m), min(mask.shape[1], x + w + m)))


def _window(mask: np.ndarray, reach: float) -> np.ndarray:
    # 1 on the part, falling smoothly to 0 at about `reach` pixels outside of it.
    size = int(reach) | 1
    grown = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    return cv2.blur(cv2.blur(grown, (size, size)), (size // 2 | 1,) * 2).astype(np.float32) / 255


def _move(layer: Layer, roi, map_x: np.ndarray, map_y: np.ndarray, source_alpha: np.ndarray | None = None) -> None:
    """Redraw the group in `roi` with pixels from (map_x, map_y), absolute canvas coordinates, float32.

    With `source_alpha` (the cover of one part) the moved part is laid over the picture; without it the whole
    group is moved and what it leaves shows the background.
    """
    alpha = layer.alpha if source_alpha is None else source_alpha
    map_x, map_y = map_x.astype(np.float32), map_y.astype(np.float32)
    colour = cv2.remap(layer.canvas, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.remap(alpha, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    under = layer.canvas[roi] if source_alpha is not None else layer.behind[roi]
    share = cover.astype(np.float32)[..., None] / 255
    layer.canvas[roi] = under + (colour.astype(np.float32) - under) * share + 0.5
    if source_alpha is None:
        layer.alpha[roi] = cover
    else:
        np.maximum(layer.alpha[roi], cover, out=layer.alpha[roi])


def _grid(roi) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[roi].astype(np.float32)
    return x, y


def _warped(rng, layer, mask, severity, other) -> None:
    reach = layer.side * 0.05
    roi = _roi(mask, reach * 2)
    x, y = _grid(roi)
    window = _window(mask[roi], reach)
    length = layer.side * rng.uniform(0.13, 0.2)
    height = length * (0.13 + 0.14 * severity) * window
    phase = rng.uniform(0, 2 * np.pi, 2)
    k = 2 * np.pi / length
    map_x = x + height * np.sin(k * (y + 0.3 * x) + phase[0])
    map_y = y + height * 0.9 * np.sin(k * (x - 0.3 * y) + phase[1])
    _move(layer, roi, map_x, map_y)


def _twisted(rng, layer, mask, severity, other) -> None:
    reach = layer.side * 0.05
    roi = _roi(mask, reach * 2)
    x, y = _grid(roi)
    left, top, w, h = cv2.boundingRect(mask)
    cx, cy, radius = left + w / 2, top + h / 2, max(min(w, h) * 0.75, layer.side * 0.1)
    away = np.hypot(x - cx, y - cy) / radius
    turn = (1.6 + 2.2 * severity) * np.clip(1 - away, 0, 1) * rng.choice([-1, 1])
    map_x = cx + np.cos(turn) * (x - cx) - np.sin(turn) * (y - cy)
    map_y = cy + np.sin(turn) * (x - cx) + np.cos(turn) * (y - cy)
    _move(layer, roi, map_x, map_y)


def _melted(rng, layer, mask, severity, other) -> None:
    left, top, w, h = cv2.boundingRect(mask)
    drip = min(max(h * 0.75, layer.side * 0.1), layer.side * 0.3) * (0.45 + 0.75 * severity)
    roi = (slice(top, min(mask.shape[0], int(top + h + drip + 2))),
           slice(max(0, int(left - drip * 0.2)), min(mask.shape[1], int(left + w + drip * 0.2))))  # fmt: skip
    x, y = _grid(roi)
    start = top + h * rng.uniform(0.15, 0.35)
    width = layer.side * rng.uniform(0.05, 0.075)
    phase = rng.uniform(0, 2 * np.pi, 3)
    fall = 0.5 + 0.5 * np.sin(2 * np.pi * x / width + phase[0] + 1.2 * np.sin(2 * np.pi * x / (width * 3.1) + phase[1]))
    stretch = 1 + (0.12 + fall**2.2 * drip / (top + h - start)).astype(np.float32)
    depth = np.clip(y - start, 0, None)
    map_y = np.where(y > start, start + depth / stretch, y).astype(np.float32)
    sway = layer.side * 0.018 * np.clip(depth / (h * 0.4), 0, 1)
    map_x = (x + sway * np.sin(2 * np.pi * y / (layer.side * 0.13) + phase[2])).astype(np.float32)
    _move(layer, roi, map_x, map_y, source_alpha=mask)


def _scrambled(rng, layer, mask, severity, other) -> None:
    left, top, w, h = cv2.boundingRect(mask)
    cell = int(np.clip(min(w, h) / 2, layer.side * 0.045, layer.side * (0.1 - 0.02 * severity)))
    left, top = max(0, left), max(0, top)
    cells = [(y, x) for y in range(top, min(top + h, mask.shape[0] - cell) + 1, cell)
             for x in range(left, min(left + w, mask.shape[1] - cell) + 1, cell)
             if mask[y : y + cell, x : x + cell].mean() > 255 * 0.3]  # fmt: skip
    if len(cells) < 2:
        _warped(rng, layer, mask, severity, other)
        return
    order = np.roll(rng.permutation(len(cells)), 1)
    arrays = layer.canvas, layer.alpha
    copies = [array.copy() for array in arrays]
    places = rng.permutation(len(cells))
    for source, target in zip(places, np.roll(places, 1 + order[0] % (len(cells) - 1)), strict=True):
        (sy, sx), (ty, tx), turn = cells[source], cells[target], int(rng.integers(4))
        for array, copy in zip(arrays, copies, strict=True):
            array[ty : ty + cell, tx : tx + cell] = np.rot90(copy[sy : sy + cell, sx : sx + cell], turn)


def _fused(rng, layer, mask, severity, other) -> None:
    """Smear two parts into one: the hull between them is filled with their blurred colours."""
    both = mask if other is None else cv2.bitwise_or(_near(mask, other, layer.side), _near(other, mask, layer.side))
    points = cv2.findNonZero(both)
    if points is None or len(points) < 3:
        both, points = mask, cv2.findNonZero(mask)
    hull = np.zeros_like(mask)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 255)
    roi = _roi(hull, layer.side * 0.06)
    x, y = _grid(roi)
    size = int(layer.side * (0.035 + 0.04 * severity)) | 1
    weight = layer.alpha[roi].astype(np.float32)[..., None] / 255
    colour = layer.canvas[roi] * weight
    for _ in range(2):
        colour, spread = cv2.blur(colour, (size, size)), cv2.blur(weight, (size, size))
        weight = spread[..., None] if spread.ndim == 2 else spread
    smear = colour / np.maximum(weight, 1e-3)
    wave = layer.side * 0.016 * np.sin(2 * np.pi * y / (layer.side * 0.14) + rng.uniform(0, 6.3))
    map_x, map_y = (x - roi[1].start + wave).astype(np.float32), (y - roi[0].start).astype(np.float32)
    smear = cv2.remap(smear, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    soft = cv2.blur(hull[roi], (max(3, size // 3) | 1,) * 2).astype(np.float32)[..., None] / 255
    layer.canvas[roi] = np.clip(layer.canvas[roi] + (smear - layer.canvas[roi]) * soft + 0.5, 0, 255)
    np.maximum(layer.alpha[roi], hull[roi], out=layer.alpha[roi])


def _near(mask: np.ndarray, other: np.ndarray, side: float) -> np.ndarray:
    reach = int(side * 0.2) | 1
    return cv2.bitwise_and(mask, cv2.dilate(other, np.ones((reach, reach), np.uint8)))


def _pixel_sorted(rng, layer, mask, severity, other) -> None:
    """Columns of the part sorted by brightness, as in glitch art."""
    rows, columns = np.nonzero(cv2.dilate(mask, np.ones((3, 3), np.uint8)))
    band = max(1, int(layer.side * 0.012))
    grey = layer.canvas.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    original, alpha = layer.canvas.copy(), layer.alpha.copy()
    limit = layer.side * (0.12 + 0.3 * severity)
    for start in range(columns.min(), columns.max() + 1, band):
        here = rows[(columns >= start) & (columns < start + band)]
        if len(here) == 0:
            continue
        y0, y1 = here.min(), int(min(here.max() + 1, here.min() + limit))
        order = np.argsort(grey[y0:y1, start], kind="stable") + y0
        for target, source in ((layer.canvas, original), (layer.alpha, alpha)):
            target[y0:y1, start : start + band] = source[order, start : start + 1]


_PIXELS = {"warped": _warped, "twisted": _twisted, "melted": _melted, "scrambled": _scrambled, "fused": _fused,
           "pixel_sorted": _pixel_sorted}  # fmt: skip
