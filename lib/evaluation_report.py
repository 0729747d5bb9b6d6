"""What notebook 3 shows of an `Evaluation`: figures with the sentence that says what they show."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from lib import plots, style, tables
from lib.annotations import mos_from_score
from lib.effects import COMPARED
from lib.evaluation import Evaluation
from lib.groups import score_calibration
from lib.matching import HIT_IOU
from lib.statistics import average_precision, full_frame_diagnostic, iou_curve, region_table

WITHOUT_LABELS = "This split has no labels: it is predicted, and nothing can be measured on it."


def threshold_figure(evaluation: Evaluation) -> tuple[Figure | None, str]:
    """Figures against the threshold, on the split that chose it and on the reported one, on one scale."""
    parts = {f"{evaluation.calibration.name}: chosen here": evaluation.judged_on} if evaluation.calibration else {}
    if evaluation.judged:
        parts[f"{evaluation.split.name}: reported here"] = evaluation.judged
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


def figures_table(evaluation: Evaluation, summary: dict) -> Styler | str:
    """The run with its intervals beside the same detector before fine-tuning and the trivial baseline."""
    if not summary["figures"]:
        return WITHOUT_LABELS
    rows = {"this run": "figures", "before fine-tuning": "before", "trivial baseline": "trivial"}
    rows = {name: summary[key] for name, key in rows.items() if summary[key]}
    caption = f"{summary['split']}: {len(evaluation.judged.ids)} images, threshold {summary['threshold']}"
    return tables.figures_table(rows, {"this run": summary["intervals"]}, caption=caption)


def domain_table(summary: dict) -> Styler | str:
    """The figures of each domain, where the data set tells domains apart."""
    if not summary["by_domain"]:
        return "This data set does not tell domains apart."
    rows = {f"{name} ({figures['n_images']} images)": figures for name, figures in summary["by_domain"].items()}
    return tables.figures_table(rows, caption=f"{summary['split']} by domain")


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


def effects_table(effects: pd.DataFrame) -> Styler | str:
    """What `lib.effects.measure_effects` found, for the page."""
    if effects.empty:
        return "Nothing to measure: none of flip, scales, smoothings and ensemble is used, or a split has no labels."
    names = {"name": "Prediction", "difference": "Difference", **tables.FIGURE_NAMES}
    signed = dict.fromkeys(("Difference", "low", "high"), "{:+.3f}".format)
    plain = {tables.FIGURE_NAMES[name]: "{:.3f}".format for name in COMPARED} | {"p": "{:.3f}".format}
    caption = "Each on its own against the plain prediction: difference of the final score with its 95 % interval"
    return tables.plain_table(effects.reset_index().rename(columns=names), caption, signed | plain)


def beyond_figure(evaluation: Evaluation) -> tuple[Figure | None, str]:
    """What the official figures hide: how well regions are drawn, what scores mean, and what comes for free."""
    if not evaluation.judged:
        return None, WITHOUT_LABELS
    judged, store = evaluation.judged, evaluation.split.store
    setting = evaluation.setting
    regions = region_table(evaluation.reported, store, setting.threshold, judged.ids, min_area_ratio=setting.min_area)
    curve = iou_curve(regions)
    scores = mos_from_score(judged.scores).add_suffix("_mos")
    fig, axes = style.figure(1, 2, height=3.8)
    plots.iou_curve(axes[0], curve, HIT_IOU)
    plots.calibration(axes[1], score_calibration(scores))
    f1_score = curve.set_index("iou_threshold")["f1_score"]
    full = full_frame_diagnostic(store, judged.ids)
    return fig, (
        f"Asked for an IoU of 0.5 instead of {HIT_IOU}, F1 is {f1_score[0.5]:.3f} instead of {f1_score[HIT_IOU]:.3f}.\n"
        f"A mask that fills every frame would reach F1 {full['f1_score']:.3f}, though only "
        f"{full['pixel_precision']:.0%} of its pixels are marked: read F1 against it.\n"
        f"Average precision over the thresholds: {average_precision(judged.counts):.3f} of pixels, "
        f"{average_precision(judged.counts, 'region'):.3f} of regions."
    )


def closing(evaluation: Evaluation, summary: dict, path) -> str:
    """The last sentence of the notebook."""
    if not summary["figures"]:
        return f"Predicted {summary['n_images']} images of {summary['split']}; written to {path.parent}."
    final = summary["figures"]["final_score"]
    beside = f" (trivial baseline {summary['trivial']['final_score']:.3f})" if summary["trivial"] else ""
    return f"Final score {final:.3f} on {summary['split']}{beside}; written to {path}. Next: 4_error_analysis.ipynb."
