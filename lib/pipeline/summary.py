"""What a pipeline leaves to look at: its steps' pages, `index.html` and the table of figures.

Figures come from `runs/<experiment>/evaluation.json`, written by notebook 3.
"""

import json
from pathlib import Path

import pandas as pd

from lib.config import Experiment, differing
from lib.errors import InputError
from lib.evaluation_file import FIGURE_NAMES, NAME, read_evaluation
from lib.files import write_text, writing
from lib.pipeline.plans import Plan

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]  # the best first


def evaluation_of(run: Path) -> dict:
    """The evaluation of one run, its figures None where the split has no labels; InputError when there is none."""
    evaluation = read_evaluation(run)
    if not evaluation:
        raise InputError(f"{run / NAME} does not exist; the plan's `summary` needs a step that writes it")
    return evaluation


def summarise(plan: Plan, runs: Path) -> dict:
    """Rows of the plan's `summary` with their figures, and the trivial baseline of the first.

    Returns {row: {figures..., "split", "intervals", "encoder_frozen", "by_domain", "threshold", "trained_share",
    "run_megabytes"}, "trivial": {figures}}; keys without a value are left out.
    """
    summary, trivial = {}, None
    for row, experiment in plan.summary.items():
        evaluation = evaluation_of(runs / experiment)
        train = evaluation.get("train") or {}
        extra = {name: evaluation.get(name) for name in ("split", "threshold", "intervals", "by_domain")}
        extra["encoder_frozen"] = evaluation.get("frozen")
        extra["run_megabytes"] = train.get("run_megabytes")
        extra["trained_share"] = train.get("trained_share_of_encoder")
        summary[row] = (evaluation["figures"] or {}) | {key: value for key, value in extra.items() if value is not None}
        trivial = trivial or evaluation.get("trivial")
    return summary | ({"trivial": trivial} if trivial else {})


def figures_of(summary: dict) -> pd.DataFrame:
    """A row for each entry of the summary and its baseline: the figures that at least one has, and `intervals`.

    A baseline that several runs share is one row.
    """
    rows = {}
    for name, entry in summary.items():
        if isinstance(entry, dict):
            rows[name] = entry
            if "encoder_frozen" in entry:
                rows[f"{name} with the encoder frozen"] = entry["encoder_frozen"]
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=[*FIGURE_NAMES, "threshold", "intervals"])
    again = table.duplicated(list(FIGURE_NAMES)) & ~table.index.isin(summary)
    return table[~again].dropna(axis="columns", how="all")


def as_text(summary: dict) -> str:
    """What the pipeline prints at its end: the table of figures, shares that trained, time and memory."""
    lines, table = [""], figures_of(summary).drop(columns="intervals", errors="ignore")
    if table.size:
        shown = {"threshold": "{:.0f}".format} if "threshold" in table else {}
        lines += [table.to_string(formatters=shown, float_format="{:.4f}".format, na_rep="-"), ""]
    for row, entry in summary.items():
        if isinstance(entry, dict) and "trained_share" in entry:
            size = f", run folder {entry['run_megabytes']:.1f} MB" if "run_megabytes" in entry else ""
            lines.append(f"{row}: trained {entry['trained_share']:.1%} of the encoder's weights{size}")
    return "\n".join([*lines, f"time {duration(summary['seconds'])}, peak memory {summary['peak_memory_mb']} MiB"])


def duration(seconds: float) -> str:
    """'42 s', '3 min 07 s' or '2 h 05 min'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def publish(plan: Plan, folder: Path, reports: dict[str, dict], summary: dict | None = None) -> None:
    """Write the pages of steps that ran, where they are missing or old, and `index.html` into `folder`.

    What came out is what the last notebook with a summary says; see `highlights`.

    Arguments: `reports` gives for each step its `status`, and where it ran `seconds`, `peak_memory_mb` and `failure`
    (see `State.report`); `summary` as `summarise` gives it, once there is one.
    """
    from jinja2 import Environment, FileSystemLoader  # here, as nbconvert in `export_page`

    steps = []
    for step in plan.steps:
        shown, executed = {"name": step.name} | reports[step.name], folder / "notebooks" / f"{step.stem}.ipynb"
        page = folder / f"{step.stem}.html"
        if shown["status"] in ("finished", "failed", "interrupted"):  # else what is there is of an earlier run
            if executed.exists() and not (page.exists() and page.stat().st_mtime >= executed.stat().st_mtime):
                export_page(executed, page, title=step.name)
            shown["page"] = page.name if page.exists() else ""
        if shown["status"] == "finished" and executed.exists():
            shown["summary"], shown["picture"] = highlights(executed)
        steps.append(shown)
    context = {"plan": plan.name, "steps": steps, "duration": duration, "summary": summary, "names": FIGURE_NAMES}
    if summary:
        entries = [entry for entry in summary.values() if isinstance(entry, dict)]
        context["splits"] = ", ".join(dict.fromkeys(entry["split"] for entry in entries if "split" in entry))
        files = {row: folder.parent / experiment / "config.yaml" for row, experiment in plan.summary.items()}
        configs = {row: Experiment.from_yaml(file).to_dict() for row, file in files.items() if file.exists()}
        context |= {"figures": figures_of(summary), "configs": configs, "differing": differing(configs)}
    template = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).get_template("plan.html.j2")
    (folder / "index.html").write_text(template.render(context), encoding="utf-8")


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
    except ValueError as error:
        raise InputError(f"{notebook} is no whole notebook ({str(error)[:100]}); execute it again") from None
    exporter = HTMLExporter(
        config=Config(NbConvertBase={"display_data_priority": SHOWN}), extra_template_basedirs=[str(TEMPLATES)],
        template_name="notebook", exclude_input_prompt=True, exclude_output_prompt=True, embed_images=True,
    )  # fmt: skip
    about = {"metadata": {"name": title, "path": str(notebook.parent)}}
    body, _ = exporter.from_notebook_node(executed, resources=about)
    with writing(page, "give another path"):
        write_text(page, body)


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
