"""The buttons, sliders and panels of the mask inspector and their layout; `inspector` says what they do."""

from collections.abc import Callable, Hashable

import ipywidgets as W

from lib.widgets import html
from lib.widgets.image import LAYERS
from lib.widgets.keys import KeyListener
from lib.widgets.ranking import SHOW
from lib.widgets.verdicts import VERDICTS

ALL_KINDS = ("all kinds", "")


class Controls:
    """Every part of the widget by name.

    Arguments: `thresholds` as (name of run, value); `sorts` to choose among and `sort_by`, the one to begin with;
    `kinds` of distortion in the data (maybe none); `labelled` says whether any image has a label.
    """

    def __init__(self, thresholds: list[tuple[str, int]], sorts: list[str], sort_by: str, kinds, labelled: bool):
        self.keys = KeyListener()
        self.previous = _button("chevron-left", "previous image (left arrow)")
        self.next = _button("chevron-right", "next image (right arrow)")
        self.place = W.BoundedIntText(min=1, max=1, layout={"width": "68px"}, tooltip="go to this place in the list")
        self.sort_by = W.Dropdown(options=sorts, value=sort_by, description="Sort by", layout={"width": "auto"})
        choices = [ALL_KINDS, *((kind, kind) for kind in kinds)]
        self.kind = W.Dropdown(options=choices, layout={"width": "auto"}, tooltip="kind of distortion")
        self.show = W.Dropdown(options=SHOW, description="Show", layout={"width": "auto"})
        self.text = W.Text(placeholder="words or id", layout={"width": "150px"}, tooltip="words of prompt or id")
        self.rank_again = _button("refresh", "rank all images again at the threshold of the slider")
        self.layers = W.ToggleButtons(options=LAYERS if labelled else ("prediction", "image"))
        self.thresholds = [
            W.IntSlider(value=value, max=254, description=f"Threshold {name}" if len(thresholds) > 1 else "Threshold")
            for name, value in thresholds
        ]
        self.opacity = W.FloatSlider(value=0.5, max=1, step=0.05, description="Opacity", readout_format=".0%")
        self.regions = _checkbox("regions", True)
        self.annotators = _checkbox("annotators", False)
        self.label_beside = _checkbox("label beside", labelled)
        self.panels = [Panel() for _ in range(len(thresholds) + 1)]  # the label's first
        self.verdict = W.ToggleButtons(options=[("not judged", ""), *((name, name) for name in VERDICTS)])
        self.note = W.Textarea(placeholder="Note (t)", continuous_update=False, tooltip="note on this image")
        self.note.add_class("mi-note")
        self.export = W.Button(description="Export CSV", icon="download", layout={"width": "auto"})
        self.total, self.headline, self.figures, self.legend, self.status = (W.HTML() for _ in range(5))
        self.strip = W.HTML()
        self.strip.add_class("mi-strip")
        self.error, self.unsaved = W.HTML(), W.HTML()  # of what is on the screen; of what was said
        self.labelled, self.kinds = labelled, kinds

    def rows(self) -> list[W.Widget]:
        """All parts, top to bottom; what the data cannot fill is left out."""
        find = [self.sort_by, *([self.kind] if self.kinds else []), self.text, self.show]
        navigation = W.HBox([self.previous, self.place, self.total, self.next])
        navigation.add_class("mi-nav")
        of_labels = [self.annotators, self.label_beside] if self.labelled else []
        self.legend.add_class("mi-legend")
        panels = W.HBox(self.panels)
        panels.add_class("mi-panels")
        self.body = W.VBox([
            _bar(self.layers, *self.thresholds, self.opacity, self.regions, *of_labels),
            self.headline,
            panels,
            self.legend,
            self.figures,
            _bar(self.verdict, self.note, self.export),
        ])  # fmt: skip
        top = _bar(navigation, *find, self.rank_again)
        keys = W.HTML(html.quiet(html.KEYS))
        return [self.keys, top, self.strip, self.error, self.unsaved, self.body, self.status, keys]

    def clear(self) -> None:
        """Take the image away with all that is said of it."""
        for panel in self.panels:
            panel.put("", None, bytes)
        self.headline.value = self.figures.value = self.legend.value = ""
        self.keys.texts = []


class Panel(W.VBox):
    """A titled picture."""

    def __init__(self):
        self.title, self.picture, self.key = W.HTML(), W.Image(format="jpeg"), None
        super().__init__([self.title, self.picture])
        self.add_class("mi-panel")

    def put(self, title: str, key: Hashable, draw: Callable[[], bytes]) -> None:
        """Show a JPEG; `key` is all that it depends on, so that what is on the screen already is not drawn again."""
        self.title.value = title
        if key != self.key:
            self.picture.value, self.key = draw(), key


def show_if(widget: W.Widget, condition: bool) -> None:
    """Show or hide a widget without moving it in the tree."""
    widget.layout.display = None if condition else "none"


def _button(icon: str, tooltip: str) -> W.Button:
    return W.Button(icon=icon, tooltip=tooltip, layout={"width": "38px"})


def _checkbox(description: str, value: bool) -> W.Checkbox:
    return W.Checkbox(value=value, description=description, indent=False)


def _bar(*parts: W.Widget) -> W.HBox:
    bar = W.HBox(parts)
    bar.add_class("mi-bar")
    return bar
