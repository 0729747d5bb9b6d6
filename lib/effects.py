"""What each technique of a stronger prediction adds on its own: the mirror, further scales, smoothing, an ensemble."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lib.evaluation import Evaluation, averaged
from lib.judging import Grid, Judged, judge
from lib.prediction import predict_splits
from lib.statistics import paired_bootstrap

COMPARED = ("final_score", "f1_score", "plcc", "srcc")
CHANCE = ("difference", "low", "high", "p")
PLAIN = {"flip": False, "scales": (1.0,)}


def measure_effects(evaluation: Evaluation, resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """Each technique that a judged evaluation uses, alone and all together, beside the plain prediction of its run.

    Each has the setting that is best for it on the calibration split. Index `name`; columns COMPARED, and of the final
    score the paired `difference` to the plain one, `low`, `high` (95 %) and `p`. Empty without techniques or labels.
    """
    techniques = _techniques(evaluation)
    if not techniques or not evaluation.judged or not evaluation.judged_on:
        return pd.DataFrame()
    with tempfile.TemporaryDirectory() as scratch:
        plain = _judged(evaluation, {}, Path(scratch) / "plain")
        found = {name: _judged(evaluation, used, Path(scratch) / name) for name, used in techniques.items()}
    found["together"] = evaluation.judged
    rows = {"plain": _figures(plain) | dict.fromkeys(CHANCE, np.nan)}
    for name, judged in found.items():
        compared = paired_bootstrap(*plain.at(), *judged.at(), n=resamples, seed=seed, figures=("final_score",))
        rows[name] = _figures(judged) | {
            key: compared["final_score"][key] for key in ("difference", "low", "high", "p")
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def _techniques(evaluation: Evaluation) -> dict[str, dict]:
    """Name -> what differs from the plain prediction, for the techniques in use."""
    options, smoothings = evaluation.options, evaluation.grid.smoothings
    scales = tuple(options.get("scales", PLAIN["scales"]))
    used = {
        "flip": options.get("flip") and {"flip": True},
        "scales": scales != PLAIN["scales"] and {"scales": scales},
        "smoothing": any(smoothings) and {"smoothings": smoothings},
        "ensemble": len(evaluation.runs) > 1 and {"runs": evaluation.runs},
    }
    return {name: changes for name, changes in used.items() if changes}


def _judged(evaluation: Evaluation, changes: dict, folder: Path) -> Judged:
    """The plain prediction with some `changes`, at the setting that is best for it; predicted into `folder`."""
    runs = changes.get("runs", evaluation.runs[:1])
    options = evaluation.options | {name: changes.get(name, value) for name, value in PLAIN.items()}
    found = [
        predict_splits(
            evaluation.pair_of(run), evaluation.device, evaluation.processes, into=folder / str(position), **options
        )
        for position, run in enumerate(runs)
    ]
    stores = averaged(found, folder / "averaged", evaluation.weights)
    grid: Grid = replace(evaluation.grid, smoothings=changes.get("smoothings", (0.0,)))
    return judge(stores, evaluation.pair, grid)


def _figures(judged: Judged) -> dict:
    figures = judged.figures()
    return {name: figures[name] for name in COMPARED}
