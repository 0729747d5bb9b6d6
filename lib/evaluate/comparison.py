"""Several runs on one split: which can be compared, and by how much one is better than another and how surely."""

import fnmatch
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit, open_run
from lib.evaluation_file import NAME, read_evaluation
from lib.metrics.matching import CHALLENGE_SIZE
from lib.metrics.statistics import Resampled, tested_together


def find_runs(folder, names: list[str], split: str) -> tuple[list[RunOnSplit], list[str], list[str]]:
    """The evaluated runs below `folder` that can be compared: all, or these `names`, such as `sweep_demo_*`.

    Left out is what was evaluated on another split, without labels, on other data than most, or on no image that the
    others have, too. Returns (runs, ids of the labelled images that all of them predicted, notes on what is left out).
    Raises InputError when a named run cannot be used, or when no run can.
    """
    folder = Path(folder)
    found = sorted(path.parent.name for path in folder.glob(f"*/{NAME}"))
    matches = {name: [name] if name in found else fnmatch.filter(found, name) for name in names}
    missing = [name for name, matching in matches.items() if not matching]
    if missing:
        known = ", ".join(found) or "none"
        raise InputError(f"{folder} holds no evaluated run {', '.join(missing)}; evaluated are: {known}")
    runs, notes = [], []
    for name in dict.fromkeys(run for matching in matches.values() for run in matching) or found:
        try:
            runs.append(_open_evaluated(folder / name, split))
        except InputError as error:
            if name in names:
                raise
            notes.append(f"{name} is left out: {error}.")
    if not runs:
        nothing = f"{folder} holds no run that was evaluated on {split}; run notebook 3 on some."
        raise InputError(" ".join([nothing, *notes]))
    paths = [str(run.labels.path.resolve()) for run in runs]
    usual = pd.Series(paths).mode()[0]
    for run, path in zip(runs, paths, strict=True):
        if path != usual:
            notes.append(f"{run.name} is left out: it was evaluated on {path}, most runs on {usual}.")
    return _on_common_images([run for run, path in zip(runs, paths, strict=True) if path == usual], notes)


def _open_evaluated(folder: Path, split: str) -> RunOnSplit:
    of_run = read_evaluation(folder)
    if not read_evaluation(folder / "predictions" / split) and of_run.get("split", split) != split:
        raise InputError(f"it was evaluated on {of_run['split']}, not on {split}")
    run = open_run(folder, split)
    if "figures" not in run.evaluation:
        raise InputError(f"{folder / NAME} is not what notebook 3 writes; evaluate the run again")
    if not run.evaluation["figures"]:
        raise InputError(f"{split} has no labels")
    return run


def _on_common_images(runs: list[RunOnSplit], notes: list[str]) -> tuple[list[RunOnSplit], list[str], list[str]]:
    """The runs that share labelled images, and these images; of held_out runs may have different ones."""
    usual = Counter(tuple(run.labelled_ids) for run in runs).most_common(1)[0][0]
    common, left_out = set(usual), []
    for run in sorted(runs, key=lambda run: len(set(usual).intersection(run.labelled_ids)), reverse=True):
        if shared := common.intersection(run.labelled_ids):
            common = shared
        else:
            left_out.append(run)
            notes.append(f"{run.name} is left out: it shares no image with the others (held_out depends on the seed).")
    kept = [run for run in runs if run not in left_out]
    if any(len(run.labelled_ids) > len(common) for run in kept):
        notes.append(
            f"The runs predicted different images (held_out depends on val_split and seed): figures of a run are of "
            f"its own images, differences between runs of the {len(common):,} images that all of them predicted."
        )
    return kept, [id for id in usual if id in common], notes


def final_score(run: RunOnSplit) -> float:
    """As notebook 3 measured it."""
    return run.evaluation["figures"]["final_score"]


def choose_reference(runs: list[RunOnSplit], name: str = "") -> RunOnSplit:
    """The run to compare with: the one named, else the one with the best final score."""
    if not name:
        return max(runs, key=final_score)
    named = [run for run in runs if run.name == name]
    if not named:
        raise InputError(f"reference: there is no run {name!r}; choose among {', '.join(run.name for run in runs)}")
    return named[0]


def parameters(run: RunOnSplit) -> dict:
    """Every parameter of a run by name; `ensemble` names the runs that were averaged, empty for a single run."""
    path = run.folder / "ensemble.json"
    members = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    return run.config.to_dict() | {"ensemble": " + ".join(Path(member).name for member in members)}


def is_outdated(run: RunOnSplit) -> bool:
    """Whether a measured run's predictions are others than those of its evaluation.json."""
    told = run.evaluation["figures"]["f1_score"]
    return not np.isclose(run.figures()["f1_score"], np.nan if told is None else told, atol=1e-6, equal_nan=True)


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


def image_gains(reference: RunOnSplit, other: RunOnSplit) -> pd.DataFrame:
    """How much of the frame each of two measured runs gets wrong (missed or false area, 0..1), image by image.

    Index `id`; columns `reference`, `other` and `gain` (reference - other: above 0 the other run is better).
    """
    wrong = {}
    for name, run in (("reference", reference), ("other", other)):
        counts = run.at()[0]
        counts = counts.set_index(counts["id"].astype(str))
        wrong[name] = (counts["union"] - counts["intersection"]) / CHALLENGE_SIZE**2
    table = pd.DataFrame(wrong).dropna()
    return table.assign(gain=table["reference"] - table["other"]).rename_axis("id")
