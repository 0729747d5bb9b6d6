"""Several runs on one split: what differs in their parameters, and who is better and how surely.

The figures to it are in `lib.comparison_figures`. Areas are fractions of the frame.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from lib import tables
from lib.config import Experiment
from lib.errors import InputError
from lib.inspected import Inspected, open_run
from lib.matching import CHALLENGE_SIZE
from lib.metrics import region_figures, score_table, sweep
from lib.statistics import SUMMED, paired_bootstrap

COMPARED = ("final_score", "f1_score", "precision", "recall", "giou", "plcc", "srcc")
WHERE = ("experiment_name", "runs", "data_path")  # parameters that say where, not how
SURE = 0.05  # p below which a difference is called one


@dataclass(frozen=True)
class Run:
    """An evaluated run: `evaluation` see `lib.evaluation`, `config` every parameter by name."""

    opened: Inspected
    evaluation: dict
    config: dict

    @property
    def name(self) -> str:
        return self.opened.name


@dataclass(frozen=True)
class Measured:
    """A run at its own threshold: `counts` of `lib.metrics.sweep` and `scores` of `lib.metrics.score_table`."""

    run: Run
    counts: pd.DataFrame
    scores: pd.DataFrame


def find_runs(folder, names: list[str], split: str) -> tuple[list[Run], list[str]]:
    """The evaluated runs below `folder` (all of them, or these `names`) in order of name, and notes on those left out.

    Left out is what was evaluated on another split, without labels, or on other data than most. Raises InputError
    when a named run cannot be used, or when no run can.
    """
    folder = Path(folder)
    found = sorted(path.parent.name for path in folder.glob("*/evaluation.json"))
    missing = [name for name in names if name not in found]
    if missing:
        known = ", ".join(found) or "none"
        raise InputError(f"{folder} holds no evaluated run {', '.join(missing)}; evaluated are: {known}")
    runs, notes = [], []
    for name in names or found:
        try:
            runs.append(_read_run(folder / name, split))
        except InputError as error:
            if name in names:
                raise
            notes.append(f"{name} is left out: {error}.")
    if not runs:
        nothing = f"{folder} holds no run that was evaluated on {split}; run notebook 3 on some."
        raise InputError(" ".join([nothing, *notes]))
    return _on_the_same_data(runs, notes)


def _read_run(folder: Path, split: str) -> Run:
    path = folder / "evaluation.json"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        on, figures = evaluation["split"], evaluation["figures"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not what notebook 3 writes; evaluate the run again") from None
    if on != split:
        raise InputError(f"it was evaluated on {on}, not on {split}")
    if not figures:
        raise InputError(f"{split} has no labels")
    config = Experiment.from_yaml(folder / "config.yaml").to_dict()
    return Run(open_run(folder, split), evaluation, config)


def _on_the_same_data(runs: list[Run], notes: list[str]) -> tuple[list[Run], list[str]]:
    where = pd.Series([str(run.opened.labels.path.resolve()) for run in runs])
    common = where.mode()[0]
    for run, path in zip(runs, where, strict=True):
        if path != common:
            notes.append(f"{run.name} is left out: it was evaluated on {path}, most runs on {common}.")
    return [run for run, path in zip(runs, where, strict=True) if path == common], notes


def choose_reference(runs: list[Run], name: str = "") -> Run:
    """The run to compare with: the one named, else the one with the best final score."""
    if not name:
        return max(runs, key=lambda run: run.evaluation["figures"]["final_score"])
    named = [run for run in runs if run.name == name]
    if not named:
        raise InputError(f"reference: there is no run {name!r}; choose among {', '.join(run.name for run in runs)}")
    return named[0]


def different_parameters(runs: list[Run]) -> pd.DataFrame:
    """A row for each parameter that is not the same in all runs, a column a run."""
    table = pd.DataFrame({run.name: run.config for run in runs}, dtype=object)
    differs = [len({repr(value) for value in row}) > 1 for row in table.to_numpy()]
    table = table[differs].drop(index=list(WHERE), errors="ignore")
    return table.map(str).rename_axis("parameter").reset_index()


def figures_table(runs: list[Run], split: str) -> Styler:
    """The figures of every run with their 95 % intervals, and the trivial baseline."""
    rows = {run.name: run.evaluation["figures"] for run in runs}
    trivial = [run.evaluation["trivial"] for run in runs if run.evaluation.get("trivial")]
    intervals = {run.name: run.evaluation["intervals"] for run in runs if run.evaluation.get("intervals")}
    rows |= {"trivial baseline": trivial[0]} if trivial else {}
    return tables.figures_table(rows, intervals, f"{split}, each run at its own threshold, 95 % intervals over images")


def measure(runs: list[Run], progress=None) -> tuple[dict[str, Measured], list[str]]:
    """Count the regions of every run at its threshold: ({name: measured}, notes on figures that are out of date).

    `progress(done, total)` is called after each run.
    """
    measured, notes = {}, []
    for run in runs:
        opened = run.opened
        ids = opened.labelled_ids
        counts = sweep(opened.predictions, opened.labels, [opened.threshold], ids, opened.min_area)
        measured[run.name] = Measured(run, counts, score_table(opened.predictions, opened.labels, ids))
        f1_score = float(region_figures(counts[SUMMED].sum())["f1_score"])
        if not np.isclose(f1_score, run.evaluation["figures"]["f1_score"] or np.nan, atol=1e-6, equal_nan=True):
            notes.append(f"{run.name}: predictions are newer than evaluation.json; run notebook 3 on it again.")
        if progress:
            progress(len(measured), len(runs))
    return measured, notes


def paired_differences(measured: dict[str, Measured], reference: str, n: int, progress=None) -> pd.DataFrame:
    """Every other run minus the reference on the same images, by `lib.statistics.paired_bootstrap` with `n` resamples.

    Columns `run`, `figure`, `reference` and `value` (the figures), `difference`, `low`, `high` (95 %), `p`.
    """
    rows, others = [], [name for name in measured if name != reference]
    base = measured[reference]
    for done, name in enumerate(others, 1):
        one = measured[name]
        found = paired_bootstrap(base.counts, base.scores, one.counts, one.scores, n=n, figures=COMPARED)
        rows += [{"run": name, "figure": figure, **values} for figure, values in found.items()]
        if progress:
            progress(done, len(others))
    columns = ["run", "figure", "a", "b", "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"a": "reference", "b": "value"})


def differences_table(differences: pd.DataFrame, reference: str) -> Styler:
    """`paired_differences` for the page."""
    names = {"figure": "Figure", "run": "Run", "reference": reference, "value": "run's", "difference": "Difference"}
    named = differences.assign(figure=differences["figure"].map(tables.FIGURE_NAMES)).rename(columns=names)
    signed = dict.fromkeys(("Difference", "low", "high"), "{:+.3f}".format)
    plain = dict.fromkeys((reference, "run's", "p"), "{:.3f}".format)
    caption = f"Each run minus {reference}, with 95 % intervals; p is two-sided"
    return tables.plain_table(named, caption, signed | plain)


def verdict(differences: pd.DataFrame, reference: str) -> str:
    """One sentence a run: whether its final score differs from the reference's beyond chance."""
    said = []
    for row in differences[differences["figure"] == "final_score"].itertuples():
        span = f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}, p = {row.p:.2g})"
        if row.p < SURE:
            said.append(
                f"{row.run} is {'better' if row.difference > 0 else 'worse'} than {reference} in final score: {span}."
            )
        else:
            said.append(f"{row.run} does not differ from {reference} in final score beyond chance: {span}.")
    return " ".join(said) or f"{reference} is the only run, so there is nothing to compare."


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
