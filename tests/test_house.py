"""The rooms of `lib`: each imports only rooms above it, and none has grown out of sight."""

import ast
from pathlib import Path

LIB = Path(__file__).resolve().parents[1] / "lib"
MAIN_LINE = ["metrics", "data", "model", "predict", "train", "evaluate", "plots", "widgets"]
# Nothing of the main line imports these.
SIDE = ["challenge", "sharing", "doctor", "pipeline", "import_reference", "synthetic", "tiny"]
LONGEST = 350  # lines of a module


def room(module: str) -> str:
    """lib.train.loop -> train."""
    return (module.split(".") + [""])[1]


def imports() -> dict[str, set[str]]:
    """{room: rooms of lib that its modules import, inside functions as well}."""
    found = {}
    for path in LIB.rglob("*.py"):
        parts = path.relative_to(LIB.parent).with_suffix("").parts
        here = found.setdefault(room(".".join(parts)), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lib":
                names = [f"lib.{alias.name}" for alias in node.names] if node.module == "lib" else [node.module]
                here |= {room(name) for name in names}
            elif isinstance(node, ast.Import):
                here |= {room(alias.name) for alias in node.names if alias.name.startswith("lib.")}
    return {name: rooms - {name, "__version__"} for name, rooms in found.items()}


def test_rooms_import_only_rooms_above_them():
    found, wrong = imports(), []
    for number, name in enumerate(MAIN_LINE):
        wrong += [f"{name} imports {other}" for other in found[name] & {*MAIN_LINE[number + 1 :], *SIDE}]
    for name in set(found) - set(MAIN_LINE) - set(SIDE):  # small files: errors, files, config, ...
        wrong += [f"{name} imports {other}" for other in found[name] & {*MAIN_LINE, *SIDE}]
    assert not wrong


def test_no_two_rooms_import_each_other():
    found = imports()

    def reached(name, seen):
        for other in found.get(name, set()) - seen:
            seen.add(other)
            reached(other, seen)
        return seen

    assert not [name for name in found if name in reached(name, set())]


def test_modules_are_short_and_packages_hold_only_exports():
    for path in LIB.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST, path
        if path.name == "__init__.py":
            code = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            assert not code, f"{path} holds code; an __init__ only exports"
