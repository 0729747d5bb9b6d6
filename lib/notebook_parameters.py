"""What notebooks make of their parameters: unknown ones refused, the recipe of a training, where the data are."""

import ast
import os
from dataclasses import fields
from pathlib import Path

from lib.config import EXPONENT, Experiment, read_yaml
from lib.errors import InputError, nearest

SETS = Path("notebooks/params")
DEMO = Path("data/demo/raw")


def refuse_unknown_parameters(cells: list[str]) -> None:
    """Refuse a parameter that papermill injected and the notebook does not have; papermill itself only warns.

    `cells` is IPython's `In`. The injected cell begins with `# Parameters`; the cell tagged `parameters` runs
    directly before it.
    """
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.startswith("# Parameters\n"):
            known, given = _assigned(before), _assigned(cell)
            unknown = [f"{name!r}{nearest(name, known)}" for name in given if name not in known]
            if unknown:
                raise InputError(f"no parameter of this notebook: {', '.join(unknown)}")


def experiment(namespace: dict, cells: list[str] = ()) -> Experiment:
    """The training that a notebook's parameters describe, with a settled name.

    Arguments: `namespace` the notebook's `globals()`, `cells` IPython's `In`. What the cell leaves at its default comes
    from the file that `parameter_set` names, and is printed, since the cell shows other values; papermill's parameters
    stand for themselves, unless they name one, too.
    """
    given = {field.name: namespace[field.name] for field in fields(Experiment) if field.name in namespace}
    for field in fields(Experiment):  # papermill's -f reads YAML 1.1, where 1e-4 is text
        value = given.get(field.name)
        if field.type is float and isinstance(value, str) and EXPONENT.match(value):
            given[field.name] = float(value)
    injected = [name for cell in cells if cell.startswith("# Parameters\n") for name in _assigned(cell)]
    chosen = namespace.get("parameter_set", "")
    if chosen and (not injected or "parameter_set" in injected):
        defaults = Experiment().to_dict()
        own = {name: value for name, value in given.items() if name in injected or value != defaults[name]}
        from_set = {name: value for name, value in _read_set(chosen).items() if name not in own}
        shown = ", ".join(f"{name} {value}" for name, value in from_set.items() if value != given.get(name))
        print(f"From {chosen}: {shown or 'nothing that the cell above does not have'}.")
        given |= from_set
    return Experiment.from_dict(given, source="notebook").settled()


def _read_set(name: str) -> dict:
    path = SETS / f"{name}.yaml"
    known = sorted(path.stem for path in SETS.glob("*.yaml") if "steps" not in read_yaml(path))
    if name not in known:
        raise InputError(f"parameter_set: {name!r} is none of {SETS}{nearest(name, known)}: {', '.join(known)}")
    return read_yaml(path)


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


def _assigned(source: str) -> list[str]:
    targets = [node.targets[0] for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
