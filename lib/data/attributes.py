"""`attributes.csv`: further facts about the images of a raw split, which become columns of its manifest."""

from collections.abc import Container
from pathlib import Path

import pandas as pd

from lib.errors import InputError
from lib.records import read_text_table

NONE = "sound"  # what an empty cell of `kinds` says: the image has no distortion
UNKNOWN = "unknown"  # the group of images of which an attribute is not told


def read_attributes(source: Path, taken: Container[str]) -> pd.DataFrame:
    """`<source>/attributes.csv` with a row an id, which is the index; without columns when there is no such file.

    A column in which every filled cell is a number holds floats (empty cells NaN), any other text (empty cells "").
    Raises InputError when the file cannot be read, has no column `id`, an id twice or a column that is `taken`.
    """
    path = source / "attributes.csv"
    if not path.is_file():
        return pd.DataFrame()
    table = read_text_table(path)
    if "id" not in table:
        raise InputError(f"{path} has no column `id` (it has {', '.join(table)}); add it or remove the file")
    if clash := [name for name in table if name in taken and name != "id"]:
        raise InputError(f"{path} has a column {clash[0]}, which every manifest has; rename or remove it")
    if table["id"].duplicated().any():
        raise InputError(f"{path} holds {table['id'][table['id'].duplicated()].iloc[0]} twice; remove one of the rows")
    return table.set_index("id").apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    filled = column.str.strip() != ""
    numbers = pd.to_numeric(column.where(filled), errors="coerce").astype("float64")
    return numbers if filled.any() and numbers[filled].notna().all() else column


def named(values: pd.Series) -> pd.Series:
    """A manifest's column as text without gaps: what is missing is UNKNOWN, an empty cell of `kinds` NONE."""
    text = values.astype(object).where(values.notna(), UNKNOWN).astype(str).str.strip()
    return text.mask(text == "", NONE if values.name == "kinds" else UNKNOWN)
