"""Heads: skull, ears, face and hair."""

import numpy as np

from lib.synthetic.materials import Material, plain, strands
from lib.synthetic.paint import Patch
from lib.synthetic.shapes import arc, ellipse, polygon, rounded, tube

STYLES = {"man": ("short", "short", "curly", "cap"), "boy": ("short", "curly", "cap"),
          "woman": ("long", "long", "bun", "bob"), "girl": ("long", "bob", "tails")}  # fmt: skip


def hair_material(colour, side: float) -> Material:
    """Hair with strands that stay visible at 128 pixels."""
    return strands(np.clip(colour, 24, 235), side * 0.03)


def head(rng: np.random.Generator, look, centre, radius: float, line: float) -> tuple[list[Patch], list[Patch]]:
    """The patches of a head: those behind the neck and shoulders (hair), and those before them.

    Args:
        look: a `Look`. centre: (x, y) of the head in pixels. radius: half the head's height in pixels.
    """
    style = str(rng.choice(STYLES[look.name]))
    at = lambda x, y: np.asarray(centre) + radius * np.array([x, y])  # noqa: E731
    draw = _Head(at, radius, line, look)
    draw.hair_behind(style)
    behind, draw.patches = draw.patches, []
    for side in (-1, 1):
        draw.add(ellipse(at(side * 0.84, 0.1), 0.15 * radius, 0.22 * radius), look.skin)
    skull = [(-0.8, -0.35), (-0.5, -0.92), (0.5, -0.92), (0.8, -0.35), (0.8, 0.25), (0.5, 0.86), (0, 1.02),
             (-0.5, 0.86), (-0.8, 0.25)]  # fmt: skip
    draw.add(rounded([at(x, y) for x, y in skull], 3), look.skin, shade=0.35)
    draw.face(rng)
    draw.hair_front(style)
    return behind, draw.patches


class _Head:
    def __init__(self, at, radius: float, line: float, look):
        self.at, self.radius, self.line, self.look, self.patches = at, radius, line, look, []

    def add(self, outline, material: Material, **more) -> None:
        more.setdefault("line", self.line)
        more.setdefault("anchor", tuple(np.mean(outline, axis=0)))
        self.patches.append(Patch(("head",), outline, material, **more))

    def face(self, rng) -> None:
        at, r = self.at, self.radius
        dark = plain((50, 38, 38))
        iris = plain([(70, 50, 40), (60, 110, 150), (70, 120, 80)][rng.integers(3)])
        for side in (-1, 1):
            self.add(ellipse(at(side * 0.35, 0.02), 0.2 * r, 0.155 * r), plain((252, 252, 250)), shade=0)
            self.add(ellipse(at(side * 0.35, 0.03), 0.11 * r, 0.125 * r), iris, shade=0, line=0)
            self.add(ellipse(at(side * 0.35, 0.03), 0.06 * r, 0.07 * r), dark, shade=0, line=0)
            brow = np.linspace(at(side * 0.17, -0.3), at(side * 0.55, -0.2 - 0.06 * rng.random()), 4)
            self.add(tube(brow, 0.05 * r, 0.035 * r), plain(self.look.hair.colour * 0.7), shade=0, line=0)
            cheek = plain(self.look.skin.colour * 0.88 + np.array([235, 110, 105]) * 0.12)
            self.add(ellipse(at(side * 0.5, 0.38), 0.15 * r, 0.1 * r), cheek, shade=0, line=0)
        nose = plain(self.look.skin.colour * 0.82)
        self.add(ellipse(at(0, 0.28), 0.09 * r, 0.11 * r), nose, shade=0, line=0)
        smile = rng.uniform(0.05, 0.16)
        upper = arc(at(0, 0.55), 0.3 * r, smile * 0.25 * r, np.pi, 0)
        lower = arc(at(0, 0.55), 0.3 * r, (0.08 + smile) * r, 0, np.pi)
        self.add(np.concatenate([upper, lower]), plain((176, 62, 66)), shade=0, line=self.line * 0.8)

    def hair_behind(self, style: str) -> None:
        at, hair = self.at, self.look.hair
        if style in ("long", "bob"):
            low = 1.75 if style == "long" else 0.85
            points = [(-0.6, -1.0), (0.6, -1.0), (1.05, -0.3), (1.1, low - 0.4), (0.85, low), (-0.85, low),
                      (-1.1, low - 0.4), (-1.05, -0.3)]  # fmt: skip
            self.add(rounded([at(x, y) for x, y in points]), hair)
        elif style == "bun":
            self.add(ellipse(at(0, -1.1), 0.42 * self.radius, 0.36 * self.radius), hair)
        elif style == "tails":
            for side in (-1, 1):
                self.add(tube(np.linspace(at(side * 0.9, -0.2), at(side * 1.25, 0.9), 6), 0.28 * self.radius,
                                      0.16 * self.radius), hair)  # fmt: skip

    def hair_front(self, style: str) -> None:
        at, hair = self.at, self.look.hair
        if style == "curly":
            for t in np.linspace(np.pi * 1.02, np.pi * 1.98, 8):
                self.add(ellipse(at(0.78 * np.cos(t), -0.22 + 0.72 * np.sin(t)), 0.3 * self.radius,
                                         0.3 * self.radius), hair)  # fmt: skip
            return
        points = [(-0.9, 0.05), (-0.92, -0.5), (-0.6, -1.05), (0, -1.2), (0.6, -1.05), (0.92, -0.5), (0.9, 0.05),
                  (0.72, -0.3), (0.4, -0.5), (0, -0.42), (-0.45, -0.52), (-0.72, -0.3)]  # fmt: skip
        self.add(rounded([at(x, y) for x, y in points]), hair)
        if style == "cap":
            cap = [(-0.9, -0.36), (-0.8, -0.95), (0, -1.3), (0.8, -0.95), (0.9, -0.36)]
            self.add(rounded([at(x, y) for x, y in cap]), self.look.shoes)
            self.add(rounded(polygon([at(x, y) for x, y in (
                (-0.9, -0.5), (1.35, -0.5), (1.35, -0.3), (-0.9, -0.3))])), self.look.shoes)  # fmt: skip
