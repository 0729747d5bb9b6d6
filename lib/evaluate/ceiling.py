"""How well annotators agree with each other, in the figures of the challenge: what no detector is likely to pass."""

from types import SimpleNamespace

import numpy as np

from lib.data.regions import Region, draw_regions
from lib.metrics.counts import challenge_figures, score_table, sweep
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.statistics import bootstrap_figures

FIGURES = ("precision", "recall", "f1_score", "giou")


def annotator_ceiling(labels, ids, resamples: int = 500, seed: int = 0) -> dict:
    """The regions of one annotator of each image, drawn at random, measured against all that the others marked.

    Arguments: `labels` a LabelStore; `ids` labelled images, of which those with two annotators or more count. Returns
    the FIGURES, their `intervals` (95 %, bootstrap over images) and `n_images`; {} without such an image. Scores of
    single annotators are not known.
    """
    rng, one, others = np.random.default_rng(seed), {}, {}
    drawn = dict(iter(labels.regions.groupby("id")))
    for id in ids:
        row = labels.table.loc[id]
        if row["n_annotators"] >= 2:
            found = drawn[id].itertuples() if id in drawn else ()
            regions = [Region(each.annotator, each.shape, np.reshape(each.points, (-1, 2))) for each in found]
            record = SimpleNamespace(id=id, size=None, n_annotators=int(row["n_annotators"]), regions=regions)
            masks = draw_regions(record, int(row["width"]), int(row["height"]))[1]
            chosen = rng.integers(len(masks))
            one[id] = masks[chosen].astype(np.uint8)
            others[id] = np.delete(masks, chosen, axis=0).any(axis=0).astype(np.uint8)
    if not one:
        return {}
    predicted, true = Heatmaps(one), Heatmaps(others)
    measured = sweep(predicted, true, [0], workers=1), score_table(predicted, true)
    figures = challenge_figures(*measured)
    intervals = bootstrap_figures(*measured, n=resamples, seed=seed, figures=FIGURES)
    return {name: figures[name] for name in FIGURES} | {"intervals": intervals, "n_images": len(one)}
