"""How sure the figures are: bootstrap intervals and paired comparison.

The unit of every resample is the image: its region counts, its pixels and its scores stay together, since the
regions of one image are not independent of each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.correlation import logistic_curve, score_figures
from lib.metrics.figures import FIGURES, challenge_figures, final_score, region_figures

SUMMED = ["hit_predicted", "n_predicted", "hit_true", "n_true"]
FITTED = {"plcc", "final_score"}  # figures that need the challenge's logistic curve
FEWEST = 5  # images; resamples of fewer hardly differ, and their interval would promise what it cannot keep
SURE = 0.05  # p below which a difference is called one


def bootstrap_figures(counts, scores, n: int = 1000, seed: int = 0, level: float = 0.95, figures=FIGURES) -> dict:
    """Percentile intervals over images for every figure.

    Arguments: `counts` rows of `sweep` at one threshold; `scores` see `score_table`; `n` resamples; `level` the
    coverage; `figures` the wanted ones (the correlations take most of the time). Returns figure -> (low, high),
    NaN where the figure is undefined in every resample, and for fewer than FEWEST images.
    """
    if counts["id"].nunique() < FEWEST:
        return dict.fromkeys(figures, (np.nan, np.nan))
    sample = _Sample(counts, scores, figures)
    draws = pd.DataFrame([sample.figures(rows) for rows in _resamples(len(sample), n, seed)])
    return {name: interval_of(draws[name].to_numpy(), level) for name in figures}


def figures_with_intervals(counts, scores, n: int = 1000, seed: int = 0, figures=FIGURES) -> dict:
    """All of `challenge_figures`, and the 95 % `intervals` of `figures`; the arguments are `bootstrap_figures`'."""
    return {
        **challenge_figures(counts, scores),
        "intervals": bootstrap_figures(counts, scores, n, seed, figures=figures),
    }


def paired_bootstrap(
    counts_a, scores_a, counts_b, scores_b, n: int = 1000, seed: int = 0, level: float = 0.95, figures=FIGURES
) -> dict:
    """Difference b - a of every figure between two runs on the same images, with its interval.

    Both runs see the same resampled images, so what is hard for both cancels out. Returns figure ->
    {`a`, `b`, `difference`, `low`, `high`, `p`}; `p` is the two-sided bootstrap p-value of no difference. Of fewer
    images than FEWEST the last three are NaN.
    """
    both = resample({"a": (counts_a, scores_a), "b": (counts_b, scores_b)}, n, seed, figures)
    a, b = both.values()
    found, enough = {}, counts_a["id"].nunique() >= FEWEST
    for name, value in a.values.items():
        draws = (b.draws[name] - a.draws[name]).to_numpy() if enough else np.array([])
        low, high = interval_of(draws, level)
        difference = {"difference": b.values[name] - value, "low": low, "high": high}
        found[name] = {"a": value, "b": b.values[name]} | difference | {"p": _two_sided(draws[~np.isnan(draws)])}
    return found


@dataclass(frozen=True)
class Resampled:
    """Figures of a run: `values` on all images, `draws` (a row a resample) on resamples of them."""

    values: dict[str, float]
    draws: pd.DataFrame


def resample(
    runs: Mapping[str, tuple], n: int = 1000, seed: int = 0, figures=FIGURES, progress=None
) -> dict[str, Resampled]:
    """Figures of several runs ({name: (counts, scores)}) in the same `n` resamples of their images.

    `progress(done, total)` is called after each run. Raises InputError when runs have not the same images.
    """
    samples, found = _aligned(runs, figures), {}
    for name, sample in samples.items():
        draws = pd.DataFrame([sample.figures(rows) for rows in _resamples(len(sample), n, seed)])
        found[name] = Resampled(sample.figures(slice(None)), draws)
        if progress:
            progress(len(found), len(samples))
    return found


def tested_together(differences: np.ndarray, draws: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, ...]:
    """Intervals and p of several differences that hold for all of them at once: (low, high, p), each float [K].

    Arguments: `differences` [K] and their `draws` [n, K], a row a resample. How far chance takes the one that strays
    furthest, in standard errors, is what each is held against (Tukey's range, without his assumption of normal values;
    Westfall and Young 1993). So where nothing differs one p in all falls below 0.05 in 5 of 100 cases, and whoever
    gives all pairs may pick the best after the fact. p is 1 in n + 1 at the least, whatever K.
    """
    known = np.isfinite(differences)
    spread = np.where(known, np.maximum(np.nanstd(np.where(known, draws, 0), axis=0), 1e-12), np.nan)
    strayed = np.nan_to_num(np.abs(draws - differences) / spread).max(axis=1, initial=0)
    reach = np.quantile(strayed, level) * spread
    seen = np.abs(differences) / spread
    p = (np.count_nonzero(strayed[:, None] >= seen, axis=0) + 1) / (len(strayed) + 1)
    return differences - reach, differences + reach, np.where(known, p, np.nan)


class _Sample:
    """Counts and scores of one run as arrays, one row an image."""

    def __init__(self, counts: pd.DataFrame, scores: pd.DataFrame, figures):
        counts = counts.set_index("id")
        counts.index = counts.index.astype(str)
        if counts.index.has_duplicates:
            raise InputError("The counts hold an image twice; select the rows of one threshold")
        self.names, self.ids = list(figures), counts.index
        unknown = set(self.names) - set(FIGURES)
        if unknown:
            raise InputError(f"There is no figure {', '.join(sorted(unknown))}; choose among {', '.join(FIGURES)}")
        self.counts, self.iou = counts[SUMMED].to_numpy(float), counts["iou"].to_numpy(float)
        scores = scores.rename(index=str)[["predicted", "true"]].reindex(self.ids).to_numpy(float)
        self.scores = np.column_stack([scores, _curve(scores) if FITTED & set(self.names) else scores[:, 0]])

    def __len__(self) -> int:
        return len(self.iou)

    def reorder(self, ids) -> None:
        rows = self.ids.get_indexer(ids)
        self.counts, self.iou, self.scores, self.ids = self.counts[rows], self.iou[rows], self.scores[rows], ids

    def figures(self, rows: np.ndarray | slice) -> dict:
        """The wanted figures of the images `rows` (an image may come more than once)."""
        sums = dict(zip(SUMMED, self.counts[rows].sum(axis=0), strict=True))
        values = {name: float(value) for name, value in region_figures(sums).items()}
        values["giou"] = float(self.iou[rows].mean())
        if {"plcc", "srcc", "krcc", "rmse_mos", "final_score"} & set(self.names):
            predicted, true, curve = self.scores[rows].T
            values |= score_figures(predicted, true, "krcc" in self.names, curve)[0]
            values["final_score"] = float(final_score(values["f1_score"], values["plcc"], values["srcc"]))
        return {name: values[name] for name in self.names}


def _curve(scores: np.ndarray) -> np.ndarray:
    """The challenge's curve through (predicted, true) scores [N, 2], at each prediction.

    It is fitted once, to all images. Fitted anew to each resample it follows the noise, and no interval of the PLCC of
    a worthless score would hold 0; with one curve, intervals of weak and strong scores hold the truth more often.
    """
    curve, known = scores[:, 0].copy(), np.isfinite(scores).all(axis=1)
    curve[known] = logistic_curve(*scores[known].T)[0]
    return curve


def _aligned(runs: Mapping[str, tuple], figures) -> dict[str, _Sample]:
    """A sample a run ({name: (counts, scores)}), with the images of all in the order of the first."""
    samples = {name: _Sample(counts, scores, figures) for name, (counts, scores) in runs.items()}
    first = next(iter(samples.values()))
    for sample in samples.values():
        alone = first.ids.symmetric_difference(sample.ids)
        if len(alone):
            names = ", ".join(alone[:5])
            raise InputError(f"{len(alone)} images are in one run only ({names}); compare runs on the same images")
        sample.reorder(first.ids)
    return samples


def resampled_sums(values: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Sums over `n` resamples of the images: float [N, ...] with a row an image -> [n, ...]."""
    weights = np.stack([np.bincount(rows, minlength=len(values)) for rows in _resamples(len(values), n, seed)])
    return np.tensordot(weights.astype(float), values, axes=1)


def _resamples(size: int, n: int, seed: int) -> Iterator[np.ndarray]:
    if size == 0 or n < 1:
        raise InputError(f"{n} resamples of {size} images cannot be drawn; give at least one of each")
    rng = np.random.default_rng(seed)
    return (rng.integers(size, size=size) for _ in range(n))


def interval_of(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values; what is undefined in a resample does not count."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return np.nan, np.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _two_sided(draws: np.ndarray) -> float:
    """Twice the smaller share of differences on one side of zero; 1 in n + 1 at the least, NaN without draws."""
    if not len(draws):
        return np.nan
    smaller = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(draws) + 1)))
