"""The organisers' file formats and their command: `python -m lib.challenge INPUT_DIR OUTPUT_DIR`.

Reads `INPUT_DIR/res/output.pkl`, `res/readme.txt` and `ref/gt.pkl`, writes `OUTPUT_DIR/scores.txt`. Both pickles
are `{id: {"score": number, "pred_area": array of 0 and 1, height x width}}`. What is special is said on stderr.
"""

import argparse
import io
import math
import pickle
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.matching import CHALLENGE_SIZE, remove_small, to_grid
from lib.metrics import Heatmaps, challenge_figures, score_table, sweep
from lib.safe_pickle import MAX_BYTES, load_pickle
from lib.stores import PredictionStore, write_heatmap

LINES = {
    "Final_Score": "final_score",
    "SRCC": "srcc",
    "PLCC": "plcc",
    "Precision": "precision",
    "Recall": "recall",
    "F1_Score": "f1_score",
    "GIoU": "giou",
}
MAX_README = 2**20
MAX_SIDE = 16384  # px; OpenCV cannot resize from sides above 32767
MAX_MEMBERS = 64
MAX_NOTES = 50
README = "Structural distortion detection: masks and scores of one model.\n"


def read_submission(path, max_bytes: int = MAX_BYTES) -> tuple[Heatmaps, list[str]]:
    """Read an `output.pkl`, a `gt.pkl`, or a zip that holds an `output.pkl`.

    Returns masks (uint8 0/1 [H, W]) with scores as they stand in the file, and notes on what is unusual but has
    a clear meaning. Raises InputError naming the file and the id for everything else.
    """
    path = Path(path)
    if path.suffix.lower() != ".zip":
        return _checked(load_pickle(path, max_bytes), path, max_bytes)
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "output.pkl"
        _unpack(path, "output.pkl", unpacked, max_bytes)
        return _checked(load_pickle(unpacked, max_bytes), path, max_bytes)


def _unpack(path: Path, name: str, target: Path, max_bytes: int) -> None:
    """Copy one file out of a zip, whatever the zip says of its size, up to `max_bytes`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) > MAX_MEMBERS or members.count(name) != 1:
                raise InputError(f"{path} holds {len(members)} files; it must hold one {name} and little else")
            with archive.open(name) as source, open(target, "wb") as copy:
                while block := source.read(2**20):
                    if copy.tell() + len(block) > max_bytes:
                        raise InputError(f"{path} unpacks to more than the {max_bytes} bytes allowed; it is refused")
                    copy.write(block)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:
        # zipfile raises BadZipFile, zlib.error, RuntimeError (encrypted), NotImplementedError, EOFError, ...
        raise InputError(f"{path} is not a zip file that can be read ({type(error).__name__})") from None


def _checked(raw, path: Path, max_bytes: int) -> tuple[Heatmaps, list[str]]:
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"{path} holds no images; it must be a dict of id -> {{'score', 'pred_area'}}")
    result, notes, size = Heatmaps({}, {}), [], 0
    for id, entry in raw.items():
        where = f"{path}, id {ascii(id)[:80]}"
        # Ids become file names, so nothing that leads out of a folder.
        if not id or len(id) > 200 or not id.isprintable() or set(id) & set('/\\:*?"<>|') or id in (".", ".."):
            raise InputError(f"{where}: this id cannot be a file name; use the image's name without its extension")
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
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise InputError(f"{where}: the score is a {type(value).__name__}; it must be a number")
    return float(value)


def _mask(mask, where: str, notes: list[str]) -> np.ndarray:
    if not isinstance(mask, np.ndarray):
        raise InputError(f"{where}: pred_area is a {type(mask).__name__}; it must be a NumPy array")
    if mask.ndim != 2 or not all(0 < side <= MAX_SIDE for side in mask.shape):
        raise InputError(f"{where}: pred_area has the shape {mask.shape}; it must be height x width, up to {MAX_SIDE}")
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise InputError(f"{where}: pred_area has NaN or infinite pixels; write 0 or 1 instead")
    low, top = mask.min(), mask.max()
    if low < 0 or top > 1 or mask.dtype.kind == "f":
        if top == 255 and np.isin(mask, (0, 255)).all():
            notes.append(f"{where}: pred_area holds 0 and 255; 255 is read as 1")
        elif not np.isin(mask, (0, 1)).all():
            raise InputError(f"{where}: pred_area holds values from {low:g} to {top:g}; threshold it to 0 and 1")
    return mask if mask.dtype == np.uint8 and top <= 1 else (mask > 0).view(np.uint8)


def score_folder(input_dir, output_dir) -> tuple[dict, list[str]]:
    """Score `res/output.pkl` against `ref/gt.pkl` and write `scores.txt`; returns the figures and the notes."""
    result_path, truth_path = Path(input_dir, "res", "output.pkl"), Path(input_dir, "ref", "gt.pkl")
    truth, truth_notes = read_submission(truth_path)
    predictions, notes = read_submission(result_path)
    notes += truth_notes + _compare_ids(predictions, truth, result_path, truth_path)
    ids = truth.ids
    counts = sweep(predictions, truth, [0], ids, workers=1)
    figures = challenge_figures(counts, score_table(predictions, truth, ids))
    readme, readme_notes = _readme(Path(input_dir, "res", "readme.txt"))
    text = "".join(f"{line}: {figures[name]:.4f}\n" for line, name in LINES.items())
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "scores.txt").write_text(text + readme, encoding="utf-8")
    return figures, notes + figures["notes"] + readme_notes


def _compare_ids(predictions: Heatmaps, truth: Heatmaps, result_path: Path, truth_path: Path) -> list[str]:
    missing = [id for id in truth.ids if id not in predictions.heatmaps]
    if missing:
        raise InputError(
            f"{result_path} lacks {len(missing)} ids of {truth_path} ({_names(missing)}); no figure over the whole set "
            "is defined without them, so add a mask and a score for each"
        )
    notes = []
    extra = [id for id in predictions.ids if id not in truth.heatmaps]
    if extra:
        notes.append(f"{result_path}: {len(extra)} ids have no ground truth and are not scored ({_names(extra)})")
    grid = (CHALLENGE_SIZE, CHALLENGE_SIZE)
    resized = [id for id, mask in truth.heatmaps.items() if mask.shape != grid]
    if resized:
        notes.append(f"{truth_path}: {len(resized)} masks are not 512 x 512 and are resized ({_names(resized)})")
    return notes


def _names(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def _readme(path: Path) -> tuple[str, list[str]]:
    if not path.is_file():
        return "", [f"{path} is missing; scores.txt ends without it"]
    with open(path, "rb") as file:
        data = file.read(MAX_README + 1)
    cut = [f"{path} is longer than {MAX_README} bytes and is cut there"] if len(data) > MAX_README else []
    return data[:MAX_README].decode("utf-8", errors="replace"), cut


def write_submission(predictions, threshold, folder, readme=README, ids=None, min_area_ratio=0.0) -> Path:
    """Write `output.pkl`, `readme.txt` and `submission.zip` of both; returns the path of the zip.

    Arguments: `predictions` a store, or anything with `ids`, `heatmap(id)` and `table["score"]`; a pixel is 1 where
    the heatmap is above `threshold` (0..254); regions of a contour area up to `min_area_ratio` of the frame are
    removed. Masks are written on the scorer's 512 grid, which changes no figure. The result is read back.
    """
    if not 0 <= threshold < 255:
        raise InputError(f"The threshold {threshold} leaves no pixel or every pixel; give one from 0 to 254")
    folder, ids = Path(folder), list(predictions.ids if ids is None else ids)
    scores = predictions.table["score"].reindex(ids)
    if scores.isna().any():
        raise InputError(f"{_names(list(scores.index[scores.isna()]))}: no score; predict these images again")
    folder.mkdir(parents=True, exist_ok=True)
    entries = ((id, float(scores[id]), _submitted(predictions.heatmap(id), threshold, min_area_ratio)) for id in ids)
    _stream_pickle(folder / "output.pkl", entries)
    (folder / "readme.txt").write_text(readme, encoding="utf-8")
    target = folder / "submission.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("output.pkl", "readme.txt"):
            archive.write(folder / name, name)
    if read_submission(target)[0].ids != ids:
        raise InputError(f"{target} does not read back as written; check the disk and write it again")
    return target


def _submitted(heatmap: np.ndarray, threshold, min_area_ratio: float) -> np.ndarray:
    mask = to_grid(heatmap > threshold)
    return remove_small(mask, min_area_ratio) if min_area_ratio > 0 else mask


def _stream_pickle(path: Path, entries) -> None:
    """Pickle a dict item by item, so that thousands of masks are never in memory together."""
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


def import_submission(path, store_path, score_range=(0.0, 1.0)) -> PredictionStore:
    """Turn a pickle or zip into a prediction store whose heatmaps are 0 and 255 (any threshold gives the masks).

    `score_range` tells the worst and the best score of the file: (0, 1), or (1, 5) for a MOS.
    """
    submission, _ = read_submission(path)
    worst, best = score_range
    table = pd.DataFrame({"id": submission.ids, "score": [submission.scores[id] for id in submission.ids]})
    outside = ~table["score"].between(worst, best)
    if outside.any():
        id, score = table.loc[outside].iloc[0]
        raise InputError(f"{path}: the score of {id} is {score:g}, outside {worst:g}..{best:g}; give its score_range")
    store_path = Path(store_path)
    for id in submission.ids:
        write_heatmap(store_path / "heatmaps" / f"{id}.png", submission.heatmap(id) * np.uint8(255))
    table.assign(score=(table["score"] - worst) / (best - worst)).to_parquet(store_path / "scores.parquet", index=False)
    return PredictionStore(store_path)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.challenge", description="Score a submission.")
    parser.add_argument("input_dir", help="folder with res/output.pkl, res/readme.txt and ref/gt.pkl")
    parser.add_argument("output_dir", help="folder for scores.txt")
    options = parser.parse_args(arguments)
    try:
        figures, notes = score_folder(options.input_dir, options.output_dir)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in notes[:MAX_NOTES] + [f"and {len(notes) - MAX_NOTES} more notes"] * (len(notes) > MAX_NOTES):
        print(f"note: {note}", file=sys.stderr)
    for line, name in LINES.items():
        print(f"{line}: {figures[name]:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
