"""Hands with countable fingers."""

import numpy as np

from lib.synthetic.materials import Material
from lib.synthetic.paint import Patch
from lib.synthetic.shapes import ellipse, tube

LENGTHS = {4: (0.86, 1.0, 0.95, 0.76)}  # index, middle, ring and little finger


def hand(tags, wrist, way, size: float, side: int, skin: Material, line: float, count: int = 4) -> list[Patch]:
    """The patches of an open hand: `count` fingers and a thumb.

    Args:
        wrist: (x, y) in pixels. way: unit vector from the wrist to the fingertips.
        size: length of the palm in pixels. side: -1 or 1, the side of the body (the thumb points inwards).
        count: 4 for a sound hand.
    """
    wrist, way = np.asarray(wrist), np.asarray(way)
    across = np.array([-way[1], way[0]])
    if across[0] * side > 0:
        across = -across  # towards the body, where the thumb is
    palm = wrist + way * size * 0.45
    more_than_four = max(0, count - 4)
    wide = 0.40 + 0.03 * more_than_four
    thick = 0.118 if count <= 5 else 0.108
    draw = lambda outline: Patch(tags, outline, skin, line=line * 0.9, shade=0.2)  # noqa: E731
    lengths = LENGTHS.get(count, 0.8 + 0.18 * np.abs(np.sin(np.arange(count) * 2.1 + 0.7)))
    patches = []
    spread = 0.42 + 0.17 * more_than_four  # radians: many fingers stand out like a fan
    for place, length in zip(np.linspace(1, -1, count), lengths, strict=True):
        root = palm + across * place * size * wide * 0.85 + way * size * 0.28 * (1 - 0.3 * place**2)
        direction = way * np.cos(place * spread) + across * np.sin(place * spread)
        tip = root + direction * size * (0.72 if count == 4 else 0.86) * length
        patches.append(draw(tube(np.linspace(root, tip, 4), size * thick * 1.05, size * thick * 0.9)))
    root = palm + across * size * wide * 0.8 - way * size * 0.12
    tip = root + (way * 0.55 + across * 0.8) * size * 0.55
    patches.append(draw(tube(np.linspace(root, tip, 4), size * 0.15, size * 0.12)))
    back = ellipse(palm, size * 0.56, size * wide * 1.12, np.arctan2(way[1], way[0]))
    return [*patches, Patch(tags, back, skin, line=0, shade=0.15)]
