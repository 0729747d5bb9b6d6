"""Figures of the comparison of runs: each function gives a figure and the sentence that it proves."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.evaluate.comparison import COMPARED, Measured, image_gains, wins
from lib.evaluate.parameter_effects import FIGURE, Factor, effects, verdict
from lib.metrics.statistics import Resampled
from lib.plots.galleries import cases
from lib.plots.style import FAINT, GREY, PALETTE, YELLOW, empty, figure, short_names
from lib.plots.tables import FIGURE_NAMES

CURVES = {"loss": "Training loss", "val_final_score": "Final score on validation"}
LOSSES = ("mask_loss", "score_loss", "mask_loss_weight", "score_loss_weight")
COLOURS = [colour for colour in PALETTE if colour != YELLOW]  # yellow lines are hard to see on white
STROKES, MARKERS = ("-", "--", ":"), ("o", "s", "^")  # tell runs of one colour apart
MANY = 20  # points of a curve above which it is smoothed
PANELS = 3  # factors beside each other


def looks(names: Sequence[str]) -> dict[str, dict]:
    """Colour, line and marker of each run, the same in all figures."""
    found = {}
    for position, name in enumerate(names):
        turn = position // len(COLOURS) % len(STROKES)
        found[name] = {"color": COLOURS[position % len(COLOURS)], "linestyle": STROKES[turn], "marker": MARKERS[turn]}
    return found


def learning_curves(logs: dict[str, list[dict]], differing: Sequence[str] = ()) -> tuple[Figure, str]:
    """Training loss and validation score over steps, and who came furthest.

    Arguments: `logs` maps runs to rows of `lib.train.tracking.read_metrics`; `differing` parameters.
    """
    fig, axes = figure(1, 2, 3.2 + 0.2 * (len(logs) // 4))
    for ax, (column, title) in zip(axes, CURVES.items(), strict=True):
        longest = max(_draw_curve(ax, name, rows, column, looks(logs)[name]) for name, rows in logs.items())
        ax.set(title=title + (", moving average" if longest > MANY else ""), xlabel="optimizer step", xlim=(0, None))
        if not longest:
            empty(ax, "no run logged it")
    _legend(fig, axes, list(logs))
    scores = {name: [row["val_final_score"] for row in rows if "val_final_score" in row] for name, rows in logs.items()}
    best = {name: max(found) for name, found in scores.items() if found}
    says = "No run was validated while it trained (parameter val_iter), so only the losses can be compared."
    if best:
        name = max(best, key=best.get)
        says = f"On validation {name} came furthest, to a final score of {best[name]:.3f}."
    other, silent = [name for name in LOSSES if name in differing], [name for name, rows in logs.items() if not rows]
    says += f" The losses are on different scales: runs differ in {', '.join(other)}." if other else ""
    return fig, says + (f" Without metrics.jsonl: {', '.join(silent)}." if silent else "")


def _draw_curve(ax: Axes, name: str, rows: list[dict], column: str, look: dict) -> int:
    """Draw one run's curve, smoothed when it is long; returns the number of its points."""
    table = pd.DataFrame(rows, columns=["step", column]).dropna()
    if len(table):
        window = len(table) // 8 if len(table) > MANY else 1
        marker = look["marker"] if len(table) <= MANY else ""
        values = table[column].rolling(window, min_periods=1, center=True).mean()
        ax.plot(table["step"], values, label=name, markersize=4, linewidth=1.4, **(look | {"marker": marker}))
    return len(table)


def _legend(fig: Figure, axes, names: Sequence[str]) -> None:
    """One legend below all panels, in the order of the runs."""
    handles = dict(pair[::-1] for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    labels, drawn = short_names(names), [name for name in names if name in handles]
    if drawn:
        options = {"loc": "outside lower center", "ncols": min(4, len(drawn)), "fontsize": 8}
        fig.legend([handles[name] for name in drawn], [labels[name] for name in drawn], **options)


def effects_figure(factors: list[Factor], resampled: Mapping[str, Resampled]) -> tuple[Figure | None, str]:
    """The final score of every run against the value of each parameter, a panel a parameter, on one scale."""
    says = verdict(factors, effects(factors, resampled))
    if not factors:
        return None, says
    rows = -(-len(factors) // PANELS)
    title = "Final score against the values of parameters: runs with 95 % intervals, a bar at their mean"
    fig, axes = figure(rows, min(PANELS, max(2, len(factors))), 3.0, title, sharey=True, squeeze=False)
    for ax, factor in zip(axes.flat, factors, strict=False):
        _draw_effect(ax, factor, resampled)
    for ax in axes.flat[len(factors) :]:
        ax.set_axis_off()
    for row in axes:
        row[0].set_ylabel("final score")
    _legend(fig, axes.flat, list(resampled))
    return fig, says


def _draw_effect(ax: Axes, factor: Factor, resampled: Mapping[str, Resampled]) -> None:
    style = looks(list(resampled))
    for at in range(len(factor.levels)):
        runs = [run for run in resampled if factor.level_of[run] == at]
        places = at + np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else [at]
        for place, run in zip(places, runs, strict=True):
            look = style[run] | {"linestyle": "", "markersize": 6}
            ax.vlines(place, *resampled[run].draws[FIGURE].quantile([0.025, 0.975]), color=look["color"], linewidth=1.4)
            ax.plot(place, resampled[run].values[FIGURE], label=run, **look)
        mean = np.mean([resampled[run].values[FIGURE] for run in runs])
        ax.hlines(mean, at - 0.32, at + 0.32, color=FAINT, linewidth=5, zorder=1)
    ticks = [textwrap.fill(level, 14) for level in factor.levels]
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(title=textwrap.fill(factor.title, 40), xlim=(-0.5, len(ticks) - 0.5))
    ax.grid(axis="x", visible=False)


def differences(table: pd.DataFrame, reference: str) -> Figure:
    """Differences to the reference with 95 % whiskers, a panel a figure; see `comparison.paired_differences`."""
    runs = list(dict.fromkeys(table["run"]))
    shown = [name for name in COMPARED if name in set(table["figure"])]
    title = f"Difference to {reference}\nwith 95 % intervals for all pairs at once; right of the line is better"
    shape = (1, max(1, len(shown)), 0.9 + 0.36 * len(runs))
    fig, axes = figure(*shape, title, sharex=True, sharey=True, squeeze=False)
    for ax, name in zip(axes[0], shown, strict=False):
        part = table[table["figure"] == name].set_index("run").loc[runs]
        ax.axvline(0, color=GREY, linewidth=1)
        # Lines and points apart: an interval of few resamples need not hold the difference itself.
        ax.hlines(range(len(runs)), part["low"], part["high"], color=PALETTE[0])
        ax.plot(part["difference"], range(len(runs)), "o", color=PALETTE[0], markersize=5)
        ax.set_title(FIGURE_NAMES.get(name, name), fontsize=9.5)
        ax.tick_params(axis="both", labelsize=8)
        ax.set(ylim=(len(runs) - 0.5, -0.5))
    axes[0][0].set_yticks(range(len(runs)), short_names(runs).values())
    if shown:  # the panels are narrow: two labels, and no difference in the middle
        furthest = np.nanmax([0, *table[["difference", "low", "high"]].abs().to_numpy(float).flat])
        reach = 1.15 * float(furthest) or 1.0
        tick = float(f"{0.7 * reach:.1g}")
        axes[0][0].set_xlim(-reach, reach)
        axes[0][0].set_xticks([-tick, tick], [f"−{tick:g}", f"+{tick:g}"])
    else:
        empty(axes[0][0], f"{reference} is the only run")
    return fig


def gains_figure(reference: Measured, other: Measured) -> tuple[Figure, str]:
    """Image by image: how much of the frame each of two runs gets wrong."""
    gains, names = image_gains(reference, other), (reference.run.name, other.run.name)
    first, second = short_names(names).values()
    fig, axes = figure(1, 2, 3.4)
    top = max(0.02, 1.05 * float(gains[["reference", "other"]].max(axis=None)))
    axes[0].plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1)
    axes[0].scatter(gains["reference"], gains["other"], s=14, alpha=0.5, color=PALETTE[0], linewidths=0)
    axes[0].set(xlim=(0, top), ylim=(0, top), xlabel=f"{first}: wrong area", ylabel=f"{second}: wrong area")
    axes[0].set_title("Wrong area of each image (share of the frame)")
    axes[1].hist(gains["gain"], 41, color=PALETTE[0], alpha=0.75)
    axes[1].axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes[1].set(title=textwrap.fill(f"Right of the line {second} is better", 55), xlabel="difference of wrong area")
    axes[1].set_ylabel("images")
    axes[1].locator_params(axis="x", nbins=6)
    better, worse = int((gains["gain"] > 0).sum()), int((gains["gain"] < 0).sum())
    says = f"{names[1]} has less wrong area than {names[0]} on {better:,} of {len(gains):,} images, more on {worse:,}."
    return fig, says


def winners(reference: Measured, other: Measured, n: int) -> list[tuple[Figure, str]]:
    """Galleries of the images where the other run is better by most, and of those where the reference is."""
    gains, opened = image_gains(reference, other), [reference.run.opened, other.run.opened]
    wrong = {id: [f"{share:.1%}" for share in row] for id, *row in gains[["reference", "other"]].itertuples()}
    found = []
    for run, ids in zip((other, reference), wins(gains, n), strict=True):
        captions = {id: f"{id} (wrong area {' against '.join(wrong[id])})" for id in ids}
        says = "" if ids else f"There is no image where {run.run.name} is better."
        found.append((cases(opened, ids, f"{run.run.name} is better", captions) if ids else None, says))
    return found
