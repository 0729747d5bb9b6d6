"""The one exception that is meant for the reader's eyes."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence or two that name the file, the value and the remedy. Commands print it
    without a traceback and exit with 2; notebooks show it as a single line.
    """

    def _render_traceback_(self):
        # IPython calls this hook instead of printing the stack: the sentence is the whole story.
        return [f"{type(self).__name__}: {self}"]
