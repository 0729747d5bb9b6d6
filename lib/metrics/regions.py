"""The table of images and the table of regions: what predictions and labels have in common at one threshold.

Regions, hits and misses are the official metric's (`lib.metrics.matching`).
"""

import cv2
import numpy as np
import pandas as pd

from lib.metrics.counts import paired_ids
from lib.metrics.heatmaps import map_images
from lib.metrics.matching import (
    CHALLENGE_SIZE,
    GRID,
    PREDICTED_AREA_RATIO,
    SMOOTHING,
    MatchedRegion,
    classify_regions,
    count_regions,
    filled,
    prepare_truth,
    to_grid,
)
from lib.scale import HEATMAP_LEVELS, mos_from_score

FRAME = "fraction of the frame's side, 0..1"
IMAGE_COLUMNS = {
    "true_mos": "mean opinion score of the label, 1 (broken) .. 5 (sound)",
    "predicted_mos": "predicted score, MOS 1..5",
    "score_error": "predicted_mos - true_mos (MOS)",
    "iou": "IoU of the predicted and the true mask, 0..1",
    "n_true": "true regions that count (number)",
    "n_predicted": "predicted regions that count (number)",
    "hit": "true regions that a predicted one overlaps with an IoU above 0.1 (number)",
    "missed": "true regions that are not hit (number)",
    "false": "predicted regions that hit no true one (number)",
    "true_area": "marked area (fraction of the image)",
    "predicted_area": "predicted area (fraction of the image)",
    "missed_area": "marked, not predicted (fraction of the image)",
    "false_area": "predicted, not marked (fraction of the image)",
    "peak": "greatest predicted value, 0..255",
}
REGION_COLUMNS = {
    "id": "the image",
    "side": "true (in the label) or predicted",
    "status": "hit, missed (true, not found) or false (predicted, not true)",
    "area": "area of the region (fraction of the image)",
    "iou": "best IoU with a region of the other side, 0..1",
    "x": f"centre ({FRAME})",
    "y": f"centre ({FRAME})",
    "x0": f"left ({FRAME})",
    "y0": f"top ({FRAME})",
    "x1": f"right ({FRAME})",
    "y1": f"bottom ({FRAME})",
    "votes": "most annotators on one of its pixels, 0..4 (4: four or more)",
    "heat": "mean predicted value in it, 0..255",
    "response": "greatest predicted value in it, 0..255",
}
SIZE = (CHALLENGE_SIZE, CHALLENGE_SIZE)
OF_PREDICTION = ("n_predicted", "predicted_area", "peak")  # the columns of an image that need no label


def compare(
    predictions, labels, threshold: int, ids=None, min_area_ratio=PREDICTED_AREA_RATIO, workers=None, progress=None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare predictions with labels at one threshold.

    Args:
        predictions, labels: see `lib.metrics.heatmaps`.
        threshold: 0..255; a pixel counts as distorted when its value is above.
        ids, min_area_ratio, workers, progress: as in `lib.metrics.counts.sweep`.

    Returns a table with one row an image (index `id`, see IMAGE_COLUMNS) and one with a row a true or predicted region
    that is large enough to count (see REGION_COLUMNS).
    Raises InputError for ids that do not fit together.
    """
    ids = paired_ids(predictions, labels, ids)
    options = {"cost": 10, "workers": workers, "progress": progress}
    found = list(map_images(_compare_image, predictions, labels, ids, threshold, min_area_ratio, **options))
    images = pd.DataFrame([row for row, _ in found], index=pd.Index(ids, name="id", dtype=object))
    true, predicted = (mos_from_score(side.table["score"].reindex(ids).astype(float)) for side in (labels, predictions))
    images.insert(0, "true_mos", true)
    images.insert(1, "predicted_mos", predicted)
    images.insert(2, "score_error", predicted - true)
    return images, pd.DataFrame([row for _, rows in found for row in rows], columns=list(REGION_COLUMNS))


def compare_image(
    heatmap: np.ndarray, label: np.ndarray | None, threshold: int, min_area_ratio: float = PREDICTED_AREA_RATIO
) -> tuple[dict, list[MatchedRegion], list[MatchedRegion]]:
    """Compare one heatmap with its label (uint8 [H, W] each).

    Returns (columns `iou` to `peak` of `images` in `compare`, predicted regions, true regions); the regions include
    those too small to count. Without a label all columns but OF_PREDICTION are NaN, and predicted regions that count
    are "unjudged".
    """
    found, truth = to_grid(heatmap > threshold), prepare_truth(np.zeros(SIZE, bool) if label is None else label > 0)
    predicted, true = classify_regions(found, truth, min_area_ratio, "false" if label is not None else "unjudged")
    [counts] = count_regions(found, truth, (min_area_ratio,))
    row = {
        "iou": (counts.intersection + SMOOTHING) / (counts.union + SMOOTHING),
        "n_true": counts.n_true,
        "n_predicted": counts.n_predicted,
        "hit": counts.hit_true,
        "missed": counts.n_true - counts.hit_true,
        "false": counts.n_predicted - counts.hit_predicted,
        "true_area": truth.pixels / GRID,
        "predicted_area": counts.predicted_pixels / GRID,
        "missed_area": (truth.pixels - counts.intersection) / GRID,
        "false_area": (counts.predicted_pixels - counts.intersection) / GRID,
        "peak": int(heatmap.max()),
    }
    if label is None:
        row = {name: value if name in OF_PREDICTION else np.nan for name, value in row.items()}
    return row, predicted, true


def _compare_image(id, predictions, labels, threshold: int, min_area_ratio: float) -> tuple[dict, list[tuple]]:
    """(columns of `images`, rows of `regions`) of one image."""
    heatmap, label = predictions.heatmap(id), labels.heatmap(id)
    row, predicted, true = compare_image(heatmap, label, threshold, min_area_ratio)
    heatmap = cv2.resize(heatmap, SIZE, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, SIZE, interpolation=cv2.INTER_NEAREST)
    counted = [("predicted", region) for region in predicted] + [("true", region) for region in true]
    return row, [(id, side, *_describe(one, heatmap, label)) for side, one in counted if one.status != "small"]


def _describe(region: MatchedRegion, heatmap: np.ndarray, label: np.ndarray) -> tuple:
    """`status` to `response` of one region; heatmap and label are uint8 [512, 512]."""
    box, inside = filled(region.contour)
    values, votes = heatmap[box][inside], np.searchsorted(HEATMAP_LEVELS, label[box][inside].max())
    (y0, y1), (x0, x1) = ((side.start, side.stop) for side in box)
    rows, columns = np.nonzero(inside)
    place = np.array([x0 + columns.mean() + 0.5, y0 + rows.mean() + 0.5, x0, y0, x1, y1]) / CHALLENGE_SIZE
    return region.status, len(values) / GRID, region.iou, *place, int(votes), float(values.mean()), int(values.max())
