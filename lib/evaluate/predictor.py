"""A run, or several averaged, that predicts splits into its folder."""

import json
from dataclasses import replace
from pathlib import Path

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate.processes import Job, predict_jobs
from lib.evaluate.run_on_split import RunOnSplit, run_config, unpredicted
from lib.files import replacing
from lib.predict.prediction import ensemble, shares
from lib.stores import PredictionStore

LONGEST_NAME = 100  # characters of a folder made from several names


class Predictor:
    """A run, or an ensemble of runs, and how it predicts.

    Args:
        run: folder of a trained run.
        data_path: prepared data; empty for the run's own.
        others: further runs to average with.
        weights: one a run, `run` first; empty for all alike.
        name: of the ensemble's folder beside the runs; empty for the runs' names joined with +.
        device: of a single process. processes: that share the prediction.
        options: of `lib.predict.prediction.predict`.
    """

    def __init__(self, run, data_path="", others=(), weights=(), name="", device="cpu", processes: int = 1, **options):
        self.runs, self.weights = [Path(run), *map(Path, others)], list(weights) or None
        self.data_path = data_path or run_config(run).data_path
        self.folder = _folder(self.runs, self.weights, name)
        self.device, self.processes, self.options = device, processes, options
        self.members: list[dict[str, PredictionStore]] = []  # of each run, by split, after `predict`

    def predict(self, splits: list[str]) -> list[RunOnSplit]:
        """Predict splits (their names), averaged over the runs, into the folder's `predictions`."""
        if len(self.runs) > 1:
            configs = [run_config(run) for run in self.runs]  # of all runs, before the first prediction
            self._describe(configs[0])
        self.members = [self.predict_run(run, splits) for run in self.runs]
        reported = [self._reported(name) for name in splits]
        stores = self.averaged(self.members, {on.split: on.place for on in reported})
        for on in reported:
            on.note_images()
        return [replace(on, source=stores[on.split]) for on in reported]

    def predict_run(self, run, splits: list[str], into: Path | None = None, **changed) -> dict[str, PredictionStore]:
        """Stores of one run by split; `changed` options instead of the predictor's own.

        `into` is a folder for the stores instead of the run's `predictions`.
        """
        options = {**self.options, **changed}
        opened = [unpredicted(run, self.data_path, name, _views(options)) for name in splits]
        jobs = [Job(on.labels, on.images, into / on.place.name if into else on.place) for on in opened]
        return dict(zip(splits, predict_jobs(run, jobs, self.device, self.processes, **options), strict=True))

    def averaged(self, members: list[dict], places: dict[str, Path]) -> dict[str, PredictionStore]:
        """The stores of one run as they are; those of several as an ensemble in the folder of each split."""
        if len(members) == 1:
            return members[0]
        return {name: ensemble([one[name] for one in members], place, self.weights) for name, place in places.items()}

    def _reported(self, split: str) -> RunOnSplit:
        """The run or ensemble on a split, with the place that its setting has."""
        views = _views(self.options)
        if len(self.runs) > 1:
            members = [str(stores[split].path) for stores in self.members]
            views = {"ensemble": members, "weights": shares(len(members), self.weights).tolist()}
        return replace(unpredicted(self.runs[0], self.data_path, split, views), folder=self.folder)

    def _describe(self, config: Experiment) -> None:
        """Make the ensemble's folder one that the later notebooks can open: its members, and where the data are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(config, experiment_name=self.folder.name).save(self.folder / "config.yaml")
        members = {"runs": [run.as_posix() for run in self.runs], "weights": self.weights}
        with replacing(self.folder / "ensemble.json") as part:
            part.write_text(json.dumps(members, indent=1, ensure_ascii=False), encoding="utf-8")


def _views(options: dict) -> dict:
    """How `lib.predict.prediction.predict` notes these options."""
    return {"flip": bool(options.get("flip")), "scales": [float(scale) for scale in options.get("scales", (1.0,))]}


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
