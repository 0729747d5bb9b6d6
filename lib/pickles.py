"""Reads pickles of NumPy arrays and plain containers from anyone.

A pickle is a program. Here Python's own reader follows only the instructions that containers, text, bytes, numbers and
arrays are written with (protocols 3 to 5). Nothing is imported: the NumPy names that arrays need are handled here.
Large bytes stay in the file until their array is asked for, and what is held in memory is bounded whatever the file
says.
"""

import math
import pickle
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.errors import InputError
from lib.files import what_it_is

MAX_BYTES = 4 * 2**30  # of a file
MAX_REST = 8 * 2**20  # bytes beside large ones; 10,000 images take about 2 MiB
MAX_STEPS = 1_500_000  # instructions and their arguments; an image takes about 70, and 4 GiB hold 16,000 of 512 x 512
MAX_NAME = 1000  # bytes
REMEDY = 'save a plain dict {id: {"score": float, "pred_area": uint8 array}} with pickle protocol 4 and ids as text'
DTYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}
MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")  # of NumPy 2 and NumPy 1
NUMERIC = ("numpy._core.numeric", "numpy.core.numeric")
LARGE = {"BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}  # with the number of bytes that their length takes
INSTRUCTIONS = (
    "PROTO", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "REDUCE",
)  # fmt: skip


class RefusedError(Exception):
    """The reason why a file is not read, as the end of a sentence."""


class LargeBytes(NamedTuple):
    """Bytes that stay in the file."""

    offset: int
    size: int


class StoredArray:
    """An array in a pickle; `np.asarray` reads it from the file, each time anew."""

    __slots__ = ("data", "dtype", "order", "path", "shape")

    def __init__(self, path: Path):
        self.path = path
        self.shape, self.dtype, self.order, self.data = (0,), np.dtype("u1"), "C", b""  # until its state is read

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        data = self.data
        if isinstance(data, LargeBytes):
            with open(self.path, "rb") as file:
                file.seek(data.offset)
                data = file.read(data.size)
        return np.array(np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order), dtype, copy=copy)


class _DType:
    """A dtype in the making: `dtype("u1", False, True)`, then its state with the byte order."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or code not in DTYPES:
            raise RefusedError("holds a dtype other than booleans, integers and floats")
        self.dtype = np.dtype(code)


def load_pickle(path, max_bytes: int = MAX_BYTES, name: str = ""):
    """Read a pickle of plain containers, numbers, text and numeric arrays.

    Arguments: `path` the file, of up to `max_bytes`; `name` what messages call it, the path by default. Returns its
    content, arrays as `StoredArray` and bytes of more than 255 as `LargeBytes`. Raises InputError, in one sentence
    with that name, for everything else.
    """
    path = Path(path)
    name = name or str(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise RefusedError(f"has {size} bytes, more than the {max_bytes} allowed")
        with open(path, "rb") as file:
            content = _Unpickler(_Bounded(file, size), partial(StoredArray, path)).load()
            if file.read(1):
                raise RefusedError("goes on after its end")
            return content
    except RefusedError as reason:
        known = what_it_is(path)
        raise InputError(f"{name} is refused: it {reason}; {REMEDY}{known and '.' + known}") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None
    except (EOFError, LookupError, TypeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        # Their own words may quote the file at length, so only their kind is told.
        known = what_it_is(path) or f" Copy it again, or {REMEDY}."
        raise InputError(f"{name} is not a whole pickle ({type(error).__name__}).{known}") from None


class _Bounded:
    """A file of which at most MAX_REST bytes and MAX_STEPS pieces are read, refused before memory is set aside."""

    def __init__(self, file, size: int):
        self.file, self.size, self.left, self.steps = file, size, MAX_REST, MAX_STEPS

    def read(self, count: int) -> bytes:
        self.left, self.steps = self.left - count, self.steps - 1
        if self.left < 0:
            raise RefusedError(f"holds more than {MAX_REST} bytes beside its masks")
        if self.steps < 0:
            raise RefusedError(f"takes more than {MAX_STEPS} steps")
        data = self.file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def readline(self) -> bytes:
        line = self.file.readline(MAX_NAME)
        self.left -= len(line)
        return line

    def skip(self, size: int) -> LargeBytes:
        part = LargeBytes(self.file.tell(), size)
        if part.offset + size > self.size:
            raise EOFError
        self.file.seek(size, 1)
        return part


class _Unpickler(pickle._Unpickler):  # the one that is written in Python: its instructions can be chosen
    """Every instruction pushes at most one thing, so their number bounds the memory."""

    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in INSTRUCTIONS}

    def __init__(self, file: _Bounded, new_array):
        super().__init__(file)
        self.skip, self.new_array = file.skip, new_array

    def load_frame(self):  # frames are not needed to read on
        self.read(8)

    def load_large(self, width: int):
        self.append(self.skip(int.from_bytes(self.read(width), "little")))

    def load_setitem(self):
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        self._check_keys(self.stack[::2])
        super().load_setitems()

    @staticmethod
    def _check_keys(keys: list) -> None:
        # Hashing nested tuples that share their parts could take for ever.
        if not all(isinstance(key, str) for key in keys):
            raise RefusedError("has a dict key that is not text")

    def find_class(self, module: str, name: str):
        """What NumPy's names mean here; each is called with whatever the file says. Every other name is refused."""
        if (module, name) == ("numpy", "dtype"):
            return _DType
        if (module, name) == ("numpy", "ndarray"):
            return name  # is only handed to `_reconstruct`
        if name == "_reconstruct" and module in MULTIARRAY:
            return lambda *_: self.new_array()
        if name == "scalar" and module in MULTIARRAY:
            return lambda dtype, data: np.asarray(_filled(self.new_array(), (), dtype, "C", data))[()]
        if name == "_frombuffer" and module in NUMERIC:
            return lambda data, dtype, shape, order: _filled(self.new_array(), shape, dtype, order, data)
        raise RefusedError(f"asks for {module[:60]}.{name[:60]}")

    def load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StoredArray):
            _, shape, dtype, fortran, data = state
            _filled(target, shape, dtype, "F" if fortran is True else "C", data)
        elif isinstance(target, _DType):
            _, order, *fields = state
            if order not in ("|", "<", ">", "=") or any(part is not None for part in fields[:3]):
                raise RefusedError("holds a dtype with fields")
            target.dtype = target.dtype.newbyteorder(order)
        else:
            raise RefusedError("changes something that is no array")

    dispatch |= {pickle.FRAME[0]: load_frame, pickle.BUILD[0]: load_build}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}
    for _name, _width in LARGE.items():
        dispatch[getattr(pickle, _name)[0]] = partial(load_large, width=_width)


def _filled(array: StoredArray, shape, dtype, order, data) -> StoredArray:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | LargeBytes):
        raise RefusedError("holds an array without plain bytes")
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise RefusedError("holds an array with an impossible shape")
    size = data.size if isinstance(data, LargeBytes) else len(data)
    if math.prod(shape) * dtype.dtype.itemsize != size:
        raise RefusedError(f"holds an array of shape {shape} with {size} bytes"[:120])
    array.shape, array.dtype, array.order, array.data = shape, dtype.dtype, "F" if order == "F" else "C", data
    return array
