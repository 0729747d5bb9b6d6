"""One image on the panels of the mask inspector: what is kept, what is drawn again, and the words beside it."""

import functools
from collections.abc import Callable
from itertools import chain

import pandas as pd

from lib.evaluate.run_on_split import RunOnSplit
from lib.plots import rendering
from lib.widgets import html, inspection
from lib.widgets.controls import Controls, show_if

THUMBNAIL = 64  # pixels of the longer side


class Screen:
    """Fills `controls` with one image after the other. `runs` are on one split; `side` is that of the pictures in px.

    Sliders work on the image that is shown and readers go back, so a few images are kept; more would let the memory
    grow with browsing.
    """

    def __init__(self, runs: list[RunOnSplit], controls: Controls, side: int):
        self.runs, self.controls = runs, controls
        labels, annotators = runs[0].labels, inspection.AnnotatorRegions(runs[0].labels)
        self.scene = functools.lru_cache(4)(lambda id: inspection.read_scene(labels, id, annotators, side))
        self.heatmap = functools.lru_cache(8)(lambda n, id: inspection.read_or_tell(runs[n].predictions, id))
        self.judgement = functools.lru_cache(8)(self._judge)
        self.thumbnail = functools.lru_cache(64)(lambda id: rendering.thumbnail(labels.image_path(id), THUMBNAIL))

    def _judge(self, n: int, id: str, threshold: int) -> inspection.Judgement:
        return inspection.judge(self.heatmap(n, id)[0], self.scene(id).truth, threshold, self.runs[n].min_area)

    def draw(self, id: str, row: pd.Series) -> list[str]:
        """Show an image as the controls say; returns sentences about what could not be read.

        `row` holds what is known of the image (`lib.widgets.ranking.overview`).
        """
        parts, scene = self.controls, self.scene(id)
        thresholds = [slider.value for slider in parts.thresholds]
        heatmaps, problems = zip(*(self.heatmap(n, id) for n in range(len(self.runs))), strict=True)
        judgements = [self.judgement(n, id, threshold) for n, threshold in enumerate(thresholds)]
        self._draw_label(id, scene, judgements[0])
        self._draw_predictions(id, scene, heatmaps, judgements, thresholds)
        names, figures = [run.name for run in self.runs], [one.figures for one in judgements]
        scores = [row[name] for name in ("predicted", "other")[: len(self.runs)]]
        parts.headline.value = html.headline(id, row)
        parts.figures.value = html.figures(names, figures, scores, row["true"])
        labelled = scene.label is not None
        parts.keys.texts = html.picture_texts(id, labelled, parts.layers.value, names, figures)
        shown = {region.status for one in judgements for region in [*one.predicted, *one.true]}
        parts.legend.value = html.legend(shown if parts.regions.value else ())
        unread = [*scene.problems, *chain(*problems)]
        parts.error.value = html.error("; ".join(unread))
        return unread

    def draw_strip(self, ids: list[str], position: int) -> None:
        """Show the images around a place of the list, small."""
        self.controls.strip.value = html.strip(ids, position, self.thumbnail)

    def clear(self) -> None:
        """Take the image away with all that was said of it, for one that cannot be drawn."""
        parts = self.controls
        for panel in parts.panels:
            panel.clear()
        parts.headline.value = parts.figures.value = parts.legend.value = ""
        parts.keys.texts = []

    def _draw_label(self, id: str, scene: inspection.Scene, judgement: inspection.Judgement) -> None:
        panel, shown = self.controls.panels[0], self.controls.label_beside.value
        show_if(panel, shown)
        if not shown:
            return
        # Of the threshold it shows only which regions are hit: most moves of a slider leave it as it is.
        key = (id, *(region.status for region in judgement.true), *self._style.values())
        title = "label" if scene.label is not None else "no label"
        panel.put(title, key, self._picture(scene, None, judgement, "label", 0))

    def _draw_predictions(self, id: str, scene: inspection.Scene, heatmaps, judgements, thresholds) -> None:
        layer, panels = self.controls.layers.value, self.controls.panels[1:]
        jobs = zip(self.runs, panels, heatmaps, judgements, thresholds, strict=True)
        for run, panel, heatmap, judgement, threshold in jobs:
            key = (id, layer, threshold, *self._style.values())
            panel.put(run.name, key, self._picture(scene, heatmap, judgement, layer, threshold))

    @property
    def _style(self) -> dict[str, float | bool]:
        parts = self.controls
        return {"opacity": parts.opacity.value, "regions": parts.regions.value, "annotators": parts.annotators.value}

    def _picture(self, *what) -> Callable[[], bytes]:
        return lambda: rendering.encode(inspection.draw(*what, **self._style))
