"""Places: what stands behind figures and objects. Each function paints a whole canvas."""

import numpy as np

from lib.synthetic.materials import COLOURS, Material, bricks, plain, planks
from lib.synthetic.paint import Patch, paint
from lib.synthetic.shapes import box, ellipse, polygon, rounded

SOFT = ((226, 214, 198), (204, 218, 226), (222, 206, 214), (208, 222, 206), (236, 226, 200), (206, 208, 226))


def studio(rng, shape, side):
    """A seamless paper background with a soft gradient."""
    colour = np.array(SOFT[rng.integers(len(SOFT))])
    return _gradient(shape, colour * 1.06, colour * 0.8)


def room(rng, shape, side):
    """A papered wall, a skirting board and a wooden floor."""
    height, width = shape
    colour = np.array(SOFT[rng.integers(len(SOFT))])
    canvas = _gradient(shape, colour * 1.02, colour * 0.94)
    stripe = max(4, int(side * rng.uniform(0.05, 0.09)))
    canvas[:, (np.arange(width) // stripe) % 2 == 0] = canvas[:, (np.arange(width) // stripe) % 2 == 0] * 0.965
    floor = int(height * rng.uniform(0.74, 0.84))
    wood = planks((176, 128, 86), side * 0.06)
    _fill(canvas, box(0, floor, width, height), wood, shade=0.1)
    _fill(canvas, box(0, floor - side * 0.03, width, floor), plain((244, 240, 232)), shade=0)
    if rng.random() < 0.6:
        x, y, w, h = width * rng.uniform(0.02, 0.7), height * 0.06, side * 0.26, side * 0.2
        _fill(canvas, box(x, y, x + w, y + h), plain(COLOURS["brown"]), shade=0.1)
        inner = box(x + w * 0.1, y + h * 0.12, x + w * 0.9, y + h * 0.88)
        _fill(canvas, inner, plain(COLOURS[str(rng.choice(["sky blue", "mint", "coral"]))]), shade=0.4)
    return canvas


def brick_wall(rng, shape, side):
    """A brick wall above a pavement."""
    height, width = shape
    canvas = np.empty((height, width, 3), np.uint8)
    colour = np.array([(188, 112, 92), (206, 176, 150), (160, 150, 146)][rng.integers(3)])
    _fill(canvas, box(0, 0, width, height), bricks(colour, colour * 0.4 + 140, side * 0.05), shade=0)
    _fill(canvas, box(0, height * 0.84, width, height), plain((164, 162, 160)), shade=0.2)
    return canvas


def park(rng, shape, side):
    """Sky, trees, grass and a path."""
    height, width = shape
    canvas = _gradient(shape, (152, 202, 238), (226, 240, 244))
    horizon = height * rng.uniform(0.56, 0.68)
    for x in np.arange(-0.1, 1.2, 0.22) * width + rng.uniform(-0.1, 0.1) * width:
        r = side * rng.uniform(0.13, 0.2)
        y = horizon - r * rng.uniform(0.9, 1.5)
        _fill(canvas, box(x - r * 0.12, y, x + r * 0.12, horizon + 4), plain((118, 88, 66)), shade=0.2)
        _fill(canvas, ellipse((x, y), r, r * 1.1), plain((96 + rng.integers(30), 160, 98)), shade=0.4)
    _fill(canvas, box(-4, horizon, width + 4, height + 4), plain((142, 192, 104)), shade=0.25)
    path = [(width * 0.4, height + 4), (width * 0.62, horizon), (width * 0.68, horizon), (width * 0.85, height + 4)]
    _fill(canvas, polygon(path), plain((226, 206, 166)), shade=0.1)
    return canvas


def beach(rng, shape, side):
    """Sky with a sun, sea and sand."""
    height, width = shape
    canvas = _gradient(shape, (118, 192, 236), (244, 236, 214))
    sun = (width * rng.uniform(0.1, 0.9), height * rng.uniform(0.1, 0.22))
    _fill(canvas, ellipse(sun, side * 0.08, side * 0.08), plain((255, 232, 150)), shade=0)
    sea, sand = height * rng.uniform(0.45, 0.52), height * rng.uniform(0.66, 0.74)
    _fill(canvas, box(-4, sea, width + 4, height), plain((64, 156, 190)), shade=0)
    for y in np.linspace(sea + 6, sand - 6, 4):
        x = width * rng.uniform(0, 0.7)
        _fill(canvas, ellipse((x, y), side * 0.16, side * 0.006), plain((140, 206, 222)), shade=0)
    wave = [(-9, height + 9), (-9, sand), (width * 0.3, sand + side * 0.02), (width * 0.7, sand - side * 0.02),
            (width + 9, sand), (width + 9, height + 9)]  # fmt: skip
    _fill(canvas, rounded(wave), plain((238, 216, 168)), shade=0.15)
    return canvas


def kitchen(rng, shape, side):
    """A tiled wall above a counter."""
    height, width = shape
    canvas = np.empty((height, width, 3), np.uint8)
    colour = np.array([(222, 232, 228), (214, 226, 240), (240, 232, 216)][rng.integers(3)])
    step = max(8, int(side * 0.1))
    tile = np.empty((step, step, 3), np.uint8)
    tile[:] = colour
    tile[: max(1, step // 14)] = tile[:, : max(1, step // 14)] = colour * 0.86
    _fill(canvas, box(0, 0, width, height), Material(tile), shade=0)
    _fill(canvas, box(-4, height * 0.82, width + 4, height + 4), planks((188, 142, 98), side * 0.07), shade=0.15)
    return canvas


def night_city(rng, shape, side):
    """Dark houses with lit windows; only in the shifted domain."""
    height, width = shape
    canvas = _gradient(shape, (34, 40, 84), (150, 96, 130))
    x = -side * 0.05
    while x < width:
        w, top = side * rng.uniform(0.14, 0.26), height * rng.uniform(0.12, 0.5)
        tile = np.full((max(6, int(side * 0.06)),) * 2 + (3,), (52, 54, 84), np.uint8)
        tile[len(tile) // 4 : len(tile) * 3 // 4, len(tile) // 4 : len(tile) * 3 // 4] = (236, 204, 126)
        _fill(canvas, box(x, top, x + w, height), Material(tile), shade=0.1)
        x += w + side * 0.02
    _fill(canvas, box(-4, height * 0.86, width + 4, height + 4), plain((84, 82, 100)), shade=0.1)
    return canvas


def snow(rng, shape, side):
    """Mountains and snow; only in the shifted domain."""
    height, width = shape
    canvas = _gradient(shape, (168, 200, 232), (236, 240, 248))
    for x in (width * rng.uniform(0, 0.3), width * rng.uniform(0.6, 1)):
        top, low, w = height * rng.uniform(0.12, 0.3), height * 0.75, side * rng.uniform(0.5, 0.7)
        _fill(canvas, polygon([(x, top), (x + w, low), (x - w, low)]), plain((132, 148, 176)), shade=0.3)
        cap = [(x, top), (x + w * 0.3, top + (low - top) * 0.3), (x, top + (low - top) * 0.22),
               (x - w * 0.3, top + (low - top) * 0.3)]  # fmt: skip
        _fill(canvas, polygon(cap), plain((250, 250, 252)), shade=0)
    _fill(canvas, ellipse((width / 2, height * 1.25), width * 0.9, height * 0.58), plain((238, 242, 250)), shade=0.1)
    return canvas


PLACES = {
    "shown": {"in front of a plain backdrop": studio, "in a living room": room, "in front of a brick wall": brick_wall,
              "in a park": park, "on a beach": beach, "in a kitchen": kitchen},
    "shifted": {"in a city at night": night_city, "in the snowy mountains": snow},
}  # fmt: skip


def shadow(canvas: np.ndarray, centre, rx: float, ry: float, depth: float = 0.35) -> None:
    """Darken a soft ellipse on the ground, in place."""
    x0, y0 = (max(0, int(centre[i] - r * 1.6)) for i, r in enumerate((rx, ry)))
    x1, y1 = (min(canvas.shape[1 - i], int(centre[i] + r * 1.6)) for i, r in enumerate((rx, ry)))
    if x1 <= x0 or y1 <= y0:
        return
    x, y = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)[:, None]
    away = ((x - centre[0]) / rx) ** 2 + ((y - centre[1]) / ry) ** 2
    dark = 1 - depth * np.clip(1.4 - away, 0, 1)
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * dark[..., None]


def _gradient(shape, top, bottom) -> np.ndarray:
    t = np.linspace(0, 1, shape[0])[:, None, None]
    rows = np.clip(np.asarray(top) * (1 - t) + np.asarray(bottom) * t, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rows, (*shape, 3)))


def _fill(canvas, outline, material: Material, shade: float) -> None:
    paint(Patch((), outline, material, shade=shade, line=0), [canvas], 1.0)
