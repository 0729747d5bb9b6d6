"""Notebooks executed by papermill as the pipeline does it, and what they show."""

import html
import re
from pathlib import Path

import nbformat
import papermill

ROOT = Path(__file__).resolve().parents[1]
# A training of 24 images in eights: nine steps, three of them the warm-up's.
TINY = {
    "input_size": 32, "mask_size": 32, "mask_stride": 8, "epoch": 2, "warmup_epoch": 1, "batch_size": 8,
    "batch_size_warmup": 8, "accumulate_step": 1, "val_iter": 1, "num_workers": 0, "log_iter": 1,
}  # fmt: skip


def execute(name: str, out: Path, cwd: Path = ROOT, book: Path | None = None, /, **parameters) -> nbformat.NotebookNode:
    """A notebook of the kit, or `book` in its place, executed into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    where = {"kernel_name": "python3", "progress_bar": False, "cwd": str(cwd)}
    source = book or ROOT / "notebooks" / f"{name}.ipynb"
    return papermill.execute_notebook(source, out / f"{name}_executed.ipynb", parameters, **where)


def outputs(notebook, kind: str) -> list[str]:
    """The outputs of a MIME type, or the text printed to "stdout" or "stderr", in order."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind.startswith("std"):
        return [output["text"] for output in found if output.get("name") == kind]
    return [output["data"][kind] for output in found if kind in output.get("data", {})]


def pictures(notebook) -> int:
    return len(outputs(notebook, "image/png") + outputs(notebook, "image/jpeg"))


def printed(notebook) -> str:
    return "".join(outputs(notebook, "stdout"))


def prose(notebook) -> str:
    """The sentences, without the escapes of Markdown."""
    return html.unescape(re.sub(r"\\(.)", r"\1", "\n".join(outputs(notebook, "text/markdown"))))


def silent_sections(notebook) -> list[str]:
    """The headings of sections with code and without a sentence."""
    said, heading = {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            heading = cell.source.splitlines()[0]
        elif cell.cell_type == "code" and heading:
            told = [o for o in cell.outputs if "text/markdown" in o.get("data", {}) or o.get("name") == "stdout"]
            said[heading] = said.get(heading, 0) + len(told)
    return [heading for heading, count in said.items() if not count]
