"""The challenge's figures of a set: final score = 0.7 F1 + 0.15 (PLCC + SRCC).

F1 counts regions over the set (`lib.metrics.matching` matches them), the correlations are `lib.metrics.correlation`'s.
Source: the published evaluation of the NTIRE 2025 challenge.
"""

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.correlation import score_figures
from lib.metrics.counts import COUNTS, paired_ids, sweep
from lib.metrics.matching import PREDICTED_AREA_RATIO

FIGURES = ("precision", "recall", "f1_score", "giou", "plcc", "srcc", "krcc", "rmse_mos", "final_score")
F1_EPSILON = 1e-10  # the organisers'; it moves F1 by less than 1e-9


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
