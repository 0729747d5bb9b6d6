"""Reads pickles of NumPy arrays and plain containers, and nothing else; the arrays' bytes stay in the file.

A pickle is a program, so a stranger's file is not handed to pickle as it stands. First its instructions are scanned
without running them (`lib.challenge.pickle_scan`): only those that build containers, text, bytes and numbers may occur,
within bounds on size, number, nesting and memo. Large bytes are passed over; what is left is a short pickle that
refers to them. It is loaded by an unpickler to which no class is known: the few NumPy names that arrays need stand
for checked replacements below, and every array has exactly the bytes that the file holds for it.
"""

import io
import math
import pickle

import numpy as np

from lib.challenge.pickle_scan import RefusedError, condense
from lib.challenge.stored import Source, StoredArray, StoredBytes
from lib.errors import InputError

MAX_BYTES = 4 * 2**30
MAX_ITEMS = 2**40  # of an array, counting empty sides as 1; NumPy cannot count much further
REMEDY = 'save a plain dict {id: {"score": float, "pred_area": uint8 array}} with pickle protocol 4 and ids as text'
DTYPES = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}


def load_pickle(source, max_bytes: int = MAX_BYTES, name: str | None = None):
    """Read a pickle from a path or from bytes; the arrays in its dicts are `StoredArray`s, large bytes `StoredBytes`.

    `name` is what messages call it, a path by default. Raises InputError, in one sentence with that name, for
    everything that is not a whole, bounded pickle of plain containers and numeric arrays. Nothing in the file is
    executed in any case.
    """
    source = Source(source, name or ("The pickle" if isinstance(source, bytes) else str(source)))
    try:
        with source.open() as file:
            size = file.seek(0, io.SEEK_END)
            if size > max_bytes:
                raise RefusedError(f"has {size} bytes, more than the {max_bytes} allowed")
            file.seek(0)
            condensed, places = condense(file, size)
        return _plain(_Unpickler(condensed, [StoredBytes(source, *place) for place in places]).load(), {})
    except RefusedError as reason:
        raise InputError(f"{source.name} is refused: it {reason}; {REMEDY}") from None
    except OSError as error:
        raise InputError(f"{source.name} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        # Damaged streams raise almost anything: ValueError, EOFError, UnpicklingError, IndexError, TypeError.
        # Their own words may quote the file at length, so only their kind is told.
        raise InputError(
            f"{source.name} is not a whole pickle ({type(error).__name__}); copy or export it again"
        ) from None


class _Unpickler(pickle.Unpickler):
    """Knows no class; gives checked stand-ins for the NumPy names that arrays are pickled with."""

    def __init__(self, stream: io.BytesIO, parts: list[StoredBytes]):
        super().__init__(stream, encoding="latin1")
        self.parts, self.encode = parts, _Encoder(stream.getbuffer().nbytes)

    def persistent_load(self, number: int) -> StoredBytes:
        return self.parts[number]

    def find_class(self, module, name):
        module = module.replace("numpy.core.", "numpy._core.")  # NumPy 1 and NumPy 2
        known = {
            ("numpy", "ndarray"): (None,),
            ("numpy", "dtype"): (_DType, str, int, int),
            ("numpy._core.multiarray", "_reconstruct"): (lambda *_: _Array(), _Callable, tuple, bytes),
            ("numpy._core.multiarray", "scalar"): (_scalar, _DType, bytes),
            ("numpy._core.numeric", "_frombuffer"): (_array, bytes | StoredBytes, _DType, tuple, str),
            ("_codecs", "encode"): (self.encode, str | StoredBytes, str),
            ("__builtin__", "bytes"): (lambda: b"",),  # protocol 2 has no empty bytes
        }
        if (module, name) not in known:
            raise RefusedError(f"asks for {module[:60]}.{name[:60]}")
        return _Callable(*known[module, name])


class _Encoder:
    """Makes bytes of text as protocol 2 writes them; one text may not be encoded over and over to fill the memory.

    It is no method of the unpickler, whose memo would then hold the unpickler until the next collection.
    """

    def __init__(self, size: int):
        self.bytes_left = size

    def __call__(self, text: str | StoredBytes, encoding: str) -> bytes | StoredBytes:
        if isinstance(text, StoredBytes):  # large text is encoded when it is read
            return text
        self.bytes_left -= len(text)
        if encoding != "latin1" or self.bytes_left < 0:
            raise RefusedError("encodes more text than it holds")
        return text.encode("latin1")


class _Callable:
    """A function that a pickle can call, with arguments of these types, and not change: BUILD finds no attribute.

    The types come first: tuples that share their parts take exponential time and memory to hash or to print.
    """

    __slots__ = ("function", "types")

    def __init__(self, function, *types):
        self.function, self.types = function, types

    def __call__(self, *arguments):
        if self.function is None:
            raise RefusedError("makes an array that is not a plain one")
        if len(arguments) != len(self.types) or not all(map(isinstance, arguments, self.types)):
            raise RefusedError("calls a function with arguments of other types than NumPy writes")
        return self.function(*arguments)

    def __setstate__(self, state):
        raise RefusedError("changes a function")


class _DType:
    """A numeric dtype in the making: `dtype("u1", False, True)`, then its state with the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_):
        if code not in DTYPES:
            raise RefusedError(f"holds the dtype {code[:20]!r}, and only booleans, integers and floats are read")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        if state[1] not in ("|", "<", ">", "=") or any(part is not None for part in state[2:5]):
            raise RefusedError("holds a dtype with fields")
        self.order = state[1]

    def real(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """An array in the making, replaced by a `StoredArray` at the end."""

    __slots__ = ("value",)

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C").value


def _array(data, dtype, shape, order) -> _Array:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | StoredBytes):
        raise RefusedError("holds an array without plain bytes")
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise RefusedError("holds an array with an impossible shape")
    if math.prod(side or 1 for side in shape) > MAX_ITEMS:
        raise RefusedError("holds an array with an impossible shape")
    if math.prod(shape) * dtype.real().itemsize != len(data):
        raise RefusedError(f"holds an array of shape {shape} with {len(data)} bytes"[:120])
    array = _Array()
    array.value = StoredArray(data, dtype.real(), shape, "F" if order == "F" else "C")
    return array


def _scalar(dtype, data):
    return np.asarray(_array(data, dtype, (), "C").value)[()]


def _plain(value, done: dict, depth: int = 0):
    """Put the arrays in the place of their makers, in dicts down to the fourth level."""
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
