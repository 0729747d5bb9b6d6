"""The two tables of the error analysis, `images` and `regions`, and what is read off them.

Regions, hits and misses are the official metric's (`lib.metrics.regions`). This module joins what the manifest says of
an image and adds the groups that figures use. Columns of `attributes.csv` (such as `kinds` and `domain`) come along.
"""

import numpy as np
import pandas as pd

from lib.metrics.regions import compare

FRAME = "fraction of the frame's side, 0..1"
OF_IMAGE = {
    "n_annotators": "annotators who drew on the image",
    "agreement": "mean IoU between pairs of annotators' masks, 0..1",
    "aspect": "width / height",
    "shape": "group of `aspect`: tall, about square, wide",
    "agreed": "group of `agreement`",
}
IMAGE_COLUMNS = {
    "true_mos": "mean opinion score of the label, 1 (broken) .. 5 (sound)",
    "predicted_mos": "predicted score, MOS 1..5",
    "score_error": "predicted_mos - true_mos (MOS)",
    "iou": "IoU of the predicted and the true mask, 0..1",
    "n_true": "true regions that count (number)",
    "n_predicted": "predicted regions that count (number)",
    "hit": "true regions that a predicted one overlaps with an IoU above 0.1 (number)",
    "missed": "true regions that are not hit (number)",
    "false": "predicted regions that hit no true one (number)",
    "true_area": "marked area (fraction of the image)",
    "predicted_area": "predicted area (fraction of the image)",
    "missed_area": "marked, not predicted (fraction of the image)",
    "false_area": "predicted, not marked (fraction of the image)",
    "peak": "greatest predicted value, 0..255",
    "prompt": "text the image was made from",
    **OF_IMAGE,
    "abs_error": "|score_error| (MOS)",
}
REGION_COLUMNS = {
    "id": "the image",
    "side": "true (in the label) or predicted",
    "status": "hit, missed (true, not found) or false (predicted, not true)",
    "area": "area of the region (fraction of the image)",
    "iou": "best IoU with a region of the other side, 0..1",
    "x": f"centre ({FRAME})",
    "y": f"centre ({FRAME})",
    "x0": f"left ({FRAME})",
    "y0": f"top ({FRAME})",
    "x1": f"right ({FRAME})",
    "y1": f"bottom ({FRAME})",
    "votes": "most annotators on one of its pixels, 0..4 (4: four or more)",
    "heat": "mean predicted value in it, 0..255",
    "response": "greatest predicted value in it, 0..255",
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
SUSPECT_COLUMNS = ["id", "reason", "suspicion", "x", "y", "area", "detail"]


def error_tables(predictions, labels, threshold: int, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row an image (index `id`) and one row a region: (images, regions).

    Arguments and errors are those of `lib.metrics.regions.compare`. IMAGE_COLUMNS and REGION_COLUMNS say what the
    columns mean. An attribute of the data set that has the name of such a column comes as `<name>_attribute`.
    """
    images, regions = compare(predictions, labels, threshold, **options)
    manifest = labels.table.loc[images.index]
    known = manifest[["prompt", "n_annotators", "agreement", *(name for name in manifest if name not in MANIFEST)]]
    taken = {*images, *REGION_COLUMNS, *IMAGE_COLUMNS} - {"prompt", "n_annotators", "agreement"}
    known = known.rename(columns={name: f"{name}_attribute" for name in known if name in taken})
    known = known.assign(aspect=manifest["width"] / manifest["height"])
    # A prompt is long and belongs to the image.
    regions = regions.join(known.drop(columns="prompt").assign(true_mos=images["true_mos"]), on="id")
    return with_groups(images.join(known)), with_groups(regions)


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


def suspected_label_errors(images: pd.DataFrame, regions: pd.DataFrame, threshold: int) -> pd.DataFrame:
    """Images whose label rather than whose prediction may be wrong, the most suspicious first.

    There are three reasons: "nobody marked it" (a predicted region far above the threshold that no annotator touched),
    "one annotator alone" (a true region of one among several annotators, to which the prediction hardly responds) and
    "score against regions" (the masks agree, the scores differ by more than 1.5 MOS). Returns rows `id`, `reason`,
    `suspicion` (0..1, which only orders the list), `x`, `y`, `area` (NaN where the whole image is meant), `detail`.
    """
    unmarked = regions[(regions["status"] == "false") & (regions["votes"] == 0)]
    unmarked = unmarked[unmarked["heat"] > (threshold + 255) / 2]
    alone = regions[(regions["status"] == "missed") & (regions["votes"] == 1) & (regions["n_annotators"] > 1)]
    alone = alone[alone["response"] < threshold / 2]
    scores = images[(images["score_error"].abs() > 1.5) & (images["iou"] > 0.5)].reset_index()
    parts = {
        "nobody marked it": (unmarked, "predicted at {heat:.0f} of 255", unmarked["heat"] / 255),
        "one annotator alone": (alone, "1 of {n_annotators:.0f}, predicted at most {response:.0f}",
                                (1 - alone["response"] / 255) * (1 - 1 / alone["n_annotators"])),
        "score against regions": (scores, "MOS {true_mos:.2f}, predicted {predicted_mos:.2f}",
                                  scores["score_error"].abs() / 4 * scores["iou"]),
    }  # fmt: skip
    found = [
        part.assign(reason=reason, suspicion=suspicion, detail=[text.format(**row) for row in part.to_dict("records")])
        for reason, (part, text, suspicion) in parts.items()
        if len(part)  # concat with an empty frame would change column types
    ]
    if not found:
        return pd.DataFrame(columns=SUSPECT_COLUMNS)
    table = pd.concat([part.reindex(columns=SUSPECT_COLUMNS) for part in found])
    return table.sort_values("suspicion", ascending=False, ignore_index=True)
