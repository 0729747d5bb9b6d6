"""Figures of the comparison of runs: each function gives a figure and the sentence that it proves."""

import pandas as pd
from matplotlib.figure import Figure

from lib.comparison import COMPARED, Measured, image_gains, wins
from lib.side_by_side import side_by_side
from lib.style import GREY, PALETTE, empty, figure
from lib.tables import FIGURE_NAMES

CURVES = {"loss": "Training loss", "val_final_score": "Final score on validation"}


def learning_curves(logs: dict[str, list[dict]]) -> tuple[Figure, str]:
    """Training loss and validation score over steps; `logs` maps runs to rows of `lib.tracking.read_metrics`."""
    fig, axes = figure(1, 2, 3.2)
    for ax, (column, title) in zip(axes, CURVES.items(), strict=True):
        drawn = {}
        for name, rows in logs.items():
            table = pd.DataFrame(rows, columns=["step", column]).dropna()
            if len(table):
                colour = PALETTE[list(logs).index(name) % len(PALETTE)]
                look = {"marker": "o", "markersize": 4} if len(table) < 30 else {}
                drawn[name] = ax.plot(table["step"], table[column], color=colour, label=name, **look)
        ax.set(title=title, xlabel="optimizer step")
        if not drawn:
            empty(ax, "no run logged it")
    handles = dict(pair[::-1] for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles) or 1))
    best = {
        name: max(row["val_final_score"] for row in rows if "val_final_score" in row)
        for name, rows in logs.items()
        if any("val_final_score" in row for row in rows)
    }
    if not best:
        return fig, "No run was validated while it trained (parameter val_iter), so only the losses can be compared."
    name = max(best, key=best.get)
    return fig, f"On validation {name} came furthest, to a final score of {best[name]:.3f}."


def differences(table: pd.DataFrame, reference: str) -> Figure:
    """Differences to the reference with 95 % whiskers, a panel a figure; see `comparison.paired_differences`."""
    runs = list(dict.fromkeys(table["run"]))
    shown = [name for name in COMPARED if name in set(table["figure"])]
    fig, axes = figure(1, max(1, len(shown)), 0.9 + 0.32 * len(runs), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], shown, strict=False):
        part = table[table["figure"] == name].set_index("run").loc[runs]
        ax.axvline(0, color=GREY, linewidth=1)
        # Lines and points apart: an interval of few resamples need not hold the difference itself.
        ax.hlines(range(len(runs)), part["low"], part["high"], color=PALETTE[0])
        ax.plot(part["difference"], range(len(runs)), "o", color=PALETTE[0])
        ax.set_title(FIGURE_NAMES.get(name, name), fontsize=9.5)
        ax.locator_params(axis="x", nbins=3)
        ax.tick_params(axis="x", labelsize=8)
        ax.set(ylim=(len(runs) - 0.5, -0.5))
    axes[0][0].set_yticks(range(len(runs)), runs)
    if not shown:
        empty(axes[0][0], f"{reference} is the only run")
    fig.suptitle(f"Difference to {reference}, 95 % intervals; right of the line is better", x=0.01, ha="left")
    return fig


def gains_figure(reference: Measured, other: Measured) -> tuple[Figure, str]:
    """Image by image: how much of the frame each of two runs gets wrong."""
    gains, names = image_gains(reference, other), (reference.run.name, other.run.name)
    fig, axes = figure(1, 2, 3.4)
    top = max(0.02, 1.05 * float(gains[["reference", "other"]].max(axis=None)))
    axes[0].plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1)
    axes[0].scatter(gains["reference"], gains["other"], s=14, alpha=0.5, color=PALETTE[0], linewidths=0)
    axes[0].set(xlim=(0, top), ylim=(0, top), xlabel=f"{names[0]}: wrong area", ylabel=f"{names[1]}: wrong area")
    axes[0].set_title("Wrong area of each image (share of the frame)")
    axes[1].hist(gains["gain"], 41, color=PALETTE[0], alpha=0.75)
    axes[1].axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes[1].set(title=f"Right of the line {names[1]} is better", xlabel="difference of wrong area", ylabel="images")
    better, worse = int((gains["gain"] > 0).sum()), int((gains["gain"] < 0).sum())
    says = f"{names[1]} has less wrong area than {names[0]} on {better:,} of {len(gains):,} images, more on {worse:,}."
    return fig, says


def winners(reference: Measured, other: Measured, n: int) -> list[tuple[Figure, str]]:
    """Galleries of the images where the other run is better by most, and of those where the reference is."""
    gains, opened = image_gains(reference, other), [reference.run.opened, other.run.opened]
    wrong = {id: [f"{share:.1%}" for share in row] for id, *row in gains[["reference", "other"]].itertuples()}
    found = []
    for run, ids in zip((other, reference), wins(gains, n), strict=True):
        captions = {id: f"(wrong area {' against '.join(wrong[id])})" for id in ids}
        says = "" if ids else f"There is no image where {run.run.name} is better."
        found.append((side_by_side(opened, ids, f"{run.run.name} is better", captions) if ids else None, says))
    return found
