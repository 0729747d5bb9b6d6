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
        each_row: true                 # runs once for each row of the plan's `sweep` (see lib.pipeline.sweeps)
    summary: {full: demo_full}         # row of the final table -> experiment (runs/<experiment>/evaluation.json)

A parameter's value comes from, later ones winning: the notebook, the parameter set, the plan, the step, the sweep's
row, `--set`. Texts in a plan may hold `{name}` of one of the plan's `parameters`, or `{runs}`; in `writes`, of the
step's too; in a sweep's steps, of the row's. `{sweep}` alone stands for the list of a sweep's experiments.
"""

import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lib.config import Experiment, read_yaml
from lib.errors import InputError, nearest
from lib.notebook_parameters import as_kind, read_notebook
from lib.pipeline.plan_checks import name_problems, shape_problems
from lib.pipeline.sweeps import Row, name_of, read_rows, repeated


@dataclass(frozen=True)
class Step:
    """One notebook with the parameters it gets; `fingerprint` changes when it or a step that it needs changes."""

    name: str
    notebook: Path
    parameters: dict
    writes: tuple[str, ...]
    fingerprint: str
    stem: str  # of its executed notebook and its page; other rows of a sweep do not move it
    row: str = ""  # label of the sweep's row
    reuse: bool = False
    labelled: str = ""  # evaluation.json of a split that must have labels, or there is nothing to do

    def needs(self, earlier: "Step") -> bool:
        """Whether what this step makes depends on an earlier step: on any but those of the sweep's other rows."""
        return not self.row or earlier.row in ("", self.row)


@dataclass(frozen=True)
class Plan:
    """A checked plan; `summary` maps a row of the final table to an experiment."""

    name: str
    steps: tuple[Step, ...]
    summary: dict[str, str]


@dataclass(frozen=True)
class Override:
    """`--set name=value` or `--set step.name=value`; the value is still text."""

    step: str | None
    name: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Override":
        match = re.fullmatch(r"(?:([^=]+)\.)?([A-Za-z_]\w*)=(.*)", text, flags=re.DOTALL)
        if not match:
            raise InputError(f"--set {text}: write name=value, or step.name=value for one step")
        return cls(*match.groups())


def load_plan(path, notebooks_dir, overrides: list[Override] = (), runs: Path | None = None) -> Plan:
    """Read and check a plan with everything it names.

    Arguments: `path` of the plan; `notebooks_dir` with the notebooks and `params/`; `overrides` from the command
    line; `runs`, when given, goes to every notebook with a parameter `runs`.
    Raises InputError listing every problem.
    """
    path, notebooks_dir = Path(path), Path(notebooks_dir)
    raw = read_yaml(path)
    _stop_on(path, shape_problems(raw, notebooks_dir))
    given = {override.name: override.value for override in overrides if not override.step}
    values = {"runs": str(runs or "runs")} | raw.get("parameters", {}) | given
    used = _placeholders(raw) - {"sweep"}
    try:
        raw = {key: _fill(value, values) if key != "steps" else value for key, value in raw.items()}
    except InputError as error:
        _stop_on(path, [str(error)])
    if runs:
        raw["parameters"] = raw.get("parameters", {}) | {"runs": str(runs)}
    rows = read_rows(raw["name"], raw.get("sweep", []))
    _stop_on(path, name_problems(raw, rows))
    if rows:
        values["sweep"] = [row.experiment for row in rows]
    steps, problems = _Reader(path, notebooks_dir, raw, rows, overrides, values).steps(used | {"runs"})
    _stop_on(path, problems)
    return Plan(raw["name"], tuple(steps), raw.get("summary", {}) | {row.label: row.experiment for row in rows})


@dataclass
class _Reader:
    """Turns a plan's entries into steps and collects what does not fit."""

    path: Path
    notebooks_dir: Path
    raw: dict
    rows: list[Row]
    overrides: list[Override]
    values: dict  # what {name} in the plan's texts stands for

    def steps(self, used: set[str]) -> tuple[list[Step], list[str]]:
        """All steps and all problems; `used` are names that need not be a notebook's parameter."""
        self.problems, self.known, self.known_to_rows, steps = [], set(used), set(used), []
        entries = list(repeated(self.raw["steps"], self.rows))
        for number, entry, row in entries:
            try:
                steps.append(self._step(number, entry, row, steps))
            except InputError as error:
                self.problems.append(str(error))
        if len(steps) == len(entries):
            self._refuse_unused([name_of(entry, of) for _, entry, row in entries for of in (row, None)])
        return steps, list(dict.fromkeys(self.problems))

    def _step(self, number: int, entry: dict, row: Row | None, earlier: list[Step]) -> Step:
        name, notebook = name_of(entry, row), self.notebooks_dir / f"{entry['notebook']}.ipynb"
        code, defaults = read_notebook(notebook)
        self.known |= defaults.keys()
        self.known_to_rows |= defaults.keys() if row else set()
        values = self.values | (row.values if row else {})
        parameters = self._merge(self._layers(entry, row, values, defaults), defaults, notebook.name)
        self._check_recipe(name, defaults | parameters)
        writes = tuple(_fill(entry.get("writes", []), values | defaults | parameters))
        label, reuse = row.label if row else "", entry.get("reuse", False)
        labelled = _fill(entry.get("labelled", ""), values | defaults | parameters)
        step = Step(name, notebook, parameters, writes, "", f"{number}_{name}", label, reuse, labelled)
        needed = [other.fingerprint for other in earlier if step.needs(other)]
        text = json.dumps([needed, code, parameters], default=str)
        return replace(step, fingerprint=hashlib.sha256(text.encode()).hexdigest())

    def _layers(self, entry: dict, row: Row | None, values: dict, defaults: dict) -> list[tuple[str, dict]]:
        """(where it was written, values) for one step; later layers win."""
        layers, shared = [], self.raw.get("parameters", {})
        if "parameter_set" in entry:
            file = self.notebooks_dir / "params" / f"{entry['parameter_set']}.yaml"
            layers.append((file.name, read_yaml(file)))
        layers.append((self.path.name, {name: value for name, value in shared.items() if name in defaults}))
        layers.append((f"{self.path.name}, step {name_of(entry)}", _fill(entry.get("parameters", {}), values)))
        if row:
            varied = {name: value for name, value in row.values.items() if name in defaults}
            layers.append((f"{self.path.name}, row {row.label}", varied))
        for override in self.overrides:
            here = override.step in (name_of(entry, row), name_of(entry))
            if here or (override.step is None and override.name in defaults):
                layers.append(("--set", {override.name: override.value}))
        return layers

    def _merge(self, layers: list[tuple[str, dict]], defaults: dict, notebook: str) -> dict:
        merged = {}
        for source, values in layers:
            for name, value in values.items():
                if name not in defaults:
                    self.problems.append(f"{source}: {notebook} has no parameter {name!r}{nearest(name, defaults)}")
                    continue
                try:
                    merged[name] = as_kind(name, value, defaults[name])
                except InputError as error:
                    self.problems.append(f"{source}, {notebook}: {error}")
        return merged

    def _check_recipe(self, step: str, values: dict) -> None:
        """Refuse a training whose values contradict the recipe now, not when its turn comes."""
        recipe = [field.name for field in fields(Experiment)]
        if all(name in values for name in recipe):
            try:
                Experiment.from_dict({name: values[name] for name in recipe}, source=f"step {step}")
            except InputError as error:
                self.problems.append(str(error))

    def _refuse_unused(self, steps: list[str]) -> None:
        names = [(self.path.name, name) for name in self.raw.get("parameters", {})]
        names += [("--set", override.name) for override in self.overrides if override.step is None]
        for source, name in names:
            if name not in self.known:
                hint = nearest(name, self.known)
                self.problems.append(f"{source}: no notebook of this plan has a parameter {name!r}{hint}")
        for override in self.overrides:
            if override.step is not None and override.step not in steps:
                self.problems.append(f"--set: there is no step {override.step!r}{nearest(override.step, steps)}")
        self._refuse_misplaced_rows()

    def _refuse_misplaced_rows(self) -> None:
        varied = dict.fromkeys(name for row in self.rows for name in row.values)
        for name in varied:
            if name not in self.known_to_rows:
                hint = nearest(name, self.known_to_rows)
                self.problems.append(f"{self.path.name}, sweep: no step with `each_row` has a parameter {name!r}{hint}")
        shared = [name_of(entry) for entry in self.raw["steps"] if not entry.get("each_row")]
        for override in self.overrides:
            if override.name in varied and override.step not in shared:
                self.problems.append(f"--set: {override.name} differs from row to row; change the sweep of {self.path}")


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


def _stop_on(path, problems: list[str]) -> None:
    if problems:
        raise InputError(f"{path} cannot run:" + "".join(f"\n  - {problem}" for problem in problems))
