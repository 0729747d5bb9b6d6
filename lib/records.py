"""One border for the kit's own files: Parquet tables, JSON records and logs of JSON lines, checked when they are read.

A disk that was full, Git LFS, a copy between machines and an edit by hand all leave files that look like ours. Each
reader is told which columns or fields it needs; what does not fit raises an InputError that names the file, what is
wrong with it and how to make it again.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, UnionType

import numpy as np
import pandas as pd
import pyarrow
from pandas.api import types
from pyarrow.parquet import ParquetFile

from lib.errors import InputError
from lib.files import what_it_is
from lib.yaml_files import KIND_NAMES

FORMAT = 1  # the highest `format` of a record that this version understands
# Of a record: a name that ends in ? may be missing, a mapping is a record in it, or null, and a function says whether a
# value is what its docstring calls it.
Fields = Mapping[str, type | UnionType | Mapping | FunctionType]
METRICS = {  # of a row of metrics.jsonl
    "step": int, "seconds": float, "stage?": str, "epoch?": int, "lr?": float, "loss?": float | None,
    "mask_loss?": float | None, "score_loss?": float | None,
}  # fmt: skip
NAMES = KIND_NAMES | {dict: "a record", type(None): "null"}
FITS = {
    str: lambda column: types.is_string_dtype(column) and column.notna().all(),
    float: lambda column: types.is_numeric_dtype(column) and not types.is_bool_dtype(column),
    int: types.is_integer_dtype,
    bool: types.is_bool_dtype,
    list: lambda column: column.map(type).eq(np.ndarray).all(),
}


def read_table(path, columns: Mapping[str, type], remedy: str) -> pd.DataFrame:
    """A Parquet table that has these columns, each with its type (`str`, `float`, `int`, `bool` or `list`).

    A `float` column may hold nulls and whole numbers. Further columns come along. `remedy` is a clause that tells how
    the file is made again, such as "run notebook 3 again".
    """
    try:
        with ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            table = pd.DataFrame() if missing else file.read().to_pandas()
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise _unusable(path, error, "is no readable Parquet table", remedy) from None
    if missing:
        raise _unusable(path, None, f"has no column {', '.join(missing)}", remedy)
    for name, kind in columns.items():
        if len(table) and not FITS[kind](table[name]):
            raise _unusable(path, None, f"holds something else than {NAMES[kind]} in the column {name}", remedy)
    return table


def read_text_table(path) -> pd.DataFrame:
    """A CSV table with every cell as text; raises InputError when it is none or a row does not fit its header.

    Left to itself pandas reads the ids "007" and "NA" as a number and as nothing, and cuts long rows.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # ValueError: also what pandas' parser raises
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is not a readable CSV table ({reason}); repair or remove it") from None


def read_record(path, fields: Fields, remedy: str) -> dict:
    """The object in a JSON file that has these fields.

    A type may be a union such as `float | None`; a `float` may be whole. Further fields pass. `remedy` as in
    `read_table`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unusable(path, error, "is no text in UTF-8", remedy) from None
    record, problem = parse_record(text, fields)
    if isinstance(record.get("format"), int) and record["format"] > FORMAT:
        problem = f"has format {record['format']} of a newer version of this kit, which reads {FORMAT}; update the kit"
    if problem:
        raise _unusable(path, None, problem, remedy)
    return record


def read_lines(path, fields: Fields, remedy: str) -> tuple[list[dict], list[str]]:
    """The records in a file with one a line, and what is wrong with each other line, as "line 3 is no JSON".

    Half a line at the end, which a killed process leaves, does not count. A file that is not there has no lines.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise _unusable(path, error, "", remedy) from None
    records, problems = [], []
    # Not splitlines: a text may hold U+2028 and its like, which JSON leaves as they are.
    *lines, last = text.split("\n")
    for number, line in enumerate([*lines, last] if last.endswith("}") else lines, 1):
        if line.strip():
            record, problem = parse_record(line, fields)
            problems += [f"line {number} {problem}"] if problem else []
            records += [] if problem else [record]
    return records, problems


def read_metrics(folder) -> list[dict]:
    """The rows of a run's `metrics.jsonl`; a half-written last line (a killed run) does not count.

    Beside its values a row has `step` of `total` optimizer steps, `stage` and `epoch`, and the `seconds` that the run
    has taken and has `left`.
    """
    path = Path(folder) / "metrics.jsonl"
    rows, problems = read_lines(path, METRICS, "train again under another experiment_name")
    if problems:
        raise InputError(f"{path}: {problems[0]}; delete that line")
    return rows


def parse_record(text: str, fields: Fields) -> tuple[dict, str]:
    """(record, "") of a JSON text, or ({}, what is wrong with it)."""
    try:
        record = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        cut = getattr(error, "pos", 0) >= len(text.rstrip()) or str(error).startswith("Unterminated string")
        return {}, "is cut short" if cut and text.strip() else "is no JSON"
    problem = _problem(record, fields)
    return ({}, problem) if problem else (record, "")


def _problem(record, fields: Fields) -> str:
    if not isinstance(record, dict):
        return "is no JSON object"
    if missing := {name for name in fields if not name.endswith("?")} - record.keys():
        return f"holds no {min(missing)}"
    for name, kind in fields.items():
        name = name.removesuffix("?")
        value = record.get(name)
        if isinstance(kind, Mapping):
            if value is not None and (problem := _problem(value, kind)):
                return f"holds in {name} what {problem}"
        elif name in record:
            wrong = f"holds {name} = {json.dumps(value)[:40]}, which is not"
            if isinstance(kind, FunctionType):
                if not kind(value):
                    return f"{wrong} {kind.__doc__}"
                continue
            kinds = getattr(kind, "__args__", (kind,))  # of a union
            allowed = {*kinds, int} if float in kinds else {*kinds}
            if type(value) not in allowed:  # not isinstance, to which true is a number
                return f"{wrong} {' or '.join(NAMES[one] for one in kinds)}"
    return ""


def _unusable(path, error: Exception | None, problem: str, remedy: str) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist; {remedy}")
    if isinstance(error, PermissionError):
        return InputError(f"{path} may not be read by you (permission denied); ask its owner for access")
    known = what_it_is(path)
    return InputError(f"{path} {problem}.{known} {f'Or {remedy}' if known else remedy[0].upper() + remedy[1:]}.")
