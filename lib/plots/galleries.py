"""Galleries of images: contact sheets, cases, crops around regions; each returns a Figure.

A tile is composed in pixels first, so that all tiles of a figure share one size and one scale of colours.
An image that cannot be read becomes a grey tile that says so, since one lost file must not cost the whole figure.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lib.errors import InputError
from lib.metrics.matching import MatchedRegion, classify_regions
from lib.plots.rendering import draw_regions, fit, heat_overlay, placeholder, tint_regions
from lib.plots.style import GREY, STATUS_COLOURS, WIDTH, empty, heat_colours, short_names
from lib.scale import HEATMAP_LEVELS, mos_from_score

SIDE = 340  # pixels of a square panel
GAP = 10  # pixels of white between the panels of a tile
CONTEXT = 1.9  # a crop's side in units of its region's
LETTERS = 148  # of a prompt's line across the page
HEAD, LINE, NAMES, SCALE, MARGIN = 0.34, 0.17, 0.16, 0.6, 0.1  # inches: title, line of a caption, names, scale, gap


def heatmap_overlay(ax: Axes, image: np.ndarray, heatmap: np.ndarray | None = None, opacity=0.6, title="") -> Axes:
    """Draw an image (uint8 RGB [H, W, 3]) with a heatmap over it (uint8, any size; None for the image alone)."""
    ax.imshow(image if heatmap is None else heat_overlay(image, heatmap, opacity))
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(False)
    return ax


def mark_regions(image: np.ndarray, predicted: list[MatchedRegion], true: list[MatchedRegion]) -> np.ndarray:
    """A copy of the image [H, W, 3] with true regions tinted and predicted ones outlined in the colour of their status.

    The regions are those of `lib.metrics.matching.classify_regions`; those too small to count are left out.
    """
    counted = [[region for region in regions if region.status != "small"] for regions in (predicted, true)]
    return draw_regions(tint_regions(image, counted[1]), counted[0])


def contact_sheet(
    labels, ids, predictions=None, columns: int = 2, title: str = "", captions: Mapping[str, str] | None = None
) -> Figure:
    """Images beside their label's overlay and, with `predictions`, the prediction's.

    Args:
        labels, predictions: a LabelStore and a PredictionStore. ids: the images, in order.
        captions: {id: first lines of the caption}; by default the id and its scores.
    """
    tiles, texts = [], []
    for id in ids:
        image = _image(labels, id)
        panels = [image, heat_overlay(image, labels.heatmap(id))] if labels.table.at[id, "labelled"] else [image]
        if predictions is not None:
            panels.append(heat_overlay(image, predictions.heatmap(id)))
        tiles.append(_join(panels))
        texts.append(_caption(labels, id, [predictions] if predictions else [], captions, columns))
    names = ("image", "label", "prediction")[: 2 + (predictions is not None)]
    return _sheet(tiles, texts, columns, title, names)


def cases(runs, ids, title: str = "", captions: Mapping[str, str] | None = None) -> Figure:
    """One row an image: image, label, prediction, and the regions as the official metric sees them.

    `runs` is a `lib.evaluate.run_on_split.RunOnSplit`, or several on one split: then each has one panel, its prediction
    with the regions. `ids` and `captions` as in `contact_sheet`. Regions of an image without a label are white.
    """
    runs = runs if isinstance(runs, list | tuple) else [runs]
    one, tiles, texts = len(runs) == 1, [], []
    names = ["prediction", "regions"] if one else [*short_names([run.name for run in runs]).values()]
    for id in ids:
        panels = [None, None]
        for run in runs:
            image, label, heatmap, regions = _classified(run, id)
            image = fit(image, SIDE)
            prediction = heat_overlay(image, heatmap)
            marked = mark_regions(image if one else prediction, *regions)
            panels += [prediction, marked] if one else [marked]
        panels[:2] = image, image if label is None else heat_overlay(image, label)
        tiles.append(_join(panels))
        texts.append(_caption(runs[0].labels, id, [run.predictions for run in runs], captions))
    return _sheet(tiles, texts, 1, title, ("image", "label", *names), with_regions=True)


def region_crops(run, regions: pd.DataFrame, title: str = "", columns: int = 2) -> Figure:
    """Crops around regions, each without and with the outlines of all regions there.

    `run` is a RunOnSplit; `regions` are rows of `lib.evaluate.tables.error_tables`, in the order to be shown.
    """
    tiles, texts = [], []
    for row in regions.itertuples():
        image, _, _, found = _classified(run, row.id)
        image = fit(image, 3 * SIDE)  # outlines are drawn on an enlarged image, so that a crop shows them thin
        left, top, right, bottom = _crop_box(row, image.shape)
        tiles.append(_join([view[top:bottom, left:right] for view in (image, mark_regions(image, *found))]))
        text = f"predicted at {row.heat:.0f} of 255"
        if row.side == "true":
            who = "one annotator" if row.votes == 1 else f"{row.votes} annotators"
            text = f"marked by {who}, predicted at most {row.response:.0f}"
        texts.append(f"{row.id}: {row.area:.1%} of the image,\n{row.place}, {text}")
    return _sheet(tiles, texts, columns, title, heat=False, with_regions=True)


def training_examples(data, n: int = 8, columns: int = 2) -> Figure:
    """Items of a `lib.data.dataset.DistortionData` as the network gets them, augmented, beside their label."""
    from lib.data.pixels import to_image  # here, because it loads torch

    (height, width), tiles, texts = data.config.input_shape, [], []
    for index in np.linspace(0, len(data) - 1, min(n, len(data))).round().astype(int):
        item = data[0, int(index), 1]
        image = to_image(item["pixel_values"], data.config.model)
        heatmap = (255 * item["heatmap"].numpy()).round().astype(np.uint8)
        tiles.append(_join([image, heat_overlay(image, heatmap)]))
        texts.append(f"{item['id']}: {_mos(item['score'])}\n{_wrap(item['prompt'], columns)}")
    title = f"As the network sees them, {width} x {height} pixels"
    return _sheet(tiles, texts, columns, title, ("image", "label"))


def _classified(run, id: str) -> tuple:
    """(image, label or None, heatmap, (predicted regions, true regions)) of one image."""
    labels, heatmap = run.labels, run.predictions.heatmap(id)
    label = labels.heatmap(id) if labels.table.at[id, "labelled"] else None
    true_mask = np.zeros((1, 1), bool) if label is None else label > 0
    predicted, true = classify_regions(heatmap > run.threshold, true_mask, run.min_area)
    if label is None:
        predicted = [replace(one, status="unjudged") if one.status == "false" else one for one in predicted]
    return _image(labels, id), label, heatmap, (predicted, true)


def _crop_box(row, shape: tuple) -> tuple[int, int, int, int]:
    """A square around the region (its x0, y0, x1, y1 are fractions) with some context, inside the image [H, W]."""
    height, width = shape[:2]
    side = max((row.x1 - row.x0) * width, (row.y1 - row.y0) * height) * CONTEXT
    side = int(np.clip(side, 0.35 * min(height, width), min(height, width)))
    left = int(np.clip(round((row.x0 + row.x1) / 2 * width - side / 2), 0, width - side))
    top = int(np.clip(round((row.y0 + row.y1) / 2 * height - side / 2), 0, height - side))
    return left, top, left + side, top + side


def _sheet(tiles, texts, columns: int, title: str, names=(), heat=True, with_regions=False) -> Figure:
    """Tiles (uint8 RGB, of one width) in a grid with captions, a colour scale below and the colours of the regions.

    `names` of the panels stand below those of the first row.
    """
    if not tiles:
        fig, ax = plt.subplots(figsize=(WIDTH, 0.9))
        empty(ax, f"{title}: there is none").set_axis_off()
        return fig
    width = (WIDTH - (columns + 1) * MARGIN) / columns
    rows = [slice(start, start + columns) for start in range(0, len(tiles), columns)]
    pictures = [max(len(tile) for tile in tiles[row]) / tiles[0].shape[1] * width for row in rows]
    captions = [LINE * max(text.count("\n") + 1 for text in texts[row]) for row in rows]
    below = NAMES * max((name.count("\n") + 1 for name in names), default=0)
    total = HEAD + sum(pictures) + sum(captions) + below + MARGIN * len(rows) + SCALE * heat
    # Everything has its place in inches: matplotlib's own layouts misplace the scale of a long sheet.
    fig, y = plt.figure(figsize=(WIDTH, total), layout="none"), total - HEAD
    for number, (row, picture, caption) in enumerate(zip(rows, pictures, captions, strict=True)):
        y -= caption + picture
        for column, (tile, text) in enumerate(zip(tiles[row], texts[row], strict=True)):
            height = len(tile) / tile.shape[1] * width
            left, bottom = MARGIN + column * (width + MARGIN), y + picture - height
            ax = fig.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))
            ax.imshow(tile, interpolation="antialiased", aspect="auto")
            ax.set_axis_off()
            ax.set_title(text.replace("$", r"\$"), fontsize=8.5, pad=3)  # a dollar sign would start a formula
            for position, name in enumerate(names if number == 0 else ()):
                place = (position * (SIDE + GAP) + SIDE / 2, len(tile) + 4)
                ax.text(*place, name, ha="center", va="top", fontsize=8, color=GREY)
        y -= MARGIN + below * (number == 0)
    fig.suptitle(title, x=MARGIN / WIDTH, y=1 - 0.08 / total, ha="left", va="top", fontweight="bold", fontsize=10.5)
    if heat:
        colours = ScalarMappable(Normalize(0, 255), heat_colours())
        bar = fig.colorbar(colours, cax=fig.add_axes((0.25, 0.42 / total, 0.5, 0.11 / total)), orientation="horizontal")
        bar.set_ticks(HEATMAP_LEVELS, labels=["0", "1", "2", "3", "4+"])
        bar.set_label("annotators who marked a pixel; predictions on the same scale, 0..255", fontsize=8.5)
    if with_regions:  # tints are labels, lines are predictions; colour alone would not tell the two greens apart
        keys = [Patch(color=STATUS_COLOURS[name], alpha=0.6, label=f"label, {name}") for name in ("hit", "missed")]
        keys += [Line2D([], [], color=STATUS_COLOURS[name], label=f"prediction, {name}") for name in ("hit", "false")]
        fig.legend(handles=keys, loc="upper right", ncols=4, handlelength=1.5, columnspacing=1.2, borderaxespad=0.2)
    return fig


def _image(labels, id: str) -> np.ndarray:
    """The image, or a grey one with words where it cannot be read."""
    try:
        return labels.image(id)
    except InputError as error:
        width, height = labels.table.loc[id, ["width", "height"]].astype(int)
        return placeholder(width, height, SIDE, str(error))


def _join(panels: list[np.ndarray]) -> np.ndarray:
    """Panels side by side on white, each centred in a column of its own."""
    panels = [fit(panel, SIDE) for panel in panels]
    tile = np.full((max(len(panel) for panel in panels), len(panels) * (SIDE + GAP) - GAP, 3), 255, np.uint8)
    for position, panel in enumerate(panels):
        left = position * (SIDE + GAP) + (SIDE - panel.shape[1]) // 2
        tile[: len(panel), left : left + panel.shape[1]] = panel
    return tile


def _caption(labels, id: str, predictions: list, captions: Mapping | None, columns: int = 1) -> str:
    """The given caption, or the id and its scores, and the prompt below."""
    mos = [f"predicted {mos_from_score(store.table.at[id, 'score']):.2f}" for store in predictions]
    first = f"{id}: {', '.join([_mos(labels.table.at[id, 'score']), *mos])}" if captions is None else captions[id]
    return f"{first}\n{_wrap(labels.table.at[id, 'prompt'], columns)}"


def _mos(score: float) -> str:
    return "no score" if pd.isna(score) else f"MOS {mos_from_score(score):.2f}"


def _wrap(text: str, columns: int) -> str:
    return "\n".join(textwrap.wrap(text, LETTERS // columns, max_lines=2, placeholder=" ..."))
