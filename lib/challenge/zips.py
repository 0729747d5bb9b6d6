"""One file out of a zip from anyone, within bounds on memory and disk."""

import io
import tempfile
import zipfile
from pathlib import Path

from lib.challenge.pickle_scan import RefusedError
from lib.errors import InputError

MAX_MEMBERS = 64
MAX_READ = 2**17  # bytes; to find a zip's directory, zipfile reads its last 65,557
# Deflate makes at most 1,032 bytes of one. LZMA and bzip2 make many more, and take the memory that the file asks for.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _InPieces(io.BufferedReader):
    """A file of which nobody reads more than MAX_READ bytes at once: zipfile would read a directory of any size."""

    def read(self, size=-1):
        data = super().read(MAX_READ + 1 if size is None or size < 0 else min(size, MAX_READ + 1))
        if len(data) > MAX_READ:
            raise RefusedError("has a long directory")
        return data


def unpack(path: Path, name: str, target: Path, max_bytes: int) -> None:
    """Copy the file `name` out of a zip to `target`, whatever the zip says of its size, up to `max_bytes`.

    Raises InputError naming the zip when there is no such file, more than one, or anything suspicious about it.
    """
    try:
        _unpack(path, name, target, max_bytes)
    except RefusedError as reason:
        remedy = f"it must hold one {name} of up to {max_bytes} bytes, stored or deflated, and little else"
        raise InputError(f"{path} is refused: it {reason}; {remedy}") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{path} cannot be unpacked into {tempfile.gettempdir()}: {reason}; free space there"
        ) from None
    except Exception as error:
        # zipfile raises BadZipFile, zlib.error, RuntimeError (encrypted), EOFError, ...
        raise InputError(f"{path} is not a zip file that can be read ({type(error).__name__}); zip it again") from None


def _unpack(path: Path, name: str, target: Path, max_bytes: int) -> None:
    if path.stat().st_size > max_bytes:
        raise RefusedError(f"has {path.stat().st_size} bytes")
    with _InPieces(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        members = archive.namelist()
        if len(members) > MAX_MEMBERS or members.count(name) != 1:
            raise RefusedError(f"holds {len(members)} files")
        if archive.getinfo(name).compress_type not in METHODS:
            raise RefusedError(f"has compressed {name} by another method")
        with archive.open(name) as source, open(target, "wb") as copy:
            while block := source.read(MAX_READ // 2):
                if copy.tell() + len(block) > max_bytes:
                    raise RefusedError("unpacks to more than that")
                copy.write(block)
