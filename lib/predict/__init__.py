"""Heatmaps and scores of a detector: one image, many, a split; streamed to disk and resumable."""
