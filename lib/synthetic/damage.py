"""Damage: what is done to a part of a scene.

Some kinds change the patches before they are painted (a limb too many, a limb missing), the others move pixels
of the painted figure. The background behind the figure stays sound in both cases.
"""

from dataclasses import dataclass, replace

import numpy as np

from lib.synthetic.paint import Group
from lib.synthetic.shapes import turn_about

KINDS = {"shown": ("warped", "melted", "scrambled", "duplicated", "missing", "fused", "extra_fingers", "extra_limb"),
         "shifted": ("twisted", "pixel_sorted")}  # fmt: skip
WEIGHTS = {"warped": 0.25, "melted": 0.17, "scrambled": 0.16, "duplicated": 0.1, "missing": 0.1, "fused": 0.1,
           "extra_fingers": 0.4, "extra_limb": 0.06, "twisted": 0.35, "pixel_sorted": 0.35}  # fmt: skip
# A limb is missing or not: where strength does not show in the picture it hardly varies.
SEVERITY = {"missing": (0.7, 0.9), "duplicated": (0.6, 0.8), "extra_limb": (0.6, 0.8)}
SMALLEST = 0.14  # a damaged part spans at least this share of the shorter side


@dataclass(frozen=True)
class Damage:
    """One distortion: its kind, the group (index) and part it strikes, its severity 0..1 and a seed."""

    kind: str
    group: int
    part: str
    severity: float
    seed: int
    other: str = ""


def random_damages(rng: np.random.Generator, groups: list[Group], shape, domain: str) -> list[Damage]:
    """Draw none (sound), one (mostly), two or three damages on different parts.

    Args:
        shape: (H, W) of the canvas, to leave out parts that are too small or outside of it.
    """
    number = int(rng.choice([0, 1, 2, 3], p=[0.17, 0.55, 0.2, 0.08]))
    names = KINDS["shown"] + (KINDS["shifted"] if domain == "shifted" else ())
    chances = np.array([WEIGHTS[name] for name in names])
    damages: list[Damage] = []
    for _ in range(number * 12):
        if len(damages) == number:
            break
        kind = str(rng.choice(names, p=chances / chances.sum()))
        index = int(rng.integers(len(groups)))
        part, other = _target(rng, kind, groups[index])
        clash = any(d.group == index and _related(d, part, other) for d in damages)
        fits = part and not clash and _large_enough(groups[index], part, shape)
        if fits and _adjacent(groups[index], part, other, shape):
            severity = float(np.round(rng.uniform(*SEVERITY.get(kind, (0.25, 1.0))), 3))
            damages.append(Damage(kind, index, part, severity, int(rng.integers(2**31)), other))
    return damages


def _related(damage: Damage, part: str, other: str) -> bool:
    # "left hand" lies on "left arm": damaging both would make one region with two causes.
    if {part, other} & {damage.part, damage.other} - {""}:
        return True
    sides = [name.split(" ")[0] for name in (damage.part, damage.other) if name.endswith(("arm", "hand"))]
    return any(name.split(" ")[0] in sides for name in (part, other) if name.endswith(("arm", "hand")))


def _target(rng, kind: str, group: Group) -> tuple[str, str]:
    pick = lambda names: str(names[rng.integers(len(names))]) if names else ""  # noqa: E731
    if kind == "extra_fingers":
        return pick(list(group.hands)), ""
    if kind == "extra_limb":
        return pick([p for p in group.limbs if group.figure and p.endswith((" arm", " leg"))]), ""
    if kind == "duplicated":
        return pick(group.copies), ""
    if kind == "missing":
        return pick(group.limbs), ""
    if kind == "fused":
        return group.fusable[rng.integers(len(group.fusable))] if group.fusable else ("", "")
    return pick(group.textured), ""


def _large_enough(group: Group, part: str, shape) -> bool:
    outlines = [patch.outline for patch in group.of(part)]
    if not outlines:
        return False
    points = np.concatenate(outlines)
    low, high = points.min(axis=0), points.max(axis=0)
    inside = np.minimum(high, shape[::-1]) - np.maximum(low, 0)
    if (inside <= 0).any() or inside.prod() < 0.6 * (high - low).prod():
        return False
    return inside.max() >= SMALLEST * min(shape) and inside.min() >= 0.05 * min(shape)


def _adjacent(group: Group, part: str, other: str, shape) -> bool:
    """Whether two parts are near enough to grow together; true when there is only one."""
    if other in ("", part):
        return True
    first, second = (np.concatenate([patch.outline for patch in group.of(name)]) for name in (part, other))
    gaps = np.hypot(*(first[:, None] - second[None]).transpose(2, 0, 1))
    return bool(gaps.min() < 0.08 * min(shape))


def reshape(group: Group, damage: Damage, shape) -> None:
    """Carry out a damage of the kinds that add or remove patches, on `group` in place."""
    rng = np.random.default_rng(damage.seed)
    if damage.kind == "missing":
        _remove(group, damage.part)
    elif damage.kind == "extra_fingers":
        _replace_hand(group, damage.part, 6 + int(round(3 * damage.severity)))
    elif damage.kind in ("duplicated", "extra_limb"):
        _copy(rng, group, damage, shape)


def _remove(group: Group, part: str) -> None:
    changed = []
    for patch in group.patches:
        if part not in patch.tags:
            changed.append(patch)
            continue
        changed.append(replace(patch, when="sound"))
        if patch.stump is not None:
            changed.append(replace(patch, outline=patch.stump, when="damaged", stump=None))
    group.patches[:] = changed


def _replace_hand(group: Group, part: str, fingers: int) -> None:
    first = next(i for i, patch in enumerate(group.patches) if part in patch.tags)
    group.patches[:] = [replace(p, when="sound") if part in p.tags else p for p in group.patches]
    group.patches[first:first] = [replace(p, when="damaged") for p in group.hands[part](fingers)]


def _copy(rng, group: Group, damage: Damage, shape) -> None:
    part = damage.part
    patches = group.of(part)
    points = np.concatenate([patch.outline for patch in patches])
    span = points.max(axis=0) - points.min(axis=0)
    centre = (points.max(axis=0) + points.min(axis=0)) / 2
    pivot = group.pivots.get(part, tuple(centre))
    sign = 1 if centre[0] < shape[1] / 2 else -1  # towards the middle, where there is room
    if damage.kind == "extra_limb":
        sign = -1 if part.startswith("left") else 1
        turn = np.radians(rng.uniform(32, 62)) * (1 if part.endswith("arm") else -0.6)
        # An arm that already points up gets its copy below, so that the two do not coincide with the head.
        turn *= -sign if centre[1] > pivot[1] else sign
        matrix = turn_about(pivot, turn)
    elif part.endswith(("arm", "leg")) and not group.figure:
        matrix = turn_about(pivot, np.radians(rng.uniform(18, 30)) * -sign, (sign * span[0] * 0.5, 0))
    else:
        shift = sign * span[0] * rng.uniform(0.5, 0.85), -span[1] * rng.uniform(0.0, 0.12)
        matrix = turn_about(pivot, np.radians(rng.uniform(6, 20)) * sign, shift)
    first = next(i for i, patch in enumerate(group.patches) if part in patch.tags)
    group.patches[first:first] = [patch.moved(matrix, when="damaged", stump=None) for patch in patches]
