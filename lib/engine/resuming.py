"""What must be as it was for a run to go on from a checkpoint: its training data and its precision."""

import hashlib
import json
from pathlib import Path

from lib.data.dataset import DistortionData
from lib.engine.checkpoints import read_state
from lib.errors import InputError


def circumstances(data: DistortionData, precision: str) -> dict:
    """What a checkpoint notes: how many images, a hash of their ids, prompts and scores in order, the precision.

    Of the tables only, without a look at pixels; where the files lie does not count.
    """
    digest = hashlib.sha256()
    for entry in data.entries:
        digest.update(json.dumps([entry.id, entry.prompt, entry.score]).encode())
    return {"images": len(data), "data": digest.hexdigest()[:16], "precision": precision}


def refuse_others(checkpoint: Path, now: dict) -> None:
    """Raise InputError when the `circumstances` are not those that the checkpoint notes.

    The order of images and the learning rates follow from the number of images; a loss scaler belongs to fp16.
    Checkpoints of older versions, which noted nothing, pass.
    """
    state = read_state(checkpoint)
    then = {**now, **({"precision": "fp16"} if state["scaler"] else {}), **state}
    if then["images"] != now["images"]:
        problem, remedy = f"{then['images']} training images then, {now['images']} now", "restore the data"
    elif then["data"] != now["data"]:
        problem = f"the {now['images']} training images have other ids, prompts or scores now, or another order"
        remedy = "restore the data"
    elif then["precision"] != now["precision"]:
        problem = f"{_shown(then)} then, {_shown(now)} now"
        remedy = "go on where mixed_precision gives the same (auto follows the GPU)"
    else:
        return
    raise InputError(f"{checkpoint} cannot be gone on from: {problem}; {remedy}, or give another experiment_name")


def _shown(circumstances: dict) -> str:
    return circumstances["precision"].replace("no", "fp32")
