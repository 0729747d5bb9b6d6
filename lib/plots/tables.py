"""What a notebook shows besides charts: formatted tables, figures with the sentence that sums them up."""

import html
import io
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from lib.files import writing

FIGURE_NAMES = {
    "final_score": "Final score", "f1_score": "F1", "precision": "Precision", "recall": "Recall", "giou": "GIoU",
    "plcc": "PLCC", "srcc": "SRCC", "krcc": "KRCC", "rmse_mos": "RMSE (MOS)",
}  # fmt: skip

SHORT = 24  # letters of a cell that should stay on one line
LARGE = 300_000  # bytes of a picture on a page
NARROW = [
    {"selector": "td", "props": "white-space: nowrap"},
    {"selector": "th.row_heading", "props": "max-width: 16em"},
]


def figures_table(rows: Mapping[str, Mapping], caption="", bold=True) -> Styler:
    """A formatted table of challenge figures: {row name: {figure: value}}, with `bold` the best of each column in bold.

    What a row has as "intervals" {figure: (low, high)} is shown below the values. Undefined figures are a dash.
    """
    names = [name for name in FIGURE_NAMES if any(name in figures for figures in rows.values())]
    values = pd.DataFrame(
        {row: [figures.get(name) for name in names] for row, figures in rows.items()}, index=names, dtype=float
    ).T
    text = values.map(lambda value: "-" if pd.isna(value) else f"{value:.3f}")
    for row, figures in rows.items():
        for name, interval in (figures.get("intervals") or {}).items():
            known = name in text and not pd.isna(values.at[row, name])
            if known and interval and not pd.isna(interval[0]):
                span = f"{interval[0]:.2f}–{interval[1]:.2f}".replace("-", "−")  # short, to leave room for all columns
                text.at[row, name] += f"<br><small>{span}</small>"
    best = values.eq(values.max()).assign(**{n: values[n].eq(values[n].min()) for n in ("rmse_mos",) if n in values})
    return _in_bold(text, best & (bold and len(values) > 1), caption)


def differences_table(rows: Mapping[str, Mapping], caption="") -> Styler:
    """Differences with intervals below: {row name: {figure: (difference, low, high, whether in bold)}}.

    An undefined difference is a dash.
    """
    table = pd.DataFrame.from_dict(rows, orient="index", dtype=object)
    shown = "{:+.3f}<br><small>{:+.2f} to {:+.2f}</small>"
    text = table.map(lambda cell: "-" if pd.isna(cell[0]) else shown.format(*cell[:3]))
    return _in_bold(text, table.map(lambda cell: bool(cell[3])), caption)


def _in_bold(text: pd.DataFrame, where: pd.DataFrame, caption: str) -> Styler:
    """A table of figures (columns as of FIGURE_NAMES) of which some are in bold."""
    weights = where.map(lambda bold: "font-weight: bold" if bold else "")
    text.columns = weights.columns = [FIGURE_NAMES[name] for name in text.columns]
    styler = text.style.apply(lambda _: weights, axis=None).set_caption(caption).set_table_styles(NARROW)
    # Long names of runs may break behind an underscore.
    return styler.format_index(lambda name: html.escape(name).replace("_", "_<wbr>"), axis="index")


def plain_table(table: pd.DataFrame, caption="", formats: Mapping | None = None) -> Styler:
    """A formatted table without its index: whole numbers with thousands, others with three digits, text as it is."""
    default = {
        name: "{:,.0f}".format if pd.api.types.is_integer_dtype(column) else "{:.3g}".format
        for name, column in table.items()
        if pd.api.types.is_numeric_dtype(column)
    }
    words = [k for k, (_, column) in enumerate(table.items()) if not pd.api.types.is_numeric_dtype(column)]
    left = [{"selector": f".col{k}, th.col_heading.col{k}", "props": "text-align: left"} for k in words]
    short = [k for k in words if table.iloc[:, k].astype(str).str.len().max() <= SHORT]
    left += [{"selector": f"td.col{k}", "props": "white-space: nowrap"} for k in short]
    styler = table.style.format(default | dict(formats or {}), na_rep="-", escape="html").hide(axis="index")
    return styler.set_caption(caption).set_table_styles(left)


def show(fig: Figure | None, says: str, folder=None, name: str = "figure.png") -> None:
    """End a section of a notebook: draw its figure (None: there is none), say what it shows.

    With a `folder` the figure is also saved there as `name`.
    """
    if fig is not None:
        buffer = io.BytesIO()
        # Drawn once for page and file; large pictures spend most of their time in compression.
        fig.savefig(buffer, format="png", dpi="figure", pil_kwargs={"compress_level": 4})
        plt.close(fig)  # or the notebook would draw it again at the end of the cell
        display(_for_page(buffer))
        if folder is not None:
            with writing(folder, "choose a run in a folder you may write"):
                Path(folder).mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(buffer.getvalue())
    say(says)


def show_table(table: Styler | None, *says: str) -> None:
    """End a section of a notebook: its table (None: there is none), and sentences."""
    if table is not None:
        display(table)
    say(*says)


def notes_on(rows: Mapping[str, Mapping]) -> list[str]:
    """What `lib.metrics.challenge_figures` notes on figures that are undefined or special: {row name: figures}."""
    return [f"{name}: {note}." for name, figures in rows.items() for note in figures.get("notes", ())]


def _for_page(png: io.BytesIO) -> Image:
    """The picture as it is, or as JPEG when it is large: a page of photographs would take megabytes."""
    if png.getbuffer().nbytes < LARGE:
        return Image(png.getvalue(), format="png")
    jpeg = io.BytesIO()
    with PIL.Image.open(png) as picture:
        picture.convert("RGB").save(jpeg, format="jpeg", quality=90, subsampling=0)
    return Image(jpeg.getvalue(), format="jpeg")


def say(*paragraphs: str) -> None:
    """Sentences as prose that wraps on a page; lines within a paragraph become a list."""
    said = []
    for text in paragraphs:
        # Characters that Markdown would take for its own are escaped.
        lines = re.sub(r"([\\`*_<$\[#~|])", r"\\\1", text).splitlines()
        said.append("\n".join(f"- {line}" for line in lines) if len(lines) > 1 else text and lines[0])
    if any(said):  # or a page has an empty output
        display(Markdown("\n\n".join(said)))
