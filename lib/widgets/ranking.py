"""All images of a split as one table, compared piece by piece while a reader browses; its orders and filters."""

import os
import time
from collections.abc import Collection

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from lib.errors import InputError, nearest
from lib.evaluate.run_on_split import RunOnSplit
from lib.evaluate.tables import IMAGE_COLUMNS, worst_first
from lib.metrics.matching import MatchedRegion
from lib.metrics.regions import compare_image
from lib.scale import mos_from_score

COMPARED = ("iou", "n_true", "n_predicted", "hit", "missed", "false", "true_area", "predicted_area", "missed_area",
            "false_area", "peak")  # fmt: skip
# What the columns of `MaskInspector.table` mean. Further ones are attributes of the data set.
COLUMNS = {
    "image": "file of the image, below the prepared split",
    "prompt": "text the image was made from",
    "mos": "mean opinion score of the label, 1 (broken) .. 5 (sound)",
    "score": "the same as 0..1",
    "labelled": "whether the image has a label",
    "n_annotators": IMAGE_COLUMNS["n_annotators"],
    "n_regions": "regions that they drew (number)",
    "width": "of the image (pixels)",
    "height": "of the image (pixels)",
    "agreement": IMAGE_COLUMNS["agreement"],
    "distorted": "marked area (fraction of the image)",
    **{name: IMAGE_COLUMNS[name] for name in ("predicted_mos", "score_error", "abs_error", *COMPARED)},
    "wrong": "missed + false (number)",
    "wrong_area": "missed_area + false_area (fraction of the image)",
    "precision": "(n_predicted - false) / n_predicted",
    "recall": "hit / n_true",
    "gain": "wrong_area of the second run - wrong_area",
    "verdict": "of a person, empty for none",
    "note": "of a person",
    "corrected": "whether a person corrected the label",
    "problem": "what cannot be read, empty for nothing",
}


def overview(runs: list[RunOnSplit], ids: Collection[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """(what the manifest and the scores say of the predicted images, notes on what is left out); reads no image.

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
    mos = [mos_from_score(run.predictions.table["score"].reindex(table.index).astype(float)) for run in runs]
    error = mos[0] - mos_from_score(table["score"].astype(float))
    table = table.assign(predicted_mos=mos[0], score_error=error, abs_error=error.abs())
    if runs[1:]:
        other = runs[1].predictions
        table["other_predicted_mos"] = mos[1]
        left_out[f"are not predicted in {other.path}"] = int((~table.index.isin(other.ids)).sum())
    return table, [f"{count:,} images {text}" for text, count in left_out.items() if count]


def compare(
    heatmap: np.ndarray | None, label: np.ndarray | None, threshold: int, min_area: float
) -> tuple[dict[str, float], list[MatchedRegion], list[MatchedRegion]]:
    """`lib.metrics.regions.compare_image` of an image that may lack its heatmap, too: then all figures are NaN."""
    if heatmap is not None:
        return compare_image(heatmap, label, threshold, min_area)
    row, *regions = compare_image(np.zeros((1, 1), np.uint8), label, threshold, min_area)
    return dict.fromkeys(row, np.nan), *regions


class Ranking:
    """COMPARED of every image, found piece by piece, so that whoever shows them stays awake meanwhile.

    `runs` are on one split, `thresholds` belong to them, `ids` are in order. `problems` maps ids that could not be
    read, or whose picture is lost, to the reason.
    """

    def __init__(self, runs: list[RunOnSplit], thresholds: list[int], ids: list[str]):
        self.labels, self.ids, self.rows, self.problems = runs[0].labels, ids, [], {}
        self.runs = [(run.predictions, at, run.min_area) for run, at in zip(runs, thresholds, strict=True)]
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
        row = {}
        try:
            # To read every picture would take as long as all the rest; whether it is there costs nothing.
            if not os.path.isfile(picture):
                self.problems[id] = f"{self.labels.image_path(id)} does not exist"
            label = self.labels.heatmap(id) if labelled else None
            for prefix, (store, *setting) in zip(("", "other_"), self.runs, strict=False):
                found, _, _ = compare(store.heatmap(id), label, *setting)
                row |= {f"{prefix}{name}": value for name, value in found.items()}
        except Exception as error:  # whatever it is, it must not hold up the other images
            self.problems[id] = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return row

    @property
    def table(self) -> pd.DataFrame:
        """What was compared of the images done so far, and what follows from it; see COLUMNS."""
        index = pd.Index(self.ids[: len(self.rows)], name="id", dtype="str")
        names = [f"{prefix}{name}" for prefix in ("", "other_")[: len(self.runs)] for name in COMPARED]
        table = derived(pd.DataFrame(self.rows, index=index, columns=names, dtype=float))
        if "other_iou" in table:
            table["gain"] = table["other_missed_area"] + table["other_false_area"] - table["wrong_area"]
        return table


def derived(row):
    """Add `wrong`, `wrong_area`, `precision` and `recall` to COMPARED of one image (dict) or many (data frame)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        row["wrong"], row["wrong_area"] = row["missed"] + row["false"], row["missed_area"] + row["false_area"]
        row["precision"] = np.divide(row["n_predicted"] - row["false"], row["n_predicted"])
        row["recall"] = np.divide(row["hit"], row["n_true"])
    return row


def order(table: pd.DataFrame, sort_by: str) -> pd.DataFrame:
    """The table sorted by "worst" or by a column, the largest first; "<column> ascending" puts the smallest first.

    "worst" is `lib.evaluate.tables.worst_first`. Images without a value come last. Raises InputError for anything else.
    """
    if sort_by == "worst":
        return table.loc[worst_first(table["wrong"], table["wrong_area"], table["predicted_mos"])]
    column = sort_by.removesuffix(" ascending")
    if column not in [*table, "id"]:
        choices = "worst, a column's name, or one followed by ' ascending'"
        raise InputError(f"sort_by: {sort_by!r} is no order{nearest(column, table)}; give {choices}")
    return table.sort_values(column, ascending=column != sort_by, na_position="last", kind="stable")


def select(table: pd.DataFrame, query: str) -> pd.DataFrame:
    """The rows for which an expression of pandas' `query` holds; all for an empty one.

    Raises InputError with one sentence when the expression cannot be used.
    """
    if not query.strip():
        return table
    try:
        found = table.eval(query, engine="python", local_dict={}, global_dict={})
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, pd.errors.UndefinedVariableError):
            name = reason.split("'")[1]
            reason = f"there is no column {name}{nearest(name, table)}"
        raise InputError(f"the filter {query!r} cannot be used: {reason}") from None
    if isinstance(found, pd.Series):
        found = found.convert_dtypes()  # with pandas 2 a text that is missing makes the answers objects
    if not isinstance(found, pd.Series) or not is_bool_dtype(found):
        example = 'domain == "shifted" and missed > 0'
        raise InputError(f"the filter {query!r} is no condition; write one such as {example}")
    return table[found.fillna(False).astype(bool)]


def describe(table: pd.DataFrame) -> list[dict]:
    """What a filter may ask for: `name`, `meaning` and `values` (or the `low` and `high` of numbers) of each column."""
    found = []
    for name, values in table.items():
        column = {"name": name, "meaning": COLUMNS.get(name.removeprefix("other_"), "attribute of the data set")}
        if name.startswith("other_"):
            column["meaning"] = f"of the second run: {column['meaning']}"
        if is_bool_dtype(values):
            column["values"] = ["True", "False"]
        elif is_numeric_dtype(values):
            low, high = (None if pd.isna(end) else float(f"{end:.3g}") for end in (values.min(), values.max()))
            column |= {"low": low, "high": high}
        else:
            known = values.dropna().astype(str).unique()
            column["values"] = sorted(known) if len(known) <= 40 else []
        found.append(column)
    return found
