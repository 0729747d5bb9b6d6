"""What a pipeline has finished: `state.json`, by which the same command goes on where it was."""

import json
from pathlib import Path

from lib.files import replacing
from lib.pipeline.plans import Step
from lib.records import read_record

INTERRUPTED = "interrupted"  # the `failure` of a step that a signal ended


class State:
    """`state.json`: step name -> {fingerprint, finished, failure, seconds, peak_memory_mb}, or {..., left_out}.

    Args:
        path: of the file. root: the folder to which the paths that a step `writes` belong. fresh: forget what is there.
    """

    def __init__(self, path: Path, root: Path, fresh: bool = False):
        self.path, self.root, self.steps = path, root, {}
        if path.exists() and not fresh:
            steps = read_record(path, {"steps": dict}, "run again with --fresh to begin anew")["steps"]
            self.steps = {name: entry for name, entry in steps.items() if isinstance(entry, dict)}  # others run again

    def finished(self, step: Step) -> bool:
        """Whether a step need not run: it ended well, nothing of it has changed, and what it writes is there."""
        entry = self.steps.get(step.name, {})
        unchanged = entry.get("finished") and entry.get("fingerprint") == step.fingerprint
        return bool(unchanged) and all((self.root / path).exists() for path in step.writes)

    def report(self, step: Step) -> dict:
        """The step's entry with its `status`: finished, left out, interrupted, failed, or not run."""
        entry = self.steps.get(step.name, {})
        if self.finished(step):
            return {"status": "left out"} if entry.get("left_out") else {"status": "finished", **entry}
        if not entry.get("failure") or entry.get("fingerprint") != step.fingerprint:
            return {"status": "not run"}
        return {"status": INTERRUPTED if entry["failure"] == INTERRUPTED else "failed", **entry}

    def add(self, step: Step, failure: str | None, **facts) -> None:
        """Record how a step ended, with `seconds` and `peak_memory_mb`, or that it is `left_out`."""
        entry = {"fingerprint": step.fingerprint, "finished": failure is None, "failure": failure}
        self.steps[step.name] = entry | facts
        self._save()

    def forget(self, names: list[str]) -> None:
        """Drop steps that are about to be made anew."""
        self.steps = {name: entry for name, entry in self.steps.items() if name not in names}
        self._save()

    def _save(self) -> None:
        with replacing(self.path) as part:
            part.write_text(json.dumps({"steps": self.steps}, indent=2), encoding="utf-8")
