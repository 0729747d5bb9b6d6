"""What each parameter of a sweep did to the final score.

Two runs that differ in one parameter alone show what it did; a grid has several such pairs, and their mean counts.
All runs are resampled on the same images (`lib.metrics.statistics.resample`), so the interval is that of the paired
difference. It tells the chance of these test images, not that of training: for that, give the sweep several `seed`s.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.config import differing
from lib.metrics.statistics import Resampled, tested_together

FIGURE = "final_score"
SHOWN = 3  # parameters that change together and are named in a title; the others are counted


@dataclass(frozen=True)
class Factor:
    """Parameters whose values change together from run to run; mostly it is one."""

    names: tuple[str, ...]
    levels: tuple[str, ...]  # their values as text: numbers from low to high, others as they come
    level_of: dict[str, int]  # run -> position in `levels`

    @property
    def title(self) -> str:
        more = len(self.names) - SHOWN
        return ", ".join([*self.names[:SHOWN], *([f"{more} more"] if more > 0 else [])])


def factors(configs: Mapping[str, dict]) -> list[Factor]:
    """The parameters that differ between runs ({run: every parameter}); those that always change together as one."""
    together = {}
    for name in differing(configs):
        values = [repr(config[name]) for config in configs.values()]
        together.setdefault(tuple(values.index(value) for value in values), []).append(name)
    return [_factor(names, configs) for names in together.values()]


def _factor(names: list[str], configs: Mapping[str, dict]) -> Factor:
    values = {run: tuple(config[name] for name in names) for run, config in configs.items()}
    levels = list(dict.fromkeys(values.values()))
    if all(isinstance(level[0], int | float) for level in levels):
        levels.sort(key=lambda level: level[0])
    texts = [[str(value) or "none" for value in level[:SHOWN]] for level in levels]
    if len(names) > 1:
        texts = [[f"{name} {text}" for name, text in zip(names, level, strict=False)] for level in texts]
    return Factor(tuple(names), tuple(map(", ".join, texts)), {run: levels.index(at) for run, at in values.items()})


def effects(found: list[Factor], resampled: Mapping[str, Resampled]) -> pd.DataFrame:
    """A row for each value of each factor against its first one, where runs differ in that alone.

    Columns `parameter`, `value`, `instead_of`, `pairs` (of runs), and of the final score `difference`, `low`, `high`
    (95 %), `p` (two-sided); intervals and p hold for all rows at once: the more is looked at, the more chance finds.
    """
    rows, draws = [], []
    for factor in found:
        others = [other for other in found if other is not factor]
        for level in range(1, len(factor.levels)):
            if pairs := _pairs(factor, level, others):
                runs = [(resampled[a], resampled[b]) for a, b in pairs]
                mean = float(np.mean([b.values[FIGURE] - a.values[FIGURE] for a, b in runs]))
                rows.append((factor.title, factor.levels[level], factor.levels[0], len(pairs), mean))
                draws.append(sum(b.draws[FIGURE] - a.draws[FIGURE] for a, b in runs) / len(runs))
    table = pd.DataFrame(rows, columns=["parameter", "value", "instead_of", "pairs", "difference"])
    if table.empty:
        return table.assign(low=[], high=[], p=[])
    return table.assign(**tested_together(table["difference"].to_numpy(), np.column_stack(draws)))


def _pairs(factor: Factor, level: int, others: list[Factor]) -> list[tuple[str, str]]:
    """(run at the first level, run at `level`) wherever all other factors are equal."""
    first, second = ([run for run, at in factor.level_of.items() if at == wanted] for wanted in (0, level))
    return [
        (a, b)
        for a, b in itertools.product(first, second)
        if all(other.level_of[a] == other.level_of[b] for other in others)
    ]
