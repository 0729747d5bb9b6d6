"""`MaskInspector`: browse the predictions of a run against their labels in JupyterLab.

    from lib.evaluate.run_on_split import open_run
    from lib.widgets import MaskInspector
    MaskInspector(open_run("runs/demo_full", "test"))

What it shows comes from plain functions: `inspection` (one image), `ranking` (their order), `verdicts` (what people
say, `judging` what they say here), `html` (words); `screen` puts one image on the panels. Here is what joins them. No
exception vanishes: it becomes a red line in the widget (`guard`).
"""

import asyncio
from collections.abc import Callable

import ipywidgets as W
import pandas as pd

from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit
from lib.widgets import html, inspection, ranking
from lib.widgets.controls import Controls, show_if
from lib.widgets.guard import guarded
from lib.widgets.judging import Judging
from lib.widgets.screen import Screen
from lib.widgets.verdicts import VERDICTS

FIRST_RANKING = 0.7  # seconds of ranking before the first picture; a small split is done by then
VERDICT_KEYS = dict(zip("gxwu", VERDICTS, strict=True))


class MaskInspector(W.VBox):
    """The widget. `controls` holds its parts, `ids` the images in the order shown, `id` the one at its place.

    `shown` is the image whose picture is on the screen, None when none could be drawn: only that one is judged.

    Arguments: `run` see `lib.evaluate.run_on_split.open_run`; `other` a second run on the same split, shown beside it;
    `sort_by` one of `ranking.SORTS`; `side` pixels of the pictures' longer side. Raises InputError for an unknown order
    or for runs that do not belong together.
    """

    def __init__(self, run: RunOnSplit, other: RunOnSplit | None = None, sort_by="worst", side=inspection.SIDE):
        if other and other.labels.path.resolve() != run.labels.path.resolve():
            where = f"{other.name} belongs to {other.labels.path}, {run.name} to {run.labels.path}"
            raise InputError(f"{where}; compare runs on the same prepared split")
        self.runs = [run] if other is None else [run, other]
        self.facts, self.notes = ranking.overview(run.labels, *(one.predictions for one in self.runs))
        self.judging = Judging(run.verdicts_path)
        self.verdicts = self.judging.file
        self.ids, self.position, self.shown, self.last_error = [], 0, None, ""
        self._filling, self._touched = False, False
        labelled = bool(self.facts["labelled"].any())
        sorts = ranking.sorts(labelled, compared=other is not None)
        sort_by, more = ranking.checked_sort(sort_by, sorts)
        self.notes += more
        kinds = sorted({kind for names in ranking.kinds_of(self.facts) for kind in names})
        thresholds = [(one.name, one.threshold) for one in self.runs]
        self.controls = Controls(thresholds, sorts, sort_by, kinds, labelled)
        self.screen = Screen(self.runs, self.controls, side)
        super().__init__(self.controls.rows())
        self.add_class("mask-inspector")
        self._connect()
        self._rank()

    def _connect(self) -> None:
        parts = self.controls
        parts.previous.on_click(lambda _: self.step(-1))
        parts.next.on_click(lambda _: self.step(1))
        parts.export.on_click(lambda _: self.export())
        parts.rank_again.on_click(lambda _: self._rank())
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
    def _rank(self) -> None:
        """Begin to rank all images at the thresholds of the sliders, and show what is known at once."""
        self.ranked_at = [slider.value for slider in self.controls.thresholds]
        runs = [(run.predictions, at, run.min_area) for run, at in zip(self.runs, self.ranked_at, strict=True)]
        self.ranking = ranking.Ranking(self.runs[0].labels, runs, list(self.facts.index))
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
        if await ranking.work_on(current, lambda: current is self.ranking and self.comm is not None, self._tell):
            self._ranked()

    @guarded
    def _ranked(self) -> None:
        """Sort by what is known; a reader who has begun to work keeps the image, lest a note goes to another one."""
        self.table = self.facts.join(self.ranking.table)
        self.find(keep=self.id if self._touched else None)

    def wait(self, progress: Callable[[int, int], None] | None = None) -> "MaskInspector":
        """Finish the ranking now, however long it takes; `progress(done, total)` hears how far it is."""
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
        self.ids = self._found(self.table)
        self.position = self.ids.index(keep) if keep in self.ids else 0
        self.show()

    def _found(self, table: pd.DataFrame) -> list[str]:
        parts = self.controls
        among = ranking.ids_to_show(parts.show.value, self.judging.known(), self.ranking.problems, table.index)
        return ranking.order(ranking.select(table, parts.kind.value, parts.text.value, among), parts.sort_by.value)

    def found_so_far(self) -> list[str]:
        """The ids as `find` orders them, of those images only that are ranked by now; the screen stays as it is."""
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
        self.judging.save()
        self._fill()
        self.screen.draw_strip(self.ids, self.position)

    def _fill(self) -> None:
        """Show what is known of the current image: its verdict, its note, and what of them is not saved."""
        parts, known = self.controls, self.judging.known().get(self.id, {})
        self._filling = True
        try:
            parts.verdict.value, parts.note.value = known.get("verdict", ""), known.get("note", "")
        finally:
            self._filling = False
        parts.unsaved.value = html.error(self.judging.error)
        show_if(parts.unsaved, bool(self.judging.error))
        self._tell()

    @guarded
    def draw(self) -> None:
        """Draw the current image, a matter of milliseconds: sliders call this."""
        parts, self.shown = self.controls, None
        parts.rank_again.disabled = [slider.value for slider in parts.thresholds] == self.ranked_at
        show_if(parts.body, self.id is not None)
        try:
            if self.id is None:
                parts.error.value = html.error(self._why_nothing())
            elif unread := self.screen.draw(self.id, self.table.loc[self.id]):
                self.ranking.problems.setdefault(self.id, unread[0])
            self.shown = self.id
        except Exception:
            self.screen.clear()  # no picture rather than that of another image
            raise
        finally:
            parts.verdict.disabled = parts.note.disabled = self.shown is None

    def _why_nothing(self) -> str:
        if len(self.facts):
            return ""
        stores = self.runs[0].predictions.path, self.runs[0].labels.path
        return "{} holds no prediction of an image in {}; predict that split with notebook 3".format(*stores)

    @guarded
    def _tell(self, *news: str) -> None:
        """The status line: news, the ranking's, the file of verdicts, what is left out."""
        lines = [*news, *self.ranking.news()]
        if self.facts.size and not self.ids:
            lines.insert(len(news), "No image is like that; widen the search.")
        lines.append(
            f"{len(self.judging.known()):,} of {len(self.facts):,} images judged, kept in {self.verdicts.path}."
        )
        self.controls.status.value = html.lines([*lines, *self.notes])

    # Verdicts --------------------------------------------------------------------------------------------------------

    @guarded
    def judge(self, seen: str | None = None, **said: str) -> None:
        """Keep a `verdict` or a `note` of the image on the screen; `seen` is the note that the reader saw before."""
        if self.shown is None:
            raise InputError("no picture is on the screen, so nothing was noted; step to an image that is shown")
        seen = self.controls.note.value if seen is None else seen
        self.judging.say(self.shown, self.controls.thresholds[0].value, seen, **said)
        self._fill()

    @guarded
    def export(self) -> None:
        """Write all verdicts with the images' figures as CSV."""
        path = self.verdicts.export(self.table.loc[:, "prompt":])
        self._tell(f"Verdicts and figures written to {path}.")
