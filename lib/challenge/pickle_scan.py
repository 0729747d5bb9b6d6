"""The scan of a pickle: its instructions are followed without running them, and its large bytes are left out.

See `lib.challenge.safe_pickle`, which loads what is left: at most 8 MiB, however large the file.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MAX_REST = 8 * 2**20  # bytes that are not left out; 10,000 images take about 2 MiB
MAX_INSTRUCTIONS = 700_000  # an image takes about 40, and 4 GiB hold 16,000 masks of 512 x 512
FEW_INSTRUCTIONS = 100_000  # that any file may hold; a larger number belongs to masks of some size:
BYTES_PER_INSTRUCTION = 100  # a mask of 64 x 64 still has as many
MAX_DEPTH = 32
MAX_TEXT = 1000  # bytes of an id, a key or a name; masks are longer text in protocol 2
# What `pickle` writes for containers, text, bytes, numbers and arrays in the protocols 2 to 5.
ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND",
    "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
# Bytes and text that may be large, and in how many bytes their length is written. Bytes up to 255 have an instruction
# of their own.
LARGE = {"BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8, "BINUNICODE": 4, "BINUNICODE8": 8}
TEXTS = {"BINUNICODE", "BINUNICODE8"}
BYTES = pickletools.code2op["B"]
TARGETS = {"APPEND": "list", "APPENDS": "list", "SETITEM": "dict", "SETITEMS": "dict"}


class RefusedError(Exception):
    """The reason why a pickle is not read, as the end of a sentence."""


class Place(NamedTuple):
    """Where large bytes are in the file, and how many they are once text of protocol 2 is encoded as Latin-1."""

    offset: int
    size: int
    length: int


def condense(file, size: int) -> tuple[io.BytesIO, list[Place]]:
    """Follow the instructions on a stack of (kind, depth), refuse what no submission needs, leave out large bytes.

    Returns the pickle without them, and their places. In their stead stands the instruction for a persistent id,
    their number. It is not in ALLOWED, so no file can forge one. Raises RefusedError, and almost anything for a
    damaged file.
    """
    condensed, places, stack, memo = io.BytesIO(), [], [], {}
    reader = _Reader(file, size)
    most = min(MAX_INSTRUCTIONS, FEW_INSTRUCTIONS + size // BYTES_PER_INSTRUCTION)
    for count, (opcode, argument) in enumerate(_instructions(reader)):
        if count > most:
            raise RefusedError(f"has more than {most} instructions")
        if opcode.name == "FRAME" and argument > size:
            raise RefusedError("announces a frame longer than itself")
        _follow(opcode, argument, stack, memo)
        if stack and stack[-1][1] > MAX_DEPTH:
            raise RefusedError(f"nests deeper than {MAX_DEPTH} levels")
        if isinstance(argument, Place):
            condensed.write(pickle.BININT + struct.pack("<i", len(places)) + pickle.BINPERSID)
            places.append(argument)
        elif opcode.name != "FRAME":  # frames have other lengths now, and are not needed
            condensed.write(reader.taken)
    if file.read(1):
        raise RefusedError("goes on after its end")
    condensed.seek(0)
    return condensed, places


class _Reader:
    """What `pickletools` reads an instruction from; `taken` are its bytes so far."""

    def __init__(self, file, size: int):
        self.file, self.size, self.left, self.taken = file, size, MAX_REST, b""

    def read(self, count: int) -> bytes:
        # Before reading: a file may announce more than it holds, and memory is set aside before that shows.
        self.left -= count
        if self.left < 0:
            raise RefusedError(f"holds more than {MAX_REST} bytes beside its masks")
        data = self.file.read(count)
        self.taken += data
        return data

    def readline(self) -> bytes:
        data = self.file.readline(MAX_TEXT)
        self.left -= len(data)
        self.taken += data
        return data

    def pass_over(self, size: int, is_text: bool) -> Place:
        """Go on behind the next `size` bytes."""
        offset = self.file.tell()
        if size > self.size - offset:
            raise EOFError
        if is_text:
            return Place(offset, size, self._characters(size))
        self.file.seek(size, io.SEEK_CUR)
        return Place(offset, size, size)

    def _characters(self, size: int) -> int:
        """Pass over UTF-8 text and count its characters: the bytes but for 0x80..0xBF, which continue one."""
        count = 0
        while block := self.file.read(min(size, 2**16)):
            count += np.count_nonzero(np.frombuffer(block, np.int8) >= -64)
            size -= len(block)
        return int(count)


def _instructions(reader: _Reader) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    """Yield each instruction with its argument up to the end; of large bytes and text their Place is the argument.

    Large text is given as bytes: nothing but an array may be made of it.
    """
    while True:
        reader.taken = b""
        opcode = pickletools.code2op[reader.read(1).decode("latin1")]
        if opcode.name not in ALLOWED:
            raise RefusedError(f"uses the pickle instruction {opcode.name}")
        if opcode.name in LARGE:
            size, is_text = int.from_bytes(reader.read(LARGE[opcode.name]), "little"), opcode.name in TEXTS
            if is_text and size <= MAX_TEXT:
                yield opcode, reader.read(size)
            else:
                yield BYTES, reader.pass_over(size, is_text)
        else:
            yield opcode, opcode.arg and opcode.arg.reader(reader)
        if opcode.name == "STOP":
            return


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
            raise RefusedError("fills something that is no plain list or dict")
        # Text keys only: hashing nested tuples that share their parts could take for ever.
        if TARGETS[opcode.name] == "dict" and any(kind != "str" for kind, _ in taken[1::2]):
            raise RefusedError(f"has a dict key that is not text of up to {MAX_TEXT} bytes")
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
