"""The words of the mask inspector as HTML: prompt, figures, legend, status. Text from data is escaped."""

from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from html import escape

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.plots.rendering import OUTLINES
from lib.scale import mos_from_score

LEGEND = {
    "hit": "hit: predicted, and true",
    "false": "false: predicted, matches nothing",
    "missed": "missed: true, matches nothing",
    "unjudged": "predicted, no label to compare with",
    "small": "too small to count",
}
KEYS = (
    "<kbd>←</kbd> <kbd>→</kbd> image · <kbd>1</kbd>-<kbd>4</kbd> layer · <kbd>[</kbd> <kbd>]</kbd> threshold · "
    "<kbd>r</kbd> regions · <kbd>a</kbd> annotators · <kbd>l</kbd> label · <kbd>g</kbd> model right · "
    "<kbd>x</kbd> model wrong · <kbd>w</kbd> label wrong · <kbd>u</kbd> unsure · <kbd>t</kbd> note, <kbd>Esc</kbd> back"
    " (click a picture first)"
)
NEIGHBOURS = 4  # small pictures to each side of the current one


def as_text(error: Exception) -> str:
    """The sentence of an InputError; the name and the text of any other error."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def quiet(text: str) -> str:
    """A small remark."""
    return f'<span class="mi-quiet">{text}</span>'


def lines(texts: Sequence[str]) -> str:
    """Remarks, each on a line of its own."""
    return quiet("<br>".join(escape(text) for text in texts))


def error(text: str) -> str:
    """A line that nobody overlooks; empty text gives nothing."""
    return f'<div class="mi-error" role="alert">{escape(text)}</div>' if text else ""


def headline(id: str, row: pd.Series) -> str:
    """The image's id, prompt, kinds, parts, domain and size; what the data set does not know is left out."""
    facts = [f"{row['width']} x {row['height']} px"]
    if row["labelled"]:
        agreed = "" if pd.isna(row.get("agreement")) else f", agreement {row['agreement']:.2f}"
        facts.append(f"{row['n_annotators']} annotators{agreed}")
    for name in ("kinds", "parts", "domain"):
        if isinstance(row.get(name), str) and row[name]:
            facts.append(f"{name}: {row[name].replace('+', ', ')}")
    title = f'<span class="mi-title">{escape(id)}</span> {escape(row["prompt"])}'
    return f'<div class="mi-prompt">{title}</div>{quiet(escape(" · ".join(facts)))}'


def strip(ids: Sequence[str], position: int, picture: Callable[[str], bytes]) -> str:
    """Buttons with small pictures (`picture(id)` a JPEG, empty for none) of the images around a place of the list."""
    number = 2 * NEIGHBOURS + 1
    first, buttons = max(0, min(position - NEIGHBOURS, len(ids) - number)), []
    for place, id in enumerate(ids[first : first + number], first):
        jpeg, current = b64encode(picture(id)).decode(), ' aria-current="true"' * (place == position)
        shown = f'<img src="data:image/jpeg;base64,{jpeg}" alt="">' if jpeg else "?"
        buttons.append(f'<button data-place="{place}" title="{escape(id)}"{current}>{shown}</button>')
    return "".join(buttons)


def picture_texts(id: str, labelled: bool, layer: str, names: Sequence[str], found: Sequence[dict]) -> list[str]:
    """Plain text for those who do not see the pictures: the label's, then that of each run; `found` as in `figures`."""
    label = f"label of {id}: {found[0]['n_true']:.0f} true regions" if labelled else f"no label of {id}"
    counts = "{hit_true:.0f} hit, {missed_regions:.0f} missed, {false_regions:.0f} false"
    counts = counts if labelled else "{n_predicted:.0f} regions"
    return [
        label,
        *(f"{layer} of {name} for {id}: {counts.format(**one)}" for name, one in zip(names, found, strict=True)),
    ]


def figures(names: Sequence[str], found: Sequence[dict], predicted: Sequence[float], true: float) -> str:
    """A table of what the official metric says of one image, a row a run.

    `found` are `lib.widgets.image.figures_of` each run; scores (0..1) are shown as MOS (1..5).
    """
    # The first columns matter most: in a narrow window the last are reached by scrolling.
    head = ("", "MOS", "true MOS", "precision", "recall", "hit", "missed", "false", "IoU", "missed area", "false area")
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    for name, one, score in zip(names, found, predicted, strict=True):
        pairs = (("hit_true", "n_true"), ("missed_regions", "n_true"), ("false_regions", "n_predicted"))
        counts = ["-" if np.isnan(one[total]) else f"{one[part]:.0f} of {one[total]:.0f}" for part, total in pairs]
        cells = [f"<b>{escape(name)}</b>", f"<b>{_number(mos_from_score(score))}</b>", _number(mos_from_score(true))]
        cells += [_number(one["precision"]), _number(one["recall"]), *counts, _number(one["iou"])]
        cells += [_number(one[name], ".1%") for name in ("missed_area", "false_area")]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="mi-scroll"><table class="mi-figures">{table}</table></div>'


def _number(value: float, form: str = ".2f") -> str:
    return "-" if pd.isna(value) else f"{value:{form}}"


def legend(statuses: Collection[str]) -> str:
    """The colours of the regions that are shown."""
    parts = [
        f'<span style="white-space: nowrap"><span class="mi-swatch" style="border-top-color: {OUTLINES[name]};'
        f' border-top-style: {"dashed" if name == "missed" else "solid"}"></span>{text}</span>'
        for name, text in LEGEND.items()
        if name in statuses
    ]
    return quiet(" &ensp; ".join(parts))
