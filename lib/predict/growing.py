"""A prediction store while it is written; it notes what decides each prediction, so that an interrupted one can go on.

Written are `prediction.json` with what decides all of them, a heatmap and a line of `scores_<rank>.part.jsonl` an
image, and `scores.parquet` last: a folder without it is unfinished.
"""

import contextlib
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from lib.distributed import gather_objects, rank, world_size
from lib.errors import InputError
from lib.files import explaining_disk_errors, replacing, write_text, writing
from lib.records import read_lines
from lib.stores import PredictionStore, write_heatmap

GOING_ON = "where it stopped"  # after a full disk
AHEAD = 64  # images that may wait to be written, which at 768 px takes as long as a GPU takes to predict them


class GrowingStore:
    """Predictions on their way to a store, shared out over ranks; `left` are those that this rank must still write.

    Args:
        folder: of the store. identity: what decides every prediction; those of another identity are removed.
        marks: {id: what else decides this one's prediction}, in the order of the store; see `mark`.
    Raises InputError when `folder` holds something else or cannot be written.
    """

    def __init__(self, folder, identity: dict, marks: dict[str, str]):
        self.folder, self.marks, scores = Path(folder), marks, {}
        if rank() == 0:
            with writing(self.folder, "give a folder with write access and free space"):
                scores = self._begin(identity)
        # Rank 0 tells what is there: a folder that each lists may look different to each on a network file system.
        self.scores = gather_objects(scores)[0]
        self.left = [id for id in list(marks)[rank() :: world_size()] if id not in self.scores]

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[str, np.ndarray, float], None]]:
        """Gives write(id, heatmap uint8 [H, W], score), done in a thread beside the caller; a full disk is told."""
        path, waiting = self.folder / f"scores_{rank()}.part.jsonl", deque()
        # Line by line: a killed process has lost nothing that it wrote.
        with (
            explaining_disk_errors(self.folder, GOING_ON),
            open(path, "a", buffering=1, encoding="ascii") as log,
            ThreadPoolExecutor(1) as thread,
        ):

            def write(id: str, heatmap: np.ndarray, score: float) -> None:
                waiting.append(thread.submit(self._write, log, id, heatmap, score))
                if len(waiting) > AHEAD:
                    waiting.popleft().result()

            yield write
            for written in waiting:
                written.result()

    def finish(self) -> PredictionStore:
        """Gather the ranks' scores into scores.parquet, in the order of the marks."""
        scores = {id: score for part in gather_objects(self.scores) for id, score in part.items()}
        if rank() == 0:
            table = pd.DataFrame({"id": list(self.marks), "score": [scores[id] for id in self.marks]})
            with explaining_disk_errors(self.folder, GOING_ON), replacing(self.folder / "scores.parquet") as part:
                table.to_parquet(part, index=False)
        gather_objects(None)  # the table is there
        return PredictionStore(self.folder)

    def _write(self, log, id: str, heatmap: np.ndarray, score: float) -> None:
        write_heatmap(self._heatmap(id), heatmap)
        log.write(json.dumps({"id": id, "score": score, "mark": self.marks[id]}) + "\n")
        self.scores[id] = score

    def _begin(self, identity: dict) -> dict[str, float]:
        """Remove what was predicted with another identity or mark, and note these; {id: score} of what is left."""
        note, heatmaps = self.folder / "prediction.json", self.folder / "heatmaps"
        if heatmaps.is_dir() and not note.is_file():
            raise InputError(f"{self.folder} holds heatmaps that are no predictions of this kit; give another folder")
        logs = sorted(self.folder.glob("scores_*.part.jsonl"))
        if not note.is_file() or note.read_text(encoding="utf-8") != json.dumps(identity):
            for path in (self.folder / "scores.parquet", *logs):
                path.unlink(missing_ok=True)
            shutil.rmtree(heatmaps, ignore_errors=True)
            write_text(note, json.dumps(identity))
            logs = []
        heatmaps.mkdir(exist_ok=True)
        scores = {}
        for path in logs:
            # An image whose line is damaged is predicted again.
            rows = [row for row in read_lines(path, {"id": str, "score": float}, "delete it")[0] if self._counts(row)]
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            scores |= {row["id"]: row["score"] for row in rows}
        if not self.marks.keys() <= scores.keys():
            (self.folder / "scores.parquet").unlink(missing_ok=True)
        return scores

    def _counts(self, row: dict) -> bool:
        """Whether a line is of the same mark as now (or of an image not asked for now) and its heatmap is there."""
        return row.get("mark") == self.marks.get(row["id"], row.get("mark")) and self._heatmap(row["id"]).is_file()

    def _heatmap(self, id: str) -> Path:
        return self.folder / "heatmaps" / f"{id}.png"


def mark(*parts) -> str:
    """A hash of what decides a prediction: numbers, texts and lists of them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def file_mark(path: Path, remedy: str) -> list[int]:
    """Size and time of a file, which change when it is replaced; InputError with the remedy when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy}") from None
    return [status.st_size, status.st_mtime_ns]
