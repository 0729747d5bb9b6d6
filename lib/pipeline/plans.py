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


def load_plan(path, notebooks_dir, overrides: list[str] = (), runs: Path | None = None) -> Plan:
    """Read and check a plan with everything it names.

    Arguments: `path` of the plan; `notebooks_dir` with the notebooks and `params/`; `overrides` such as "lr=1e-4" or
    "train.lr=1e-4"; `runs`, when given, goes to every notebook with a parameter `runs`.
    Raises InputError that names the plan and the first problem.
    """
    try:
        return _load(Path(path), Path(notebooks_dir), [_override(text) for text in overrides], runs)
    except InputError as error:
        raise InputError(f"{path} cannot run: {error}") from None


def _load(path: Path, notebooks_dir: Path, overrides: list[tuple], runs: Path | None) -> Plan:
    raw = read_yaml(path)
    _check_shape(raw)
    for_all = {name: value for step, name, value in overrides if not step}
    values = {"runs": str(runs or "runs")} | raw.get("parameters", {}) | for_all
    filled = {"runs", *re.findall(r"{(\w+)}", json.dumps(raw))} - {"sweep"}  # need not be a notebook's parameter
    raw |= {key: _fill(value, values) for key, value in raw.items() if key != "steps"}
    of_plan = raw.get("parameters", {}) | ({"runs": str(runs)} if runs else {})
    rows = read_rows(raw["name"], raw.get("sweep", []))
    experiments = {label: row["experiment_name"] for label, row in rows}
    values |= {"sweep": list(experiments.values())} if rows else {}
    steps, named, known, known_to_rows = [], set(), set(filled), set(filled)
    for number, entry, label, row in _repeated(raw["steps"], rows):
        plain = entry.get("name", entry["notebook"])
        name = f"{plain}_{label}" if label else plain
        notebook = notebooks_dir / f"{entry['notebook']}.ipynb"
        code, defaults = read_notebook(notebook)
        named |= {plain, name}
        known |= defaults.keys()
        known_to_rows |= defaults.keys() if label else set()
        layers = [  # where it is written, values, whether the notebook must know all of them; later ones win
            (path.name, of_plan, False),
            (f"{path.name}, step {plain}", _fill(entry.get("parameters", {}), values | row), True),
            (f"{path.name}, row {label}", row, False),
            ("--set", for_all, False),
            ("--set", {key: value for step, key, value in overrides if step in (plain, name)}, True),
        ]
        if "parameter_set" in entry:
            file = notebooks_dir / "params" / f"{entry['parameter_set']}.yaml"
            layers.insert(0, (file.name, read_yaml(file), True))
        parameters = _merged(layers, notebook.name, defaults)
        here = values | row | defaults | parameters
        if "parameter_set" in defaults:  # a training: contradicting values are refused now, not later
            Experiment.from_dict({field.name: here[field.name] for field in fields(Experiment)}, f"step {name}")
        writes, labelled = _fill([entry.get("writes", []), entry.get("labelled", "")], here)
        step = Step(name, notebook, parameters, tuple(writes), "", f"{number}_{name}", label, labelled)
        needed = [other.fingerprint for other in steps if step.needs(other)]
        text = json.dumps([needed, code, parameters], default=str)
        steps.append(replace(step, fingerprint=hashlib.sha256(text.encode()).hexdigest()))
    _check_names([raw["name"], *(step.name for step in steps)])
    varied = dict.fromkeys(name for _, row in rows for name in row)
    _check_known(raw.get("parameters", {}), known, f"{path.name}: no notebook of this plan has a parameter")
    _check_known(varied, known_to_rows, f"{path.name}, sweep: no step with `each_row` has a parameter")
    _check_known(for_all, known, "--set: no notebook of this plan has a parameter")
    _check_known([step for step, *_ in overrides if step], named, "--set: there is no step")
    for name in [name for _, name, _ in overrides if name in varied]:
        raise InputError(f"--set: {name} differs from row to row; change the sweep")
    return Plan(raw["name"], tuple(steps), raw.get("summary", {}) | experiments)


def read_rows(plan: str, sweep: list | dict) -> list[tuple[str, dict]]:
    """The runs of a table or a grid: (name in steps and tables, values by parameter with `experiment_name`) of each.

    `plan` begins the names of runs that have none of their own.
    """
    if isinstance(sweep, dict):
        sweep = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    rows = []
    for values in sweep:
        label = values.get("experiment_name") or "_".join(_labelled(name, value) for name, value in values.items())
        rows.append((label, values | {"experiment_name": values.get("experiment_name", f"{plan}_{label}")}))
    return rows


def _merged(layers: list[tuple[str, dict, bool]], notebook: str, defaults: dict) -> dict:
    """The parameters that a step gives its notebook, with the types of their `defaults`."""
    merged = {}
    for where, given, strict in layers:
        if strict:
            _check_known(given, defaults, f"{where}: {notebook} has no parameter")
        for name in [name for name in given if name in defaults]:
            try:
                merged[name] = as_kind(name, given[name], defaults[name])
            except InputError as error:
                raise InputError(f"{where}, {notebook}: {error}") from None
    return merged


def _check_shape(raw: dict) -> None:
    """Refuse unknown keys, values of the wrong kind, a sweep without rows or without steps for them."""
    if "steps" not in raw:
        raise InputError("it has no `steps`, so it is a parameter set and not a plan, as demo, full and sweep_demo are")
    _check_keys(raw, PLAN_KEYS, "name", "the plan")
    for number, entry in enumerate(raw["steps"], 1):
        _check_keys(entry, STEP_KEYS, "notebook", f"step {number}")
    if "sweep" in raw:
        sweep = raw["sweep"]
        values, kind = (sweep.values(), list) if isinstance(sweep, dict) else (sweep, dict)
        if not values or not all(isinstance(value, kind) and value for value in values):
            raise InputError(f"the plan: `sweep` must be {SWEEP}, not {sweep!r}")
    if ("sweep" in raw) != any(entry.get("each_row") for entry in raw["steps"]):
        raise InputError("a plan with a `sweep` needs steps with `each_row: true`, and the other way round")


def _check_keys(mapping, kinds: dict, needed: str, where: str) -> None:
    if not isinstance(mapping, dict):
        raise InputError(f"{where} must be a mapping with at least `{needed}`")
    _check_known(mapping, kinds, f"{where} has no key")
    if needed not in mapping:
        raise InputError(f"{where} lacks `{needed}`")
    for key, value in mapping.items():
        if not isinstance(value, kinds[key]):
            raise InputError(f"{where}: `{key}` must be {KIND_NAMES.get(kinds[key], SWEEP)}, not {value!r}")


def _check_known(names, known, problem: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{problem} {name!r}{hint(name, known)}")


def _check_names(names: list[str]) -> None:
    """Refuse names of the plan and its steps that are not unique, or that no file should have."""
    for name in names:
        if names.count(name) > 1 or not FILE_NAME.fullmatch(name):
            raise InputError(
                f"{name!r} must be the name of one step only, fit for a file and of at most 120 letters; give its "
                "step another `name`, or its row of the sweep another `experiment_name`"
            )


def _override(text: str) -> tuple[str | None, str, str]:
    """(step or None for all, parameter, value as text) of `--set name=value` or `--set step.name=value`."""
    match = re.fullmatch(r"(?:([^=]+)\.)?([A-Za-z_]\w*)=(.*)", text, flags=re.DOTALL)
    if not match:
        raise InputError(f"--set {text}: write name=value, or step.name=value for one step")
    return match.groups()


def _repeated(entries: list[dict], rows: list[tuple]) -> Iterator[tuple[int, dict, str, dict]]:
    """(number of the plan's entry, entry, label and values of its row): all steps with `each_row` of a row together."""
    numbered = enumerate(entries, 1)
    for each_row, group in itertools.groupby(numbered, lambda pair: pair[1].get("each_row", False)):
        group = list(group)
        for label, row in rows if each_row else [("", {})]:
            yield from ((number, entry, label, row) for number, entry in group)


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
