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
    summary: {full: demo_full}         # row of the final table -> experiment (runs/<experiment>/evaluation.json)

A parameter's value comes from, later ones winning: the notebook, the parameter set, the plan, the step, `--set`.
Texts in a plan may hold `{name}` of one of the plan's `parameters`, or `{runs}`; in `writes`, of the step's too.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.config import read_yaml
from lib.errors import InputError
from lib.notebooks import KINDS, fits, nearest, read_notebook, wanted

PLAN_KEYS = {"name": str, "parameters": dict, "steps": list, "summary": dict}
STEP_KEYS = {"name": str, "notebook": str, "parameter_set": str, "parameters": dict, "writes": list}


@dataclass(frozen=True)
class Step:
    """One notebook with the parameters it gets; `fingerprint` changes when it or a step before it changes."""

    name: str
    notebook: Path
    parameters: dict
    writes: tuple[str, ...]
    fingerprint: str


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

    def typed(self, default):
        """The value as the notebook's default suggests: text stays as it is, the rest is read as YAML."""
        if isinstance(default, str):
            return self.value
        try:
            value = yaml.safe_load(self.value)
            return float(value) if isinstance(default, float) and isinstance(value, str) else value
        except (yaml.YAMLError, ValueError):
            return self.value


def load_plan(path, notebooks_dir, overrides: list[Override] = (), runs: Path | None = None) -> Plan:
    """Read and check a plan with everything it names.

    Arguments: `path` of the plan; `notebooks_dir` with the notebooks and `params/`; `overrides` from the command
    line; `runs`, when given, goes to every notebook with a parameter `runs`.
    Raises InputError listing every problem.
    """
    path, notebooks_dir = Path(path), Path(notebooks_dir)
    raw = read_yaml(path)
    _stop_on(path, _shape_problems(raw, notebooks_dir))
    given = {override.name: override.value for override in overrides if not override.step}
    values = {"runs": str(runs or "runs")} | raw.get("parameters", {}) | given
    used = _placeholders(raw)
    try:
        raw = {key: _fill(value, values) if key != "steps" else value for key, value in raw.items()}
    except InputError as error:
        _stop_on(path, [str(error)])
    if runs:
        raw["parameters"] = raw.get("parameters", {}) | {"runs": str(runs)}
    steps, problems = _Reader(path, notebooks_dir, raw, overrides, values).steps(used | {"runs"})
    if not _is_name(raw["name"]):
        problems.append(f"the plan's name {raw['name']!r} must be usable as a folder name")
    _stop_on(path, problems)
    return Plan(raw["name"], tuple(steps), raw.get("summary", {}))


@dataclass
class _Reader:
    """Turns a plan's entries into steps and collects what does not fit."""

    path: Path
    notebooks_dir: Path
    raw: dict
    overrides: list[Override]
    values: dict  # what {name} in the plan's texts stands for

    def steps(self, used: set[str]) -> tuple[list[Step], list[str]]:
        """All steps and all problems; `used` are names that need not be a notebook's parameter."""
        self.problems, self.known, steps = [], set(used), []
        for entry in self.raw["steps"]:
            try:
                steps.append(self._step(entry, steps[-1].fingerprint if steps else ""))
            except InputError as error:
                self.problems.append(str(error))
        if len(steps) == len(self.raw["steps"]):
            self._refuse_unused([step.name for step in steps])
        return steps, list(dict.fromkeys(self.problems))

    def _step(self, entry: dict, upstream: str) -> Step:
        notebook = self.notebooks_dir / f"{entry['notebook']}.ipynb"
        code, defaults = read_notebook(notebook)
        self.known |= defaults.keys()
        parameters = self._merge(self._layers(entry, defaults), defaults, notebook.name)
        writes = tuple(_fill(entry.get("writes", []), self.values | defaults | parameters))
        fingerprint = hashlib.sha256(json.dumps([upstream, code, parameters], default=str).encode()).hexdigest()
        return Step(_step_name(entry), notebook, parameters, writes, fingerprint)

    def _layers(self, entry: dict, defaults: dict) -> list[tuple[str, dict]]:
        """(where it was written, values) for one step; later layers win."""
        layers, step = [], _step_name(entry)
        if "parameter_set" in entry:
            file = self.notebooks_dir / "params" / f"{entry['parameter_set']}.yaml"
            layers.append((file.name, read_yaml(file)))
        shared = self.raw.get("parameters", {})
        layers.append((self.path.name, {name: value for name, value in shared.items() if name in defaults}))
        layers.append((f"{self.path.name}, step {step}", _fill(entry.get("parameters", {}), self.values)))
        for override in self.overrides:
            if override.step == step or (override.step is None and override.name in defaults):
                layers.append(("--set", {override.name: override.typed(defaults.get(override.name))}))
        return layers

    def _merge(self, layers: list[tuple[str, dict]], defaults: dict, notebook: str) -> dict:
        merged = {}
        for source, values in layers:
            for name, value in values.items():
                if name not in defaults:
                    self.problems.append(f"{source}: {notebook} has no parameter {name!r}{nearest(name, defaults)}")
                elif not fits(value, defaults[name]):
                    need = wanted(defaults[name])
                    self.problems.append(f"{source}: {name} of {notebook} must be {need}, not {value!r}")
                else:
                    merged[name] = float(value) if type(defaults[name]) is float else value
        return merged

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


def _shape_problems(raw: dict, notebooks_dir: Path) -> list[str]:
    """What is wrong with the plan itself: keys, kinds, names that lead to no file."""
    if "steps" not in raw:
        return ["it has no `steps`, so it is a parameter set and not a plan; plans are demo, full, lora, evaluate"]
    problems = _key_problems(raw, PLAN_KEYS, ("name", "steps"), "the plan")
    if problems:
        return problems
    for number, entry in enumerate(raw["steps"], 1):
        if not isinstance(entry, dict):
            problems.append(f"step {number} must be a mapping with at least `notebook`")
            continue
        problems += _key_problems(entry, STEP_KEYS, ("notebook",), f"step {number}")
    if problems:
        return problems
    for entry in raw["steps"]:
        problems += _file_problem("notebook", entry["notebook"], notebooks_dir, ".ipynb")
        if "parameter_set" in entry:
            problems += _file_problem("parameter set", entry["parameter_set"], notebooks_dir / "params", ".yaml")
    names = [_step_name(entry) for entry in raw["steps"]]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"two steps are called {name}; give one another `name`" for name in twice]
    return problems + [f"step name {name!r} must be usable as a file name" for name in names if not _is_name(name)]


def _key_problems(mapping: dict, kinds: dict, needed: tuple, where: str) -> list[str]:
    problems = [f"{where} has no key {key!r}{nearest(key, kinds)}" for key in mapping if key not in kinds]
    problems += [f"{where} lacks `{key}`" for key in needed if key not in mapping]
    return problems + [
        f"{where}: `{key}` must be {KINDS[kind]}, not {mapping[key]!r}"
        for key, kind in kinds.items()
        if key in mapping and not isinstance(mapping[key], kind)
    ]


def _file_problem(what: str, name: str, folder: Path, suffix: str) -> list[str]:
    if (folder / f"{name}{suffix}").is_file():
        return []
    return [f"there is no {what} {name} in {folder}{nearest(name, [file.stem for file in folder.glob('*' + suffix)])}"]


def _fill(value, values: dict):
    """Every text in `value`, also inside lists and mappings, with {name} replaced."""
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return value.format_map(values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"{value!r}: {error} is no parameter here{nearest(error, values)}") from None


def _placeholders(value) -> set[str]:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return set().union(*map(_placeholders, items))
    return set(re.findall(r"{(\w+)}", value)) if isinstance(value, str) else set()


def _step_name(entry: dict) -> str:
    return entry.get("name", entry["notebook"])


def _is_name(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w .+-]*", name))


def _stop_on(path, problems: list[str]) -> None:
    if problems:
        raise InputError(f"{path} cannot run:" + "".join(f"\n  - {problem}" for problem in problems))
