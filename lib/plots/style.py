"""One look for every figure: colours that colour-blind readers can tell apart, sizes that suit a page 1000 px wide."""

import os
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

# Okabe and Ito's palette for colour-blind readers (2008), dark enough on white for lines; black comes first in it.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, FAINT = "#6E6E6E", "#D9D9D9"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK, YELLOW)
SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN, "negatives": PURPLE}
# As the official metric sees a region.
STATUS_COLOURS = {"hit": GREEN, "missed": ORANGE, "false": SKY, "small": "#BBBBBB"}
WIDTH = 9.2  # inches of a figure that fills the page


def use_style() -> None:
    """Set matplotlib's defaults for the kit; notebooks call it once after their imports."""
    plt.rcParams.update({
        "axes.prop_cycle": plt.cycler(color=PALETTE),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.labelsize": 9.5,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.8,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "xtick.labelcolor": "#333333",
        "ytick.labelcolor": "#333333",
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "font.size": 9.5,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "figure.dpi": 110,
        "savefig.dpi": 150,
        "figure.facecolor": "white",  # pages in a dark theme keep the axes readable
        "figure.constrained_layout.use": True,
        "figure.titlesize": 12,
        "image.cmap": "magma",
    })  # fmt: skip


def figure(rows: int = 1, columns: int = 1, height: float = 3.0, title: str = "", **options) -> tuple[Figure, Axes]:
    """A page-wide figure; `height` is that of one row in inches. Returns it with its axes as `plt.subplots` does."""
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * height), **options)
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return fig, axes


def heat_colours() -> Colormap:
    """Inferno without its darkest quarter, which would look like a shadow over an image."""
    return ListedColormap(plt.get_cmap("inferno")([0.25 + 0.75 * level / 255 for level in range(256)]))


def colour_of(split: str, position: int = 0) -> str:
    """The fixed colour of a known split, else one by position."""
    return SPLIT_COLOURS.get(split, PALETTE[position % len(PALETTE)])


def empty(ax: Axes, text: str) -> Axes:
    """Say in the middle of an axes why there is nothing to draw."""
    ax.text(0.5, 0.5, text, ha="center", va="center", color=GREY, wrap=True, transform=ax.transAxes)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return ax


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names as figures write them: without the words that all begin with, on lines of about 30 letters."""
    shared = os.path.commonprefix(list(names)).rpartition("_")[0] if len(names) > 1 else ""
    texts = {name: name[len(shared) + 1 :] if shared else name for name in names}
    # Lines break behind underscores, which textwrap does at spaces only.
    return {
        name: textwrap.fill(text.replace("_", "_ "), 33, break_long_words=False).replace("_ ", "_")
        for name, text in texts.items()
    }


def legend(ax: Axes, **options) -> Axes:
    """Add the legend and return the axes, as every chart does."""
    ax.legend(**options)
    return ax


def legend_below(ax: Axes, columns: int = 3) -> Axes:
    """The same below the axis' label, for curves that may run anywhere in the panel."""
    below = ax.transAxes + ScaledTranslation(0, -0.45, ax.figure.dpi_scale_trans)  # inches
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    return legend(ax, ncols=columns, columnspacing=1.4, handlelength=1.6, **place)
