"""All images of a split in the order in which someone wants to look at them: worst first, by score error, ..."""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from functools import cached_property

import numpy as np
import pandas as pd

from lib.data.attributes import named
from lib.errors import InputError
from lib.evaluate.tables import worst_first
from lib.stores import LabelStore, PredictionStore
from lib.widgets.guard import told
from lib.widgets.inspection import FIGURES, errors_of, truth_of
from lib.widgets.verdicts import VERDICTS

# name -> the columns that decide, largest first; images without a value come last, equal ones in the split's order.
SORTS = {
    "worst": (),  # see `lib.evaluate.tables.worst_first`
    "score error": ("score_error",),
    "missed area": ("missed_area",),
    "false area": ("false_area",),
    "predicted area": ("predicted_area",),
    "predicted score": ("badness",),
    "other run better": ("gain",),
    "other run worse": ("loss",),
    "id": (),
}
PIECE = 0.03  # seconds of ranking at a time, so that a slider never waits longer
SHOW = ("all", "not judged", *VERDICTS, "with a note", "unreadable")


def sorts(labelled: bool, compared: bool) -> list[str]:
    """The orders that make sense: some need labels, some a second run."""
    needless = set() if compared and labelled else {"other run better", "other run worse"}
    needless |= set() if labelled else {"worst", "score error", "missed area", "false area"}
    return [name for name in SORTS if name not in needless]


def checked_sort(sort_by: str, possible: list[str]) -> tuple[str, list[str]]:
    """An order to begin with and notes about it; InputError for a name that is none."""
    if sort_by not in SORTS:
        raise InputError(f"sort_by: {sort_by!r} is no order; choose among {', '.join(possible)}")
    if sort_by in possible:
        return sort_by, []
    return possible[0], [f"The order {sort_by!r} needs labels or a second run; the list is sorted by {possible[0]!r}."]


def overview(
    labels: LabelStore, predictions: PredictionStore, other: PredictionStore | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """What is known of the predicted images before any is read: a row each, and notes about what is left out.

    The rows have the order of the manifest and its columns, and `true`, `predicted`, `other` (scores), `score_error`
    (absolute) and `badness` (1 - predicted score).
    """
    table = labels.table[labels.table.index.isin(predictions.ids)]
    predicted = predictions.table["score"].reindex(table.index).astype(float)
    table = table.assign(true=table["score"].astype(float), predicted=predicted, badness=1 - predicted)
    table["score_error"] = (table["predicted"] - table["true"]).abs()
    left_out = {
        f"of the split have no prediction in {predictions.path}": len(labels.ids) - len(table),
        f"are predicted, but not in {labels.path}": len(predictions.ids) - len(table),
    }
    if other is not None:
        table["other"] = other.table["score"].reindex(table.index).astype(float)
        left_out[f"are not predicted in {other.path}"] = int((~table.index.isin(other.ids)).sum())
    return table, [f"{count:,} images {text}" for text, count in left_out.items() if count]


class Ranking:
    """Errors of every image, found piece by piece, so that whoever shows them stays awake meanwhile.

    Arguments: `runs` are (predictions, threshold, smallest area) of the run and, when there is one, of the other; `ids`
    in order.
    `problems` maps ids that could not be read, or whose picture is lost, to the reason.
    """

    def __init__(self, labels: LabelStore, runs: list[tuple[PredictionStore, int, float]], ids: list[str]):
        self.labels, self.runs, self.ids = labels, runs, ids
        self.rows, self.problems = [], {}

    @cached_property
    def _known(self) -> list[tuple[bool, str]]:
        """(whether it has a label, path of the picture) of each image; looked up at once, it costs nothing."""
        table = self.labels.table.reindex(self.ids)
        return list(zip(table["labelled"], str(self.labels.path) + os.sep + table["image"], strict=True))

    @property
    def finished(self) -> bool:
        return len(self.rows) == len(self.ids)

    def work(self, seconds: float = np.inf) -> bool:
        """Go on for about so long, but for one image at least; returns whether all images are done."""
        end = time.monotonic() + seconds
        while not self.finished:
            done = len(self.rows)
            self.rows.append(self._row(self.ids[done], *self._known[done]))
            if time.monotonic() >= end:
                break
        return self.finished

    def _row(self, id: str, labelled: bool, picture: str) -> dict[str, float]:
        found = []
        try:
            # To read every picture would take as long as all the rest; whether it is there costs nothing.
            if not os.path.isfile(picture):
                self.problems[id] = f"{self.labels.image_path(id)} does not exist"
            truth = truth_of(self.labels.heatmap(id)) if labelled else None
            for store, *setting in self.runs:
                found.append(errors_of(store.heatmap(id), truth, *setting))
        except Exception as error:  # whatever it is, it must not hold up the other images
            self.problems[id] = told(error)
        if len(found) < 2:
            return found[0] if found else {}
        gain = found[0]["wrong_area"] - found[1]["wrong_area"]
        return {**found[0], "gain": gain, "loss": -gain}

    def news(self) -> list[str]:
        """Sentences about how far it is and what could not be read."""
        done, total, unread, news = len(self.rows), len(self.ids), len(self.problems), []
        if done < total:
            news.append(f"Ranking, {done:,} of {total:,} images done; the list is sorted anew at the end.")
        if unread:
            news.append(f"{unread:,} images have files that cannot be read; find them under Show: unreadable.")
        return news

    @property
    def table(self) -> pd.DataFrame:
        """A row for each image done so far: `inspection.FIGURES`, and `gain` and `loss` against the other run."""
        index = pd.Index(self.ids[: len(self.rows)], name="id", dtype="str")
        return pd.DataFrame(self.rows, index=index, columns=[*FIGURES, "gain", "loss"], dtype=float)


async def work_on(ranking: Ranking, wanted: Callable[[], bool], tell: Callable[[], None]) -> bool:
    """Go on with a ranking while the kernel answers its reader; returns whether all images are done.

    It ends early when it is not `wanted` any more; `tell` is called after every hundred images but the last.
    """
    while not ranking.finished:
        await asyncio.sleep(PIECE / 2)
        if not wanted():
            return False
        before = len(ranking.rows)
        ranking.work(PIECE)
        if len(ranking.rows) // 100 > before // 100 and not ranking.finished:  # whose order is not shown yet
            tell()
    return True


def order(table: pd.DataFrame, sort_by: str) -> list[str]:
    """The ids of `table` (overview joined with ranking) in one of SORTS. Raises InputError for any other name."""
    if sort_by not in SORTS:
        raise InputError(f"sort_by: {sort_by!r} is no order; choose among {', '.join(SORTS)}")
    if sort_by == "id":
        return sorted(table.index)
    if sort_by == "worst":
        return worst_first(table["wrong_regions"], table["wrong_area"], table["predicted"])
    return list(table.sort_values(list(SORTS[sort_by]), ascending=False, na_position="last", kind="stable").index)


def select(table: pd.DataFrame, kind: str = "", text: str = "", ids: Collection[str] | None = None) -> pd.DataFrame:
    """The rows of one kind ("sound" for no distortion) with all words of `text` in prompt or id, among `ids`."""
    if kind:
        table = table[[kind in names for names in kinds_of(table)]]
    for word in text.lower().split():
        found = table["prompt"].str.lower().str.contains(word, regex=False)
        table = table[found.to_numpy(bool) | table.index.str.lower().str.contains(word, regex=False)]
    return table if ids is None else table[table.index.isin(list(ids))]


def kinds_of(table: pd.DataFrame) -> list[list[str]]:
    """The distortion kinds of each row, ["sound"] or ["unknown"] without any; empty lists without a column `kinds`."""
    if "kinds" not in table:
        return [[] for _ in range(len(table))]
    return [text.split("+") for text in named(table["kinds"])]


def ids_to_show(show: str, judged: Mapping[str, dict], unreadable: Collection[str], ids: Collection[str]):
    """The ids among `ids` that one of SHOW means, None for all; `judged` see `VerdictFile.read`."""
    if show == "all":
        return None
    if show == "unreadable":
        return unreadable
    if show == "not judged":
        return [id for id in ids if not judged.get(id, {}).get("verdict")]
    if show == "with a note":
        return [id for id, row in judged.items() if row["note"]]
    return [id for id, row in judged.items() if row["verdict"] == show]
