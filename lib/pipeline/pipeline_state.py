"""What a pipeline has finished: `state.json`, by which the same command goes on where it was."""

import json
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.files import replacing
from lib.pipeline.plans import Step

INTERRUPTED = "interrupted"  # the `failure` of a step that a signal ended


@dataclass
class State:
    """`state.json`: step name -> {fingerprint, finished, failure, seconds, peak_memory_mb[, left_out]}."""

    path: Path
    steps: dict

    @classmethod
    def load(cls, path: Path) -> "State":
        if not path.exists():
            return cls(path, {})
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            return cls(path, {name: dict(entry) for name, entry in steps.items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is damaged; run again with --fresh to begin anew") from None

    def finished(self, step: Step, root: Path) -> bool:
        """Whether a step need not run: what it writes is there, by this very step unless it is one to reuse."""
        entry = self.steps.get(step.name, {})
        unchanged = entry.get("finished") and entry.get("fingerprint") == step.fingerprint
        return bool(unchanged or step.reuse) and all((root / path).exists() for path in step.writes)

    def told(self, step: Step, root: Path) -> dict:
        """The entry of a step with its `status`: finished, left out, reused, interrupted, failed, or not run."""
        entry = self.steps.get(step.name, {})
        if entry.get("left_out") and self.finished(step, root):
            return {"status": "left out"}
        if self.finished(step, root):
            return {"status": "finished" if entry.get("finished") else "reused", **entry}
        known = entry.get("failure") and entry["fingerprint"] == step.fingerprint
        if not known:
            return {"status": "not run"}
        return {"status": INTERRUPTED if entry["failure"] == INTERRUPTED else "failed", **entry}

    def add(self, step: Step, failure: str | None, seconds: float, peak_mb: float) -> None:
        """Record a run, `failure` telling what went wrong; the time of an unfinished attempt adds to the next one's."""
        entry = self.steps.get(step.name, {})
        if entry.get("finished") or entry.get("fingerprint") != step.fingerprint:
            entry = {}
        self.steps[step.name] = {
            "fingerprint": step.fingerprint,
            "finished": failure is None,
            "failure": failure,
            "seconds": entry.get("seconds", 0.0) + seconds,
            "peak_memory_mb": max(entry.get("peak_memory_mb", 0.0), peak_mb),
        }
        self._save()

    def leave_out(self, step: Step) -> None:
        """Record that there is nothing for a step to do."""
        self.add(step, None, 0.0, 0.0)
        self.steps[step.name]["left_out"] = True
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
