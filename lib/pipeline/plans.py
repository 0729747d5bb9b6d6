"""Plans: which notebooks run in which order with which parameters, checked before anything starts.

A plan is a YAML file in `notebooks/params`:

    name: demo                         # the pipeline writes runs/demo/
    parameters: {data_path: data/demo} # given to every notebook that has a parameter of that name
    steps:
      - notebook: 1_data_processing
      - name: train_full               # default: the notebook's name
        notebook: 2_train
        parameter_set: demo_full       # notebooks/params/demo_full.yaml
        parameters: {epoch: 3}         # this step only
        writes: ["{runs}/{experiment_name}/model"]  # missing afterwards: the step is not finished
        labelled: "{runs}/{experiment_name}/evaluation.json"  # left out when the split evaluated there has no labels
        each_row: true                 # runs once for each row of the sweep
    sweep: [{lora_rank: 2}, {lora_rank: 8, experiment_name: wide}]  # a table, a row a run ...
    sweep: {lora_rank: [2, 8], lr: [1e-4, 1e-3]}    # ... or a grid, a run for every combination
    summary: {full: demo_full}         # row of the final table -> experiment (runs/<experiment>/evaluation.json)

A parameter's value comes from, later ones winning: the notebook, the parameter set, the plan, the step, the sweep's
row, `--set`. Texts may hold `{name}` of one of the plan's `parameters`, or `{runs}`; in `writes` and `labelled` of the
step's parameters, too; in steps with `each_row` of the row's. `{sweep}` alone is the list of the sweep's experiments.

A row's run is called after its values, `<plan>_lora_rank2_lr0.0001`, unless `experiment_name` says otherwise. So a row
keeps its name, and what it trained, when other rows come or go.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from lib.config import Experiment
from lib.errors import InputError, nearest
from lib.notebook_parameters import as_kind, read_notebook
from lib.reference_flags import hint
from lib.yaml_files import KIND_NAMES, read_yaml

PLAN_KEYS = {"name": str, "parameters": dict, "sweep": list | dict, "steps": list, "summary": dict}
STEP_KEYS = {
    "name": str, "notebook": str, "parameter_set": str, "parameters": dict, "writes": list, "each_row": bool,
    "labelled": str,
}  # fmt: skip
FILE_NAME = re.compile(r"\w[\w .+-]{,119}")  # of plans, steps and runs
SWEEP = "a list of rows such as [{lr: 1e-4}, {lr: 1e-3}], or lists of values such as {lr: [1e-4, 1e-3]}"


@dataclass(frozen=True)
class Step:
    """One notebook with its parameters; `fingerprint` changes when it or a step that it needs changes."""

    name: str
    notebook: Path
    parameters: dict
    writes: tuple[str, ...]
    fingerprint: str
    stem: str  # of its executed notebook and its page; other rows of a sweep do not change it
    row: str = ""  # label of the sweep's row
    labelled: str = ""  # evaluation.json of a split that must have labels, or there is nothing to do

    def needs(self, earlier: "Step") -> bool:
        """Whether this step depends on an earlier one: on any but those of the sweep's other rows."""
        return not self.row or earlier.row in ("", self.row)


class Plan(NamedTuple):
    """A checked plan; `summary` maps a row of the final table to an experiment."""

    name: str
    steps: tuple[Step, ...]
    summary: dict[str, str]


class Row(NamedTuple):
    """One run of a sweep: `label` is its name in steps and tables, `experiment` that of its folder."""

    label: str
    experiment: str
    values: dict  # by parameter, `experiment_name` included


def load_plan(path, notebooks_dir, overrides: list[str] = (), runs: Path | None = None) -> Plan:
    """Read and check a plan with everything it names.

    Arguments: `path` of the plan; `notebooks_dir` with the notebooks and `params/`; `overrides` such as "lr=1e-4" or
    "train.lr=1e-4"; `runs`, when given, goes to every notebook with a parameter `runs`.
    Raises InputError listing every problem.
    """
    path, notebooks_dir, overrides = Path(path), Path(notebooks_dir), [_override(text) for text in overrides]
    _refuse(path, _shape_problems(raw := read_yaml(path), notebooks_dir))
    values = {"runs": str(runs or "runs")} | raw.get("parameters", {})
    values |= {name: value for step, name, value in overrides if not step}
    used = {"runs", *re.findall(r"{(\w+)}", json.dumps(raw))} - {"sweep"}  # these need not be a notebook's parameter
    problems, steps = [], []
    try:
        raw |= {key: _fill(value, values) for key, value in raw.items() if key != "steps"}
        names = dict.fromkeys(entry["notebook"] for entry in raw["steps"])
        books = {name: read_notebook(notebooks_dir / f"{name}.ipynb") for name in names}
    except InputError as error:
        _refuse(path, [str(error)])
    if runs:
        raw["parameters"] = raw.get("parameters", {}) | {"runs": str(runs)}
    rows = read_rows(raw["name"], raw.get("sweep", []))
    values |= {"sweep": [row.experiment for row in rows]} if rows else {}
    entries = list(_repeated(raw["steps"], rows))
    _refuse(path, _name_problems([raw["name"], *(_name_of(entry, row) for _, entry, row in entries)]))
    for number, entry, row in entries:
        name, of_row = _name_of(entry, row), row.values if row else {}
        code, defaults = books[entry["notebook"]]
        try:
            given = (path, notebooks_dir, raw, entry, row, overrides, values | of_row, defaults, problems)
            parameters = _parameters(*given)
            here = values | of_row | defaults | parameters
            if "parameter_set" in defaults:  # a training: contradicting values are refused now, not later
                recipe = {field.name: here[field.name] for field in fields(Experiment)}
                Experiment.from_dict(recipe, source=f"step {name}")
            writes, labelled = _fill([entry.get("writes", []), entry.get("labelled", "")], here)
        except InputError as error:
            problems.append(str(error))
            continue
        step = Step(
            name, notebooks_dir / f"{entry['notebook']}.ipynb", parameters, tuple(writes), "", f"{number}_{name}",
            row.label if row else "", labelled,
        )  # fmt: skip
        needed = [other.fingerprint for other in steps if step.needs(other)]
        text = json.dumps([needed, code, parameters], default=str)
        steps.append(replace(step, fingerprint=hashlib.sha256(text.encode()).hexdigest()))
    problems += _unused(path, raw, rows, overrides, {name: defaults for name, (_, defaults) in books.items()}, used)
    _refuse(path, dict.fromkeys(problems))
    return Plan(raw["name"], tuple(steps), raw.get("summary", {}) | {row.label: row.experiment for row in rows})


def read_rows(plan: str, sweep: list | dict) -> list[Row]:
    """The rows of a table or a grid; `plan` begins the names of runs that have none of their own."""
    if isinstance(sweep, dict):
        sweep = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    rows = []
    for values in sweep:
        label = values.get("experiment_name") or "_".join(_labelled(name, value) for name, value in values.items())
        experiment = values.get("experiment_name", f"{plan}_{label}")
        rows.append(Row(label, experiment, values | {"experiment_name": experiment}))
    return rows


def _parameters(path, notebooks_dir, raw, entry, row, overrides, values, defaults, problems) -> dict:
    """The parameters that a step gives its notebook, with the types of their `defaults`; `problems` grows."""
    notebook, plain = f"{entry['notebook']}.ipynb", _name_of(entry)
    layers = []  # where it is written, values, whether the notebook must know all of them; later ones win
    if "parameter_set" in entry:
        file = notebooks_dir / "params" / f"{entry['parameter_set']}.yaml"
        layers.append((file.name, read_yaml(file), True))
    layers.append((path.name, raw.get("parameters", {}), False))
    layers.append((f"{path.name}, step {plain}", _fill(entry.get("parameters", {}), values), True))
    layers += [(f"{path.name}, row {row.label}", row.values, False)] if row else []
    chosen = (None, plain, _name_of(entry, row))
    layers += [("--set", {name: value}, step is not None) for step, name, value in overrides if step in chosen]
    merged = {}
    for source, given, strict in layers:
        for key, value in given.items():
            if key in defaults:
                try:
                    merged[key] = as_kind(key, value, defaults[key])
                except InputError as error:
                    problems.append(f"{source}, {notebook}: {error}")
            elif strict:
                problems.append(f"{source}: {notebook} has no parameter {key!r}{hint(key, defaults)}")
    return merged


# --- what may be wrong with a plan ---


def _shape_problems(raw: dict, notebooks_dir: Path) -> list[str]:
    """Unknown keys, values of the wrong kind, names that lead to no file, a sweep without rows or steps for them."""
    if "steps" not in raw:
        return ["it has no `steps`, so it is a parameter set and not a plan, as demo, full and sweep_demo are"]
    problems = _key_problems(raw, PLAN_KEYS, "name", "the plan")
    for number, entry in enumerate([] if problems else raw["steps"], 1):
        problems += _step_problems(entry, f"step {number}", notebooks_dir)
    if problems:
        return problems
    marks = [entry.get("each_row", False) for entry in raw["steps"]]
    if "sweep" not in raw:
        return ["a step has `each_row`, but the plan has no `sweep` with rows"] if any(marks) else []
    sweep = raw["sweep"]
    values, kind = (sweep.values(), list) if isinstance(sweep, dict) else (sweep, dict)
    if not values or not all(isinstance(value, kind) and value for value in values):
        problems.append(f"the plan: `sweep` must be {SWEEP}, not {sweep!r}")
    return problems if any(marks) else [*problems, "a plan with a `sweep` needs steps with `each_row: true`"]


def _step_problems(entry, where: str, notebooks_dir: Path) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{where} must be a mapping with at least `notebook`"]
    if problems := _key_problems(entry, STEP_KEYS, "notebook", where):
        return problems
    for key, files in (("notebook", "*.ipynb"), ("parameter_set", "params/*.yaml")):
        known = sorted(path.stem for path in notebooks_dir.glob(files))
        if key in entry and entry[key] not in known:
            problems.append(f"{where}: there is no {key} {entry[key]} in {notebooks_dir}{nearest(entry[key], known)}")
    return problems


def _key_problems(mapping: dict, kinds: dict, needed: str, where: str) -> list[str]:
    problems = [f"{where} has no key {key!r}{nearest(key, kinds)}" for key in mapping if key not in kinds]
    problems += [] if needed in mapping else [f"{where} lacks `{needed}`"]
    return problems + [
        f"{where}: `{key}` must be {KIND_NAMES.get(kind, SWEEP)}, not {mapping[key]!r}"
        for key, kind in kinds.items()
        if key in mapping and not isinstance(mapping[key], kind)
    ]


def _name_problems(names: list[str]) -> list[str]:
    """Names of the plan and its steps that are not unique, or that no file or folder should have."""
    remedy = "give its step another `name`, or its row of the sweep another `experiment_name`"
    twice = {name: f"two steps are called {name}; {remedy}" for name in names if names.count(name) > 1}
    unfit = f"must be usable as a file name of at most 120 letters; {remedy}"
    return [*twice.values(), *(f"{name!r} {unfit}" for name in names if not FILE_NAME.fullmatch(name))]


def _unused(path: Path, raw: dict, rows: list[Row], overrides: list[tuple], books: dict, used: set) -> list[str]:
    """Values that no step takes: of the plan's `parameters`, of `--set`, of the sweep's rows."""
    everything = used.union(*books.values())
    of_rows = used.union(*(books[entry["notebook"]] for entry in raw["steps"] if entry.get("each_row")))
    varied = dict.fromkeys(name for row in rows for name in row.values)
    steps = [_name_of(entry, of) for _, entry, row in _repeated(raw["steps"], rows) for of in (row, None)]
    shared = [_name_of(entry) for entry in raw["steps"] if not entry.get("each_row")]

    def unknown(names, known, problem: str) -> list[str]:
        return [f"{problem} {name!r}{hint(name, known)}" for name in names if name not in known]

    for_all = [name for step, name, _ in overrides if not step]
    return [
        *unknown(raw.get("parameters", {}), everything, f"{path.name}: no notebook of this plan has a parameter"),
        *unknown(varied, of_rows, f"{path.name}, sweep: no step with `each_row` has a parameter"),
        *unknown(for_all, everything, "--set: no notebook of this plan has a parameter"),
        *unknown([step for step, *_ in overrides if step], steps, "--set: there is no step"),
        *[
            f"--set: {name} differs from row to row; change the sweep of {path}"
            for step, name, _ in overrides
            if name in varied and step not in shared
        ],
    ]


def _refuse(path, problems) -> None:
    if problems:
        raise InputError(f"{path} cannot run:" + "".join(f"\n  - {problem}" for problem in problems))


# --- small parts ---


def _override(text: str) -> tuple[str | None, str, str]:
    """(step or None for all, parameter, value as text) of `--set name=value` or `--set step.name=value`."""
    match = re.fullmatch(r"(?:([^=]+)\.)?([A-Za-z_]\w*)=(.*)", text, flags=re.DOTALL)
    if not match:
        raise InputError(f"--set {text}: write name=value, or step.name=value for one step")
    return match.groups()


def _repeated(entries: list[dict], rows: list[Row]) -> Iterator[tuple[int, dict, Row | None]]:
    """(number of the plan's entry, entry, row): entries with `each_row` once for each row, all of a row together."""
    numbered = enumerate(entries, 1)
    for each_row, group in itertools.groupby(numbered, lambda pair: pair[1].get("each_row", False)):
        group = list(group)
        for row in rows if each_row else [None]:
            yield from ((number, entry, row) for number, entry in group)


def _name_of(entry: dict, row: Row | None = None) -> str:
    """A step's name: its `name`, by default its notebook's, with the label of its row."""
    name = entry.get("name", entry["notebook"])
    return f"{name}_{row.label}" if row else name


def _labelled(name: str, value) -> str:
    """'lr0.001', 'score_loss-mse', 'ema-true'; what does not suit a file name becomes a dash."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{name}{value}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{name}-{re.sub(r'[^A-Za-z0-9.+_-]+', '-', text).strip('-')}"


def _fill(value, values: dict):
    """Every text in `value`, also inside lists and mappings, with {name} replaced; {name} of a list gives the list."""

    def found(match: re.Match) -> str:
        name = match[1] or match[2]
        if name not in values:
            raise InputError(f"'{{{name}}}': {name} is no parameter here{nearest(name, values)}")
        if match[1]:
            return json.dumps(values[name] if isinstance(values[name], list) else str(values[name]))
        return json.dumps(str(values[name]))[1:-1]

    return json.loads(re.sub(r'"{(\w+)}"|{(\w+)}', found, json.dumps(value)))
