"""Several runs on one split: which can be compared, and by how much one is better than another and how surely."""

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit, open_run, run_config
from lib.evaluation_file import NAME
from lib.metrics.statistics import FEWEST, Resampled, tested_together
from lib.records import read_metrics, read_record


def find_runs(folder, names: list[str], split: str) -> tuple[list[RunOnSplit], list[str]]:
    """The evaluated runs below `folder` that can be compared: all, or these `names`, such as `sweep_demo_*`.

    Left out is what was evaluated on another split, without labels, or on other images than most. Returns (runs, notes
    on what is left out). Raises InputError when a named run cannot be used, or when no run can.
    """
    folder = Path(folder)
    evaluated = {name: sorted(path.parent.name for path in folder.glob(f"{name}/{NAME}")) for name in ["*", *names]}
    if missing := [name for name in names if not evaluated[name]]:
        known = ", ".join(evaluated["*"]) or "none"
        raise InputError(f"{folder} holds no evaluated run {', '.join(missing)}; evaluated are: {known}")
    runs, notes = [], []
    for name in dict.fromkeys(itertools.chain(*(evaluated[name] for name in names or ["*"]))):
        try:
            run = open_run(folder / name, split)
            if not run.evaluation.get("figures"):
                raise InputError(f"it was not evaluated on {split}, or {split} has no labels")
            parameters(run), read_metrics(run.folder)  # what is damaged is told now, while it can be left out
            runs.append(run)
        except InputError as error:
            if name in names:
                raise
            notes.append(f"{name} is left out: {error}.")
    if not runs:
        nothing = f"{folder} holds no run that was evaluated on {split}; run notebook 3 on some."
        raise InputError(" ".join([nothing, *notes]))
    images = {run.name: (run.labels.path.resolve(), *run.labelled_ids) for run in runs}
    usual = Counter(images.values()).most_common(1)[0][0]
    why = f"it was evaluated on other images than most runs ({usual[0]}; held_out depends on val_split and seed)"
    notes += [f"{name} is left out: {why}." for name, found in images.items() if found != usual]
    return [run for run in runs if images[run.name] == usual], notes


def choose_reference(runs: list[RunOnSplit], name: str = "") -> RunOnSplit:
    """The run to compare with: the one named, else the first."""
    named = {run.name: run for run in runs}
    if name and name not in named:
        raise InputError(f"reference: there is no run {name!r}; choose among {', '.join(named)}")
    return named[name] if name else runs[0]


def parameters(run: RunOnSplit) -> dict:
    """Every parameter of a run by name; `ensemble` names the runs that were averaged, empty for a single run."""
    path, again = run.folder / "ensemble.json", "run notebook 3 again with the same ensemble"
    members = read_record(path, {"runs": list}, again)["runs"] if path.is_file() else []
    return run_config(run.folder).to_dict() | {"ensemble": " + ".join(Path(member).name for member in members)}


def paired_differences(resampled: Mapping[str, Resampled], reference: str) -> pd.DataFrame:
    """Every other run minus the reference on the same images.

    Columns `run`, `figure`, `reference` and `value` (the figures), `difference`, `low`, `high` (95 %), `p`. Intervals
    and p of a figure hold for all pairs of runs at once, so the reference may be the best of them; they are NaN for
    fewer images than FEWEST.
    """
    names = [reference, *(name for name in resampled if name != reference)]
    first, second = np.array(list(itertools.combinations(range(len(names)), 2)), int).reshape(-1, 2).T
    parts = []
    for figure in resampled[reference].values:
        values = np.array([resampled[name].values[figure] for name in names])
        draws = np.column_stack([resampled[name].draws[figure] for name in names])
        tested = tested_together(values[second] - values[first], draws[:, second] - draws[:, first])
        row = {"run": names[1:], "figure": figure, "reference": values[0], "value": values[1:]}
        # The first pairs are the reference's.
        parts.append(pd.DataFrame(row | {name: column[: len(names) - 1] for name, column in tested.items()}))
    table = pd.concat(parts, ignore_index=True)
    if resampled[reference].images < FEWEST:
        table[["low", "high", "p"]] = np.nan
    return table
