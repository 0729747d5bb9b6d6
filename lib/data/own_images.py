"""Any folder of images as a split without labels: which images it holds, and which prompt belongs to which.

An image is known by its path relative to the folder.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from lib.data.readers import Record
from lib.data.readers.files import EXTENSIONS, image_files
from lib.data.readers.record import shorten
from lib.data.regions import Problem
from lib.errors import InputError, nearest
from lib.files import what_it_is
from lib.ids import FORBIDDEN, ID_BYTES
from lib.records import parse_record, read_table, read_text_table

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # in an image folder of Hugging Face
COLUMNS = {  # of a table of prompts -> names that it may have; the first that is there counts
    "path": ("path", "file_name", "image", "file"),
    "prompt": ("prompt", "text", "caption", "prompt_en"),
}


def image_id(path: str) -> str:
    """The id of an image, which becomes a file name: its path, with what no file name may hold as %2F and the like."""
    unsafe = FORBIDDEN + "%"
    id = "".join(quote(one, safe="") if one in unsafe or not one.isprintable() else one for one in path)
    size = len(id.encode())
    return id if size <= ID_BYTES else f"{hashlib.sha256(path.encode()).hexdigest()[:16]}~{id[-50:]}"


def read_prompts(path) -> pd.DataFrame:
    """A table of prompts: CSV, JSON lines or Parquet with a row an image; its other columns stay as they are.

    Returns columns `path` (relative, with `/`), `prompt` (text, empty where there is none) and the others. Raises
    InputError when the file cannot be read or has no column for either (see COLUMNS).
    """
    path = Path(path)
    readers = {
        ".csv": read_text_table, ".jsonl": _read_lines, ".parquet": lambda path: read_table(path, {}, "write it again"),
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise InputError(f"{path} is no table of prompts that can be read; give {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist; correct the name of the file with the prompts")
    table = readers[path.suffix.lower()](path)
    for name, known in COLUMNS.items():
        present = next((column for column in known if column in table), None)
        if present is None:
            raise InputError(f"{path} has no column `{name}` (it has {', '.join(map(str, table))}); add it")
        table = table.rename(columns={present: name})
    table = table[table["path"].notna()]
    paths, prompts = table["path"].astype(str).map(_plain_path), table["prompt"].where(table["prompt"].notna(), "")
    if wrong := [prompt for prompt in prompts if not isinstance(prompt, str | int | float)]:
        raise InputError(f"{path} has the prompt {shorten(wrong[0])}, which is no text; give one text an image")
    return table.assign(path=paths, prompt=prompts.astype(str))


def prompts_of(folder, images: list[str], prompts="") -> dict[str, str]:
    """{path: prompt} of those images that have one.

    Args:
        prompts: a table as `read_prompts` takes it. Without one, what lies beside the images is used: METADATA in any
            of the folders, then a `.txt` of the same name.
    """
    folder = Path(folder)
    inside = sorted({folder / image.rpartition("/")[0] for image in images} | {folder})
    beside = [where / name for where in inside for name in METADATA if (where / name).is_file()]
    texts = {}
    for path in [prompts] if prompts else beside:
        texts = column_of(path, "prompt", folder, images) | texts
    for image in [] if prompts else images:
        caption = (folder / image).with_suffix(".txt")
        if image not in texts and caption.is_file():
            texts[image] = caption.read_text(encoding="utf-8-sig", errors="replace").strip()
    return texts


def column_of(prompts, column: str, folder, images) -> dict[str, object]:
    """{path: value} of a column of a table of prompts, for the images of a folder that it names; the first row counts.

    Paths in the table are absolute, relative to it, or to the folder. Raises InputError when the table has no such
    column, and as `read_prompts` does.
    """
    table = read_prompts(prompts)
    if column not in table:
        raise InputError(f"{prompts} has no column {column!r}{nearest(column, table)}; it has {', '.join(table)}")
    root, values = Path(folder).resolve(), {}
    known = {unicodedata.normalize("NFC", image): image for image in images}
    for path, value in zip(table["path"], table[column], strict=True):
        for base in (Path(prompts).resolve().parent, root):
            place = os.path.relpath(os.path.join(base, path), root).replace(os.sep, "/")
            if place in known:
                values.setdefault(known[place], value)
                break
    return values


def read_images(folder, prompts="", leave_out=None) -> tuple[list[str], Iterator, list[Problem]]:
    """A folder as a reader gives it (see `lib.data.readers`): every image is a record without label.

    Arguments and errors as of `image_files` and `prompts_of`; a folder without any image is an error, too.
    """
    folder, images = Path(folder), image_files(folder, leave_out)
    if not images:
        raise InputError(f"{folder} holds no image ({', '.join(EXTENSIONS)}), nor do its sub-folders")
    # A name may be bytes that are no UTF-8, which no table can hold.
    ids = {image: image_id(image) for image in images if image.encode(errors="replace").decode() == image}
    detail = "the file's name is no UTF-8; rename it"
    problems = [Problem(repr(image), "id refused", detail) for image in images if image not in ids]
    texts = prompts_of(folder, list(ids), prompts)
    records = (Record(id, folder / image, False, texts.get(image, "")) for image, id in ids.items())
    return list(ids.values()), records, problems


def _plain_path(given: str) -> str:
    return unicodedata.normalize("NFC", given.strip().replace("\\", "/").removeprefix("./"))


def _read_lines(path: Path) -> pd.DataFrame:
    rows = []
    # Not splitlines: a text may hold U+2028 and its like, which JSON leaves as they are.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").split("\n"), start=1):
        row, problem = parse_record(line, {}) if line.strip() else (None, "")
        if problem:
            raise InputError(f"{path}, line {number} {problem}.{what_it_is(path) or ' Repair or remove it.'}")
        rows += [row] if row else []
    # Half a surrogate pair has no UTF-8.
    return pd.DataFrame(json.loads(json.dumps(rows, ensure_ascii=False).encode("utf-8", "replace")))
