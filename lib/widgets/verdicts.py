"""What people say of single images while they inspect them: a verdict and a note, kept in a file of the run.

`runs/<run>/verdicts/<split>.jsonl` has one line an image: {"id", "verdict", "note", "threshold", "time"}, the threshold
being the one at which the verdict was given. It is written whole at every change, so that it survives the kernel: what
changed is put on top of what the file says by then, so that two open notebooks do not overwrite each other. Of two
verdicts on an image the later one stands, of two notes both. While a line cannot be used nothing is written, so that
it is not lost either.
"""

import codecs
import datetime
import json
from pathlib import Path

import filelock
import pandas as pd

from lib.errors import InputError
from lib.files import replacing, writing
from lib.widgets.html import as_text

VERDICTS = ("model right", "model wrong", "label wrong", "unsure")
KEYS = ("id", "verdict", "note", "threshold", "time")
REMEDY = "give the run's folder write access; nothing was saved"
PATIENCE = 5  # seconds to wait for another notebook that is writing


class VerdictFile:
    """The verdicts on one split of one run. Every method looks into the file at once.

    `problem` says after each of them what in the file cannot be used, and is empty when all can. `say` keeps what
    cannot be written for as long as that lasts; `put` raises.
    """

    def __init__(self, path):
        self.path, self.problem = Path(path), ""
        self._rows, self._version = {}, ()
        self._unsaved, self._reason = {}, ""

    @property
    def error(self) -> str:
        """Why the file does not hold all that was said; empty when it does."""
        if not self._unsaved:
            return self.problem
        return f"{self._reason}. Not saved yet: {', '.join(self._unsaved)}. Every step tries again."

    def known(self) -> dict[str, dict]:
        """id -> what was said of the image, with at least `verdict` and `note`; what is not saved yet included."""
        rows, nothing = self.read(), {"verdict": "", "note": ""}
        return rows | {id: nothing | rows.get(id, {}) | said for id, said in self._unsaved.items()}

    def say(self, id: str, threshold: int, seen: str, **said: str) -> None:
        """Keep a `verdict` or a `note` and try to save it; arguments as in `put`."""
        self._unsaved[id] = {"seen": seen} | self._unsaved.get(id, {}) | {"threshold": threshold} | said
        self.save()

    def save(self) -> None:
        """Write what is not saved yet; what cannot be written stays, whatever the reason."""
        for id, said in list(self._unsaved.items()):
            try:
                self.put(id, **said)
            except Exception as error:
                self._reason = as_text(error)
                return
            del self._unsaved[id]

    def read(self) -> dict[str, dict]:
        """id -> its line, without the lines that cannot be used; cheap while the file does not change."""
        try:
            found = self.path.stat()
            version = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
            if version != self._version:
                self._rows, problems = parse(self.path.read_bytes())
                more = f" (and {len(problems) - 1} more lines)" if problems[1:] else ""
                self.problem = (
                    f"{self.path}, {problems[0]}{more}. Until then nothing is saved there" if problems else ""
                )
                self._version = version
        except (FileNotFoundError, NotADirectoryError):
            self._rows, self.problem, self._version = {}, "", ()
        except OSError as error:
            self._rows, self._version = {}, ()
            self.problem = f"{self.path} cannot be read ({error.strerror or error}); give it read access"
        return self._rows

    def put(self, id: str, verdict=None, note=None, threshold: int | None = None, seen=None) -> dict[str, dict]:
        """Change what the file says of an image; returns all verdicts.

        Arguments: `verdict` one of VERDICTS, or empty for none; `note` a text; None leaves either as it is, and when
        both are empty the image is forgotten; `threshold` at which the verdict was given; `seen` the note that the
        writer saw: another one that came into the file since then stays, too (None: it does not).
        Raises InputError for an unknown verdict, and when the file cannot be written or a line of it not be used.
        """
        if verdict and verdict not in VERDICTS:
            raise InputError(f"{verdict!r} is no verdict; choose among {', '.join(VERDICTS)}")
        with writing(self.path.parent, REMEDY):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{self.path}.lock", timeout=PATIENCE):
                rows = dict(self.read())
                self._refuse_problem()
                row = _updated(rows.pop(id, {"id": id}), verdict, note, threshold, seen)
                if row["verdict"] or row["note"]:
                    rows[id] = row
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
                with replacing(self.path) as part:
                    # Half a surrogate pair, as a cut emoji leaves it, has no UTF-8.
                    part.write_bytes(text.encode("utf-8", "replace"))
                return self.read()

    def _refuse_problem(self) -> None:
        if self.problem:
            raise InputError(self.problem)

    def table(self) -> pd.DataFrame:
        """One row an image, in the order of judging."""
        return pd.DataFrame(list(self.read().values()), columns=list(KEYS))

    def export(self, facts: pd.DataFrame | None = None) -> Path:
        """Write the verdicts as CSV beside the file, with the columns of `facts` (indexed by id); returns its path.

        Raises InputError as `put` does: a table that lacks verdicts would not show it.
        """
        table = self.table()
        self._refuse_problem()
        if facts is not None:
            table = table.join(facts.drop(columns=[name for name in KEYS if name in facts]), on="id")
        path = self.path.with_suffix(".csv")
        with writing(path.parent, REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                table.to_csv(part, index=False, encoding="utf-8")
        return path


def parse(data: bytes) -> tuple[dict[str, dict], list[str]]:
    """The lines of a file of verdicts by id, and what is wrong with those that cannot be used."""
    rows, problems = {}, []
    # Not splitlines: a pasted note may hold U+2028 and its like, which JSON leaves as they are.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        row, problem = _row(line)
        if not problem and row["id"] in rows:
            problem = f"holds the id {row['id']!r} for the second time; delete one of the two lines"
        if problem:
            problems.append(f"line {number} {problem}")
        else:
            rows[row["id"]] = row
    return rows, problems


def _row(line: bytes) -> tuple[dict, str]:
    """(row, what is wrong with it)"""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}, "is no JSON in UTF-8; mend or delete it"
    missing = [key for key in KEYS if not isinstance(row, dict) or key not in row]
    if missing:
        return {}, f"holds no {', '.join(missing)}; add what is missing or delete it"
    if row["verdict"] not in ("", *VERDICTS):
        words = ", ".join(VERDICTS)
        return {}, f"holds the verdict {row['verdict']!r}; write {words} or nothing between the quotes"
    for key in ("id", "note"):
        if not isinstance(row[key], str):
            return {}, f"holds the {key} {row[key]!r}; write a text in quotes there"
    return row, ""


def _updated(row: dict, verdict=None, note=None, threshold=None, seen=None) -> dict:
    """A line of the file with what `VerdictFile.put` is to change; further keys that it has stay."""
    old = {"id": row["id"], "verdict": "", "note": "", "threshold": threshold} | row
    if verdict is not None:
        old |= {"verdict": verdict, "threshold": threshold}
    if note is not None:
        unseen = "" if seen is None or old["note"] in (seen, note) else old["note"]
        old["note"] = "\n".join(filter(None, [unseen, note]))
    return old | {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
