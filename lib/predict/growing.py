"""A prediction store while it is written; it notes what decides each prediction, so that an interrupted one can go on.

Written are `prediction.json` with what decides all of them, a heatmap and a line of `scores_<rank>.part.jsonl` an
image, and `scores.parquet` last: a folder without it is unfinished.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch.distributed as dist

from lib.distributed import rank, world_size
from lib.errors import InputError
from lib.files import full_disk_told, replacing, writing
from lib.stores import PredictionStore, write_heatmap

GOING_ON = "where it stopped"  # after a full disk


class GrowingStore:
    """Predictions on their way to a store, shared out over ranks; `left` are those that this rank must still write.

    Args:
        folder: of the store. identity: what decides every prediction; those of another identity are removed.
        marks: {id: what else decides this one's prediction}, in the order of the store; see `mark`.
    Raises InputError when `folder` holds something else or cannot be written.
    """

    def __init__(self, folder, identity: dict, marks: dict[str, str]):
        self.folder, self.marks = Path(folder), marks
        if rank() == 0:
            with writing(self.folder, "give a folder with write access and free space"):
                self._begin(identity)
        _wait_for_all()
        # Shared out first: another rank may have begun to write, and all must agree on who does what.
        mine, scores = list(marks)[rank() :: world_size()], self._scores()
        self.left = [id for id in mine if id not in scores]

    @contextlib.contextmanager
    def writer(self) -> Iterator[Callable[[str, np.ndarray, float], None]]:
        """Gives write(id, heatmap uint8 [H, W], score); a full disk inside is told."""
        path = self.folder / f"scores_{rank()}.part.jsonl"
        # Line by line: a killed process has lost nothing that it predicted.
        with full_disk_told(self.folder, GOING_ON), open(path, "a", buffering=1, encoding="ascii") as log:
            yield partial(self._write, log)

    def finish(self) -> PredictionStore:
        """Gather the ranks' scores into scores.parquet, in the order of the marks."""
        _wait_for_all()
        if rank() == 0:
            scores = self._scores()
            table = pd.DataFrame({"id": list(self.marks), "score": [scores[id] for id in self.marks]})
            with full_disk_told(self.folder, GOING_ON), replacing(self.folder / "scores.parquet") as part:
                table.to_parquet(part, index=False)
        _wait_for_all()
        return PredictionStore(self.folder)

    def _write(self, log, id: str, heatmap: np.ndarray, score: float) -> None:
        write_heatmap(self._heatmap(id), heatmap)
        log.write(json.dumps({"id": id, "score": score, "mark": self.marks[id]}) + "\n")

    def _begin(self, identity: dict) -> None:
        """Remove what was predicted with another identity or mark, and note these."""
        note, heatmaps = self.folder / "prediction.json", self.folder / "heatmaps"
        if heatmaps.is_dir() and not note.is_file():
            raise InputError(f"{self.folder} holds heatmaps that are no predictions of this kit; give another folder")
        if not note.is_file() or note.read_text(encoding="utf-8") != json.dumps(identity):
            for path in (self.folder / "scores.parquet", *self._logs()):
                path.unlink(missing_ok=True)
            shutil.rmtree(heatmaps, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(note) as part:
                part.write_text(json.dumps(identity), encoding="utf-8")
        heatmaps.mkdir(exist_ok=True)
        for path in self._logs():
            rows = [row for row in _rows(path) if self._stands(row)]
            with replacing(path) as part:
                part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
        if not self.marks.keys() <= self._scores().keys():
            (self.folder / "scores.parquet").unlink(missing_ok=True)

    def _stands(self, row: dict) -> bool:
        """Whether a line is of the same mark as now (or of an image not asked for now) and its heatmap is there."""
        return row.get("mark") == self.marks.get(row["id"], row.get("mark")) and self._heatmap(row["id"]).is_file()

    def _heatmap(self, id: str) -> Path:
        return self.folder / "heatmaps" / f"{id}.png"

    def _logs(self) -> list[Path]:
        return sorted(self.folder.glob("scores_*.part.jsonl"))

    def _scores(self) -> dict[str, float]:
        return {row["id"]: row["score"] for path in self._logs() for row in _rows(path)}


def mark(*parts) -> str:
    """A hash of what decides a prediction: numbers, texts and lists of them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def file_mark(path: Path, remedy: str) -> list[int]:
    """Size and time of a file, which change when it is replaced; InputError with the remedy when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy}") from None
    return [found.st_size, found.st_mtime_ns]


def _rows(log: Path) -> Iterator[dict]:
    """The lines of a rank; an image whose line is torn is predicted again."""
    for line in log.read_text(encoding="ascii", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _wait_for_all() -> None:
    if world_size() > 1:
        dist.barrier()
