"""`MaskInspector`: browse the predictions of a run beside their labels in JupyterLab, judge and correct them.

    from lib.evaluate.run_on_split import open_run
    from lib.widgets import MaskInspector
    MaskInspector(open_run("runs/demo_full", "test"))

The browser draws (`static/*.js`): it gets an image and its heatmaps once, and colours them itself. This module answers
its questions: which images there are, what an image holds, how the official metric sees it at a threshold.
"""

import asyncio
import functools
import json
import math
import traceback
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import anywidget
import cv2
import numpy as np
import pandas as pd
import traitlets

from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit
from lib.files import write_text, writing
from lib.plots import rendering
from lib.plots.style import STATUS_COLOURS, heat_colours
from lib.records import read_record
from lib.scale import mos_from_score
from lib.stores import read_image
from lib.widgets import corrections, ranking
from lib.widgets.verdicts import REMEDY, VERDICTS, VerdictFile

STATIC = Path(__file__).parent / "static"
# One module for the browser, which cannot import from the kernel.
SCRIPTS = ("pictures.js", "regions.js", "inspector.js")
FIRST_RANKING = 0.7  # seconds of ranking before the first picture; a small split is done by then
PIECE = 0.03  # seconds of ranking at a time, so that an answer never waits longer


class MaskInspector(anywidget.AnyWidget):
    """The widget.

    Args:
        run: predictions on a split, see `lib.evaluate.run_on_split.open_run`.
        other: a second run on the same split, shown beside it.
        sort_by: "worst" or a column of `table`, see `lib.widgets.ranking.order`.
        query: an expression of pandas' `query` on the columns of `table`; only images for which it holds are shown.
        ids: the images to look through; all that are predicted by default.
        view: name of a view that was saved in the widget; it brings back image, filter, order and setting.
    Raises InputError for an unknown order, filter, id or view, and for runs on different splits.

    Attributes: `table` has a row an image (columns: `ranking.COLUMNS`); `ids` are those found, in order; `verdicts` is
    the file of what people say.
    """

    _esm = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    _css = STATIC / "inspector.css"
    setup = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        run: RunOnSplit,
        other: RunOnSplit | None = None,
        sort_by: str = "worst",
        query: str = "",
        ids: Collection[str] | None = None,
        view: str = "",
    ):
        if other and other.labels.path.resolve() != run.labels.path.resolve():
            where = f"{other.name} belongs to {other.labels.path}, {run.name} to {run.labels.path}"
            raise InputError(f"{where}; compare runs on the same prepared split")
        self.runs, self.labels = [run] if other is None else [run, other], run.labels
        self.facts, self.notes = ranking.overview(self.runs, ids)
        self.verdicts = VerdictFile(run.verdicts_path)
        self.views_path = run.verdicts_path.with_suffix(".views.json")
        self.last_error, self.ranking_task = "", None
        start = {"sort_by": sort_by, "query": query, "thresholds": [one.threshold for one in self.runs]}
        if view and view not in self.views:
            raise InputError(f"view: {view!r} is not in {self.views_path}; it has {', '.join(self.views) or 'none'}")
        start |= self.views.get(view, {})
        self._drawn = self.labels.regions.groupby("id")
        # A few images are kept, since sliders work on the one that is shown.
        self._heatmaps = functools.lru_cache(4)(self._read_heatmaps)
        self._compared = functools.lru_cache(16)(self._compare_run)
        self.rank(start["thresholds"])
        self.find(start["query"], start["sort_by"])
        palette = np.round(255 * heat_colours()(np.arange(256))[:, :3]).astype(int)
        setup = {  # what the browser needs to know once
            "start": start,
            "runs": [{"name": run.name, "threshold": run.threshold, "min_area": run.min_area} for run in self.runs],
            "labelled": bool(self.facts["labelled"].any()),
            "columns": ranking.describe(self.table),
            "verdicts": list(VERDICTS),
            "views": self.views,
            "palette": palette.tolist(),
            "colours": {name: list(rendering.rgb(colour)) for name, colour in STATUS_COLOURS.items()},
        }
        super().__init__(setup=setup)
        self.on_msg(self._reply)

    # Ranking ---------------------------------------------------------------------------------------------------------

    def rank(self, thresholds: list[int]) -> None:
        """Begin to compare all images at these thresholds, one for each run; what is done soon is known at once."""
        self.ranking = ranking.Ranking(self.runs, thresholds, list(self.facts.index))
        self.ranking.work(FIRST_RANKING)
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
            if len(current.rows) // 100 > before // 100 or current.finished:
                self.send({"event": "ranked" if current.finished else "ranking", "status": self.status()})

    def wait(self, progress: Callable[[int, int], None] | None = None) -> "MaskInspector":
        """Finish the ranking now, however long it takes; calls `progress(done, total)` about once a second."""
        while not self.ranking.finished:
            self.ranking.work(1)
            if progress:
                progress(len(self.ranking.rows), len(self.ranking.ids))
        self.find(self.query, self.sort_by)
        return self

    # Finding ---------------------------------------------------------------------------------------------------------

    @property
    def table(self) -> pd.DataFrame:
        """A row an image (columns: `ranking.COLUMNS`), in the order of the split; what is not compared yet is NaN."""
        table, said, nothing = self.facts.join(self.ranking.table), self.verdicts.rows(), {"verdict": "", "note": ""}
        rows = [said.get(id, nothing) for id in table.index]
        text = {name: [row[name] for row in rows] for name in nothing}
        text["problem"] = [self.ranking.problems.get(id, "") for id in table.index]
        text = {name: pd.array(values, dtype="str") for name, values in text.items()}
        return table.assign(**text, corrected=[row.get("regions") is not None for row in rows])

    def find(self, query: str = "", sort_by: str = "worst") -> list[str]:
        """The ids for which `query` holds, in the order of `sort_by`."""
        found = ranking.order(ranking.select(self.table, query), sort_by)
        self.query, self.sort_by, self.ids = query, sort_by, list(found.index)
        return self.ids

    def ranked(self) -> pd.DataFrame:
        """The rows of `table` compared by now, filtered and sorted as in the widget."""
        compared = self.table.loc[self.ranking.ids[: len(self.ranking.rows)]]
        return ranking.order(ranking.select(compared, self.query), self.sort_by)

    def status(self) -> list[str]:
        """How far the ranking is, what is judged, what cannot be read or is left out."""
        done, total, unread, lines = len(self.ranking.rows), len(self.facts), len(self.ranking.problems), []
        if not total:
            stores = self.runs[0].predictions.path, self.labels.path
            lines.append("{} holds no prediction of an image in {}; predict that split with notebook 3".format(*stores))
        if done < total:
            lines.append(f"Ranking, {done:,} of {total:,} images done; the list is sorted anew at the end.")
        if unread:
            lines.append(f'{unread:,} images have files that cannot be read; the filter problem != "" finds them.')
        rows = self.verdicts.rows()
        corrected = sum(row["regions"] is not None for row in rows.values())
        lines.append(f"{len(rows):,} of {total:,} images judged, {corrected:,} corrected; in {self.verdicts.path}.")
        return [*lines, *filter(None, [self.verdicts.problem]), *self.notes]

    # Answers ---------------------------------------------------------------------------------------------------------

    def _reply(self, _, question: dict, _buffers) -> None:
        """Send the answer to a question of the browser, or the sentence that says why there is none."""
        try:
            answer, buffers = self.answer(**{key: value for key, value in question.items() if key != "number"})
        except Exception as error:
            self.last_error, buffers = traceback.format_exc(), []
            known = isinstance(error, InputError)
            answer = {"error": str(error) if known else f"{type(error).__name__}: {error} (see `last_error`)"}
        self.send({"number": question["number"], **answer}, buffers)

    def answer(self, do: str, **details) -> tuple[dict, list[bytes]]:
        """(answer, bytes beside it) to one question; `do` names a method `_do_...`, which says what it takes."""
        return getattr(self, f"_do_{do}")(**details)

    def _do_find(self, query: str, sort_by: str):
        ids = self.find(query, sort_by)
        return {"ids": ids, "status": self.status(), "columns": ranking.describe(self.table)}, []

    def _do_rank(self, thresholds: list[int]):
        self.rank(thresholds)
        return {}, []

    def _do_image(self, id: str, thresholds: list[int]):
        """All of an image: facts, what annotators drew, what was said, the comparison; picture and heatmaps as bytes.

        The picture is a file that browsers read, the heatmaps (the label's first) are deflated uint8 [H, W]. A file
        that cannot be read becomes empty bytes and a problem.
        """
        row, problems = self.facts.loc[id], []
        try:
            picture = _for_browser(self.labels.image_path(id))
        except InputError as error:
            picture, problems = b"", [str(error)]
        label, *predicted = self._heatmaps(id)
        problems += [one for one in (label, *predicted) if isinstance(one, str)]
        if problems:
            self.ranking.problems.setdefault(id, problems[0])
        maps = [None if isinstance(one, str) else one for one in (label, *predicted)]
        answer = {
            "id": id,
            "size": [int(row["width"]), int(row["height"])],
            "prompt": row["prompt"],
            "facts": _facts(row),
            "problems": problems,
            "annotators": corrections.label_regions(self._drawn, id),
            "said": self._said(id),
            "sizes": [None if one is None else one.shape[::-1] for one in maps],
            **self._do_compare(id, thresholds)[0],
        }
        return answer, [picture, *(b"" if one is None else zlib.compress(one.tobytes(), 1) for one in maps)]

    def _do_compare(self, id: str, thresholds: list[int]):
        """`figures` and outlined `regions` of each run."""
        figures, regions = zip(*(self._compared(n, id, at) for n, at in enumerate(thresholds)), strict=True)
        return {"figures": figures, "regions": regions}, []

    def _do_judge(self, id: str, **said):
        self.verdicts.put(id, **said)
        return {"said": self._said(id), "status": self.status()}, []

    def _do_save_view(self, name: str, view: dict):
        with writing(self.views_path.parent, REMEDY):
            write_text(self.views_path, json.dumps(self.views | {name: view}, indent=1))
        return {"views": self.views}, []

    def _do_export(self):
        return {"news": f"Written: {', '.join(str(path) for path in self.export())}."}, []

    def export(self) -> list[Path]:
        """Write all verdicts with the images' figures as CSV, and the corrections as label sets; returns the paths."""
        folder = self.verdicts.path.with_suffix("")
        sets = corrections.export(self.labels, self.verdicts.rows(), folder)
        return [self.verdicts.export(self.table.loc[:, "prompt":]), *sets]

    @property
    def views(self) -> dict[str, dict]:
        """{name: what the browser saved under it}."""
        return read_record(self.views_path, {}, "mend or delete it") if self.views_path.exists() else {}

    # One image -------------------------------------------------------------------------------------------------------

    def _read_heatmaps(self, id: str) -> list[np.ndarray | str | None]:
        """Heatmaps (uint8 [H, W]) of the label and of each run; None without a label, a sentence if unreadable."""
        stores = [self.labels if self.facts.at[id, "labelled"] else None, *(run.predictions for run in self.runs)]
        found = []
        for store in stores:
            try:
                found.append(None if store is None else np.ascontiguousarray(store.heatmap(id)))
            except InputError as error:
                found.append(str(error))
        return found

    def _compare_run(self, n: int, id: str, threshold: int) -> tuple[dict, list]:
        """(COMPARED with the scores, None where undefined; [side, status, x, y, x, ... on the 512 grid] a region)."""
        label, *predicted = (None if isinstance(one, str) else one for one in self._heatmaps(id))
        row, found, true = ranking.compare(predicted[n], label, threshold, self.runs[n].min_area)
        scores = self.runs[n].predictions.table["score"].get(id, math.nan), float(self.facts.at[id, "score"])
        row = ranking.derived(row) | dict(zip(("mos", "true_mos"), map(mos_from_score, scores), strict=True))
        sides = [("predicted", one) for one in found] + [("true", one) for one in true]
        figures = {name: None if pd.isna(value) else float(value) for name, value in row.items()}
        return figures, [[side, one.status, one.contour.ravel().tolist()] for side, one in sides]

    def _said(self, id: str) -> dict:
        return self.verdicts.rows().get(id, {"verdict": "", "note": "", "regions": None})


def _for_browser(path: Path) -> bytes:
    """A picture as browsers read it: JPEG files as they are, others as this kit sees them."""
    data = path.read_bytes() if path.is_file() else b""
    if data[:3] == b"\xff\xd8\xff":
        return data
    image = read_image(path)
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _facts(row: pd.Series) -> list[str]:
    """Size, annotators and attributes of an image; what the data set does not know is left out."""
    facts = [f"{row['width']} x {row['height']} px"]
    if row["labelled"]:
        agreed = "" if pd.isna(row.get("agreement")) else f", agreement {row['agreement']:.2f}"
        facts.append(f"{row['n_annotators']} annotators{agreed}")
    attributes = [name for name in row.index if name not in ranking.COLUMNS and not name.startswith("other_")]
    facts += [
        f"{name}: {str(row[name]).replace('+', ', ')}" for name in attributes if row[name] and pd.notna(row[name])
    ]
    return facts
