"""Error rates of groups, each with its count and a 95 % interval, and a test whether the groups differ at all.

Regions of one image share its difficulty, so the image is the unit: the variance of a rate is the cluster-robust
(linearised) one, and Wilson's interval is computed at the effective number of observations that it implies.
Sources: Wilson (1927), J. Am. Stat. Assoc. 22; Garwood (1936), Biometrika 28; Kish (1965), Survey Sampling (design
effect); Westfall and Young (1993), Resampling-Based Multiple Testing (words).
"""

import re

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import chi2, norm, t

from lib.data.attributes import named

ALPHA = 0.01  # a report asks many questions; at 5 % one answer in twenty would be noise
Z = float(norm.ppf(0.975))
GROUP_COLUMNS = ["group", "n", "images", "rate", "low", "high"]
# Function words, and what every prompt of a generator says.
STOP_WORDS = frozenset([
    "about", "above", "after", "all", "also", "and", "are", "behind", "below", "beside", "between", "both", "but",
    "down", "for", "from", "has", "have", "her", "his", "image", "into", "its", "near", "next", "off", "other", "out",
    "over", "photo", "picture", "she", "some", "that", "the", "their", "them", "there", "they", "this", "toward",
    "towards", "under", "very", "was", "were", "which", "while", "who", "with", "without", "you", "your",
])  # fmt: skip


def by_group(
    table: pd.DataFrame, column: str, value: str, unit: str = "id", min_n: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Mean of `value` in each group of `column`, with a 95 % interval.

    Args:
        table: rows of images or regions. `unit` names the column, or the index, that holds the image's id.
        column: categories keep their order; other groups are ordered by rate. Text may join several names by "+"
            ("warped+melted"): the row then counts for each of them.
        value: booleans give a share, whole numbers events per row, other numbers a mean.
        min_n: groups of fewer images are left out.
    Returns:
        Rows `group`, `n` (rows), `images`, `rate`, `low`, `high`. `attrs` holds `overall` (the rate of all rows), `p`
        (of the hypothesis that the groups have one mean, see `difference`), `dropped` (names of the groups left out),
        `kind` ("share", "count" or "mean"), `ordered` (whether the groups are categories) and `absent` (whether
        the table has no such column or only nulls in it).
    """
    absent = column not in table or bool(table[column].isna().all())
    table = table.iloc[:0].assign(**{column: None}) if absent else table.dropna(subset=[value])
    ordered = isinstance(table[column].dtype, pd.CategoricalDtype)
    table = table.dropna(subset=[column]) if ordered else one_row_per_name(table, column)
    table = table.assign(_unit=table[unit] if unit in table.columns else table.index)
    kind = "share" if table[value].dtype == bool else "count" if pd.api.types.is_integer_dtype(table[value]) else "mean"
    sizes = table.groupby(column, observed=True)["_unit"].nunique()
    shown = table[table[column].map(sizes).astype(float) >= min_n]
    rows = []
    for group, part in shown.groupby(column, observed=True):
        totals, counts = _per_image(part[value], part["_unit"])
        rows.append((group, len(part), len(counts), *ratio(totals, counts, kind)[:3]))
    groups = pd.DataFrame(rows, columns=GROUP_COLUMNS)
    if not ordered:
        groups = groups.sort_values("rate", ascending=False, ignore_index=True, kind="stable")
    groups.attrs.update(
        overall=float(table[value].mean()) if len(table) else None,
        p=difference(shown[column], shown[value], shown["_unit"], seed),
        dropped=[f"{group} ({size})" for group, size in sizes.items() if 0 < size < min_n],
        kind=kind, ordered=ordered, absent=absent,
    )  # fmt: skip
    return groups


def in_words(groups: pd.DataFrame) -> str:
    """The highest and the lowest rate of `by_group`'s table and whether the groups differ, for use in a sentence."""
    dropped = f"; too few images to show: {', '.join(groups.attrs['dropped'])}" if groups.attrs["dropped"] else ""
    if groups.attrs["absent"]:
        return "this data set does not say"
    if len(groups) < 2:
        return "fewer than two groups are large enough to compare" + dropped
    form = "{:.0%}" if groups.attrs["kind"] == "share" else "{:.2f}"
    text = f"{form} ({form} to {form}, n = {{:,}}) for {{}}"
    ends = [groups.loc[groups["rate"].idxmax()], groups.loc[groups["rate"].idxmin()]]
    highest, lowest = (text.format(row.rate, row.low, row.high, row.n, row.group) for row in ends)
    p = groups.attrs["p"]
    verdict = "the groups differ" if p < ALPHA else "no significant difference"
    return f"{highest}, {lowest}; {verdict} ({'p < 0.001' if p < 0.001 else f'p = {p:.2g}'}){dropped}"


def one_row_per_name(table: pd.DataFrame, column: str, separator: str = "+") -> pd.DataFrame:
    """Repeat each row for every different name in a column of joined names ("warped+melted").

    Missing names are filled by `lib.data.attributes.named`.
    """
    names = [sorted({part.strip() for part in name.split(separator)} - {""}) for name in named(table[column])]
    return table.assign(**{column: pd.Series(names, index=table.index, dtype=object)}).explode(column)


def ratio(totals: np.ndarray, counts: np.ndarray, kind: str = "share") -> tuple[float, float, float, float]:
    """(ratio, low, high, variance) of sum(totals) / sum(counts), one entry an image.

    The interval is Wilson's for a "share", Garwood's for a "count" (events that may come several times), each at the
    effective number of observations, and Student's for a "mean".
    """
    n, images = counts.sum(), np.count_nonzero(counts)
    rate = float(totals.sum() / n)
    residuals = totals - rate * counts
    variance = float(residuals @ residuals) / n**2 * images / max(images - 1, 1)
    if kind == "mean":
        reach = t.ppf(0.975, images - 1) * np.sqrt(variance) if images > 1 else np.inf
        low = rate - reach if totals.min() < 0 else max(0.0, rate - reach)  # what is never negative has no such mean
        return rate, low, rate + reach, variance
    if kind == "count":
        effective = min(rate / variance, n) if variance > 0 else images
        return rate, *garwood(rate, effective), variance
    # Where all images agree, the residuals say nothing about chance; then images count, not regions.
    effective = min(rate * (1 - rate) / variance, n) if variance > 0 else images
    # Agresti and Coull's shrunken rate keeps the variance above zero at 0 and 1.
    shrunken = (rate * effective + Z**2 / 2) / (effective + Z**2)
    return rate, *wilson(rate, effective), shrunken * (1 - shrunken) / (effective + Z**2)


def garwood(rate: float, n: float) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson rate seen over n units; above zero also where nothing was seen."""
    low = chi2.ppf(0.025, 2 * rate * n) / 2 / n if rate > 0 else 0.0
    return float(low), float(chi2.ppf(0.975, 2 * (rate * n + 1)) / 2 / n)


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate seen in n independent observations; n need not be a whole number."""
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * np.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    # At 0 and 1 the bounds are exact, rounding aside.
    return 0.0 if rate == 0 else float(centre - reach), 1.0 if rate == 1 else float(centre + reach)


def difference(groups: pd.Series, values: pd.Series, units: pd.Series, seed: int = 0, n: int = 1999) -> float:
    """p of the hypothesis that the groups have one mean, by permuting the values; NaN below two groups.

    The sum of squares between groups is divided by the design effect (at least 1) of values that share an image
    (`units`), as Rao and Scott (1984), Ann. Stat. 12, do with chi-squared. A value whose index comes several times
    belongs to several groups (`one_row_per_name`); it moves as a whole.
    """
    codes, names = pd.factorize(groups)
    if len(names) < 2:
        return np.nan
    sizes, once = np.bincount(codes), ~values.index.duplicated()
    row_of = pd.factorize(values.index)[0]
    values = values.to_numpy(float)[once]
    values = values - values.mean()
    totals, counts = _per_image(pd.Series(values), units[once])
    spread = values.var(ddof=1) / len(values)
    effect = max(1.0, ratio(totals, counts, "mean")[3] / spread) if spread > 0 else 1.0

    def between(drawn):
        return float((np.bincount(codes, drawn[row_of]) ** 2 / sizes).sum())

    rng, seen = np.random.default_rng(seed), between(values) / effect
    extreme = sum(between(rng.permutation(values)) >= seen - 1e-12 for _ in range(n))
    return (extreme + 1) / (n + 1)


def _per_image(values: pd.Series, units: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    grouped = pd.Series(values.to_numpy(float)).groupby(units.to_numpy())
    return grouped.sum().to_numpy(), grouped.size().to_numpy(float)


def words(prompt: str) -> set[str]:
    """The different words of a prompt of three letters and more, in lower case, without STOP_WORDS."""
    return set(re.findall(r"[^\W\d_]{3,}", prompt.lower())) - STOP_WORDS


def prompt_words(
    images: pd.DataFrame, bad: str = "missed", of: str | None = "n_true", min_images: int = 10, n: int = 1999, seed=0
) -> pd.DataFrame:
    """Which words of prompts go with more, or fewer, errors than the other images have.

    The rate of a word is sum(`bad`) / sum(`of`) over the images whose prompt has it (`of` None: per image). Words in
    fewer than `min_images` images, or in all but as many, are left out. Of many words some stand out by chance; what
    chance does is seen by shuffling the errors among the images, whose words stay together.

    Returns rows `group` (the word), `n` (sum of `of`), `images`, `rate`, `low`, `high`, `rest` (the rate without the
    word), `q` (the share of `n` shufflings in which any word stands out as far), the furthest first; `attrs` as of
    `by_group`.
    """
    images = images.dropna(subset=[bad])
    images = images[images[of] > 0] if of else images
    totals, kind = images[bad].abs().to_numpy(float), "share" if of else "mean"
    counts = images[of].to_numpy(float) if of else np.ones(len(images))
    names, has = _images_of_words(images["prompt"], min_images)
    far, q = _standing_out(has, totals, counts, n, seed)
    rows = []
    for word in np.argsort(-far, kind="stable"):
        places = has.indices[has.indptr[word] : has.indptr[word + 1]]
        rest = (totals.sum() - totals[places].sum()) / (counts.sum() - counts[places].sum())
        rates = ratio(totals[places], counts[places], kind)[:3]
        rows.append((names[word], int(counts[places].sum()), len(places), *rates, rest, q[word]))
    table = pd.DataFrame(rows, columns=[*GROUP_COLUMNS, "rest", "q"])
    table.attrs.update(overall=float(totals.sum() / counts.sum()) if counts.sum() else None, kind=kind, ordered=True)
    return table


def _images_of_words(prompts: pd.Series, min_images: int) -> tuple[np.ndarray, csr_array]:
    """The words [W] that are neither too rare nor too frequent, and which images have them (0 or 1, [W, images])."""
    found = pd.Series([sorted(words(prompt)) for prompt in prompts], dtype=object).explode().dropna()
    codes, names = pd.factorize(found, sort=True)
    has = csr_array((np.ones(len(codes)), (codes, found.index)), shape=(len(names), len(prompts)))
    used = has.sum(axis=1)
    kept = (used >= min_images) & (len(prompts) - used >= min_images)
    return np.asarray(names)[kept], has[kept]


def _standing_out(has: csr_array, totals, counts, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each word's errors are from what is expected, in standard deviations, and its `q`; both [W].

    Errors are shuffled only among images with as many regions, since more regions vary more at whatever rate.
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


def score_calibration(images: pd.DataFrame, bins: int = 8) -> pd.DataFrame:
    """Mean true MOS in bins of equally many predicted ones: `predicted` and `rate` (means), `low`, `high`, `n`."""
    scores = images[["predicted_mos", "true_mos"]].dropna()
    rows, bins = [], min(bins, len(scores) // 5)
    bin_of = pd.qcut(scores["predicted_mos"].rank(method="first"), bins, labels=False) if bins else None
    for _, part in scores.groupby(bin_of) if bins else ():
        rate, low, high, _ = ratio(part["true_mos"].to_numpy(), np.ones(len(part)), "mean")
        rows.append((part["predicted_mos"].mean(), rate, max(low, 1), min(high, 5), len(part)))
    return pd.DataFrame(rows, columns=["predicted", "rate", "low", "high", "n"])


def heat_calibration(curve: pd.DataFrame) -> pd.DataFrame:
    """Share of pixels that any annotator marked, by predicted value: rows `predicted` (0..255), `rate`, `pixels`.

    `curve` is `lib.metrics.threshold_curve`: the pixels between two thresholds are the difference of their counts.
    """
    curve = curve.sort_values("threshold")
    pixels = -np.diff(curve["predicted_pixels"], append=0)
    marked = -np.diff(curve["intersection"], append=0)
    centres = (curve["threshold"] + 1 + np.append(curve["threshold"].to_numpy()[1:], 255)) / 2
    table = pd.DataFrame({"predicted": centres, "rate": marked / np.maximum(pixels, 1), "pixels": pixels})
    return table[pixels > 0].reset_index(drop=True)
