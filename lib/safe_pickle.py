"""Reads pickles of NumPy arrays and plain containers, and nothing else.

A pickle is a program, so a stranger's file is not handed to `pickle.load`. First its instructions are scanned
without running them: only those that build containers, text, bytes and numbers may occur, within bounds on size,
number, nesting and memo. Then it is loaded by an unpickler to which no class is known: the few NumPy names that
arrays need stand for checked replacements below, and every array is made from bytes that the file really holds.
"""

import io
import math
import mmap
import pickle
import pickletools
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lib.errors import InputError

MAX_BYTES = 4 * 2**30
MAX_INSTRUCTIONS = 4_000_000  # a submission takes about 50 an image
MAX_DEPTH = 32
# What `pickle` writes for containers, text, bytes, numbers and arrays in the protocols 2 to 5.
ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND",
    "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
TARGETS = {"APPEND": "list", "APPENDS": "list", "SETITEM": "dict", "SETITEMS": "dict"}
DTYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}


class RefusedError(Exception):
    """The reason why a pickle is not read, as the end of a sentence."""


def load_pickle(source, max_bytes: int = MAX_BYTES):
    """Read a pickle from a path or from bytes; arrays come read-only, as views of the bytes in the file.

    Raises InputError, in one sentence that names the file, for everything that is not a whole, bounded pickle of
    plain containers and numeric arrays. Nothing in the file is executed in any case.
    """
    name = "The pickle" if isinstance(source, bytes) else str(source)
    try:
        with _opened(source, max_bytes) as (stream, size):
            _scan(stream, size)
            stream.seek(0)
            return _plain(_Unpickler(stream, size).load(), {})
    except RefusedError as reason:
        raise InputError(f"{name} is refused: it {reason}; ask for a pickle of plain dicts and NumPy arrays") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        # Damaged streams raise almost anything: ValueError, EOFError, UnpicklingError, IndexError, TypeError.
        # Their own words may quote the file at length, so only their kind is told.
        raise InputError(f"{name} is not a whole pickle ({type(error).__name__}); copy or export it again") from None


@contextmanager
def _opened(source, max_bytes):
    """Yield a seekable stream whose reads never exceed what is there, and its size in bytes."""
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size > max_bytes:
        raise RefusedError(f"has {size} bytes, more than the {max_bytes} allowed")
    if isinstance(source, bytes) or size == 0:
        yield io.BytesIO(source if size else b""), size
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        yield stream, size


def _scan(stream, size: int) -> None:
    """Follow the instructions on a stack of (kind, depth) and refuse what no submission needs."""
    stack, memo = [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name not in ALLOWED:
            raise RefusedError(f"uses the pickle instruction {opcode.name}")
        if count > MAX_INSTRUCTIONS:
            raise RefusedError(f"has more than {MAX_INSTRUCTIONS} instructions")
        if opcode.name == "FRAME" and argument > size:
            raise RefusedError("announces a frame longer than itself")
        _follow(opcode, argument, stack, memo)
        if stack and stack[-1][1] > MAX_DEPTH:
            raise RefusedError(f"nests deeper than {MAX_DEPTH} levels")
    if stream.tell() != size:
        raise RefusedError("goes on after its end")


def _follow(opcode, argument, stack: list, memo: dict) -> None:
    if opcode.name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
        return
    if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
        slot = len(memo) if argument is None else argument
        # The unpickler allocates up to the highest slot, so a file may not name one far beyond those in use.
        if slot > len(memo):
            raise RefusedError("uses its memo out of order")
        memo[slot] = stack[-1]
        return
    taken = _take(opcode.stack_before, stack)
    if opcode.name in TARGETS:
        if taken[0][0] != TARGETS[opcode.name]:
            raise RefusedError("fills something that is no list or dict")
        # Text keys only: hashing nested tuples that share their parts could take for ever.
        if TARGETS[opcode.name] == "dict" and any(kind != "str" for kind, _ in taken[1::2]):
            raise RefusedError("has a dict key that is not text")
    depth = 1 + max((depth for _, depth in taken), default=-1)
    if opcode.name in TARGETS:
        depth = max(taken[0][1], 1 + max((depth for _, depth in taken[1:]), default=0))
    stack.extend((result.name, depth) for result in opcode.stack_after)


def _take(expected, stack: list) -> list:
    """Pop what an instruction takes; with a mark, everything above the last mark, and what it wants below."""
    if pickletools.markobject not in expected:
        taken = stack[len(stack) - len(expected) :]
        if len(taken) < len(expected):
            raise RefusedError("takes more than it has built")
        del stack[len(stack) - len(expected) :]
        return taken
    above = []
    while stack[-1][0] != "mark":
        above.append(stack.pop())
    stack.pop()
    below = [stack.pop()] if expected[0] is not pickletools.markobject else []
    return below + above[::-1]


class _Unpickler(pickle.Unpickler):
    """Knows no class; gives checked stand-ins for the NumPy names that arrays are pickled with."""

    def __init__(self, stream, size: int):
        super().__init__(stream, encoding="latin1")
        self.bytes_left = size

    def find_class(self, module, name):
        module = module.replace("numpy.core.", "numpy._core.")  # NumPy 1 and NumPy 2
        known = {
            ("numpy", "ndarray"): lambda: _Callable(None),
            ("numpy", "dtype"): lambda: _Callable(_DType),
            ("numpy._core.multiarray", "_reconstruct"): lambda: _Callable(lambda *_: _Array()),
            ("numpy._core.multiarray", "scalar"): lambda: _Callable(_scalar),
            ("numpy._core.numeric", "_frombuffer"): lambda: _Callable(_array),
            ("_codecs", "encode"): lambda: _Callable(self.encode),
            ("__builtin__", "bytes"): lambda: _Callable(lambda: b""),  # protocol 2 has no empty bytes
        }
        if (module, name) not in known:
            raise RefusedError(f"asks for {module[:60]}.{name[:60]}")
        return known[module, name]()

    def encode(self, text, encoding):
        """Bytes as protocol 2 writes them; one text may not be encoded over and over to fill the memory."""
        self.bytes_left -= len(text)
        if encoding != "latin1" or self.bytes_left < 0:
            raise RefusedError("encodes more text than it holds")
        return text.encode("latin1")


class _Callable:
    """A function that a pickle can call and not change: BUILD finds no attribute to set."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        if self.function is None:
            raise RefusedError("makes an array that is not a plain one")
        return self.function(*arguments)

    def __setstate__(self, state):
        raise RefusedError("changes a function")


class _DType:
    """A numeric dtype in the making: `dtype("u1", False, True)`, then its state with the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code, *_):
        if code not in DTYPES:
            raise RefusedError(f"holds the dtype {str(code)[:20]!r}, and only booleans, integers and floats are read")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        if state[1] not in ("|", "<", ">", "=") or any(part is not None for part in state[2:5]):
            raise RefusedError("holds a dtype with fields")
        self.order = state[1]

    def real(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """An array in the making, replaced by the real one when the file is read."""

    __slots__ = ("value",)

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C").value


def _array(data, dtype, shape, order) -> _Array:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise RefusedError("holds an array without plain bytes")
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise RefusedError("holds an array with an impossible shape")
    if math.prod(shape) * dtype.real().itemsize != len(data):
        raise RefusedError(f"holds an array of shape {shape} with {len(data)} bytes"[:120])
    array = _Array()
    array.value = np.frombuffer(data, dtype.real()).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype, data):
    return _array(data, dtype, (), "C").value[()]


def _plain(value, done: dict, depth: int = 0):
    """Put the real arrays in the place of their makers, in dicts down to the fourth level."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _Callable | _DType):
        raise RefusedError("holds a function or a type")
    if not isinstance(value, dict) or depth == 4:
        return value
    # A dict that occurs a million times is converted once, or a small file could keep us busy for years.
    if id(value) not in done:
        done[id(value)] = {key: _plain(one, done, depth + 1) for key, one in value.items()}
    return done[id(value)]
