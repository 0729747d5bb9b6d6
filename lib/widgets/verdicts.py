"""What people say of single images while they inspect them: a verdict and a note, kept in a file of the run.

`runs/<run>/verdicts/<split>.jsonl` has one line an image: {"id", "verdict", "note", "threshold", "time"}. It is
written whole at every change, so that it survives the kernel, and read again before, so that two open notebooks do
not overwrite each other.
"""

import datetime
import json
from pathlib import Path

import filelock
import pandas as pd

from lib.errors import InputError
from lib.files import replacing, writing

VERDICTS = ("model right", "model wrong", "label wrong", "unsure")
KEYS = ("id", "verdict", "note", "threshold", "time")
REMEDY = "give the run's folder write access; nothing was saved"


class VerdictFile:
    """The verdicts on one split of one run. Every method reads or writes the file at once."""

    def __init__(self, path):
        self.path = Path(path)

    def read(self) -> dict[str, dict]:
        """id -> its line. Raises InputError naming a line that is damaged."""
        verdicts = {}
        # Not splitlines: a pasted note may hold U+2028 and its like, which JSON leaves as they are.
        lines = self.path.read_bytes().split(b"\n") if self.path.is_file() else []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                verdicts[row["id"]] = {key: row[key] for key in KEYS}
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.path}, line {number} is damaged; mend or delete that line") from None
        return verdicts

    def put(self, id: str, verdict: str = "", note: str = "", threshold: int | None = None) -> dict[str, dict]:
        """Keep a verdict (one of VERDICTS or empty) and a note; both empty forget the image. Returns all verdicts."""
        if verdict and verdict not in VERDICTS:
            raise InputError(f"{verdict!r} is no verdict; choose among {', '.join(VERDICTS)}")
        with writing(self.path.parent, REMEDY):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{self.path}.lock", timeout=10):
                verdicts = self.read()
                verdicts.pop(id, None)
                if verdict or note:
                    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                    verdicts[id] = dict(zip(KEYS, (id, verdict, note, threshold, now), strict=True))
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in verdicts.values()]
                with replacing(self.path) as part:
                    # Half a surrogate pair, as a cut emoji leaves it, has no UTF-8.
                    part.write_bytes("".join(lines).encode("utf-8", "replace"))
        return verdicts

    def table(self) -> pd.DataFrame:
        """One row an image, in the order of judging."""
        return pd.DataFrame(list(self.read().values()), columns=list(KEYS))

    def export(self, facts: pd.DataFrame | None = None) -> Path:
        """Write the verdicts as CSV beside the file, with the columns of `facts` (indexed by id); returns its path."""
        table = self.table()
        if facts is not None:
            table = table.join(facts.drop(columns=[name for name in KEYS if name in facts]), on="id")
        path = self.path.with_suffix(".csv")
        with writing(path.parent, REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                table.to_csv(part, index=False, encoding="utf-8")
        return path
