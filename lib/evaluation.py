"""What notebook 3 reports of a run: threshold from one split, figures on another, baselines beside them."""

import json
import math
from pathlib import Path

import pandas as pd

from lib.analysis import trivial_predictions
from lib.config import Experiment
from lib.dataset import labelled
from lib.errors import InputError
from lib.files import replacing
from lib.inference import predict
from lib.metrics import best_threshold, challenge_figures, score_table, sweep, threshold_curve
from lib.model import DistortionDetector
from lib.statistics import bootstrap_figures
from lib.stores import LabelStore, PredictionStore


def predict_run(run, data_path, split: str, device="cpu", **options) -> PredictionStore:
    """Predictions of a trained run on a prepared split, in `<run>/predictions/<split>`; see `inference.predict`."""
    store = LabelStore(Path(data_path) / split)
    detector = DistortionDetector.from_pretrained(run, device)
    return predict(detector, store, Path(run) / "predictions" / split, **options)


def predict_before(run, data_path, splits, device="cpu", **options) -> dict[str, PredictionStore]:
    """Predictions of the same detector before fine-tuning: the pretrained encoder under untrained heads."""
    config = Experiment.from_yaml(Path(run) / "config.yaml")
    detector = DistortionDetector.from_checkpoint(config).to(device)
    folder = Path(run) / "predictions" / "before"
    return {split: predict(detector, LabelStore(Path(data_path) / split), folder / split, **options) for split in splits}


class Judged:
    """Counts at all thresholds and scores of one source of predictions on one labelled split."""

    def __init__(self, predictions, labels: LabelStore, thresholds, workers: int | None = None):
        self.ids = labelled(labels)
        if not self.ids:
            raise InputError(f"{labels.path} has no labels to compare with; evaluate on a labelled split, or only predict")
        self.labels = labels
        self.counts = sweep(predictions, labels, thresholds, ids=self.ids, workers=workers)
        self.scores = score_table(predictions, labels, self.ids)
        self.curve = threshold_curve(self.counts, self.scores)

    def at(self, threshold: int, ids=None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(counts, scores) at one threshold, of all images or of `ids`."""
        counts = self.counts[self.counts["threshold"] == threshold]
        if ids is None:
            return counts, self.scores
        return counts[counts["id"].isin(ids)], self.scores.loc[list(ids)]

    def figures(self, threshold: int, ids=None) -> dict:
        return challenge_figures(*self.at(threshold, ids))

    def by_group(self, threshold: int, column: str) -> dict[str, dict]:
        """Figures for each value of a manifest column (such as `domain`); empty when the data set lacks it."""
        if column not in self.labels.table:
            return {}
        groups = self.labels.table.loc[self.ids].groupby(column).groups
        return {str(value): {**self.figures(threshold, ids), "n_images": len(ids)} for value, ids in groups.items()}


def judge_pair(stores: dict, labels: dict, calibration_split: str, split: str, thresholds) -> dict:
    """Figures on `split` at the threshold that is best on `calibration_split`, of any two sources of predictions."""
    threshold = best_threshold(Judged(stores[calibration_split], labels[calibration_split], thresholds).curve)
    return Judged(stores[split], labels[split], [threshold]).figures(threshold)


def judge_trivial(train: LabelStore, labels: dict, calibration_split: str, split: str, thresholds) -> dict:
    """Figures of the trivial baseline: the mean training heatmap and mean score for every image, own threshold."""
    stores = {name: trivial_predictions(train, store.ids) for name, store in labels.items()}
    return judge_pair(stores, labels, calibration_split, split, thresholds)


def summarise(run, calibration: Judged, report: Judged, split: str, trivial: dict, before: dict | None, resamples: int, seed: int) -> dict:
    """The content of evaluation.json, without NaN: an undefined figure is null."""
    threshold = best_threshold(calibration.curve)
    finished = json.loads((Path(run) / "finished.json").read_text())
    return without_nan({
        "split": split,
        "threshold": threshold,
        "figures": report.figures(threshold),
        "intervals": bootstrap_figures(*report.at(threshold), n=resamples, seed=seed),
        "at_90": report.figures(90),
        "trivial": trivial,
        "before": before,
        "by_domain": report.by_group(threshold, "domain"),
        "train": {**finished, "run_megabytes": round(folder_megabytes(run), 2)},
    })  # fmt: skip


def folder_megabytes(folder) -> float:
    """Size of a folder's files in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def without_nan(value):
    """The same nested value with NaN as None, tuples as lists and NumPy numbers as Python's: valid JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, value) -> None:
    """Write a nested value as JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
