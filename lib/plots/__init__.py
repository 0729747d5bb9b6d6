"""Plotting primitives: charts take a data frame and `ax` and return `ax`; galleries return a Figure."""

from lib.evaluation_file import FIGURE_NAMES
from lib.plots.charts import (
    calibration,
    distribution,
    figure_curve,
    learning_curve,
    precision_recall,
    rate_bars,
    rate_panels,
    score_scatter,
)
from lib.plots.galleries import cases, gallery, heatmap_overlay, overlay, region_crops
from lib.plots.page import difference_in_words, figure_in_words, figures_table, notes_on, save, say, show, table
from lib.plots.rendering import heat_overlay
from lib.plots.score_page import broken_in_words, write_score_page
from lib.plots.style import figure, short_names, use_style

__all__ = [
    "FIGURE_NAMES", "broken_in_words", "calibration", "cases", "difference_in_words", "distribution", "figure",
    "figure_curve", "figure_in_words", "figures_table", "gallery", "heat_overlay", "heatmap_overlay", "learning_curve",
    "notes_on", "overlay", "precision_recall", "rate_bars", "rate_panels", "region_crops", "save", "say",
    "score_scatter", "short_names", "show", "table", "use_style", "write_score_page",
]  # fmt: skip
