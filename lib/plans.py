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
        writes: ["runs/{experiment_name}/model"]  # missing afterwards: the step is not finished
    summary: {full: demo_full}         # row of the final table -> experiment (runs/<experiment>/evaluation.json)

A parameter's value comes from, later ones winning: the notebook, the parameter set, the plan, the step, `--set`.
`name`, `summary` and `writes` may hold `{parameter}`.
"""

import ast
import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.config import read_yaml
from lib.errors import InputError

PLAN_KEYS = {"name": str, "parameters": dict, "steps": list, "summary": dict}
STEP_KEYS = {"name": str, "notebook": str, "parameter_set": str, "parameters": dict, "writes": list}
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


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
    shared = raw.get("parameters", {}) | ({"runs": str(runs)} if runs else {})
    problems, steps, known = [], [], {name for name in ("runs",) if runs}
    for entry in raw["steps"]:
        name, notebook = _step_name(entry), notebooks_dir / f"{entry['notebook']}.ipynb"
        try:
            code, defaults = read_notebook(notebook)
            layers = _layers(entry, path, notebooks_dir, shared, overrides, defaults)
            parameters = _merge(layers, defaults, notebook.name, problems)
            writes = tuple(_fill(text, defaults | parameters, "writes") for text in entry.get("writes", ()))
        except InputError as error:
            problems.append(str(error))
            continue
        known |= defaults.keys()
        upstream = steps[-1].fingerprint if steps else ""
        fingerprint = hashlib.sha256(json.dumps([upstream, code, parameters], default=str).encode()).hexdigest()
        steps.append(Step(name, notebook, parameters, writes, fingerprint))
    if len(steps) == len(raw["steps"]):
        problems += _unused_problems(shared, overrides, known, [step.name for step in steps], path)
    _stop_on(path, list(dict.fromkeys(problems)))
    values = shared | {override.name: override.value for override in overrides if not override.step}
    summary = {row: _fill(experiment, values, "summary") for row, experiment in raw.get("summary", {}).items()}
    return Plan(_folder_name(_fill(raw["name"], values, "name"), path), tuple(steps), summary)


def read_notebook(path) -> tuple[list[str], dict]:
    """Code cells' sources of a notebook, and name -> default of its cell tagged `parameters`."""
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        cells = [cell for cell in cells if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a Jupyter notebook of format 4 ({error})") from None
    tagged = [
        source
        for cell, source in zip(cells, sources, strict=True)
        if "parameters" in cell.get("metadata", {}).get("tags", ())
    ]
    if len(tagged) != 1:
        raise InputError(f"{path} must have one cell tagged `parameters`, and has {len(tagged)}")
    return sources, _literals(tagged[0], path)


def _literals(source: str, path) -> dict:
    defaults = {}
    try:
        nodes = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{path}: the parameters cell has a syntax error in line {error.lineno}") from None
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        try:
            defaults[targets[0].id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            line = ast.unparse(node).splitlines()[0]
            raise InputError(f"{path}: the parameters cell may hold only name = literal, not: {line}") from None
    return defaults


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


def _layers(entry, path, notebooks_dir, shared, overrides, defaults) -> list[tuple[str, dict]]:
    """(where it was written, values) for one step; later layers win."""
    layers = []
    if "parameter_set" in entry:
        file = notebooks_dir / "params" / f"{entry['parameter_set']}.yaml"
        layers.append((file.name, read_yaml(file)))
    layers.append((path.name, {name: value for name, value in shared.items() if name in defaults}))
    layers.append((f"{path.name}, step {_step_name(entry)}", entry.get("parameters", {})))
    for override in overrides:
        named = override.step == _step_name(entry)
        if named or (override.step is None and override.name in defaults):
            layers.append(("--set", {override.name: override.typed(defaults.get(override.name))}))
    return layers


def _merge(layers, defaults: dict, notebook: str, problems: list[str]) -> dict:
    """The step's parameters; whatever does not fit the notebook's defaults is added to `problems`."""
    merged = {}
    for source, values in layers:
        for name, value in values.items():
            if name not in defaults:
                problems.append(f"{source}: {notebook} has no parameter {name!r}{nearest(name, defaults)}")
            elif not _fits(value, defaults[name]):
                wanted = _wanted(defaults[name])
                problems.append(f"{source}: {name} of {notebook} must be {wanted}, not {value!r}")
            else:
                merged[name] = float(value) if type(defaults[name]) is float else value
    return merged


def _fits(value, default) -> bool:
    if default is None:
        return value is None or isinstance(value, (str, int, float))
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, list)
    return type(value) is type(default)


def _wanted(default) -> str:
    return "a single value" if default is None else f"{KINDS[type(default)]} such as {default!r}"


def _unused_problems(shared, overrides, known, steps, path) -> list[str]:
    problems = [f"{path.name}: no notebook has a parameter {n!r}{nearest(n, known)}" for n in shared if n not in known]
    for override in overrides:
        if override.step is not None and override.step not in steps:
            problems.append(f"--set: there is no step {override.step!r}{nearest(override.step, steps)}")
        elif override.step is None and override.name not in known:
            problems.append(f"--set: no notebook has a parameter {override.name!r}{nearest(override.name, known)}")
    return problems


def nearest(name, known) -> str:
    """' (did you mean x?)', or nothing when nothing is near."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def _fill(text: str, values: dict, where: str) -> str:
    try:
        return str(text).format_map(values)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"`{where}` {text!r}: {error} is no parameter here{nearest(error, values)}") from None


def _step_name(entry: dict) -> str:
    return entry.get("name", entry["notebook"])


def _is_name(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w .+-]*", name))


def _folder_name(name: str, path: Path) -> str:
    if not _is_name(name):
        raise InputError(f"{path}: the plan's name {name!r} must be usable as a folder name")
    return name


def _stop_on(path, problems: list[str]) -> None:
    if problems:
        raise InputError(f"{path} cannot run:" + "".join(f"\n  - {problem}" for problem in problems))
