"""What a notebook puts on its page and into a paper: figures, formatted tables and sentences."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from pandas.api.types import is_integer_dtype, is_numeric_dtype
from pandas.io.formats.style import Styler

from lib.errors import InputError
from lib.evaluation_file import FIGURE_NAMES
from lib.files import writing

LOWER_IS_BETTER = ("rmse_mos",)
FORMATS = {Figure: ("png", "pdf", "svg"), Styler: ("csv", "tex")}


def show(fig: Figure, path: str | Path | None = None, formats: Sequence[str] = ()) -> None:
    """Show a figure in the cell's output, and `save` it; its photographs as JPEG, or a page would take megabytes."""
    if path is not None:
        save(fig, path, formats)
    kind = "jpeg" if any(ax.images for ax in fig.axes) else "png"
    options = {"quality": 80, "subsampling": 0} if kind == "jpeg" else {}
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, dpi="figure", pil_kwargs=options)
    plt.close(fig)  # or the notebook would draw it again at the end of the cell
    display(Image(buffer.getvalue(), format=kind))


def save(what: Figure | Styler, path: str | Path, formats: Sequence[str]) -> None:
    """Write a figure or a table for a paper, once in each format.

    Args:
        what: a figure, or a table that `table` or `figures_table` gave.
        path: of the files without an ending.
        formats: "png", "pdf", "svg" are those of figures, "csv" and "tex" (LaTeX, with booktabs) those of tables;
            a figure takes no notice of a table's, and the other way round.
    Raises InputError for an unknown format, and when the folder cannot be written.
    """
    if unknown := set(formats).difference(*FORMATS.values()):
        known = ", ".join(name for names in FORMATS.values() for name in names)
        raise InputError(f"{', '.join(sorted(unknown))}: unknown format; use {known}")
    kind, path = Figure if isinstance(what, Figure) else Styler, Path(path)
    with writing(path.parent, "choose a folder you may write"):
        for name in [name for name in FORMATS[kind] if name in formats]:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = path.with_name(f"{path.name}.{name}")
            if kind is Figure:
                what.savefig(target, dpi=200)
            else:
                target.write_text(_latex(what) if name == "tex" else _plain(what).to_csv(), encoding="utf-8")


def _plain(styler: Styler) -> pd.DataFrame:
    """A table's frame without an index that nobody sees."""
    return styler.data.set_index(styler.data.columns[0]) if styler.hide_index_[0] else styler.data


def _latex(styler: Styler) -> str:
    caption = re.sub(r"([%&_#$])", r"\\\1", styler.caption or "")
    return _plain(styler).to_latex(escape=True, float_format="%.3f", na_rep="-", caption=caption or None)


def say(*paragraphs: str) -> None:
    """Show sentences as prose. Lines within a paragraph become a list; Markdown's own characters are escaped."""
    texts = []
    for paragraph in paragraphs:
        lines = re.sub(r"([\\`*_<$\[#~|])", r"\\\1", paragraph).splitlines()
        texts.append("\n".join(f"- {line}" for line in lines) if len(lines) > 1 else "".join(lines))
    if any(texts):
        display(Markdown("\n\n".join(texts)))


def table(frame: pd.DataFrame, caption: str = "", formats: Mapping | None = None) -> Styler:
    """A formatted table without its index; the last expression of a cell shows it.

    Whole numbers get thousands separators, other numbers three digits. `formats` {column: format} overrides that.
    """
    numbers = [name for name, column in frame.items() if is_numeric_dtype(column)]
    default = {name: "{:,.0f}" if is_integer_dtype(frame[name]) else "{:.3g}" for name in numbers}
    styler = frame.style.format(default | dict(formats or {}), na_rep="-", escape="html").hide(axis="index")
    words = [f".col{k}" for k, name in enumerate(frame) if name not in numbers]
    left = [{"selector": ", ".join(words), "props": "text-align: left"}] if words else []
    return styler.set_caption(caption).set_table_styles(left)


def figures_table(rows: Mapping[str, Mapping], caption: str = "", bold: bool = True) -> Styler:
    """A table of the challenge's figures with their intervals below.

    Args:
        rows: {row's name: {figure: value}}; under "intervals" a row may have {figure: (low, high)}. Figures are the
            keys of FIGURE_NAMES; undefined ones are shown as a dash.
        bold: write the best value of each column in bold.
    """
    names = [name for name in FIGURE_NAMES if any(name in figures for figures in rows.values())]
    values = pd.DataFrame({row: {name: figures.get(name) for name in names} for row, figures in rows.items()})
    values = values.reindex(names).T.astype(float)
    text = values.map(lambda value: "-" if pd.isna(value) else f"{value:z.3f}")
    for row, figures in rows.items():
        for name, interval in (figures.get("intervals") or {}).items():
            if name in text and not pd.isna(values.at[row, name]) and interval and not pd.isna(interval[0]):
                text.at[row, name] += f" ({interval[0]:z.2f} to {interval[1]:z.2f})"
    best = values.apply(lambda column: column == (column.min() if column.name in LOWER_IS_BETTER else column.max()))
    weights = (best & (bold and len(values) > 1)).map(lambda found: "font-weight: bold" if found else "")
    text.columns = weights.columns = [FIGURE_NAMES[name] for name in names]
    narrow = [{"selector": "td", "props": "white-space: nowrap"}]
    narrow += [{"selector": "th.row_heading", "props": "max-width: 16em"}]
    styler = text.style.apply(lambda _: weights, axis=None).set_caption(caption).set_table_styles(narrow)
    styler = styler.format(lambda cell: re.sub(r" \((.*)\)", r"<br><small>\1</small>", cell))
    # Long names of runs may break behind an underscore.
    return styler.format_index(lambda name: html.escape(name).replace("_", "_<wbr>"), axis="index")


def notes_on(rows: Mapping[str, Mapping]) -> list[str]:
    """A sentence for each row of a table with undefined or special figures, from their "notes"."""
    return [f"{name}: {'; '.join(figures['notes'])}." for name, figures in rows.items() if figures.get("notes")]


def figure_in_words(name: str, figures: Mapping, figure: str = "final_score") -> str:
    """A figure of a row of `figures_table` with its interval: "full: 0.768 (0.741 to 0.795)"."""
    low, high = figures["intervals"][figure]
    unknown = low is None or np.isnan(low)
    span = "too few images for an interval" if unknown else f"{low:.3f} to {high:.3f}"
    return f"{name}: {figures[figure]:.3f} ({span})"


def difference_in_words(first: str, second: str, found: Mapping) -> str:
    """A difference with its interval: "no significant difference: full - lora = 0.000 (-0.013 to +0.012)".

    `found` has `difference`, `low` and `high`, which are None or NaN without an interval.
    """
    said, low, high = f"{first} - {second} = {_signed(found['difference'])}", found["low"], found["high"]
    if low is None or np.isnan(low):
        return f"{said} (too few images for an interval)"
    significant = low > 0 or high < 0
    return ("" if significant else "no significant difference: ") + f"{said} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}"
