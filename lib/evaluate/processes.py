"""A run's predictions on its splits: by this process, or by several that share the images among them."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState

from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit, unpredicted
from lib.model.detector import DistortionDetector
from lib.predict.prediction import predict
from lib.stores import PredictionStore
from lib.train.processes import end_with_launcher, run_in_processes


def predict_splits(
    splits: list[RunOnSplit], device="cpu", processes: int = 1, into=None, **options
) -> dict[str, PredictionStore]:
    """Predict splits of one run; returns their stores by name. What is there already is not repeated.

    Args:
        device: of a single process; several take a GPU each, or share the CPU.
        into: folder for the stores instead of the run's `predictions`.
        options: of `lib.predict.prediction.predict`.
    Raises InputError for what cannot be predicted, Interrupted after a signal (the same call goes on).
    """
    if processes < 1:
        raise InputError(f"num_processes: {processes} must be at least 1")
    run, folder = splits[0].folder, Path(into or splits[0].folder / "predictions")
    if processes == 1:
        detector = DistortionDetector.from_pretrained(run, device)
        return {on.split: predict(detector, on.labels, folder / on.place.name, on.images, **options) for on in splits}
    job = {"run": str(run), "data_path": str(splits[0].data_path), "folder": str(folder), "options": options}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "job.json"
        path.write_text(json.dumps({**job, "splits": [on.split for on in splits]}), encoding="utf-8")
        run_in_processes("lib.evaluate.processes", path, processes)
    return {on.split: PredictionStore(folder / on.place.name) for on in splits}


def main(argv: list[str] | None = None) -> int:
    """`python -m lib.evaluate.processes JOB.json`: what torchrun starts in every process.

    Exit code 2 for unusable input.
    """
    [path] = sys.argv[1:] if argv is None else argv
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    end_with_launcher()
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        detector = DistortionDetector.from_pretrained(job["run"], state.device)
        for name in job["splits"]:
            on = unpredicted(job["run"], job["data_path"], name)
            predict(detector, on.labels, Path(job["folder"]) / on.place.name, on.images, **job["options"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
