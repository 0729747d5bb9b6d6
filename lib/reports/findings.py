"""What the tables say, in one sentence each, computed from the data and careful about chance."""

import numpy as np
import pandas as pd
from scipy.stats import linregress, t

from lib.metrics.setting import Setting

ALPHA = 0.01  # a report asks many questions; at 5 % one in twenty answers would be noise


def overall(images: pd.DataFrame, setting: Setting) -> str:
    """What is found, missed and invented over all images (`lib.evaluate.analysis.image_errors`)."""
    n_true, hit, missed = (int(images[name].sum()) for name in ("n_true", "hit", "missed"))
    n_predicted, false = int(images["n_predicted"].sum()), int(images["false"].sum())
    flawless = int(((images["missed"] == 0) & (images["false"] == 0)).sum())
    parts = [f"With {setting}, the model finds {_share(hit, n_true, 'true regions')} and misses {missed:,}"]
    parts.append(
        f"{_share(false, n_predicted, 'predicted regions')} are false alarms" if n_predicted else "it predicts none"
    )
    parts.append(f"{_share(flawless, len(images), 'images')} have neither")
    return "; ".join(parts) + "."


def groups(table: pd.DataFrame, what: str, by: str, unit: str | None = None) -> str:
    """Whether the groups of `lib.evaluate.groups.by_group` differ, and which is worst.

    `what` names the rate ("missed regions"), `by` the grouping ("size"); `unit` follows means, which are no shares.
    """
    if table.attrs["absent"]:
        return f"{_start(what)} by {by}: this data set does not tell."
    left_out = f" (Too few to show: {', '.join(table.attrs['dropped'])}.)" if table.attrs["dropped"] else ""
    if len(table) < 2:
        return f"{_start(what)} by {by}: there are not two groups large enough to compare.{left_out}"
    worst, best = table.loc[table["rate"].idxmax()], table.loc[table["rate"].idxmin()]
    span = f"{_interval(worst, unit)} for {worst['group']} and {_interval(best, unit)} for {best['group']}"
    if not table.attrs["p"] < ALPHA:
        return f"{_start(what)}: no dependence on {by} beyond chance, {span} ({_p(table.attrs['p'])}).{left_out}"
    return f"{_start(what)} depend on {by}: {span} ({_p(table.attrs['p'])}).{left_out}"


def words(table: pd.DataFrame, what: str, unit: str | None = None) -> str:
    """Which words of `lib.evaluate.words.prompt_words` go with more, or fewer, errors beyond chance."""
    if table.empty:
        return f"{_start(what)} by words: no word is in enough prompts."
    found = table[table["q"] < ALPHA]
    if found.empty:
        best = table.iloc[0]
        nearest = (
            f"the nearest is '{best['group']}', {_interval(best, unit)} against {_value(best['rest'], unit)} without it"
        )
        return f"{_start(what)}: none of {len(table)} words stands out beyond chance; {nearest} (q = {best['q']:.2f})."
    said = [
        f"'{row.group}' ({_value(row.rate, unit)} against {_value(row.rest, unit)})"
        for row in found.head(4).itertuples()
    ]
    verb = "stands" if len(found) == 1 else "stand"
    return f"{_start(what)}: {len(found)} of {len(table)} words {verb} out beyond chance: {', '.join(said)}."


def scores(images: pd.DataFrame) -> str:
    """Bias, spread and calibration of the score."""
    known = images[["predicted_mos", "true_mos", "score_error"]].dropna()
    if len(known) < 3 or known["predicted_mos"].nunique() < 2:
        return "There are too few different scores to judge their calibration."
    error = known["score_error"]
    line = linregress(known["predicted_mos"], known["true_mos"])
    spread = float(t.ppf(0.975, len(known) - 2) * line.stderr)
    low, high = line.slope - spread, line.slope + spread
    reach = float(t.ppf(0.975, len(error) - 1) * error.std() / np.sqrt(len(error)))
    bias = f"{error.mean():+.2f} MOS ({error.mean() - reach:+.2f} to {error.mean() + reach:+.2f})"
    kind = "about right on average" if abs(error.mean()) <= reach else "too kind" if error.mean() > 0 else "too harsh"
    span = "too narrow a range" if low > 1 else "too wide a range" if high < 1 else "the right range, within chance"
    within = float((error.abs() <= 0.5).mean())
    return (
        f"Scores are {kind}: mean error {bias}, {within:.0%} within 0.5 MOS of the label; they span {span} "
        f"(one predicted MOS more means {line.slope:.2f} true MOS more, {low:.2f} to {high:.2f})."
    )


def threshold(curve: pd.DataFrame, chosen: int) -> str:
    """What the next useful thresholds below and above would change (`lib.metrics.threshold_curve`)."""
    here = curve.iloc[(curve["threshold"] - chosen).abs().argmin()]
    if curve["f1_score"].isna().all():
        false = int(here["n_predicted"] - here["hit_predicted"])
        return (
            f"No label has a region, so F1 is undefined; at {here['threshold']:.0f} there are {false:,} false alarms."
        )
    best = curve.loc[curve["f1_score"].idxmax()]
    said = []
    for name, factor in (("Halving", 0.5), ("Raising", 1.5)):
        other = curve.iloc[(curve["threshold"] - min(255, factor * chosen)).abs().argmin()]
        if other["threshold"] == here["threshold"]:
            continue
        hits, false = (_difference(other, here, *names) for names in (("hit_true",), ("n_predicted", "hit_predicted")))
        verb = "Halving it" if name == "Halving" else "Raising it by half"
        said.append(f"{verb} to {other['threshold']:.0f} changes {hits:+,} hits and {false:+,} false alarms.")
    first = f"At {here['threshold']:.0f} F1 is {here['f1_score']:.3f}; the best on this split is {best['f1_score']:.3f}"
    return " ".join([f"{first} at {best['threshold']:.0f}.", *said])


def _difference(other, here, plus: str, minus: str = "") -> int:
    values = [row[plus] - (row[minus] if minus else 0) for row in (other, here)]
    return int(values[0] - values[1])


def heat(table: pd.DataFrame, chosen: int) -> str:
    """How often pixels about the threshold were really marked (`lib.evaluate.groups.heat_calibration`)."""
    if table.empty:
        return "No pixel has a predicted value above 0."
    near = table.iloc[(table["predicted"] - chosen).abs().argmin()]
    top = table.iloc[-1]
    return (
        f"Of the pixels predicted at about {near['predicted']:.0f}, near the threshold, annotators marked "
        f"{near['rate']:.0%}; of those at about {top['predicted']:.0f}, {top['rate']:.0%}."
    )


def suspects(table: pd.DataFrame) -> str:
    """How many labels look doubtful (`lib.evaluate.analysis.suspected_label_errors`)."""
    if table.empty:
        return "No label contradicts a confident prediction."
    counts = table["reason"].value_counts()
    said = ", ".join(f"{count} x {reason}" for reason, count in counts.items())
    return f"{table['id'].nunique()} images deserve a second look at their label: {said}. Judge them in notebook 5."


def _share(part: int, whole: int, name: str) -> str:
    return f"{part:,} of {whole:,} {name} ({part / whole:.0%})" if whole else f"0 of 0 {name}"


def _interval(row, unit: str | None) -> str:
    # Between numbers of which one may be negative a dash would be read as a minus.
    span = f"{_value(row['low'], unit and '')} to {_value(row['high'], unit and '')}"
    return f"{_value(row['rate'], unit)} ({span}, n = {row['n']:,})"


def _value(value: float, unit: str | None) -> str:
    """A share in per cent, or a number with its unit, which may be empty."""
    return f"{value:.0%}" if unit is None else f"{value:.2f} {unit}".rstrip()


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _start(text: str) -> str:
    return text[0].upper() + text[1:]
