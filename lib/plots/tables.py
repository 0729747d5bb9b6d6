"""Old names of `lib.plots.page`, until every notebook uses the new ones."""

from lib.plots import page
from lib.plots.page import FIGURE_NAMES, figures_table, notes_on, say
from lib.plots.page import table as plain_table

__all__ = [
    "FIGURE_NAMES", "figures_table", "notes_on", "plain_table", "say", "show", "show_table",
]  # fmt: skip


def show(fig, says, folder=None, name="figure.png"):
    if fig is not None:
        page.show(fig, folder, name)
    say(says)


def show_table(table, *says):
    if table is not None:
        page.display(table)
    say(*says)
