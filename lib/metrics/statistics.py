"""How sure the figures are: bootstrap intervals, paired comparison, and measures that show what F1 hides.

The unit of every resample is the image: its region counts, its pixels and its scores stay together, since the
regions of one image are not independent of each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics import (
    FIGURES,
    Heatmaps,
    challenge_figures,
    final_score,
    map_images,
    paired_ids,
    pays_for,
    region_figures,
    sweep,
)
from lib.metrics.correlation import score_figures
from lib.metrics.matching import CHALLENGE_SIZE, PREDICTED_AREA_RATIO, classify_regions

SUMMED = ["hit_predicted", "n_predicted", "hit_true", "n_true"]
SURE = 0.05  # p below which a difference is called one


def bootstrap_figures(counts, scores, n: int = 1000, seed: int = 0, level: float = 0.95, figures=FIGURES) -> dict:
    """Percentile intervals over images for every figure.

    Arguments: `counts` rows of `sweep` at one threshold; `scores` see `score_table`; `n` resamples; `level` the
    coverage; `figures` the wanted ones (the correlations take most of the time). Returns figure -> (low, high),
    NaN where the figure is undefined in every resample.
    """
    sample = _Sample(counts, scores, figures)
    draws = pd.DataFrame([sample.figures(rows) for rows in _resamples(len(sample), n, seed)])
    return {name: _interval(draws[name].to_numpy(), level) for name in figures}


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
    {`a`, `b`, `difference`, `low`, `high`, `p`}; `p` is the two-sided bootstrap p-value of no difference.
    """
    both = resample({"a": (counts_a, scores_a), "b": (counts_b, scores_b)}, n, seed, figures)
    return paired_differences(both["a"], both["b"], level)


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


def paired_differences(a: Resampled, b: Resampled, level: float = 0.95) -> dict:
    """The differences b - a of two runs of one `resample`, as `paired_bootstrap` gives them."""
    return {
        name: {"a": a.values[name], "b": b.values[name]}
        | tested(b.values[name] - a.values[name], b.draws[name] - a.draws[name], level)
        for name in a.values
    }


def tested(difference: float, draws: pd.Series, level: float = 0.95) -> dict:
    """A `difference` with the interval `low`, `high` of its resampled `draws` and the two-sided `p` of none."""
    low, high = _interval(draws.to_numpy(), level)
    return {"difference": difference, "low": low, "high": high, "p": _two_sided(draws.dropna().to_numpy())}


def paired_permutation(counts_a, scores_a, counts_b, scores_b, n: int = 1000, seed: int = 0, figures=FIGURES) -> dict:
    """figure -> two-sided p-value that two runs are exchangeable, by swapping them image by image at random."""
    a, b = _aligned({"a": (counts_a, scores_a), "b": (counts_b, scores_b)}, figures).values()
    rng = np.random.default_rng(seed)
    swaps = [np.zeros(len(a), bool), *(rng.random((n, len(a))) < 0.5)]
    draws = pd.DataFrame(_difference(a.swapped(b, swap), b.swapped(a, swap)) for swap in swaps)
    # The unswapped runs are one of the equally likely arrangements, so p is never 0.
    extreme = draws.abs() >= draws.iloc[0].abs() - 1e-12
    return {name: float(extreme[name].mean()) if np.isfinite(draws[name].iloc[0]) else np.nan for name in figures}


def _difference(a, b) -> dict:
    at_a, at_b = a.figures(slice(None)), b.figures(slice(None))
    return {name: at_b[name] - at_a[name] for name in at_a}


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
        self.scores = scores.rename(index=str)[["predicted", "true"]].reindex(self.ids).to_numpy(float)

    def __len__(self) -> int:
        return len(self.iou)

    def reordered(self, ids) -> "_Sample":
        rows = self.ids.get_indexer(ids)
        return self._copy(self.counts[rows], self.iou[rows], self.scores[rows], ids)

    def swapped(self, other: "_Sample", where: np.ndarray) -> "_Sample":
        """This run with the images of `where` (bool [N]) taken from the other one."""
        counts = np.where(where[:, None], other.counts, self.counts)
        scores = np.where(where[:, None], other.scores, self.scores)
        return self._copy(counts, np.where(where, other.iou, self.iou), scores, self.ids)

    def _copy(self, counts, iou, scores, ids) -> "_Sample":
        copy = object.__new__(_Sample)
        copy.names, copy.counts, copy.iou, copy.scores, copy.ids = self.names, counts, iou, scores, ids
        return copy

    def figures(self, rows: np.ndarray | slice) -> dict:
        """The wanted figures of the images `rows` (an image may come more than once)."""
        sums = dict(zip(SUMMED, self.counts[rows].sum(axis=0), strict=True))
        values = {name: float(value) for name, value in region_figures(sums).items()}
        values["giou"] = float(self.iou[rows].mean())
        if {"plcc", "srcc", "krcc", "rmse_mos", "final_score"} & set(self.names):
            values |= score_figures(*self.scores[rows].T, with_krcc="krcc" in self.names)[0]
            values["final_score"] = float(final_score(values["f1_score"], values["plcc"], values["srcc"]))
        return {name: values[name] for name in self.names}


def _aligned(runs: Mapping[str, tuple], figures) -> dict[str, _Sample]:
    """A sample a run ({name: (counts, scores)}), with the images of all in the order of the first."""
    samples = {name: _Sample(counts, scores, figures) for name, (counts, scores) in runs.items()}
    first = next(iter(samples.values()))
    for sample in samples.values():
        alone = first.ids.symmetric_difference(sample.ids)
        if len(alone):
            names = ", ".join(alone[:5])
            raise InputError(f"{len(alone)} images are in one run only ({names}); compare runs on the same images")
    return {name: sample.reordered(first.ids) for name, sample in samples.items()}


def _resamples(size: int, n: int, seed: int) -> Iterator[np.ndarray]:
    if size == 0 or n < 1:
        raise InputError(f"{n} resamples of {size} images cannot be drawn; give at least one of each")
    rng = np.random.default_rng(seed)
    return (rng.integers(size, size=size) for _ in range(n))


def _interval(draws: np.ndarray, level: float) -> tuple[float, float]:
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


def average_precision(counts: pd.DataFrame, level: str = "pixel") -> float:
    """Area under precision over recall, over the thresholds of a sweep.

    `counts` is the sweep (all images, all thresholds) or its `threshold_curve`. `level` "pixel" pools the pixels
    of all images, which no trick with large masks improves; "region" uses the challenge's region counts. Each
    step of recall counts with the best precision at that recall or above; no recall beyond the sweep is assumed.
    """
    sums = counts.groupby("threshold")[[*SUMMED, "predicted_pixels", "intersection", "union"]].sum()
    if level == "pixel":
        true_pixels = sums["union"] + sums["intersection"] - sums["predicted_pixels"]
        precision = sums["intersection"] / sums["predicted_pixels"].clip(lower=1)
        recall = (sums["intersection"] / true_pixels.where(true_pixels > 0)).to_numpy()
    elif level == "region":
        figures = region_figures(sums)
        precision, recall = figures["precision"], figures["recall"]
    else:
        raise InputError(f"The level {level!r} of average_precision is unknown; use pixel or region")
    if np.isnan(recall).all():
        return np.nan
    order = np.argsort(recall, kind="stable")
    best_from_here = np.maximum.accumulate(np.asarray(precision)[order][::-1])[::-1]
    return float(np.diff(recall[order], prepend=0) @ best_from_here)


def region_table(
    predictions, labels, threshold: int, ids=None, min_area_ratio=PREDICTED_AREA_RATIO, workers=None
) -> pd.DataFrame:
    """One row a kept region at one threshold: `id`, `side` ("predicted"/"true"), `area` (px), `iou` (the best)."""
    ids = paired_ids(predictions, labels, ids)
    workers = workers or pays_for(len(ids))
    tables = map_images(_image_regions, predictions, labels, ids, workers, threshold, min_area_ratio)
    return pd.concat(tables, ignore_index=True)


def _image_regions(id, predictions, labels, threshold, min_area_ratio) -> pd.DataFrame:
    sides = classify_regions(predictions.heatmap(id) > threshold, labels.heatmap(id) > 0, min_area_ratio)
    rows = [
        (id, side, region.area, region.iou)
        for side, regions in zip(("predicted", "true"), sides, strict=True)
        for region in regions
        if region.status != "small"
    ]
    table = pd.DataFrame(rows, columns=["id", "side", "area", "iou"])
    return table.astype({"id": str, "side": str, "area": float, "iou": float})


def iou_curve(regions: pd.DataFrame, iou_thresholds=None) -> pd.DataFrame:
    """Precision, recall and F1 as the IoU that a hit must exceed rises; the challenge asks for 0.1 only.

    `regions` see `region_table`. A curve that falls at once says that regions are found but badly drawn.
    """
    levels = np.arange(0, 100, 5) / 100 if iou_thresholds is None else np.asarray(iou_thresholds, float)
    counts = {}
    for side in ("predicted", "true"):
        ious = regions.loc[regions["side"] == side, "iou"].to_numpy()
        counts["n_" + side] = np.full(len(levels), len(ious))
        counts["hit_" + side] = (ious[None, :] > levels[:, None]).sum(axis=1)
    return pd.DataFrame({"iou_threshold": levels, **region_figures(counts), **counts})


def full_frame_diagnostic(labels, ids=None, workers=None) -> dict:
    """What the challenge gives a mask that covers every image whole: the floor that F1 must be read against.

    Returns precision, recall, f1_score, giou of that mask, `images_hit` (share of the images with a true region
    where it counts as a hit) and `pixel_precision` (the share of pixels it is right about).
    """
    everywhere = Heatmaps(dict.fromkeys(labels.ids))
    ids = paired_ids(everywhere, labels, ids)
    full = Heatmaps(dict.fromkeys(ids, np.full((CHALLENGE_SIZE, CHALLENGE_SIZE), 255, np.uint8)))
    counts = sweep(full, labels, [0], ids, workers=workers)
    distorted = counts[counts["n_true"] > 0]
    figures = {name: float(value) for name, value in region_figures(counts[SUMMED].sum()).items()}
    return figures | {
        "giou": float(counts["iou"].mean()),
        "images_hit": float((distorted["hit_predicted"] > 0).mean()),
        "pixel_precision": float(counts["intersection"].sum() / counts["predicted_pixels"].sum()),
    }
