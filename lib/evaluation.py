"""What notebook 3 reports of a run: threshold from one split, figures on another, baselines beside them."""

import json
import math
import tempfile
from pathlib import Path

import pandas as pd

from lib.baseline import trivial_predictions
from lib.calibration import best_setting, calibrate
from lib.config import Experiment
from lib.dataset import labelled
from lib.errors import InputError
from lib.files import replacing
from lib.inference import predict
from lib.inspected import HELD_OUT, USUAL_THRESHOLD
from lib.matching import PREDICTED_AREA_RATIO
from lib.metrics import challenge_figures, score_table, sweep, threshold_curve
from lib.model import DistortionDetector
from lib.prepare import hold_out
from lib.statistics import bootstrap_figures
from lib.stores import LabelStore, PredictionStore


def run_config(run) -> Experiment:
    """The parameters that a run was trained with; InputError when the folder is no run."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise InputError(f"{run} holds no config.yaml; give the folder of a run that notebooks/2_train.ipynb wrote")
    return Experiment.from_yaml(path)


class Split:
    """A prepared split as one run sees it: the store, the images that count, and which of them have labels.

    Args:
        run: folder of a trained run. data_path: prepared data. name: a split's folder, or `held_out`.
    """

    def __init__(self, run, data_path, name: str):
        self.run, self.name = Path(run), name
        config = run_config(self.run)
        self.store = LabelStore(Path(data_path) / ("train" if name == HELD_OUT else name))
        self.ids = self.store.ids
        if name == HELD_OUT:
            if not config.val_split:
                raise InputError(
                    f"{run} trained on all of train, so nothing is held out (val_split is 0); name another split"
                )
            self.ids = hold_out(data_path, config.val_split, config.seed)
        known = set(labelled(self.store))
        self.labelled = [id for id in self.ids if id in known]

    def predict(self, detector: DistortionDetector, **options) -> PredictionStore:
        """Predictions in `<run>/predictions/<split>`; options as of `inference.predict`."""
        return predict(detector, self.store, self.run / "predictions" / self.name, self.ids, **options)


def calibration_split(run, data_path, wanted: str = "") -> Split | None:
    """Where the threshold is chosen: the split wanted, else `val`, else what was held out; None without labels."""
    config = run_config(run)
    if wanted:
        split = Split(run, data_path, wanted)
        if not split.labelled:
            raise InputError(
                f"{split.store.path} has no labels to choose a threshold on; name another split or give one"
            )
        return split
    if (Path(data_path) / "val" / LabelStore.table_name).is_file():
        split = Split(run, data_path, "val")
        if split.labelled:
            return split
    return Split(run, data_path, HELD_OUT) if config.val_split else None


class Judged:
    """Counts at all thresholds and scores of one source of predictions on the labelled images of a split.

    `min_area` is the contour area, as a fraction of the frame, up to which predicted regions are dropped.
    """

    def __init__(self, predictions, split: Split, thresholds, min_area: float = PREDICTED_AREA_RATIO):
        self.table, self.ids = split.store.table, split.labelled
        self.counts = sweep(predictions, split.store, thresholds, self.ids, min_area)
        self.scores = score_table(predictions, split.store, self.ids)
        self.curve = threshold_curve(self.counts, self.scores)

    def at(self, threshold: int, ids=None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(counts, scores) at one threshold, of all images or of `ids`."""
        counts = self.counts[self.counts["threshold"] == threshold]
        if ids is None:
            return counts, self.scores
        return counts[counts["id"].isin(ids)], self.scores.loc[list(ids)]

    def figures(self, threshold: int, ids=None) -> dict:
        """The challenge's figures at one threshold."""
        return challenge_figures(*self.at(threshold, ids))

    def intervals(self, threshold: int, resamples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of the figures over images."""
        return bootstrap_figures(*self.at(threshold), n=resamples, seed=seed)

    def by_group(self, threshold: int, column: str) -> dict[str, dict]:
        """Figures for each value of a manifest column (such as `domain`); empty when the data set lacks it."""
        if column not in self.table:
            return {}
        groups = self.table.loc[self.ids].groupby(column).groups
        return {str(value): {**self.figures(threshold, ids), "n_images": len(ids)} for value, ids in groups.items()}


class Evaluation:
    """One run on one split: predictions, threshold, figures. What needs labels is None where there are none.

    Args:
        run: folder of a trained run. split: the one reported. data_path: empty for the run's own.
        calibration: split on which the threshold is chosen; empty: `val`, else what was held out.
        options: of `inference.predict`.
    """

    def __init__(self, run, split: str, data_path: str = "", calibration: str = "", device="cpu", **options):
        self.run, self.device, self.options = Path(run), device, options
        self.data_path = data_path or run_config(self.run).data_path
        self.split = Split(run, self.data_path, split)
        self.calibration = calibration_split(run, self.data_path, calibration)
        self.judged_on: Judged | None = None
        self.judged: Judged | None = None

    @property
    def pair(self) -> list[Split]:
        """The calibration split and the reported one, or only the latter without labels to choose on."""
        return [self.calibration, self.split] if self.calibration else [self.split]

    def predict(self) -> dict[str, PredictionStore]:
        """Predictions on both splits, by name."""
        detector = DistortionDetector.from_pretrained(self.run, self.device)
        self.predictions = {split.name: split.predict(detector, **self.options) for split in self.pair}
        return self.predictions

    def judge(self, threshold: int = 0, step: int = 5, min_areas=(PREDICTED_AREA_RATIO,)) -> str:
        """Choose `threshold` and `min_area`, count regions with them, and return a sentence that tells why.

        Args:
            threshold: used as it is when above 0; else the best on the calibration split; else the reference's 90.
            step: every n-th threshold is tried. min_areas: smallest areas to try, fractions of the frame.
        """
        self.thresholds = sorted({*range(step, 255, step), USUAL_THRESHOLD, threshold or USUAL_THRESHOLD})
        self.min_areas = tuple(min_areas)
        self.threshold, self.min_area = threshold or USUAL_THRESHOLD, self.min_areas[0]
        why = "set by hand" if threshold else "the reference solution's, since no labels are at hand to choose on"
        if self.calibration and not threshold:
            best = choose(self.predictions[self.calibration.name], self.calibration, self.thresholds, self.min_areas)
            self.threshold, self.min_area = best["threshold"], best["min_area_ratio"]
            tried = len(self.thresholds) * len(self.min_areas)
            why = f"the best of {tried} settings on {self.calibration.name}; {self.split.name} had no say in it"
            if self.calibration.name == self.split.name:
                why = f"the best of {tried} settings on {self.split.name} itself, so its figures are optimistic"
        judged = {
            part.name: Judged(self.predictions[part.name], part, self.thresholds, self.min_area)
            for part in self.pair
            if part.labelled
        }
        self.judged_on = judged.get(self.calibration.name) if self.calibration else None
        self.judged = judged.get(self.split.name)
        return f"Threshold {self.threshold}, regions above {self.min_area:.2%} of the frame: {why}."

    def summarise(self, before: bool = True, resamples: int = 500, seed: int = 0) -> dict:
        """The content of evaluation.json; figures are None where the split has no labels."""
        summary = {"split": self.split.name, "threshold": self.threshold, "min_area_ratio": self.min_area}
        summary["n_images"] = len(self.split.ids)
        summary |= dict.fromkeys(("figures", "intervals", "trivial", "before")) | {"by_domain": {}}
        if self.judged:
            summary["figures"] = self.judged.figures(self.threshold)
            summary["intervals"] = self.judged.intervals(self.threshold, resamples, seed)
            summary["at_90"] = self.judged.figures(USUAL_THRESHOLD)
            summary["by_domain"] = self.judged.by_group(self.threshold, "domain")
        if self.judged and self.judged_on:
            tried = (self.pair, self.thresholds, self.min_areas)
            summary["trivial"] = judge_trivial(self.data_path, *tried)
            if before:
                summary["before"] = judge_before(self.run, *tried, self.device, **self.options)
        return _without_nan({**summary, "train": training_facts(self.run)})


def choose(predictions, split: Split, thresholds, min_areas) -> dict:
    """The `threshold` and `min_area_ratio` with the highest final score on the labelled images of a split."""
    return best_setting(calibrate(predictions, split.store, thresholds, min_areas, ids=split.labelled))


def judge_other(predictions: dict[str, object], splits: list[Split], thresholds, min_areas) -> dict:
    """Figures of any source of predictions on the last split, with the setting that is best for it on the first."""
    calibration, report = splits[0], splits[-1]
    best = choose(predictions[calibration.name], calibration, thresholds, min_areas)
    judged = Judged(predictions[report.name], report, [best["threshold"]], best["min_area_ratio"])
    return {**judged.figures(best["threshold"]), "threshold": best["threshold"]}


def judge_trivial(data_path, splits: list[Split], thresholds, min_areas) -> dict:
    """Figures of the trivial baseline: the mean training heatmap and mean score for every image, own threshold."""
    train = LabelStore(Path(data_path) / "train")
    stores = {split.name: trivial_predictions(train, split.ids) for split in splits}
    return judge_other(stores, splits, thresholds, min_areas)


def judge_before(run, splits: list[Split], thresholds, min_areas, device="cpu", **options) -> dict:
    """Figures of the same detector before fine-tuning: the pretrained encoder under untrained heads."""
    detector = DistortionDetector.from_checkpoint(run_config(run)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            split.name: predict(detector, split.store, Path(folder) / split.name, split.ids, **options)
            for split in splits
        }
        return judge_other(stores, splits, thresholds, min_areas)


def training_facts(run) -> dict:
    """How the run was trained and what it weighs: finished.json and the size of its folder in MB (10^6 bytes)."""
    path = Path(run) / "finished.json"
    if not path.is_file():
        raise InputError(f"{run} holds no finished.json: its training has not ended; run notebooks/2_train.ipynb again")
    return {**json.loads(path.read_text()), "run_megabytes": round(folder_megabytes(run), 2)}


def folder_megabytes(folder) -> float:
    """Size of a folder's files in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def write_evaluation(run, summary: dict) -> Path:
    """Write what `Evaluation.summarise` gave as `<run>/evaluation.json`."""
    path = Path(run) / "evaluation.json"
    with replacing(path) as part:
        part.write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def _without_nan(value):
    """The same nested value with NaN as None, tuples as lists and NumPy numbers as Python's: valid JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
