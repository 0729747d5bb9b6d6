"""`evaluation.json` in a run's folder: what notebook 3 measured of the run. Only this file reads and writes it.

Content: `data_path`, `split`, `threshold`, `min_area_ratio`, `smoothing`, `chosen` (why this setting), `n_images`,
`figures` (of the challenge, with `notes`), `intervals` (95 %), `trivial` and `before` (figures of the baselines with
their `threshold`, and how far the run is `ahead`), `by_domain`; of a single run `train`; if asked for `effects`.
Without labels `figures`, `intervals`, `trivial` and `before` are null.
"""

import json
import math
from pathlib import Path

from lib.errors import InputError
from lib.files import replacing

NAME = "evaluation.json"


def read_evaluation(run) -> dict:
    """The evaluation of a run, {} when it has none. Raises InputError when the file is not one."""
    path = Path(run) / NAME
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not found or not isinstance(found, dict):
        raise InputError(f"{path} is not what notebook 3 writes; evaluate the run again")
    return found


def write_evaluation(run, evaluation: dict) -> Path:
    """Write an evaluation as valid JSON (undefined figures become null); returns the path."""
    path = Path(run) / NAME
    with replacing(path) as part:
        part.write_text(json.dumps(plain(evaluation), indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def plain(value):
    """The same nested value with NaN and infinity as None, tuples as lists and NumPy numbers as Python's."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
