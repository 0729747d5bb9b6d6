"""The shape of a plan: known keys of the right kind, names that lead to a file, steps that can be told apart."""

import itertools
import re
from collections import Counter
from pathlib import Path

from lib.config import KIND_NAMES
from lib.errors import nearest
from lib.pipeline.sweeps import Row, name_of, repeated

# `sweep` is a list or a mapping: _sweep_problems tells more.
PLAN_KEYS = {"name": str, "parameters": dict, "sweep": object, "steps": list, "summary": dict}
STEP_KEYS = {
    "name": str, "notebook": str, "parameter_set": str, "parameters": dict, "writes": list, "each_row": bool,
    "reuse": bool, "labelled": str,
}  # fmt: skip
LONGEST = 120  # letters of a run's name, which becomes a part of file names


def shape_problems(raw: dict, notebooks_dir: Path) -> list[str]:
    """What is wrong with the plan itself: keys, kinds, names that lead to no file."""
    if "steps" not in raw:
        return ["it has no `steps`, so it is a parameter set and not a plan, as demo, full and sweep_demo are"]
    problems = _key_problems(raw, PLAN_KEYS, ("name", "steps"), "the plan")
    if problems:
        return problems
    for number, entry in enumerate(raw["steps"], 1):
        problems += _step_problems(entry, f"step {number}")
    if problems:
        return problems
    for entry in raw["steps"]:
        problems += _file_problem("notebook", entry["notebook"], notebooks_dir, ".ipynb")
        if "parameter_set" in entry:
            problems += _file_problem("parameter set", entry["parameter_set"], notebooks_dir / "params", ".yaml")
    return problems + _sweep_problems(raw)


def _step_problems(entry, where: str) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{where} must be a mapping with at least `notebook`"]
    problems = _key_problems(entry, STEP_KEYS, ("notebook",), where)
    if entry.get("reuse") and not entry.get("writes"):
        problems.append(f"{where}: `reuse` needs `writes`, the files that make the step unnecessary")
    return problems


def _key_problems(mapping: dict, kinds: dict, needed: tuple, where: str) -> list[str]:
    problems = [f"{where} has no key {key!r}{nearest(key, kinds)}" for key in mapping if key not in kinds]
    problems += [f"{where} lacks `{key}`" for key in needed if key not in mapping]
    return problems + [
        f"{where}: `{key}` must be {KIND_NAMES[kind]}, not {mapping[key]!r}"
        for key, kind in kinds.items()
        if key in mapping and not isinstance(mapping[key], kind)
    ]


def _file_problem(what: str, name: str, folder: Path, suffix: str) -> list[str]:
    if (folder / f"{name}{suffix}").is_file():
        return []
    return [f"there is no {what} {name} in {folder}{nearest(name, [file.stem for file in folder.glob('*' + suffix)])}"]


def _sweep_problems(raw: dict) -> list[str]:
    marks = [entry.get("each_row", False) for entry in raw["steps"]]
    if "sweep" not in raw:
        return ["a step has `each_row`, but the plan has no `sweep` with rows"] if any(marks) else []
    sweep, problems = raw["sweep"], []
    values = list(sweep.values()) if isinstance(sweep, dict) else sweep
    kind = list if isinstance(sweep, dict) else dict
    if not isinstance(values, list) or not values or not all(isinstance(value, kind) and value for value in values):
        problems.append(
            "`sweep` must be a list of rows such as [{lr: 1e-4}, {lr: 1e-3}], or lists of values such as "
            f"{{lr: [1e-4, 1e-3]}}, not {sweep!r}"
        )
    if [mark for mark, _ in itertools.groupby(marks)].count(True) != 1:
        problems.append("a plan with a `sweep` needs steps with `each_row: true`, one after the other, to run for it")
    return problems


def name_problems(raw: dict, rows: list[Row]) -> list[str]:
    """Names of the plan, its steps and its runs that are not unique, or that no file or folder should have."""
    name, runs = raw["name"], Counter(row.experiment for row in rows)
    problems = [] if _is_name(name) else [f"the plan's name {name!r} must be usable as a folder name"]
    problems += [
        f"two rows of the sweep are called {run}; drop one, or give one another `experiment_name`"
        for run, count in runs.items()
        if count > 1
    ]
    problems += [
        f"a run of the sweep would be called {run!r}; give its row a short plain `experiment_name`"
        for run in runs
        if not _is_name(str(run)) or len(str(run)) > LONGEST
    ]
    if problems:
        return problems
    steps = Counter(name_of(entry, row) for _, entry, row in repeated(raw["steps"], rows))
    problems = [f"two steps are called {name}; give one another `name`" for name, count in steps.items() if count > 1]
    return problems + [f"step name {name!r} must be usable as a file name" for name in steps if not _is_name(name)]


def _is_name(name: str) -> bool:
    """Whether a file or a folder may be called so."""
    return bool(re.fullmatch(r"\w[\w .+-]*", name))
