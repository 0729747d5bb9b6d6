"""The challenge's figures of a set: final score = 0.7 F1 + 0.15 (PLCC + SRCC).

F1 counts regions over the set (`lib.metrics.matching` matches them), the correlations are `lib.metrics.correlation`'s.
Source: the published evaluation of the NTIRE 2025 challenge.
"""

import numpy as np

from lib.metrics.correlation import score_figures

FIGURES = ("precision", "recall", "f1_score", "giou", "plcc", "srcc", "krcc", "rmse_mos", "final_score")
F1_EPSILON = 1e-10  # the organisers'; it moves F1 by less than 1e-9


def set_figures(counts, giou, predicted: np.ndarray, true: np.ndarray, krcc: bool = True) -> tuple[dict, list[str]]:
    """The FIGURES of a set and notes on its scores.

    Arguments: `counts` maps the fields of `lib.metrics.matching.RegionCounts`, summed over the images, to numbers, or
    to arrays over thresholds; `giou` likewise, the mean IoU of images; `predicted` and `true` scores float [N];
    without `krcc` it stays NaN.
    """
    of_scores, notes = score_figures(predicted, true, krcc)
    figures = region_figures(counts) | {"giou": giou} | of_scores
    figures["final_score"] = final_score(figures["f1_score"], figures["plcc"], figures["srcc"])
    return figures, notes


def undefined(row) -> list[str]:
    """Sentences on the figures of one threshold that are undefined or special; `row` has the summed counts, too."""
    notes = []
    if row["n_predicted"] == 0:
        notes.append("no region is predicted, so precision and F1 are 0")
    if row["n_true"] == 0:
        notes.append("no label has a region, so recall and F1 are undefined")
    if any(np.isnan(row[name]) for name in ("f1_score", "plcc", "srcc")):
        notes.append("undefined figures count as 0 in the final score")
    return notes


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
