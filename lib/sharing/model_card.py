"""The README of a trained model, in the hub's format: made from what its run wrote down, and from nothing else."""

import yaml
from huggingface_hub import EvalResult, ModelCardData

from lib.config import Experiment
from lib.model.encoders.backbone import ENCODERS
from lib.model.hub import looks_like_hub_id
from lib.plots.tables import FIGURE_NAMES
from lib.sharing.model_facts import CARDS, LOCAL, Facts, is_public, public
from lib.train.tracking import clock
from lib.versions import versions

METRICS = {"f1_score": "f1", "plcc": "pearsonr", "srcc": "spearmanr", "rmse_mos": "rmse"}  # the hub's names, if others

USE = """\
With the structural distortion kit that made it (`lib`, version {kit}):

```python
from lib.model.detector import DistortionDetector

detector = DistortionDetector.from_pretrained("{name}")
found = detector.predict("image.jpg", "the prompt that the image was made from")
found.heatmap  # float32 [H, W], 0 sound .. 1 distorted, at the image's own size
found.score  # 0 bad .. 1 sound; found.mos is the same on the annotators' scale 1..5
```
"""
FIGURES = """\
Precision, recall and F1 count regions (hit from an IoU of 0.1 on); final score = 0.7 F1 + 0.15 (PLCC + SRCC); the lower
the RMSE the better. Intervals are bootstrapped over images. The trivial baseline gives every image the mean training
heatmap and score.
"""
LIMITS = """\
- It marks what the annotators of its training data marked. What they overlooked or did not mind it was not taught.
- It sees an image scaled to {height} x {width} pixels and cannot find what vanishes at that size.
- Threshold and scores suit the data described above; for images of another origin choose the threshold anew and measure
  before relying on it.
- It does not tell whether an image was generated, follows its prompt, is harmful or beautiful, nor whose it is.
- It was not examined for differences between groups of people; do not let it decide about people or their work alone.
"""
LICENCE = """\
Apache-2.0, as the kit. The weights derive from `{checkpoint}` and from the data described above, whose terms apply too.
"""


def written_card(facts: Facts, repo_id: str = "") -> str:
    """The text of README.md; `repo_id` is where the model will be found."""
    sections = {
        "": _introduction(facts),
        "Use": USE.format(name=repo_id or "path/to/this/folder", kit=versions()["kit"]),
        "Results": _results(facts),
        "Training": _training(facts),
        "Data": _data(facts),
        "What it cannot do": _limits(facts),
        "Versions": _versions(facts),
        "Licence": LICENCE.format(checkpoint=public(facts.config).checkpoint),
    }
    body = "\n".join(f"{f'## {title}' if title else f'# {facts.name}'}\n\n{text}" for title, text in sections.items())
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}"


def _metadata(facts: Facts) -> ModelCardData:
    config = facts.config
    on_hub = is_public(config.checkpoint) and looks_like_hub_id(config.checkpoint)
    return ModelCardData(
        license="apache-2.0",
        language="en",
        library_name="nitre2025-structural-distortion",
        pipeline_tag="image-segmentation",
        tags=["structural-distortion", "image-quality-assessment", config.model, *(["lora"] * bool(config.lora_rank))],
        base_model=config.checkpoint if on_hub else None,
        model_name=facts.name,
        eval_results=_eval_results(facts) or None,
    )


def _eval_results(facts: Facts) -> list[EvalResult]:
    figures = facts.evaluation.get("figures") or {}
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="structural distortion detection",
            dataset_type=facts.measured_on or "unknown",
            dataset_name=_title(facts.measured_on) if facts.measured_on else "unknown",
            dataset_split=facts.evaluation["split"],
            metric_type=METRICS.get(name, name),
            metric_name=title,
            metric_value=round(figures[name], 4),
        )
        for name, title in FIGURE_NAMES.items()
        if figures.get(name) is not None
    ]


def _introduction(facts: Facts) -> str:
    config = public(facts.config)
    how = f"LoRA of rank {config.lora_rank} on" if config.lora_rank else "full fine-tuning of"
    amount = ""
    if facts.training:
        told = facts.training
        amount = f", on {told['images']:,} images in {told['steps']:,} steps, which took {clock(told['seconds'])}"
    return (
        "Finds what is structurally wrong in AI-generated images: from an image and its prompt it gives a heatmap of "
        f"distorted regions and a structure score.\n\nTrained by {how} `{config.checkpoint}` "
        f"({ENCODERS[config.model].title} encoder, mask head and score head){amount}.\n"
    )


def _results(facts: Facts) -> str:
    found = facts.evaluation
    if not found:
        return "Not evaluated.\n"
    if not found["figures"]:
        return f"Not evaluated: `{found['split']}`, {found['n_images']:,} images, has no labels to measure with.\n"
    setting = found.get("chosen") or (
        f"Threshold {found['threshold']}, regions above {found['min_area_ratio']:.2%} of the frame; how they were "
        "chosen is not recorded."
    )
    columns = {"trivial baseline": found.get("trivial"), "before fine-tuning": found.get("before")}
    columns = {"this model": found["figures"], "95 % interval": None} | {k: v for k, v in columns.items() if v}
    rows = [[""] + list(columns), ["---"] * (1 + len(columns))]
    for name, title in FIGURE_NAMES.items():
        low_high = (found.get("intervals") or {}).get(name)
        span = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high and None not in low_high else "-"
        rows.append([title, *(span if k == "95 % interval" else _number(v.get(name)) for k, v in columns.items())])
    parts = [
        f"{name} ({part['n_images']:,} images) {_number(part['final_score'])}"
        for name, part in (found.get("by_domain") or {}).items()
    ]
    by_domain = f"\nFinal score by domain: {', '.join(parts)}.\n" if parts else ""
    of = ""
    if facts.measured_on != facts.data:
        of = f" of {_title(facts.measured_on) if facts.measured_on else 'data'} that it was not trained on"
    return f"On `{found['split']}`{of}, {found['n_images']:,} images. {setting}\n\n{_table(rows)}\n{FIGURES}{by_domain}"


def _training(facts: Facts) -> str:
    values = {name: value for name, value in public(facts.config).to_dict().items() if name not in LOCAL}
    defaults = Experiment().to_dict() | {"experiment_name": facts.config.experiment_name}
    changed = [[f"`{k}`", f"`{v!r}`", f"`{defaults[k]!r}`"] for k, v in values.items() if v != defaults[k]]
    pseudo = "Predictions of another model served as labels of additional images (`pseudo_labels`).\n\n"
    everything = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return (
        f"Parameters that differ from the defaults:\n\n"
        f"{_table([['parameter', 'value', 'default'], ['---'] * 3, *changed])}\n"
        f"{pseudo if facts.config.pseudo_labels else ''}"
        f"<details><summary>All parameters</summary>\n\n```yaml\n{everything}```\n\n</details>\n\n"
        f"Left out, since they only mean something where it was trained: {', '.join(f'`{name}`' for name in LOCAL)}.\n"
    )


def _data(facts: Facts) -> str:
    """The cards of the data, of additional negatives and of a checkpoint shipped with the kit."""
    own = facts.config.checkpoint.replace("-", "_")
    names = [facts.data, "flickr30k_negatives" if facts.config.negative_num else "", own]
    cards = [_card(name) for name in names if name and (CARDS / f"{name}.md").is_file()]
    unknown = "Which data it was trained on is not recorded.\n"
    return "\n".join(cards if facts.data else [unknown, *cards])


def _card(name: str) -> str:
    """A data card with its headings two levels lower."""
    lines = (CARDS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in lines) + "\n"


def _title(name: str) -> str:
    return (CARDS / f"{name}.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def _limits(facts: Facts) -> str:
    height, width = facts.config.input_shape
    return LIMITS.format(height=height, width=width)


def _versions(facts: Facts) -> str:
    recorded = facts.training.get("versions")
    rows = [[name, version] for name, version in (recorded or versions()).items()]
    told = "of the training" if recorded else "when this card was written (those of the training are not recorded)"
    return f"Versions {told}:\n\n{_table([['', ''], ['---', '---'], *rows])}"


def _table(rows: list[list[str]]) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
