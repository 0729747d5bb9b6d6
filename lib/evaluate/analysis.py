"""Where a model errs: one row an image and one row a region, with everything known about them.

Regions, hits and misses are the official metric's (`lib.metrics.matching`). Areas are fractions of the image, positions
fractions of its sides, scores MOS. Attributes of the data set (such as `domain` and `kinds`) are joined to both
tables where it has them. Groups and intervals are made by `lib.evaluate.groups`, sentences by `lib.reports.findings`.
"""

import json
from pathlib import Path

import pandas as pd

from lib.data.attributes import named
from lib.errors import InputError
from lib.evaluate import inspected
from lib.files import replacing, writing
from lib.metrics.baseline import trivial_predictions
from lib.metrics.matching import PREDICTED_AREA_RATIO
from lib.metrics.regions import REGION_COLUMNS
from lib.metrics.regions import compare as compare_regions
from lib.metrics.statistics import figures_with_intervals

__all__ = [
    "compare", "figures_by", "image_errors", "open_run", "region_errors", "suspected_label_errors",
    "trivial_predictions", "write_tables",
]  # fmt: skip

# What `prepare` writes about an image; every further column of a manifest is an attribute of the data set.
MANIFEST = (
    "image", "prompt", "mos", "score", "labelled", "n_annotators", "n_regions", "width", "height", "distorted",
    "agreement",
)  # fmt: skip
SURE = ("precision", "recall", "f1_score", "plcc", "srcc", "final_score")  # figures that get intervals
SUSPECT_COLUMNS = ["id", "reason", "suspicion", "x", "y", "area", "detail"]


def open_run(run, split: str, data_path: str = "", threshold: int = 0) -> tuple[inspected.Inspected, dict]:
    """A run on a split, and the trivial baseline of its `evaluation.json`, {} when that is of other images.

    Arguments and errors as of `lib.evaluate.inspected.open_run`, except that a run without a threshold must be given
    one.
    """
    opened = inspected.open_run(run, split, data_path, threshold)
    path = opened.folder / "evaluation.json"
    evaluation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not (threshold or evaluation):
        raise InputError(f"{path} names no threshold; run notebook 3 first or give the parameter threshold")
    data = Path(evaluation.get("data_path", "")).resolve()
    same = evaluation.get("split") == split and data == opened.labels.path.resolve().parent
    return opened, (evaluation.get("trivial") or {}) if same else {}


def image_errors(predictions, labels, threshold: int, **options) -> pd.DataFrame:
    """One row an image, indexed by `id`; see `compare`."""
    return compare(predictions, labels, threshold, **options)[0]


def region_errors(predictions, labels, threshold: int, **options) -> pd.DataFrame:
    """One row a true or predicted region; see `compare`."""
    return compare(predictions, labels, threshold, **options)[1]


def compare(
    predictions, labels, threshold: int, ids=None, min_area_ratio=PREDICTED_AREA_RATIO, workers=None, progress=None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare predictions with labels at one threshold; returns (images, regions).

    Arguments: `predictions` and `labels` are stores (labels with `table`); `threshold` 0..255, a pixel counts when
    its value is above; `ids`, `min_area_ratio`, `workers` and `progress` as in `lib.metrics.sweep`.

    images (index `id`): `true_mos`, `predicted_mos`, `score_error` (predicted - true), `iou` (foreground, with the
    metric's smoothing), `n_true`, `n_predicted`, `hit`, `missed` (true regions), `false` (predicted regions),
    `true_area`, `predicted_area`, `missed_area`, `false_area` (fractions of the image, 0..1), `peak` (greatest
    predicted value), `aspect` (width / height), `prompt`, `agreement`, `n_annotators` and the attributes.

    regions: `id`, `side` ("true" or "predicted"), `status` ("hit", "missed", "false"), `area`, `iou` (the best),
    `x`, `y` (centre), `x0`, `y0`, `x1`, `y1` (box), `votes` (most annotators on one of its pixels, 4 for more),
    `heat` (mean predicted value), `response` (greatest predicted value), and the image's columns named above but the
    prompt.
    """
    images, regions = compare_regions(predictions, labels, threshold, ids, min_area_ratio, workers, progress)
    ids = images.index
    known = _known(labels.table.loc[ids], taken={*images, *REGION_COLUMNS, "aspect"})
    # A prompt is long and belongs to the image; images.csv has it.
    attributes = known.drop(columns="prompt").assign(true_mos=images["true_mos"])
    return images.join(known), regions.join(attributes, on="id")


def _known(table: pd.DataFrame, taken: set) -> pd.DataFrame:
    """What a manifest tells of its images besides scores and sizes; an attribute with a name in `taken` is renamed."""
    known = table[["prompt", "n_annotators", "agreement", *(name for name in table if name not in MANIFEST)]]
    known = known.rename(columns={name: f"{name}_attribute" for name in known if name in taken})
    return known.assign(aspect=table["width"] / table["height"])


def suspected_label_errors(images: pd.DataFrame, regions: pd.DataFrame, threshold: int) -> pd.DataFrame:
    """Images whose label rather than whose prediction may be wrong, the most suspicious first.

    Three reasons: "nobody marked it" (a predicted region far above the threshold that no annotator touched), "one
    annotator alone" (a true region of one among several annotators, to which the prediction hardly responds) and
    "score against regions" (masks agree, scores differ by more than 1.5 MOS). `suspicion` 0..1 only orders the
    list; a person decides (notebook 5). Returns rows `id`, `reason`, `suspicion`, `x`, `y`, `area`
    (NaN where the whole image is meant), `detail`.
    """
    said = "predicted at {:.0f} of 255", "1 of {:.0f}, predicted at most {:.0f}", "MOS {:.2f}, predicted {:.2f}"
    unmarked = regions[(regions["status"] == "false") & (regions["votes"] == 0)]
    unmarked = unmarked[unmarked["heat"] > (threshold + 255) / 2]
    details = [said[0].format(heat) for heat in unmarked["heat"]]
    unmarked = unmarked.assign(reason="nobody marked it", suspicion=unmarked["heat"] / 255, detail=details)
    alone = regions[(regions["status"] == "missed") & (regions["votes"] == 1) & (regions["n_annotators"] > 1)]
    alone = alone[alone["response"] < threshold / 2]
    details = [said[1].format(*row) for row in alone[["n_annotators", "response"]].to_numpy()]
    suspicion = (1 - alone["response"] / 255) * (1 - 1 / alone["n_annotators"])
    alone = alone.assign(reason="one annotator alone", suspicion=suspicion, detail=details)
    scores = images[(images["score_error"].abs() > 1.5) & (images["iou"] > 0.5)].reset_index()
    details = [said[2].format(*row) for row in scores[["true_mos", "predicted_mos"]].to_numpy()]
    suspicion = scores["score_error"].abs() / 4 * scores["iou"]
    scores = scores.assign(reason="score against regions", suspicion=suspicion, detail=details)
    # concat with an empty frame would change column types, hence the filter.
    parts = [part.reindex(columns=SUSPECT_COLUMNS) for part in (unmarked, alone, scores) if len(part)]
    if not parts:
        return pd.DataFrame(columns=SUSPECT_COLUMNS)
    return pd.concat(parts).sort_values("suspicion", ascending=False, ignore_index=True)


def figures_by(counts: pd.DataFrame, scores: pd.DataFrame, groups=None, n: int = 500, seed: int = 0) -> dict[str, dict]:
    """Challenge figures of each group with bootstrap `intervals`: {row: {figure: value, "intervals": ...}}.

    Arguments: `counts` rows of `lib.metrics.sweep` at one threshold, `scores` see `lib.metrics.score_table`, `groups`
    a Series id -> group (one row each, with its number of images in the name; None: one row "all"), `n` resamples.
    """
    counts = counts.assign(id=counts["id"].astype(str))
    parts = {"all": scores.index}
    if groups is not None:
        names = named(groups.loc[scores.index])
        parts = names.groupby(names).groups
    rows = {}
    for name, ids in parts.items():
        part = counts[counts["id"].isin(ids)]
        rows[f"{name} ({len(ids):,} images)"] = figures_with_intervals(part, scores.loc[ids], n, seed, figures=SURE)
    return rows


def write_tables(folder, **tables: pd.DataFrame) -> list[Path]:
    """Write each table as `<name>.csv` (four digits) into `folder`, with an index that is `id`; returns the paths."""
    folder, paths = Path(folder), []
    with writing(folder, "choose a run in a folder you may write"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            path = folder / f"{name}.csv"
            with replacing(path) as part:
                table.to_csv(part, index=table.index.name == "id", float_format="%.4f", encoding="utf-8")
            paths.append(path)
    return paths
