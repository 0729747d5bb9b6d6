"""How sure the figures are: bootstrap intervals and paired comparison.

The unit of every resample is the image: its region counts, its pixels and its scores stay together, since the
regions of one image are not independent of each other.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.correlation import agreement, logistic_curve
from lib.metrics.figures import FIGURES, final_score, region_figures

SUMMED = ["hit_predicted", "n_predicted", "hit_true", "n_true"]
OF_REGIONS = {"precision", "recall", "f1_score", "giou"}  # the figures that need no scores
FEWEST = 5  # images; resamples of fewer hardly differ, and their interval would promise what it cannot keep
LEVEL = 0.95  # of all intervals
SIGNIFICANT = 0.05  # p below which a difference is called one; p is always that of all that is asked at once


@dataclass(frozen=True)
class Resampled:
    """Figures of a run: `values` on all `images` (their number), `draws` (a row a resample) on resamples of them."""

    values: dict[str, float]
    draws: pd.DataFrame
    images: int = FEWEST

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % percentile intervals; NaN where a figure is undefined in every resample, and for too few images."""
        few = self.images < FEWEST
        return {name: (np.nan, np.nan) if few else interval_of(self.draws[name].to_numpy()) for name in self.values}


def bootstrap_figures(counts, scores, n: int = 1000, seed: int = 0, figures=FIGURES) -> dict:
    """The `intervals` of one run from `n` resamples of its images; see `resample`."""
    return resample({"": (counts, scores)}, n, seed, figures)[""].intervals


def resample(
    runs: Mapping[str, tuple], n: int = 1000, seed: int = 0, figures=FIGURES, progress=None
) -> dict[str, Resampled]:
    """Figures of several runs ({name: (counts, scores)}) in the same `n` resamples of their images.

    `counts` are rows of `lib.metrics.counts.sweep` at one threshold, `scores` those of `score_table`.
    `progress(done, total)` is called after each run. Raises InputError when runs have not the same images.
    """
    ids, found = None, {}
    for name, (counts, scores) in runs.items():
        counts = counts.set_index(counts["id"].astype(str))
        if counts.index.has_duplicates:
            raise InputError("The counts hold an image twice; select the rows of one threshold")
        ids = counts.index if ids is None else ids
        if len(alone := ids.symmetric_difference(counts.index)):
            names = ", ".join(alone[:5])
            raise InputError(f"{len(alone)} images are in one run only ({names}); compare runs on the same images")
        sets = itertools.chain([np.arange(len(ids))], drawn_images(len(ids), n, seed))
        table = _figures_of(sets, counts.loc[ids], scores.rename(index=str).reindex(ids), figures)
        found[name] = Resampled(table.iloc[0].to_dict(), table.iloc[1:].reset_index(drop=True), len(ids))
        if progress:
            progress(len(found), len(runs))
    return found


def _figures_of(sets: Iterable[np.ndarray], counts: pd.DataFrame, scores: pd.DataFrame, wanted) -> pd.DataFrame:
    """The wanted figures of several sets of images, a row a set; a set is the positions of its images, int [N].

    The challenge's curve is fitted once, to all images: fitted anew to each resample it follows the noise, and no
    interval of the PLCC of a worthless score would hold 0; with one curve, intervals of weak and strong scores hold the
    truth more often.
    """
    sums, summed, of_scores = counts[[*SUMMED, "iou"]].to_numpy(float), [], []
    predicted, true = scores[["predicted", "true"]].to_numpy(float).T
    known = np.isfinite(true)
    known &= np.isfinite(predicted[known]).all()  # as in `score_figures`
    curve = predicted.copy()
    curve[known] = logistic_curve(predicted[known], true[known])[0]
    for images in sets:
        summed.append(sums[images].sum(axis=0))
        if not OF_REGIONS.issuperset(wanted):
            images = images[known[images]]
            of_scores.append(agreement(predicted[images], true[images], curve[images], "krcc" in wanted))
    *of_regions, iou = np.transpose(summed)
    found = region_figures(dict(zip(SUMMED, of_regions, strict=True))) | {"giou": iou / len(sums)}
    table = pd.DataFrame(found).join(pd.DataFrame(of_scores))
    if of_scores:
        table["final_score"] = final_score(table["f1_score"], table["plcc"], table["srcc"])
    return table[list(wanted)]


def tested_together(differences: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    """95 % intervals and p of several differences that hold for all of them at once.

    Arguments: `differences` [K] and their `draws` [n, K], a row a resample. Returns `difference`, `low`, `high`, `p`,
    each float [K]. How far chance takes the one that strays furthest, in standard errors, is what each is held against
    (Tukey's range, without his assumption of normal values; Westfall and Young 1993). So where nothing differs one p
    in all falls below 0.05 in 5 of 100 cases, and whoever gives all pairs may pick the best after the fact. p is 1 in
    n + 1 at the least, whatever K.
    """
    known = np.isfinite(differences)
    spread = np.where(known, np.maximum(np.nanstd(np.where(known, draws, 0), axis=0), 1e-12), np.nan)
    strayed = np.nan_to_num(np.abs(draws - differences) / spread).max(axis=1, initial=0)
    reach, seen = np.quantile(strayed, LEVEL) * spread, np.abs(differences) / spread
    p = (np.count_nonzero(strayed[:, None] >= seen, axis=0) + 1) / (len(strayed) + 1)
    low, high = differences - reach, differences + reach
    return {"difference": differences, "low": low, "high": high, "p": np.where(known, p, np.nan)}


def resampled_sums(values: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Sums over `n` resamples of the images: float [N, ...] with a row an image -> [n, ...]."""
    weights = (np.bincount(drawn, minlength=len(values)) for drawn in drawn_images(len(values), n, seed))
    return np.stack([np.tensordot(counted.astype(float), values, 1) for counted in weights])


def drawn_images(size: int, n: int, seed: int = 0) -> Iterator[np.ndarray]:
    """`n` resamples of `size` images: the positions int [size] of those that are drawn, some several times."""
    rng = np.random.default_rng(seed)
    return (rng.integers(size, size=size) for _ in range(n))


def interval_of(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values; what is undefined in a resample does not count."""
    draws = draws[np.isfinite(draws)]
    return tuple(np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()) if len(draws) else (np.nan, np.nan)
