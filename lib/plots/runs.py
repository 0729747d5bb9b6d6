"""Charts of several runs: learning curves, differences, effects of parameters, images where one is better.

A run has the same colour, line and marker in all of them; see `looks`.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.plots.style import FAINT, GREY, PALETTE, YELLOW, empty, short_names

COLOURS = [colour for colour in PALETTE if colour != YELLOW]  # yellow lines are hard to see on white
STROKES, MARKERS = ("-", "--", ":"), ("o", "s", "^")  # tell runs of one colour apart
MANY = 20  # points of a curve above which it is smoothed


def looks(names: Sequence[str]) -> dict[str, dict]:
    """Colour, line and marker of each run."""
    found = {}
    for position, name in enumerate(names):
        turn = position // len(COLOURS) % len(STROKES)
        found[name] = {"color": COLOURS[position % len(COLOURS)], "linestyle": STROKES[turn], "marker": MARKERS[turn]}
    return found


def curves_of_runs(ax: Axes, logs: pd.DataFrame, column: str, title: str) -> Axes:
    """A value of every run's log over the steps, as a moving average where it has many points.

    `logs` has the columns `run`, `step` and `column`; gaps are left out.
    """
    logs, style, smoothed = logs.reindex(columns=["run", "step", column]), looks(logs["run"].unique()), False
    for name, points in logs.dropna().groupby("run", sort=False):
        many = len(points) > MANY
        values = points[column].rolling(len(points) // 8 if many else 1, min_periods=1, center=True).mean()
        look = style[name] | ({"marker": ""} if many else {})
        ax.plot(points["step"], values, label=name, markersize=4, linewidth=1.4, **look)
        smoothed |= many
    ax.set(title=title + (", moving average" if smoothed else ""), xlabel="optimizer step", xlim=(0, None))
    return ax if ax.lines else empty(ax, "no run logged it")


def legend_of_runs(fig: Figure, axes, names: Sequence[str]) -> Figure:
    """One legend below all panels, in the order of the runs."""
    handles = dict(pair[::-1] for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    labels, drawn = short_names(names), [name for name in names if name in handles]
    if drawn:
        options = {"loc": "outside lower center", "ncols": min(4, len(drawn)), "fontsize": 8}
        fig.legend([handles[name] for name in drawn], [labels[name] for name in drawn], **options)
    return fig


def differences(ax: Axes, table: pd.DataFrame, title: str) -> Axes:
    """Differences of one figure to the reference with 95 % whiskers; right of the line is better.

    `table` has a row a run of `lib.evaluate.comparison.paired_differences`.
    """
    places = range(len(table))
    ax.axvline(0, color=GREY, linewidth=1)
    # Lines and points apart: an interval of few resamples need not hold the difference itself.
    ax.hlines(places, table["low"], table["high"], color=PALETTE[0])
    ax.plot(table["difference"], places, "o", color=PALETTE[0], markersize=5)
    ax.set_title(title, fontsize=9.5)
    ax.tick_params(axis="both", labelsize=8)
    ax.set(ylim=(len(table) - 0.5, -0.5))
    ax.set_yticks(places, short_names(list(table["run"])).values())
    return ax


def same_reach(axes, table: pd.DataFrame) -> None:
    """Give panels of `differences` one scale, around 0 and for all of `table`, with two labels: they are narrow."""
    furthest = np.nanmax([0, *table[["difference", "low", "high"]].abs().to_numpy(float).flat])
    reach = 1.15 * float(furthest) or 1.0
    tick = float(f"{0.7 * reach:.1g}")
    for ax in axes:
        ax.set_xlim(-reach, reach)
        ax.set_xticks([-tick, tick], [f"−{tick:g}", f"+{tick:g}"])


def parameter_effect(ax: Axes, scores: pd.DataFrame, levels: Sequence[str], title: str) -> Axes:
    """The final score of every run over the value of a parameter, with 95 % whiskers and a bar at each value's mean.

    `scores` has a row a run with `run`, `value`, `low`, `high` and `level` (position in `levels`).
    """
    style = looks(list(scores["run"]))
    for level, runs in scores.groupby("level"):
        places = level + np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else [level]
        for place, row in zip(places, runs.itertuples(), strict=True):
            look = style[row.run] | {"linestyle": "", "markersize": 6}
            ax.vlines(place, row.low, row.high, color=look["color"], linewidth=1.4)
            ax.plot(place, row.value, label=row.run, **look)
        ax.hlines(runs["value"].mean(), level - 0.32, level + 0.32, color=FAINT, linewidth=5, zorder=1)
    ax.set_xticks(range(len(levels)), [textwrap.fill(level, 14) for level in levels])
    ax.set(title=textwrap.fill(title, 40), xlim=(-0.5, len(levels) - 0.5))
    ax.grid(axis="x", visible=False)
    return ax


def wrong_areas(ax: Axes, gains: pd.DataFrame, first: str, second: str) -> Axes:
    """The wrong area of two runs, a point an image; see `lib.evaluate.comparison.image_gains`."""
    top = max(0.02, 1.05 * float(gains[["reference", "other"]].max(axis=None)))
    ax.plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1)
    ax.scatter(gains["reference"], gains["other"], s=14, alpha=0.5, color=PALETTE[0], linewidths=0)
    ax.set(xlim=(0, top), ylim=(0, top), xlabel=f"{first}: wrong area", ylabel=f"{second}: wrong area")
    return ax.set(title="Wrong area of each image (share of the frame)") and ax


def figure_in_words(name: str, figures: Mapping, figure: str = "final_score") -> str:
    """A figure of a row of `figures_table` with its interval: "full: 0.768 (0.741 to 0.795)"."""
    low, high = figures["intervals"][figure]
    unknown = low is None or np.isnan(low)
    span = "too few images for an interval" if unknown else f"{low:.3f} to {high:.3f}"
    return f"{name}: {figures[figure]:.3f} ({span})"


def difference_in_words(first: str, second: str, found: Mapping) -> str:
    """A difference with its interval: "no significant difference: full - lora = 0.000 (-0.013 to +0.012)".

    `found` has `difference`, `low` and `high`, which are None or NaN without an interval.
    """
    said, low, high = f"{first} - {second} = {_signed(found['difference'])}", found["low"], found["high"]
    if low is None or np.isnan(low):
        return f"{said} (too few images for an interval)"
    significant = low > 0 or high < 0
    return ("" if significant else "no significant difference: ") + f"{said} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}"
