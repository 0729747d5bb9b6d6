"""People made of textured parts, in units of their own height, placed on the canvas."""

from dataclasses import dataclass

import numpy as np

from lib.synthetic import faces
from lib.synthetic.hands import hand
from lib.synthetic.materials import COLOURS, Material, cloth, plain
from lib.synthetic.paint import Group, Patch
from lib.synthetic.shapes import bend, box, ellipse, rounded, tube

SKINS = ((250, 214, 186), (240, 194, 160), (222, 170, 130), (190, 136, 98), (150, 102, 72), (108, 74, 54))
HAIRS = ((44, 36, 36), (86, 56, 40), (132, 84, 50), (202, 154, 84), (170, 78, 46), (176, 176, 180))

# Angles in degrees from straight down, outwards: (left upper arm, left forearm, right upper, right forearm),
# then the same for thigh and shin. "Left" is the side of the picture.
POSES = {
    "standing": ((14, 8, 14, 8), (5, 2, 5, 2)),
    "waving": ((16, 8, 118, 172), (5, 2, 5, 2)),
    "walking": ((34, 52, 26, 10), (17, 8, 14, 24)),
    "raising both arms": ((142, 166, 142, 166), (7, 4, 7, 4)),
    "standing with hands on hips": ((60, -36, 60, -36), (8, 3, 8, 3)),
    "pointing to the side": ((14, 6, 88, 92), (6, 3, 6, 3)),
    "dancing": ((110, 60, 70, 140), (20, 4, 8, -4)),
    "sitting on a stool": ((24, -14, 24, -14), (58, -4, 58, -4)),
    "jumping": ((128, 148, 128, 148), (34, -30, 34, -30)),
}
POSE_NAMES = {"shown": tuple(POSES)[:-1], "shifted": tuple(POSES)}


@dataclass(frozen=True)
class Look:
    """Everything about a person except the pose; materials in canvas pixels."""

    name: str
    skin: Material
    hair: Material
    top: Material
    bottom: Material
    shoes: Material
    sleeve: float  # share of the arm that is covered
    leg_cover: float  # share of the leg that is covered
    skirt: bool
    build: float  # width, 1 = average
    top_name: str
    bottom_name: str


def random_look(rng: np.random.Generator, unit: float, domain: str, side: float) -> Look:
    """Draw a person's name, skin, hair and clothes.

    Args:
        unit: height of the figure in canvas pixels. side: geometric-mean side of the canvas, in pixels.
    """
    name = str(rng.choice(["man", "woman", "boy", "girl"], p=[0.35, 0.35, 0.15, 0.15]))
    female = name in ("woman", "girl")
    skin = plain(np.add(SKINS[rng.integers(len(SKINS))], rng.integers(-5, 6)))
    hair = faces.hair_material(np.add(HAIRS[rng.integers(len(HAIRS))], rng.integers(-8, 9)), side)
    period = side * rng.uniform(0.058, 0.095)
    top = cloth(rng, period, domain)
    skirt = bool(female and rng.random() < 0.45)
    worn = top.words.split(" ")[-1]
    if rng.random() < 0.55:
        bottom = cloth(rng, side * rng.uniform(0.055, 0.085), domain, avoid=(worn,))
    else:
        tone = str(rng.choice([c for c in ("navy", "charcoal", "brown", "olive", "blue", "beige") if c != worn]))
        bottom = plain(COLOURS[tone], tone)
    shoes = plain(COLOURS[str(rng.choice(["charcoal", "brown", "red", "white", "navy", "mustard"]))])
    sleeve = float(rng.choice([0.42, 0.9], p=[0.5, 0.5]))
    shorts = not skirt and rng.random() < 0.25
    bottom_name = "skirt" if skirt else "shorts" if shorts else "trousers"
    top_name = "T-shirt" if sleeve < 0.5 else str(rng.choice(["shirt", "sweater", "jacket"]))
    cover = 0.0 if skirt else 0.42 if shorts else 0.92
    build = float(rng.uniform(0.88, 1.14) * (0.94 if female else 1.04))
    return Look(name, skin, hair, top, bottom, shoes, sleeve, cover, skirt, build, top_name, bottom_name)


def figure(rng: np.random.Generator, look: Look, pose: str, origin, unit: float, shot: str) -> Group:
    """A person as a group of patches.

    Args:
        origin: (x of the middle, y of the top of the head) in canvas pixels.
        unit: height of the whole figure in canvas pixels.
        shot: "full", or "half" for a person cut by the lower edge of the picture.
    """
    arms, legs = POSES[pose]
    arms, legs = (np.radians(np.add(angles, rng.normal(0, 5, 4))) for angles in (arms, legs))
    body = _Body(rng, look, np.asarray(origin, dtype=np.float64), unit)
    sitting = pose.startswith("sitting")
    if sitting and shot == "full":
        body.stool()
    if shot == "full":
        for side, name, (thigh, shin) in ((-1, "left", legs[:2]), (1, "right", legs[2:])):
            body.leg(side, name, thigh, shin, sitting)
    front = body.back_of_head()
    body.torso(shot, sitting)
    body.patches += front
    for side, name, (upper, fore) in ((-1, "left", arms[:2]), (1, "right", arms[2:])):
        body.arm(side, name, upper, fore)
    return body.group(shot)


class _Body:
    """Collects the patches of one person; lengths in units of the person's height."""

    def __init__(self, rng, look: Look, origin, unit: float):
        self.rng, self.look, self.origin, self.unit = rng, look, origin, unit
        self.patches, self.pivots, self.hands = [], {}, {}
        self.line = max(1.0, unit * 0.0045)

    def at(self, x: float, y: float) -> np.ndarray:
        return self.origin + self.unit * np.array([x, y])

    def add(self, tags, outline, material: Material, **more) -> None:
        more.setdefault("line", self.line)
        more.setdefault("anchor", tuple(np.mean(outline, axis=0)))
        self.patches.append(Patch(tags, outline, material, **more))

    def back_of_head(self) -> list[Patch]:
        """Add the hair behind the shoulders; the rest of head and neck is returned, to be painted after the torso."""
        centre, radius = self.at(0, 0.125), 0.105 * self.unit
        behind, front = faces.head(self.rng, self.look, centre, radius, self.line)
        neck = tube(np.array([self.at(0, 0.205), self.at(0, 0.265)]), 0.036 * self.unit, 0.042 * self.unit)
        self.patches += behind
        self.pivots["head"] = tuple(self.at(0, 0.24))
        return [Patch(("neck",), neck, self.look.skin, line=self.line), *front]

    def torso(self, shot: str, sitting: bool) -> None:
        b = self.look.build
        hip = 0.57
        outline = [(-0.05, 0.245), (0.05, 0.245), (0.125 * b, 0.268), (0.145 * b, 0.31), (0.118 * b, 0.42),
                   (0.112 * b, 0.48), (0.122 * b, hip), (-0.122 * b, hip), (-0.112 * b, 0.48), (-0.118 * b, 0.42),
                   (-0.145 * b, 0.31), (-0.125 * b, 0.268)]  # fmt: skip
        outline = rounded([self.at(x, y) for x, y in outline])
        if self.look.skirt and shot == "full":
            low = 0.74 if not sitting else 0.7
            flare = 0.17 if not sitting else 0.2
            skirt = rounded([self.at(x, y) for x, y in ((-0.1 * b, 0.53), (0.1 * b, 0.53), (flare * b, low),
                                                         (0, low + 0.015), (-flare * b, low))], 2)  # fmt: skip
            self.add(("skirt",), skirt, self.look.bottom)
        self.add(("torso",), outline, self.look.top)
        collar = ellipse(self.at(0, 0.25), 0.05 * self.unit, 0.026 * self.unit)
        self.add(("torso",), collar, self.look.skin, shade=0)

    def arm(self, side: int, name: str, upper: float, fore: float) -> None:
        tags, b, u = (f"{name} arm",), self.look.build, self.unit
        shoulder = self.at(side * 0.118 * b, 0.295)
        elbow = shoulder + u * 0.15 * np.array([side * np.sin(upper), np.cos(upper)])
        way = np.array([side * np.sin(fore), np.cos(fore)])
        wrist = elbow + u * 0.14 * way
        line = bend(shoulder, elbow, wrist)
        thick = 0.7 + 0.3 * b
        angle = np.arctan2(*(wrist - shoulder)[::-1]) - np.pi / 2
        stump = tube(line[: int(len(line) * 0.4)], 0.042 * u * thick, 0.036 * u * thick)
        self.add(tags, tube(line, 0.036 * u * thick, 0.028 * u), self.look.skin, stump=stump)
        reach = (wrist + 0.01 * u * way, way, 0.072 * u)
        hand_tags = (f"{name} hand", f"{name} arm")
        self.hands[f"{name} hand"] = lambda count: hand(hand_tags, *reach, side, self.look.skin, self.line, count)
        self.patches += self.hands[f"{name} hand"](4)
        cut = max(4, int(round(len(line) * self.look.sleeve)))
        sleeve_stump = tube(line[: min(cut, int(len(line) * 0.3))], 0.046 * u * thick, 0.044 * u * thick)
        self.add(tags, tube(line[:cut], 0.046 * u * thick, 0.042 * u * thick), self.look.top,
                 angle=angle, stump=sleeve_stump)  # fmt: skip
        self.pivots[f"{name} arm"] = tuple(shoulder)
        self.pivots[f"{name} hand"] = tuple(wrist)

    def leg(self, side: int, name: str, thigh: float, shin: float, sitting: bool) -> None:
        tags, b, u = (f"{name} leg",), self.look.build, self.unit
        hip = self.at(side * 0.062 * b, 0.565)
        length = 0.13 if sitting else 0.2
        knee = hip + u * length * np.array([side * np.sin(thigh), np.cos(thigh)])
        ankle = knee + u * (0.2 if not sitting else 0.21) * np.array([side * np.sin(shin), np.cos(shin)])
        line = bend(hip, knee, ankle)
        angle = np.arctan2(*(ankle - hip)[::-1]) - np.pi / 2
        part = lambda share: line[: max(4, int(round(len(line) * share)))]  # noqa: E731
        self._shoe(side, name, ankle)
        stump = tube(part(0.42), 0.056 * u * b, 0.044 * u)
        self.add(tags, tube(line, 0.054 * u * b, 0.032 * u), self.look.skin, stump=stump)
        if self.look.leg_cover:
            stump = tube(part(min(0.42, self.look.leg_cover)), 0.064 * u * b, 0.052 * u)
            self.add(tags, tube(part(self.look.leg_cover), 0.064 * u * b, 0.044 * u), self.look.bottom,
                     angle=angle, stump=stump)  # fmt: skip
        self.pivots[f"{name} leg"] = tuple(hip)

    def _shoe(self, side: int, name: str, ankle) -> None:
        shape = np.array([(-0.04, -0.02), (0.03, -0.03), (0.05, 0.0), (0.1, 0.015), (0.1, 0.045), (-0.04, 0.045)])
        outline = rounded(ankle + self.unit * shape * (side, 1))
        self.add((f"{name} shoe", f"{name} leg"), outline, self.look.shoes)

    def stool(self) -> None:
        wood = plain(COLOURS["brown"])
        for x in (-0.1, 0.1):
            self.add(("stool",), box(*self.at(x - 0.016, 0.6), *self.at(x + 0.016, 0.89)), wood)
        self.add(("stool",), rounded([self.at(x, y) for x, y in (
            (-0.15, 0.575), (0.15, 0.575), (0.15, 0.63), (-0.15, 0.63))], 2), wood)  # fmt: skip

    def group(self, shot: str) -> Group:
        look, full = self.look, shot == "full"
        words = f"{look.name} in a {look.top.words} {look.top_name}"
        if full:
            article = "a " if look.bottom_name == "skirt" else ""
            words += f" and {article}{look.bottom.words} {look.bottom_name}"
        limbs = ("left arm", "right arm") + (("left leg", "right leg") if full else ())
        hands = () if full else ("left hand", "right hand")
        fusable = [("left arm", "torso"), ("right arm", "torso")]
        if full:
            fusable += [("left leg", "right leg")]
        else:
            fusable += [("left hand", "left hand"), ("right hand", "right hand"), ("left hand", "head"),
                        ("right hand", "head")]  # fmt: skip
        skirt = ("skirt",) if look.skirt and full else ()
        return Group(look.name, words, self.patches, self.pivots, limbs + hands + ("head",), ("head",) + hands,
                     ("head", "torso", *limbs, *hands, *skirt), tuple(fusable), {} if full else self.hands)  # fmt: skip
