"""Keyboard, look and names for screen readers of the mask inspector, which ipywidgets has not.

anywidget brings its own bundled loader, so nothing comes from the network.
"""

from pathlib import Path

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"


class KeyListener(anywidget.AnyWidget):
    """An invisible widget that listens inside the nearest element of class `scope`.

    It sends `{"key": name}` for a key, with the name "Focus" when the reader enters another part by a click or by Tab,
    and `{"place": number}` for a click on a small picture. Raise `handled` after each key; until then repeats of a held
    key are dropped. `note_key` moves the focus into the note, Escape leaves it. `texts` describe the pictures of
    `.mi-panel`, in order, for screen readers.
    """

    _esm = STATIC / "inspector.js"
    _css = STATIC / "inspector.css"
    scope = traitlets.Unicode("mask-inspector").tag(sync=True)
    note_key = traitlets.Unicode("t").tag(sync=True)
    handled = traitlets.Int(0).tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
