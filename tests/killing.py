"""A training or prediction killed without warning at a chosen point: what `kill -9` does, but repeatable."""

import os
import signal

from lib.config import Experiment
from lib.evaluate import predicting
from lib.model.detector import DistortionDetector
from lib.predict import growing
from lib.train import checkpoint as files
from lib.train.__main__ import main
from lib.train.log import Log
from lib.train.loop import Run


def train_until(config_path: str, point: str) -> int:
    """`python -m lib.train config_path`, dead at the point; to be run in a process of its own.

    Points: `update <n>` before the n-th update, `save <n>` with the checkpoint of step n half written, `prune <n>`
    when it is complete and older ones are not deleted yet, `evaluate <n>` and `evaluated <n>` before its evaluation and
    before this is recorded, `model` with the final model half written, `finished` when all is written and the
    checkpoints are still there.
    """
    place, _, number = point.partition(" ")
    step = int(number or 0)

    def half_saved(path, tensors) -> bool:
        if not path.parent.name.startswith(f"step_{step:08d}.") or not any(path.parent.iterdir()):
            return False
        path.write_bytes(b"half")
        return True

    def half_a_model(detector, folder) -> bool:
        if not folder.name.startswith("model."):
            return False
        folder.mkdir()
        (folder / "heads.safetensors").write_bytes(b"half")
        return True

    def complete(run, keep) -> bool:
        return (run / (f"checkpoints/step_{step:08d}" if number else "finished.json")).exists()

    owner, name, reached = {
        "update": (Run, "_update", lambda run, *_: run.step + 1 == step),
        "save": (files, "write_safetensors", half_saved),
        "prune": (files, "prune", complete),
        "evaluate": (Run, "_evaluate", lambda run, *_: run.step == step),
        "evaluated": (Log, "record", lambda log, at, *_, **values: at == step and "val_final_score" in values),
        "model": (DistortionDetector, "save_pretrained", half_a_model),
        "finished": (files, "prune", complete),
    }[place]
    function = getattr(owner, name)

    def mortal(*arguments, **named):
        if reached(*arguments, **named):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(owner, name, mortal)
    return main([config_path])


def predict_and_wait(job: str, images: list[int]) -> int:
    """`python -m lib.evaluate.predicting job`, each rank stuck after its number of images until it is killed."""
    write, written = growing.write_heatmap, []

    def stuck(path, heatmap):
        while len(written) == images[int(os.environ["RANK"])]:
            signal.pause()
        write(path, heatmap)
        written.append(path)

    growing.write_heatmap = stuck
    return predicting.main([job])


def hold(config_path: str) -> None:
    """Own a run's folder until killed."""
    with files.opened_folder(Experiment.from_yaml(config_path)) as folder:
        (folder / "held").touch()
        signal.pause()
