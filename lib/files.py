"""Files written whole or not at all, text tables read as they stand, refusals told in one sentence."""

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lib.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems without locks answer
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


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
    except BaseException:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
        raise


def write_text(path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; its folder is made if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def locked(path, in_use: str) -> Iterator[None]:
    """Hold the lock file `path` inside, so that no other process does; raises InputError(in_use) when one does.

    Some network file systems have no locks. There the block runs without one, and a line on stderr says so. A lock
    ends with its process, however that ends, and processes forked inside do not hold it on; the file stays.
    """
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(in_use) from None
            if error.errno not in NO_LOCKS:
                raise
            print(f"{path}: this file system has no locks; let no other process write here", file=sys.stderr)
        yield


@contextmanager
def writing(folder, remedy: str) -> Iterator[None]:
    """Turn an OSError inside into an InputError about `folder`; for blocks whose only file errors are of writing."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); {remedy}") from None


@contextmanager
def explaining_disk_errors(folder, where: str) -> Iterator[None]:
    """Turn errors of a full disk and of missing permissions inside into an InputError; other errors pass.

    Arguments: `folder` that the block writes; `where` from which point the same command goes on.
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
        if getattr(error, "errno", None) in DENIED:
            raise InputError(
                f"{error.filename or folder}: {os.strerror(error.errno)}; ask its owner for the right to read it, or "
                "choose a folder that you may write with the parameter runs"
            ) from None
        raise


OTHERS = {  # how files of another kind begin
    b"version https://git-lfs": "a Git LFS pointer, the data are elsewhere: run `git lfs pull` in its repository",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"PK\x03\x04": "a zip: unpack it",
    b"<!DOCTYPE": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}
ENDS = {b"PAR1": b"PAR1", b"\x89PNG": b"IEND"}  # how a whole file begins and ends


def what_it_is(path) -> str:
    """' It is ...' for a file that is something else than its name says, with the remedy; else an empty text."""
    try:
        with open(path, "rb") as file:
            start, size = file.read(64), file.seek(0, os.SEEK_END)
            file.seek(max(size - 8, 0))
            end = file.read()
    except OSError:
        return ""
    head = start.lstrip()
    if not head:
        return " It is empty: copy it again."
    if any(head.startswith(first) and last not in end for first, last in ENDS.items()):
        return " It is cut short: copy it again."
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return " It is a HEIC or AVIF image: save it as JPEG or PNG."
    return next((f" It is {kind}." for start, kind in OTHERS.items() if head.startswith(start)), "")
