"""Prepared splits predicted by a run, or by several averaged, each into a folder that the later notebooks open."""

import json
from dataclasses import replace
from pathlib import Path

from lib.errors import InputError
from lib.evaluate.processes import Job, predict_jobs
from lib.evaluate.run_on_split import RunOnSplit, run_config, unpredicted
from lib.files import replacing
from lib.predict.prediction import ensemble, shares


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
        folder.mkdir(parents=True, exist_ok=True)
        replace(configs[0], experiment_name=folder.name).save(folder / "config.yaml")
        with replacing(folder / "ensemble.json") as part:
            members = {"runs": [run.as_posix() for run in runs], "weights": given}
            part.write_text(json.dumps(members, indent=1, ensure_ascii=False), encoding="utf-8")
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
