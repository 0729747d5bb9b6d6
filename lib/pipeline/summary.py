"""What a pipeline leaves to look at besides its pages: the table of figures and `index.html`.

Figures come from `runs/<experiment>/evaluation.json`, written by notebook 3.
"""

import html
from pathlib import Path

import pandas as pd

from lib.config import Experiment, differing
from lib.errors import InputError
from lib.evaluation_file import NAME, read_evaluation
from lib.pipeline.plans import Plan

COLUMNS = {
    "final_score": "Final score", "f1_score": "F1", "precision": "Precision", "recall": "Recall", "giou": "GIoU",
    "plcc": "PLCC", "srcc": "SRCC", "rmse_mos": "RMSE of MOS", "threshold": "Threshold",
}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --line: #d5d5d5; --soft: #666; --bad: #b03a00; --link: #005a94; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #aaa; --bad: #ff9d66; --link: #7cc4f5; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
a { color: var(--link); } small, .soft { color: var(--soft); } .bad { color: var(--bad); }
.wide { overflow-x: auto; } pre { white-space: pre-wrap; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; border: 0; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border: 0; }
tr + tr, tbody { border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } td small { display: block; white-space: nowrap; }
"""


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
        extra = {name: evaluation.get(name) for name in ("split", "threshold", "intervals", "by_domain")}
        extra |= {"before_fine_tuning": evaluation.get("before"), "run_megabytes": train.get("run_megabytes")}
        extra["trained_share"] = train.get("trained_share_of_encoder")
        summary[row] = (evaluation["figures"] or {}) | {key: value for key, value in extra.items() if value is not None}
        trivial = trivial or evaluation.get("trivial")
    return summary | ({"trivial": trivial} if trivial else {})


def rows_of(summary: dict) -> dict[str, dict]:
    """The table's rows by name: each entry of the summary, the same before fine-tuning, the trivial baseline."""
    rows = {}
    for name, entry in summary.items():
        if isinstance(entry, dict):
            rows[name] = entry
            if before := entry.get("before_fine_tuning"):
                rows[f"{name} before fine-tuning"] = before
    return rows


def figures_of(summary: dict) -> pd.DataFrame:
    """The figures that at least one row has, a row an entry, as numbers."""
    table = pd.DataFrame.from_dict(rows_of(summary), orient="index")
    return table[[name for name in COLUMNS if name in table and table[name].notna().any()]]


def as_text(summary: dict) -> str:
    """What the pipeline prints at its end: the table of figures, shares that trained, time and memory."""
    lines, table = [""], figures_of(summary)
    if table.size:
        shown = {"threshold": "{:.0f}".format} if "threshold" in table else {}
        lines += [table.to_string(formatters=shown, float_format="{:.4f}".format, na_rep="-"), ""]
    for row, entry in summary.items():
        if isinstance(entry, dict) and "trained_share" in entry:
            size = f", run folder {entry['run_megabytes']:.1f} MB" if "run_megabytes" in entry else ""
            lines.append(f"{row}: trained {entry['trained_share']:.1%} of the encoder's weights{size}")
    return "\n".join([*lines, f"time {duration(summary['seconds'])}, peak memory {summary['peak_memory_mb']} MiB"])


def duration(seconds: float) -> str:
    """'42 s', '3 min 07 s' or '2 h 05 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def write_index(plan: Plan, folder: Path, steps: dict[str, dict], summary: dict | None = None) -> None:
    """Write `index.html` into `folder`: one plain page without scripts that links the steps' pages.

    Arguments: `steps` gives for each step its `status`, and where it ran `seconds`, `peak_memory_mb` and `failure`;
    `summary` as `summarise` gives it, once there is one.
    """
    name, done = html.escape(plan.name), ("finished", "reused", "left out")
    seconds = sum(entry.get("seconds", 0.0) for entry in steps.values())
    count = sum(entry["status"] in done for entry in steps.values())
    parts = [f"<h1>{name}</h1>", f"<p>{count} of {len(steps)} steps finished; time {duration(seconds)}.</p>"]
    for step, entry in steps.items():
        if entry["status"] == "failed":
            why = html.escape(entry["failure"])
            parts.append(f'<p class="bad"><strong>{html.escape(step)} failed</strong></p><pre>{why}</pre>')
        if entry["status"] == "interrupted":
            parts.append(
                f"<p><strong>{html.escape(step)} was interrupted</strong>; the same command goes on there.</p>"
            )
    if summary:
        parts += _figures(summary) + _differences(plan, folder.parent)
    parts += ["<h2>Steps</h2>", _steps(plan, folder, steps)]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}'
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</title><style>{STYLE}</style></head><body>\n'
    (folder / "index.html").write_text(page + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")


def _figures(summary: dict) -> list[str]:
    """A sentence, the table of figures with their intervals, and where they are from."""
    table, rows = figures_of(summary), rows_of(summary)
    if not table.size:
        return ["<p>There are no labels, so nothing could be measured.</p>"]
    cells = {
        name: [_cell(value, (rows[row].get("intervals") or {}).get(name)) for row, value in table[name].items()]
        for name in table
    }
    frame = pd.DataFrame(cells, index=map(html.escape, table.index)).rename(columns=COLUMNS)
    splits = ", ".join(dict.fromkeys(entry["split"] for entry in rows.values() if "split" in entry))
    parts = ["<h2>Figures</h2>", _table(frame)]
    if "final_score" in table:
        finals = [f"{html.escape(row)} {value:.3f}" for row, value in table["final_score"].dropna().items()]
        parts.insert(1, f"<p>Final score: {', '.join(finals)}.</p>")
    note = f"{html.escape(splits)}; below a figure its 95 % interval."
    return [*parts, f'<p class="soft">{note} <a href="summary.json">summary.json</a></p>']


def _cell(value, interval) -> str:
    if pd.isna(value):
        return "-"
    text = f"{value:.3f}" if value % 1 else f"{value:,.0f}"
    known = interval and None not in interval
    return text + (f"<small>{interval[0]:.2f} to {interval[1]:.2f}</small>" if known else "")


def _differences(plan: Plan, runs: Path) -> list[str]:
    """The parameters that are not the same in all experiments of the summary, a row a parameter."""
    files = {row: runs / experiment / "config.yaml" for row, experiment in plan.summary.items()}
    configs = {row: Experiment.from_yaml(file).to_dict() for row, file in files.items() if file.exists()}
    names = differing(configs)
    if not names:
        return []
    cells = {html.escape(row): [html.escape(str(config[name])) for name in names] for row, config in configs.items()}
    return ["<h2>Parameters that differ</h2>", _table(pd.DataFrame(cells, index=names))]


def _steps(plan: Plan, folder: Path, steps: dict[str, dict]) -> str:
    rows = {}
    for number, step in enumerate(plan.steps, 1):
        entry, page = steps[step.name], folder / f"{step.stem}.html"
        name = f"{number}. {html.escape(step.name)}"
        # Of a step that did not run the page is that of an earlier result.
        if page.exists() and entry["status"] not in ("not run", "left out"):
            name = f'<a href="{html.escape(page.name)}">{name}</a>'
        ran = "seconds" in entry
        rows[name] = {
            "State": f'<span class="{"bad" if entry["status"] == "failed" else ""}">{entry["status"]}</span>',
            "Time": duration(entry["seconds"]) if ran else "-",
            "Peak memory": f"{entry['peak_memory_mb']:,.0f} MiB" if ran else "-",
        }
    return _table(pd.DataFrame.from_dict(rows, orient="index"))


def _table(frame: pd.DataFrame) -> str:
    """An HTML table of cells that are HTML already; it scrolls where the window is narrower."""
    with pd.option_context("display.max_colwidth", None):
        return f'<div class="wide">{frame.to_html(escape=False, border=0)}</div>'
