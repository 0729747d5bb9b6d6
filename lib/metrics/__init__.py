"""The challenge metric and the measures beside it: pure functions of heatmaps and scores."""

from lib.metrics.counts import paired_ids, sweep, sweep_areas
from lib.metrics.figures import (
    FIGURES,
    best_threshold,
    challenge_figures,
    evaluate,
    final_score,
    region_figures,
    score_table,
    threshold_curve,
)
from lib.metrics.mapping import Heatmaps, map_images, pays_for, portable
from lib.metrics.matching import CHALLENGE_SIZE, RegionCounts, classify_regions, match_regions

__all__ = [
    "CHALLENGE_SIZE", "FIGURES", "Heatmaps", "RegionCounts", "best_threshold", "challenge_figures",
    "classify_regions", "evaluate", "final_score", "map_images", "match_regions", "paired_ids", "pays_for", "portable",
    "region_figures", "score_table", "sweep", "sweep_areas", "threshold_curve",
]  # fmt: skip
