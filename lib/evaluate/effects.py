"""What each way to a stronger prediction adds on its own: the mirrored image, scales, smoothing, an ensemble."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lib.evaluate.comparison import paired_differences
from lib.evaluate.evaluation import measured_at_best
from lib.evaluate.predictor import Predictor
from lib.evaluate.run_on_split import RunOnSplit
from lib.metrics.setting import Grid
from lib.metrics.statistics import resample

PLAIN = {"flip": False, "scales": (1.0,)}
COMPARED = ("final_score", "f1_score", "plcc", "srcc")


def measure_effects(
    predictor: Predictor, pair: list[RunOnSplit], grid: Grid, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Figures of one run's plain prediction, with each technique that the predictor uses, and with all together.

    Each has its own best setting on the first split of `pair` (what the predictor gave), and figures on the last.
    Returns a table indexed by `name` (`plain` first) with COMPARED and, of the final score, the `difference` to
    `plain` with `low`, `high` (95 %) and `p`, for all rows at once (see `lib.evaluate.comparison.paired_differences`);
    empty when the predictor uses none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        measured = _each_alone(predictor, pair, grid, Path(scratch))
    if len(measured) == 1:
        return pd.DataFrame()
    if len(measured) > 2:
        measured["together"] = measured_at_best({on.split: on.source for on in pair}, pair, grid)
    resampled = resample({name: on.at() for name, on in measured.items()}, resamples, seed, COMPARED)
    differences = paired_differences(resampled, "plain").query("figure == 'final_score'").set_index("run")
    figures = pd.DataFrame.from_dict({name: one.values for name, one in resampled.items()}, orient="index")
    return figures.join(differences[["difference", "low", "high", "p"]]).rename_axis("name")


def _each_alone(predictor: Predictor, pair, grid: Grid, scratch: Path) -> dict[str, RunOnSplit]:
    """`plain`, and every technique of the predictor alone; what it has predicted already is not repeated."""
    splits = [on.split for on in pair]
    used = {name: type(usual)(predictor.options.get(name, usual)) for name, usual in PLAIN.items()}

    def predicted(number: int, **changed) -> dict:
        wanted = {**PLAIN, **changed}
        if wanted == used:
            return predictor.members[number]
        into = scratch / "_".join([str(number), *changed])
        return predictor.predict_run(predictor.runs[number], splits, into, **wanted, progress=False)

    sharp = replace(grid, smoothings=Grid.smoothings)
    plain = [predicted(number) for number in range(len(predictor.runs))]
    measured = {"plain": measured_at_best(plain[0], pair, sharp)}
    for name, value in used.items():
        if value != PLAIN[name]:
            measured[name] = measured_at_best(predicted(0, **{name: value}), pair, sharp)
    if grid.smoothings != sharp.smoothings:
        measured["smoothing"] = measured_at_best(plain[0], pair, grid)
    if len(plain) > 1:
        places = {name: scratch / "ensemble" / name for name in splits}
        measured["ensemble"] = measured_at_best(predictor.averaged(plain, places), pair, sharp)
    return measured
