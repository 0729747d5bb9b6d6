"""Plotting primitives: charts take a data frame and `ax` and return `ax`; galleries return a Figure."""

from lib.plots.charts import (
    calibration,
    heat_calibration,
    iou_curve,
    learning_curve,
    position_map,
    precision_recall,
    rate_bars,
    rate_panels,
    residuals,
    score_scatter,
    threshold_curve,
)
from lib.plots.data import (
    agreement,
    aspect_ratios,
    category_counts,
    damage_by_score,
    mean_heatmap,
    region_sizes,
    score_histogram,
)
from lib.plots.galleries import cases, contact_sheet, heatmap_overlay, region_crops, training_examples
from lib.plots.page import FIGURE_NAMES, figures_table, notes_on, say, show, table
from lib.plots.runs import (
    curves_of_runs,
    difference_in_words,
    differences,
    figure_in_words,
    legend_of_runs,
    parameter_effect,
    same_reach,
    wrong_areas,
)
from lib.plots.style import figure, use_style

__all__ = [
    "FIGURE_NAMES", "agreement", "aspect_ratios", "calibration", "cases", "category_counts", "contact_sheet",
    "curves_of_runs", "damage_by_score", "difference_in_words", "differences", "figure", "figure_in_words",
    "figures_table", "heat_calibration", "heatmap_overlay", "iou_curve", "learning_curve", "legend_of_runs",
    "mean_heatmap", "notes_on", "parameter_effect", "position_map", "precision_recall", "rate_bars", "rate_panels",
    "region_crops", "region_sizes", "residuals", "same_reach", "say", "score_histogram", "score_scatter", "show",
    "table", "threshold_curve", "training_examples", "use_style", "wrong_areas",
]  # fmt: skip
