"""What a notebook shows besides charts: formatted tables, figures with the sentence that sums them up."""

import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

FIGURE_NAMES = {
    "final_score": "Final score", "f1_score": "F1", "precision": "Precision", "recall": "Recall", "giou": "GIoU",
    "plcc": "PLCC", "srcc": "SRCC", "krcc": "KRCC", "rmse_mos": "RMSE (MOS)",
}  # fmt: skip


def figures_table(rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None, caption="") -> Styler:
    """A formatted table of challenge figures: {row name: {figure: value}}, the best value of a column in bold.

    `intervals` {row name: {figure: (low, high)}} are shown behind the value. Undefined figures are a dash.
    """
    names = [name for name in FIGURE_NAMES if any(name in figures for figures in rows.values())]
    values = pd.DataFrame({row: [figures.get(name) for name in names] for row, figures in rows.items()}, names, float).T
    text = values.map(lambda value: "-" if pd.isna(value) else f"{value:.3f}")
    for row, found in (intervals or {}).items():
        for name, interval in found.items():
            known = row in text.index and name in text and not pd.isna(values.at[row, name])
            if known and interval and not pd.isna(interval[0]):
                text.at[row, name] += f" ({interval[0]:.3f} to {interval[1]:.3f})"
    best = values.eq(values.max()).assign(**{n: values[n].eq(values[n].min()) for n in ("rmse_mos",) if n in values})
    bold = best.map(lambda is_best: "font-weight: bold" if is_best and len(values) > 1 else "")
    text.columns = bold.columns = [FIGURE_NAMES[name] for name in names]
    return text.style.apply(lambda _: bold, axis=None).set_caption(caption)


def plain_table(table: pd.DataFrame, caption="", formats: Mapping | None = None) -> Styler:
    """A formatted table without its index: whole numbers with thousands, others with three digits, text as it is."""
    default = {
        name: "{:,.0f}".format if pd.api.types.is_integer_dtype(column) else "{:.3g}".format
        for name, column in table.items()
        if pd.api.types.is_numeric_dtype(column)
    }
    styler = table.style.format(default | dict(formats or {}), na_rep="-", escape="html").hide(axis="index")
    return styler.set_caption(caption).set_properties(**{"text-align": "left"}, subset=_text_columns(table))


def _text_columns(table: pd.DataFrame) -> list:
    return [name for name, column in table.items() if not pd.api.types.is_numeric_dtype(column)]


def show(fig: Figure | None, says: str, path=None) -> None:
    """End a section of a notebook: draw its figure (None: there is none), save it as `path`, say what it shows."""
    if fig is not None:
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            fig.savefig(path)
        display(fig)
        plt.close(fig)  # or the notebook would draw it a second time at the end of the cell
    say(says)


def say(*sentences: str) -> None:
    """Sentences as prose that wraps on a page; characters that Markdown would take for its own are escaped."""
    display(Markdown(" ".join(re.sub(r"([\\`*_<$\[#~|])", r"\\\1", text) for text in sentences)))
