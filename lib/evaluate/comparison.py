"""Several runs on one split: what differs in their parameters, and who is better and how surely.

The figures to it are in `lib.reports.comparison`. Areas are fractions of the frame.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from lib.config import differing
from lib.evaluate.evaluated_runs import Run
from lib.metrics import region_figures, score_table, sweep
from lib.metrics.matching import CHALLENGE_SIZE
from lib.metrics.statistics import SUMMED, SURE, Resampled, resample, tested_together
from lib.plots import tables

COMPARED = ("final_score", "f1_score", "precision", "recall", "giou", "plcc", "srcc")


@dataclass(frozen=True)
class Measured:
    """A run at its own threshold: of `run.ids` the `counts` of `lib.metrics.sweep` and `scores` of `score_table`."""

    run: Run
    counts: pd.DataFrame
    scores: pd.DataFrame


def settings_table(runs: list[Run]) -> pd.DataFrame:
    """Final scores and the parameters that are not the same in all runs, the best run first; a row a run.

    With more parameters than runs the table is turned: a row a parameter.
    """
    names = differing({run.name: run.config for run in runs})
    ordered = sorted(runs, key=attrgetter("final_score"), reverse=True)
    rows = [{"final score": _with_interval(run)} | {name: str(run.config[name]) for name in names} for run in ordered]
    table = pd.DataFrame(rows, index=[run.name for run in ordered])
    if len(names) > len(runs):
        return table.T.rename_axis("parameter").reset_index()
    return table.rename_axis("run").reset_index()


def _with_interval(run: Run) -> str:
    interval = (run.evaluation.get("intervals") or {}).get("final_score")
    known = interval and None not in interval
    return f"{run.final_score:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if known else "")


def figures_table(runs: list[Run], split: str) -> Styler:
    """The figures of every run with their 95 % intervals, and the trivial baseline where all have the same images."""
    rows = {run.name: run.evaluation["figures"] | {"intervals": run.evaluation.get("intervals")} for run in runs}
    alike = all(len(run.ids) == len(run.opened.labelled_ids) for run in runs)
    trivial = [run.evaluation["trivial"] for run in runs if alike and run.evaluation.get("trivial")]
    rows |= {"trivial baseline": trivial[0]} if trivial else {}
    return tables.figures_table(rows, f"{split}, each run at its own threshold, 95 % intervals over images")


def what_differs(runs: list[Run]) -> str:
    """The parameters of `settings_table` in a sentence."""
    names = differing({run.name: run.config for run in runs})
    if len(runs) < 2:
        return f"{runs[0].name} is the only run, so nothing differs."
    return f"The runs differ in {', '.join(names)}." if names else "The runs have the same parameters."


def who_leads(runs: list[Run]) -> str:
    """The best two final scores, and what `figures_table` shows as undefined."""
    best, *others = sorted(runs, key=attrgetter("final_score"), reverse=True)
    ahead = f", {best.final_score - others[0].final_score:.3f} ahead of {others[0].name}" if others else ""
    notes = tables.notes_on({run.name: run.evaluation["figures"] for run in runs})
    return "\n".join([f"{best.name} has the best final score, {best.final_score:.3f}{ahead}.", *notes])


def measure(runs: list[Run], progress=None) -> tuple[dict[str, Measured], list[str]]:
    """Count the regions of every run at its threshold: ({name: measured}, notes on figures that are out of date).

    `progress(done, total)` is called after each run.
    """
    measured, notes = {}, []
    for run in runs:
        opened = run.opened
        ids = opened.labelled_ids
        counts = sweep(opened.predictions, opened.labels, [opened.threshold], ids, opened.min_area)
        scores = score_table(opened.predictions, opened.labels, run.ids)
        measured[run.name] = Measured(run, counts[counts["id"].isin(run.ids)], scores)
        counted, told = region_figures(counts[SUMMED].sum())["f1_score"], run.evaluation["figures"]["f1_score"]
        if not np.isclose(counted, np.nan if told is None else told, atol=1e-6, equal_nan=True):
            notes.append(f"{run.name}: predictions are newer than evaluation.json; run notebook 3 on it again.")
        if progress:
            progress(len(measured), len(runs))
    return measured, notes


def resample_runs(measured: dict[str, Measured], n: int, progress=None) -> dict[str, Resampled]:
    """The figures of all runs in the same `n` resamples of the images, by `lib.metrics.statistics.resample`."""
    runs = {name: (one.counts, one.scores) for name, one in measured.items()}
    return resample(runs, n, figures=COMPARED, progress=progress)


def paired_differences(resampled: Mapping[str, Resampled], reference: str) -> pd.DataFrame:
    """Every other run minus the reference on the same images.

    Columns `run`, `figure`, `reference` and `value` (the figures), `difference`, `low`, `high` (95 %), `p`. Intervals
    and p of a figure hold for all pairs of runs at once, so the reference may be the best of them.
    """
    names = [reference, *(name for name in resampled if name != reference)]
    first, second = np.array(list(itertools.combinations(range(len(names)), 2)), int).reshape(-1, 2).T
    rows = []
    for figure in resampled[reference].values:
        values = np.array([resampled[name].values[figure] for name in names])
        draws = np.column_stack([resampled[name].draws[figure] for name in names])
        differences = values[second] - values[first]
        tested = zip(differences, *tested_together(differences, draws[:, second] - draws[:, first]), strict=True)
        for name, value, row in zip(names[1:], values[1:], tested, strict=False):  # the first pairs are the reference's
            rows.append((name, figure, values[0], value, *row))
    return pd.DataFrame(rows, columns=["run", "figure", "reference", "value", "difference", "low", "high", "p"])


def differences_table(differences: pd.DataFrame, reference: str) -> Styler:
    """`paired_differences` for the page: a row a run, a column a figure."""
    cells = {
        run: {row.figure: (row.difference, row.low, row.high, row.p < SURE) for row in part.itertuples()}
        for run, part in differences.groupby("run", sort=False)
    }
    caption = (
        f"Each run minus {reference}, with 95 % intervals for all pairs at once; bold: beyond chance (p below {SURE})"
    )
    return tables.differences_table(cells, caption)


def verdict(differences: pd.DataFrame, reference: str) -> str:
    """Which runs have a better or worse final score than the reference, and which do not differ beyond chance."""
    said = {}
    for row in differences[differences["figure"] == "final_score"].itertuples():
        outcome = f"{'Better' if row.difference > 0 else 'Worse'} than {reference} in final score, beyond chance"
        if not row.p < SURE:
            outcome = f"No different from {reference} in final score, as far as chance can tell"
        span = f"{row.run} {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}, p = {row.p:.2g})"
        said.setdefault(outcome, []).append(span)
    lines = [f"{outcome}: {'; '.join(runs)}." for outcome, runs in said.items()]
    return "\n".join(lines) or f"{reference} is the only run, so there is nothing to compare."


def image_gains(reference: Measured, other: Measured) -> pd.DataFrame:
    """How much of the frame each run gets wrong (missed or false area, 0..1), image by image.

    Index `id`; columns `reference`, `other` and `gain` (reference - other: above 0 the other run is better).
    """
    wrong = {}
    for name, one in (("reference", reference), ("other", other)):
        counts = one.counts.set_index(one.counts["id"].astype(str))
        wrong[name] = (counts["union"] - counts["intersection"]) / CHALLENGE_SIZE**2
    table = pd.DataFrame(wrong).dropna()
    return table.assign(gain=table["reference"] - table["other"]).rename_axis("id")


def wins(gains: pd.DataFrame, n: int) -> tuple[list[str], list[str]]:
    """The images where the other run is better by the largest area, and those where the reference is; `n` at most."""
    order = gains["gain"].sort_values(ascending=False, kind="stable")
    return list(order[order > 0].index[:n]), list(order[order < 0].index[::-1][:n])
