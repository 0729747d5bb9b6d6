"""YAML as version 1.2 reads it: 010 is ten, 1e-4 a number, `no` and 1:30 are text, a key given twice is an error."""

import re
from pathlib import Path

import yaml

from lib.errors import InputError

KIND_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping",
}  # fmt: skip
# The core schema of YAML 1.2.2 (section 10.3.2) without octal and hexadecimal numbers: (tag, pattern, first letters).
CORE = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+.0123456789")),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """PyYAML, which reads version 1.1, with the plain values of version 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own way)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version would read as something else."""


for _tag, _pattern, _first in CORE:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^({_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))


def parse_value(text: str):
    """The value that `text` is in YAML; the text itself when it is no YAML."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def read_yaml(path) -> dict:
    """Read a YAML mapping (an empty file is an empty one). Raises InputError naming the file, for bad YAML the line."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; parameter sets live in notebooks/params") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, a number of 5,000 digits
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"{path} must hold a mapping of names to values, not {KIND_NAMES.get(type(values), values)}")
    return values or {}


def dump_yaml(values: dict) -> str:
    """A mapping as YAML, in its own order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
