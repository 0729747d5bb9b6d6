"""One strict reader of notebooks' parameters, whether papermill, a plan or a person in JupyterLab gives them."""

import ast
import json
import math
from pathlib import Path

from lib.config import Experiment
from lib.errors import InputError, nearest
from lib.reference_flags import hint
from lib.yaml_files import KIND_NAMES, parse_value, read_yaml

NOTEBOOKS = Path("notebooks")
SETS = NOTEBOOKS / "params"
RANGES = {  # of the notebooks' own parameters, and of what lists of them hold; inf: as large as one likes
    "batch_size": (1, math.inf), "num_workers": (0, math.inf), "num_processes": (1, math.inf), "workers": (0, math.inf),
    "resamples": (1, math.inf), "bootstrap": (1, math.inf), "n_examples": (0, math.inf), "n_gallery": (0, math.inf),
    "threshold": (0, 254), "threshold_step": (1, 254), "min_areas": (0.0006, 0.99), "smoothings": (0, 64),
    "scales": (0.1, 8), "synthetic_size": (32, math.inf), "synthetic_seed": (0, math.inf),
}  # fmt: skip
SPLITS = ("split", "calibration", "splits")  # names of folders in the prepared data
LITERALS = (bool, int, float, str, list, tuple, dict)


def read_notebook(path) -> tuple[list[str], dict]:
    """The sources of a notebook's code cells, and {parameter: default} of its cell tagged `parameters`.

    A notebook with a `parameter_set` trains: it takes every parameter of `Experiment`, and None in its cell means the
    parameter set's value. Raises InputError for a file that is no notebook, or a cell with more than literals.
    """
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        cells = [(cell, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
        tagged = [source for cell, source in cells if "parameters" in cell.get("metadata", {}).get("tags", ())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a Jupyter notebook of format 4 ({error})") from None
    if len(tagged) != 1:
        raise InputError(f"{path} must have one cell tagged `parameters`, and has {len(tagged)}")
    defaults = _literals(tagged[0], path)
    if "parameter_set" in defaults:
        defaults = Experiment().to_dict() | {name: value for name, value in defaults.items() if value is not None}
    return [source for _, source in cells], defaults


def as_kind(name: str, value, default):
    """A parameter's value as the type of its default: text such as "false", "1e-3" or "[1, 2]" is read as YAML.

    Raises InputError, with an example, for what is of another type, outside RANGES or no name of a split. A whole
    number may stand where a number is.
    """
    value = _typed(name, value, default)
    if value == [] and default:
        raise InputError(f"{name}: an empty list leaves nothing to do; the default is {default}")
    for one in value if isinstance(value, list) else [value]:
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if isinstance(one, int | float) and not low <= one <= high:
            allowed = f"at least {low}" if high == math.inf else f"in {low}..{high}"
            raise InputError(f"{name}: {one!r} must be {allowed}")
        if name in SPLITS and (one != Path(one).name or one in (".", "..")):
            raise InputError(f"{name}: {one!r} must be the plain name of a split, for example 'test'")
    return value


def _typed(name: str, value, default):
    if isinstance(value, str) and not isinstance(default, str):
        value = parse_value(value)
    if type(default) is float and type(value) is int:
        return float(value)
    if type(default) is list and isinstance(value, list | tuple):
        return [_typed(name, item, default[0]) for item in value] if default else list(value)
    if default is None or type(value) is type(default):
        return value
    example = f", for example {default!r}" if default or default == 0 else ""
    text = "; papermill gives text with -r, a YAML file in quotes" if type(default) is str and value is not None else ""
    raise InputError(f"{name}: {value!r} is not {KIND_NAMES[type(default)]}{example}{text}")


def read_parameters(namespace: dict, notebook: str) -> None:
    """Check the parameters in a notebook's namespace, and turn text that means a value into it; call it first.

    Arguments: `namespace` the notebook's `globals()`; `notebook` its name, whose file tells names, types and defaults.
    Raises InputError for unknown names that papermill injected, and for the first value that cannot be used.
    """
    path = NOTEBOOKS / f"{notebook}.ipynb"
    defaults = read_notebook(path)[1]
    injected = _injected(namespace.get("In", []))
    unknown = [f"{name!r}{hint(name, defaults)}" for name in injected if name not in defaults]
    if unknown:
        raise InputError(f"no parameter of {path}: {', '.join(unknown)}")
    if injected and "parameter_set" in defaults and "parameter_set" not in injected:
        namespace["parameter_set"] = ""  # what papermill gives (-f notebooks/params/...) stands for itself
    for name in [name for name in defaults if name in namespace]:
        # In a training None means the parameter set's value; anything else but a literal is no parameter there, such as
        # a function of that name.
        if "parameter_set" not in defaults or isinstance(namespace[name], LITERALS):
            namespace[name] = as_kind(name, namespace[name], defaults[name])


def experiment(namespace: dict) -> Experiment:
    """The training that a notebook's parameters describe: its `parameter_set`, changed by what the notebook gives.

    Every name of a parameter in `namespace` (the notebook's `globals()`) counts that is a literal and not None.
    """
    given = {name: namespace[name] for name in Experiment().to_dict() if isinstance(namespace.get(name), LITERALS)}
    chosen = namespace.get("parameter_set", "")
    return Experiment.from_dict((_read_set(chosen) if chosen else {}) | given, source="notebook").resolved()


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
        for node in ast.parse(source).body:
            match node:
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                    defaults[name] = ast.literal_eval(value)
                case _:
                    raise ValueError(ast.unparse(node))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: the parameters cell holds more than lines of name = literal: {error}") from None
    return defaults
