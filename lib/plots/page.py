"""What a notebook puts on its page: figures, formatted tables and sentences."""

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
from pandas.api.types import is_integer_dtype, is_numeric_dtype
from pandas.io.formats.style import Styler

from lib.files import writing

FIGURE_NAMES = {
    "final_score": "Final score", "f1_score": "F1", "precision": "Precision", "recall": "Recall", "giou": "GIoU",
    "plcc": "PLCC", "srcc": "SRCC", "krcc": "KRCC", "rmse_mos": "RMSE (MOS)",
}  # fmt: skip
LOWER_IS_BETTER = ("rmse_mos",)
SHORT = 24  # letters of a cell that should stay on one line
LARGE = 300_000  # bytes of a picture on a page


def show(fig: Figure, folder: str | Path | None = None, name: str = "figure.png") -> None:
    """Show a figure in the cell's output; with a `folder` also save it there as the PNG `name`.

    Raises InputError when the folder cannot be written.
    """
    buffer = io.BytesIO()
    # Large pictures spend most of their time in compression.
    fig.savefig(buffer, format="png", dpi="figure", pil_kwargs={"compress_level": 4})
    plt.close(fig)  # or the notebook would draw it again at the end of the cell
    if folder is not None:
        with writing(folder, "choose a run in a folder you may write"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(buffer.getvalue())
    if buffer.getbuffer().nbytes < LARGE:
        display(Image(buffer.getvalue(), format="png"))
        return
    jpeg = io.BytesIO()  # a page of photographs as PNG would take megabytes
    with PIL.Image.open(buffer) as picture:
        picture.convert("RGB").save(jpeg, format="jpeg", quality=90, subsampling=0)
    display(Image(jpeg.getvalue(), format="jpeg"))


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
    numeric = {name: is_numeric_dtype(column) for name, column in frame.items()}
    default = {
        name: "{:,.0f}" if is_integer_dtype(frame[name]) else "{:.3g}" for name, number in numeric.items() if number
    }
    styles = []
    for k, (name, number) in enumerate(numeric.items()):
        if not number:
            styles.append({"selector": f".col{k}, th.col_heading.col{k}", "props": "text-align: left"})
            if frame[name].astype(str).str.len().max() <= SHORT:
                styles.append({"selector": f"td.col{k}", "props": "white-space: nowrap"})
    styler = frame.style.format(default | dict(formats or {}), na_rep="-", escape="html").hide(axis="index")
    return styler.set_caption(caption).set_table_styles(styles)


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
                span = f"{interval[0]:.2f}–{interval[1]:.2f}".replace("-", "−")
                text.at[row, name] += f"<br><small>{span}</small>"
    best = pd.DataFrame(
        {name: column.eq(column.min() if name in LOWER_IS_BETTER else column.max()) for name, column in values.items()}
    )
    weights = (best & (bold and len(values) > 1)).map(lambda found: "font-weight: bold" if found else "")
    text.columns = weights.columns = [FIGURE_NAMES[name] for name in names]
    narrow = [
        {"selector": "td", "props": "white-space: nowrap"},
        {"selector": "th.row_heading", "props": "max-width: 16em"},
    ]
    styler = text.style.apply(lambda _: weights, axis=None).set_caption(caption).set_table_styles(narrow)
    # Long names of runs may break behind an underscore.
    return styler.format_index(lambda name: html.escape(name).replace("_", "_<wbr>"), axis="index")


def notes_on(rows: Mapping[str, Mapping]) -> list[str]:
    """A sentence for each undefined or special figure of a table's rows, from their "notes"."""
    return [f"{name}: {note}." for name, figures in rows.items() for note in figures.get("notes", ())]
