"""The mask inspector: a widget for JupyterLab, and the plain functions behind it."""

from lib.widgets.inspector import MaskInspector

__all__ = ["MaskInspector"]
