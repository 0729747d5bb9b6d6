"""The one exception that is meant for the reader's eyes, commands that print it, the hint that often ends it."""

import difflib
import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence or two that name the file, the value and the remedy. Commands print it
    without a traceback and exit with 2; notebooks show it as a single line.
    """

    def _render_traceback_(self):
        # IPython calls this hook instead of printing the stack: the sentence is the whole story.
        return [f"{type(self).__name__}: {self}"]


def command(main: Callable) -> Callable[..., int]:
    """Make a `main` return an exit code: its own or 0, and 2 after an InputError, whose sentence goes to stderr."""

    @functools.wraps(main)
    def run(*arguments) -> int:
        try:
            return main(*arguments) or 0
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 2

    return run


def nearest(name, known) -> str:
    """' (did you mean ...?)' for a name that is not among the known ones; empty when none is near."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""
