"""What notebook 3 reports of a run, or of an ensemble of runs: predictions, the setting from one split, figures."""

import json
import math
from pathlib import Path

import pandas as pd

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate.judging import Grid, Judged, judge_before, judge_trivial
from lib.files import replacing
from lib.metrics.beyond import AP_THRESHOLDS
from lib.metrics.calibration import Smoothed
from lib.metrics.setting import USUAL_THRESHOLD, Setting
from lib.predict.prediction import ensemble
from lib.predict.processes import predict_splits
from lib.predict.splits import Split, calibration_split, run_config
from lib.stores import PredictionStore

LONGEST_NAME = 100  # characters of a folder made from several names


class Evaluation:
    """One run, or several averaged, on one split. What needs labels is None where there are none.

    Args:
        run: folder of a trained run. split: the one reported. data_path: empty for the run's own.
        calibration: split on which the setting is chosen; empty: `val` or what was held out, another than `split` if
            there is one.
        others: further runs to average with. weights: one a run, `run` first; empty for all alike.
        name: of the ensemble's folder beside the runs; empty for the runs' names joined with +.
        processes: that share the prediction. options: of `inference.predict`.
    """

    def __init__(
        self, run, split: str, data_path: str = "", calibration: str = "", others=(), weights=(), name: str = "",
        device="cpu", processes: int = 1, **options,
    ):  # fmt: skip
        self.runs, self.weights = [Path(run), *map(Path, others)], list(weights) or None
        self.folder = _folder(self.runs, self.weights, name)
        self.device, self.processes, self.options = device, processes, options
        self.data_path = data_path or run_config(run).data_path
        self.split = Split(run, self.data_path, split)
        self.calibration = calibration_split(self.runs, self.data_path, split, calibration)
        self.judged_on: Judged | None = None
        self.judged: Judged | None = None

    @property
    def pair(self) -> list[Split]:
        """The calibration split and the reported one, or only the latter without labels to choose on."""
        return [self.calibration, self.split] if self.calibration else [self.split]

    def pair_of(self, run) -> list[Split]:
        """The same splits as another run of the ensemble sees them."""
        return [Split(run, self.data_path, split.name) for split in self.pair]

    def predict(self) -> dict[str, PredictionStore]:
        """Predictions on both splits, by name: in the run's folder, or averaged in the ensemble's."""
        self.members = [
            predict_splits(self.pair_of(run), self.device, self.processes, self._member_folder(run), **self.options)
            for run in self.runs
        ]
        if len(self.runs) > 1:
            self._describe()
        self.predictions = averaged(self.members, self.folder / "predictions", self.weights)
        return self.predictions

    def _member_folder(self, run: Path) -> Path | None:
        """Where a run is predicted; None for its own folder.

        An ensemble that wants other views of the images than were evaluated keeps them to itself: the figures of the
        run were measured on what its folder holds.
        """
        views = {"flip": bool(self.options.get("flip")), "scales": list(self.options.get("scales", (1.0,)))}
        notes = [run / "predictions" / split.name / "prediction.json" for split in self.pair]
        if len(self.runs) == 1 or all(path.is_file() and views.items() <= _read(path).items() for path in notes):
            return None
        return self.folder / "members" / f"{self.runs.index(run)}_{run.name}"

    @property
    def reported(self) -> Smoothed:
        """The predictions of the reported split as the chosen setting blurs them."""
        return Smoothed(self.predictions[self.split.name], self.setting.smoothing)

    def _describe(self) -> None:
        """Make the ensemble's folder one that the later notebooks can open: its members, and where the data are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = {**run_config(self.runs[0]).to_dict(), "experiment_name": self.folder.name}
        Experiment.from_dict(config).save(self.folder / "config.yaml")
        members = {"runs": [run.as_posix() for run in self.runs], "weights": self.weights}
        with replacing(self.folder / "ensemble.json") as part:
            part.write_text(json.dumps(members, indent=1, ensure_ascii=False), encoding="utf-8")

    def judge(self, threshold: int = 0, step: int = 5, min_areas=Grid.min_areas, smoothings=Grid.smoothings) -> str:
        """Choose the setting, count regions with it, and return a sentence that tells why it is the one.

        Args:
            threshold: used as it is when above 0; else the best on the calibration split; else the reference's 90.
            step: every n-th threshold is tried. min_areas, smoothings: see `Setting`; the first when none is chosen.
        """
        if not 1 <= step <= 254 or not min_areas or not smoothings:
            raise InputError("threshold_step must lie in 1..254, and min_areas and smoothings need at least one value")
        thresholds = tuple(sorted({*range(step, 255, step), USUAL_THRESHOLD, threshold or USUAL_THRESHOLD}))
        self.grid = Grid(thresholds, tuple(min_areas), tuple(smoothings))
        self.setting = Setting(threshold or USUAL_THRESHOLD, min_areas[0], smoothings[0])
        self.by_hand = bool(threshold) or not self.calibration
        why = "set by hand" if threshold else "the reference solution's, since no labels are at hand to choose on"
        if self.calibration and not threshold:
            self.setting = self.grid.best(self.predictions[self.calibration.name], self.calibration)
            why = f"the best of {len(self.grid)} settings on {self.calibration.name}"
            if self.calibration.name == self.split.name:
                why += " itself, so its figures are optimistic"
            else:
                why += f"; {self.split.name} had no say in it"
            if len(min_areas) > 1 and self.setting.min_area == max(min_areas):
                why += ". No larger area was tried (min_areas), though one might be better still"
        counted = {self.split.name: {*thresholds, *AP_THRESHOLDS}}  # of the reported split for its average precision
        judged = {
            part.name: Judged(self.predictions[part.name], part, self.setting, counted.get(part.name, thresholds))
            for part in self.pair
            if part.labelled
        }
        self.judged_on = judged.get(self.calibration.name) if self.calibration else None
        self.judged = judged.get(self.split.name)
        self.chosen = f"{str(self.setting).capitalize()}: {why}."
        return self.chosen

    def summarise(self, before: bool = True, resamples: int = 500, seed: int = 0) -> dict:
        """The content of evaluation.json; figures are None where the split has no labels."""
        setting = self.setting
        summary = {"data_path": Path(self.data_path).as_posix(), "split": self.split.name}
        summary |= {"threshold": setting.threshold, "min_area_ratio": setting.min_area}
        summary |= {"smoothing": setting.smoothing, "chosen": self.chosen, "n_images": len(self.split.ids)}
        summary |= dict.fromkeys(("figures", "intervals", "trivial", "before")) | {"by_domain": {}}
        if self.judged:
            summary["figures"] = self.judged.measured(resamples, seed)
            summary["intervals"] = summary["figures"].pop("intervals")
            summary["by_domain"] = self.judged.by_group("domain", resamples, seed)
        if self.judged and self.judged_on:
            summary["trivial"] = self._beside(judge_trivial(self.pair, self.grid), resamples, seed)
            if before and len(self.runs) == 1:
                untrained = judge_before(self.pair, self.grid, self.device, **self.options)
                summary["before"] = self._beside(untrained, resamples, seed)
        if len(self.runs) == 1:
            summary["train"] = training_facts(self.folder)
        return _without_nan(summary)

    def _beside(self, baseline: Judged, resamples: int, seed: int) -> dict:
        """What a baseline reaches on the reported split, and how far the run is `ahead` of it."""
        ahead = self.judged.ahead_of(baseline, resamples, seed)
        return baseline.measured(resamples, seed) | {"threshold": baseline.setting.threshold, "ahead": ahead}


def _folder(runs: list[Path], weights: list[float] | None, name: str) -> Path:
    """Where results go: the run's folder, or that of an ensemble beside the first run."""
    if len(runs) == 1:
        if weights or name:
            raise InputError("weights and ensemble_name need an ensemble; name its other runs, or leave them empty")
        return runs[0]
    twice = sorted({run.as_posix() for run in runs if runs.count(run) > 1})
    if twice:
        raise InputError(f"ensemble: {twice[0]} is named twice; give it a weight instead")
    joined = name or "+".join(run.name for run in runs)
    if joined != Path(joined).name or len(joined) > LONGEST_NAME:
        raise InputError(f"ensemble_name: {joined!r} must be one plain folder name of at most {LONGEST_NAME} letters")
    folder = runs[0].parent / joined
    if folder in runs or (folder.exists() and not (folder / "ensemble.json").is_file()):
        raise InputError(f"{folder} exists and is no ensemble; give another ensemble_name")
    return folder


def averaged(found: list[dict], folder: Path, weights: list[float] | None = None) -> dict[str, PredictionStore]:
    """One run's stores as they are, those of several as an ensemble in `folder`; all by the names of their splits."""
    if len(found) == 1:
        return found[0]
    return {name: ensemble([stores[name] for stores in found], folder / name, weights) for name in found[0]}


def training_facts(run) -> dict:
    """How the run was trained and what it weighs: finished.json and the size of its folder in MB (10^6 bytes)."""
    path = Path(run) / "finished.json"
    if not path.is_file():
        raise InputError(f"{run} holds no finished.json: its training has not ended; run notebooks/2_train.ipynb again")
    return {**json.loads(path.read_text()), "run_megabytes": round(folder_megabytes(run), 2)}


def folder_megabytes(folder) -> float:
    """Size of a folder's files in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def write_evaluation(run, summary: dict, effects: pd.DataFrame | None = None) -> Path:
    """Write what `Evaluation.summarise` gave, and `lib.evaluate.effects` if asked, as `<run>/evaluation.json`."""
    path = Path(run) / "evaluation.json"
    if effects is not None:
        summary = {**summary, "effects": _without_nan(effects.to_dict(orient="index"))}
    with replacing(path) as part:
        part.write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _without_nan(value):
    """The same nested value with NaN as None, tuples as lists and NumPy numbers as Python's: valid JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
