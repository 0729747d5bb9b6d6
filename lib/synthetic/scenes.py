"""Scenes: who and what stands where, with the prompt that says so."""

from dataclasses import dataclass

import numpy as np

from lib.synthetic.backgrounds import PLACES, shadow
from lib.synthetic.figures import POSE_NAMES, figure, random_look
from lib.synthetic.objects import THINGS, thing
from lib.synthetic.paint import Group

ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:4": 3 / 4, "3:2": 3 / 2, "2:3": 2 / 3}
LAYOUTS = {"half": 0.34, "full": 0.26, "beside": 0.14, "still_life": 0.18, "pair": 0.08}
_SHAPES = {"beside": ("1:1", "4:3", "3:2"), "pair": ("1:1", "4:3", "3:2"), "still_life": ("1:1", "4:3", "3:4", "3:2")}


@dataclass
class Scene:
    """A picture before it is painted: the painted background uint8 [H, W, 3], groups from back to front."""

    canvas: np.ndarray
    groups: list[Group]
    prompt: str
    layout: str
    light: float
    side: float  # geometric mean of width and height, pixels


def random_scene(rng: np.random.Generator, side: float, domain: str) -> Scene:
    """Draw a scene whose canvas has `side` pixels as the geometric mean of its sides."""
    layout = str(rng.choice(list(LAYOUTS), p=list(LAYOUTS.values())))
    aspect = ASPECTS[str(rng.choice(_SHAPES.get(layout, tuple(ASPECTS))))]
    width, height = int(round(side * aspect**0.5)), int(round(side / aspect**0.5))
    elsewhere = domain == "shifted" and rng.random() < 0.6
    places = PLACES["shifted" if elsewhere else "shown"]
    place = str(rng.choice(list(places)))
    canvas = places[place](rng, (height, width), side)
    light = float(rng.choice([-1.0, 1.0]))
    groups, words = _LAYOUT[layout](rng, canvas, side, domain)
    return Scene(canvas, groups, f"a photo of {words} {place}", layout, light, side)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _person(rng, canvas, side, domain, x: float, room: float, shot: str) -> tuple[Group, str]:
    height = canvas.shape[0]
    if shot == "half":
        unit = min(height * 0.92 / 0.585, room / 0.5)
        top = height - 0.565 * unit
    else:
        unit = min(height * 0.93, room / 0.56)
        top = height * 0.975 - unit
        shadow(canvas, (x, top + unit * 0.985), unit * 0.24, unit * 0.035)
    poses = [p for p in POSE_NAMES[domain] if shot == "full" or p not in ("walking", "sitting on a stool", "jumping")]
    pose = str(rng.choice(poses))
    if shot == "full":
        top += {"jumping": -0.03, "sitting on a stool": 0.085}.get(pose, 0.0) * unit
    look = random_look(rng, unit, domain, side)
    group = figure(rng, look, pose, (x, top), unit, shot)
    return group, f"{_article(group.words)} {pose}"


def _half(rng, canvas, side, domain):
    height, width = canvas.shape[:2]
    x = width * (0.5 + rng.uniform(-0.06, 0.06))
    group, words = _person(rng, canvas, side, domain, x, max(width, height * 0.8), "half")
    return [group], words


def _full(rng, canvas, side, domain):
    width = canvas.shape[1]
    x = width * (0.5 + rng.uniform(-0.06, 0.06))
    group, words = _person(rng, canvas, side, domain, x, width, "full")
    return [group], words


def _pair(rng, canvas, side, domain):
    width = canvas.shape[1]
    shot = str(rng.choice(["half", "full"]))
    left, left_words = _person(rng, canvas, side, domain, width * 0.27, width * 0.56, shot)
    right, right_words = _person(rng, canvas, side, domain, width * 0.73, width * 0.56, shot)
    return [left, right], f"{left_words} and {right_words}"


def _thing(rng, canvas, side, domain, x: float, room: float, low: float, names=None) -> Group:
    height = canvas.shape[0]
    names = names or [*THINGS["shown"], *(list(THINGS["shifted"]) * 3 if domain == "shifted" else ())]
    name = str(rng.choice(names))
    _, ratio, share = (THINGS["shown"] | THINGS["shifted"])[name]
    unit = min(height * share * rng.uniform(0.95, 1.15), room / ratio)
    shadow(canvas, (x, height * low), unit * ratio * 0.45, unit * 0.035)
    return thing(rng, name, (x, height * low - unit), unit, side, domain)


def _beside(rng, canvas, side, domain):
    width = canvas.shape[1]
    flip = rng.random() < 0.5
    person_x, thing_x = (0.72, 0.27) if flip else (0.28, 0.73)
    tall = [n for n in THINGS["shown"] if n not in ("clock", "teapot")] + (["vase"] * 3 if domain == "shifted" else [])
    item = _thing(rng, canvas, side, domain, width * thing_x, width * 0.5, rng.uniform(0.92, 0.96), tall)
    person, words = _person(rng, canvas, side, domain, width * person_x, width * 0.6, "full")
    return [item, person], f"{words} beside {_article(item.words)}"


def _still_life(rng, canvas, side, domain):
    width = canvas.shape[1]
    low = rng.uniform(0.88, 0.95)
    if width < canvas.shape[0] * 1.2 or rng.random() < 0.4:
        item = _thing(rng, canvas, side, domain, width / 2, width * 0.86, low)
        return [item], _article(item.words)
    left = _thing(rng, canvas, side, domain, width * 0.27, width * 0.45, low)
    others = [n for n in THINGS["shown"] if n != left.name]
    right = _thing(rng, canvas, side, domain, width * 0.74, width * 0.45, low, others)
    return [left, right], f"{_article(left.words)} and {_article(right.words)}"


_LAYOUT = {"half": _half, "full": _full, "beside": _beside, "still_life": _still_life, "pair": _pair}
