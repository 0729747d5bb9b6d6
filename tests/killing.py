"""A training or prediction killed without warning at a chosen point: what `kill -9` does, but repeatable."""

import os
import signal

from lib.evaluate import processes
from lib.model.detector import DistortionDetector
from lib.predict import growing
from lib.train import checkpoints
from lib.train import loop as training


def train_until(config_path: str, point: str) -> int:
    """`python -m lib.train config_path`, dead at the point; to be run in a process of its own.

    Points: `update <n>` before the n-th update, `save <n>` with the checkpoint of step n half written, `prune <n>`
    when it is complete and older ones are not deleted yet, `evaluate <n>` and `evaluated <n>` before its evaluation and
    when this is recorded everywhere but in the checkpoint, `model` with the final model half written, `finished`
    when all is written and the checkpoints are still there.
    """
    place, _, number = point.partition(" ")
    kill = {
        "update": _in_update, "save": _in_save, "prune": _in_prune, "evaluate": _in_evaluation,
        "evaluated": _after_evaluation, "model": _in_model, "finished": _in_prune,
    }[place]  # fmt: skip
    kill(number)
    return training.main([config_path])


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


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_update(number: str) -> None:
    update = training.Run._update

    def mortal(run, *arguments):
        if run.state.step + 1 == int(number):
            _die()
        return update(run, *arguments)

    training.Run._update = mortal


def _in_save(number: str) -> None:
    save_file = checkpoints.save_file

    def mortal(tensors, path):
        if path.parent.name == f"step_{int(number):08d}.part" and any(path.parent.iterdir()):
            path.write_bytes(b"half")
            _die()
        save_file(tensors, path)

    checkpoints.save_file = mortal


def _in_prune(number: str) -> None:
    prune = checkpoints.prune

    def mortal(folder, keep):
        there = folder / f"step_{int(number):08d}" if number else folder.parent / "finished.json"
        if there.exists():
            _die()
        prune(folder, keep)

    checkpoints.prune = mortal


def _in_evaluation(number: str) -> None:
    validate = training.Run._validate

    def mortal(run, stage):
        if run.state.step == int(number):
            _die()
        validate(run, stage)

    training.Run._validate = mortal


def _after_evaluation(number: str) -> None:
    amend_state = checkpoints.amend_state

    def mortal(folder, step, values):
        if step == int(number):
            _die()
        amend_state(folder, step, values)

    checkpoints.amend_state = mortal


def _in_model(_number: str) -> None:
    save_pretrained = DistortionDetector.save_pretrained

    def mortal(detector, folder):
        save_pretrained(detector, folder)
        if folder.name == "model.part":
            (folder / "heads.safetensors").write_bytes(b"half")
            _die()

    DistortionDetector.save_pretrained = mortal
