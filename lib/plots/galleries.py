"""Galleries of images: a grid of tiles, cases of runs, crops around regions; each returns a Figure.

A tile is composed in pixels first, so that all tiles of a figure share one size and one scale of colours.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lib.metrics.regions import compare_image
from lib.plots.rendering import fit, heat_overlay, mark_regions
from lib.plots.style import GREY, STATUS_COLOURS, WIDTH, empty, heat_colours, short_names
from lib.scale import HEATMAP_LEVELS, mos_from_score

SIDE = 340  # pixels of a square panel
GAP = 10  # pixels of white between the panels of a tile
CONTEXT = 1.9  # a crop's side in units of its region's
LETTERS = 140  # of a caption's line across the page
HEAD, LINE, NAMES, LEGEND, MARGIN = 0.34, 0.17, 0.16, 0.3, 0.1  # inches: title, line of a caption, names, legend, gap


def heatmap_overlay(ax: Axes, image: np.ndarray, heatmap: np.ndarray | None = None, title="") -> Axes:
    """Draw an image (uint8 RGB [H, W, 3]) with a heatmap over it (uint8, any size; None for the image alone)."""
    ax.imshow(image if heatmap is None else heat_overlay(image, heatmap))
    ax.set_title(title)
    ax.set_axis_off()
    return ax


def gallery(
    tiles: Sequence[Sequence[np.ndarray]], captions: Sequence[str], title="", names=(), columns=2, heat=True,
    regions=False,
) -> Figure:  # fmt: skip
    """Tiles in a grid, each a few panels side by side below a caption.

    Args:
        tiles: of each tile its panels, uint8 RGB of any size.
        captions: one a tile; each of its lines is cut to two.
        names: of the panels; they stand below the first row.
        heat, regions: whether the legend tells the colours of heatmaps, of regions.
    """
    if not tiles:
        fig, ax = plt.subplots(figsize=(WIDTH, 0.9))
        empty(ax, f"{title}: there is none").set_axis_off()
        return fig
    pictures, width = [_join(panels) for panels in tiles], (WIDTH - (columns + 1) * MARGIN) / columns
    texts = ["\n".join(_wrap(line, columns) for line in caption.splitlines()) for caption in captions]
    rows = [slice(start, start + columns) for start in range(0, len(pictures), columns)]
    above = [LINE * max(text.count("\n") + 1 for text in texts[row]) for row in rows]
    heights = [max(map(len, pictures[row])) / pictures[0].shape[1] * width for row in rows]
    below = NAMES * max((name.count("\n") + 1 for name in names), default=0)
    total = HEAD + sum(above) + sum(heights) + below + MARGIN * len(rows) + LEGEND * (heat + regions)
    # Every part has its place in inches: matplotlib's own layouts misplace the legend of a long sheet.
    fig, y = plt.figure(figsize=(WIDTH, total), layout=PlaceHolderLayoutEngine(True, True)), total - HEAD
    for number, row in enumerate(rows):
        y -= above[number]
        for column, (picture, text) in enumerate(zip(pictures[row], texts[row], strict=True)):
            height, left = len(picture) / picture.shape[1] * width, MARGIN + column * (width + MARGIN)
            ax = fig.add_axes((left / WIDTH, (y - height) / total, width / WIDTH, height / total))
            ax.imshow(picture, interpolation="antialiased", aspect="auto")
            ax.set_axis_off()
            ax.set_title(text.replace("$", r"\$"), fontsize=8.5, pad=3)  # a dollar sign would start a formula
            for position, name in enumerate(names if number == 0 else ()):
                place = (position * (SIDE + GAP) + SIDE / 2, len(picture) + 4)
                ax.text(*place, name, ha="center", va="top", fontsize=8, color=GREY)
        y -= heights[number] + MARGIN + below * (number == 0)
    fig.suptitle(title, x=MARGIN / WIDTH, y=1 - 0.08 / total, ha="left", va="top", fontweight="bold", fontsize=10.5)
    legend = {"loc": "lower center", "handlelength": 1.5, "columnspacing": 1.2, "borderaxespad": 0, "fontsize": 8.5}
    if heat:
        votes = ("marked by 1 annotator", "2", "3", "4 or more; predictions on the same scale")
        keys = [
            Patch(color=heat_colours()(level), label=text)
            for level, text in zip(HEATMAP_LEVELS[1:], votes, strict=True)
        ]
        fig.legend(handles=keys, ncols=4, bbox_to_anchor=(0.5, LEGEND * regions / total), **legend)
    if regions:  # tints are labels, lines are predictions; colour alone would not tell the two greens apart
        keys = [Patch(color=STATUS_COLOURS[name], alpha=0.6, label=f"label, {name}") for name in ("hit", "missed")]
        keys += [Line2D([], [], color=STATUS_COLOURS[name], label=f"prediction, {name}") for name in ("hit", "false")]
        fig.legend(handles=keys, ncols=4, bbox_to_anchor=(0.5, 0), **legend)
    return fig


def cases(runs, ids, title: str = "", captions: Mapping[str, str] | None = None) -> Figure:
    """One row an image: image, label, prediction, and the regions as the official metric sees them.

    Args:
        runs: a `lib.evaluate.run_on_split.RunOnSplit`, or several on one split: then each has one panel, its prediction
            with the regions. Regions of an image without a label are white.
        ids: the images, in order.
        captions: {id: first lines of the caption}; by default the id and its scores. The prompt follows.
    """
    runs = runs if isinstance(runs, list | tuple) else [runs]
    one, table, tiles, texts = len(runs) == 1, runs[0].labels.table, [], []
    names = ["prediction", "regions"] if one else [*short_names([run.name for run in runs]).values()]
    for id in ids:
        panels, mos = [], [f"MOS {mos_from_score(table.at[id, 'score']):.2f}".replace("MOS nan", "no score")]
        for run in runs:
            image, label, heatmap, regions = _classified(run, id)
            image = fit(image, SIDE)
            prediction = heat_overlay(image, heatmap)
            panels += [prediction, mark_regions(image, *regions)] if one else [mark_regions(prediction, *regions)]
            mos.append(f"predicted {mos_from_score(run.predictions.table.at[id, 'score']):.2f}")
        tiles.append([image, image if label is None else heat_overlay(image, label), *panels])
        texts.append((captions[id] if captions else f"{id}: {', '.join(mos)}") + f"\n{table.at[id, 'prompt']}")
    return gallery(tiles, texts, title, ("image", "label", *names), columns=1, regions=True)


def region_crops(run, regions: pd.DataFrame, title: str = "") -> Figure:
    """Crops around regions, each without and with the marks of all regions there.

    `run` is a RunOnSplit; `regions` are rows of `lib.evaluate.tables.error_tables`, in the order to be shown.
    """
    tiles, texts = [], []
    for row in regions.itertuples():
        image, _, _, found = _classified(run, row.id)
        image = fit(image, 3 * SIDE)  # outlines are drawn on an enlarged image, so that a crop shows them thin
        left, top, right, bottom = _crop_box(row, image.shape)
        tiles.append([view[top:bottom, left:right] for view in (image, mark_regions(image, *found))])
        text = f"predicted at {row.heat:.0f} of 255"
        if row.side == "true":
            who = "one annotator" if row.votes == 1 else f"{row.votes} annotators"
            text = f"marked by {who}, predicted at most {row.response:.0f}"
        texts.append(f"{row.id}: {row.area:.1%} of the image,\n{row.place}, {text}")
    return gallery(tiles, texts, title, heat=False, regions=True)


def overlay(run, id: str) -> np.ndarray:
    """An image of a RunOnSplit with its heat and the outlines of its regions, at its own size, uint8 RGB [H, W, 3]."""
    image, _, heatmap, regions = _classified(run, id)
    return mark_regions(heat_overlay(image, heatmap), *regions)


def _classified(run, id: str) -> tuple:
    """(image, label or None, heatmap, (predicted regions, true regions)) of one image of a RunOnSplit.

    Without a label predicted regions are "unjudged".
    """
    labels, heatmap = run.labels, run.predictions.heatmap(id)
    label = labels.heatmap(id) if labels.table.at[id, "labelled"] else None
    _, *regions = compare_image(heatmap, label, run.threshold, run.min_area)
    return labels.image(id), label, heatmap, regions


def _crop_box(row, shape: tuple) -> tuple[int, int, int, int]:
    """A square around the region (its x0, y0, x1, y1 are fractions) with some context, inside the image [H, W]."""
    height, width = shape[:2]
    side = max((row.x1 - row.x0) * width, (row.y1 - row.y0) * height) * CONTEXT
    side = int(np.clip(side, 0.35 * min(height, width), min(height, width)))
    left = int(np.clip(round((row.x0 + row.x1) / 2 * width - side / 2), 0, width - side))
    top = int(np.clip(round((row.y0 + row.y1) / 2 * height - side / 2), 0, height - side))
    return left, top, left + side, top + side


def _join(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels side by side on white, each centred in a column of its own."""
    panels = [fit(panel, SIDE) for panel in panels]
    tile = np.full((max(len(panel) for panel in panels), len(panels) * (SIDE + GAP) - GAP, 3), 255, np.uint8)
    for position, panel in enumerate(panels):
        left = position * (SIDE + GAP) + (SIDE - panel.shape[1]) // 2
        tile[: len(panel), left : left + panel.shape[1]] = panel
    return tile


def _wrap(text: str, columns: int) -> str:
    return "\n".join(textwrap.wrap(text, LETTERS // columns, max_lines=2, placeholder=" ..."))
