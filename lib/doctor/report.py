"""A finding, and how a list of them is told."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OK, WARN, BAD = "ok", "warn", "bad"


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was seen. `bad`: something that is needed is missing; `warn`: worth knowing."""

    name: str
    state: str  # ok | warn | bad
    told: str
    remedy: str = ""


class Report(list):
    """Findings; shown as lines, in a terminal and below a cell."""

    @property
    def missing(self) -> list[str]:
        return [finding.name for finding in self if finding.state == BAD]

    def __repr__(self) -> str:
        width = max((len(finding.name) for finding in self), default=0)
        lines = []
        for finding in self:
            lines.append(f"{finding.state:4}  {finding.name:{width}}  {finding.told}")
            lines += [f"{'':6}{'':{width}}  -> {finding.remedy}"] if finding.remedy else []
        end = f"Missing: {', '.join(self.missing)}." if self.missing else "Nothing that is needed is missing."
        return "\n".join([*lines, end])


def gigabytes(size: float) -> str:
    """Bytes as '12 GB' or '0.5 GB'."""
    return f"{size / 1e9:.0f} GB" if size >= 9.5e9 else f"{size / 1e9:.1f} GB"
