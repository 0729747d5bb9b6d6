"""Predictions of a run: by this process, or by several that share the images among them."""

import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState

from lib.errors import command
from lib.model.detector import DistortionDetector
from lib.predict.prediction import predict
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
        run_in_processes("lib.evaluate.processes", path, processes)
    return [PredictionStore(job.folder) for job in jobs]


@command
def main(argv: list[str] | None = None) -> None:
    """`python -m lib.evaluate.processes JOB.json`: what torchrun starts in every process.

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
