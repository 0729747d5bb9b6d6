"""The scan of a pickle: its instructions are followed without running them, and its large bytes are left out.

See `lib.challenge.safe_pickle`, which loads what is left.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Iterator

MAX_INSTRUCTIONS = 4_000_000  # a submission takes about 50 an image
MAX_DEPTH = 32
MAX_LINE = 1000  # characters of a module's or a function's name
# What `pickle` writes for containers, text, bytes, numbers and arrays in the protocols 2 to 5.
ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND",
    "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
# Large bytes, and in how many bytes their length is written. Bytes up to 255 have an instruction of their own.
LARGE = {"BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
TARGETS = {"APPEND": "list", "APPENDS": "list", "SETITEM": "dict", "SETITEMS": "dict"}


class RefusedError(Exception):
    """The reason why a pickle is not read, as the end of a sentence."""


def condense(file, size: int) -> tuple[io.BytesIO, list[tuple[int, int]]]:
    """Follow the instructions on a stack of (kind, depth), refuse what no submission needs, leave out large bytes.

    Returns the pickle without them, and where they are in the file (offset, length). In their place stands the
    instruction for a persistent id, their number. It is not in ALLOWED, so no file can forge one.
    """
    condensed, places, stack, memo = io.BytesIO(), [], [], {}
    reader = _Reader(file, size)
    for count, (opcode, argument) in enumerate(_instructions(reader)):
        if count > MAX_INSTRUCTIONS:
            raise RefusedError(f"has more than {MAX_INSTRUCTIONS} instructions")
        if opcode.name == "FRAME" and argument > size:
            raise RefusedError("announces a frame longer than itself")
        _follow(opcode, argument, stack, memo)
        if stack and stack[-1][1] > MAX_DEPTH:
            raise RefusedError(f"nests deeper than {MAX_DEPTH} levels")
        if opcode.name in LARGE:
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
        self.file, self.size, self.taken = file, size, b""

    def read(self, count: int) -> bytes:
        # A file may announce more than it holds, and memory is set aside before that shows.
        data = self.file.read(min(count, self.size))
        self.taken += data
        return data

    def readline(self) -> bytes:
        data = self.file.readline(MAX_LINE)
        self.taken += data
        return data

    def pass_over(self, width: int) -> tuple[int, int]:
        """Offset and length of the bytes whose length comes next, in `width` bytes."""
        length, offset = int.from_bytes(self.read(width), "little"), self.file.tell()
        if length > self.size - offset:
            raise EOFError
        self.file.seek(length, io.SEEK_CUR)
        return offset, length


def _instructions(reader: _Reader) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    """Yield each instruction with its argument up to the end; of large bytes their place is the argument."""
    while True:
        reader.taken = b""
        opcode = pickletools.code2op[reader.read(1).decode("latin1")]
        if opcode.name not in ALLOWED:
            raise RefusedError(f"uses the pickle instruction {opcode.name}")
        if opcode.name in LARGE:
            yield opcode, reader.pass_over(LARGE[opcode.name])
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
