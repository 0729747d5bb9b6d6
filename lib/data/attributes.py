"""`attributes.csv`: further facts about the images of a raw split, joined to its manifest."""

from collections.abc import Container
from pathlib import Path

import pandas as pd

from lib.data.regions import Problem
from lib.errors import InputError
from lib.files import read_text_table

NONE = "sound"  # what an empty cell of `kinds` says: the image has no distortion
UNKNOWN = "unknown"  # the group of images of which an attribute is not told


def read_attributes(source: Path, taken: Container[str]) -> tuple[pd.DataFrame | None, list[Problem]]:
    """Read `<source>/attributes.csv`; None when there is none.

    A column in which every filled cell is a number becomes float64 (empty cells null), any other stays text
    (empty cells ""). Columns named in `taken` and repeated ids are reported and left out.
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
    table = table[~again].drop(columns=clash)
    return table.apply(lambda column: column if column.name == "id" else _numbers(column)), problems


def _numbers(column: pd.Series) -> pd.Series:
    filled = column.str.strip() != ""
    numbers = pd.to_numeric(column.where(filled), errors="coerce").astype("float64")
    return numbers if filled.any() and numbers[filled].notna().all() else column


def join_attributes(manifest: pd.DataFrame, attributes: pd.DataFrame | None, ids: Container[str]) -> tuple:
    """(manifest with the attribute columns, problems); `ids` are all ids of the split's JSON."""
    if attributes is None:
        return manifest, []
    known = set(attributes["id"])
    missing = [id for id in manifest["id"] if id not in known]
    unused = [id for id in attributes["id"] if id not in ids]
    problems = [Problem(id, "attributes missing", "attributes.csv has no row for the id") for id in missing]
    problems += [Problem(id, "attributes unused", "attributes.csv has a row, but the JSON no entry") for id in unused]
    return manifest.merge(attributes, on="id", how="left", validate="one_to_one"), problems


def named(values: pd.Series) -> pd.Series:
    """A manifest's column as text without gaps: what is missing is UNKNOWN, an empty cell of `kinds` NONE."""
    text = values.astype(object).where(values.notna(), UNKNOWN).astype(str).str.strip()
    return text.mask(text == "", NONE if values.name == "kinds" else UNKNOWN)
