"""`evaluation.json` in a run's folder: what notebook 3 measured of the run. Only this file reads and writes it.

Content: `data_path`, `split`, `threshold`, `min_area_ratio`, `smoothing`, `chosen` (why this setting), `n_images`,
`figures` (of the challenge, with `notes`), `intervals` (95 %), `trivial` and `frozen` (figures of the baselines with
their `threshold`, and how far the run is `ahead`), `by_domain`; `field` (see `lib.metrics.field`); of a single run
`train`; if asked for `effects`, and `robustness` (a record a change; see `lib.evaluate.robustness`). Without labels
`figures`, `intervals` and the baselines are null.
"""

import json
import math
from pathlib import Path

from lib.files import write_text
from lib.records import read_record

NAME = "evaluation.json"
# Figures in the order of tables, with the names that readers know.
FIGURE_NAMES = {
    "final_score": "Final score", "f1_score": "F1", "precision": "Precision", "recall": "Recall", "giou": "GIoU",
    "plcc": "PLCC", "srcc": "SRCC", "krcc": "KRCC", "rmse_mos": "RMSE (MOS)",
}  # fmt: skip


def interval(value) -> bool:
    """two numbers, or null"""
    numbers = isinstance(value, list) and len(value) == 2 and all(type(one) in (int, float) for one in value)
    return numbers or value in (None, [None, None])


INTERVALS = {f"{name}?": interval for name in FIGURE_NAMES}
FIGURES = {f"{name}?": float | None for name in FIGURE_NAMES} | {"final_score": float, "f1_score": float | None}
FIGURES |= {"notes?": list, "intervals?": INTERVALS, "threshold?": int}
TRAIN = {"trained_share_of_encoder?": float | None, "run_megabytes?": float | None}
FIELDS = {
    "split": str, "threshold": int, "figures": FIGURES, "data_path?": str, "min_area_ratio?": float,
    "smoothing?": float, "n_images?": int, "intervals?": INTERVALS, "trivial?": FIGURES, "frozen?": FIGURES,
    "field?": dict | None, "by_domain?": dict, "train?": TRAIN,
}  # fmt: skip


def read_evaluation(run) -> dict:
    """The evaluation of a run, {} when it has none. Raises InputError when the file is not one."""
    path = Path(run) / NAME
    return read_record(path, FIELDS, "evaluate the run again (notebook 3)") if path.exists() else {}


def write_evaluation(run, evaluation: dict) -> Path:
    """Write an evaluation as valid JSON (undefined figures become null); returns the path."""
    path = Path(run) / NAME
    write_text(path, json.dumps(plain(evaluation), indent=1, ensure_ascii=False))
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
