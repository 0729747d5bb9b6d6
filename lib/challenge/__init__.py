"""The organisers' file formats and their command: `python -m lib.challenge INPUT_DIR OUTPUT_DIR`.

Reads `INPUT_DIR/res/output.pkl`, `res/readme.txt` and `ref/gt.pkl`, writes `OUTPUT_DIR/scores.txt`. Both pickles
are `{id: {"score": number, "pred_area": array of 0 and 1, height x width}}`. What is special is said on stderr.
`python -m lib.challenge --import FILE STORE` makes a prediction store of such a pickle, for the notebooks.
"""

import argparse
import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from lib.challenge.submissions import read_submission
from lib.errors import InputError
from lib.files import replacing
from lib.ids import refuse_id
from lib.metrics import Heatmaps, challenge_figures, score_table, sweep
from lib.metrics.matching import CHALLENGE_SIZE, PREDICTED_AREA_RATIO, counted_mask, to_grid
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
MAX_NOTES = 50
README = "Structural distortion detection: masks and scores of one model.\n"


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
    with replacing(output / "scores.txt") as part:
        part.write_text(text + readme, encoding="utf-8")
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


def write_submission(
    predictions, threshold, folder, readme=README, ids=None, min_area_ratio=PREDICTED_AREA_RATIO
) -> Path:
    """Write `output.pkl`, `readme.txt` and `submission.zip` of both; returns the path of the zip.

    Arguments: `predictions` a store, or anything with `ids`, `heatmap(id)` and `table["score"]`; a pixel is 1 where
    the heatmap is above `threshold` (0..254); regions up to a chosen area are removed, see
    `lib.metrics.matching.counted_mask`. Masks are written on the scorer's 512 grid, which changes no figure. The
    result is read back.
    """
    if not 0 <= threshold < 255:
        raise InputError(f"The threshold {threshold} leaves no pixel or every pixel; give one from 0 to 254")
    folder, ids = Path(folder), list(predictions.ids if ids is None else ids)
    _check_ids(ids)
    scores = predictions.table["score"].reindex(ids)
    if scores.isna().any():
        raise InputError(f"{_names(list(scores.index[scores.isna()]))}: no score; predict these images again")
    folder.mkdir(parents=True, exist_ok=True)
    masks = (counted_mask(to_grid(predictions.heatmap(id) > threshold), min_area_ratio) for id in ids)
    entries = zip(ids, scores.astype(float), masks, strict=True)
    pickled, told, target = folder / "output.pkl", folder / "readme.txt", folder / "submission.zip"
    with replacing(pickled) as pickled_part, replacing(told) as told_part, replacing(target) as part:
        _stream_pickle(pickled_part, entries)
        told_part.write_text(readme, encoding="utf-8")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(pickled_part, pickled.name)
            archive.write(told_part, told.name)
    if read_submission(target)[0].ids != ids:
        raise InputError(f"{target} does not read back as written; check the disk and write it again")
    return target


def _check_ids(ids: list) -> None:
    for id in ids:
        if reason := refuse_id(id):
            remedy = "rename the image, then prepare and predict it again"
            raise InputError(f"The id {ascii(id)[:80]} cannot be a file name ({reason}); {remedy}")


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


def import_submission(path, store_path, score_range=(0.0, 1.0)) -> tuple[PredictionStore, list[str]]:
    """Turn a pickle or zip into a prediction store whose heatmaps are 0 and 255 (any threshold gives the masks).

    `store_path` is a new folder, `<run>/predictions/<split>` to be opened like a run's own. `score_range` tells the
    worst and the best score of the file: (0, 1), or (1, 5) for a MOS. Returns the notes of `read_submission`, too.
    """
    (worst, best), store_path = score_range, Path(store_path)
    if not worst < best:
        raise InputError(f"The score range {worst:g} {best:g} is none; give the worst score, then the best, like 1 5")
    if store_path.exists():
        raise InputError(f"{store_path} exists already; import into a new folder, or remove that one first")
    submission, notes = read_submission(path)
    table = pd.DataFrame({"id": submission.ids, "score": [submission.scores[id] for id in submission.ids]})
    outside = ~table["score"].between(worst, best)
    if outside.any():
        id, score = table.loc[outside].iloc[0]
        raise InputError(f"{path}: the score of {id} is {score:g}, outside {worst:g}..{best:g}; give its score range")
    table["score"] = (table["score"] - worst) / (best - worst)
    with replacing(store_path) as part:
        for id in submission.ids:
            write_heatmap(part / "heatmaps" / f"{id}.png", submission.heatmap(id) * np.uint8(255))
        table.to_parquet(part / "scores.parquet", index=False)
    return PredictionStore(store_path), notes


def main(arguments=None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.score_range and not options.importing:
        parser.error("--score-range is for --import; the scorer takes scores as they are")
    try:
        lines, notes = _import(options) if options.importing else _score(options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in notes[:MAX_NOTES] + [f"and {len(notes) - MAX_NOTES} more notes"] * (len(notes) > MAX_NOTES):
        print(f"note: {note}", file=sys.stderr)
    print("\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.challenge",
        usage="%(prog)s INPUT_DIR OUTPUT_DIR\n       %(prog)s --import FILE STORE [--score-range WORST BEST]",
        description="Score a submission, or import one so that the notebooks can look at it.",
    )
    parser.add_argument("source", metavar="INPUT_DIR", help="folder with res/output.pkl, res/readme.txt and ref/gt.pkl")
    parser.add_argument("target", metavar="OUTPUT_DIR", help="folder for scores.txt")
    into = "read a pickle or zip FILE into the new folder STORE, such as runs/theirs/predictions/test"
    parser.add_argument("--import", dest="importing", action="store_true", help=into)
    scores = "the file's worst and best score, such as 1 5; 0 1 when not given"
    parser.add_argument("--score-range", nargs=2, type=float, metavar=("WORST", "BEST"), help=scores)
    return parser


def _score(options) -> tuple[list[str], list[str]]:
    figures, notes = score_folder(options.source, options.target)
    return [f"{line}: {figures[name]:.4f}" for line, name in LINES.items()], notes


def _import(options) -> tuple[list[str], list[str]]:
    store, notes = import_submission(options.source, options.target, options.score_range or (0.0, 1.0))
    return [f"{store.path} now holds the masks and scores of {len(store.ids):,} images"], notes
