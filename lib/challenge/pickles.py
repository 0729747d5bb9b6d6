"""Reads pickles of NumPy arrays and plain containers from anyone, without `pickle`.

A pickle is a program. This module follows the few instructions that containers, text, bytes, numbers and arrays are
written with (protocols 3 to 5) and refuses every other. Nothing is imported or called: the NumPy names that arrays
need are handled here. Large bytes stay in the file until their array is asked for, and what is held in memory is
bounded whatever the file says.
"""

import math
import pickletools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.errors import InputError
from lib.files import what_it_is

MAX_BYTES = 4 * 2**30  # of a file
MAX_REST = 8 * 2**20  # bytes beside large ones; 10,000 images take about 2 MiB
MAX_INSTRUCTIONS = 700_000  # an image takes about 40, and 4 GiB hold 16,000 masks of 512 x 512
MAX_NAME = 1000  # bytes
REMEDY = 'save a plain dict {id: {"score": float, "pred_area": uint8 array}} with pickle protocol 4 and ids as text'
DTYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}
MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")  # of NumPy 2 and NumPy 1
NUMERIC = ("numpy._core.numeric", "numpy.core.numeric")
# Instructions, by their names in `pickletools`.
NEW = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES"}
LARGE = {"BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}  # with the number of bytes that their length takes
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class RefusedError(Exception):
    """The reason why a file is not read, as the end of a sentence."""


class LargeBytes(NamedTuple):
    """Bytes that stay in the file."""

    offset: int
    size: int


class StoredArray:
    """An array in a pickle; `np.asarray` reads it from the file, each time anew.

    Reading raises InputError when the file has become shorter since, OSError when it cannot be read.
    """

    __slots__ = ("data", "dtype", "name", "order", "path", "shape")

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
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
        if len(data) != self.nbytes:
            raise InputError(f"{self.name} became shorter while it was read; copy or export it again")
        return np.array(np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order), dtype, copy=copy)


class _Name(NamedTuple):
    """A name that a pickle asks for, of whatever type; only `_call` gives it a meaning."""

    module: object
    name: object


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
            content = _follow(file, size, lambda: StoredArray(path, name))
            if file.read(1):
                raise RefusedError("goes on after its end")
            return content
    except RefusedError as reason:
        known = what_it_is(path)
        raise InputError(f"{name} is refused: it {reason}; {REMEDY}{known and '.' + known}") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None
    except (EOFError, IndexError, KeyError, TypeError, ValueError) as error:
        # Their own words may quote the file at length, so only their kind is told.
        known = what_it_is(path) or " Copy or export it again."
        raise InputError(f"{name} is not a whole pickle ({type(error).__name__}).{known}") from None


class _Bounded:
    """What `pickletools` reads instructions from: at most MAX_REST bytes, refused before memory is set aside."""

    def __init__(self, file):
        self.file, self.left = file, MAX_REST

    def read(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise RefusedError(f"holds more than {MAX_REST} bytes beside its masks")
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline(MAX_NAME)
        self.left -= len(line)
        return line


def _follow(file, size: int, new_array):
    """What the instructions build; every one pushes at most one thing, so their number bounds the memory."""
    stack, marks, memo, bounded = [], [], {}, _Bounded(file)

    def above_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for _ in range(MAX_INSTRUCTIONS):
        opcode = pickletools.code2op[bounded.read(1).decode("latin1")]
        name, argument = opcode.name, None
        if opcode.arg and name not in LARGE:
            argument = opcode.arg.reader(bounded)
        if name in NEW:
            stack.append(NEW[name]())
        elif name in VALUES:
            stack.append(argument)
        elif name in LARGE:
            part = LargeBytes(size=int.from_bytes(bounded.read(LARGE[name]), "little"), offset=file.tell())
            if part.offset + part.size > size:
                raise EOFError
            file.seek(part.size, 1)
            stack.append(part)
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else above_mark()
            _plain(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else above_mark()
            # Text keys only: hashing nested tuples that share their parts could take for ever.
            if not all(isinstance(key, str) for key in items[::2]):
                raise RefusedError("has a dict key that is not text")
            _plain(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Name(*stack[-2:])]
        elif name == "REDUCE":
            stack[-2:] = [_call(*stack[-2:], new_array)]
        elif name == "BUILD":
            state = stack.pop()
            _set_state(stack[-1], state)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise RefusedError(f"uses the pickle instruction {name}")
    raise RefusedError(f"has more than {MAX_INSTRUCTIONS} instructions")


def _plain(value, kind: type):
    if type(value) is not kind:
        raise RefusedError("fills something that is no plain list or dict")
    return value


def _call(function, arguments, new_array):
    """What NumPy would make of a call that arrays are pickled with; every other is refused unseen."""
    if not isinstance(function, _Name) or not all(isinstance(part, str) for part in function):
        raise RefusedError("calls something that is no function")
    module, name = function
    if (module, name) == ("numpy", "dtype"):
        return _DType(*arguments)
    if name == "_reconstruct" and module in MULTIARRAY and arguments[0] == _Name("numpy", "ndarray"):
        return new_array()
    if name == "scalar" and module in MULTIARRAY:
        dtype, data = arguments
        return np.asarray(_filled(new_array(), (), dtype, "C", data))[()]
    if name == "_frombuffer" and module in NUMERIC:
        data, dtype, shape, order = arguments
        return _filled(new_array(), shape, dtype, order, data)
    raise RefusedError(f"asks for {module[:60]}.{name[:60]}")


def _set_state(target, state) -> None:
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
