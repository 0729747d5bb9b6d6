"""Charts: each function draws a data frame on `ax` and returns the `ax`.

Nothing here computes results; the tables come from `lib.metrics`, `lib.evaluate` or a run's log.
Scores are drawn as MOS (1 broken .. 5 sound), areas in per cent of the image.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lib.evaluation_file import FIGURE_NAMES
from lib.plots.style import BLACK, BLUE, FAINT, GREEN, GREY, ORANGE, VERMILION, empty, figure, legend_below
from lib.scale import mos_from_score

FIGURE_LINES = {"final_score": BLACK, "f1_score": BLUE, "precision": ORANGE, "recall": GREEN, "giou": VERMILION}
AXES = {"threshold": ("threshold on the 8-bit heatmap", 255), "iou_threshold": ("IoU that a hit must exceed", 1)}


def learning_curve(ax: Axes, rows: list[dict], values=("loss", "mask_loss", "score_loss"), title="Training") -> Axes:
    """Values of a run's log over optimizer steps.

    `rows` see `lib.records.read_metrics`; `values` are names in them. Those that begin with `val_` are drawn
    with a mark at each evaluation. Every further stage begins at a dotted line.
    """
    table = pd.DataFrame(rows)
    drawn = [name for name in values if name in table]
    ax.set(title=title)
    if not drawn:
        return empty(ax, "nothing was logged yet")
    for name in drawn:
        points = table[["step", name]].dropna()
        marked = name.startswith("val_") or len(points) == 1
        label = FIGURE_NAMES.get(name.removeprefix("val_"), name.replace("_", " "))
        ax.plot(points["step"], points[name], label=label, marker="o" if marked else None, markersize=4)
    if "stage" in table:
        ends = table.groupby("stage", sort=False)["step"].max()
        for begins, stage in zip(ends, ends.index[1:], strict=False):  # a stage begins where the one before ends
            ax.axvline(begins, color=GREY, linestyle=":", linewidth=1.2)
            ax.annotate(stage, (begins, 1), (4, -2), xycoords=("data", "axes fraction"),
                        textcoords="offset points", va="top", color=GREY, fontsize=8.5)  # fmt: skip
    ax.set(xlabel="optimizer step", ylabel="figure" if drawn[0].startswith("val_") else "loss")
    return legend_below(ax, columns=len(drawn))


def distribution(
    ax: Axes, samples: Mapping[str, np.ndarray], edges: np.ndarray, title: str, xlabel: str, ylabel="images"
) -> Axes:
    """Outlines of histograms, one a sample; every bar is a share of its own sample, whose median is in the legend.

    Args:
        samples: {name: values}; NaN is left out, values beyond the edges count in the first and the last bin.
        edges: of the bins; geometric ones make the axis logarithmic.
    """
    known = {name: pd.Series(values, dtype=float).dropna() for name, values in samples.items()}
    for position, (name, values) in enumerate(known.items()):
        if len(values):
            bars, weights = values.clip(edges[0], edges[-1]), np.full(len(values), 1 / len(values))
            label = f"{name} ({len(values):,}, median {values.median():.2g})"
            ax.hist(bars, edges, weights=weights, histtype="stepfilled", alpha=0.15, color=f"C{position}")
            ax.hist(bars, edges, weights=weights, histtype="step", linewidth=1.6, color=f"C{position}", label=label)
    if np.ptp(np.diff(edges)) > 1e-9:
        ax.set_xscale("log")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(edges[0], edges[-1]))
    return legend_below(ax, columns=1) if any(map(len, known.values())) else empty(ax, "there is nothing to count")


def figure_curve(
    ax: Axes, curve: pd.DataFrame, over="threshold", chosen=None, names=tuple(FIGURE_LINES), title=""
) -> Axes:
    """Figures over the heatmap threshold, or over the IoU that a hit must exceed; `chosen` is a vertical line.

    `curve` comes from `lib.metrics.counts.threshold_curve`, or `lib.metrics.beyond.iou_curve` (`over="iou_threshold"`),
    whose `low` and `high` bound F1.
    """
    for name in names:
        ax.plot(curve[over], curve[name], color=FIGURE_LINES[name], linestyle="-", label=FIGURE_NAMES[name])
    if "low" in curve:
        ax.fill_between(curve[over], curve["low"], curve["high"], color=BLUE, alpha=0.15, linewidth=0)
    if chosen is not None:
        ax.axvline(chosen, color=GREY, linestyle="--", linewidth=1.2, label=f"chosen: {chosen}")
    label, end = AXES[over]
    ax.set(title=title, xlabel=label, ylabel="figure", xlim=(0, end), ylim=(0, 1))
    return legend_below(ax, columns=3 if len(names) > 3 else 2)


def precision_recall(
    ax: Axes, curves: Mapping[str, pd.DataFrame], chosen: Mapping[str, int], title="What the threshold trades"
) -> Axes:
    """Region precision over region recall, one point a threshold, a line a run; grey lines join points of equal F1.

    `curves` {run: `lib.metrics.counts.threshold_curve`}; `chosen` {run: its threshold}, drawn large. The thresholds are
    written along the curve of a single run.
    """
    recall, precision = np.meshgrid(*[np.linspace(0.01, 1, 100)] * 2)
    f1 = 2 * recall * precision / (recall + precision)
    equal = ax.contour(recall, precision, f1, [0.2, 0.4, 0.6, 0.8], colors=FAINT, linewidths=1, zorder=0)
    ax.clabel(equal, fmt="F1 %.1f", colors=GREY, fontsize=8)
    for name, curve in curves.items():
        points = curve[curve["n_predicted"] > 0]
        [line] = ax.plot(points["recall"], points["precision"], marker=".", markersize=5)
        here, label = points[points["threshold"] == chosen[name]], f"{name}, threshold {chosen[name]}"
        ax.plot(here["recall"], here["precision"], "o", color=line.get_color(), markersize=9, label=label)
        last = np.full(2, np.inf)
        for threshold, *place in points[["threshold", "recall", "precision"]].to_numpy() if len(curves) == 1 else ():
            if np.hypot(*(place - last)) > 0.1:  # nearer numbers would cover each other
                ax.annotate(f"{threshold:.0f}", place, (5, 4), textcoords="offset points", fontsize=8, color=GREY)
                last = np.array(place)
    ax.set(title=title, xlabel="recall of true regions", ylabel="precision of predicted regions")
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    return legend_below(ax, columns=2)


def score_scatter(ax: Axes, scores: Mapping[str, pd.DataFrame], title="Predicted against true score") -> Axes:
    """Predicted over true MOS, a point an image, a colour a run, with the mean prediction at each true score.

    `scores` {run: `score_table`} (0..1). True scores lie on thirds, so the points are spread a little.
    """
    known = {name: mos_from_score(table[["predicted", "true"]].dropna()) for name, table in scores.items()}
    if not any(map(len, known.values())):
        ax.set(title=title)
        return empty(ax, "no image has a score")
    for position, (name, mos) in enumerate(known.items()):
        spread = np.random.default_rng(position).uniform(-0.06, 0.06, len(mos))
        look = {"color": f"C{position}", "alpha": 0.35, "linewidths": 0, "zorder": 2}
        ax.scatter(mos["true"] + spread, mos["predicted"], s=float(np.clip(4000 / len(mos), 4, 22)), **look)
        means = mos.groupby(mos["true"].round())["predicted"].mean()
        ax.plot(means, color=look["color"], marker="o", markersize=4, linewidth=1.4, label=name)
    _mos_axes(ax, title, "true MOS", "predicted MOS")
    return legend_below(ax, columns=2) if len(known) > 1 else ax


def calibration(ax: Axes, table: pd.DataFrame, title="Score calibration") -> Axes:
    """Mean true MOS in bins of the predicted one (`lib.evaluate.groups.score_calibration`) with 95 % intervals."""
    if table.empty:
        ax.set(title=title)
        return empty(ax, "too few images have a score")
    ax.errorbar(table["predicted"], table["rate"], _whiskers(table), color=BLUE, marker="o", markersize=5, capsize=3)
    return _mos_axes(ax, title, "predicted MOS (mean of the bin)", "true MOS (mean of the bin)")


def rate_bars(ax: Axes, groups: pd.DataFrame, title: str = "", xlabel: str = "") -> Axes:
    """Points with 95 % whiskers, one row a group, its count beside the name; the dashed line is the overall rate.

    `groups` comes from `lib.evaluate.groups.by_group`.
    """
    ax.set(title=title, xlabel=xlabel)
    if groups.empty:
        return empty(ax, "no group is large enough to show")
    rows = np.arange(len(groups))
    ax.errorbar(groups["rate"], rows, xerr=_whiskers(groups), fmt="o", color=BLUE, elinewidth=2, capsize=3)
    if groups.attrs.get("overall") is not None:
        ax.axvline(groups.attrs["overall"], color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(rows, [f"{name}  (n = {n:,})" for name, n in zip(groups["group"], groups["n"], strict=True)])
    ax.grid(axis="y", visible=False)
    right = 1.06 * float(groups["high"].max()) or 1.0
    if groups.attrs.get("kind", "share") == "share":
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right = min(1.02, max(0.1, right))
    ax.set(ylim=(len(groups) - 0.4, -0.6), xlim=(-0.02 * right, right))  # marks at zero stay whole
    return ax


def rate_panels(tables: Mapping[str, pd.DataFrame], title: str = "", most: int = 12) -> Figure:
    """`rate_bars` of several measures beside each other: {label of the measure: groups}.

    Groups without an order of their own stand in the order of the first panel; at most `most` are drawn.
    """
    longest = max(2, *(min(len(groups), most) for groups in tables.values()))
    fig, axes = figure(1, len(tables), 1.3 + 0.3 * longest, title, squeeze=False)
    order = list(next(iter(tables.values()))["group"])
    for ax, (label, groups) in zip(axes[0], tables.items(), strict=True):
        if not groups.attrs.get("ordered"):
            groups = groups.sort_values("group", key=lambda names: names.map(lambda name: [*order, name].index(name)))
        rate_bars(ax, groups.head(most), xlabel=label)
    return fig


def _mos_axes(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    ax.axline((1, 1), slope=1, color=GREY, linewidth=1, linestyle="--", zorder=1)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0.8, 5.2), ylim=(0.8, 5.2), aspect="equal")
    ax.set(xticks=range(1, 6), yticks=range(1, 6))
    return ax


def _whiskers(table: pd.DataFrame) -> np.ndarray:
    """Lengths of the error bars, float [2, N]."""
    return np.abs(table[["low", "high"]].to_numpy(float).T - table["rate"].to_numpy(float))
