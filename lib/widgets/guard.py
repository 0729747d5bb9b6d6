"""No exception of the mask inspector vanishes: it becomes a red line, and its traceback stays in `last_error`."""

import functools
import traceback

from lib.errors import InputError
from lib.widgets import html


def told(error: Exception) -> str:
    """The sentence of an error that was foreseen, the name and the text of any other."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def guarded(method):
    """A reaction to the reader: what it raises is shown in the widget instead of being lost in a log."""

    @functools.wraps(method)
    def call(self, *arguments, **options):
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            self.last_error = traceback.format_exc()
            hint = "" if isinstance(error, InputError) else " (`last_error` holds the traceback)"
            self.controls.error.value = html.error(told(error) + hint)

    return call
