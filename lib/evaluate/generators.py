"""Generators compared by their scored images: how many are broken, how good, how large the damage; how sure that is.

The unit that is drawn is the prompt where there are prompts: images of one prompt are not independent of each other.
"""

from itertools import combinations

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.statistics import FEWEST, interval_of, resampled_sums, tested_together

MEASURES = ["broken", "mos", "area"]


def compare_generators(
    images: pd.DataFrame, resamples: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Compare groups of images: (summary, differences, the prompts that are paired, or []).

    Args:
        images: a row an image: `generator`, `prompt` (empty when unknown), `broken` (bool), `mos` 1..5, `area` 0..1.
    Where all generators share at least FEWEST prompts, these alone are compared, each prompt against itself; else each
    generator is drawn on its own. Both tables have 95 % intervals; those of the differences (`second - first`) and `p`
    hold for all pairs and measures at once (`lib.metrics.statistics.tested_together`).

    - summary: index `generator`; `n_images`, `n_prompts`, of each of MEASURES its mean, `<measure>_low` and `_high`.
    - differences: `first`, `second`, `measure`, `difference`, `low`, `high`, `p`.

    Raises InputError for fewer than two generators, or one with fewer than FEWEST images.
    """
    names = list(dict.fromkeys(images["generator"]))
    if len(names) < 2:
        raise InputError(f"a comparison needs two generators; there is {', '.join(map(str, names)) or 'none'}")
    few = images["generator"].value_counts()
    if few.min() < FEWEST:
        raise InputError(f"{few.idxmin()} has {few.min()} images, fewer than {FEWEST}; give more of them")
    prompts = _shared_prompts(images)
    if prompts:
        images = images[images["prompt"].isin(prompts)]
    values, draws, rows = {}, {}, {}
    for number, name in enumerate(names):
        part = images[images["generator"] == name].assign(size=1.0)
        unit = part["prompt"].where(part["prompt"] != "", part.index.astype(str))
        by_unit = part.groupby(unit.to_numpy())[[*MEASURES, "size"]]
        # The same prompts in the same order for all, drawn alike: what is hard for all cancels out.
        units = (by_unit.mean().loc[prompts] if prompts else by_unit.sum()).to_numpy(float)
        sums = resampled_sums(units, resamples, seed if prompts else seed + number)
        values[name], draws[name] = units[:, :3].sum(0) / units[:, 3].sum(), sums[:, :3] / sums[:, 3:]
        rows[name] = {"n_images": len(part), "n_prompts": part.loc[part["prompt"] != "", "prompt"].nunique()}
        for measure, mean, drawn in zip(MEASURES, values[name], draws[name].T, strict=True):
            low, high = interval_of(drawn)
            rows[name] |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
    pairs = list(combinations(names, 2))
    differences = np.concatenate([values[second] - values[first] for first, second in pairs])
    drawn = np.concatenate([draws[second] - draws[first] for first, second in pairs], axis=1)
    asked = pd.DataFrame([(*pair, name) for pair in pairs for name in MEASURES], columns=["first", "second", "measure"])
    summary = pd.DataFrame.from_dict(rows, orient="index").rename_axis("generator")
    return summary, asked.assign(**tested_together(differences, drawn)), prompts


def _shared_prompts(images: pd.DataFrame) -> list[str]:
    """Prompts of which every generator has an image, sorted; [] for fewer than FEWEST."""
    counts = images[images["prompt"] != ""].groupby("prompt")["generator"].nunique()
    shared = sorted(counts.index[counts == images["generator"].nunique()])
    return shared if len(shared) >= FEWEST else []
