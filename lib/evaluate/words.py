"""Words of prompts that go with more, or with fewer, errors than the other images have.

Of many words some stand out by chance, more so when they are rare and errors are few and large. What chance does is
seen by shuffling the errors among the images, whose words stay together: Westfall and Young (1993), Resampling-Based
Multiple Testing (the largest of all words counts).
"""

import re

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from lib.evaluate.groups import GROUP_COLUMNS, ratio

# Function words, and what every prompt of a generator says.
STOP_WORDS = frozenset([
    "about", "above", "after", "all", "also", "and", "are", "behind", "below", "beside", "between", "both", "but",
    "down", "for", "from", "has", "have", "her", "his", "image", "into", "its", "near", "next", "off", "other", "out",
    "over", "photo", "picture", "she", "some", "that", "the", "their", "them", "there", "they", "this", "toward",
    "towards", "under", "very", "was", "were", "which", "while", "who", "with", "without", "you", "your",
])  # fmt: skip


def words(prompt: str) -> set[str]:
    """The different words of a prompt of three letters and more, in lower case, without those that say nothing."""
    return set(re.findall(r"[^\W\d_]{3,}", prompt.lower())) - STOP_WORDS


def prompt_words(
    images: pd.DataFrame, bad: str = "missed", of: str | None = "n_true", min_images: int = 10, n: int = 1999, seed=0
) -> pd.DataFrame:
    """Which words of prompts go with more errors than the other images have.

    The rate of a word is sum(`bad`) / sum(`of`) over the images whose prompt has it (`of` None: per image). Words in
    fewer than `min_images` images, or in all but as many, are left out. Returns rows `group` (the word), `n` (sum of
    `of`), `images`, `rate`, `low`, `high`, `rest` (the rate without the word), `q` (the share of `n` shufflings in
    which any word stands out as far), the furthest first; `attrs["overall"]`.
    """
    images = images.dropna(subset=[bad])
    images = images[images[of] > 0] if of else images
    totals = images[bad].abs().to_numpy(float)
    counts = images[of].to_numpy(float) if of else np.ones(len(images))
    names, has = _matrix(images["prompt"], min_images)
    far, q = _standing_out(has, totals, counts, n, seed)
    rows = []
    for word in np.argsort(-far, kind="stable"):
        places = has.indices[has.indptr[word] : has.indptr[word + 1]]
        rate, low, high, _ = ratio(totals[places], counts[places], "share" if of else "mean")
        rest = (totals.sum() - totals[places].sum()) / (counts.sum() - counts[places].sum())
        rows.append((names[word], int(counts[places].sum()), len(places), rate, low, high, rest, q[word]))
    table = pd.DataFrame(rows, columns=[*GROUP_COLUMNS, "rest", "q"])
    table.attrs.update(overall=float(totals.sum() / counts.sum()) if counts.sum() else None, absent=False, dropped=[])
    table.attrs["kind"] = "share" if of else "mean"
    return table


def _matrix(prompts: pd.Series, min_images: int) -> tuple[np.ndarray, csr_array]:
    """The words [W] that are neither too rare nor too frequent, and which images have them (0 or 1, [W, images])."""
    found = pd.Series([sorted(words(prompt)) for prompt in prompts], dtype=object).explode().dropna()
    codes, names = pd.factorize(found, sort=True)
    has = csr_array((np.ones(len(codes)), (codes, found.index)), shape=(len(names), len(prompts)))
    used = has.sum(axis=1)
    kept = (used >= min_images) & (len(prompts) - used >= min_images)
    return np.asarray(names)[kept], has[kept]


def _standing_out(has: csr_array, totals, counts, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each word's errors are from what is expected, in standard deviations, and its `q`; both [W].

    Errors are shuffled among images with as many regions only: more regions vary more, at whatever rate.
    """
    rng, errors = np.random.default_rng(seed), totals - counts * totals.sum() / max(counts.sum(), 1)
    order, shuffled, draws = np.argsort(counts, kind="stable"), errors.copy(), []
    for _ in range(n + 1):
        draws.append(has @ shuffled)  # the first draw is what was seen
        shuffled[order] = errors[np.lexsort((rng.random(len(counts)), counts))]
    draws = np.array(draws)
    spread = draws.std(axis=0)
    far = np.abs(draws - draws.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    furthest = far.max(axis=1, initial=0)
    return far[0], (furthest[:, None] >= far[0] - 1e-9).mean(axis=0)
