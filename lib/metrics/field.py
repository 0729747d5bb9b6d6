"""The field's measures of heatmaps and masks, beside the challenge's: as RichHF-18K, LEGION and PAL4VST report them.

Sources: Liang et al. (2024), "Rich Human Feedback", and its re-implementation youweiliang/RichHF (metrics.py) for the
maps; mmsegmentation's IoUMetric, as PAL4VST uses it, for the masks. PROTOCOL says what decides the values, since other
resolutions, epsilons and treatments of unmarked images give other figures. Everything is computed in float64.
"""

import numpy as np
import pandas as pd
from PIL import Image

from lib.metrics.counts import paired_ids
from lib.metrics.heatmaps import map_images
from lib.metrics.matching import CHALLENGE_SIZE, GRID
from lib.metrics.statistics import interval_of, resampled_sums

EPSILON = 1e-8  # RichHF's; 1e-12 and 2.2e-16 of other implementations give other KLD
MAPS = ("mse", "cc", "kld", "sim", "nss", "auc_judd")
MEASURES = {  # name -> (title, which is better, what it is)
    "mse": ("MSE", "lower", "mean squared difference of the maps, all images"),
    "mse_empty": ("MSE, unmarked", "lower", "the same, images that nobody marked"),
    "cc": ("CC", "higher", "correlation of the pixels of both maps"),
    "kld": ("KLD", "lower", "Kullback-Leibler divergence of the maps, scaled to sum 1"),
    "sim": ("SIM", "higher", "sum of the smaller values of both maps, scaled to sum 1"),
    "nss": ("NSS", "higher", "mean of the standardised prediction over marked pixels"),
    "auc_judd": ("AUC-Judd", "higher", "chance that a marked pixel is predicted higher than another, equal ones half"),
    "pixel_f1": ("pixel F1", "higher", "of marked pixels, summed over all images"),
    "pixel_iou": ("pixel IoU", "higher", "of marked pixels, summed over all images"),
    "miou": ("mIoU", "higher", "mean of the IoU of marked and of unmarked pixels: 0.5 is a weak result"),
}  # fmt: skip
PROTOCOL = f"""Maps: 8-bit predictions and labels, both resized to {{side}} x {{side}} (bilinear, antialiased), as 0..1.
A pixel is marked where the label is above 0. MSE is the mean over all {{images}} images; CC, KLD, SIM, NSS and AUC are
means over the {{marked}} that somebody marked. Epsilon is {EPSILON:g}: in KLD a predicted 0 on a marked pixel costs
ln(1/epsilon), so values are comparable at this epsilon and 8 bits only. AUC is exact, without Judd's random noise.
Masks: {{setting}}, on the challenge's 512 x 512 grid, pixels summed over all images.""".replace("\n", " ")


def map_measures(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The MAPS measures of one image's maps [H, W], uint8 or float in 0..1; of an unmarked image all but `mse` are NaN.

    `auc_judd` is also NaN where every pixel is marked.
    """
    p, g = (side / 255 if side.dtype == np.uint8 else side.astype(np.float64) for side in (predicted, true))
    found = dict.fromkeys(MAPS, np.nan) | {"mse": float(np.mean((p - g) ** 2))}
    marked = g > 0
    if not marked.any():
        return found
    a, b = p - p.mean(), g - g.mean()
    share_p, share_g = p / (p.sum() + EPSILON), g / (g.sum() + EPSILON)
    return found | {
        "cc": float((a * b).sum() / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()) + EPSILON)),
        "kld": float((share_g * np.log(share_g / (share_p + EPSILON) + EPSILON)).sum()),
        "sim": float(np.minimum(share_p, share_g).sum()),
        "nss": float((a[marked] / (p.std(ddof=1) + EPSILON)).mean()),
        "auc_judd": auc_judd(predicted, marked),
    }


def auc_judd(predicted: np.ndarray, marked: np.ndarray) -> float:
    """Chance that a marked pixel has a higher value than an unmarked one, equal values half (Mann and Whitney 1947).

    It is what Judd's AUC scatters around with its noise (Judd et al. 2012), and lies within 1 / (2 marked pixels) +
    1 / (unmarked pixels) of it where values do not repeat. NaN when all pixels are marked, or none.
    """
    inside, outside = predicted[marked], np.sort(predicted[~marked], kind="stable")  # stable: by radix for bytes
    if not len(inside) or not len(outside):
        return np.nan
    below, up_to = (np.searchsorted(outside, inside, side) for side in ("left", "right"))
    return float((below.mean() + up_to.mean()) / 2 / len(outside))


def measure_maps(
    predictions, labels, ids=None, side: int = CHALLENGE_SIZE, workers=None, progress=None
) -> pd.DataFrame:
    """`map_measures` of every image (index `id`), its maps resized to `side`; further arguments as of `sweep`."""
    ids, options = paired_ids(predictions, labels, ids), {"cost": 20, "workers": workers, "progress": progress}
    rows = list(map_images(_measure_image, predictions, labels, ids, side, **options))
    return pd.DataFrame(rows, index=pd.Index(ids, name="id", dtype=object))


def _measure_image(id: str, predictions, labels, side: int) -> dict[str, float]:
    maps = (Image.fromarray(source.heatmap(id)) for source in (predictions, labels))
    return map_measures(*(np.asarray(one.resize((side, side), Image.Resampling.BILINEAR)) for one in maps))


def field_figures(maps: pd.DataFrame, counts: pd.DataFrame, n: int = 500, seed: int = 0, pixels=GRID) -> dict:
    """The MEASURES of a set with their `intervals` (95 %, bootstrap over images): {name: value, "intervals": {...}}.

    Arguments: `maps` as of `measure_maps`; `counts` rows of `lib.metrics.counts.sweep` at one threshold, in the same
    order, of images of so many `pixels` (one number, or one an image). An undefined measure of an image does not count.
    """
    table = maps.assign(mse_empty=maps["mse"].where(maps["cc"].isna()))
    sums = counts[["intersection", "union"]].assign(pixels=pixels).to_numpy(float)
    columns = np.column_stack([np.nan_to_num(table.to_numpy(float)), np.isfinite(table.to_numpy(float)), sums])

    def figures(summed: np.ndarray) -> dict[str, np.ndarray]:  # [..., 2 x measures + 3]
        total, known = np.split(np.moveaxis(summed[..., :-3], -1, 0), 2)
        both, either, size = np.moveaxis(summed[..., -3:], -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # what no image defines is NaN
            found = dict(zip(table, total / known, strict=True))
            iou, background = both / either, (size - either) / (size - both)
            found["miou"] = np.where(either > 0, (iou + background) / 2, background)
            found |= {"pixel_f1": 2 * both / (either + both), "pixel_iou": iou}
        return {name: found[name] for name in MEASURES}

    found, draws = figures(columns.sum(axis=0)), figures(resampled_sums(columns, n, seed))
    intervals = {name: interval_of(draws[name]) for name in MEASURES}
    return {name: float(value) for name, value in found.items()} | {"intervals": intervals}
