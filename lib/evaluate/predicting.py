"""Predictions of a run, or of several averaged: by this process, or by several that share the images among them."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState

from lib.errors import InputError, command
from lib.evaluate.run_on_split import RunOnSplit, run_config, unpredicted
from lib.files import write_text
from lib.model.detector import DistortionDetector
from lib.predict.prediction import ensemble, predict, shares
from lib.stores import LabelStore, PredictionStore
from lib.train.processes import run_in_processes


class Job(NamedTuple):
    """Which images of a prepared split are to be predicted, and the folder that their predictions go to."""

    labels: LabelStore
    ids: list[str]
    folder: Path


def predict_jobs(run, jobs: list[Job], device="cpu", processes: int = 1, **options) -> list[PredictionStore]:
    """Predict images by a run, each job into its folder. What is there already is not repeated.

    Args:
        device: of a single process; several take a GPU each, or share the CPU.
        options: of `lib.predict.prediction.predict`.
    Raises InputError for what cannot be predicted, Interrupted after a signal (the same call goes on).
    """
    if processes == 1:
        detector = DistortionDetector.from_pretrained(run, device)
        return [predict(detector, job.labels, job.folder, job.ids, **options) for job in jobs]
    described = [[str(job.labels.path), job.ids, str(job.folder)] for job in jobs]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "job.json"
        path.write_text(json.dumps({"run": str(run), "jobs": described, "options": options}), encoding="utf-8")
        run_in_processes("lib.evaluate.predicting", path, processes)
    return [PredictionStore(job.folder) for job in jobs]


def predict_splits(
    runs: list, splits: list[str], data_path="", weights=(), name: str = "", device="cpu", processes: int = 1, **options
) -> list[RunOnSplit]:
    """Predict splits (their names) by one run, or by an ensemble; what is predicted already is not repeated.

    Args:
        runs: folders of trained runs, whose heatmaps and scores are averaged.
        data_path: prepared data; empty for the first run's own.
        weights: one a run; empty for all alike.
        name: of the ensemble's folder beside the runs; empty for the runs' names joined with +.
        device: of a single process. processes: that share the prediction.
        options: of `lib.predict.prediction.predict`.
    Raises InputError when the runs make no ensemble, or what they are asked for cannot be predicted.
    """
    runs = [Path(run) for run in runs]
    configs, folder = [run_config(run) for run in runs], _folder(runs, weights, name)
    if len(runs) == 1:
        views = {"flip": bool(options.get("flip")), "scales": [float(scale) for scale in options.get("scales", (1.0,))]}
        found = [unpredicted(runs[0], data_path, split, views) for split in splits]
        jobs = [Job(on.labels, on.images, on.place) for on in found]
        stores = predict_jobs(runs[0], jobs, device, processes, **options)
    else:
        given = list(weights) or None
        parts = shares(len(runs), given).tolist()
        replace(configs[0], experiment_name=folder.name).save(folder / "config.yaml")
        note = {"runs": [run.as_posix() for run in runs], "weights": given}
        write_text(folder / "ensemble.json", json.dumps(note, indent=1, ensure_ascii=False))
        shared = {"data_path": data_path or configs[0].data_path, "device": device, "processes": processes, **options}
        found, stores = [], []
        for members in zip(*(predict_splits([run], splits, **shared) for run in runs), strict=True):
            averaged = [one.source for one in members]
            views = {"ensemble": [str(store.path) for store in averaged], "weights": parts}
            found.append(replace(members[0], folder=folder, source=None, views=views))
            stores.append(ensemble(averaged, found[-1].place, given))
    for on in found:
        on.note_images()
    return [replace(on, source=store) for on, store in zip(found, stores, strict=True)]


def _folder(runs: list[Path], weights, name: str) -> Path:
    """Where results go: the run's folder, or that of an ensemble beside the first run."""
    if len(runs) == 1:
        if weights or name:
            raise InputError("weights and ensemble_name need an ensemble; name its other runs, or leave them empty")
        return runs[0]
    twice = sorted({run.as_posix() for run in runs if runs.count(run) > 1})
    if twice:
        raise InputError(f"ensemble: {twice[0]} is named twice; give it a weight instead")
    joined = name or "+".join(run.name for run in runs)
    if joined != Path(joined).name:
        raise InputError(f"ensemble_name: {joined!r} must be one plain folder name")
    folder = runs[0].parent / joined
    if folder in runs or (folder.exists() and not (folder / "ensemble.json").is_file()):
        raise InputError(f"{folder} exists and is no ensemble; give another ensemble_name")
    return folder


@command
def main(argv: list[str] | None = None) -> None:
    """`python -m lib.evaluate.predicting JOB.json`: what torchrun starts in every process.

    Exit code 2 for unusable input.
    """
    [path] = sys.argv[1:] if argv is None else argv
    work = json.loads(Path(path).read_text(encoding="utf-8"))
    state = PartialState(cpu=not torch.cuda.is_available())
    jobs = [Job(LabelStore(labels), ids, folder) for labels, ids, folder in work["jobs"]]
    predict_jobs(work["run"], jobs, state.device, **work["options"])
    state.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
