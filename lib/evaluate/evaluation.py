"""What notebook 3 measures of a run on a split beside baselines, and where it is kept."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.evaluate.comparison import paired_differences
from lib.evaluate.run_on_split import RunOnSplit, run_config, unpredicted
from lib.evaluation_file import plain, read_evaluation, write_evaluation
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.setting import Grid, best_setting
from lib.metrics.statistics import resample
from lib.stores import HELD_OUT, LabelStore
from lib.train import read_finished

MEAN_SIDE = 128  # pixels of the trivial baseline's heatmap


def measured_at_best(pair: list[RunOnSplit], grid: Grid) -> RunOnSplit:
    """Predictions on the last split of `pair` at their own best setting on the first, measured."""
    on = pair[0]
    setting = best_setting(grid.curves(on.source, on.labels, on.labelled_ids))
    return replace(pair[-1], setting=setting).measured()


def trivial(splits: list[RunOnSplit]) -> list[RunOnSplit]:
    """The trivial baseline on the same splits: for every image the mean training heatmap and the mean training score.

    Labels favour the middle of the frame, and scores cluster, so whatever a model reaches must be read against it.
    Images that are held out are not learnt from. Raises InputError when train has no label or no score.
    """
    held_out = sorted({id for on in splits if on.split == HELD_OUT for id in on.images})
    train = LabelStore(splits[0].data_path / "train")
    learnt = train.table.drop(index=held_out)
    ids, score = learnt.index[learnt["labelled"]], learnt["score"].mean()
    if ids.empty or pd.isna(score):
        raise InputError(f"{train.path} has no labels to average; the trivial baseline needs a labelled training split")
    total = np.zeros((MEAN_SIDE, MEAN_SIDE))
    for id in ids:
        total += cv2.resize(train.heatmap(id), (MEAN_SIDE, MEAN_SIDE), interpolation=cv2.INTER_AREA)
    heatmap, score = (total / len(ids)).astype(np.float32).round().astype(np.uint8), float(score)
    return [
        replace(on, source=Heatmaps(dict.fromkeys(on.images, heatmap), dict.fromkeys(on.images, score)))
        for on in splits
    ]


def summarise(run: RunOnSplit, chosen: str, baselines: dict[str, RunOnSplit], resamples: int = 500, seed: int = 0):
    """The content of evaluation.json (see `lib.evaluation_file`); figures are None where the split has no labels.

    Args:
        run: the reported split, measured if it has labels. chosen: why its setting is the one.
        baselines: `trivial` and `frozen`, measured on the same images; either may be missing.
        resamples: of the bootstrap over images.
    """
    summary = {"data_path": run.data_path.as_posix(), "split": run.split}
    summary |= {"threshold": run.threshold, "min_area_ratio": run.min_area, "smoothing": run.setting.smoothing}
    summary |= {"chosen": chosen, "n_images": len(run.images)}
    summary |= dict.fromkeys(("figures", "intervals", "trivial", "frozen")) | {"by_domain": {}}
    if run.counts is not None:
        measured = {"figures": run, **baselines}
        resampled = resample({name: one.at() for name, one in measured.items()}, resamples, seed)
        for name, one in measured.items():
            summary[name] = one.figures() | {"intervals": resampled[name].intervals}
        for row in paired_differences(resampled, "figures").query("figure == 'final_score'").itertuples():
            ahead = {"difference": -row.difference, "low": -row.high, "high": -row.low, "p": row.p}
            summary[row.run] |= {"threshold": baselines[row.run].threshold, "ahead": ahead}
        summary["intervals"] = summary["figures"].pop("intervals")
        summary["by_domain"] = run.by_group("domain", resamples, seed)
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
    size = sum(path.stat().st_size for path in Path(run).rglob("*") if path.is_file())
    return {**read_finished(run), "run_megabytes": round(size / 1e6, 2)}


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
    if (val and reported != val) or not all(run_config(run).val_split for run in runs):
        return val
    held_out = [unpredicted(run, data_path, HELD_OUT).images for run in runs]
    # Otherwise one of the runs has trained on images that another held out.
    return HELD_OUT if all(ids == held_out[0] for ids in held_out) else val
