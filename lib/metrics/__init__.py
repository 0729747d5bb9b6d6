"""The challenge metric over a whole set: threshold sweep, figures, curve, best threshold.

Final score = 0.7 F1 + 0.15 (PLCC + SRCC). F1 counts regions over the set (`lib.metrics.matching` matches them), the
correlations are `lib.metrics.correlation`'s. Heatmaps are streamed, so memory does not grow with the number of images.
Source of the definitions: the published evaluation of the NTIRE 2025 challenge.
"""

from dataclasses import astuple, fields

import cv2
import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.correlation import score_figures
from lib.metrics.mapping import Heatmaps, map_images, pays_for, portable
from lib.metrics.matching import (
    CHALLENGE_SIZE,
    PREDICTED_AREA_RATIO,
    SMOOTHING,
    RegionCounts,
    classify_regions,
    count_at_areas,
    match_regions,
    prepare_truth,
    to_grid,
)

__all__ = [
    "CHALLENGE_SIZE", "FIGURES", "Heatmaps", "RegionCounts", "best_threshold", "challenge_figures",
    "classify_regions", "evaluate", "map_images", "match_regions", "paired_ids", "pays_for", "portable",
    "score_table", "sweep", "sweep_areas", "threshold_curve",
]  # fmt: skip

FIGURES = ("precision", "recall", "f1_score", "giou", "plcc", "srcc", "krcc", "rmse_mos", "final_score")
COUNTS = [one.name for one in fields(RegionCounts)]
F1_EPSILON = 1e-10  # the organisers'; it moves F1 by less than 1e-9


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


def score_table(predictions, labels, ids=None) -> pd.DataFrame:
    """Scores (0..1, higher is sounder) of the compared images: index `id`, columns `predicted`, `true`."""
    ids = paired_ids(predictions, labels, ids)
    predicted, true = (source.table["score"].reindex(ids).astype(float) for source in (predictions, labels))
    return pd.DataFrame({"predicted": predicted, "true": true}, index=pd.Index(ids, name="id"))


def region_figures(counts) -> dict:
    """Precision, recall and F1 from region counts summed over the images.

    `counts` maps `hit_predicted`, `n_predicted`, `hit_true`, `n_true` to numbers or arrays of one shape. With
    nothing predicted, precision and F1 are 0; without a true region, recall and F1 are undefined (NaN).
    """
    hit_predicted, n_predicted, hit_true, n_true = (
        np.asarray(counts[name], float) for name in ("hit_predicted", "n_predicted", "hit_true", "n_true")
    )
    precision = hit_predicted / np.maximum(n_predicted, 1)
    recall = np.where(n_true > 0, hit_true / np.maximum(n_true, 1), np.nan)
    f1_score = 2 * precision * recall / (precision + recall + F1_EPSILON)
    return {"precision": precision, "recall": recall, "f1_score": f1_score}


def final_score(f1_score, plcc, srcc):
    """0.7 F1 + 0.15 (PLCC + SRCC); an undefined figure counts as 0."""
    return 0.7 * np.nan_to_num(f1_score) + 0.15 * (np.nan_to_num(plcc) + np.nan_to_num(srcc))


def challenge_figures(counts: pd.DataFrame, scores: pd.DataFrame) -> dict:
    """All figures of one set at one threshold.

    Arguments: `counts` rows of `sweep` at one threshold; `scores` see `score_table`. Returns the FIGURES as floats
    and `notes`, sentences about every figure that is undefined (NaN, counted as 0 in the final score) or special.
    """
    if "threshold" in counts and counts["threshold"].nunique() != 1:
        raise InputError("challenge_figures takes the counts of one threshold; select one, or use threshold_curve")
    row = threshold_curve(counts.assign(threshold=0), scores)
    return {name: float(row[name].iloc[0]) for name in FIGURES} | {"notes": _notes(row)}


def _notes(row: pd.DataFrame) -> list[str]:
    notes = list(row.attrs["notes"])
    if row["n_predicted"].iloc[0] == 0:
        notes.append("no region is predicted, so precision and F1 are 0")
    if row["n_true"].iloc[0] == 0:
        notes.append("no label has a region, so recall and F1 are undefined")
    if row[["f1_score", "plcc", "srcc"]].isna().any(axis=None):
        notes.append("undefined figures count as 0 in the final score")
    return notes


def threshold_curve(counts: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """One row a threshold with the summed counts and the FIGURES; `attrs["notes"]` holds the notes on scores."""
    sums = counts.groupby("threshold")[COUNTS].sum()
    figures, notes = score_figures(scores["predicted"].to_numpy(), scores["true"].to_numpy())
    curve = sums.assign(**region_figures(sums), giou=counts.groupby("threshold")["iou"].mean(), **figures)
    curve["final_score"] = final_score(curve["f1_score"], curve["plcc"], curve["srcc"])
    curve = curve.reset_index()
    curve.attrs["notes"] = notes
    return curve


def best_threshold(curve: pd.DataFrame, by: str = "final_score") -> int:
    """The threshold with the highest `by` (the lowest of equals); an undefined figure never wins."""
    if by not in curve or curve[by].isna().all():
        raise InputError(f"No threshold has a defined {by!r}; choose by one of {', '.join(FIGURES)}")
    best = curve.loc[curve[by].idxmin() if by == "rmse_mos" else curve[by].idxmax()]
    return int(best["threshold"])


def evaluate(predictions, labels, threshold, ids=None, min_area_ratio=PREDICTED_AREA_RATIO, workers=None) -> dict:
    """Figures of predictions at one threshold, with what they were computed on; see `sweep`."""
    counts = sweep(predictions, labels, [threshold], ids, min_area_ratio, workers)
    settings = {"threshold": int(threshold), "min_area_ratio": min_area_ratio, "n_images": len(counts)}
    return settings | challenge_figures(counts, score_table(predictions, labels, ids))
