"""What the reader of the mask inspector says of images: saved at once, or kept for as long as it cannot be."""

from lib.widgets.guard import told
from lib.widgets.verdicts import VerdictFile


class Judging:
    """Verdicts and notes by image: those of `file`, a `VerdictFile`, and those that could not be written there yet."""

    def __init__(self, path):
        self.file = VerdictFile(path)
        self._unsaved, self._reason = {}, ""

    @property
    def error(self) -> str:
        """Why the file does not hold all that was said; empty when it does."""
        if not self._unsaved:
            return self.file.problem
        images = f"{len(self._unsaved):,} image{'s' * (len(self._unsaved) > 1)}"
        return f"{self._reason}. What you said of {images} is kept here; every step tries to save it."

    def known(self) -> dict[str, dict]:
        """id -> what was said of the image, with at least `verdict` and `note`; what is not saved yet included."""
        rows = self.file.read()
        nothing = {"verdict": "", "note": ""}
        return rows | {id: nothing | rows.get(id, {}) | said for id, said in self._unsaved.items()}

    def say(self, id: str, threshold: int, seen: str, **said: str) -> None:
        """Keep a `verdict` or a `note`; `seen` is the note that the reader saw until now, see `VerdictFile.put`."""
        self._unsaved[id] = {"seen": seen} | self._unsaved.get(id, {}) | {"threshold": threshold} | said
        self.save()

    def save(self) -> None:
        """Write what is not saved yet; what cannot be written stays, whatever the reason."""
        for id, said in list(self._unsaved.items()):
            try:
                self.file.put(id, **said)
            except Exception as error:
                self._reason = told(error)
                return
            del self._unsaved[id]
