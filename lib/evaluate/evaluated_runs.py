"""Which evaluated runs can be compared with each other: on one split, the same data and the same images."""

import dataclasses
import fnmatch
import json
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pandas as pd

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit, open_run


@dataclass(frozen=True)
class Run:
    """An evaluated run: `evaluation` see `lib.evaluate.evaluation`, `config` every parameter by name, and `ensemble`.

    `ids` are the images on which it is compared.
    """

    opened: RunOnSplit
    evaluation: dict
    config: dict
    ids: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.opened.name

    @property
    def final_score(self) -> float:
        return self.evaluation["figures"]["final_score"]


def find_runs(folder, names: list[str], split: str) -> tuple[list[Run], list[str]]:
    """The evaluated runs below `folder` and notes on those left out: all, or these `names`, such as `sweep_demo_*`.

    Left out is what was evaluated on another split, without labels, on other data than most, or on no image that the
    others have, too. Raises InputError when a named run cannot be used, or when no run can.
    """
    folder = Path(folder)
    found = sorted(path.parent.name for path in folder.glob("*/evaluation.json"))
    matches = {name: [name] if name in found else fnmatch.filter(found, name) for name in names}
    missing = [name for name, matching in matches.items() if not matching]
    if missing:
        known = ", ".join(found) or "none"
        raise InputError(f"{folder} holds no evaluated run {', '.join(missing)}; evaluated are: {known}")
    runs, notes = [], []
    for name in dict.fromkeys(run for matching in matches.values() for run in matching) or found:
        try:
            runs.append(_read_run(folder / name, split))
        except InputError as error:
            if name in names:
                raise
            notes.append(f"{name} is left out: {error}.")
    if not runs:
        nothing = f"{folder} holds no run that was evaluated on {split}; run notebook 3 on some."
        raise InputError(" ".join([nothing, *notes]))
    return _on_common_images(*_on_the_same_data(runs, notes))


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
    config = Experiment.from_yaml(folder / "config.yaml").to_dict() | {"ensemble": _members(folder)}
    opened = open_run(folder, split)
    return Run(opened, evaluation, config, tuple(opened.labelled_ids))


def _members(folder: Path) -> str:
    """Of an ensemble the names of its runs, whose parameters are not all its own; empty for a single run."""
    path = folder / "ensemble.json"
    return " + ".join(Path(run).name for run in json.loads(path.read_text())["runs"]) if path.is_file() else ""


def _on_the_same_data(runs: list[Run], notes: list[str]) -> tuple[list[Run], list[str]]:
    where = pd.Series([str(run.opened.labels.path.resolve()) for run in runs])
    common = where.mode()[0]
    for run, path in zip(runs, where, strict=True):
        if path != common:
            notes.append(f"{run.name} is left out: it was evaluated on {path}, most runs on {common}.")
    return [run for run, path in zip(runs, where, strict=True) if path == common], notes


def _on_common_images(runs: list[Run], notes: list[str]) -> tuple[list[Run], list[str]]:
    """The runs with the images that all of them predicted; of held_out they may have different ones."""
    usual = Counter(run.ids for run in runs).most_common(1)[0][0]
    common, left_out = set(usual), set()
    for run in sorted(runs, key=lambda run: len(set(usual).intersection(run.ids)), reverse=True):
        if shared := common.intersection(run.ids):
            common = shared
        else:
            left_out.add(run.name)
            notes.append(f"{run.name} is left out: it shares no image with the others (held_out depends on the seed).")
    kept = [run for run in runs if run.name not in left_out]
    if any(len(run.ids) > len(common) for run in kept):
        notes.append(
            f"The runs predicted not the same images (held_out depends on val_split and seed): figures of a run are of "
            f"its own, differences between runs of the {len(common):,} images that all of them predicted."
        )
    ids = tuple(id for id in usual if id in common)
    return [dataclasses.replace(run, ids=ids) for run in kept], notes


def choose_reference(runs: list[Run], name: str = "") -> Run:
    """The run to compare with: the one named, else the one with the best final score."""
    if not name:
        return max(runs, key=attrgetter("final_score"))
    named = [run for run in runs if run.name == name]
    if not named:
        raise InputError(f"reference: there is no run {name!r}; choose among {', '.join(run.name for run in runs)}")
    return named[0]
