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

from lib.evaluate.tables import POSITIONS
from lib.plots.page import FIGURE_NAMES
from lib.plots.style import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    VERMILION,
    empty,
    figure,
    legend,
    legend_below,
)
from lib.scale import mos_from_score

FIGURE_LINES = {"final_score": BLACK, "f1_score": BLUE, "precision": ORANGE, "recall": GREEN, "giou": VERMILION}


def learning_curve(ax: Axes, rows: list[dict], values=("loss", "mask_loss", "score_loss"), title="Training") -> Axes:
    """Values of a run's log over optimizer steps.

    `rows` see `lib.train.read_metrics`; `values` are names in them. Those that begin with `val_` are drawn
    with a mark at each evaluation. Every further stage begins at a dotted line.
    """
    table = pd.DataFrame(rows)
    drawn = [name for name in values if name in table]
    if not drawn:
        return empty(ax.set(title=title) and ax, "nothing was logged yet")
    for name, colour in zip(drawn, PALETTE * 2, strict=False):
        points = table[["step", name]].dropna()
        marked = name.startswith("val_") or len(points) == 1
        label = FIGURE_NAMES.get(name.removeprefix("val_"), name.replace("_", " "))
        ax.plot(points["step"], points[name], color=colour, label=label, marker="o" if marked else None, markersize=4)
    if "stage" in table:
        ends = table.groupby("stage", sort=False)["step"].max()
        for begins, stage in zip(ends, ends.index[1:], strict=False):  # a stage begins where the one before ends
            ax.axvline(begins, color=GREY, linestyle=":", linewidth=1.2)
            ax.annotate(stage, (begins, 1), (4, -2), xycoords=("data", "axes fraction"),
                        textcoords="offset points", va="top", color=GREY, fontsize=8.5)  # fmt: skip
    ax.set(title=title, xlabel="optimizer step", ylabel="figure" if drawn[0].startswith("val_") else "loss")
    return legend_below(ax, columns=len(drawn))


def threshold_curve(ax: Axes, curve: pd.DataFrame, chosen: int | None = None, names=tuple(FIGURE_LINES),
                    title="Figures over the threshold") -> Axes:  # fmt: skip
    """Figures of `lib.metrics.threshold_curve` over the heatmap threshold, the chosen one as a vertical line."""
    for name in names:
        ax.plot(curve["threshold"], curve[name], color=FIGURE_LINES.get(name), label=FIGURE_NAMES.get(name, name))
    if chosen is not None:
        ax.axvline(chosen, color=GREY, linestyle="--", linewidth=1.2, label=f"chosen: {chosen}")
    ax.set(title=title, xlabel="threshold on the 8-bit heatmap", ylabel="figure", xlim=(0, 255), ylim=(0, 1))
    return legend_below(ax, columns=3 if len(names) > 3 else 2)


def iou_curve(ax: Axes, curve: pd.DataFrame, asked: float, title="How well regions are drawn") -> Axes:
    """Region figures of `lib.metrics.beyond.iou_curve`, F1 with its interval; `asked` is the challenge's IoU."""
    for name in ("f1_score", "precision", "recall"):
        ax.plot(curve["iou_threshold"], curve[name], color=FIGURE_LINES[name], label=FIGURE_NAMES[name])
    ax.fill_between(curve["iou_threshold"], curve["low"], curve["high"], color=BLUE, alpha=0.15, linewidth=0)
    ax.axvline(asked, color=GREY, linestyle="--", linewidth=1.2, label=f"the challenge: {asked}")
    ax.set(title=title, xlabel="IoU that a hit must exceed", ylabel="figure", xlim=(0, 1), ylim=(0, 1))
    return legend_below(ax, columns=4)


def precision_recall(
    ax: Axes, curve: pd.DataFrame, chosen: int | None = None, title="What the threshold trades"
) -> Axes:
    """Region precision over region recall, one point a threshold, numbers at some of them."""
    points = curve[curve["n_predicted"] > 0]
    ax.plot(points["recall"], points["precision"], color=BLUE, marker=".", markersize=5)
    last = np.full(2, np.inf)
    for threshold, *place in points[["threshold", "recall", "precision"]].to_numpy():
        if np.hypot(*(place - last)) > 0.1:  # nearer numbers would cover each other
            ax.annotate(f"{threshold:.0f}", place, (5, 4), textcoords="offset points", fontsize=8, color=GREY)
            last = np.array(place)
    here = points[points["threshold"] == chosen]
    ax.plot(here["recall"], here["precision"], "o", color=VERMILION, markersize=9, label=f"chosen: {chosen}")
    # Lines of equal F1 = 2PR / (P + R), solved for the precision.
    recall = np.linspace(0.01, 1, 200)
    for level in (0.2, 0.4, 0.6, 0.8):
        precision = np.divide(level * recall, 2 * recall - level, out=np.full(200, 9.0), where=2 * recall > level)
        ax.plot(recall, precision, color=FAINT, linewidth=1, zorder=0)
        ax.text(1.005, level / (2 - level), f"F1 {level:g}", color=GREY, fontsize=8, va="center")
    ax.set(
        title=title,
        xlabel="recall of true regions",
        ylabel="precision of predicted regions",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    return legend(ax, loc="lower left") if len(here) else ax


def score_scatter(ax: Axes, scores: pd.DataFrame, title="Predicted against true score") -> Axes:
    """`scores` see `lib.metrics.score_table` (0..1), drawn as MOS. True ones lie on thirds, so points are spread."""
    mos = mos_from_score(scores[["predicted", "true"]].dropna())
    if mos.empty:
        return empty(ax, "no image has a score")
    spread = np.random.default_rng(0).uniform(-0.06, 0.06, len(mos))
    size = float(np.clip(4000 / len(mos), 4, 22))
    ax.plot([1, 5], [1, 5], color=GREY, linewidth=1, linestyle="--", zorder=1)
    ax.scatter(mos["true"] + spread, mos["predicted"], s=size, color=BLUE, alpha=0.45, linewidths=0, zorder=2)
    return _mos_axes(ax, title, "true MOS", "predicted MOS")


def residuals(ax: Axes, scores: pd.DataFrame, title="Score errors") -> Axes:
    """Histogram of predicted - true MOS (`scores` as above); right of zero the predicted score is too high."""
    errors = 4 * (scores["predicted"] - scores["true"]).dropna()
    if errors.empty:
        return empty(ax, "no image has a score")
    reach = max(1.0, float(errors.abs().max()))
    ax.hist(errors, np.linspace(-reach, reach, 34), color=BLUE, alpha=0.75)
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.axvline(errors.mean(), color=VERMILION, label=f"mean {errors.mean():+z.2f}")
    ax.set(title=title, xlabel="predicted - true MOS", ylabel="images")
    return legend(ax)


def calibration(ax: Axes, table: pd.DataFrame, title="Score calibration") -> Axes:
    """Mean true MOS in bins of the predicted one (`lib.evaluate.groups.score_calibration`) with 95 % intervals."""
    if table.empty:
        return empty(ax, "too few images have a score")
    ax.plot([1, 5], [1, 5], color=GREY, linewidth=1, linestyle="--")
    ax.errorbar(table["predicted"], table["rate"], _whiskers(table), color=BLUE, marker="o", markersize=5, capsize=3)
    return _mos_axes(ax, title, "predicted MOS (mean of the bin)", "true MOS (mean of the bin)")


def heat_calibration(ax: Axes, table: pd.DataFrame, chosen: int | None = None, title="Heatmap calibration") -> Axes:
    """Share of pixels that annotators marked, over the predicted value (`lib.evaluate.groups.heat_calibration`)."""
    ax.plot(table["predicted"], table["rate"], color=BLUE, marker="o", markersize=4)
    if chosen is not None:
        ax.axvline(chosen, color=GREY, linestyle="--", linewidth=1.2)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(title=title, xlabel="heatmap value (0..255)", ylabel="pixels marked by anyone", xlim=(0, 255), ylim=(0, 1))
    return ax


def rate_bars(ax: Axes, groups: pd.DataFrame, title: str = "", xlabel: str = "") -> Axes:
    """Points with 95 % whiskers, one row a group, its count beside the name; the dashed line is the overall rate.

    `groups` comes from `lib.evaluate.groups.by_group` or `prompt_words`.
    """
    if groups.empty:
        return empty(ax.set(title=title) and ax, "no group is large enough to show")
    rows, percent = np.arange(len(groups)), groups.attrs.get("kind", "share") == "share"
    whiskers = _whiskers(groups)
    ax.errorbar(groups["rate"], rows, xerr=whiskers, fmt="o", color=BLUE, elinewidth=2, capsize=3, markersize=6)
    if groups.attrs.get("overall") is not None:
        ax.axvline(groups.attrs["overall"], color=GREY, linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(rows, [f"{name}  (n = {n:,})" for name, n in zip(groups["group"], groups["n"], strict=True)])
    ax.set(ylim=(len(groups) - 0.4, -0.6), title=title, xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    right = 1.06 * float(groups["high"].max()) or 1.0
    if percent:
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right = min(1.02, max(0.1, right))
    ax.set_xlim(-0.02 * right, right)  # marks at zero stay whole
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


def position_map(ax: Axes, groups: pd.DataFrame, title="", label="missed", most: float | None = None) -> Axes:
    """A 3 x 3 map of the frame with rate, interval and count of each place (`by_group` of the column `place`).

    The colours end at `most`, by default at the highest rate; maps beside each other should share it.
    """
    places = groups.assign(group=groups["group"].astype(str)).set_index("group").reindex(POSITIONS)
    rates = places["rate"].to_numpy(float).reshape(3, 3)
    image = ax.imshow(rates, cmap="cividis", vmin=0, vmax=most or max(0.1, np.nanmax(rates, initial=0)))
    for number, row in enumerate(places.itertuples()):
        text = f"{row.rate:.0%}\n({row.low:.0%}-{row.high:.0%})\nn = {row.n:,.0f}" if row.rate >= 0 else "too few"
        colour = "white" if row.rate < 0.55 * image.norm.vmax else "black"
        ax.text(number % 3, number // 3, text, ha="center", va="center", color=colour, fontsize=8.5)
    ax.set_xticks(range(3), ["left", "centre", "right"])
    ax.set_yticks(range(3), ["top", "middle", "bottom"])
    ax.set_title(title)
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, format=PercentFormatter(1, decimals=0), label=label, shrink=0.85)
    return ax


def _mos_axes(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0.8, 5.2), ylim=(0.8, 5.2), aspect="equal")
    ax.set(xticks=range(1, 6), yticks=range(1, 6))
    return ax


def _whiskers(table: pd.DataFrame) -> np.ndarray:
    """Lengths of the error bars, float [2, N]."""
    return np.abs(table[["low", "high"]].to_numpy(float).T - table["rate"].to_numpy(float))
