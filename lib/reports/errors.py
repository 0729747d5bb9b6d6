"""Figures of the error analysis: each function gives a figure and the sentence that it proves.

`images` and `regions` are the tables of `analysis.compare` with `groups.with_bins`. A figure is None
when the data set does not have what it would show; the sentence then says so.
"""

import pandas as pd
from matplotlib.figure import Figure

from lib import plots
from lib.data.attributes import named
from lib.evaluate import groups
from lib.evaluate.words import prompt_words
from lib.evaluate.worst import worst_first
from lib.plots import galleries
from lib.plots.style import figure
from lib.reports import findings

BINS = 4  # of an attribute that is a quantity, such as a severity
MOST = 12  # groups in a figure; beyond them names would overlap


def by_region(regions: pd.DataFrame, column: str, name: str) -> tuple[Figure | None, str]:
    """Shares of missed true regions and of false predicted ones by a column of the regions themselves."""
    true, predicted = (regions[regions["side"] == side] for side in ("true", "predicted"))
    tables = {
        "missed regions": groups.by_group(true, column, "missed"),
        "false alarms": groups.by_group(predicted, column, "false"),
    }
    return _side_by_side(tables, ["missed, of true regions", "false, of predicted regions"], [None, None], name)


def by_votes(regions: pd.DataFrame) -> tuple[Figure | None, str]:
    """Missed true regions by how many annotators marked them, and by how far the image's annotators agree."""
    true = regions[regions["side"] == "true"]
    by = {"number of annotators": "voted", "agreement": "agreed"}
    tables = {name: groups.by_group(true, column, "missed") for name, column in by.items()}
    says = "\n".join(findings.groups(table, "missed regions", name) for name, table in tables.items())
    fig, axes = figure(1, 2, _height(*tables.values()))
    for ax, (name, table), what in zip(axes, tables.items(), ("on the region", "over the image"), strict=True):
        plots.rate_bars(ax, table, f"By {name} {what}", "missed, of true regions")
    limits = [limit for ax in axes for limit in ax.get_xlim()]
    for ax in axes:  # both show the same quantity
        ax.set_xlim(min(limits), max(limits))
    return fig, says


def by_place(regions: pd.DataFrame) -> tuple[Figure, str]:
    """Maps of missed and false shares over the frame, on one scale."""
    true, predicted = (regions[regions["side"] == side] for side in ("true", "predicted"))
    missed, false = groups.by_group(true, "place", "missed"), groups.by_group(predicted, "place", "false")
    most = max([0.1, *missed["rate"], *false["rate"]])
    fig, axes = figure(1, 2, 3.6)
    plots.position_map(axes[0], missed, "Missed, of true regions with their centre here", "missed", most)
    plots.position_map(axes[1], false, "False, of predicted regions with their centre here", "false", most)
    says = [findings.groups(missed, "missed regions", "place"), findings.groups(false, "false alarms", "place")]
    return fig, "\n".join(says)


def by_image(images: pd.DataFrame, regions: pd.DataFrame, column: str, name: str) -> tuple[Figure | None, str]:
    """Missed share, false alarms an image and score errors by a column that says something of the whole image.

    Names joined by "+" count for each of their parts; quantities are cut into quarters of equally many images.
    """
    if column not in images or images[column].isna().all():
        return None, f"This data set does not tell {name}, so nothing can be said about it."
    images, regions = _grouped(images, column, images[column]), _grouped(regions, column, images[column])
    true = regions[regions["side"] == "true"]
    tables = {
        "missed regions": groups.by_group(true, column, "missed"),
        "false alarms an image": groups.by_group(images, column, "false"),
        "score errors": groups.by_group(images, column, "abs_error"),
    }
    labels = ["missed, of true regions", "false alarms an image", "|score error|, MOS"]
    return _side_by_side(tables, labels, [None, "", "MOS"], name)


def _grouped(table: pd.DataFrame, column: str, values: pd.Series) -> pd.DataFrame:
    """The table ready to be grouped; `values` are those of the images, so that both tables get the same bins."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return table
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 2 * BINS:
        edges = values.quantile([k / BINS for k in range(BINS + 1)]).unique()
        names = [f"{low:.3g} to {high:.3g}" for low, high in zip(edges, edges[1:], strict=False)]
        return table.assign(**{column: pd.cut(table[column], edges, labels=names, include_lowest=True)})
    return groups.one_row_a_part(table, column)


def _side_by_side(tables: dict, labels: list[str], units: list, name: str) -> tuple[Figure, str]:
    """{what: groups} as panels with the groups in the order of the first; `units` are None for shares."""
    says = [findings.groups(table, what, name, unit) for (what, table), unit in zip(tables.items(), units, strict=True)]
    fig, axes = figure(1, len(tables), _height(*tables.values()))
    order = list(next(iter(tables.values()))["group"])
    for ax, table, label in zip(axes, tables.values(), labels, strict=True):
        if not table.attrs["ordered"]:
            table = table.sort_values("group", key=lambda names: names.map(lambda name: (order + [name]).index(name)))
        plots.rate_bars(ax, table.head(MOST), f"By {name}", label)
    return fig, "\n".join(says)


def _height(*tables: pd.DataFrame) -> float:
    """Inches for the longest of the tables."""
    return 1.2 + 0.3 * max(2, *(min(len(table), MOST) for table in tables))


def by_word(images: pd.DataFrame, n: int = 10) -> tuple[Figure, str]:
    """The words of prompts that go most with misses and with score errors, each beside the rate of all images."""
    missed, errors = prompt_words(images), prompt_words(images, "score_error", None)
    fig, axes = figure(1, 2, _height(missed.head(n), errors.head(n)))
    plots.rate_bars(axes[0], missed.head(n), "By word, most telling first", "missed, of true regions")
    plots.rate_bars(axes[1], errors.head(n), "By word, most telling first", "|score error|, MOS")
    return fig, "\n".join([findings.words(missed, "missed regions"), findings.words(errors, "score errors", "MOS")])


def score_figure(images: pd.DataFrame, scores: pd.DataFrame) -> tuple[Figure, str]:
    """Scatter, errors and calibration of the score (`scores` see `lib.metrics.score_table`)."""
    fig, axes = figure(1, 3, 3.3)
    plots.score_scatter(axes[0], scores)
    plots.residuals(axes[1], scores)
    plots.calibration(axes[2], groups.score_calibration(images))
    return fig, findings.scores(images)


def threshold_figure(curve: pd.DataFrame, chosen: int) -> tuple[Figure, str]:
    """Figures over thresholds, what they trade, and how often a predicted value is true."""
    heat = groups.heat_calibration(curve)
    fig, axes = figure(1, 3, 3.3)
    plots.threshold_curve(axes[0], curve, chosen, names=("f1_score", "precision", "recall"))
    plots.precision_recall(axes[1], curve, chosen)
    plots.heat_calibration(axes[2], heat, chosen)
    return fig, f"{findings.threshold(curve, chosen)}\n{findings.heat(heat, chosen)}"


def case_gallery(
    labels, predictions, images: pd.DataFrame, which: str, threshold: int, n: int, **options
) -> tuple[Figure, str]:
    """The "worst" or the "best" images with label, prediction and regions."""
    found = worst_cases(images, n) if which == "worst" else best_cases(images, n)
    fig = galleries.cases(labels, predictions, found.index, threshold, which.capitalize(), captions(found), **options)
    if found.empty:
        return fig, "No image has a true region."
    wrong = found["missed"] + found["false"]
    bound = f"at least {wrong.min()} regions missed or false"
    if which == "best":
        bound = f"an IoU of at least {found['iou'].min():.2f}"
    return fig, f"The {which} {len(found)} of {len(images):,} images have {bound}."


def worst_cases(images: pd.DataFrame, n: int) -> pd.DataFrame:
    """The first images of `lib.evaluate.worst.worst_first`, which is the order of the mask inspector, too."""
    wrong = images["missed"] + images["false"], images["missed_area"] + images["false_area"]
    return images.loc[worst_first(*wrong, images["predicted_mos"])[:n]]


def best_cases(images: pd.DataFrame, n: int) -> pd.DataFrame:
    """Images with the highest IoU among those that have a true region; empty on both sides is no art."""
    return images[images["n_true"] > 0].sort_values("iou", ascending=False, kind="stable").head(n)


def score_gallery(labels, predictions, images: pd.DataFrame, n: int) -> tuple[Figure, str]:
    """The images whose score is furthest from the label's."""
    errors = images["score_error"].dropna()
    far = errors.reindex(errors.abs().sort_values(ascending=False, kind="stable").index).head(n)
    fig = galleries.contact_sheet(labels, far.index, predictions, title="Largest score errors")
    if far.empty:
        return fig, "No image has a score to compare with."
    kind = int((far > 0).sum())
    return fig, f"Of the {len(far)} largest score errors, {far.abs().min():.2f} MOS and more, {kind} are too kind."


def suspect_gallery(labels, predictions, images, suspects, threshold: int, n: int, **options) -> tuple[Figure, str]:
    """The first images of `lib.evaluate.analysis.suspected_label_errors`, with the reason in the caption."""
    first = suspects.drop_duplicates("id").head(n)
    lines = captions(images.loc[first["id"]])
    lines = {row.id: f"{lines[row.id]}\n{row.reason}: {row.detail}" for row in first.itertuples()}
    fig = galleries.cases(labels, predictions, first["id"], threshold, "Doubtful labels", lines, **options)
    return fig, f"{len(first)} of {suspects['id'].nunique()} images with a doubtful label are shown."


def captions(images: pd.DataFrame) -> dict[str, str]:
    """{id: one line about its errors} for the galleries."""
    lines, images = {}, images.assign(kinds=named(images["kinds"])) if "kinds" in images else images
    for row in images.itertuples():
        text = f"{row.Index}: IoU {row.iou:.2f}, {row.hit} hit, {row.missed} missed, {row.false} false"
        if pd.notna(row.score_error):
            text += f"; MOS {row.true_mos:.2f}, predicted {row.predicted_mos:.2f} ({row.score_error:+.2f})"
        if "kinds" in images:
            text += f"; {row.kinds}"
        lines[row.Index] = text
    return lines


def region_gallery(
    labels, predictions, regions: pd.DataFrame, status: str, threshold: int, n: int, **options
) -> tuple[Figure, str]:
    """Crops around the largest missed regions, or the most confident false alarms, and how many there are."""
    found = regions[regions["status"] == status]
    found = found.sort_values("area" if status == "missed" else "heat", ascending=False)
    title = "The largest missed regions" if status == "missed" else "The most confident false alarms"
    fig = galleries.region_crops(labels, predictions, found.head(n), threshold, title, columns=2, **options)
    name = "true regions are missed" if status == "missed" else "predicted regions are false"
    if found.empty:
        return fig, f"No {name.split(' are ')[0]} are {status}."
    median = found["area"].median()
    return fig, f"{len(found):,} {name}; half of them cover less than {median:.1%} of their image."
