"""One look for every figure: colours that colour-blind readers can tell apart, sizes that suit a page."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

# Okabe and Ito's palette for colour-blind readers (2008), as in kit.mplstyle.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
GREY, FAINT = "#6E6E6E", "#D9D9D9"
# As the official metric sees a region.
STATUS_COLOURS = {"hit": GREEN, "missed": ORANGE, "false": SKY, "small": "#BBBBBB"}
WIDTH = 9.2  # inches of a figure that fills the page


def use_style() -> None:
    """Set matplotlib's defaults for the kit (`kit.mplstyle`); notebooks call it once after their imports."""
    plt.style.use(Path(__file__).with_name("kit.mplstyle"))


def figure(rows: int = 1, columns: int = 1, height: float = 3.0, title: str = "", **options) -> tuple[Figure, Axes]:
    """A page-wide figure; `height` is that of one row in inches. Returns it with its axes as `plt.subplots` does."""
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * height), **options)
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return fig, axes


def heat_colours() -> Colormap:
    """Inferno without its darkest quarter, which would look like a shadow over an image."""
    return ListedColormap(plt.get_cmap("inferno")([0.25 + 0.75 * level / 255 for level in range(256)]))


def empty(ax: Axes, text: str) -> Axes:
    """Say in the middle of an axes why there is nothing to draw."""
    ax.text(0.5, 0.5, text, ha="center", va="center", color=GREY, wrap=True, transform=ax.transAxes)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return ax


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names as figures write them: without the words that all begin with, on lines of about 30 letters."""
    shared = os.path.commonprefix(list(names)).rpartition("_")[0] if len(names) > 1 else ""
    # Lines break behind underscores, which textwrap does at spaces only.
    texts = {name: name.removeprefix(f"{shared}_" if shared else "").replace("_", "_ ") for name in names}
    return {name: textwrap.fill(text, 33, break_long_words=False).replace("_ ", "_") for name, text in texts.items()}


def legend_below(ax: Axes, columns: int = 3) -> Axes:
    """Add the legend below the axis' label, for curves that may run anywhere in the panel."""
    below = ax.transAxes + ScaledTranslation(0, -0.45, ax.figure.dpi_scale_trans)  # inches
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    ax.legend(ncols=columns, columnspacing=1.4, handlelength=1.6, **place)
    return ax
