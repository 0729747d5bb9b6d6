"""One image as the mask inspector shows it: read, judged by the official metric and drawn, in plain functions.

Areas are fractions of the frame, scores lie in 0..1. `ranking` orders all images, `verdicts` keeps what people say of
them, `lib.plots.rendering` draws, `inspector` is the widget.
"""

import dataclasses
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics import region_figures
from lib.metrics.matching import (
    CHALLENGE_SIZE,
    PREDICTED_AREA_RATIO,
    MatchedRegion,
    RegionCounts,
    Truth,
    classify,
    count_regions,
    prepare_truth,
    to_grid,
)
from lib.plots import rendering
from lib.stores import LabelStore, Store

LAYERS = ("prediction", "label", "difference", "image")
SIDE = 768  # pixels of a picture's longer side on the screen
WITHOUT_LABEL = ("n_predicted", "predicted_area")  # the figures that need none


@dataclass(frozen=True)
class Scene:
    """The label side of one image.

    `image` is RGB at screen size; `label` uint8 at its own size and `truth` its regions, both None without one;
    `annotators` are (annotator, "rectangle" or "polygon", points [N, 2] in image pixels) and `scale` (x, y) leads from
    there to the picture; `problems` are sentences about what could not be read.
    """

    image: np.ndarray
    label: np.ndarray | None
    truth: Truth | None
    annotators: list[tuple[int, str, np.ndarray]]
    scale: tuple[float, float]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """One heatmap at one threshold: predicted and true regions with their status, and the figures of `errors_of`."""

    predicted: list[MatchedRegion]
    true: list[MatchedRegion]
    figures: dict[str, float]


class AnnotatorRegions:
    """What annotators drew, from a split's `regions.parquet`; without that file there are none."""

    def __init__(self, labels: LabelStore):
        self.path = labels.path / "regions.parquet"

    @cached_property
    def _table(self) -> tuple[pd.DataFrame, dict]:
        if not self.path.is_file():
            return pd.DataFrame(), {}
        table = pd.read_parquet(self.path)
        return table, table.groupby("id").indices

    def of(self, id: str) -> list[tuple[int, str, np.ndarray]]:
        """(annotator, shape, points [N, 2]) of one image."""
        table, rows = self._table
        if id not in rows:
            return []
        part = table.iloc[rows[id]]
        points = [np.reshape(flat, (-1, 2)).astype(float) for flat in part["points"]]
        return list(zip(part["annotator"].astype(int), part["shape"], points, strict=True))


def read_scene(labels: LabelStore, id: str, annotators: AnnotatorRegions, side: int = SIDE) -> Scene:
    """Read an image with its label. A file that cannot be read becomes a problem, and a placeholder is shown."""
    row, problems, label, truth = labels.table.loc[id], [], None, None
    width, height = int(row["width"]), int(row["height"])
    try:
        image = rendering.fit(labels.image(id), side)
    except InputError as error:
        problems.append(str(error))
        image = rendering.placeholder(width, height, side, str(error))
    if row["labelled"]:
        label, problem = read_or_tell(labels, id)
        problems += problem
        truth = truth_of(label)
    scale = (image.shape[1] / width, image.shape[0] / height)
    return Scene(image, label, truth, annotators.of(id), scale, tuple(problems))


def read_or_tell(store: Store, id: str) -> tuple[np.ndarray | None, list[str]]:
    """The heatmap of a store and no problem, or None and the problem."""
    try:
        return store.heatmap(id), []
    except InputError as error:
        return None, [str(error)]


def truth_of(label: np.ndarray | None) -> Truth | None:
    """The regions of a label heatmap, found once for all thresholds; None without a label."""
    return None if label is None else prepare_truth(label > 0)


def judge(prediction, truth: Truth | None, threshold: int, min_area: float = PREDICTED_AREA_RATIO) -> Judgement:
    """Match the regions of a heatmap above `threshold` with those of the label, as the challenge does.

    Arguments: `prediction` uint8 [H, W] or None; `truth` see `truth_of`; `min_area` see `classify`.
    Without a prediction nothing is predicted; without a label the predicted regions have the status "unjudged".
    """
    predicted, true = classify(_mask(prediction, threshold), truth or _nothing(), min_area)
    if truth is None:
        predicted = [dataclasses.replace(one, status="unjudged") if one.status == "false" else one for one in predicted]
    return Judgement(predicted, true, errors_of(prediction, truth, threshold, min_area))


def errors_of(
    prediction, truth: Truth | None, threshold: int, min_area: float = PREDICTED_AREA_RATIO
) -> dict[str, float]:
    """Figures of one image, arguments as in `judge`; NaN where they are undefined or need a heatmap that is not there.

    Counts of regions: `n_predicted`, `n_true`, `hit_predicted`, `hit_true`, `missed_regions`, `false_regions` and
    their sum `wrong_regions`. Shares: `precision`, `recall`, `iou`. Areas of the masks as fractions of the frame:
    `predicted_area`, `missed_area`, `false_area` and the sum of these two, `wrong_area`.
    """
    figures = _figures(count_regions(_mask(prediction, threshold), truth or _nothing(), min_area))
    if prediction is None:
        return dict.fromkeys(figures, np.nan)
    if truth is None:
        return {name: value if name in WITHOUT_LABEL else np.nan for name, value in figures.items()}
    return figures


@cache
def _nothing() -> Truth:
    return prepare_truth(_mask(None, 0))


def _mask(prediction: np.ndarray | None, threshold: int) -> np.ndarray:
    """uint8 0/1 [512, 512]."""
    if prediction is None:
        return np.zeros((CHALLENGE_SIZE, CHALLENGE_SIZE), np.uint8)
    return to_grid(prediction > threshold)


def _figures(counts: RegionCounts) -> dict[str, float]:
    regions = {name: getattr(counts, name) for name in ("hit_predicted", "n_predicted", "hit_true", "n_true")}
    shares = region_figures(regions)
    frame = CHALLENGE_SIZE**2
    missed, false = counts.n_true - counts.hit_true, counts.n_predicted - counts.hit_predicted
    missed_area = (counts.union - counts.predicted_pixels) / frame
    false_area = (counts.predicted_pixels - counts.intersection) / frame
    return regions | {
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


FIGURES = tuple(errors_of(None, None, 0))


def draw(
    scene: Scene,
    prediction: np.ndarray | None,
    judgement: Judgement,
    layer: str,
    threshold: int,
    opacity: float = 0.5,
    regions: bool = True,
    annotators: bool = False,
) -> np.ndarray:
    """One picture, RGB at screen size; what a layer needs and the image lacks is left out.

    Arguments: `layer` one of LAYERS; `opacity` 0..1 of what lies over the image; `regions` outlines the predicted
    regions and the missed ones, on the layer "label" all true ones; `annotators` outlines what they drew.
    """
    if layer not in LAYERS:
        raise InputError(f"There is no layer {layer!r}; choose among {', '.join(LAYERS)}")
    picture, size, label = scene.image, scene.image.shape[1::-1], scene.label
    if layer == "prediction" and prediction is not None:
        picture = rendering.heat_overlay(picture, prediction, opacity, threshold)
    elif layer == "label" and label is not None:
        picture = rendering.heat_overlay(picture, rendering.resize_levels(label, size), opacity)
    elif layer == "difference" and prediction is not None and label is not None:
        masks = rendering.resize(prediction, size) > threshold, rendering.resize_levels(label, size) > 0
        picture = rendering.difference_overlay(picture, *masks, opacity)
    if regions:
        missed = [region for region in judgement.true if region.status == "missed"]
        shown = judgement.true if layer == "label" else [*missed, *judgement.predicted]
        picture = rendering.draw_regions(picture, shown)
    return rendering.draw_annotators(picture, scene.annotators, scene.scale) if annotators else picture
