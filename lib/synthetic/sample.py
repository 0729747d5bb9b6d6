"""One procedural image with everything that is known about it."""

from dataclasses import dataclass

import cv2
import numpy as np

from lib.synthetic.annotators import annotate, opinion_score, visible_damage
from lib.synthetic.damage import Damage, random_damages, reshape
from lib.synthetic.paint import paint
from lib.synthetic.pixels import Layer, distort
from lib.synthetic.scenes import Scene, random_scene

STREAM = 20250  # sets the random streams of this module apart from others with the same seeds


@dataclass(frozen=True)
class Sample:
    """An image of the procedural data set.

    image: uint8 RGB [H, W, 3]; sound: the same scene without damage. prompt, mos (1..5, in thirds) and annotators
    (`bbox_info`) as in the challenge. truth: uint8 [H, W] of 0/1, the damaged region. kinds, parts: one entry a
    damage. severity: 0..1, the greatest. visible: the damage that `mos` follows.
    """

    image: np.ndarray
    sound: np.ndarray
    prompt: str
    mos: float
    annotators: list
    truth: np.ndarray
    kinds: tuple[str, ...]
    parts: tuple[str, ...]
    severity: float
    visible: float
    domain: str
    layout: str


def make_sample(seed: int | tuple[int, ...], size: int = 256, domain: str = "shown", damaged: bool = True) -> Sample:
    """Draw one sample; the same arguments give the same sample.

    Args:
        seed: any non-negative number or tuple of them. size: geometric mean of width and height, pixels.
        domain: "shown", or "shifted" for textures, places, things and damage that "shown" never has.
        damaged: False draws a sound image only.
    """
    rng = np.random.default_rng([STREAM, *np.atleast_1d(seed)])
    factor = 2 if size < 400 else 1
    scene = random_scene(rng, float(size * factor), domain)
    damages = random_damages(rng, scene.groups, scene.canvas.shape[:2], domain) if damaged else []
    sound, image = _paint_pair(scene, damages)
    target = tuple(int(round(n / factor)) for n in image.shape[1::-1])
    sound, image = (cv2.resize(c, target, interpolation=cv2.INTER_AREA) for c in (sound, image))
    truth = changed_region(sound, image, _hands(scene, damages, image.shape[:2], factor))
    if damages and truth.mean() < 0.004:  # hidden behind something, or out of the picture: the image is sound
        damages, image, truth = [], sound, np.zeros_like(truth)
    severity = max((d.severity for d in damages), default=0.0)
    mean_severity = float(np.mean([d.severity for d in damages])) if damages else 0.0
    visible = visible_damage(truth, mean_severity)
    noise = rng.normal(0, rng.uniform(1, 3.5), image.shape[:2])[..., None].astype(np.float32)
    image, sound = (np.clip(c + noise + 0.5, 0, 255).astype(np.uint8) for c in (image, sound))
    return Sample(image, sound, scene.prompt, opinion_score(rng, visible), annotate(rng, truth, mean_severity), truth,
                  tuple(d.kind for d in damages), tuple(_named(scene, d) for d in damages), severity, visible,
                  domain, scene.layout)  # fmt: skip


def _named(scene: Scene, damage: Damage) -> str:
    """The part with its owner when that is a thing: "chair back", "left hand"; fused parts joined by "and"."""
    group = scene.groups[damage.group]
    part = damage.part if damage.other in ("", damage.part) else f"{damage.part} and {damage.other}"
    return part if group.figure or part.startswith(group.name) else f"{group.name} {part}"


def _paint_pair(scene: Scene, damages: list[Damage]):
    """Paint the scene sound and damaged; uint8 [H, W, 3] each, the same array up to the first damaged group."""
    sound = image = scene.canvas
    shape = image.shape[:2]
    for index, group in enumerate(scene.groups):
        own = [d for d in damages if d.group == index]
        if own and image is sound:
            image = sound.copy()
        for damage in own:
            reshape(group, damage, shape)
        layer = Layer(image, image.copy(), np.zeros(shape, np.uint8), scene.side) if own else None
        both = [image] if image is sound else [sound, image]
        for patch in group.patches:
            canvases = {"sound": [sound], "damaged": [image], "both": both}[patch.when]
            paint(patch, canvases, scene.light, layer.alpha if layer and patch.when != "sound" else None)
        for damage in own:
            distort(layer, group, damage)
    return sound, image


def _hands(scene: Scene, damages: list[Damage], shape, factor: int) -> np.ndarray:
    # Fingers too many make the whole hand wrong, though its palm has hardly changed.
    mask = np.zeros(shape, np.uint8)
    for damage in damages:
        in_front = damage.group == len(scene.groups) - 1
        if damage.kind == "extra_fingers" and in_front:
            outlines = [p.outline for p in scene.groups[damage.group].of(damage.part) if p.when == "damaged"]
            cv2.fillConvexPoly(mask, cv2.convexHull(np.concatenate(outlines) / factor).astype(np.int32), 1)
    return mask


def changed_region(sound: np.ndarray, image: np.ndarray, also: np.ndarray | None = None) -> np.ndarray:
    """The region where two renderings [H, W, 3] differ, gaps closed and specks removed; uint8 [H, W] of 0/1.

    Args:
        also: uint8 [H, W] of 0/1, pixels that belong to it in any case.
    """
    red, green, blue = cv2.split(cv2.absdiff(sound, image))
    changed = (cv2.max(cv2.max(red, green), blue) > 10).astype(np.uint8)
    if also is not None:
        changed |= also
    side = np.sqrt(changed.size)
    reach = int(side * 0.055) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    padded = cv2.copyMakeBorder(changed, reach, reach, reach, reach, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc)[reach:-reach, reach:-reach]
    contours = cv2.findContours(np.ascontiguousarray(closed), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    contours = [c for c in contours if cv2.contourArea(c) > 0.0012 * changed.size]
    return cv2.drawContours(np.zeros_like(changed), contours, -1, 1, cv2.FILLED)
