"""Large bytes and arrays of a pickle, which stay in its file until they are asked for."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lib.challenge.pickle_scan import RefusedError
from lib.errors import InputError


@dataclass(frozen=True)
class Source:
    """A pickle, as a path or as its bytes, and what messages call it."""

    content: bytes | Path
    name: str

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else open(self.content, "rb")


class StoredBytes:
    """Large bytes in a pickle; `read` takes them from the file. A pickle can make arrays of them and not change them.

    `size` is their number in the file and `length` what they are read to, which is less for text of protocol 2.
    Reading raises InputError when the file has become shorter since or the text is none, OSError when it cannot be
    read.
    """

    __slots__ = ("length", "offset", "size", "source")

    def __init__(self, source: Source, offset: int, size: int, length: int):
        self.source, self.offset, self.size, self.length = source, offset, size, length

    def __len__(self) -> int:
        return self.length

    def __setstate__(self, state):
        # Without this BUILD could set another source.
        raise RefusedError("changes bytes")

    def read(self) -> bytes:
        with self.source.open() as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise InputError(f"{self.source.name} became shorter while it was read; copy or export it again")
        if self.length == self.size:
            return data
        try:
            return data.decode("utf-8").encode("latin1")
        except UnicodeError:
            raise InputError(f"{self.source.name} holds an array of damaged text; use pickle protocol 4") from None


@dataclass(frozen=True)
class StoredArray:
    """An array in a pickle. `np.asarray` reads it (read-only, each time anew), with the errors of `StoredBytes`."""

    data: bytes | StoredBytes
    dtype: np.dtype
    shape: tuple[int, ...]
    order: str

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        data = self.data.read() if isinstance(self.data, StoredBytes) else self.data
        array = np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order)
        return np.array(array, dtype, copy=copy)
