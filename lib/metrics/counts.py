"""Region counts of every image at every threshold.

Heatmaps are read one at a time, so memory does not grow with the number of images.
"""

from dataclasses import astuple, fields

import cv2
import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.mapping import map_images, pays_for
from lib.metrics.matching import (
    PREDICTED_AREA_RATIO,
    SMOOTHING,
    RegionCounts,
    count_at_areas,
    prepare_truth,
    to_grid,
)

COUNTS = [one.name for one in fields(RegionCounts)]


def paired_ids(predictions, labels, ids=None) -> list[str]:
    """The ids to compare, in the order of the labels: `ids`, or else every labelled image.

    Raises InputError when a wanted image has no prediction or no label, or when a prediction belongs to no
    image of the labels. A prediction of an image without a label is no error: there is nothing to compare.
    """
    table = getattr(labels, "table", None)
    labelled = list(labels.ids)
    if table is not None and "labelled" in table:
        labelled = list(table.index[table["labelled"].astype(bool)])
    predicted = set(predictions.ids)
    if ids is None:
        _refuse(predicted - set(labels.ids), "predicted but not in the labels", "compare the split that was predicted")
    wanted = labelled if ids is None else list(ids)
    _refuse(set(wanted) - set(labelled), "without a label", "leave them out of ids=")
    _refuse(set(wanted) - predicted, "labelled but not predicted", "predict them, or name the images to use by ids=")
    if not wanted:
        raise InputError("There is no labelled image to evaluate; use a split with labels")
    return wanted


def _refuse(ids: set, problem: str, remedy: str) -> None:
    if ids:
        names = ", ".join(sorted(map(str, ids))[:5]) + (", ..." if len(ids) > 5 else "")
        raise InputError(f"{len(ids)} images are {problem} ({names}); {remedy}")


def sweep(
    predictions, labels, thresholds, ids=None, min_area_ratio=PREDICTED_AREA_RATIO, workers=None, progress=None
) -> pd.DataFrame:
    """Match the regions of every image at every threshold.

    Arguments: `predictions` and `labels` are stores, or anything with `ids` and `heatmap(id)` (uint8 [H, W], any
    size); `thresholds` whole numbers 0..255, a pixel counts as distorted when its value is above (of a label: above 0,
    any annotator); `ids` see `paired_ids`; `min_area_ratio` see `lib.metrics.matching.counted_mask`; `workers`
    processes (None: as many as pay); `progress(done, total)` is called as images finish. Returns a row per image and
    threshold: `id`, `threshold`, the fields of `RegionCounts` and `iou`.
    """
    return sweep_areas(predictions, labels, thresholds, (min_area_ratio,), ids, workers, progress)[min_area_ratio]


def sweep_areas(
    predictions, labels, thresholds, min_area_ratios, ids=None, workers=None, progress=None
) -> dict[float, pd.DataFrame]:
    """`sweep` for several smallest areas, which share nearly all of the work: {min_area_ratio: its table}."""
    thresholds, ratios = _checked_thresholds(thresholds), tuple(dict.fromkeys(min_area_ratios))
    ids = paired_ids(predictions, labels, ids)
    workers, parts = workers or pays_for(len(ids) * len(thresholds)), []
    for part in map_images(_sweep_image, predictions, labels, ids, workers, thresholds, ratios):
        parts.append(part)
        if progress is not None:
            progress(len(parts), len(ids))
    by_area = np.stack(parts).swapaxes(0, 1)  # [areas, images, thresholds, counts]
    return {ratio: _sweep_table(counts, ids, thresholds) for ratio, counts in zip(ratios, by_area, strict=True)}


def _sweep_table(counts: np.ndarray, ids: list[str], thresholds: list[int]) -> pd.DataFrame:
    """Counts [images, thresholds, len(COUNTS)] as the table of `sweep`."""
    counts = pd.DataFrame(counts.reshape(-1, len(COUNTS)), columns=COUNTS)
    # Categories hold each name once: 10,000 images at 255 thresholds are 2.5 million rows.
    rows = pd.Categorical.from_codes(np.repeat(np.arange(len(ids)), len(thresholds)), pd.Index(ids, dtype=object))
    counts.insert(0, "id", rows)
    counts.insert(1, "threshold", np.tile(np.asarray(thresholds, np.int32), len(ids)))
    return counts.assign(iou=(counts["intersection"] + SMOOTHING) / (counts["union"] + SMOOTHING))


def _checked_thresholds(thresholds) -> list[int]:
    values = sorted(set(np.atleast_1d(np.asarray(thresholds)).tolist()))
    bad = [value for value in values if not 0 <= value <= 255 or value != int(value)]
    if bad or not values:
        raise InputError(f"Thresholds {bad or values} cannot be used; give whole numbers from 0 to 255")
    return [int(value) for value in values]


def _sweep_image(id, predictions, labels, thresholds, min_area_ratios) -> np.ndarray:
    """Counts int32 [len(min_area_ratios), len(thresholds), len(COUNTS)] of one image."""
    truth = prepare_truth(_plane(labels, id) > 0)
    heatmap = _plane(predictions, id)
    counts = np.empty((len(min_area_ratios), len(thresholds), len(COUNTS)), np.int32)
    previous_pixels = None
    for number, threshold in enumerate(thresholds):
        mask = (heatmap > threshold).view(np.uint8)
        pixels = cv2.countNonZero(mask)
        # Masks shrink as thresholds rise, so an equal number of pixels means the same mask.
        if pixels == previous_pixels:
            counts[:, number] = counts[:, number - 1]
        else:
            counts[:, number] = [astuple(one) for one in count_at_areas(to_grid(mask), truth, min_area_ratios)]
        previous_pixels = pixels
    return counts


def _plane(source, id: str) -> np.ndarray:
    heatmap = np.ascontiguousarray(source.heatmap(id))
    if heatmap.ndim != 2 or heatmap.size == 0:
        raise InputError(f"The heatmap of {id} has the shape {heatmap.shape}; it must be height x width")
    return heatmap
