"""What people say of single images while they inspect them, kept as lines of a file beside the run.

`runs/<run>/verdicts/<split>.jsonl` holds JSON lines: {"id", "verdict", "note", "threshold", "time"} and maybe
"regions", the corrected regions of the label. Every change appends a whole line for its image, and the last line of
an image counts. Nothing is ever rewritten, so several notebooks may write, and no lock is needed.
"""

import datetime
import json
from pathlib import Path

import pandas as pd

from lib.data.readers.challenge import SHAPES, parse_region
from lib.data.regions import RegionError
from lib.errors import InputError
from lib.files import replacing, writing
from lib.records import read_lines

VERDICTS = ("model right", "model wrong", "label wrong", "unsure")
KINDS = {shape: number for number, shape in SHAPES.items()}
KEYS = ("id", "verdict", "note", "threshold", "time")
NOTHING = {"verdict": "", "note": "", "threshold": None, "regions": None}
REMEDY = "give the run's folder write access and free space"


def regions(value) -> bool:
    """a list of regions"""
    try:
        for one in value or []:
            if type(one.get("annotator", 0)) is not int or one.get("annotator", 0) < 0:
                return False
            parse_region({"bbox_type": KINDS[one["shape"]], "bbox": one["points"]}, 0)
    except (RegionError, LookupError, TypeError, AttributeError):
        return False
    return isinstance(value, list | None)


FIELDS = {"id": str, "verdict": str, "note": str, "threshold?": float | None, "regions?": regions}


class VerdictFile:
    """The verdicts, notes and corrections on one split of one run.

    `problem` says after each method what in the file cannot be used, and is empty when all can.
    """

    def __init__(self, path):
        self.path, self.problem, self._rows, self._version = Path(path), "", {}, None

    def rows(self) -> dict[str, dict]:
        """id -> what was said of the image, in the order of judging; read again only when the file has changed."""
        found = self.path.stat() if self.path.is_file() else None
        version = found and (found.st_ino, found.st_size, found.st_mtime_ns)
        if version is None or version != self._version:
            try:
                records, problems = read_lines(self.path, FIELDS, "give it read access")
                self.problem = f"{self.path}: {'; '.join(problems[:5])}; mend or delete" if problems else ""
            except InputError as error:
                records, self.problem = [], str(error)
            self._rows, self._version = {}, version
            for row in records:
                self._rows.pop(row["id"], None)  # a changed image moves to the end
                self._rows[row["id"]] = NOTHING | row
        return {
            id: row for id, row in self._rows.items() if row["verdict"] or row["note"] or row["regions"] is not None
        }

    def put(self, id: str, **said) -> dict:
        """Change what is said of an image; returns its row.

        Args:
            said: `verdict`, one of VERDICTS, or empty for none; `note`, a text; `threshold` (0..255) at which the
                verdict was given; `regions`, the corrected regions ({"shape": "rectangle" or "polygon", "points":
                [[x, y], ...] in image pixels, maybe "annotator": number}), or None for the label's own.
        Raises InputError for an unknown verdict, and when the file cannot be written.
        """
        if (verdict := said.get("verdict")) and verdict not in VERDICTS:
            raise InputError(f"{verdict!r} is no verdict; choose among {', '.join(VERDICTS)}")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {"id": id, **NOTHING} | self.rows().get(id, {}) | said | {"time": now}
        with writing(self.path.parent, REMEDY):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # a line that was cut stays alone
                # Half a surrogate pair, as a cut emoji leaves it, has no UTF-8.
                file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        return row

    def table(self) -> pd.DataFrame:
        """One row an image, in the order of judging; `corrected` tells whether it has corrected regions."""
        table = pd.DataFrame(list(self.rows().values()), columns=[*KEYS, "regions"])
        return table.assign(corrected=table.pop("regions").notna())

    def export(self, facts: pd.DataFrame) -> Path:
        """Write `table` as CSV beside the file, with the columns of `facts` (indexed by id); returns its path."""
        table, path = self.table(), self.path.with_suffix(".csv")
        table = table.join(facts.drop(columns=[name for name in table if name in facts]), on="id")
        with writing(path.parent, REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                table.to_csv(part, index=False, encoding="utf-8")
        return path
