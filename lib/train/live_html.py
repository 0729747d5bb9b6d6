"""How a training looks in JupyterLab: a bar, the time left, and curves as SVG. `lib.train.live` says when to draw it.

Plain HTML without scripts: it stays in the saved notebook and in exported pages, and follows Lab's theme.
"""

import html
import math
from dataclasses import dataclass, field

from lib.plots.style import BLUE, GREEN, ORANGE, VERMILION
from lib.plots.tables import FIGURE_NAMES
from lib.train.tracking import clock

# Colours as in `lib.plots.learning_curve`, so that the live curves and the figure after them read the same.
LOSSES = {"loss": BLUE, "mask_loss": ORANGE, "score_loss": GREEN}
FIGURES = {"val_final_score": BLUE, "val_f1_score": ORANGE, "val_plcc": GREEN, "val_srcc": VERMILION}
STAGES = {"warmup": "warm-up"}
TOLD = {
    "starting": "Starting",
    "training": "Training",
    "stopping": "Stopping; the run is saved first",
    "finished": "Trained",
    "stopped": "Stopped; run the cell again to go on",
    "failed": "Failed; the reason is below",
    "resting": "Not being trained now",
}
MOST_POINTS = 250  # of a line; a longer log is averaged piece by piece
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 185, 40, 12, 16, 24  # of a chart, in units of its viewBox
NAME_WIDTH = 50  # of a stage's name, in the same units
NOTHING = f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing measured yet</text>'

PAGE = """<style>
.live-training {{ font: 13px/1.5 var(--jp-ui-font-family, system-ui, sans-serif); max-width: 1100px; padding: 4px 0;
  color: var(--jp-content-font-color1, #212121); font-variant-numeric: tabular-nums; }}
.live-training .row {{ display: flex; flex-wrap: wrap; gap: 0 1.2em; align-items: baseline; }}
.live-training .row > :last-child {{ margin-left: auto; }}
.live-training .bar {{ height: 6px; border-radius: 3px; margin: 4px 0 10px; overflow: hidden;
  background: var(--jp-border-color2, #e0e0e0); }}
.live-training .bar div {{ height: 100%; }}
.live-training .charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr));
  gap: 8px 24px; }}
.live-training .chart {{ min-width: 0; max-width: 560px; }}
.live-training .chart small {{ margin-left: 0.5em; color: var(--jp-content-font-color2, #616161); }}
.live-training .legend {{ display: flex; flex-wrap: wrap; gap: 0 1em; min-height: 1.5em; }}
.live-training .legend i {{ display: inline-block; width: 14px; height: 3px; margin-right: 5px; border-radius: 1px;
  vertical-align: middle; }}
.live-training svg {{ display: block; width: 100%; height: auto; }}
.live-training svg text {{ font: 11px var(--jp-ui-font-family, system-ui, sans-serif);
  fill: var(--jp-content-font-color2, #616161); }}
.live-training svg .grid {{ stroke: var(--jp-border-color2, #e0e0e0); stroke-opacity: 0.6; }}
.live-training svg .stage {{ stroke: var(--jp-content-font-color2, #616161); stroke-dasharray: 2 3; }}
.live-training svg polyline {{ fill: none; stroke-width: 1.8; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }}
</style>
<div class="live-training">
<div class="row"><b>{told}</b><span>{where}</span><span>{time}</span></div>
<div class="bar" role="progressbar" aria-label="training" aria-valuenow="{percent:.0f}"
><div style="width: {percent:.1f}%; background: {bar}"></div></div>
<div class="charts">{charts}</div>
</div>"""


@dataclass
class Progress:
    """Where a training stands. `state` is a key of `TOLD`; times are seconds, `left` None while it is not known."""

    name: str
    state: str = "starting"
    step: int = 0
    total: int = 0  # optimizer steps of the whole run; 0 while it is not known
    stage: str = ""
    epoch: int = 0
    elapsed: float = 0.0
    left: float | None = None
    epochs: dict[str, int] = field(default_factory=dict)  # stage -> how many it has

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{TOLD[self.state]}: {self.name}", self.where(), self.time())))

    def where(self) -> str:
        """'step 120 of 375, main stage, epoch 1 of 2', as far as it is known."""
        if not self.step or self.state == "stopped":  # it ended between two records; its sentence tells where
            return ""
        of = f" of {self.total:,}" if self.total else ""
        epochs = f" of {self.epochs[self.stage]}" if self.stage in self.epochs else ""
        return f"step {self.step:,}{of}, {STAGES.get(self.stage, self.stage)} stage, epoch {self.epoch}{epochs}"

    def time(self) -> str:
        """'1:02 elapsed, 0:42 left'."""
        left = f", {clock(self.left)} left" if self.left is not None else ""
        return f"{clock(self.elapsed)} elapsed{left}" if self.elapsed or left else ""


def render(progress: Progress, rows: list[dict], evaluates: bool) -> str:
    """The display as HTML. `rows` see `lib.train.tracking.read_metrics`; a run that never evaluates has one chart."""
    charts = [_chart("Training loss", LOSSES, rows, progress)]
    if evaluates:
        charts.append(_chart("Validation", FIGURES, rows, progress))
    colours = {"failed": VERMILION, "stopped": ORANGE, "stopping": ORANGE, "resting": ORANGE}
    return PAGE.format(
        told=f"{TOLD[progress.state]}: {html.escape(progress.name)}",
        where=progress.where(),
        time=progress.time(),
        percent=100 * progress.step / progress.total if progress.total else 0,
        bar=colours.get(progress.state, BLUE),
        charts="".join(charts),
    )


def points(rows: list[dict], name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that hold a finite value, averaged piece by piece when there are very many."""
    found = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    size = max(1, -(-len(found) // MOST_POINTS))
    pieces = [found[start : start + size] for start in range(0, len(found), size)]
    return [tuple(sum(column) / len(piece) for column in zip(*piece, strict=True)) for piece in pieces]


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers that lie in low..high."""
    wanted = (high - low) / count
    power = 10 ** math.floor(math.log10(wanted))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * wanted)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def last_shown(step: int, total: int) -> float:
    """Where the axis of steps ends: at the run's end, or at the half, quarter, ... of it that still holds the curve."""
    end = max(total, step, 1)
    while end / 2 >= max(step, 1):
        end /= 2
    return end


def _chart(title: str, colours: dict[str, str], rows: list[dict], progress: Progress) -> str:
    lines = {name: points(rows, name) for name in colours}
    lines = {name: line for name, line in lines.items() if line}
    newest = {name: next(row[name] for row in reversed(rows) if name in row) for name in lines}
    legend = [
        f'<span><i style="background:{colours[name]}"></i>{_label(name)} {_number(value)}</span>'
        for name, value in newest.items()
    ]
    scores = [score for _, score in lines.get("val_final_score", ())]
    note = "over optimizer steps" + (f"; best final score {_number(max(scores))}" if len(scores) > 1 else "")
    drawing = _drawing(lines, colours, rows, progress) if lines else NOTHING
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over optimizer steps">{drawing}</svg>'
    head = f'<b>{title}</b><small>{note}</small><div class="legend">{"".join(legend)}</div>'
    return f'<div class="chart">{head}{svg}</div>'


def _drawing(lines: dict, colours: dict[str, str], rows: list[dict], progress: Progress) -> str:
    values = [value for line in lines.values() for _, value in line]
    pad = 0.06 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 0.05
    low, high = min(values) - pad, max(values) + pad
    end = last_shown(max(row["step"] for row in rows), progress.total)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / end

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = _axes(ticks(low, high), [step for step in ticks(0, end) if step == int(step)], x, y) + _stages(rows, x)
    for name, line in lines.items():
        place = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
        parts.append(f'<polyline points="{place}" style="stroke:{colours[name]}"/>')
        marked = line if name.startswith("val_") else line[-1:]
        parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.8" style="fill:{colours[name]}"/>' for s, v in marked]
    return "".join(parts)


def _axes(values: list[float], steps: list[float], x, y) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>' for v in values]
    parts += [f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.4g}</text>' for v in values]
    return parts + [f'<text x="{x(s):.1f}" y="{base + 15}" text-anchor="middle">{s:,.0f}</text>' for s in steps]


def _stages(rows: list[dict], x) -> list[str]:
    """A dotted line and, if there is room, a name where each stage begins; nothing for a run of one stage."""
    ends = {row["stage"]: row["step"] for row in rows}
    if len(ends) < 2:
        return []
    begins = [LEFT, *map(x, ends.values())][: len(ends)]  # a stage begins where the one before ends
    lines = [f'<line class="stage" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{HEIGHT - BOTTOM}"/>' for at in begins[1:]]
    names = [
        f'<text x="{at + 4:.1f}" y="{TOP - 5}">{STAGES.get(name, name)}</text>'
        for name, at, next_one in zip(ends, begins, [*begins[1:], WIDTH], strict=True)
        if next_one - at > NAME_WIDTH
    ]
    return lines + names


def _label(name: str) -> str:
    return FIGURE_NAMES.get(name.removeprefix("val_"), name.replace("_", " "))


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.3g}"
