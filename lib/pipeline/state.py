"""What a pipeline has finished: `state.json`, by which the same command goes on where it was."""

import json
from pathlib import Path

from lib.errors import InputError
from lib.files import replacing
from lib.pipeline.plans import Step

INTERRUPTED = "interrupted"  # the `failure` of a step that a signal ended


class State:
    """`state.json`: step name -> {fingerprint, finished, failure, seconds, peak_memory_mb[, left_out]}.

    Args:
        path: of the file. root: the folder to which the paths that a step `writes` belong. fresh: forget what is there.
    """

    def __init__(self, path: Path, root: Path, fresh: bool = False):
        self.path, self.root, self.steps = path, root, {}
        if path.exists() and not fresh:
            try:
                self.steps = {name: dict(entry) for name, entry in json.loads(path.read_bytes())["steps"].items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{path} is damaged; run again with --fresh to begin anew") from None

    def finished(self, step: Step) -> bool:
        """Whether a step need not run: what it writes is there, by this very step unless it is one to reuse."""
        entry = self.steps.get(step.name, {})
        unchanged = entry.get("finished") and entry.get("fingerprint") == step.fingerprint
        return bool(unchanged or step.reuse) and all((self.root / path).exists() for path in step.writes)

    def report(self, step: Step) -> dict:
        """The entry of a step with its `status`: finished, left out, reused, interrupted, failed, or not run."""
        entry = self.steps.get(step.name, {})
        if self.finished(step):
            if entry.get("left_out"):
                return {"status": "left out"}
            return {"status": "finished" if entry.get("finished") else "reused", **entry}
        if not entry.get("failure") or entry["fingerprint"] != step.fingerprint:
            return {"status": "not run"}
        return {"status": INTERRUPTED if entry["failure"] == INTERRUPTED else "failed", **entry}

    def add(self, step: Step, failure: str | None, seconds: float, peak_mb: float, left_out: bool = False) -> None:
        """Record a run; the time of an unfinished attempt adds to the next one's."""
        before = self.steps.get(step.name, {})
        if before.get("finished") or before.get("fingerprint") != step.fingerprint:
            before = {}
        self.steps[step.name] = {
            "fingerprint": step.fingerprint,
            "finished": failure is None,
            "failure": failure,
            "seconds": before.get("seconds", 0.0) + seconds,
            "peak_memory_mb": max(before.get("peak_memory_mb", 0.0), peak_mb),
        } | ({"left_out": True} if left_out else {})
        self._save()

    def forget(self, names: list[str]) -> None:
        """Drop steps about to be made anew; the time of unfinished attempts at the first one stays."""
        for name in names:
            if name != names[0] or self.steps.get(name, {}).get("finished"):
                self.steps.pop(name, None)
        self._save()

    def _save(self) -> None:
        with replacing(self.path) as part:
            part.write_text(json.dumps({"steps": self.steps}, indent=2), encoding="utf-8")
