"""The scales of the labels: annotators' votes as heatmap values, mean opinion scores as scores.

Source: the NTIRE 2025 challenge on structural distortions.
"""

HEATMAP_LEVELS = (0, 64, 127, 180, 255)  # heatmap value of 0, 1, 2, 3 and 4 or more annotators
SCORE_LEVELS = tuple(third / 12 for third in range(13))  # scores that three annotators can give: mos 1, 1.33, ... 5


def score_from_mos(mos):
    """Mean opinion score 1..5 (number, array or column) -> score 0..1."""
    return (mos - 1) / 4


def mos_from_score(score):
    """Score 0..1 (number, array or column) -> mean opinion score 1..5."""
    return 1 + 4 * score
