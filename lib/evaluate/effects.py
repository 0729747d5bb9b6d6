"""What each way to a stronger prediction adds on its own: the mirrored image, scales, smoothing, an ensemble."""

import dataclasses
import tempfile
from pathlib import Path

import pandas as pd

from lib.evaluate.evaluation import Evaluation, averaged
from lib.evaluate.judging import CHANCE, Grid, Judged, judge
from lib.predict.processes import predict_splits

PLAIN = {"flip": False, "scales": (1.0,)}
COMPARED = ("final_score", "f1_score", "plcc", "srcc")


def measure_effects(evaluation: Evaluation, resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """Figures of one run without any of them, with each that the evaluation uses, and with all together.

    Each has its own best setting from the calibration split, whatever was set by hand, and its figures on the reported
    one. Returns a table indexed by `name` (`plain` first) with COMPARED and, of the final score, the `difference` to
    `plain` with `low`, `high` (95 %, paired bootstrap over images) and `p`.
    Empty without labels on both splits, or when the evaluation uses none of them.
    """
    if not (evaluation.judged and evaluation.judged_on):
        return pd.DataFrame()
    with tempfile.TemporaryDirectory() as scratch:
        judged = _judged(evaluation, Path(scratch))
    if len(judged) == 1:
        return pd.DataFrame()
    if len(judged) > 2:
        judged["together"] = judge(evaluation.predictions, evaluation.pair, evaluation.grid)
    rows = {}
    for name, one in judged.items():
        figures = one.figures()
        rows[name] = {figure: figures[figure] for figure in COMPARED}
        rows[name] |= one.ahead_of(judged["plain"], resamples, seed)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
    table.loc["plain", list(CHANCE)] = float("nan")
    return table


def _judged(evaluation: Evaluation, scratch: Path) -> dict[str, Judged]:
    """`plain`, and every technique of the evaluation alone; what the evaluation has predicted is not repeated."""
    options, pair = evaluation.options, evaluation.pair
    used = {"flip": bool(options.get("flip")), "scales": tuple(options.get("scales", PLAIN["scales"]))}

    def predicted(number: int, **changed) -> dict:
        wanted = {**PLAIN, **changed}
        if wanted == used:
            return evaluation.members[number]
        splits, into = evaluation.pair_of(evaluation.runs[number]), scratch / "_".join([str(number), *changed])
        told = {**options, **wanted, "progress": False}
        return predict_splits(splits, evaluation.device, evaluation.processes, into=into, **told)

    grid = dataclasses.replace(evaluation.grid, smoothings=Grid.smoothings)
    plain = [predicted(number) for number in range(len(evaluation.runs))]
    judged = {"plain": judge(plain[0], pair, grid)}
    if used["flip"]:
        judged["flip"] = judge(predicted(0, flip=True), pair, grid)
    if used["scales"] != PLAIN["scales"]:
        judged["scales"] = judge(predicted(0, scales=used["scales"]), pair, grid)
    if evaluation.grid.smoothings != grid.smoothings:
        judged["smoothing"] = judge(plain[0], pair, evaluation.grid)
    if len(plain) > 1:
        judged["ensemble"] = judge(averaged(plain, scratch / "ensemble", evaluation.weights), pair, grid)
    return judged
