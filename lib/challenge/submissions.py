"""Reads the masks and scores of a submission, from anyone, and says what is wrong with them."""

import math
import tempfile
from collections import UserDict
from pathlib import Path

import cv2
import numpy as np

from lib.challenge.safe_pickle import MAX_BYTES, load_pickle
from lib.challenge.stored import StoredArray
from lib.challenge.zips import unpack
from lib.errors import InputError
from lib.ids import refuse_id
from lib.metrics import Heatmaps
from lib.metrics.matching import CHALLENGE_SIZE

MAX_SIDE = 16384  # px; OpenCV cannot resize from sides above 32767
MAX_MASK = 64 * 2**20  # bytes of one mask as it stands in the file; the challenge's have 2**18
GRID = (CHALLENGE_SIZE, CHALLENGE_SIZE)
INTERPOLATED = ("uint8", "uint16", "int16", "float32", "float64")  # what OpenCV resizes


class PackedMasks(UserDict):
    """Masks (uint8 0/1 [H, W]) by id, in memory with eight pixels a byte; each comes out as a copy."""

    def __setitem__(self, id: str, mask: np.ndarray) -> None:
        self.data[id] = mask.shape, np.packbits(mask)

    def __getitem__(self, id: str) -> np.ndarray:
        shape, packed = self.data[id]
        return np.unpackbits(packed, count=math.prod(shape)).reshape(shape)

    def share(self, id: str, other: str) -> None:
        """Give `id` the mask of another, which is held once."""
        self.data[id] = self.data[other]


def read_submission(path, max_bytes: int = MAX_BYTES) -> tuple[Heatmaps, list[str]]:
    """Read an `output.pkl`, a `gt.pkl`, or a zip that holds an `output.pkl`.

    Returns masks (uint8 0/1 [H, W] as the scorer sees them, held as `PackedMasks`) with scores as they stand in the
    file, and notes on what is unusual but has a clear meaning. Raises InputError naming the file and the id for
    everything else. `max_bytes` limits the file, and the sum of its masks.
    """
    path = Path(path)
    if path.suffix.lower() != ".zip":
        return _checked(load_pickle(path, max_bytes), path, max_bytes)
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "output.pkl"
        unpack(path, "output.pkl", unpacked, max_bytes)
        return _checked(load_pickle(unpacked, max_bytes, f"{path}: output.pkl"), path, max_bytes)


def _checked(raw, path: Path, max_bytes: int) -> tuple[Heatmaps, list[str]]:
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path} holds no images; it must be a dict of id -> {{'score', 'pred_area'}}")
    result, notes, size, first = Heatmaps(PackedMasks(), {}), [], 0, {}
    for id, entry in raw.items():
        where = f"{path}, id {ascii(id[:80])[:80]}"
        if reason := refuse_id(id):
            raise InputError(
                f"{where}: this id cannot be a file name ({reason}); use the image's name without extension"
            )
        if not isinstance(entry, dict) or not {"score", "pred_area"} <= set(entry):
            raise InputError(f"{where}: 'score' or 'pred_area' is missing; every id needs both")
        result.scores[id] = _score(entry["score"], where)
        if not math.isfinite(result.scores[id]):
            notes.append(f"{where}: the score is {result.scores[id]}")
        stored = _stored_mask(entry["pred_area"], where)
        size += stored.nbytes
        if size > max_bytes:
            raise InputError(f"{path}: the masks take more than the {max_bytes} bytes allowed; store 512 x 512 uint8")
        # Images may share an array, and arrays of a hostile file their bytes.
        if first.setdefault(stored, id) != id:
            result.heatmaps.share(id, first[stored])
        else:
            result.heatmaps[id] = _mask(stored, where, notes)
    return result, notes


def _score(value, where: str) -> float:
    # A model's output often comes as an array of one element.
    if isinstance(value, StoredArray):
        if math.prod(value.shape) != 1:
            raise InputError(f"{where}: the score is an array of shape {value.shape}; it must be a number")
        value = np.asarray(value).reshape(())[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise InputError(f"{where}: the score is a {type(value).__name__}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{where}: the score is an integer beyond any float; write it as a float") from None


def _stored_mask(stored, where: str) -> StoredArray:
    if not isinstance(stored, StoredArray):
        raise InputError(f"{where}: pred_area is a {type(stored).__name__}; it must be a NumPy array")
    shape = stored.shape
    if len(shape) != 2 or not all(0 < side <= MAX_SIDE for side in shape):
        raise InputError(f"{where}: pred_area has the shape {shape}; it must be height x width, up to {MAX_SIDE}")
    if stored.nbytes > MAX_MASK:
        raise InputError(f"{where}: pred_area takes {stored.nbytes} bytes, more than {MAX_MASK}; store 512 x 512 uint8")
    return stored


def _mask(stored: StoredArray, where: str, notes: list[str]) -> np.ndarray:
    mask = np.asarray(stored)
    low, top = mask.min(), mask.max()
    if not np.isfinite(low) or not np.isfinite(top):
        raise InputError(f"{where}: pred_area has NaN or infinite pixels; write 0 or 1 instead")
    # Every pixel is 0 or the highest; counted, because np.isin would take several times the mask's memory.
    if low < 0 or top not in (0, 1, 255) or np.count_nonzero(mask == top) < np.count_nonzero(mask):
        raise InputError(f"{where}: pred_area holds values from {low:g} to {top:g}; threshold it to 0 and 1")
    if top == 255:
        notes.append(f"{where}: pred_area holds 0 and 255; 255 is read as 1")
    return mask if mask.dtype == np.uint8 and top <= 1 else _bits(mask, where, notes)


def _bits(mask: np.ndarray, where: str, notes: list[str]) -> np.ndarray:
    """What the organisers make of a mask [H, W] that is not bytes of 0 and 1: resized as it stands, then above 0."""
    if mask.shape == GRID or not mask.any():
        return (mask > 0).view(np.uint8)
    shown = f"{where}: pred_area is {mask.dtype} of {mask.shape[0]} x {mask.shape[1]}"
    if mask.dtype.name not in INTERPOLATED:
        notes.append(f"{shown}, which the official command cannot resize; it is read as bytes of 0 and 1")
        return (mask > 0).view(np.uint8)
    notes.append(
        f"{shown}; like official predictions, it is resized before it is compared with 0, and its regions widen"
    )
    native = mask.astype(mask.dtype.name, copy=False)  # in the byte order of this machine, which OpenCV expects
    return (cv2.resize(native, GRID, interpolation=cv2.INTER_LINEAR) > 0).view(np.uint8)
