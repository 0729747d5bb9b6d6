"""An executed notebook as a page that needs no kernel and no network: `python -m lib.pipeline.page NOTEBOOK.ipynb`.

The pipeline writes such pages of its steps; the command does so for what papermill or JupyterLab executed.
"""

import argparse
import json
import sys
from pathlib import Path

from lib.errors import InputError, command
from lib.files import replacing, writing

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]  # the best first


def export_page(notebook: Path, page: Path, title: str) -> None:
    """Write an executed notebook as one self-contained HTML page with all its pictures, without its widgets.

    Raises InputError when the notebook cannot be read (an interruption may leave half of it) or the page not written.
    """
    # Imported here: nbconvert takes a second that a refused plan should not cost.
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    try:
        executed = nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, AttributeError, KeyError) as error:  # nbformat raises any, of other files
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{notebook} is no whole notebook ({reason}); execute it again") from None
    exporter = HTMLExporter(
        config=Config(NbConvertBase={"display_data_priority": SHOWN}), extra_template_basedirs=[str(TEMPLATES)],
        template_name="notebook", exclude_input_prompt=True, exclude_output_prompt=True, embed_images=True,
    )  # fmt: skip
    about = {"metadata": {"name": title, "path": str(notebook.parent)}}
    body, _ = exporter.from_notebook_node(executed, resources=about)
    with writing(page, "give another path"), replacing(page) as part:
        part.write_text(body, encoding="utf-8")


def highlights(notebook: Path) -> tuple[str, str]:
    """What an executed notebook has for a plan's index: (its summary as HTML, a picture as a data URI), or "".

    They are what the cells with the tags `summary` and `picture` show.
    """
    from nbconvert.filters import markdown2html

    summary = picture = ""
    for cell in json.loads(notebook.read_bytes())["cells"]:
        tags = cell["metadata"].get("tags", ())
        for data in [output.get("data", {}) for output in cell.get("outputs", ())]:
            if "summary" in tags and "text/markdown" in data:
                summary += markdown2html("".join(data["text/markdown"]))
            for kind in data if "picture" in tags else ():
                if kind.startswith("image/"):
                    picture = f"data:{kind};base64,{''.join(data[kind]).strip()}"
    return summary, picture


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.pipeline.page", description="Export an executed notebook.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("page", type=Path, nargs="?", help="default: beside the notebook")
    given = parser.parse_args(argv)
    page = given.page or given.notebook.with_suffix(".html")
    export_page(given.notebook, page, given.notebook.stem)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
