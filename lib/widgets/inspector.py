"""`MaskInspector`: browse the predictions of a run beside their labels in JupyterLab.

    from lib.evaluate.run_on_split import open_run
    from lib.widgets import MaskInspector
    MaskInspector(open_run("runs/demo_full", "test"))

This module joins controls and state. `controls` is the layout, `image` reads, compares and draws one image, `ranking`
orders all, `verdicts` keeps what people say of them, `html` has the words.
"""

import asyncio
import functools
import traceback
from collections.abc import Callable, Collection

import ipywidgets as W
import pandas as pd

from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit
from lib.plots import rendering
from lib.widgets import html, image, ranking
from lib.widgets.controls import Controls, show_if
from lib.widgets.verdicts import VERDICTS, VerdictFile

FIRST_RANKING = 0.7  # seconds of ranking before the first picture; a small split is done by then
PIECE = 0.03  # seconds of ranking at a time, so that a slider never waits longer
SIDE, THUMBNAIL = 768, 64  # pixels of a picture's longer side
VERDICT_KEYS = dict(zip("gxwu", VERDICTS, strict=True))


def guarded(method):
    """Show in the widget what a reaction to the reader raises; Jupyter would hide it in a log."""

    @functools.wraps(method)
    def call(self, *arguments, **options):
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            self.last_error = traceback.format_exc()
            hint = "" if isinstance(error, InputError) else " (`last_error` holds the traceback)"
            self.controls.error.value = html.error(html.as_text(error) + hint)

    return call


class MaskInspector(W.VBox):
    """The widget.

    Args:
        run: predictions on a split, see `lib.evaluate.run_on_split.open_run`.
        other: a second run on the same split, shown beside it.
        sort_by: one of `ranking.SORTS`.
        ids: the images to look through; all that are predicted by default.
        side: longer side of the pictures in pixels.
    Raises InputError for an unknown order or id, and for runs on different splits.

    Attributes: `table` has a row an image (columns: `ranking.COLUMNS`); `ids` are those found, in order; `id` is the
    current one; `shown` is the one whose picture is on the screen, None when none could be drawn (only that one can be
    judged); `verdicts` is the file; `controls` holds the parts.
    """

    def __init__(
        self,
        run: RunOnSplit,
        other: RunOnSplit | None = None,
        sort_by: str = "worst",
        ids: Collection[str] | None = None,
        side: int = SIDE,
    ):
        if other and other.labels.path.resolve() != run.labels.path.resolve():
            where = f"{other.name} belongs to {other.labels.path}, {run.name} to {run.labels.path}"
            raise InputError(f"{where}; compare runs on the same prepared split")
        self.runs = [run] if other is None else [run, other]
        self.facts, self.notes = ranking.overview(self.runs, ids)
        self.verdicts = VerdictFile(run.verdicts_path)
        self.ids, self.position, self.shown, self.last_error = [], 0, None, ""
        self._filling, self._touched = False, False
        labelled = bool(self.facts["labelled"].any())
        sorts = ranking.sorts(labelled, compared=other is not None)
        if sort_by not in ranking.SORTS:
            raise InputError(f"sort_by: {sort_by!r} is no order; choose among {', '.join(sorts)}")
        if sort_by not in sorts:
            needs = ranking.SORTS[sort_by][1]
            self.notes.append(f"The order {sort_by!r} needs {needs}; the list is sorted by {sorts[0]!r}.")
            sort_by = sorts[0]
        kinds = sorted({kind for names in ranking.kinds_of(self.facts) for kind in names})
        thresholds = [(one.name, one.threshold) for one in self.runs]
        self.controls = Controls(thresholds, sorts, sort_by, kinds, labelled)
        self._make_caches(side)
        super().__init__(self.controls.rows())
        self.add_class("mask-inspector")
        self._connect()
        self.rank()

    def _make_caches(self, side: int) -> None:
        # Sliders work on the image that is shown and readers go back, so a few images are kept; more would let the
        # memory grow with browsing.
        labels, drawn = self.runs[0].labels, image.regions_by_image(self.runs[0].labels)
        self.scene = functools.lru_cache(4)(lambda id: image.read_scene(labels, id, drawn, side))
        self.heatmap = functools.lru_cache(8)(lambda n, id: image.read_heatmap(self.runs[n].predictions, id))
        self.comparison = functools.lru_cache(8)(
            lambda n, id, at: image.compare(self.heatmap(n, id)[0], self.scene(id).truth, at, self.runs[n].min_area)
        )
        self.thumbnail = functools.lru_cache(64)(lambda id: rendering.thumbnail(labels.image_path(id), THUMBNAIL))

    def _connect(self) -> None:
        parts = self.controls
        parts.previous.on_click(lambda _: self.step(-1))
        parts.next.on_click(lambda _: self.step(1))
        parts.export.on_click(lambda _: self.export())
        parts.rank_again.on_click(lambda _: self.rank())
        parts.place.observe(lambda change: self._filling or self.go(change["new"] - 1), "value")
        for part in (parts.sort_by, parts.kind, parts.show, parts.text):
            part.observe(lambda _: self.find(), "value")
        boxes = parts.regions, parts.annotators, parts.label_beside
        for part in (parts.layers, *parts.thresholds, parts.opacity, *boxes):
            part.observe(lambda _: self.draw(), "value")
        parts.verdict.observe(lambda change: self._filling or self.judge(verdict=change["new"]), "value")
        parts.note.observe(lambda change: self._filling or self.judge(change["old"], note=change["new"]), "value")
        parts.keys.on_msg(
            lambda _, said, buffers: self.go(said["place"]) if "place" in said else self.press(said["key"])
        )

    # Ranking ---------------------------------------------------------------------------------------------------------

    @guarded
    def rank(self) -> None:
        """Begin to rank all images at the thresholds of the sliders, and show what is known at once."""
        self.ranked_at = [slider.value for slider in self.controls.thresholds]
        self.ranking = ranking.Ranking(self.runs, self.ranked_at, list(self.facts.index))
        self._touched = False
        self.ranking.work(FIRST_RANKING)
        self._ranked()
        if not self.ranking.finished:
            try:
                self.ranking_task = asyncio.get_running_loop().create_task(self._rank_on(self.ranking))
            except RuntimeError:  # no kernel: `wait` does it
                self.ranking_task = None

    async def _rank_on(self, current: ranking.Ranking) -> None:
        """The rest, between the reader's clicks; it ends when another ranking begins or the widget is closed."""
        while not current.finished:
            await asyncio.sleep(PIECE / 2)
            if current is not self.ranking or self.comm is None:
                return
            before = len(current.rows)
            current.work(PIECE)
            # Not at the end: the status would say so while the list is not yet sorted anew.
            if len(current.rows) // 100 > before // 100 and not current.finished:
                self._show_status()
        self._ranked()

    @guarded
    def _ranked(self) -> None:
        """Sort by what is known; a reader who has begun to work keeps the image, lest a note goes to another one."""
        self.table = self.facts.join(self.ranking.table)
        self.find(keep=self.id if self._touched else None)

    def wait(self, progress: Callable[[int, int], None] | None = None) -> "MaskInspector":
        """Finish the ranking now, however long it takes; calls `progress(done, total)` about once a second."""
        while not self.ranking.finished:
            self.ranking.work(1)
            if progress:
                progress(len(self.ranking.rows), len(self.ranking.ids))
        self._ranked()
        return self

    # Finding ---------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str | None:
        return self.ids[self.position] if self.ids else None

    @guarded
    def find(self, keep: str | None = None) -> None:
        """Sort and filter as the controls say; `keep` stays on the screen when it is among the images found."""
        self.ids = list(self._found(self.table).index)
        self.position = self.ids.index(keep) if keep in self.ids else 0
        self.show()

    def _found(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table, filtered and sorted as the controls say, with what people say of the images."""
        parts, known, nothing = self.controls, self.verdicts.known(), {"verdict": "", "note": ""}
        said = {name: [known.get(id, nothing)[name] for id in table.index] for name in nothing}
        table = table.assign(**said, problem=[self.ranking.problems.get(id, "") for id in table.index])
        table = ranking.select(table, parts.kind.value, parts.text.value, parts.show.value)
        return table.loc[ranking.order(table, parts.sort_by.value)]

    def ranked(self) -> pd.DataFrame:
        """The images ranked by now, filtered and sorted as the controls say (columns: `ranking.COLUMNS`)."""
        return self._found(self.facts.join(self.ranking.table, how="inner"))

    def step(self, by: int) -> None:
        """Go on by so many images, not beyond the ends."""
        self.go(self.position + by)

    @guarded
    def go(self, position: int) -> None:
        """Show the image at a place of the list, 0 first."""
        self.position, self._touched = max(0, min(position, len(self.ids) - 1)), True
        self.show()

    @guarded
    def press(self, key: str) -> None:
        """What a key does; unknown ones, and "Focus" for a click into the widget, only tell that someone is there."""
        parts, self._touched = self.controls, True
        moves = {"ArrowLeft": -1, "p": -1, "ArrowRight": 1, "n": 1, "Home": -len(self.ids), "End": len(self.ids)}
        switches = {"r": parts.regions, "a": parts.annotators, "l": parts.label_beside}
        if key in moves:
            self.step(moves[key])
        elif key in switches:
            switches[key].value = not switches[key].value
        elif key in "[]":
            parts.thresholds[0].value += 5 if key == "]" else -5
        elif key in VERDICT_KEYS and self.shown is not None:
            verdict = VERDICT_KEYS[key]
            parts.verdict.value = "" if parts.verdict.value == verdict else verdict
        elif key in "1234"[: len(parts.layers.options)]:
            parts.layers.value = parts.layers.options[int(key) - 1]
        parts.keys.handled += 1

    # Showing ---------------------------------------------------------------------------------------------------------

    @guarded
    def show(self) -> None:
        """Put the current image with its verdict on the screen, and save what could not be saved before."""
        parts = self.controls
        self._filling = True
        try:
            parts.place.max, parts.place.value = max(1, len(self.ids)), self.position + 1
        finally:
            self._filling = False
        parts.total.value = f"of {len(self.ids):,}"
        parts.previous.disabled, parts.next.disabled = self.position == 0, self.position >= len(self.ids) - 1
        self.draw()
        self.verdicts.save()
        self._show_verdict()
        parts.strip.value = html.strip(self.ids, self.position, self.thumbnail)

    def _show_verdict(self) -> None:
        """Show what is known of the current image: its verdict, its note, and what of them is not saved."""
        parts, known = self.controls, self.verdicts.known().get(self.id, {})
        self._filling = True
        try:
            parts.verdict.value, parts.note.value = known.get("verdict", ""), known.get("note", "")
        finally:
            self._filling = False
        parts.unsaved.value = html.error(self.verdicts.error)
        show_if(parts.unsaved, bool(self.verdicts.error))
        self._show_status()

    @guarded
    def draw(self) -> None:
        """Draw the current image, a matter of milliseconds: sliders call this."""
        parts, self.shown = self.controls, None
        parts.rank_again.disabled = [slider.value for slider in parts.thresholds] == self.ranked_at
        show_if(parts.body, self.id is not None)
        try:
            if self.id is not None:
                self._draw(self.id)
            elif self.facts.empty:
                stores = self.runs[0].predictions.path, self.runs[0].labels.path
                text = "{} holds no prediction of an image in {}; predict that split with notebook 3"
                parts.error.value = html.error(text.format(*stores))
            else:
                parts.error.value = ""
            self.shown = self.id
        except Exception:
            parts.clear()  # no picture rather than that of another image
            raise
        finally:
            parts.verdict.disabled = parts.note.disabled = self.shown is None

    def _draw(self, id: str) -> None:
        parts, scene, row = self.controls, self.scene(id), self.table.loc[id]
        thresholds, layer = [slider.value for slider in parts.thresholds], parts.layers.value
        heatmaps, problems = zip(*(self.heatmap(n, id) for n in range(len(self.runs))), strict=True)
        found = [self.comparison(n, id, at) for n, at in enumerate(thresholds)]
        label, *panels = parts.panels
        show_if(label, parts.label_beside.value)
        if parts.label_beside.value:
            title = "label" if scene.label is not None else "no label"
            # Of the threshold it shows only which regions are hit: most moves of a slider leave it as it is.
            key = (id, *(region.status for region in found[0].true))
            self._put(label, title, key, scene, None, found[0], "label", 0)
        for run, panel, heatmap, one, at in zip(self.runs, panels, heatmaps, found, thresholds, strict=True):
            self._put(panel, run.name, (id, layer, at), scene, heatmap, one, layer, at)
        names, figures = [run.name for run in self.runs], [one.figures for one in found]
        scores = [row[name] for name in ("predicted", "other")[: len(self.runs)]]
        parts.headline.value = html.headline(id, row)
        parts.figures.value = html.figures(names, figures, scores, row["true"])
        parts.keys.texts = html.picture_texts(id, scene.label is not None, layer, names, figures)
        shown = {region.status for one in found for region in [*one.predicted, *one.true]}
        parts.legend.value = html.legend(shown if parts.regions.value else ())
        unread = [*scene.problems, *(text for texts in problems for text in texts)]
        parts.error.value = html.error("; ".join(unread))
        if unread:
            self.ranking.problems.setdefault(id, unread[0])

    def _put(self, panel, title: str, key: tuple, *what) -> None:
        """Put a picture on a panel; `what` are the first arguments of `image.draw`."""
        parts = self.controls
        style = {name: getattr(parts, name).value for name in ("opacity", "regions", "annotators")}
        panel.put(title, (*key, *style.values()), lambda: rendering.encode(image.draw(*what, **style)))

    @guarded
    def _show_status(self, *news: str) -> None:
        """The status line: news, how far the ranking is, the file of verdicts, what is left out."""
        done, total, unread, lines = len(self.ranking.rows), len(self.facts), len(self.ranking.problems), [*news]
        if total and not self.ids:
            lines.append("No image matches; widen the search.")
        if done < total:
            lines.append(f"Ranking, {done:,} of {total:,} images done; the list is sorted anew at the end.")
        if unread:
            lines.append(f"{unread:,} images have files that cannot be read; find them under Show: unreadable.")
        lines.append(f"{len(self.verdicts.known()):,} of {total:,} images judged, kept in {self.verdicts.path}.")
        self.controls.status.value = html.lines([*lines, *self.notes])

    # Verdicts --------------------------------------------------------------------------------------------------------

    @guarded
    def judge(self, seen: str | None = None, **said: str) -> None:
        """Keep a `verdict` or a `note` of the image on the screen; `seen` is the note that the reader saw before."""
        if self.shown is None:
            raise InputError("no picture is on the screen, so nothing was noted; step to an image that is shown")
        seen = self.controls.note.value if seen is None else seen
        self.verdicts.say(self.shown, self.controls.thresholds[0].value, seen, **said)
        self._show_verdict()

    @guarded
    def export(self) -> None:
        """Write all verdicts with the images' figures as CSV."""
        path = self.verdicts.export(self.table.loc[:, "prompt":])
        self._show_status(f"Verdicts and figures written to {path}.")
