"""What must be as it was for a run to go on from a checkpoint: its training data, its precision, its frozen weights."""

import dataclasses
import hashlib
import json
from pathlib import Path

from lib.data.dataset import DistortionData
from lib.errors import InputError
from lib.train.checkpoints import read_state

DIFFERENT = {
    "images": "{then} training images then, {now} now; restore the data",
    "data": "the {images} training images have other ids, prompts or scores now, or another order; restore the data",
    "contents": "files of the {images} training images have other sizes now, or the run behind pseudo_labels chose "
    "another setting; restore the data",
    "precision": "{then} then, {now} now; go on where mixed_precision gives the same (auto follows the GPU)",
    "base": "the frozen weights of the encoder are others now; restore what checkpoint: {checkpoint} was",
}


def circumstances(data: DistortionData, precision: str, base: str = "") -> dict:
    """What a checkpoint notes, in five values.

    How many images; a hash of their ids, prompts and scores in order; one of the sizes of image and label files and of
    what counts of a predicted label; the precision; `DistortionDetector.base`. Where the files lie does not count, nor
    when they were written: data may be moved. Files of the same size are taken for the same.
    """
    told, contents = hashlib.sha256(), hashlib.sha256()
    for entry in data.entries:
        told.update(json.dumps([entry.id, entry.prompt, entry.score]).encode())
        setting = dataclasses.astuple(entry.setting) if entry.setting else None
        contents.update(json.dumps([_size(entry.image), _size(entry.heatmap), setting]).encode())
    hashes = {"data": told.hexdigest()[:16], "contents": contents.hexdigest()[:16]}
    return {"images": len(data), **hashes, "precision": precision, "base": base}


def _size(path: str) -> int:
    """In bytes; -1 for what is not there, which is an error only when it is to be read."""
    return Path(path).stat().st_size if path and Path(path).is_file() else -1


def refuse_others(checkpoint: Path, now: dict, starting_point: str) -> None:
    """Raise InputError when the `circumstances` are not those that the checkpoint notes.

    The order of images and the learning rates follow from the number of images; a loss scaler belongs to fp16.
    What checkpoints of older versions did not note passes.

    Args:
        starting_point: the run's parameter `checkpoint`, for the sentence.
    """
    state = read_state(checkpoint)
    then = {**now, **({"precision": "fp16"} if state["scaler"] else {}), **state}
    changed = next((name for name in DIFFERENT if then[name] != now[name]), None)
    if changed:
        values = {"images": now["images"], "checkpoint": starting_point}
        shown = {"then": str(then[changed]).replace("no", "fp32"), "now": str(now[changed]).replace("no", "fp32")}
        problem = DIFFERENT[changed].format(**values, **shown)
        raise InputError(f"{checkpoint} cannot be gone on from: {problem}, or give another experiment_name")
