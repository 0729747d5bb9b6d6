"""One image of the mask inspector: read, compared by the official metric, drawn. Plain functions.

Areas are fractions of the frame, scores lie in 0..1.
"""

import dataclasses
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics import region_figures
from lib.metrics.matching import (
    CHALLENGE_SIZE,
    PREDICTED_AREA_RATIO,
    MatchedRegion,
    Truth,
    classify,
    count_regions,
    prepare_truth,
    to_grid,
)
from lib.plots import rendering
from lib.stores import LabelStore, Store

LAYERS = ("prediction", "label", "difference", "image")
FIGURES = {
    "hit_predicted": "predicted regions that hit a true one (number)",
    "n_predicted": "predicted regions that count (number)",
    "hit_true": "true regions that are hit (number)",
    "n_true": "true regions that count (number)",
    "missed_regions": "true regions that are not hit (number)",
    "false_regions": "predicted regions that hit no true one (number)",
    "wrong_regions": "missed_regions + false_regions",
    "precision": "hit_predicted / n_predicted",
    "recall": "hit_true / n_true",
    "iou": "IoU of the predicted and the true mask, 0..1",
    "predicted_area": "predicted area (fraction of the image)",
    "missed_area": "marked, not predicted (fraction of the image)",
    "false_area": "predicted, not marked (fraction of the image)",
    "wrong_area": "missed_area + false_area",
}
WITHOUT_LABEL = ("n_predicted", "predicted_area")  # the figures that need no label


@dataclass(frozen=True)
class Scene:
    """The label side of one image.

    Attributes:
        image: uint8 RGB [H, W, 3] at screen size.
        label: uint8 at its own size; None without one. truth: its regions, or None.
        annotators: (annotator, "rectangle" or "polygon", points [N, 2] in image pixels) of each region drawn.
        scale: (x, y) from image pixels to those of `image`.
        problems: sentences about files that cannot be read.
    """

    image: np.ndarray
    label: np.ndarray | None
    truth: Truth | None
    annotators: list[tuple[int, str, np.ndarray]]
    scale: tuple[float, float]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """One heatmap at one threshold: predicted and true regions with their status, and `figures_of` it."""

    predicted: list[MatchedRegion]
    true: list[MatchedRegion]
    figures: dict[str, float]


def regions_by_image(labels: LabelStore):
    """What annotators drew, rows of the split's `regions.parquet` grouped by id; None without that file."""
    path = labels.path / "regions.parquet"
    return pd.read_parquet(path).groupby("id") if path.is_file() else None


def annotators_of(regions, id: str) -> list[tuple[int, str, np.ndarray]]:
    """(annotator, shape, points [N, 2]) of each region of one image in `regions_by_image`."""
    if regions is None or id not in regions.indices:
        return []
    rows = regions.get_group(id)
    points = [np.reshape(flat, (-1, 2)).astype(float) for flat in rows["points"]]
    return list(zip(rows["annotator"].astype(int), rows["shape"], points, strict=True))


def read_scene(labels: LabelStore, id: str, regions, side: int) -> Scene:
    """Read an image with its label; a file that cannot be read becomes a problem and a placeholder.

    `regions` come from `regions_by_image`; `side` is the longer side of the picture in pixels.
    """
    row, problems, label = labels.table.loc[id], [], None
    width, height = int(row["width"]), int(row["height"])
    try:
        image = rendering.fit(labels.image(id), side)
    except InputError as error:
        problems.append(str(error))
        image = rendering.placeholder(width, height, side, str(error))
    if row["labelled"]:
        label, unread = read_heatmap(labels, id)
        problems += unread
    scale = (image.shape[1] / width, image.shape[0] / height)
    return Scene(image, label, truth_of(label), annotators_of(regions, id), scale, tuple(problems))


def read_heatmap(store: Store, id: str) -> tuple[np.ndarray | None, list[str]]:
    """(heatmap, []) or (None, [what is wrong with its file])."""
    try:
        return store.heatmap(id), []
    except InputError as error:
        return None, [str(error)]


def truth_of(label: np.ndarray | None) -> Truth | None:
    """The regions of a label heatmap, found once for all thresholds; None without a label."""
    return None if label is None else prepare_truth(label > 0)


def compare(heatmap, truth: Truth | None, threshold: int, min_area: float = PREDICTED_AREA_RATIO) -> Comparison:
    """Match the regions of a heatmap above `threshold` with those of the label, as the challenge does.

    Args:
        heatmap: uint8 [H, W]; with None nothing is predicted.
        truth: see `truth_of`; without it predicted regions have the status "unjudged".
        threshold: 0..255. min_area: contour area (fraction of the frame) that a predicted region must exceed.
    """
    predicted, true = classify(_mask(heatmap, threshold), truth or _no_regions(), min_area)
    if truth is None:
        predicted = [dataclasses.replace(one, status="unjudged") if one.status == "false" else one for one in predicted]
    return Comparison(predicted, true, figures_of(heatmap, truth, threshold, min_area))


def figures_of(heatmap, truth: Truth | None, threshold: int, min_area: float = PREDICTED_AREA_RATIO) -> dict:
    """FIGURES of one image, arguments as in `compare`; NaN where undefined or where a heatmap is missing."""
    if heatmap is None:
        return dict.fromkeys(FIGURES, np.nan)
    counts = count_regions(_mask(heatmap, threshold), truth or _no_regions(), min_area)
    found = {name: getattr(counts, name) for name in ("hit_predicted", "n_predicted", "hit_true", "n_true")}
    shares, frame = region_figures(found), CHALLENGE_SIZE**2
    missed, false = counts.n_true - counts.hit_true, counts.n_predicted - counts.hit_predicted
    missed_area = (counts.union - counts.predicted_pixels) / frame
    false_area = (counts.predicted_pixels - counts.intersection) / frame
    found |= {
        "missed_regions": missed,
        "false_regions": false,
        "wrong_regions": missed + false,
        "precision": float(shares["precision"]) if counts.n_predicted else np.nan,
        "recall": float(shares["recall"]),
        "iou": counts.iou,
        "predicted_area": counts.predicted_pixels / frame,
        "missed_area": missed_area,
        "false_area": false_area,
        "wrong_area": missed_area + false_area,
    }
    return found if truth else {name: found[name] if name in WITHOUT_LABEL else np.nan for name in FIGURES}


@cache
def _no_regions() -> Truth:
    return prepare_truth(_mask(None, 0))


def _mask(heatmap: np.ndarray | None, threshold: int) -> np.ndarray:
    """uint8 0/1 [512, 512]."""
    if heatmap is None:
        return np.zeros((CHALLENGE_SIZE, CHALLENGE_SIZE), np.uint8)
    return to_grid(heatmap > threshold)


def draw(
    scene: Scene,
    heatmap: np.ndarray | None,
    comparison: Comparison,
    layer: str,
    threshold: int,
    opacity: float = 0.5,
    regions: bool = True,
    annotators: bool = False,
) -> np.ndarray:
    """One picture, uint8 RGB at screen size; what a layer needs and the image lacks is left out.

    Args:
        layer: one of LAYERS. opacity: 0..1, of what lies over the image.
        regions: outline predicted and missed regions; on the layer "label" all true ones.
        annotators: outline what annotators drew.
    """
    picture, size, label = scene.image, scene.image.shape[1::-1], scene.label
    if layer == "prediction" and heatmap is not None:
        picture = rendering.heat_overlay(picture, heatmap, opacity, threshold)
    elif layer == "label" and label is not None:
        picture = rendering.heat_overlay(picture, rendering.resize_levels(label, size), opacity)
    elif layer == "difference" and heatmap is not None and label is not None:
        masks = rendering.resize(heatmap, size) > threshold, rendering.resize_levels(label, size) > 0
        picture = rendering.difference_overlay(picture, *masks, opacity)
    if regions:
        missed = [region for region in comparison.true if region.status == "missed"]
        shown = comparison.true if layer == "label" else [*missed, *comparison.predicted]
        picture = rendering.draw_regions(picture, shown)
    return rendering.draw_annotators(picture, scene.annotators, scene.scale) if annotators else picture
