"""`index.html` of a pipeline: how its steps went, the figures with intervals, what differs, small pictures.

One file without scripts that needs no network; it links the steps' pages beside it.
"""

import html
from pathlib import Path

from lib.config import Experiment, differing
from lib.pipeline.plans import Plan
from lib.pipeline.reports import columns_of, duration, rows_of
from lib.pipeline.thumbnails import thumbnails
from lib.plots.page import FIGURE_NAMES

NO_PAGE = ("not run", "left out")
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --line: #d5d5d5; --soft: #666; --good: #00704f; --bad: #b03a00; --link: #005a94; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --line: #444; --soft: #aaa; --good: #4fc3a1; --bad: #ff9d66; --link: #7cc4f5; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
a {{ color: var(--link); }} small, .soft {{ color: var(--soft); }} .bad {{ color: var(--bad); }}
.good {{ color: var(--good); }} .wide {{ overflow-x: auto; }} pre {{ white-space: pre-wrap; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .5rem; text-align: right; vertical-align: top; white-space: nowrap; }}
th:first-child, td:first-child, .words td, .words th {{ text-align: left; }}
tr + tr {{ border-top: 1px solid var(--line); }} td small {{ display: block; font-size: .75rem; }}
summary {{ margin: 1rem 0 .5rem; font-weight: bold; cursor: pointer; }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }} figcaption {{ font-size: .85rem; }}
figure img {{ width: 100%; height: 8rem; object-fit: contain; background: white; border: 1px solid var(--line); }}
</style></head><body>
{body}
</body></html>
"""


def write_index(plan: Plan, folder: Path, told: dict[str, dict], summary: dict | None) -> None:
    """Write `index.html` into `folder`; figures once there is a summary (of `lib.pipeline.reports.summarise`).

    `told` gives for each step its `status`, and where it ran `seconds`, `peak_memory_mb` and `failure`.
    """
    parts = [f"<h1>{html.escape(plan.name)}</h1>", _state(plan, told)]
    if summary:
        parts += [_figures(summary), _differences(plan, folder.parent)]
    pictures = list(_pictures(plan, folder, told))
    parts += ["<h2>Steps</h2>", _steps(plan, folder, told), "<h2>Pictures</h2>" if pictures else "", *pictures]
    text = PAGE.format(title=html.escape(plan.name), body="\n".join(filter(None, parts)))
    (folder / "index.html").write_text(text, encoding="utf-8")


def _state(plan: Plan, told: dict[str, dict]) -> str:
    """One line for the whole, and what failed in its own words."""
    done = [name for name, entry in told.items() if entry["status"] in ("finished", "reused", "left out")]
    seconds = sum(entry.get("seconds", 0.0) for entry in told.values())
    peak = max((entry.get("peak_memory_mb", 0.0) for entry in told.values()), default=0.0)
    text = f"{len(done)} of {len(told)} steps finished; time {duration(seconds)}, peak memory {peak:,.0f} MiB."
    failed = [
        f'<p class="bad"><strong>{html.escape(name)} failed</strong></p><pre>{html.escape(entry["failure"])}</pre>'
        for name, entry in told.items()
        if entry["status"] == "failed"
    ]
    stopped = [
        f"<p><strong>{html.escape(name)} was interrupted</strong>; the same command goes on there.</p>"
        for name, entry in told.items()
        if entry["status"] == "interrupted"
    ]
    return "\n".join([f"<p>{text}</p>", *failed, *stopped])


def _figures(summary: dict) -> str:
    rows = rows_of(summary)
    names = columns_of(rows)
    if not names:
        return "<p>There are no labels, so nothing could be measured.</p>"
    head = ["", *(FIGURE_NAMES.get(name, name.capitalize()) for name in names)]
    cells = [[html.escape(row), *(_cell(entry, name) for name in names)] for row, entry in rows.items()]
    splits = ", ".join(dict.fromkeys(entry["split"] for entry in rows.values() if "split" in entry))
    note = f'<p class="soft">{html.escape(splits)}; below a figure its 95 % interval. '
    return f'<h2>Figures</h2>{_table(head, cells)}{note}<a href="summary.json">summary.json</a></p>'


def _cell(entry: dict, name: str) -> str:
    value, interval = entry.get(name), (entry.get("intervals") or {}).get(name)
    if value is None:
        return "-"
    text = f"{value:.3f}" if isinstance(value, float) else f"{value:,}"
    known = interval and None not in interval
    return text + (f"<small>{interval[0]:.2f}–{interval[1]:.2f}</small>" if known else "")


def _differences(plan: Plan, runs: Path) -> str:
    """The parameters that are not the same in all experiments of the summary; the longer side runs down the page."""
    files = {row: runs / experiment / "config.yaml" for row, experiment in plan.summary.items()}
    configs = {row: Experiment.from_yaml(file).to_dict() for row, file in files.items() if file.exists()}
    names = differing(configs)
    if not names:
        return ""
    cells = [["", *names], *([row, *(config[name] for name in names)] for row, config in configs.items())]
    if len(names) > len(configs):
        cells = list(zip(*cells, strict=True))
    head, *rows = [[html.escape(str(cell)) for cell in row] for row in cells]
    return "<h2>Parameters that differ</h2>" + _table(head, rows, "words")


def _steps(plan: Plan, folder: Path, told: dict[str, dict]) -> str:
    rows = []
    for number, step in enumerate(plan.steps, 1):
        entry, page = told[step.name], folder / f"{step.stem}.html"
        linked = page.exists() and entry["status"] not in NO_PAGE  # or the page is that of an earlier result
        name = f"{number}. {html.escape(step.name)}"
        look = {"finished": "good", "failed": "bad"}.get(entry["status"], "soft")
        rows.append([
            f'<a href="{html.escape(page.name)}">{name}</a>' if linked else name,
            f'<span class="{look}">{entry["status"]}</span>',
            duration(entry["seconds"]) if "seconds" in entry else "-",
            f"{entry['peak_memory_mb']:,.0f} MiB" if "peak_memory_mb" in entry else "-",
        ])  # fmt: skip
    return _table(["Step", "State", "Time", "Peak memory"], rows)


def _pictures(plan: Plan, folder: Path, told: dict[str, dict]):
    """For each step, those of a sweep's rows last, one small picture a section, which leads to the section."""
    ran = [step for step in plan.steps if told[step.name]["status"] not in NO_PAGE]
    for step in sorted(ran, key=lambda step: bool(step.row)):
        page = html.escape(f"{step.stem}.html")
        figures = [
            f'<figure><a href="{page}#{html.escape(small.anchor)}"><img loading="lazy" alt="" src="{small.source}">'
            f"<figcaption>{html.escape(small.heading)}</figcaption></a></figure>"
            for small in thumbnails(folder / "notebooks" / f"{step.stem}.ipynb")
        ]
        if figures:
            shown = "" if step.row else " open"  # a sweep repeats the same pictures
            name = f'<summary><a href="{page}">{html.escape(step.name)}</a></summary>'
            yield f'<details{shown}>{name}<div class="pictures">{"".join(figures)}</div></details>'


def _table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    """An HTML table of cells that are HTML already; it scrolls where the window is narrower."""
    body = _row(head, "th") + "".join(_row(row, "td") for row in rows)
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def _row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
