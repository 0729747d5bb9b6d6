"""What a pipeline leaves to look at besides its pages: the table of figures and the closing words.

Figures come from `runs/<experiment>/evaluation.json` (see `lib.evaluation_file`), written by notebook 3.
"""

from pathlib import Path

from lib.errors import InputError
from lib.evaluation_file import NAME, read_evaluation
from lib.pipeline.plans import Plan

COLUMNS = ("final_score", "f1_score", "precision", "recall", "giou", "plcc", "srcc", "rmse_mos", "threshold")


def evaluation_of(run: Path) -> dict:
    """The evaluation of one run, its figures None where the split has no labels; InputError when there is none."""
    evaluation = read_evaluation(run)
    if not evaluation:
        raise InputError(f"{run / NAME} does not exist; the plan's `summary` needs a step that writes it")
    if not isinstance(evaluation.get("figures", ""), dict | None):
        raise InputError(f"{run / NAME} is not what notebook 3 writes; evaluate the run again")
    return evaluation


def summarise(plan: Plan, runs: Path) -> dict:
    """Rows of the plan's `summary` with their figures, and the trivial baseline of the first.

    Returns {row: {figures..., "split", "intervals", "before_fine_tuning", "by_domain", "threshold", "trained_share",
    "run_megabytes"}, "trivial": {figures}}; keys without a value are left out.
    """
    summary, trivial = {}, None
    for row, experiment in plan.summary.items():
        evaluation = evaluation_of(runs / experiment)
        train = evaluation.get("train") or {}
        extra = {
            "split": evaluation.get("split"),
            "threshold": evaluation.get("threshold"),
            "intervals": evaluation.get("intervals"),
            "before_fine_tuning": evaluation.get("before"),
            "by_domain": evaluation.get("by_domain"),
            "trained_share": train.get("trained_share_of_encoder"),
            "run_megabytes": train.get("run_megabytes"),
        }
        summary[row] = (evaluation["figures"] or {}) | {key: value for key, value in extra.items() if value is not None}
        trivial = trivial or evaluation.get("trivial")
    return summary | ({"trivial": trivial} if trivial else {})


def rows_of(summary: dict) -> dict[str, dict]:
    """The table's rows by name: each entry of the summary, the same before fine-tuning, the trivial baseline."""
    rows = {}
    for name, entry in summary.items():
        if isinstance(entry, dict):
            rows[name] = entry
            if entry.get("before_fine_tuning"):
                rows[f"{name} before fine-tuning"] = entry["before_fine_tuning"]
    return rows


def columns_of(rows: dict[str, dict]) -> list[str]:
    """The figures that at least one row has."""
    return [name for name in COLUMNS if any(row.get(name) is not None for row in rows.values())]


def table(summary: dict) -> list[list[str]]:
    """Header and rows as text."""
    rows = rows_of(summary)
    columns = columns_of(rows)
    cells = [[name, *(_cell(row.get(key)) for key in columns)] for name, row in rows.items()]
    return [["", *columns], *cells] if cells else []


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def as_text(rows: list[list[str]]) -> str:
    """A table in fixed-width letters, first column left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    formats = [f"{{:{'>' if column else '<'}{width}}}" for column, width in enumerate(widths)]
    return "\n".join("  ".join(form.format(cell) for form, cell in zip(formats, row, strict=True)) for row in rows)


def closing(plan: Plan, folder: Path, summary: dict) -> str:
    """What the pipeline prints at its end: the table, time and memory, the paths to look at."""
    lines = ["", as_text(table(summary)), ""] if plan.summary else [""]
    for row, entry in summary.items():
        if isinstance(entry, dict) and "trained_share" in entry:
            size = f", run folder {entry['run_megabytes']:.1f} MB" if "run_megabytes" in entry else ""
            lines.append(f"{row}: trained {entry['trained_share']:.1%} of the encoder's weights{size}")
    lines.append(f"time {duration(summary['seconds'])}, peak memory {summary['peak_memory_mb']} MiB")
    lines += ["", "Look at:", f"  {folder / 'index.html'}"]
    lines += [f"  {page}" for page in pages(plan, folder)]
    return "\n".join([*lines, f"  {folder / 'summary.json'}"])


def pages(plan: Plan, folder: Path) -> list[Path]:
    """The steps' HTML pages that exist, in order."""
    candidates = [folder / f"{step.stem}.html" for step in plan.steps]
    return [page for page in candidates if page.exists()]


def duration(seconds: float) -> str:
    """'42 s', '3 min 07 s' or '2 h 05 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
