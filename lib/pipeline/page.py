"""An executed notebook as a page that needs no kernel and no network: `python -m lib.pipeline.page NOTEBOOK.ipynb`.

The pipeline writes such pages of its steps; the command does so for what papermill or JupyterLab executed.
"""

import sys
from pathlib import Path

from lib.errors import InputError
from lib.files import replacing, writing

# The page of nbconvert without its scripts, which come from the network: pages open offline and look the same.
# In a narrow window code and tables scroll instead of being cut off: rows of a table, as nbconvert has them, cannot.
OFFLINE_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>
.jp-InputArea-editor .highlight { overflow-x: auto; }
@media (max-width: 760px) {
  .jp-OutputArea-child .jp-OutputArea-output { display: block; margin: 0; box-sizing: border-box; }
}
</style>{%- endblock -%}
"""
WIDGET = "application/vnd.jupyter.widget-view+json"


def export_page(notebook: Path, page: Path, title: str) -> None:
    """Write an executed notebook as one self-contained HTML page with all its pictures, without its widgets.

    Raises InputError when the notebook cannot be read (an interruption may leave half of it) or the page not written.
    """
    # Imported here: nbconvert takes a second that a refused plan should not cost.
    import nbformat
    from nbconvert import HTMLExporter

    try:
        executed = _without_widgets(nbformat.read(notebook, as_version=4))
    except (
        OSError,
        ValueError,
        AttributeError,
        KeyError,
    ) as error:  # of other files than notebooks nbformat raises any
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{notebook} is no whole notebook ({reason}); execute it again") from None
    exporter = HTMLExporter(raw_template=OFFLINE_TEMPLATE, embed_images=True)
    about = {"metadata": {"name": title, "path": str(notebook.parent)}}
    body, _ = exporter.from_notebook_node(executed, resources=about)
    with writing(page, "give another path"), replacing(page) as part:
        part.write_text(body, encoding="utf-8")


def _without_widgets(notebook):
    """Widgets are dead on a page: of their outputs only a picture that they bring stays, of their state nothing."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in [one for one in cell.get("outputs", []) if WIDGET in one.get("data", {})]:
            del output.data[WIDGET]
            if output.data.keys() <= {"text/plain"}:  # the name of a Python class
                cell.outputs.remove(output)
    return notebook


def main(argv: list[str] | None = None) -> int:
    """`python -m lib.pipeline.page NOTEBOOK.ipynb [PAGE.html]`, by default beside it; exit code 2 when it cannot."""
    arguments = sys.argv[1:] if argv is None else argv
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m lib.pipeline.page NOTEBOOK.ipynb [PAGE.html]", file=sys.stderr)
        return 2
    notebook = Path(arguments[0])
    page = Path(arguments[1]) if len(arguments) > 1 else notebook.with_suffix(".html")
    try:
        export_page(notebook, page, notebook.stem)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
