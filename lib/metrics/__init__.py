"""The challenge metric and the measures beside it: pure functions of heatmaps and scores."""
