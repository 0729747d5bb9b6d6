"""Region counts of every image at every threshold, and the challenge's figures of them.

Heatmaps are read one at a time, so memory does not grow with the number of images.
"""

import cv2
import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.figures import FIGURES, set_figures, undefined
from lib.metrics.heatmaps import map_images
from lib.metrics.matching import COUNTS, PREDICTED_AREA_RATIO, SMOOTHING, count_regions, prepare_truth, to_grid


def paired_ids(predictions, labels, ids=None) -> list[str]:
    """The ids to compare: `ids`, or else every labelled image in the order of the labels.

    Raises InputError when one of them has no prediction, or when there is none.
    """
    if ids is None:
        table = labels.table
        ids = table.index[table["labelled"].astype(bool)] if "labelled" in table else labels.ids
    wanted, predicted = list(ids), set(predictions.ids)
    if lost := [str(id) for id in wanted if id not in predicted]:
        names = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        remedy = "predict them, or name the images to use by ids="
        raise InputError(f"{len(lost)} images are labelled but not predicted ({names}); {remedy}")
    if not wanted:
        raise InputError("There is no labelled image to evaluate; use a split with labels")
    return wanted


def sweep(
    predictions, labels, thresholds, ids=None, min_area_ratio=PREDICTED_AREA_RATIO, workers=None, progress=None
) -> pd.DataFrame:
    """Match the regions of every image at every threshold.

    Arguments: `predictions` and `labels` see `lib.metrics.heatmaps`; `thresholds` whole numbers 0..255, a pixel counts
    as distorted when its value is above (of a label: above 0, any annotator); `ids` see `paired_ids`; `min_area_ratio`
    see `lib.metrics.matching.counted_mask`, one or several, which share nearly all of the work; `workers` and
    `progress` see `lib.metrics.heatmaps.map_images`. Returns a row for each smallest area, image and threshold: `id`,
    `threshold`, `min_area_ratio`, the fields of `RegionCounts` and `iou`.
    """
    values, ratios = np.unique(np.asarray(thresholds)), np.unique(min_area_ratio)
    values, ids = values.astype(np.int32), paired_ids(predictions, labels, ids)
    options = {"cost": len(values), "workers": workers, "progress": progress}
    parts = map_images(_sweep_image, predictions, labels, ids, values.tolist(), ratios.tolist(), **options)
    counts = np.stack(list(parts)).swapaxes(0, 1)  # [areas, images, thresholds, counts]
    table = pd.DataFrame(counts.reshape(-1, len(COUNTS)), columns=COUNTS)
    area, image, threshold = (places.ravel() for places in np.indices(counts.shape[:3], np.int32))
    # Categories hold each name once: 10,000 images at 255 thresholds are 2.5 million rows.
    table.insert(0, "id", pd.Categorical.from_codes(image, pd.Index(ids, dtype=object)))
    table.insert(1, "threshold", values[threshold])
    table.insert(2, "min_area_ratio", ratios[area])
    return table.assign(iou=(table["intersection"] + SMOOTHING) / (table["union"] + SMOOTHING))


def _sweep_image(id, predictions, labels, thresholds, min_area_ratios) -> np.ndarray:
    """Counts int32 [len(min_area_ratios), len(thresholds), len(COUNTS)] of one image."""
    truth, heatmap = prepare_truth(labels.heatmap(id) > 0), predictions.heatmap(id)
    counts = np.empty((len(min_area_ratios), len(thresholds), len(COUNTS)), np.int32)
    previous_pixels = None
    for number, threshold in enumerate(thresholds):
        mask = (heatmap > threshold).view(np.uint8)
        pixels = cv2.countNonZero(mask)
        # Masks shrink as thresholds rise, so an equal number of pixels means the same mask.
        if pixels == previous_pixels:
            counts[:, number] = counts[:, number - 1]
        else:
            counts[:, number] = count_regions(to_grid(mask), truth, min_area_ratios)
        previous_pixels = pixels
    return counts


def score_table(predictions, labels, ids=None) -> pd.DataFrame:
    """Scores (0..1, higher is sounder) of the compared images: index `id`, columns `predicted`, `true`."""
    ids = paired_ids(predictions, labels, ids)
    predicted, true = (source.table["score"].reindex(ids).astype(float) for source in (predictions, labels))
    return pd.DataFrame({"predicted": predicted, "true": true}, index=pd.Index(ids, name="id"))


def challenge_figures(counts: pd.DataFrame, scores: pd.DataFrame) -> dict:
    """All figures of one set at one threshold.

    Arguments: `counts` rows of `sweep` at one threshold; `scores` see `score_table`. Returns the FIGURES as floats
    and `notes`, sentences about every figure that is undefined (NaN, counted as 0 in the final score) or special.
    """
    if "threshold" in counts and counts["threshold"].nunique() != 1:
        raise InputError("challenge_figures takes the counts of one threshold; select one, or use threshold_curve")
    curve = threshold_curve(counts.assign(threshold=0), scores)
    row = curve.iloc[0]
    return {name: float(row[name]) for name in FIGURES} | {"notes": curve.attrs["notes"] + undefined(row)}


def threshold_curve(counts: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """One row a threshold with the summed counts and the FIGURES; `attrs["notes"]` holds the notes on scores."""
    by_threshold = counts.groupby("threshold")
    sums, giou = by_threshold[COUNTS].sum(), by_threshold["iou"].mean()
    figures, notes = set_figures(sums, giou, scores["predicted"].to_numpy(), scores["true"].to_numpy())
    curve = sums.assign(**figures).reset_index()
    curve.attrs["notes"] = notes
    return curve
