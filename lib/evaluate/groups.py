"""Error rates of groups, each with its count and a 95 % interval, and a test whether the groups differ at all.

Regions of one image share its difficulty, so the image is the unit: intervals are computed at the effective number of
observations that the cluster-robust (linearised) variance of a rate implies, and in the test the sums of images vary.
Sources: Wilson (1927), J. Am. Stat. Assoc. 22 (score interval); Kish (1965), Survey Sampling (design effect); Westfall
and Young (1993), Resampling-Based Multiple Testing.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import norm, t

from lib.data.attributes import named
from lib.metrics.statistics import SIGNIFICANT

Z = float(norm.ppf(0.975))
# Function words, and what every prompt of a generator says.
STOP_WORDS = frozenset([
    "about", "above", "after", "all", "also", "and", "are", "behind", "below", "beside", "between", "both", "but",
    "down", "for", "from", "has", "have", "her", "his", "image", "into", "its", "near", "next", "off", "other", "out",
    "over", "photo", "picture", "she", "some", "that", "the", "their", "them", "there", "they", "this", "toward",
    "towards", "under", "very", "was", "were", "which", "while", "who", "with", "without", "you", "your",
])  # fmt: skip


def by_group(table: pd.DataFrame, column: str, value: str, **options) -> pd.DataFrame:
    """`by_groups` of a single question."""
    return by_groups({"": (table, column, value)}, **options)[""]


def by_groups(questions: Mapping[str, tuple], min_n: int = 5, n: int = 1999, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Mean of a value in each group of a column, and whether the groups differ: {name of a question: its groups}.

    Args:
        questions: {name: (table, column, value)}, asked together. `table` has rows of images (index `id`) or regions
            (column `id`). Categories in `column` keep their order; other groups are ordered by rate, and their text may
            join several names by "+" ("warped+melted"): the row then counts for each. In `value` booleans give a
            share, whole numbers events per row, other numbers a mean.
        min_n: groups of fewer images are left out.
        n: shufflings of the errors, see `_strayed`.
    Returns tables with rows `group`, `n` (rows), `images`, `rate`, `low`, `high` (95 %), `z` (how far the errors of the
        group are from those of all, in standard errors) and `p`: how often chance alone takes any group
        of any of the questions as far. `attrs` holds `overall` (the rate of all rows), `p` (the least of the groups;
        NaN below two), `asked` (so many questions have two groups), `dropped` (names of the groups left out), `kind`
        ("share", "count" or "mean"), `ordered` (whether the groups are categories) and `absent` (whether the table has
        no such column or only nulls in it).
    """
    found, strayed = {}, {}
    for name, question in questions.items():
        found[name], members, errors, units = _rates(*question, min_n)
        if len(found[name]) > 1:
            strayed[name] = _strayed(members, errors, units, n, seed)
    furthest = np.max([np.abs(z).max(axis=1) for z in strayed.values()], axis=0) if strayed else np.zeros(1)
    for name, groups in found.items():
        z = strayed[name][0] if name in strayed else np.full(len(groups), np.nan)
        p = np.where(np.isnan(z), np.nan, (furthest[:, None] >= np.abs(z) - 1e-9).mean(axis=0))
        groups = groups.assign(z=z, p=p)
        groups.attrs.update(p=p.min(initial=np.inf) if name in strayed else np.nan, asked=len(strayed))
        if not groups.attrs["ordered"]:
            groups = groups.sort_values("rate", ascending=False, ignore_index=True, kind="stable")
        found[name] = groups
    return found


def _rates(table: pd.DataFrame, column: str, value: str, min_n: int) -> tuple:
    """The groups of `by_groups` but for `z` and `p`; which rows belong to them (0/1, sparse [groups, rows]); and of all
    rows the errors (value less mean) and the number of the image, both [rows]."""
    absent = column not in table or bool(table[column].isna().all())
    table = table.iloc[:0].assign(**{column: None}) if absent else table.dropna(subset=[value])
    ordered = isinstance(table[column].dtype, pd.CategoricalDtype)
    table = table.dropna(subset=[column]) if ordered else table
    units, values = pd.factorize(table.get("id", table.index))[0], table[value].to_numpy(float)
    kind = "share" if table[value].dtype == bool else "count" if pd.api.types.is_integer_dtype(table[value]) else "mean"
    names = (table[column] if ordered else named(table[column]).map(split_names)).reset_index(drop=True).explode()
    codes, titles = pd.factorize(names, sort=True)
    members = csr_array((np.ones(len(codes)), (codes, names.index)), shape=(len(titles), len(table)))
    rows, kept, dropped = [], [], []
    for number, title in enumerate(titles):
        places = members.indices[members.indptr[number] : members.indptr[number + 1]]
        _, image, counts = np.unique(units[places], return_inverse=True, return_counts=True)
        if len(counts) < min_n:
            dropped.append(f"{title} ({len(counts)})")
            continue
        kept.append(number)
        rate_low_high = interval(np.bincount(image, values[places]), counts, kind)
        rows.append((title, len(places), len(counts), *rate_low_high))
    groups = pd.DataFrame(rows, columns=["group", "n", "images", "rate", "low", "high"])
    overall = float(values.mean()) if len(values) else None
    groups.attrs.update(overall=overall, dropped=dropped, kind=kind, ordered=ordered, absent=absent)
    return groups, members[np.array(kept, int)], values - (overall or 0), units


def _strayed(members: csr_array, errors: np.ndarray, units: np.ndarray, n: int, seed: int) -> np.ndarray:
    """How far the sum of each group's errors is from none, in its standard errors: float [n + 1, groups].

    The first row is what was seen; the others are of errors shuffled among all rows. The standard error takes the sums
    of images as independent. It is that of the group, in which a few images may have many rows, or that of all images
    where it is larger, since of few images none may have an error.
    """
    rng, size, draws = np.random.default_rng(seed), members.sum(axis=1), []
    group, row = members.nonzero()
    pairs, pair_of = np.unique(group * len(errors) + units[row], return_inverse=True)  # a group and an image
    group_of = pairs // len(errors)
    shuffled = errors
    for _ in range(n + 1):
        of_pairs = np.bincount(pair_of, shuffled[row])
        squares = np.bincount(group_of, of_pairs**2)
        of_all = np.square(np.bincount(units, shuffled)).sum() * size / len(errors)
        left = np.maximum(1 - size / len(errors), 1e-9)  # the sum over all rows does not vary
        error = np.sqrt(np.maximum(squares, of_all) * left)
        draws.append(np.bincount(group_of, of_pairs) / np.where(error > 0, error, np.inf))
        shuffled = rng.permutation(errors)
    return np.array(draws)


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
    said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    verdict = "the groups differ" if p < SIGNIFICANT else "no significant difference"
    together = f" for {groups.attrs['asked']} questions at once" if groups.attrs.get("asked", 1) > 1 else ""
    return f"{highest}, {lowest}; {verdict} ({said}{together}){dropped}"


def split_names(text: str) -> list[str]:
    """The different names in joined ones ("warped+melted")."""
    return sorted({part.strip() for part in text.split("+")} - {""})


def interval(totals: np.ndarray, counts: np.ndarray, kind: str = "share") -> tuple[float, float, float]:
    """(rate, low, high) of sum(totals) / sum(counts), one entry an image.

    The 95 % interval is the score interval at the effective number of observations, Wilson's for a "share" and its like
    for a "count" of events that may come several times; of a "mean" Student's.
    """
    n, images = counts.sum(), len(counts)
    rate = float(totals.sum() / n)
    residuals = totals - rate * counts
    variance = float(residuals @ residuals) / n**2 * images / max(images - 1, 1)
    if kind == "mean":
        reach = t.ppf(0.975, images - 1) * np.sqrt(variance) if images > 1 else np.inf
        low = rate - reach if totals.min() < 0 else max(0.0, rate - reach)  # what is never negative has no such mean
        return rate, low, rate + reach
    share = float(kind == "share")
    spread = rate * (1 - share * rate)  # of one observation; that of a count is its rate
    # Where all images agree, the residuals say nothing about chance; then images count, not regions.
    chance = Z**2 / (min(spread / variance, n) if variance > 0 else images)
    centre = (rate + chance / 2) / (1 + share * chance)
    reach = np.sqrt(chance * spread + chance**2 / 4) / (1 + share * chance)
    # At 0 and 1 the bounds are exact, rounding aside.
    return rate, 0.0 if rate == 0 else float(centre - reach), 1.0 if share and rate == 1 else float(centre + reach)


def prompt_words(prompts: pd.Series) -> pd.Series:
    """The different words of each prompt (of three letters and more, without STOP_WORDS), joined by + for `by_groups`.

    "(none)" stands for a prompt without any.
    """
    words = prompts.str.lower().str.findall(r"[^\W\d_]{3,}")
    return words.map(lambda found: "+".join({*found} - STOP_WORDS) or "(none)")


def score_calibration(images: pd.DataFrame, bins: int = 8) -> pd.DataFrame:
    """Mean true MOS in bins of equally many predicted ones: `predicted` and `rate` (means), `low`, `high`, `n`."""
    scores = images[["predicted_mos", "true_mos"]].dropna()
    rows, bins = [], min(bins, len(scores) // 5)
    bin_of = pd.qcut(scores["predicted_mos"].rank(method="first"), bins, labels=False) if bins else None
    for _, part in scores.groupby(bin_of) if bins else ():
        rate, low, high = interval(part["true_mos"].to_numpy(), np.ones(len(part)), "mean")
        rows.append((part["predicted_mos"].mean(), rate, max(low, 1), min(high, 5), len(part)))
    return pd.DataFrame(rows, columns=["predicted", "rate", "low", "high", "n"])
