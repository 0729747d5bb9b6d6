"""Files written whole or not at all, text tables read as they stand, refusals told in one sentence."""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from lib.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path) -> Iterator[Path]:
    """A temporary name beside `path`, for a file or a folder, that takes its place when all is written.

    No reader sees half of it. A file there is replaced, a folder is not.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def clear_leftovers(*folders: Path) -> None:
    """Delete what `replacing` leaves in these folders when its process is killed."""
    for folder in folders:
        for path in folder.glob("*.part"):
            if re.search(r"\.\d+\.part$", path.name):
                path.unlink()


@contextmanager
def writing(folder, remedy: str) -> Iterator[None]:
    """Turn an OSError inside into an InputError about `folder`; for blocks whose only file errors are of writing."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); {remedy}") from None


@contextmanager
def full_disk_told(folder, where: str) -> Iterator[None]:
    """Turn the errors of a full disk inside into an InputError about `folder`; other errors pass.

    `where`: from which point the same command goes on.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors gives the system's error number in its message only.
        if getattr(error, "errno", None) in FULL or any(f"(os error {number})" in str(error) for number in FULL):
            raise InputError(
                f"{folder} cannot be written: the disk is full; free space and run the same command again, it goes on "
                f"{where}"
            ) from None
        raise


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


KINDS = {
    b"version https://git-lfs": "a Git LFS pointer, the data are elsewhere: run `git lfs pull` in its repository",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"PK\x03\x04": "a zip: unpack it",
    b"<!DOCTYPE": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}


def what_it_is(path) -> str:
    """' It is ...' for a file that is something else than its name says, with the remedy; else an empty text."""
    try:
        with open(path, "rb") as file:
            head = file.read(64).lstrip()
    except OSError:
        return ""
    if not head:
        return " It is empty: copy it again."
    return next((f" It is {kind}." for start, kind in KINDS.items() if head.startswith(start)), "")
