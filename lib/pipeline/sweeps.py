"""Sweeps: the rows of a plan's table, and its steps repeated for each of them.

    sweep:                                  # a table, a row a run ...
      - {lora_rank: 2, score_loss: mse}
      - {lora_rank: 8, score_loss: mse, experiment_name: wide}
    sweep: {lora_rank: [2, 8], lr: [1e-4, 1e-3]}    # ... or a grid: a run for every combination

A row's values go to every step with `each_row: true` whose notebook has the parameter. Its run is called
`<plan>_lora_rank2_score_loss-mse`, after the values, so a row keeps its name (and what it trained) when others come or
go; `experiment_name` gives it another one.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One run of a sweep: `label` is its name in steps and tables, `experiment` that of its folder."""

    label: str
    experiment: str
    values: dict  # by parameter, `experiment_name` included


def read_rows(plan: str, sweep: list | dict) -> list[Row]:
    """The rows of a table or a grid; `plan` begins the names of runs that have none of their own."""
    if isinstance(sweep, dict):
        sweep = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    return [_row(plan, values) for values in sweep]


def _row(plan: str, values: dict) -> Row:
    if "experiment_name" in values:
        return Row(values["experiment_name"], values["experiment_name"], values)
    label = "_".join(_named(name, value) for name, value in values.items())
    return Row(label, f"{plan}_{label}", values | {"experiment_name": f"{plan}_{label}"})


def _named(name: str, value) -> str:
    """'lr0.001', 'score_loss-mse', 'ema-true'; what does not suit a file name becomes a dash."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{name}{value}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{name}-{re.sub(r'[^A-Za-z0-9.+_-]+', '-', text).strip('-')}"


def repeated(entries: list[dict], rows: list[Row]) -> Iterator[tuple[int, dict, Row | None]]:
    """(number of the plan's entry, entry, row): entries with `each_row` once for each row, all of a row together."""
    numbered = enumerate(entries, 1)
    for each_row, group in itertools.groupby(numbered, lambda pair: pair[1].get("each_row", False)):
        group = list(group)
        for row in rows if each_row else [None]:
            yield from ((number, entry, row) for number, entry in group)


def name_of(entry: dict, row: Row | None = None) -> str:
    """A step's name: its `name`, by default its notebook's, with the label of its row."""
    name = entry.get("name", entry["notebook"])
    return f"{name}_{row.label}" if row else name
