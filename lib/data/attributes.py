"""`attributes.csv`: further facts about the images of a raw split, which become columns of its manifest."""

from collections.abc import Container
from pathlib import Path

import pandas as pd

from lib.data.regions import Problem
from lib.errors import InputError
from lib.records import read_text_table

NONE = "sound"  # what an empty cell of `kinds` says: the image has no distortion
UNKNOWN = "unknown"  # the group of images of which an attribute is not told


def read_attributes(source: Path, taken: Container[str]) -> tuple[dict[str, dict] | None, list[Problem]]:
    """({id: {column: value}} of `<source>/attributes.csv`, problems); None when there is no such file.

    A column in which every filled cell is a number holds floats (empty cells NaN), any other text (empty cells "").
    Columns named in `taken` and repeated ids are reported and left out.
    Raises InputError when the file cannot be read or has no column `id`.
    """
    path = source / "attributes.csv"
    if not path.is_file():
        return None, []
    table = read_text_table(path)
    if "id" not in table:
        raise InputError(f"{path} has no column `id` (it has {', '.join(table)}); add it or remove the file")
    clash = [name for name in table if name in taken and name != "id"]
    problems = [Problem("", "attribute ignored", f"{path.name}: {name} is a manifest column") for name in clash]
    again = table["id"].duplicated()
    detail = f"{path.name} lists the id again; the first row is used"
    problems += [Problem(id, "duplicate attributes", detail) for id in table.loc[again, "id"]]
    return table[~again].drop(columns=clash).set_index("id").apply(_numbers).to_dict("index"), problems


def _numbers(column: pd.Series) -> pd.Series:
    filled = column.str.strip() != ""
    numbers = pd.to_numeric(column.where(filled), errors="coerce").astype("float64")
    return numbers if filled.any() and numbers[filled].notna().all() else column


def add_attributes(rows: list[dict], attributes: dict[str, dict], ids: list[str]) -> list[Problem]:
    """Put attributes into the rows of a manifest; `ids` are all ids of the split. Returns what does not fit."""
    for row in rows:
        row |= attributes.get(row["id"], {})
    missing = [row["id"] for row in rows if row["id"] not in attributes]
    unused = attributes.keys() - set(ids)
    problems = [Problem(id, "attributes missing", "attributes.csv has no row for the id") for id in missing]
    detail = "attributes.csv has a row, but the split no entry"
    return problems + [Problem(id, "attributes unused", detail) for id in attributes if id in unused]


def named(values: pd.Series) -> pd.Series:
    """A manifest's column as text without gaps: what is missing is UNKNOWN, an empty cell of `kinds` NONE."""
    text = values.astype(object).where(values.notna(), UNKNOWN).astype(str).str.strip()
    return text.mask(text == "", NONE if values.name == "kinds" else UNKNOWN)
