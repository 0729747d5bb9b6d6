"""The one exception that is meant for the reader's eyes, and the hint that often ends its sentence."""

import difflib


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence or two that name the file, the value and the remedy. Commands print it
    without a traceback and exit with 2; notebooks show it as a single line.
    """

    def _render_traceback_(self):
        # IPython calls this hook instead of printing the stack: the sentence is the whole story.
        return [f"{type(self).__name__}: {self}"]


def nearest(name, known) -> str:
    """' (did you mean ...?)' for a name that is not among the known ones; empty when none is near."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""
