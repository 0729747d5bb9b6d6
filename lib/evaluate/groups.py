"""Error rates by group, each with its count and a 95 % interval, and a test whether groups differ at all.

Regions of one image share its difficulty, so intervals take the image as the unit: the variance of a rate is the
cluster-robust (linearised) one, and Wilson's interval is computed at the effective number of observations it
implies. Sources: Wilson (1927), J. Am. Stat. Assoc. 22; Garwood (1936), Biometrika 28; Kish (1965), Survey Sampling
(design effect).
"""

import numpy as np
import pandas as pd
from scipy.stats import chi2, norm, t

from lib.data.attributes import named

Z = float(norm.ppf(0.975))
POSITIONS = [f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")]
SIZES = {0.005: "up to 0.5%", 0.01: "0.5 to 1%", 0.02: "1 to 2%", 0.05: "2 to 5%", 0.1: "5 to 10%", 0.2: "10 to 20%",
         0.4: "20 to 40%", 1.0: "above 40%"}  # fmt: skip
ASPECTS = {0.8: "tall", 1.25: "about square", np.inf: "wide"}
AGREEMENTS = {0.25: "IoU up to 0.25", 0.5: "0.25 to 0.5", 0.75: "0.5 to 0.75", 0.999: "0.75 to 1", 1.0: "identical"}
VOTES = {1: "1 annotator", 2: "2 annotators", 3: "3 annotators", 4: "4 or more"}
GROUP_COLUMNS = ["group", "n", "images", "rate", "low", "high"]


def with_bins(table: pd.DataFrame) -> pd.DataFrame:
    """Add what figures group by to a table of `lib.evaluate.analysis`, as ordered categories, null where the value is.

    Both tables get `shape` (of the image) and `agreed`; regions also `size`, `place`, `voted` and the booleans
    `missed` and `false`; images also `abs_error` (of the score, MOS).
    """
    table = table.assign(shape=_cut(table["aspect"], ASPECTS), agreed=_cut(table["agreement"], AGREEMENTS))
    if "side" not in table:
        return table.assign(abs_error=table["score_error"].abs())
    table = table.assign(missed=table["status"] == "missed", false=table["status"] == "false")
    voted = table["votes"].map(VOTES).astype(pd.CategoricalDtype(list(VOTES.values()), ordered=True))
    return table.assign(size=_cut(table["area"], SIZES), place=positions(table), voted=voted)


def positions(regions: pd.DataFrame) -> pd.Series:
    """The third of the frame that holds each region's centre (`x`, `y` in 0..1), as one of POSITIONS."""
    cell = [(regions[axis] * 3).astype(int).clip(0, 2) for axis in ("y", "x")]
    names = [POSITIONS[3 * row + column] for row, column in zip(*cell, strict=True)]
    return pd.Series(pd.Categorical(names, POSITIONS, ordered=True), index=regions.index)


def _cut(values: pd.Series, bins: dict) -> pd.Series:
    """Upper bound (inclusive) -> name."""
    return pd.cut(values.astype(float), [-np.inf, *bins], labels=list(bins.values()))


def one_row_a_part(table: pd.DataFrame, column: str, separator: str = "+") -> pd.DataFrame:
    """Split a column of joined names ("warped+melted"): the row comes once for each different name in it.

    Gaps have the names of `lib.data.attributes.named`. A table without the column comes back as it is.
    """
    if column not in table:
        return table
    parts = [sorted({part.strip() for part in name.split(separator)} - {""}) for name in named(table[column])]
    return table.assign(**{column: parts}).explode(column)


def by_group(table: pd.DataFrame, column: str, value: str, unit: str = "id", min_n: int = 5, seed: int = 0):
    """Mean of `value` (booleans: a share, integers: events) for each group of `column`, with a 95 % interval.

    Args:
        table: rows of images or regions; `unit` names the column, or the index, with the image's id.
        min_n: groups of fewer images are left out and named in `attrs["dropped"]`.
    Returns a DataFrame of rows `group`, `n` (rows), `images`, `rate`, `low`, `high`: categories in their order,
    others by rate. `attrs`: `overall`, `p` (of no difference, see `difference`), `dropped`, `column`, `ordered`
    (categories), `absent` (the table has no such column, or only nulls in it; then there is no row).
    """
    absent = column not in table or bool(table[column].isna().all())
    table = table.iloc[:0].assign(**{column: None}) if absent else table.dropna(subset=[column, value])
    table = table.assign(_unit=table[unit] if unit in table.columns else table.index)
    sizes = table.groupby(column, observed=True)["_unit"].nunique()
    shown = table[table[column].map(sizes).astype(float) >= min_n]
    rows = [(group, *_mean(part[value], part["_unit"])) for group, part in shown.groupby(column, observed=True)]
    groups = pd.DataFrame(rows, columns=GROUP_COLUMNS)
    ordered = isinstance(table[column].dtype, pd.CategoricalDtype)
    if not ordered:
        groups = groups.sort_values("rate", ascending=False, ignore_index=True, kind="stable")
    groups.attrs.update(
        overall=float(table[value].mean()) if len(table) else None,
        p=difference(shown[column], shown[value], shown["_unit"], seed),
        dropped=[f"{group} ({size})" for group, size in sizes.items() if 0 < size < min_n],
        column=column,
        kind=kind_of(table[value]) if len(table) else "share",
        ordered=ordered,
        absent=absent,
    )
    return groups


def _mean(values: pd.Series, units: pd.Series) -> tuple:
    """(n, images, mean, low, high); `units` are the images the values belong to."""
    totals, counts = _per_image(values, units)
    return len(values), len(counts), *ratio(totals, counts, kind_of(values))[:3]


def kind_of(values: pd.Series) -> str:
    """Booleans are a "share", whole numbers a "count" of events, others a quantity of which the "mean" is taken."""
    return "share" if values.dtype == bool else "count" if pd.api.types.is_integer_dtype(values) else "mean"


def _per_image(values: pd.Series, units: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    grouped = pd.Series(values.to_numpy(float)).groupby(units.to_numpy())
    return grouped.sum().to_numpy(), grouped.size().to_numpy(float)


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
    # Where every image agrees the residuals say nothing about chance: then images count, not regions.
    effective = min(rate * (1 - rate) / variance, n) if variance > 0 else images
    # Agresti and Coull's shrunken rate keeps the variance above zero at 0 and 1.
    shrunken = (rate * effective + Z**2 / 2) / (effective + Z**2)
    return rate, *wilson(rate, effective), shrunken * (1 - shrunken) / (effective + Z**2)


def garwood(rate: float, n: float) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson rate seen over n units; above zero also where nothing was seen."""
    low = chi2.ppf(0.025, 2 * rate * n) / 2 / n if rate > 0 else 0.0
    return float(low), float(chi2.ppf(0.975, 2 * (rate * n + 1)) / 2 / n)


def wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate seen in n independent observations."""
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * np.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    # At 0 and 1 the bounds are exact, rounding aside.
    return 0.0 if rate == 0 else float(centre - reach), 1.0 if rate == 1 else float(centre + reach)


def difference(groups: pd.Series, values: pd.Series, units: pd.Series, seed: int = 0, n: int = 1999) -> float:
    """p of the hypothesis that the groups have one mean, by permuting the values; NaN below two groups.

    The sum of squares between groups is divided by the design effect (at least 1) of values that share an image
    (`units`), as Rao and Scott (1984), Ann. Stat. 12, do with chi-squared. What has its index several times counts
    for several groups (`one_row_a_part`): it is one value, which moves as a whole.
    """
    codes, names = pd.factorize(groups)
    if len(names) < 2:
        return np.nan
    sizes, once = np.bincount(codes), ~values.index.duplicated()
    row_of = pd.factorize(values.index)[0]  # of a part, the value it belongs to
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


def score_calibration(images: pd.DataFrame, bins: int = 8) -> pd.DataFrame:
    """Mean true MOS in bins of equally many predicted ones: `predicted` and `rate` (means), `low`, `high`, `n`."""
    scores = images[["predicted_mos", "true_mos"]].dropna()
    bins = min(bins, len(scores) // 5)
    if bins < 1:
        return pd.DataFrame(columns=["predicted", "rate", "low", "high", "n"])
    bin_of = pd.qcut(scores["predicted_mos"].rank(method="first"), bins, labels=False)
    rows = []
    for _, part in scores.groupby(bin_of):
        rate, low, high, _ = ratio(part["true_mos"].to_numpy(), np.ones(len(part)), "mean")
        rows.append((part["predicted_mos"].mean(), rate, max(low, 1), min(high, 5), len(part)))
    return pd.DataFrame(rows, columns=["predicted", "rate", "low", "high", "n"])


def heat_calibration(curve: pd.DataFrame) -> pd.DataFrame:
    """Share of pixels that any annotator marked, by predicted value: rows `predicted` (0..255), `rate`, `pixels`.

    `curve` is `lib.metrics.threshold_curve`: pixels between two thresholds are the difference of their counts, so no
    heatmap is read again.
    """
    curve = curve.sort_values("threshold")
    pixels = -np.diff(curve["predicted_pixels"], append=0)
    marked = -np.diff(curve["intersection"], append=0)
    centres = (curve["threshold"] + 1 + np.append(curve["threshold"].to_numpy()[1:], 255)) / 2
    table = pd.DataFrame({"predicted": centres, "rate": marked / np.maximum(pixels, 1), "pixels": pixels})
    return table[pixels > 0].reset_index(drop=True)
