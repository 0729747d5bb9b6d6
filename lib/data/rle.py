"""Masks from run-length encodings: COCO's two forms, Label Studio's brush and CVAT's rows.

Sources: `common/maskApi.c` of cocodataset/cocoapi, `converter/brush.py` of HumanSignal/label-studio-sdk and the
"XML annotation format" of CVAT.
"""

import numpy as np


def from_runs(counts, size: int) -> np.ndarray:
    """bool [size] from the lengths of runs, unmarked first. Raises ValueError when they do not sum up to `size`."""
    counts = np.asarray(counts, dtype=np.int64)
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != size:
        raise ValueError(f"its runs sum up to {int(counts.sum())} pixels, not {size}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def decode_coco(counts, height: int, width: int) -> np.ndarray:
    """bool [height, width] from COCO's `counts`: a list of lengths, or compressed text. Raises ValueError."""
    counts = _decompress(counts) if isinstance(counts, str) else counts
    return from_runs(counts, height * width).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    counts, value, shift = [], 0, 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{chr(code)!r} is no character of a compressed RLE")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= 1 << shift if bits & 16 else 0  # the last group's highest bit is the sign
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return counts


def decode_brush(rle, height: int, width: int) -> np.ndarray:
    """uint8 [height, width], the alpha channel of a Label Studio brush. Raises ValueError when it is not whole."""
    bits, place = np.unpackbits(np.array(rle, dtype=np.uint8)), 0

    def number(n: int) -> int:
        nonlocal place
        place += n
        if place > bits.size:
            raise ValueError("it ends too early")
        return int("".join(map(str, bits[place - n : place])), 2)

    size, word = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    if size != 4 * height * width or word != 8:
        raise ValueError(f"it holds {size} values of {word} bits, not {4 * height * width} of 8")
    parts, left = [], size
    while left > 0:
        repeated, which = number(1), number(2)
        count = number(lengths[which]) + 1
        if repeated:
            parts.append(np.full(count, number(8), np.uint8))
        else:
            parts.append(np.packbits(bits[place : place + 8 * count]))
            place += 8 * count
        left -= count
    return np.concatenate(parts).reshape(height, width, 4)[..., 3]
