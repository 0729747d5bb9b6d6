"""Structured things: furniture, vehicles, vessels; each a group of named parts in units of its own height."""

import numpy as np

from lib.synthetic.materials import COLOURS, Material, bricks, cloth, luminance, plain, planks
from lib.synthetic.paint import Group, Patch
from lib.synthetic.shapes import arc, box, ellipse, polygon, rounded, tube


class _Thing:
    """Collects the patches of one object; coordinates in units of its height, (0, 0) at its top centre."""

    def __init__(self, rng, origin, unit: float, side: float, domain: str):
        self.rng, self.origin, self.unit, self.side, self.domain = rng, np.asarray(origin, float), unit, side, domain
        self.patches, self.pivots = [], {}
        self.line = max(1.0, side * 0.004)

    def at(self, x: float, y: float) -> np.ndarray:
        return self.origin + self.unit * np.array([x, y])

    def points(self, points) -> np.ndarray:
        return polygon([self.at(x, y) for x, y in points])

    def box(self, x0, y0, x1, y1) -> np.ndarray:
        return box(*self.at(x0, y0), *self.at(x1, y1))

    def add(self, tags, outline, material: Material, **more) -> None:
        tags = (tags,) if isinstance(tags, str) else tags
        more.setdefault("line", self.line)
        more.setdefault("anchor", tuple(np.mean(outline, axis=0)))
        self.patches.append(Patch(tags, outline, material, **more))

    def bar(self, tags, points, width: float, material: Material, **more) -> None:
        line = np.array([self.at(x, y) for x, y in points])
        count = 3 if len(line) == 2 else len(line)
        line = np.linspace(line[0], line[-1], count) if len(line) == 2 else line
        self.add(tags, tube(line, width * self.unit, width * self.unit), material, **more)

    def cloth(self) -> Material:
        return cloth(self.rng, self.side * self.rng.uniform(0.06, 0.095), self.domain)

    def wood(self) -> Material:
        return plain([(150, 100, 62), (188, 136, 86), (108, 74, 54)][self.rng.integers(3)])

    def paintwork(self) -> Material:
        return plain(COLOURS[str(self.rng.choice(["red", "teal", "blue", "mustard", "green", "coral", "purple"]))])


def chair(t: _Thing) -> Group:
    """A chair with a slatted back, a cushion and four legs."""
    wood, cushion = t.wood(), t.cloth()
    legs = (("left back leg", -0.22, 0.92), ("right back leg", 0.22, 0.92), ("left front leg", -0.29, 1.0),
            ("right front leg", 0.29, 1.0))  # fmt: skip
    for name, x, low in legs:
        t.bar(name, [(x * 0.9, 0.56), (x, low - 0.02)], 0.03, wood)
        t.pivots[name] = tuple(t.at(x * 0.9, 0.56))
    for x in (-0.24, 0.24):
        t.bar("back", [(x, 0.04), (x, 0.56)], 0.03, wood)
    t.add("back", rounded(t.points([(-0.25, 0.06), (0.25, 0.06), (0.25, 0.42), (-0.25, 0.42)])), cushion)
    t.add("seat", t.points([(-0.25, 0.5), (0.25, 0.5), (0.33, 0.6), (-0.33, 0.6)]), cushion)
    t.add("seat", t.box(-0.33, 0.6, 0.33, 0.655), wood)
    return Group("chair", f"wooden chair with a {cushion.words} cushion", t.patches, t.pivots,
                 ("left front leg", "right front leg", "back"), ("right front leg", "left front leg", "back"),
                 ("back", "seat", "back"),
                 (("left front leg", "left back leg"), ("right front leg", "right back leg")))  # fmt: skip


def table(t: _Thing) -> Group:
    """A table with a patterned cloth and four legs."""
    wood, top = t.wood(), t.cloth()
    for name, x, low in (("left back leg", -0.42, 0.88), ("right back leg", 0.42, 0.88), ("left front leg", -0.56, 1.0),
                         ("right front leg", 0.56, 1.0)):  # fmt: skip
        t.bar(name, [(x, 0.25), (x, low - 0.03)], 0.042, wood)
        t.pivots[name] = tuple(t.at(x, 0.3))
    t.add("table top", t.points([(-0.5, 0.0), (0.5, 0.0), (0.68, 0.2), (-0.68, 0.2)]), top)
    drape = [(-0.68, 0.2), (0.68, 0.2), (0.68, 0.42), (0.45, 0.38), (0.22, 0.43), (0, 0.38), (-0.22, 0.43),
             (-0.45, 0.38), (-0.68, 0.42)]  # fmt: skip
    t.add("tablecloth", t.points(drape), top, anchor=tuple(t.at(0, 0.2)))
    return Group("table", f"table with a {top.words} tablecloth", t.patches, t.pivots,
                 ("left front leg", "right front leg"), ("left front leg", "right front leg"),
                 ("table top", "tablecloth", "tablecloth"), (("left front leg", "left back leg"),
                                                             ("right front leg", "right back leg")))  # fmt: skip


def clock(t: _Thing) -> Group:
    """A round clock with twelve marks, two hands and two feet."""
    frame, centre, u = t.paintwork(), t.at(0, 0.47), t.unit
    for name, x in (("left foot", -0.28), ("right foot", 0.28)):
        t.bar(name, [(x, 0.85), (x * 1.25, 0.97)], 0.04, frame)
    for name, x in (("left bell", -0.26), ("right bell", 0.26)):
        t.add(name, ellipse(t.at(x, 0.06), 0.17 * u, 0.12 * u, np.sign(x) * 0.5), frame)
        t.pivots[name] = tuple(centre)
    t.add(("frame", "clock face"), ellipse(centre, 0.46 * u, 0.46 * u), frame)
    t.add("clock face", ellipse(centre, 0.39 * u, 0.39 * u), plain((252, 248, 236)), shade=0.15)
    dark = plain((52, 50, 60))
    for hour in range(12):
        turn = hour * np.pi / 6
        inner = 0.27 if hour % 3 == 0 else 0.3
        ends = [centre + u * r * np.array([np.sin(turn), -np.cos(turn)]) for r in (inner, 0.345)]
        t.add("clock face", tube(np.linspace(*ends, 3), 0.02 * u, 0.02 * u), dark, line=0, shade=0)
    for length, width in ((0.19, 0.024), (0.28, 0.016)):
        turn = t.rng.uniform(0, 2 * np.pi)
        tip = centre + u * length * np.array([np.sin(turn), -np.cos(turn)])
        t.add("clock face", tube(np.linspace(centre, tip, 3), width * u, width * u), dark, line=0, shade=0)
    return Group("clock", "round alarm clock", t.patches, t.pivots, ("left bell", "right bell"),
                 ("left bell", "right bell"), ("clock face",) * 3,
                 (("left bell", "frame"), ("right bell", "frame")))  # fmt: skip


def bicycle(t: _Thing) -> Group:
    """A bicycle: two spoked wheels, a frame, a saddle and a handlebar."""
    frame, u, tyre = t.paintwork(), t.unit, plain((62, 62, 70))
    for name, x in (("left wheel", -0.52), ("right wheel", 0.52)):
        centre = t.at(x, 0.66)
        ring = np.concatenate([arc(centre, 0.34 * u, 0.34 * u, 0, 2 * np.pi, 40),
                               arc(centre, 0.285 * u, 0.285 * u, 2 * np.pi, 0, 40)])  # fmt: skip
        t.add(name, ring, tyre, shade=0.1)
        for spoke in np.arange(6) * np.pi / 6 + 0.2:
            way = 0.29 * u * np.array([np.cos(spoke), np.sin(spoke)])
            t.add(name, tube(np.linspace(centre - way, centre + way, 3), 0.009 * u, 0.009 * u),
                  plain((188, 192, 198)), line=0, shade=0)  # fmt: skip
        t.pivots[name] = tuple(centre)
    joints = {"rear": (-0.52, 0.66), "pedal": (-0.06, 0.68), "seat": (-0.2, 0.24), "head": (0.34, 0.24),
              "front": (0.52, 0.66)}  # fmt: skip
    for a, b in (("rear", "pedal"), ("rear", "seat"), ("seat", "pedal"), ("pedal", "head"), ("seat", "head"),
                 ("head", "front")):  # fmt: skip
        t.bar("frame", [joints[a], joints[b]], 0.026, frame)
    t.bar("frame", [(0.34, 0.24), (0.3, 0.06)], 0.024, frame)
    t.bar("handlebar", [(0.14, 0.07), (0.3, 0.05), (0.42, 0.12)], 0.03, tyre)
    t.bar("frame", [(-0.34, 0.2), (-0.1, 0.2)], 0.045, plain((96, 66, 50)))
    return Group("bicycle", "bicycle", t.patches, t.pivots, ("left wheel", "right wheel", "frame"),
                 ("left wheel", "right wheel"), ("left wheel", "right wheel", "frame"),
                 (("left wheel", "frame"), ("right wheel", "frame")))  # fmt: skip


def lamp(t: _Thing) -> Group:
    """A standard lamp with a patterned shade."""
    metal, shade = plain((112, 92, 72)), t.cloth()
    t.bar("stand", [(0, 0.3), (0, 0.94)], 0.022, metal)
    t.add("base", ellipse(t.at(0, 0.95), 0.17 * t.unit, 0.05 * t.unit), metal)
    t.add("shade", t.points([(-0.13, 0.02), (0.13, 0.02), (0.24, 0.4), (-0.24, 0.4)]), shade)
    t.pivots |= {"shade": tuple(t.at(0, 0.4)), "stand": tuple(t.at(0, 0.94))}
    return Group("lamp", f"lamp with a {shade.words} shade", t.patches, t.pivots, ("shade", "stand"), ("shade",),
                 ("shade",) * 3, (("shade", "stand"),))  # fmt: skip


def house(t: _Thing) -> Group:
    """A small house: brick wall, tiled roof, two windows, a door and a chimney."""
    tone = np.array([(196, 116, 92), (214, 188, 150), (150, 160, 176)][t.rng.integers(3)])
    wall = bricks(tone, tone * 0.4 + 145, t.side * 0.052)
    roof = planks([(140, 62, 58), (70, 84, 110), (96, 78, 70)][t.rng.integers(3)], t.side * 0.045, 0.3)
    t.add("chimney", t.box(0.2, 0.02, 0.34, 0.3), wall)
    t.add("wall", t.box(-0.48, 0.4, 0.48, 1.0), wall)
    t.add("roof", t.points([(-0.36, 0.1), (0.36, 0.1), (0.6, 0.44), (-0.6, 0.44)]), roof)
    glass, white = plain((142, 196, 222)), plain((246, 244, 238))
    for name, x in (("left window", -0.27), ("right window", 0.27)):
        t.add((name, "wall"), t.box(x - 0.12, 0.53, x + 0.12, 0.75), white)
        for dx in (-0.052, 0.052):
            for dy in (0.59, 0.69):
                t.add((name, "wall"), t.box(x + dx - 0.04, dy - 0.04, x + dx + 0.04, dy + 0.04), glass)
        t.pivots[name] = tuple(t.at(x, 0.64))
    t.add(("door", "wall"), t.box(-0.085, 0.64, 0.085, 1.0), t.paintwork())
    t.add(("door", "wall"), ellipse(t.at(0.05, 0.83), 0.014 * t.unit, 0.014 * t.unit), white)
    return Group("house", "small brick house", t.patches, t.pivots, ("roof",),
                 ("left window", "right window", "chimney"), ("roof", "wall", "roof"),
                 (("door", "right window"), ("door", "left window")))  # fmt: skip


def teapot(t: _Thing) -> Group:
    """A patterned teapot with a spout, a handle and a lid."""
    body, u = t.cloth(), t.unit
    dark = plain(body.colour * 0.55) if luminance(body.colour) > 110 else plain(COLOURS["cream"])
    t.bar("handle", [(-0.42, 0.42), (-0.62, 0.36), (-0.76, 0.48), (-0.72, 0.66), (-0.58, 0.78), (-0.4, 0.82)],
          0.045, dark)  # fmt: skip
    spout = np.array([t.at(x, y) for x, y in ((0.38, 0.76), (0.6, 0.66), (0.68, 0.46), (0.84, 0.34))])
    t.add("spout", tube(spout, 0.12 * u, 0.06 * u), dark)
    t.add("body", ellipse(t.at(0, 0.62), 0.54 * u, 0.37 * u), body)
    t.add("lid", rounded(t.points([(-0.3, 0.32), (-0.16, 0.17), (0.16, 0.17), (0.3, 0.32)])), dark)
    t.add("lid", ellipse(t.at(0, 0.12), 0.08 * u, 0.08 * u), dark)
    t.pivots |= {"spout": tuple(t.at(0.3, 0.76)), "handle": tuple(t.at(-0.3, 0.62)), "lid": tuple(t.at(0, 0.6))}
    return Group("teapot", f"{body.words} teapot", t.patches, t.pivots, ("spout", "handle", "lid"),
                 ("spout", "handle", "lid"), ("body",) * 3, (("spout", "body"), ("handle", "body")))  # fmt: skip


def vase(t: _Thing) -> Group:
    """A patterned vase with five flowers; only in the shifted domain."""
    body, u = t.cloth(), t.unit
    petals = t.paintwork()
    for i, x in enumerate(np.linspace(-0.3, 0.3, 5)):
        top = t.at(x * 1.2, 0.14 + 0.05 * (i % 2))
        t.add("flowers", tube(np.linspace(t.at(x * 0.25, 0.52), top, 4), 0.014 * u, 0.014 * u),
              plain((84, 136, 74)))  # fmt: skip
        for turn in np.arange(6) * np.pi / 3:
            spot = top + 0.075 * u * np.array([np.cos(turn), np.sin(turn)])
            t.add("flowers", ellipse(spot, 0.055 * u, 0.055 * u), petals, shade=0.1)
        t.add("flowers", ellipse(top, 0.045 * u, 0.045 * u), plain(COLOURS["mustard"]), shade=0.1)
    shape = [(-0.11, 0.44), (0.11, 0.44), (0.12, 0.52), (0.3, 0.68), (0.26, 0.9), (0.14, 1.0), (-0.14, 1.0),
             (-0.26, 0.9), (-0.3, 0.68), (-0.12, 0.52)]  # fmt: skip
    t.add("vase body", rounded(t.points(shape)), body)
    return Group("vase", f"{body.words} vase with flowers", t.patches, t.pivots, (), ("flowers",),
                 ("vase body", "vase body", "flowers"), (("flowers", "flowers"),))  # fmt: skip


def sailboat(t: _Thing) -> Group:
    """A boat with two patterned sails; only in the shifted domain."""
    sail, hull = t.cloth(), t.wood()
    t.bar("mast", [(0, 0.03), (0, 0.8)], 0.018, plain((110, 82, 60)))
    t.add("right sail", t.points([(0.03, 0.05), (0.44, 0.7), (0.03, 0.72)]), sail)
    t.add("left sail", t.points([(-0.03, 0.12), (-0.03, 0.7), (-0.36, 0.68)]), sail)
    t.add("hull", rounded(t.points([(-0.48, 0.77), (0.54, 0.77), (0.36, 1.0), (-0.34, 1.0)]), 1), hull)
    t.pivots |= {"right sail": tuple(t.at(0, 0.7)), "left sail": tuple(t.at(0, 0.7))}
    return Group("sailboat", f"sailboat with {sail.words} sails", t.patches, t.pivots, ("left sail", "hull"),
                 ("left sail",), ("right sail", "hull", "left sail"), (("left sail", "right sail"),))  # fmt: skip


# name -> (painter, width / height, share of the canvas height it likes)
THINGS = {
    "shown": {"chair": (chair, 0.7, 0.72), "table": (table, 1.42, 0.5), "clock": (clock, 0.95, 0.52),
              "bicycle": (bicycle, 1.75, 0.5), "lamp": (lamp, 0.5, 0.86), "house": (house, 1.22, 0.62),
              "teapot": (teapot, 1.7, 0.44)},
    "shifted": {"vase": (vase, 0.9, 0.68), "sailboat": (sailboat, 1.05, 0.74)},
}  # fmt: skip


def thing(rng: np.random.Generator, name: str, origin, unit: float, side: float, domain: str) -> Group:
    """Draw the object `name`.

    Args:
        origin: (x of its middle, y of its top), unit: its height, side: of the canvas; all in canvas pixels.
    """
    painter = (THINGS["shown"] | THINGS["shifted"])[name][0]
    return painter(_Thing(rng, origin, unit, side, domain))
