"""One strict reader of notebooks' parameters, whether papermill, a plan or a person in JupyterLab gives them."""

import ast
import json
import os
from pathlib import Path

from lib.config import KIND_NAMES, Experiment, parse_value, read_yaml
from lib.errors import InputError, nearest

NOTEBOOKS = Path("notebooks")
SETS = NOTEBOOKS / "params"
DEMO = Path("data/demo/raw")
LITERALS = (bool, int, float, str, list, tuple, dict)


def read_notebook(path) -> tuple[list[str], dict]:
    """The sources of a notebook's code cells, and {parameter: default} of its cell tagged `parameters`.

    A notebook with a `parameter_set` trains: it takes every parameter of `Experiment`, and None in its cell means the
    parameter set's value. Raises InputError for a file that is no notebook, or a cell with more than literals.
    """
    try:
        cells = [cell for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]]
        cells = [cell for cell in cells if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
        tags = [cell.get("metadata", {}).get("tags", ()) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a Jupyter notebook of format 4 ({error})") from None
    tagged = [source for source, names in zip(sources, tags, strict=True) if "parameters" in names]
    if len(tagged) != 1:
        raise InputError(f"{path} must have one cell tagged `parameters`, and has {len(tagged)}")
    defaults = _literals(tagged[0], path)
    if "parameter_set" in defaults:
        defaults = Experiment().to_dict() | {name: value for name, value in defaults.items() if value is not None}
    return sources, defaults


def as_kind(name: str, value, default):
    """A parameter's value as the type of its default: text such as "false", "1e-3" or "[1, 2]" is read as YAML.

    Raises InputError, with an example, for what is of another type. A whole number may stand where a number is.
    """
    if isinstance(value, str) and not isinstance(default, str):
        value = parse_value(value)
    if type(default) is float and type(value) is int:
        return float(value)
    if type(default) is list and isinstance(value, list | tuple):
        return [as_kind(name, item, default[0]) for item in value] if default else list(value)
    if default is None or type(value) is type(default):
        return value
    example = f", for example {default!r}" if default or default == 0 else ""
    hint = "; papermill gives text with -r" if type(default) is str and value is not None else ""
    raise InputError(f"{name}: {value!r} is not {KIND_NAMES[type(default)]}{example}{hint}")


def read_parameters(namespace: dict, notebook: str) -> None:
    """Check the parameters in a notebook's namespace, and turn text that means a value into it; call it first.

    Arguments: `namespace` the notebook's `globals()`; `notebook` its name, whose file tells names, types and defaults.
    Raises InputError listing every unknown name that papermill injected, else every value of a wrong type.
    """
    path = NOTEBOOKS / f"{notebook}.ipynb"
    defaults = read_notebook(path)[1]
    injected = _injected(namespace.get("In", []))
    unknown = [f"{name!r}{nearest(name, defaults)}" for name in injected if name not in defaults]
    if unknown:
        raise InputError(f"no parameter of {path}: {', '.join(unknown)}")
    if injected and "parameter_set" in defaults and "parameter_set" not in injected:
        namespace["parameter_set"] = ""  # what papermill gives (-f notebooks/params/...) stands for itself
    problems = []
    for name in [name for name in defaults if name in namespace]:
        if "parameter_set" in defaults and not isinstance(namespace[name], LITERALS):
            continue  # None: the parameter set's value; anything else is no parameter, such as a function of that name
        try:
            namespace[name] = as_kind(name, namespace[name], defaults[name])
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(problems))


def experiment(namespace: dict) -> Experiment:
    """The training that a notebook's parameters describe: its `parameter_set`, changed by what the notebook gives.

    Every name of a parameter in `namespace` (the notebook's `globals()`) counts that is a literal and not None.
    """
    given = {name: namespace[name] for name in Experiment().to_dict() if isinstance(namespace.get(name), LITERALS)}
    chosen = namespace.get("parameter_set", "")
    return Experiment.from_dict((_read_set(chosen) if chosen else {}) | given, source="notebook").resolved()


def data_places(data_root: str, data_path: str) -> tuple[Path, Path]:
    """Where the raw data are, and where the prepared ones go, from the parameters of notebook 1.

    Without `data_root` the environment's DATA_ROOT counts; `data_path` is by default beside the demo's raw data, and
    in the folder of all others.
    """
    raw = data_root or os.environ.get("DATA_ROOT", "")
    if not raw:
        raise InputError(
            "no data: set data_root or the environment variable DATA_ROOT to a folder with train/, val/, test/"
        )
    usual = DEMO.parent / "prepared" if Path(raw) == DEMO else Path(raw) / "prepared"
    return Path(raw), Path(data_path or usual)


def _injected(cells: list[str]) -> list[str]:
    """The names in papermill's cell, when that is the cell that ran before the present one; `cells` is IPython's `In`.

    Cells that ran earlier do not count: in JupyterLab they may have been changed since.
    """
    before = next((cell for cell in reversed(cells) if cell != cells[-1]), "")
    if not before.startswith("# Parameters\n"):  # papermill begins its cell so
        return []
    targets = [node.targets[0] for node in ast.parse(before).body if isinstance(node, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _read_set(name: str) -> dict:
    known = sorted(path.stem for path in SETS.glob("*.yaml") if "steps" not in read_yaml(path))
    if name not in known:
        raise InputError(f"parameter_set: {name!r} is none of {SETS}{nearest(name, known)}: {', '.join(known)}")
    return read_yaml(SETS / f"{name}.yaml")


def _literals(source: str, path) -> dict:
    """{name: value} of a cell; raises InputError when it holds anything but assignments of literals."""
    defaults = {}
    try:
        nodes = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{path}: the parameters cell has a syntax error in line {error.lineno}") from None
    for node in nodes:
        try:
            [target] = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(node, ast.AugAssign):
                raise ValueError
            defaults[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            line = ast.unparse(node).splitlines()[0]
            raise InputError(f"{path}: the parameters cell may hold only name = literal, not: {line}") from None
    return defaults
