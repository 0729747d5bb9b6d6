"""What a notebook says about its parameters: names, defaults, and by them the types."""

import ast
import json
from pathlib import Path

from lib.errors import InputError

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


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
        try:
            [target] = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(node, ast.AugAssign):
                raise ValueError
            defaults[target.id] = ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            line = ast.unparse(node).splitlines()[0]
            raise InputError(f"{path}: the parameters cell may hold only name = literal, not: {line}") from None
    return defaults


def fits(value, default) -> bool:
    """Whether a value may stand in for a default: of the same kind, a whole number where a number is."""
    if default is None:
        return value is None or isinstance(value, (str, int, float))
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, list)
    return type(value) is type(default)


def wanted(default) -> str:
    """'a whole number such as 8': what `fits` asks for, in words."""
    return "a single value" if default is None else f"{KINDS[type(default)]} such as {default!r}"
