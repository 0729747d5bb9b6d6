"""The table of images and the table of regions: what predictions and labels have in common at one threshold.

Regions, hits and misses are the official metric's (`lib.metrics.matching`).
"""

import cv2
import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.counts import paired_ids
from lib.metrics.mapping import map_images, pays_for
from lib.metrics.matching import (
    CHALLENGE_SIZE,
    PREDICTED_AREA_RATIO,
    SMOOTHING,
    MatchedRegion,
    classify_regions,
    counted_mask,
    to_grid,
)
from lib.scale import HEATMAP_LEVELS, mos_from_score

REGION_COLUMNS = [
    "id", "side", "status", "area", "iou", "x", "y", "x0", "y0", "x1", "y1", "votes", "heat", "response",
]  # fmt: skip
GRID = CHALLENGE_SIZE**2


def compare(
    predictions, labels, threshold: int, ids=None, min_area_ratio=PREDICTED_AREA_RATIO, workers=None, progress=None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare predictions with labels at one threshold.

    Args:
        predictions, labels: stores, or anything with `ids`, `heatmap(id)` and `table["score"]`.
        threshold: 0..255; a pixel counts as distorted when its value is above.
        ids, min_area_ratio, workers, progress: as in `lib.metrics.sweep`.

    Returns two tables. Areas are fractions of the image, places fractions of its sides, scores MOS.

    - images, one row an image (index `id`): `true_mos`, `predicted_mos`, `score_error` (predicted - true), `iou` (of
      the whole masks, with the metric's smoothing), `n_true`, `n_predicted`, `hit`, `missed` (true regions), `false`
      (predicted regions), `true_area`, `predicted_area`, `missed_area`, `false_area`, `peak` (highest predicted value).
    - regions, one row a true or predicted region that is large enough to count: `id`, `side` ("true" or "predicted"),
      `status` ("hit", "missed", "false"), `area`, `iou` (best with a region of the other side), `x`, `y` (centre),
      `x0`, `y0`, `x1`, `y1` (box), `votes` (most annotators on one of its pixels, 4 for more), `heat` (mean predicted
      value), `response` (greatest predicted value).

    Raises InputError for a threshold outside 0..255 and for ids that do not fit together.
    """
    if not 0 <= threshold <= 255:
        raise InputError(f"The threshold {threshold} cannot be used; give a whole number from 0 to 255")
    ids = paired_ids(predictions, labels, ids)
    workers = workers or pays_for(10 * len(ids))  # describing an image's regions costs as much as ten masks
    rows, regions = [], []
    for row, found in map_images(_compare_image, predictions, labels, ids, workers, threshold, min_area_ratio):
        rows.append(row)
        regions += found
        if progress:
            progress(len(rows), len(ids))
    images = pd.DataFrame(rows, index=pd.Index(ids, name="id", dtype=object))
    true, predicted = (mos_from_score(side.table["score"].reindex(ids).astype(float)) for side in (labels, predictions))
    images.insert(0, "true_mos", true)
    images.insert(1, "predicted_mos", predicted)
    images.insert(2, "score_error", predicted - true)
    return images, pd.DataFrame(regions, columns=REGION_COLUMNS)


def _compare_image(id, predictions, labels, threshold: int, min_area_ratio: float) -> tuple[dict, list[tuple]]:
    """(columns of `images`, rows of `regions`) of one image."""
    heatmap, label = predictions.heatmap(id), labels.heatmap(id)
    predicted, true = classify_regions(heatmap > threshold, label > 0, min_area_ratio)
    mask, truth = counted_mask(to_grid(heatmap > threshold), min_area_ratio), to_grid(label > 0)
    both, either = np.count_nonzero(mask & truth), np.count_nonzero(mask | truth)
    statuses = [region.status for region in (*predicted, *true)]
    row = {
        "iou": (both + SMOOTHING) / (either + SMOOTHING),
        "n_true": sum(region.status != "small" for region in true),
        "n_predicted": sum(region.status != "small" for region in predicted),
        "hit": sum(region.status == "hit" for region in true),
        "missed": statuses.count("missed"),
        "false": statuses.count("false"),
        "true_area": np.count_nonzero(truth) / GRID,
        "predicted_area": np.count_nonzero(mask) / GRID,
        "missed_area": (np.count_nonzero(truth) - both) / GRID,
        "false_area": (np.count_nonzero(mask) - both) / GRID,
        "peak": int(heatmap.max()),
    }
    size = (CHALLENGE_SIZE, CHALLENGE_SIZE)
    heatmap = cv2.resize(heatmap, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    counted = [("predicted", region) for region in predicted] + [("true", region) for region in true]
    return row, [(id, side, *_describe(one, heatmap, label)) for side, one in counted if one.status != "small"]


def _describe(region: MatchedRegion, heatmap: np.ndarray, label: np.ndarray) -> tuple:
    """`status` to `response` of one region; heatmap and label are uint8 [512, 512]."""
    x, y, width, height = cv2.boundingRect(region.contour)
    filled = np.zeros((height, width), np.uint8)
    cv2.drawContours(filled, [region.contour], -1, 1, cv2.FILLED, offset=(-x, -y))
    inside = filled.view(bool)
    values = heatmap[y : y + height, x : x + width][inside]
    votes = np.searchsorted(HEATMAP_LEVELS, label[y : y + height, x : x + width][inside].max())
    rows, columns = np.nonzero(inside)
    centre = (x + columns.mean() + 0.5, y + rows.mean() + 0.5)
    place = np.array([*centre, x, y, x + width, y + height]) / CHALLENGE_SIZE
    area = np.count_nonzero(inside) / GRID
    return region.status, area, region.iou, *place, int(votes), float(values.mean()), int(values.max())
