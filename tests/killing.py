"""A training or prediction killed without warning at a chosen point: what `kill -9` does, but repeatable."""

import os
import signal
import time
from pathlib import Path

from lib.evaluate import processes
from lib.model.detector import DistortionDetector
from lib.predict import growing
from lib.train import checkpoint as files
from lib.train import loop as training
from lib.train.__main__ import main
from lib.train.processes import end_with_launcher


def train_until(config_path: str, point: str) -> int:
    """`python -m lib.train config_path`, dead at the point; to be run in a process of its own.

    Points: `update <n>` before the n-th update, `save <n>` with the checkpoint of step n half written, `prune <n>`
    when it is complete and older ones are not deleted yet, `evaluate <n>` and `evaluated <n>` before its evaluation and
    before this is recorded, `model` with the final model half written, `finished`
    when all is written and the checkpoints are still there.
    """
    place, _, number = point.partition(" ")
    kill = {
        "update": _in_update, "save": _in_save, "prune": _in_prune, "evaluate": _in_evaluation,
        "evaluated": _after_evaluation, "model": _in_model, "finished": _in_prune,
    }[place]  # fmt: skip
    kill(number)
    return main([config_path])


def predict_and_wait(job: str, images: list[int]) -> int:
    """`python -m lib.evaluate.processes job`, each rank stuck after its number of images until it is killed."""
    write, written = growing.write_heatmap, []

    def stuck(path, heatmap):
        while len(written) == images[int(os.environ["RANK"])]:
            signal.pause()
        write(path, heatmap)
        written.append(path)

    growing.write_heatmap = stuck
    return processes.main([job])


def hold(folder: str) -> None:
    """Own a run's folder until killed."""
    with files.sole_owner(Path(folder)):
        signal.pause()


def wait_as_a_rank(seconds: float = 60) -> None:
    """What a rank under `launch` does that has nothing to do."""
    end_with_launcher()
    time.sleep(seconds)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_update(number: str) -> None:
    update = training.Run._update

    def mortal(run, *arguments):
        if run.step + 1 == int(number):
            _die()
        return update(run, *arguments)

    training.Run._update = mortal


def _in_save(number: str) -> None:
    save_file = files.save_file

    def mortal(tensors, path):
        if path.parent.name == f"step_{int(number):08d}.part" and any(path.parent.iterdir()):
            path.write_bytes(b"half")
            _die()
        save_file(tensors, path)

    files.save_file = mortal


def _in_prune(number: str) -> None:
    prune = files.prune

    def mortal(run, keep):
        if (run / (f"checkpoints/step_{int(number):08d}" if number else "finished.json")).exists():
            _die()
        prune(run, keep)

    files.prune = mortal


def _in_evaluation(number: str) -> None:
    evaluate = training.Run._evaluate

    def mortal(run, stage):
        if run.step == int(number):
            _die()
        evaluate(run, stage)

    training.Run._evaluate = mortal


def _after_evaluation(number: str) -> None:
    record = training.Log.record

    def mortal(log, step, *place, **values):
        if step == int(number) and "val_final_score" in values:
            _die()
        record(log, step, *place, **values)

    training.Log.record = mortal


def _in_model(_number: str) -> None:
    save_pretrained = DistortionDetector.save_pretrained

    def mortal(detector, folder):
        save_pretrained(detector, folder)
        if folder.name == "model.part":
            (folder / "heads.safetensors").write_bytes(b"half")
            _die()

    DistortionDetector.save_pretrained = mortal
