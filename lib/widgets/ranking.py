"""All images of a split as one table, ranked piece by piece while a reader browses: facts, figures, orders, filters."""

import os
import time
from collections.abc import Collection

import numpy as np
import pandas as pd

from lib.data.attributes import named
from lib.errors import InputError
from lib.evaluate.run_on_split import RunOnSplit
from lib.evaluate.tables import worst_first
from lib.widgets.html import as_text
from lib.widgets.image import FIGURES, figures_of, truth_of
from lib.widgets.verdicts import VERDICTS

# The table of the inspector: what its columns mean. Further ones are attributes of the data set.
COLUMNS = {
    "image": "file of the image, below the prepared split",
    "prompt": "text the image was made from",
    "mos": "mean opinion score of the label, 1 (broken) .. 5 (sound)",
    "score": "the same as 0..1",
    "labelled": "whether the image has a label",
    "n_annotators": "annotators who drew on the image",
    "n_regions": "regions that they drew (number)",
    "width": "of the image (pixels)",
    "height": "of the image (pixels)",
    "agreement": "mean IoU between pairs of annotators' masks, 0..1",
    "distorted": "marked area (fraction of the image)",
    "true": "score of the label, 0..1",
    "predicted": "predicted score, 0..1",
    "other": "score that the second run predicted, 0..1",
    "badness": "1 - predicted",
    "score_error": "|predicted - true|, 0..1",
    **FIGURES,
    "gain": "wrong_area - that of the second run",
    "loss": "-gain",
    "verdict": "of a person, empty for none",
    "note": "of a person",
    "problem": "what cannot be read, empty for nothing",
}
# Order -> (the column that decides, largest first, and what it needs); images without a value come last, equal ones in
# the split's order.
SORTS = {
    "worst": ("wrong_regions", "labels"),  # and then more, see `lib.evaluate.tables.worst_first`
    "score error": ("score_error", "labels"),
    "missed area": ("missed_area", "labels"),
    "false area": ("false_area", "labels"),
    "predicted area": ("predicted_area", ""),
    "predicted score": ("badness", ""),
    "other run better": ("gain", "labels and a second run"),
    "other run worse": ("loss", "labels and a second run"),
    "id": ("", ""),
}
SHOW = ("all", "not judged", *VERDICTS, "with a note", "unreadable")


def sorts(labelled: bool, compared: bool) -> list[str]:
    """The possible orders: some need labels, some a second run as well."""
    possible = {"", *(["labels"] if labelled else []), *(["labels and a second run"] if labelled and compared else [])}
    return [name for name, (_, needs) in SORTS.items() if needs in possible]


def overview(runs: list[RunOnSplit], ids: Collection[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """(COLUMNS up to `score_error` of the predicted images, notes about what is left out); reads no image.

    `runs` are one or two on one split. The rows have the order of the manifest; with `ids` they are these, in their
    order. Raises InputError for ids that were not predicted.
    """
    labels, predictions = runs[0].labels, runs[0].predictions
    table = labels.table[labels.table.index.isin(predictions.ids)]
    left_out = {
        f"of the split have no prediction in {predictions.path}": len(labels.ids) - len(table),
        f"are predicted, but not in {labels.path}": len(predictions.ids) - len(table),
    }
    if ids is not None:
        unknown = [id for id in ids if id not in table.index]
        if unknown:
            raise InputError(f"ids: {unknown[0]!r} is not predicted in {predictions.path}; leave it out")
        table = table.loc[list(dict.fromkeys(ids))]
    predicted = predictions.table["score"].reindex(table.index).astype(float)
    table = table.assign(true=table["score"].astype(float), predicted=predicted)
    if runs[1:]:
        other = runs[1].predictions
        table["other"] = other.table["score"].reindex(table.index).astype(float)
        left_out[f"are not predicted in {other.path}"] = int((~table.index.isin(other.ids)).sum())
    table = table.assign(badness=1 - table["predicted"], score_error=(table["predicted"] - table["true"]).abs())
    return table, [f"{count:,} images {text}" for text, count in left_out.items() if count]


class Ranking:
    """FIGURES of every image, found piece by piece, so that whoever shows them stays awake meanwhile.

    `runs` are on one split, `thresholds` belong to them, `ids` are in order. `problems` maps ids that could not be
    read, or whose picture is lost, to the reason.
    """

    def __init__(self, runs: list[RunOnSplit], thresholds: list[int], ids: list[str]):
        self.labels, self.ids, self.rows, self.problems = runs[0].labels, ids, [], {}
        self._runs = [(run.predictions, at, run.min_area) for run, at in zip(runs, thresholds, strict=True)]
        known = self.labels.table.reindex(ids)  # looked up at once, it costs nothing
        self._known = list(zip(ids, known["labelled"], f"{self.labels.path}{os.sep}" + known["image"], strict=True))

    @property
    def finished(self) -> bool:
        return len(self.rows) == len(self.ids)

    def work(self, seconds: float = np.inf) -> bool:
        """Go on for about so long, but for one image at least; returns whether all images are done."""
        end = time.monotonic() + seconds
        while not self.finished:
            self.rows.append(self._row(*self._known[len(self.rows)]))
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
            for store, *setting in self._runs:
                found.append(figures_of(store.heatmap(id), truth, *setting))
        except Exception as error:  # whatever it is, it must not hold up the other images
            self.problems[id] = as_text(error)
        if len(found) < 2:
            return found[0] if found else {}
        gain = found[0]["wrong_area"] - found[1]["wrong_area"]
        return {**found[0], "gain": gain, "loss": -gain}

    @property
    def table(self) -> pd.DataFrame:
        """FIGURES, `gain` and `loss` of the images done so far."""
        index = pd.Index(self.ids[: len(self.rows)], name="id", dtype="str")
        return pd.DataFrame(self.rows, index=index, columns=[*FIGURES, "gain", "loss"], dtype=float)


def order(table: pd.DataFrame, sort_by: str) -> list[str]:
    """The ids of `table` (overview joined with ranking) in one of SORTS."""
    if sort_by == "id":
        return sorted(table.index)
    if sort_by == "worst":
        return worst_first(table["wrong_regions"], table["wrong_area"], table["predicted"])
    return list(table.sort_values(SORTS[sort_by][0], ascending=False, na_position="last", kind="stable").index)


def select(table: pd.DataFrame, kind: str = "", text: str = "", show: str = "all") -> pd.DataFrame:
    """The rows of one kind ("sound" for no distortion), with all words of `text` in prompt or id, that `show` means.

    `show` is one of SHOW; it needs the columns `verdict`, `note` and `problem`.
    """
    if kind:
        table = table[[kind in names for names in kinds_of(table)]]
    for word in text.lower().split():
        found = table["prompt"].str.lower().str.contains(word, regex=False)
        table = table[found.to_numpy(bool) | table.index.str.lower().str.contains(word, regex=False)]
    if show == "all":
        return table
    wanted = {"not judged": ("verdict", ""), "with a note": ("note", None), "unreadable": ("problem", None)}
    column, value = wanted.get(show, ("verdict", show))
    return table[table[column] != "" if value is None else table[column] == value]


def kinds_of(table: pd.DataFrame) -> list[list[str]]:
    """The distortion kinds of each row, ["sound"] or ["unknown"] without any; empty lists without a column `kinds`."""
    if "kinds" not in table:
        return [[] for _ in range(len(table))]
    return [text.split("+") for text in named(table["kinds"])]
