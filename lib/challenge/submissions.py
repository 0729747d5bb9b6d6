"""Reads, writes and imports the organisers' files: `{id: {"score": number, "pred_area": array of 0 and 1}}`."""

import io
import math
import pickle
import tempfile
import zipfile
from collections import UserDict
from pathlib import Path

import cv2
import numpy as np

from lib.errors import InputError
from lib.files import replacing, writing
from lib.ids import refuse_id
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.matching import CHALLENGE_SIZE, PREDICTED_AREA_RATIO, counted_mask, to_grid
from lib.pickles import MAX_BYTES, RefusedError, StoredArray, load_pickle

MAX_SIDE = 16384  # px; OpenCV cannot resize from sides above 32767
MAX_MASK = 64 * 2**20  # bytes of one mask as it stands in the file; the challenge's have 2**18
GRID = (CHALLENGE_SIZE, CHALLENGE_SIZE)
INTERPOLATED = ("uint8", "uint16", "int16", "float32", "float64")  # what OpenCV resizes
MAX_MEMBERS = 64  # files in a zip
MAX_READ = 2**17  # bytes; to find a zip's directory, zipfile reads its last 65,557
# Deflate makes at most 1,032 bytes of one. LZMA and bzip2 make many more, and take the memory that the file asks for.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
README = "Structural distortion detection: masks and scores of one model.\n"


class PackedMasks(UserDict):
    """Masks (uint8 0/1 [H, W]) by id, in memory with eight pixels a byte; each comes out as a copy."""

    def __setitem__(self, id: str, mask: np.ndarray) -> None:
        self.data[id] = mask.shape, np.packbits(mask)

    def __getitem__(self, id: str) -> np.ndarray:
        shape, packed = self.data[id]
        return np.unpackbits(packed, count=math.prod(shape)).reshape(shape)


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
        unpack(path, unpacked, max_bytes)
        return _checked(load_pickle(unpacked, max_bytes, f"{path}: output.pkl"), path, max_bytes)


def _checked(raw, path: Path, max_bytes: int) -> tuple[Heatmaps, list[str]]:
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path} holds no images; it must be a dict of id -> {{'score', 'pred_area'}}")
    result, notes, size = Heatmaps(PackedMasks(), {}), [], 0
    for id, entry in raw.items():
        where = f"{path}, id {ascii(id[:80])[:80]}"
        if reason := refuse_id(id):
            remedy = "use the image's name without extension"
            raise InputError(f"{where}: this id cannot be a file name ({reason}); {remedy}")
        if not isinstance(entry, dict) or not {"score", "pred_area"} <= set(entry):
            raise InputError(f"{where}: 'score' or 'pred_area' is missing; every id needs both")
        result.scores[id] = _score(entry["score"], where)
        if not math.isfinite(result.scores[id]):
            notes.append(f"{where}: the score is {result.scores[id]}")
        size += getattr(entry["pred_area"], "nbytes", 0)
        if size > max_bytes:
            raise InputError(f"{path}: the masks take more than the {max_bytes} bytes allowed; store 512 x 512 uint8")
        result.heatmaps[id] = _mask(entry["pred_area"], where, notes)
    return result, notes


def _score(value, where: str) -> float:
    # A model's output often comes as an array of one element.
    if isinstance(value, StoredArray):
        if math.prod(value.shape) != 1:
            raise InputError(f"{where}: the score is an array of shape {value.shape}; it must be a number")
        value = np.asarray(value).item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise InputError(f"{where}: the score is a {type(value).__name__}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{where}: the score is an integer beyond any float; write it as a float") from None


def _mask(stored, where: str, notes: list[str]) -> np.ndarray:
    """The mask as the scorer sees it, uint8 0/1 [H, W]."""
    if not isinstance(stored, StoredArray):
        raise InputError(f"{where}: pred_area is a {type(stored).__name__}; it must be a NumPy array")
    if len(stored.shape) != 2 or not all(0 < side <= MAX_SIDE for side in stored.shape):
        needed = f"it must be height x width, up to {MAX_SIDE}"
        raise InputError(f"{where}: pred_area has the shape {stored.shape}; {needed}")
    if stored.nbytes > MAX_MASK:
        raise InputError(f"{where}: pred_area takes {stored.nbytes} bytes, more than {MAX_MASK}; store 512 x 512 uint8")
    mask = np.asarray(stored)
    low, top = mask.min(), mask.max()
    if not np.isfinite(low) or not np.isfinite(top):
        raise InputError(f"{where}: pred_area has NaN or infinite pixels; write 0 or 1 instead")
    # Every pixel is 0 or the highest; counted, because np.isin would take several times the mask's memory.
    if low < 0 or top not in (0, 1, 255) or np.count_nonzero(mask == top) < np.count_nonzero(mask):
        raise InputError(f"{where}: pred_area holds values from {low:g} to {top:g}; threshold it to 0 and 1")
    if top == 255:
        notes.append(f"{where}: pred_area holds 0 and 255; 255 is read as 1")
    if mask.shape == GRID or not top or (mask.dtype == np.uint8 and top == 1):
        return (mask > 0).view(np.uint8)
    # The organisers resize a mask as it stands and compare it with 0 afterwards.
    shown = f"{where}: pred_area is {mask.dtype} of {mask.shape[0]} x {mask.shape[1]}"
    if mask.dtype.name not in INTERPOLATED:
        notes.append(f"{shown}, which the official command cannot resize; it is read as bytes of 0 and 1")
        return (mask > 0).view(np.uint8)
    notes.append(
        f"{shown}; like official predictions, it is resized before it is compared with 0, and its regions widen"
    )
    native = mask.astype(mask.dtype.name, copy=False)  # in the byte order of this machine, which OpenCV expects
    return (cv2.resize(native, GRID, interpolation=cv2.INTER_LINEAR) > 0).view(np.uint8)


class _InPieces(io.BufferedReader):
    """A file of which nobody reads more than MAX_READ bytes at once: zipfile would read a directory of any size."""

    def read(self, size=-1):
        data = super().read(MAX_READ + 1 if size is None or size < 0 else min(size, MAX_READ + 1))
        if len(data) > MAX_READ:
            raise RefusedError("has a long directory")
        return data


def unpack(path: Path, target: Path, max_bytes: int) -> None:
    """Copy the file `output.pkl` out of a zip to `target`, whatever the zip says of its size, up to `max_bytes`.

    Raises InputError naming the zip when there is no such file, more than one, or anything suspicious about it.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise RefusedError(f"has {path.stat().st_size} bytes")
        with _InPieces(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            members = archive.namelist()
            inside = [name for name in members[:MAX_MEMBERS] if name.endswith("/output.pkl")]
            if inside and "output.pkl" not in members:
                raise RefusedError(f"holds {ascii(inside[0])[:120]}, in a folder: zip the file itself")
            if len(members) > MAX_MEMBERS or members.count("output.pkl") != 1:
                raise RefusedError(f"holds {len(members)} files")
            if archive.getinfo("output.pkl").compress_type not in METHODS:
                raise RefusedError("has compressed output.pkl by another method")
            with archive.open("output.pkl") as source, open(target, "wb") as copy:
                while block := source.read(MAX_READ // 2):
                    if copy.tell() + len(block) > max_bytes:
                        raise RefusedError("unpacks to more than that")
                    copy.write(block)
    except RefusedError as reason:
        remedy = f"it must hold one output.pkl of up to {max_bytes} bytes, stored or deflated, and little else"
        raise InputError(f"{path} is refused: it {reason}; {remedy}") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be unpacked into {target.parent}: {reason}; free space there") from None
    except Exception as error:
        # zipfile raises BadZipFile, zlib.error, RuntimeError (encrypted), EOFError, ...
        raise InputError(
            f"{path} is not a zip file that can be read ({ascii(str(error))[1:-1][:80]}); zip it again"
        ) from None


def write_submission(predictions, threshold, folder, min_area_ratio=PREDICTED_AREA_RATIO) -> Path:
    """Write `output.pkl`, `readme.txt` and `submission.zip` of both; returns the path of the zip.

    Arguments: `predictions` see `lib.metrics.heatmaps`; a pixel is 1 where the heatmap is above `threshold` (0..254);
    regions up to a chosen area are removed, see `lib.metrics.matching.counted_mask`. Masks are written on the scorer's
    512 grid, which changes no figure.
    """
    folder, ids = Path(folder), predictions.ids
    scores = predictions.table["score"].reindex(ids)
    masks = (counted_mask(to_grid(predictions.heatmap(id) > threshold), min_area_ratio) for id in ids)
    pickled, about, target = folder / "output.pkl", folder / "readme.txt", folder / "submission.zip"
    with writing(folder, "free space or choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(pickled) as pickled_part, replacing(about) as about_part, replacing(target) as part:
            stream_pickle(pickled_part, zip(ids, scores.astype(float), masks, strict=True))
            about_part.write_text(README, encoding="utf-8")
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(pickled_part, pickled.name)
                archive.write(about_part, about.name)
    return target


def stream_pickle(path: Path, entries) -> None:
    """Pickle {id: {"score", "pred_area"}} from (id, score, mask) one by one, so that no two masks are in memory."""
    with open(path, "wb") as file:
        file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_DICT)
        for id, score, mask in entries:
            for value in (id, {"score": score, "pred_area": mask}):
                pickler = pickle.Pickler(item := io.BytesIO(), protocol=3)
                # Without a memo no item refers to another, so their instructions can stand in a row, each
                # without its two bytes of header and its final STOP.
                pickler.fast = True
                pickler.dump(value)
                # NumPy 1 does not know the name that NumPy 2 writes; both know the old one.
                file.write(item.getvalue()[2:-1].replace(b"cnumpy._core.", b"cnumpy.core."))
            file.write(pickle.SETITEM)
        file.write(pickle.STOP)


def import_submission(path, store_path, score_range=(0.0, 1.0)) -> tuple:
    """Turn a pickle or zip into a PredictionStore whose heatmaps are 0 and 255 (any threshold gives the masks).

    `store_path` is a new folder, `<run>/predictions/<split>` to be opened like a run's own. `score_range` is the
    worst and the best score of the file: (0, 1), or (1, 5) for a MOS. Returns the notes of `read_submission`, too.
    """
    import pandas as pd  # these take a second to start, which scoring does without

    from lib.stores import PredictionStore, write_heatmap

    (worst, best), store_path = score_range, Path(store_path)
    if not 0 < best - worst < math.inf:
        raise InputError(f"The score range {worst:g} {best:g} is none; give the worst score, then the best, like 1 5")
    if store_path.exists():
        raise InputError(f"{store_path} exists already; import into a new folder, or remove that one first")
    submission, notes = read_submission(path)
    table = pd.DataFrame({"id": submission.ids, "score": list(submission.scores.values())})
    outside = ~table["score"].between(worst, best)
    if outside.any():
        id, score = table.loc[outside].iloc[0]
        raise InputError(f"{path}: the score of {id} is {score:g}, outside {worst:g}..{best:g}; give its score range")
    table["score"] = (table["score"] - worst) / (best - worst)
    with writing(store_path, "give another folder"), replacing(store_path) as part:
        for id in submission.ids:
            write_heatmap(part / "heatmaps" / f"{id}.png", submission.heatmap(id) * np.uint8(255))
        table.to_parquet(part / "scores.parquet", index=False)
    return PredictionStore(store_path), notes
