"""The two tables of the error analysis, `images` and `regions`, and what is read off them.

Regions, hits and misses are the official metric's (`lib.metrics.regions`). This module joins what the manifest says of
an image and adds the groups that figures use. Columns of `attributes.csv` (such as `kinds` and `domain`) come along.
"""

import numpy as np
import pandas as pd

from lib.metrics import regions

OF_IMAGE = {
    "n_annotators": "annotators who drew on the image",
    "agreement": "mean IoU between pairs of annotators' masks, 0..1",
    "aspect": "width / height",
    "shape": "group of `aspect`: tall, about square, wide",
    "agreed": "group of `agreement`",
}
IMAGE_COLUMNS = {
    **regions.IMAGE_COLUMNS,
    "prompt": "text the image was made from",
    **OF_IMAGE,
    "abs_error": "|score_error| (MOS)",
}
REGION_COLUMNS = {
    **regions.REGION_COLUMNS,
    "true_mos": IMAGE_COLUMNS["true_mos"],
    **OF_IMAGE,
    "missed": "whether a true region is missed",
    "false": "whether a predicted region is false",
    "size": "group of `area`",
    "place": "third of the frame that holds the centre, such as top left",
    "voted": "group of `votes`",
}
# What `lib.data.prepare` writes about an image; every further column of a manifest is an attribute of the data set.
MANIFEST = {
    "image", "prompt", "mos", "score", "labelled", "n_annotators", "n_regions", "width", "height", "distorted",
    "agreement",
}  # fmt: skip
# Groups: inclusive upper bound -> name.
SIZES = {0.005: "up to 0.5%", 0.01: "0.5 to 1%", 0.02: "1 to 2%", 0.05: "2 to 5%", 0.1: "5 to 10%", 0.2: "10 to 20%",
         0.4: "20 to 40%", 1.0: "above 40%"}  # fmt: skip
SHAPES = {0.8: "tall", 1.25: "about square", np.inf: "wide"}
AGREEMENTS = {0.25: "IoU up to 0.25", 0.5: "0.25 to 0.5", 0.75: "0.5 to 0.75", 0.999: "0.75 to 1", 1.0: "identical"}
VOTES = {1: "1 annotator", 2: "2 annotators", 3: "3 annotators", 4: "4 or more"}
POSITIONS = [f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")]


def error_tables(predictions, labels, threshold: int, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row an image (index `id`) and one row a region: (images, regions).

    Arguments and errors are those of `lib.metrics.regions.compare`. IMAGE_COLUMNS and REGION_COLUMNS say what the
    columns mean. An attribute of the data set that has the name of such a column comes as `<name>_attribute`.
    """
    images, found = regions.compare(predictions, labels, threshold, **options)
    manifest = labels.table.loc[images.index]
    known = manifest[["prompt", "n_annotators", "agreement", *(name for name in manifest if name not in MANIFEST)]]
    reserved = {*images, *REGION_COLUMNS, *IMAGE_COLUMNS} - {"prompt", "n_annotators", "agreement"}
    known = known.rename(columns={name: f"{name}_attribute" for name in known if name in reserved})
    known = known.assign(aspect=manifest["width"] / manifest["height"])
    # A prompt is long and belongs to the image.
    found = found.join(known.drop(columns="prompt").assign(true_mos=images["true_mos"]), on="id")
    return with_groups(images.join(known)), with_groups(found)


def describe(table: pd.DataFrame, meanings: dict[str, str]) -> pd.DataFrame:
    """One row a column of `table`: its name, what it means, its value in the first row."""
    attribute = "attribute of the data set (attributes.csv)"
    first = table.iloc[0] if len(table) else pd.Series(index=table.columns, dtype=object)
    values = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in first]
    means = [meanings.get(name, attribute) for name in table]
    return pd.DataFrame({"column": list(table), "meaning (unit)": means, "for example": values})


def with_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that figures group by, as ordered categories, null where the value is; see the column tables."""
    table = table.assign(shape=_cut(table["aspect"], SHAPES), agreed=_cut(table["agreement"], AGREEMENTS))
    if "side" not in table:
        return table.assign(abs_error=table["score_error"].abs())
    table = table.assign(missed=table["status"] == "missed", false=table["status"] == "false")
    row, column = ((table[axis] * 3).astype(int).clip(0, 2) for axis in ("y", "x"))
    place = pd.Categorical.from_codes(3 * row + column, POSITIONS, ordered=True)
    voted = table["votes"].map(VOTES).astype(pd.CategoricalDtype(list(VOTES.values()), ordered=True))
    return table.assign(size=_cut(table["area"], SIZES), place=place, voted=voted)


def _cut(values: pd.Series, bins: dict) -> pd.Series:
    return pd.cut(values.astype(float), [-np.inf, *bins], labels=list(bins.values()))


def worst_first(wrong_regions: pd.Series, wrong_area: pd.Series, score: pd.Series) -> list:
    """The ids with the most wrong regions first, among these the most wrong area, then the lowest predicted score.

    Notebooks 4 and 5 share this order. Arguments: by id; `wrong_regions` and `wrong_area` are missed and false ones
    together, `score` is on any scale. Images without a value come last, equal ones stay in the order given.
    """
    keys = pd.DataFrame({"regions": wrong_regions, "area": wrong_area, "badness": -score})
    return list(keys.sort_values(list(keys), ascending=False, na_position="last", kind="stable").index)
