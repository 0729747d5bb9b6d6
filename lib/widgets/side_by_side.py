"""Static pictures of inspected images: image, label and each run's prediction in a row, for exported pages."""

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.evaluate.run_on_split import RunOnSplit
from lib.plots.style import STATUS_COLOURS, WIDTH, empty, short_names
from lib.widgets import inspection
from lib.workspace import ProgressLines, in_jupyterlab

SIDE = 560  # pixels of a panel's longer side
WORDS = {"hit": "hit", "missed": "missed (true, not found)", "false": "false (predicted, not true)"}


def first_images(inspector, n: int) -> tuple[Figure, str]:
    """The first `n` images in the order of a `MaskInspector`, and the sentence that says which they are.

    A page shows the first of all images: headless they are all ranked before, with lines of progress. In JupyterLab
    that would keep the inspector from answering, so there the order is that of the images ranked so far.
    """
    if not in_jupyterlab():
        inspector.wait(ProgressLines("ranked"))
    found, ranking = inspector.found_so_far(), inspector.ranking
    title = f"{inspector.runs[0].split}: first by {inspector.controls.sort_by.value}"
    fig = side_by_side(inspector.runs, found[:n], title)
    if not ranking.finished:
        again = "run this cell again when the inspector has ranked them all"
        return fig, f"{len(found[:n])} of the {len(found):,} images ranked so far, of {len(ranking.ids):,}; {again}."
    says = f"{len(found[:n])} of {len(found):,} images."
    if ranking.problems:
        first = next(iter(ranking.problems.values()))
        says += f" {len(ranking.problems):,} images have files that cannot be read, the first: {first}."
    return fig, says


def side_by_side(runs: list[RunOnSplit], ids: list[str], title="", captions: Mapping[str, str] | None = None) -> Figure:
    """One row an image: the image, its label, and the prediction of each run with its regions and figures.

    Arguments: `runs` on one split, each at its own threshold; `ids` in order; `captions` a line an image, by id.
    A file that cannot be read is told in the row's caption.
    """
    if not ids:
        fig, ax = plt.subplots(figsize=(WIDTH, 0.9))
        empty(ax, f"{title}: no image to show").set_axis_off()
        return fig
    annotators, rows = inspection.AnnotatorRegions(runs[0].labels), []
    for id in ids:
        rows.append(_panels(runs, id, annotators, (captions or {}).get(id, "")))
    panel = WIDTH / (2 + len(runs))
    heights = [panel * max(picture.shape[0] / picture.shape[1] for _, picture in panels) for _, panels in rows]
    fig = plt.figure(figsize=(WIDTH, 0.7 + sum(heights) + 0.66 * len(rows)), layout="constrained")
    parts = fig.subfigures(len(rows), 1, squeeze=False, height_ratios=[height + 0.66 for height in heights])[:, 0]
    for part, (caption, panels) in zip(parts, rows, strict=True):
        _draw_row(part, caption, panels)
    fig.suptitle(title, x=0.005, ha="left", fontweight="bold", fontsize=10.5)
    handles = [
        Line2D([], [], color=STATUS_COLOURS[name], linestyle="--" if name == "missed" else "-", linewidth=2, label=text)
        for name, text in WORDS.items()
    ]
    fig.legend(handles=handles, loc="outside upper right", ncols=3, handlelength=2.2, columnspacing=1.2)
    return fig


def _panels(runs, id: str, annotators, caption: str) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """(the row's caption, its panels as (title, RGB picture))."""
    scene = inspection.read_scene(runs[0].labels, id, annotators, SIDE)
    row, problems, found = runs[0].labels.table.loc[id], list(scene.problems), []
    names = short_names([run.name for run in runs])
    for run in runs:
        heatmap, problem = inspection.read_or_tell(run.predictions, id)
        judgement = inspection.judge(heatmap, scene.truth, run.threshold, run.min_area)
        problems += problem
        score = run.predictions.table["score"].get(id, np.nan)
        picture = inspection.draw(scene, heatmap, judgement, "prediction", run.threshold)
        found.append((f"{names[run.name]}, MOS {_mos(score)}\n{_figures(judgement.figures)}", judgement, picture))
    label = inspection.draw(scene, None, found[0][1], "label", 0, regions=False, annotators=True)
    panels = [
        (f"image, MOS {_mos(row['score'])}", scene.image),
        ("label, annotators" if scene.label is not None else "no label", label),
    ]
    prompt = textwrap.shorten(str(row["prompt"]), 130, placeholder=" ...")
    text = "\n".join([f"{id}  {caption}", prompt, *problems]).replace("$", r"\$")
    return text, [*panels, *((title, picture) for title, _, picture in found)]


def _figures(figures: dict) -> str:
    return ", ".join(
        f"{figures[name]:.0f} {word}"
        for name, word in (("hit_true", "hit"), ("missed_regions", "missed"), ("false_regions", "false"))
        if not np.isnan(figures[name])
    )


def _mos(score: float) -> str:
    return "unknown" if pd.isna(score) else f"{1 + 4 * score:.2f}"


def _draw_row(part, caption: str, panels: list) -> None:
    part.suptitle(caption, x=0.005, ha="left", fontsize=8.5)
    for ax, (title, picture) in zip(part.subplots(1, len(panels)), panels, strict=True):
        ax.imshow(picture, interpolation="antialiased")
        ax.set_title(title, fontsize=8, pad=3)
        ax.set_anchor("N")
        ax.set_axis_off()
