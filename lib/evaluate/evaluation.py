"""Choose how heatmaps become regions on one split, measure a run on another, and hold it against baselines."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit, run_config, unpredicted
from lib.evaluation_file import plain, read_evaluation, write_evaluation
from lib.metrics.baseline import Constant, trivial_predictions
from lib.metrics.calibration import best_setting, calibrate
from lib.metrics.matching import PREDICTED_AREA_RATIO
from lib.metrics.setting import USUAL_THRESHOLD, Setting
from lib.model.detector import DistortionDetector
from lib.predict.prediction import predict
from lib.stores import HELD_OUT, LabelStore


@dataclass(frozen=True)
class Grid:
    """The settings to try: every combination of these; see `Setting`."""

    thresholds: tuple[int, ...]
    min_areas: tuple[float, ...] = (PREDICTED_AREA_RATIO,)
    smoothings: tuple[float, ...] = (0.0,)

    def __len__(self) -> int:
        return len(self.thresholds) * len(self.min_areas) * len(self.smoothings)

    def curves(self, on: RunOnSplit) -> pd.DataFrame:
        """The figures of every setting on the labelled images of a split; see `lib.metrics.calibration.calibrate`."""
        tried = (self.thresholds, self.min_areas, self.smoothings)
        return calibrate(on.source, on.labels, *tried, ids=on.labelled_ids)


def settings_to_try(step: int = 5, min_areas=Grid.min_areas, smoothings=Grid.smoothings, threshold: int = 0) -> Grid:
    """Every `step`-th threshold, the reference solution's, and `threshold` if given, with all areas and blurs."""
    if not 1 <= step <= 254 or not min_areas or not smoothings:
        raise InputError("threshold_step must lie in 1..254, and min_areas and smoothings need at least one value")
    thresholds = {*range(step, 255, step), USUAL_THRESHOLD, threshold or USUAL_THRESHOLD}
    return Grid(tuple(sorted(thresholds)), tuple(min_areas), tuple(smoothings))


def choose_setting(calibration: RunOnSplit | None, reported: str, grid: Grid, threshold: int = 0) -> tuple:
    """The setting with the highest final score on the calibration split.

    Args:
        calibration: with its prediction; None without labels to choose on.
        reported: name of the split whose figures will be reported.
        threshold: used as it is when above 0, with the grid's first area and blur.
    Returns (Setting, a sentence that tells why it is the one, the grid's curves on the calibration split or None).
    """
    setting = Setting(threshold or USUAL_THRESHOLD, grid.min_areas[0], grid.smoothings[0])
    curves = grid.curves(calibration) if calibration else None
    why = "set by hand" if threshold else "the reference solution's, since no labels are at hand to choose on"
    if calibration and not threshold:
        setting = _best(curves)
        why = f"the best of {len(grid)} settings on {calibration.split}"
        same = calibration.split == reported
        why += " itself, so its figures are optimistic" if same else f"; {reported} had no say in it"
        if len(grid.min_areas) > 1 and setting.min_area == max(grid.min_areas):
            why += ". No larger area was tried (min_areas), though one might be better still"
    return setting, f"{str(setting).capitalize()}: {why}.", curves


def _best(curves: pd.DataFrame) -> Setting:
    best = best_setting(curves)
    return Setting(best["threshold"], best["min_area_ratio"], best["smoothing"])


def measured_at_best(stores: dict, pair: list[RunOnSplit], grid: Grid) -> RunOnSplit:
    """Other predictions ({split: store}) on the last split of `pair`, at their own best setting on the first."""
    calibration, reported = (replace(on, source=stores[on.split]) for on in (pair[0], pair[-1]))
    return replace(reported, setting=_best(grid.curves(calibration))).measured()


def trivial(splits: list[RunOnSplit]) -> dict[str, Constant]:
    """The trivial baseline, by split: the mean training heatmap and mean score, without images that are held out."""
    held_out = {id for on in splits if on.split == HELD_OUT for id in on.images}
    learnt = trivial_predictions(LabelStore(splits[0].data_path / "train"), (), sorted(held_out))
    return {on.split: replace(learnt, ids=on.images) for on in splits}


def measure_before(run, pair: list[RunOnSplit], grid: Grid, device="cpu", **options) -> RunOnSplit:
    """The run's detector before fine-tuning: the pretrained encoder under untrained heads; see `measured_at_best`."""
    detector = DistortionDetector.from_checkpoint(run_config(run)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        stores = {on.split: predict(detector, on.labels, Path(folder) / on.split, on.images, **options) for on in pair}
        return measured_at_best(stores, pair, grid)


def summarise(run: RunOnSplit, chosen: str, baselines: dict[str, RunOnSplit], resamples: int = 500, seed: int = 0):
    """The content of evaluation.json (see `lib.evaluation_file`); figures are None where the split has no labels.

    Args:
        run: the reported split, measured if it has labels. chosen: why its setting is the one.
        baselines: `trivial` and `before`, measured on the same images; either may be missing.
        resamples: of the bootstrap over images.
    """
    summary = {"data_path": run.data_path.as_posix(), "split": run.split}
    summary |= {"threshold": run.threshold, "min_area_ratio": run.min_area, "smoothing": run.smoothing}
    summary |= {"chosen": chosen, "n_images": len(run.images)}
    summary |= dict.fromkeys(("figures", "intervals", "trivial", "before")) | {"by_domain": {}}
    if run.counts is not None:
        summary["figures"] = run.with_intervals(resamples, seed)
        summary["intervals"] = summary["figures"].pop("intervals")
        summary["by_domain"] = run.by_group("domain", resamples, seed)
    for name, other in baselines.items():
        beside = {"threshold": other.threshold, "ahead": run.ahead_of(other, resamples, seed)}
        summary[name] = other.with_intervals(resamples, seed) | beside
    if not (run.folder / "ensemble.json").is_file():
        summary["train"] = training_facts(run.folder)
    return plain(summary)


def keep(run: RunOnSplit, evaluation: dict) -> Path:
    """Write what `summarise` gave beside the predictions; returns the path that the later notebooks read.

    It also becomes the run's own evaluation.json, unless that holds figures of another split or of other data: then
    these, and the setting that was chosen with them, stay.
    """
    beside, of_run = write_evaluation(run.place, evaluation), read_evaluation(run.folder)
    same = of_run.get("split") == run.split and run.place.name == run.split
    if (of_run.get("figures") and not evaluation["figures"]) or not (same or not of_run.get("figures")):
        return beside
    return write_evaluation(run.folder, evaluation)


def training_facts(run) -> dict:
    """How the run was trained and what it weighs: finished.json and the size of its folder in MB (10^6 bytes)."""
    path = Path(run) / "finished.json"
    if not path.is_file():
        raise InputError(f"{run} holds no finished.json: its training has not ended; run notebooks/2_train.ipynb again")
    return {**json.loads(path.read_text()), "run_megabytes": round(folder_megabytes(run), 2)}


def folder_megabytes(folder) -> float:
    """Size of a folder's files in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def calibration_split(runs: list, data_path, reported: str, wanted: str = "") -> str:
    """Name of the split on which the setting is chosen; empty when no labels are at hand.

    It is the one wanted; else `val` or what was held out, another than the reported one if possible.

    Args:
        runs: one, or those of an ensemble, none of which may have trained on it.
        reported: the split whose figures are reported.
    Raises InputError when the split wanted has no labels.
    """
    if wanted:
        if not (on := unpredicted(runs[0], data_path, wanted)).labelled_ids:
            raise InputError(f"{on.labels.path} has no labels to choose a threshold on; name another split or give one")
        return wanted
    manifest = Path(data_path) / "val" / LabelStore.table_name
    val = "val" if manifest.is_file() and unpredicted(runs[0], data_path, "val").labelled_ids else ""
    if val and reported != val:
        return val
    return HELD_OUT if _all_held_out_the_same(runs, data_path) else val


def _all_held_out_the_same(runs: list, data_path) -> bool:
    """False when one of the runs has trained on images that another held out."""
    if not all(run_config(run).val_split for run in runs):
        return False
    held_out = [unpredicted(run, data_path, HELD_OUT).images for run in runs]
    return all(ids == held_out[0] for ids in held_out)
