"""Settings tried on one split, figures reported on another: of a run, of baselines, of anything that predicts."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lib.data.attributes import named
from lib.metrics import challenge_figures, score_table, sweep, threshold_curve
from lib.metrics.baseline import Constant, trivial_predictions
from lib.metrics.calibration import Smoothed, best_setting, calibrate
from lib.metrics.matching import PREDICTED_AREA_RATIO
from lib.metrics.setting import Setting
from lib.metrics.statistics import figures_with_intervals, paired_bootstrap
from lib.model.detector import DistortionDetector
from lib.predict.splits import Split, run_config
from lib.stores import HELD_OUT, LabelStore

CHANCE = ("difference", "low", "high", "p")


@dataclass(frozen=True)
class Grid:
    """Every combination of these is tried."""

    thresholds: tuple[int, ...]
    min_areas: tuple[float, ...] = (PREDICTED_AREA_RATIO,)
    smoothings: tuple[float, ...] = (0.0,)

    def __len__(self) -> int:
        return len(self.thresholds) * len(self.min_areas) * len(self.smoothings)

    def best(self, predictions, split: Split) -> Setting:
        """The one with the highest final score on the labelled images of a split."""
        tried = (self.thresholds, self.min_areas, self.smoothings)
        best = best_setting(calibrate(predictions, split.store, *tried, ids=split.labelled))
        return Setting(best["threshold"], best["min_area_ratio"], best["smoothing"])


class Judged:
    """Counts and scores of one source of predictions on the labelled images of a split.

    `setting` is the one to report; other `thresholds` are counted beside its own, for the curve.
    """

    def __init__(self, predictions, split: Split, setting: Setting, thresholds=()):
        self.table, self.ids, self.setting = split.store.table, split.labelled, setting
        source = Smoothed(predictions, setting.smoothing)
        thresholds = sorted({setting.threshold, *thresholds})
        self.counts = sweep(source, split.store, thresholds, self.ids, setting.min_area)
        self.scores = score_table(predictions, split.store, self.ids)
        self.curve = threshold_curve(self.counts, self.scores)

    def at(self, threshold: int | None = None, ids=None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(counts, scores) at the setting's threshold or another one, of all images or of `ids`."""
        counts = self.counts[self.counts["threshold"] == (threshold or self.setting.threshold)]
        if ids is None:
            return counts, self.scores
        return counts[counts["id"].isin(ids)], self.scores.loc[list(ids)]

    def figures(self, threshold: int | None = None, ids=None) -> dict:
        """The challenge's figures at the setting's threshold or another one."""
        return challenge_figures(*self.at(threshold, ids))

    def measured(self, resamples: int, seed: int = 0, ids=None) -> dict:
        """The figures at the setting's threshold with their `intervals` (95 %, bootstrap over images)."""
        return figures_with_intervals(*self.at(ids=ids), n=resamples, seed=seed)

    def by_group(self, column: str, resamples: int, seed: int = 0) -> dict[str, dict]:
        """`measured` for each value of a manifest column (such as `domain`); empty when the data set lacks it."""
        if column not in self.table:
            return {}
        names = named(self.table.loc[self.ids, column])
        groups = names.groupby(names).groups
        return {
            str(value): {**self.measured(resamples, seed, ids), "n_images": len(ids)} for value, ids in groups.items()
        }

    def ahead_of(self, other: "Judged", resamples: int, seed: int = 0) -> dict:
        """How far its final score is above another one's on the same images: `difference`, `low`, `high`, `p`."""
        pair = *other.at(), *self.at()
        found = paired_bootstrap(*pair, n=resamples, seed=seed, figures=("final_score",))["final_score"]
        return {key: found[key] for key in CHANCE}


def judge(predictions: dict[str, object], splits: list[Split], grid: Grid) -> Judged:
    """Any source of predictions on the last split, with the setting that is best for it on the first."""
    setting = grid.best(predictions[splits[0].name], splits[0])
    return Judged(predictions[splits[-1].name], splits[-1], setting)


def judge_trivial(splits: list[Split], grid: Grid) -> Judged:
    """The trivial baseline: the mean training heatmap and mean score for every image, at its own best setting."""
    return judge(trivial(splits), splits, grid)


def trivial(splits: list[Split]) -> dict[str, Constant]:
    """The trivial baseline for splits of one run, by their names; learnt without the images that they hold out."""
    held_out = [id for split in splits if split.name == HELD_OUT for id in split.ids]
    learnt = trivial_predictions(LabelStore(splits[0].data_path / "train"), (), sorted(set(held_out)))
    return {split.name: replace(learnt, ids=split.ids) for split in splits}


def judge_before(splits: list[Split], grid: Grid, device="cpu", **options) -> Judged:
    """The same detector before fine-tuning: the pretrained encoder under untrained heads."""
    detector = DistortionDetector.from_checkpoint(run_config(splits[0].run)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        stores = {split.name: split.predict(detector, Path(folder) / split.name, **options) for split in splits}
        return judge(stores, splits, grid)
