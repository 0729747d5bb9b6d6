"""Charts of the data itself: scores, agreement, sizes, shapes, categories. Each draws on `ax` and returns it.

Where several splits are drawn together, they come as {name: values}, and every bar is a share of its own split.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from lib.plots.style import BLUE, GREY, colour_of, empty, legend

MOS_EDGES = np.arange(1 - 1 / 6, 5.2, 1 / 3)  # votes are averaged in thirds: a bar a possible value


def score_histogram(ax: Axes, mos: Mapping[str, np.ndarray] | np.ndarray, title="Scores of the labels") -> Axes:
    """Shares of images at each mean opinion score, 1..5 in thirds; several splits side by side as outlines."""
    splits = _splits(mos)
    for position, (name, values) in enumerate(splits.items()):
        weights = np.full(len(values), 1 / len(values))
        look = {"color": colour_of(name, position), "label": f"{name} ({len(values):,})"}
        ax.hist(values, MOS_EDGES, weights=weights, histtype="stepfilled", alpha=0.18, color=look["color"])
        ax.hist(values, MOS_EDGES, weights=weights, histtype="step", linewidth=1.6, **look)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(title=title, xlabel="mean opinion score (1 broken .. 5 sound)", ylabel="images", xlim=(0.75, 5.25))
    return legend(ax) if splits else empty(ax, "no image has a score")


def agreement(ax: Axes, values: Mapping[str, np.ndarray] | np.ndarray, title="Agreement of annotators") -> Axes:
    """Cumulative share of images by the mean IoU between pairs of annotators' masks."""
    splits = _splits(values)
    for position, (name, found) in enumerate(splits.items()):
        shares = np.arange(1, len(found) + 1) / len(found)
        label = f"{name} (median {np.median(found):.2f})"
        ax.step(np.sort(found), shares, where="post", color=colour_of(name, position), label=label)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(
        title=title, xlabel="mean IoU between annotators' masks", ylabel="images at or below", xlim=(0, 1), ylim=(0, 1)
    )
    return legend(ax) if splits else empty(ax, "no image has two annotators")


def region_sizes(ax: Axes, areas: Mapping[str, np.ndarray] | np.ndarray, title="Sizes of annotated regions") -> Axes:
    """Shares of regions by area; `areas` as fractions of the image (0..1), drawn on a logarithmic axis."""
    splits = {name: values[values > 0] for name, values in _splits(areas).items() if (values > 0).any()}
    edges = np.geomspace(1e-4, 1, 33)
    for position, (name, values) in enumerate(splits.items()):
        label = f"{name} ({len(values):,}, median {np.median(values):.1%})"
        ax.hist(
            np.clip(values, edges[0], 1), edges, weights=np.full(len(values), 1 / len(values)), histtype="step",
            linewidth=1.6, color=colour_of(name, position), label=label,
        )  # fmt: skip
    ax.set_xscale("log")
    _percent_axis(ax.xaxis, (1e-4, 1e-3, 1e-2, 1e-1, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(title=title, xlabel="area of a region (share of the image)", ylabel="regions", xlim=(1e-4, 1))
    return legend(ax) if splits else empty(ax, "no region was drawn")


def aspect_ratios(ax: Axes, ratios: Mapping[str, np.ndarray] | np.ndarray, title="Aspect ratios") -> Axes:
    """Shares of images by width / height on a logarithmic axis, so that 1:2 and 2:1 lie equally far from square."""
    splits = _splits(ratios)
    edges = np.geomspace(0.4, 2.5, 32)
    for position, (name, values) in enumerate(splits.items()):
        weights, look = np.full(len(values), 1 / len(values)), {"color": colour_of(name, position), "label": name}
        ax.hist(np.clip(values, 0.4, 2.5), edges, weights=weights, histtype="step", linewidth=1.6, **look)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([0.5, 0.75, 1, 1.33, 2]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(title=title, xlabel="width / height", ylabel="images", xlim=(0.39, 2.56))
    return legend(ax) if splits else empty(ax, "no image")


def damage_by_score(ax: Axes, tables: Mapping[str, pd.DataFrame], title="Damage at each score") -> Axes:
    """Median and quartiles of the marked area of images at each whole MOS (rounded).

    `tables` {split: manifest with `mos` and `distorted`}.
    """
    tables = {name: table[["mos", "distorted"]].dropna() for name, table in tables.items()}
    tables = {name: table for name, table in tables.items() if len(table)}
    for position, (name, table) in enumerate(tables.items()):
        areas = table["distorted"].groupby(table["mos"].round()).quantile([0.25, 0.5, 0.75]).unstack()
        shift = 0.12 * (position - (len(tables) - 1) / 2)
        whiskers = np.array([areas[0.5] - areas[0.25], areas[0.75] - areas[0.5]])
        look = {"marker": "o", "markersize": 5, "capsize": 3, "color": colour_of(name, position), "label": name}
        ax.errorbar(areas.index + shift, areas[0.5], whiskers, **look)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(title=title, xlabel="mean opinion score, rounded", ylabel="marked area of the image", xlim=(0.75, 5.25))
    ax.set(xticks=range(1, 6), ylim=(0, None))
    return legend(ax) if tables else empty(ax, "no image has a score and a label")


def mean_heatmap(ax: Axes, heatmap: np.ndarray | None, title="Where labels lie", most: float | None = None) -> Axes:
    """Draw a mean heatmap (float [h, w], 0..255) over the frame.

    The colours end at `most`, by default at the map's own maximum, since means are far below single heatmaps; maps in
    one row should share it.
    """
    ax.set(title=title, xticks=[], yticks=[])
    if heatmap is None:
        return empty(ax, "no image has a label")
    ax.imshow(heatmap, cmap="inferno", vmin=0, vmax=most, extent=(0, 1, 1, 0))
    ax.grid(False)
    return ax


def category_counts(ax: Axes, counts: pd.Series, title: str, xlabel="images") -> Axes:
    """Horizontal bars of a count per category, in the order given, first on top."""
    bars = ax.barh([str(name) for name in counts.index], counts.to_numpy(), color=BLUE, height=0.7)
    ax.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=8.5, color=GREY)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.14)
    ax.set(title=title, xlabel=xlabel)
    return ax


def _splits(values) -> dict[str, np.ndarray]:
    """One array or several by name -> {name: finite values}, without the empty ones."""
    named = values if isinstance(values, Mapping) else {"all": values}
    arrays = {name: np.asarray(array, float) for name, array in named.items()}
    finite = {name: array[np.isfinite(array)] for name, array in arrays.items()}
    return {name: array for name, array in finite.items() if len(array)}


def _percent_axis(axis, ticks) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
