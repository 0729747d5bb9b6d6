"""Plans: which notebooks run in which order with which parameters, checked before anything starts.

A plan is a YAML file in `notebooks/params`:

    name: demo                         # the pipeline writes runs/demo/
    parameters: {data_path: data/demo} # given to every notebook that has a parameter of that name
    steps:
      - notebook: 1_data_processing
        reuse: true                    # does not run while what it `writes` is there, whoever wrote it
      - name: train_full               # default: the notebook's name
        notebook: 2_train
        parameter_set: demo_full       # notebooks/params/demo_full.yaml
        parameters: {epoch: 3}         # this step only
        writes: ["{runs}/{experiment_name}/model"]  # missing afterwards: the step is not finished
        labelled: "{runs}/{experiment_name}/evaluation.json"  # left out when the split evaluated there has no labels
        each_row: true                 # runs once for each row of the sweep
    sweep:                             # a table, a row a run ...
      - {lora_rank: 2, lr: 1e-4}
      - {lora_rank: 8, lr: 1e-4, experiment_name: wide}
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from lib.config import KIND_NAMES, Experiment, read_yaml
from lib.errors import InputError, nearest
from lib.notebook_parameters import as_kind, read_notebook

PLAN_KEYS = {"name": str, "parameters": dict, "sweep": list | dict, "steps": list, "summary": dict}
STEP_KEYS = {
    "name": str, "notebook": str, "parameter_set": str, "parameters": dict, "writes": list, "each_row": bool,
    "reuse": bool, "labelled": str,
}  # fmt: skip
FILE_NAME = re.compile(r"\w[\w .+-]*")
LONGEST = 120  # letters of a run's name, which becomes a part of file names
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
    reuse: bool = False
    labelled: str = ""  # evaluation.json of a split that must have labels, or there is nothing to do

    def needs(self, earlier: "Step") -> bool:
        """Whether this step depends on an earlier one: on any but those of the sweep's other rows."""
        return not self.row or earlier.row in ("", self.row)


class Plan(NamedTuple):
    """A checked plan; `summary` maps a row of the final table to an experiment."""

    name: str
    steps: tuple[Step, ...]
    summary: dict[str, str]


class Notebook(NamedTuple):
    """A notebook's file, the sources of its code cells, and {parameter: default}."""

    path: Path
    code: list[str]
    defaults: dict


class Row(NamedTuple):
    """One run of a sweep: `label` is its name in steps and tables, `experiment` that of its folder."""

    label: str
    experiment: str
    values: dict  # by parameter, `experiment_name` included


class Override(NamedTuple):
    """`--set name=value` or `--set step.name=value`; the value is text."""

    step: str | None
    name: str
    value: str


def load_plan(path, notebooks_dir, overrides: list[str] = (), runs: Path | None = None) -> Plan:
    """Read and check a plan with everything it names.

    Arguments: `path` of the plan; `notebooks_dir` with the notebooks and `params/`; `overrides` such as "lr=1e-4" or
    "train.lr=1e-4"; `runs`, when given, goes to every notebook with a parameter `runs`.
    Raises InputError listing every problem.
    """
    path, notebooks_dir, overrides = Path(path), Path(notebooks_dir), [_override(text) for text in overrides]
    _refuse(path, _shape_problems(raw := read_yaml(path), notebooks_dir))
    given = {override.name: override.value for override in overrides if not override.step}
    values = {"runs": str(runs or "runs")} | raw.get("parameters", {}) | given
    used = _placeholders(raw) - {"sweep"} | {"runs"}  # these need not be a notebook's parameter
    problems, steps = [], []
    try:
        raw = {key: value if key == "steps" else _fill(value, values) for key, value in raw.items()}
        books = {entry["notebook"]: _notebook(notebooks_dir, entry["notebook"]) for entry in raw["steps"]}
    except InputError as error:
        _refuse(path, [str(error)])
    if runs:
        raw["parameters"] = raw.get("parameters", {}) | {"runs": str(runs)}
    rows = read_rows(raw["name"], raw.get("sweep", []))
    values |= {"sweep": [row.experiment for row in rows]} if rows else {}
    entries = list(_repeated(raw["steps"], rows))
    _refuse(path, _name_problems([raw["name"], *(_name_of(entry, row) for _, entry, row in entries)]))
    for number, entry, row in entries:
        notebook = books[entry["notebook"]]
        layers = _layers(path, notebooks_dir, raw, entry, row, overrides, values | (row.values if row else {}))
        try:
            parameters = _merged(layers, notebook, problems)
            here = values | (row.values if row else {}) | notebook.defaults | parameters
            if "parameter_set" in notebook.defaults:  # a training: contradicting values are refused now, not later
                recipe = {field.name: here[field.name] for field in fields(Experiment)}
                Experiment.from_dict(recipe, source=f"step {_name_of(entry, row)}")
            steps.append(_step(number, entry, row, notebook, parameters, here, steps))
        except InputError as error:
            problems.append(str(error))
    problems += _unused(path, raw, rows, overrides, books, used)
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


def _notebook(folder: Path, name: str) -> Notebook:
    return Notebook(folder / f"{name}.ipynb", *read_notebook(folder / f"{name}.ipynb"))


def _layers(path, notebooks_dir, raw, entry, row, overrides, values) -> Iterator[tuple[str, dict, bool]]:
    """(where it is written, values, whether the notebook must know all of them) for one step; later ones win."""
    if "parameter_set" in entry:
        file = notebooks_dir / "params" / f"{entry['parameter_set']}.yaml"
        yield file.name, read_yaml(file), True
    yield path.name, raw.get("parameters", {}), False
    yield f"{path.name}, step {_name_of(entry)}", _fill(entry.get("parameters", {}), values), True
    if row:
        yield f"{path.name}, row {row.label}", row.values, False
    for step, name, value in overrides:
        if step in (None, _name_of(entry, row), _name_of(entry)):
            yield "--set", {name: value}, step is not None


def _merged(layers: Iterator[tuple[str, dict, bool]], notebook: Notebook, problems: list[str]) -> dict:
    """The parameters that a step gives its notebook, with the types of their defaults; `problems` grows."""
    merged, defaults, name = {}, notebook.defaults, notebook.path.name
    for source, values, strict in layers:
        for key, value in values.items():
            if key not in defaults:
                if strict:
                    problems.append(f"{source}: {name} has no parameter {key!r}{nearest(key, defaults)}")
                continue
            try:
                merged[key] = as_kind(key, value, defaults[key])
            except InputError as error:
                problems.append(f"{source}, {name}: {error}")
    return merged


def _step(number, entry, row, notebook: Notebook, parameters: dict, values: dict, earlier: list[Step]) -> Step:
    name = _name_of(entry, row)
    step = Step(
        name, notebook.path, parameters, tuple(_fill(entry.get("writes", []), values)), "", f"{number}_{name}",
        row.label if row else "", entry.get("reuse", False), _fill(entry.get("labelled", ""), values),
    )  # fmt: skip
    needed = [other.fingerprint for other in earlier if step.needs(other)]
    text = json.dumps([needed, notebook.code, parameters], default=str)
    return replace(step, fingerprint=hashlib.sha256(text.encode()).hexdigest())


# --- what may be wrong with a plan ---


def _shape_problems(raw: dict, notebooks_dir: Path) -> list[str]:
    """Unknown keys, values of the wrong kind, names that lead to no file, a sweep without rows or steps for them."""
    if "steps" not in raw:
        return ["it has no `steps`, so it is a parameter set and not a plan, as demo, full and sweep_demo are"]
    problems = _key_problems(raw, PLAN_KEYS, ("name", "steps"), "the plan")
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
    if [mark for mark, _ in itertools.groupby(marks)].count(True) != 1:
        problems.append("a plan with a `sweep` needs steps with `each_row: true`, one after the other, to run for it")
    return problems


def _step_problems(entry, where: str, notebooks_dir: Path) -> list[str]:
    if not isinstance(entry, dict):
        return [f"{where} must be a mapping with at least `notebook`"]
    if problems := _key_problems(entry, STEP_KEYS, ("notebook",), where):
        return problems
    if entry.get("reuse") and not entry.get("writes"):
        problems.append(f"{where}: `reuse` needs `writes`, the files that make the step unnecessary")
    files = {"notebook": "*.ipynb", "parameter_set": "params/*.yaml"}
    for key in files.keys() & entry.keys():
        known = sorted(path.stem for path in notebooks_dir.glob(files[key]))
        if entry[key] not in known:
            problems.append(f"{where}: there is no {key} {entry[key]} in {notebooks_dir}{nearest(entry[key], known)}")
    return problems


def _key_problems(mapping: dict, kinds: dict, needed: tuple, where: str) -> list[str]:
    problems = [f"{where} has no key {key!r}{nearest(key, kinds)}" for key in mapping if key not in kinds]
    problems += [f"{where} lacks `{key}`" for key in needed if key not in mapping]
    return problems + [
        f"{where}: `{key}` must be {KIND_NAMES.get(kind, SWEEP)}, not {mapping[key]!r}"
        for key, kind in kinds.items()
        if key in mapping and not isinstance(mapping[key], kind)
    ]


def _name_problems(names: list[str]) -> list[str]:
    """Names of the plan and its steps that are not unique, or that no file or folder should have."""
    remedy = "give its step another `name`, or its row of the sweep another `experiment_name`"
    return [f"two steps are called {name}; {remedy}" for name, count in Counter(names).items() if count > 1] + [
        f"{name!r} must be usable as a file name of at most {LONGEST} letters; {remedy}"
        for name in dict.fromkeys(names)
        if not FILE_NAME.fullmatch(name) or len(name) > LONGEST
    ]


def _unused(path: Path, raw: dict, rows: list[Row], overrides: list[Override], books: dict, used: set) -> list[str]:
    """Values that no step takes: of the plan's `parameters`, of `--set`, of the sweep's rows."""
    problems = []

    def expect(name: str, known, told: str) -> None:
        if name not in known:
            problems.append(f"{told} {name!r}{nearest(name, known)}")

    def known_to(entries: list[dict]) -> set[str]:
        return used.union(*(books[entry["notebook"]].defaults for entry in entries))

    steps = [_name_of(entry, of) for _, entry, row in _repeated(raw["steps"], rows) for of in (row, None)]
    each_row = [entry for entry in raw["steps"] if entry.get("each_row")]
    shared = [_name_of(entry) for entry in raw["steps"] if not entry.get("each_row")]
    varied = dict.fromkeys(name for row in rows for name in row.values)
    for name in raw.get("parameters", {}):
        expect(name, known_to(raw["steps"]), f"{path.name}: no notebook of this plan has a parameter")
    for name in varied:
        expect(name, known_to(each_row), f"{path.name}, sweep: no step with `each_row` has a parameter")
    for step, name, _ in overrides:
        if step is None:
            expect(name, known_to(raw["steps"]), "--set: no notebook of this plan has a parameter")
        else:
            expect(step, steps, "--set: there is no step")
        if name in varied and step not in shared:
            problems.append(f"--set: {name} differs from row to row; change the sweep of {path}")
    return problems


def _refuse(path, problems) -> None:
    if problems:
        raise InputError(f"{path} cannot run:" + "".join(f"\n  - {problem}" for problem in problems))


# --- small parts ---


def _override(text: str) -> Override:
    match = re.fullmatch(r"(?:([^=]+)\.)?([A-Za-z_]\w*)=(.*)", text, flags=re.DOTALL)
    if not match:
        raise InputError(f"--set {text}: write name=value, or step.name=value for one step")
    return Override(*match.groups())


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
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    if not isinstance(value, str):
        return value
    if isinstance(values.get(value[1:-1]), list) and value == f"{{{value[1:-1]}}}":
        return values[value[1:-1]]
    try:
        return value.format_map(values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"{value!r}: {error} is no parameter here{nearest(error, values)}") from None


def _placeholders(value) -> set[str]:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return set().union(*map(_placeholders, items))
    return set(re.findall(r"{(\w+)}", value)) if isinstance(value, str) else set()
