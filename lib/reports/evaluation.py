"""What notebook 3 shows of an `Evaluation`: figures with the sentence that says what they show."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from lib import plots
from lib.data.annotations import mos_from_score
from lib.evaluate.effects import COMPARED
from lib.evaluate.evaluation import Evaluation
from lib.evaluate.groups import score_calibration
from lib.metrics.beyond import (
    AP_THRESHOLDS,
    Estimate,
    average_precision,
    full_frame_diagnostic,
    iou_curve,
)
from lib.metrics.matching import HIT_IOU
from lib.metrics.regions import compare
from lib.plots import style, tables

WITHOUT_LABELS = "This split has no labels: it is predicted, and nothing can be measured on it."


def threshold_figure(evaluation: Evaluation) -> tuple[Figure | None, str]:
    """Figures against the threshold, on the split that chose it and on the reported one, on one scale."""
    chosen = "" if evaluation.by_hand else "chosen "
    parts = {}
    if evaluation.judged_on and evaluation.calibration.name != evaluation.split.name:
        parts[evaluation.calibration.name + (chosen and ": chosen here")] = evaluation.judged_on
        chosen = ""
    if evaluation.judged:
        parts[f"{evaluation.split.name}: {chosen and 'chosen and '}reported here"] = evaluation.judged
    if not parts:
        return None, WITHOUT_LABELS
    fig, axes = style.figure(1, len(parts), height=3.6, sharey=True, squeeze=False)
    for ax, (title, judged) in zip(axes.flat, parts.items(), strict=True):
        plots.threshold_curve(ax, judged.curve, evaluation.setting.threshold, title=title)
    if not evaluation.judged:
        return fig, WITHOUT_LABELS
    curve = evaluation.judged.curve.set_index("threshold")["final_score"]
    lost = curve.max() - curve[evaluation.setting.threshold]
    return fig, f"The best threshold of {evaluation.split.name} itself would have gained {lost:.3f} of final score."


def figures_table(evaluation: Evaluation, summary: dict) -> tuple[Styler | None, str]:
    """The run with its intervals beside the same detector before fine-tuning and the trivial baseline."""
    if not summary["figures"]:
        return None, WITHOUT_LABELS
    own = {**summary["figures"], "intervals": summary["intervals"]}
    baselines = {"the detector before fine-tuning": summary["before"], "the trivial baseline": summary["trivial"]}
    baselines = {name: figures for name, figures in baselines.items() if figures}
    rows = {"this run": own} | {name.removeprefix("the "): figures for name, figures in baselines.items()}
    caption = f"{summary['split']}: {len(evaluation.judged.ids)} images; {evaluation.setting}"
    says = [f"Final score {_with_interval(own)}."]
    says += [_ahead_of(name, figures["ahead"]) for name, figures in baselines.items()]
    return tables.figures_table(rows, caption), "\n".join([*says, *tables.notes_on(rows)])


def _ahead_of(name: str, ahead: dict) -> str:
    """The difference to a baseline in a sentence; an interval on both sides of 0 may be chance."""
    low, high = ahead["low"], ahead["high"]
    if low is None:
        return f"Difference to {name}: {ahead['difference']:+.3f}; too few images for an interval."
    sure = "" if low > 0 or high < 0 else ", which may be chance"
    return f"Difference to {name}: {ahead['difference']:+.3f} ({low:+.3f} to {high:+.3f}){sure}."


def domain_table(summary: dict) -> tuple[Styler | None, str]:
    """The figures of each domain, where the data set tells domains apart."""
    if not summary["figures"]:
        return None, WITHOUT_LABELS
    domains = summary["by_domain"]
    if not domains:
        return None, "This data set does not tell domains apart."
    rows = {f"{name} ({figures['n_images']} images)": figures for name, figures in domains.items()}
    ordered = sorted(domains, key=lambda name: domains[name]["final_score"], reverse=True)
    ends = (ordered[0], ordered[-1])[: len(ordered)]
    told = " and ".join(f"{_with_interval(domains[name])} on {name}" for name in ends)
    table = tables.figures_table(rows, f"{summary['split']} by domain, with 95 % intervals", bold=False)
    return table, "\n".join([f"The final score is {told}.", *tables.notes_on(rows)])


def _with_interval(figures: dict) -> str:
    low, high = figures["intervals"]["final_score"]
    interval = "too few images for an interval" if low is None else f"{low:.3f} to {high:.3f}"
    return f"{figures['final_score']:.3f} ({interval})"


def quality_figure(evaluation: Evaluation) -> tuple[Figure | None, str]:
    """Precision against recall of regions, and predicted against true scores."""
    if not evaluation.judged:
        return None, WITHOUT_LABELS
    fig, axes = style.figure(1, 2, height=4.0)
    plots.precision_recall(axes[0], evaluation.judged.curve, evaluation.setting.threshold)
    plots.score_scatter(axes[1], evaluation.judged.scores)
    figures = evaluation.judged.figures()
    return fig, (
        f"Of the predicted regions {figures['precision']:.0%} hit a marked one, of the marked regions "
        f"{figures['recall']:.0%} are hit; "
        f"the predicted score is off by {figures['rmse_mos']:.2f} MOS points (root mean square)."
    )


def effects_table(effects: pd.DataFrame | None) -> tuple[Styler | None, str]:
    """What `lib.evaluate.effects.measure_effects` found, for the page; None: it was not asked for."""
    if effects is None:
        return None, "Not measured; give effects = true to measure each on its own."
    if effects.empty:
        return None, "Nothing to measure: none of flip, scales, smoothings and ensemble is used, or no label is there."
    names = {"name": "Prediction", "difference": "Difference", **tables.FIGURE_NAMES}
    signed = dict.fromkeys(("Difference", "low", "high"), "{:+.3f}".format)
    plain = {tables.FIGURE_NAMES[name]: "{:.3f}".format for name in COMPARED} | {"p": "{:.3f}".format}
    caption = "Each on its own against the plain prediction: difference of the final score with its 95 % interval"
    sure = [f"{name} {row['difference']:+.3f}" for name, row in effects.iterrows() if row["low"] > 0 or row["high"] < 0]
    says = f"Beyond chance: {', '.join(sure)}." if sure else "None differs from the plain prediction beyond chance."
    return tables.plain_table(effects.reset_index().rename(columns=names), caption, signed | plain), says


def beyond_figure(evaluation: Evaluation) -> tuple[Figure | None, str]:
    """What the official figures hide: how well regions are drawn, what scores mean, and what comes for free."""
    if not evaluation.judged:
        return None, WITHOUT_LABELS
    judged, store = evaluation.judged, evaluation.split.store
    setting = evaluation.setting
    regions = compare(evaluation.reported, store, setting.threshold, judged.ids, setting.min_area)[1]
    curve = iou_curve(regions, judged.ids)
    scores = mos_from_score(judged.scores).add_suffix("_mos")
    fig, axes = style.figure(1, 2, height=3.8)
    plots.iou_curve(axes[0], curve, HIT_IOU)
    plots.calibration(axes[1], score_calibration(scores))
    at_half = Estimate(*curve.set_index("iou_threshold").loc[0.5, ["f1_score", "low", "high"]])
    full = full_frame_diagnostic(store, judged.ids)
    counts = judged.counts[judged.counts["threshold"].isin(AP_THRESHOLDS)]
    return fig, (
        f"Asked for an IoU of 0.5 instead of {HIT_IOU}, F1 is {at_half}, "
        f"not {judged.figures()['f1_score']:.3f}.\n"
        f"A mask that fills every frame would reach F1 {full['f1_score']}, though only "
        f"{full['pixel_precision'].value:.0%} of its pixels are marked: read F1 against it.\n"
        f"Average precision over the thresholds 0, 5 .. 250: {average_precision(counts)} of pixels, "
        f"{average_precision(counts, 'region')} of regions."
    )


def closing(evaluation: Evaluation, summary: dict, path) -> str:
    """The last sentence of the notebook."""
    if not summary["figures"]:
        return f"Predicted {summary['n_images']} images of {summary['split']}; written to {path.parent}."
    final = summary["figures"]["final_score"]
    beside = f" (trivial baseline {summary['trivial']['final_score']:.3f})" if summary["trivial"] else ""
    return f"Final score {final:.3f} on {summary['split']}{beside}; written to {path}. Next: 4_error_analysis.ipynb."
