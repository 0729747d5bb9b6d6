"""Share a trained model on the Hugging Face hub, with a card made from what its run wrote down.

`python -m lib.sharing runs/demo_full user/name` uploads, `python -m lib.sharing runs/demo_full --card` only writes the
card. Uploaded are the model's files, README.md, evaluation.json and config.yaml. Parameters that mean something only on
this machine (`LOCAL`) go back to their defaults.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

import lib
from lib.config import Experiment
from lib.errors import InputError, command
from lib.evaluate.run_on_split import run_config
from lib.evaluation_file import FIGURE_NAMES, read_evaluation, write_evaluation
from lib.files import write_text, writing
from lib.model import hub
from lib.model.detector import DistortionDetector
from lib.model.encoders.backbone import SHIPPED
from lib.train import read_finished
from lib.yaml_files import dump_yaml

TEMPLATE = Path(__file__).with_name("model_card.md")
CARDS = Path(__file__).parents[1] / "data_cards"
LOCAL = ("runs", "data_path", "pseudo_labels", "wandb")


def model_card(run, repo_id: str = "", data: str = "") -> ModelCard:
    """The card of a trained run, README.md of its repository; arguments and errors as in `push_to_hub`."""
    run = Path(run)
    config, finished, evaluation = run_config(run), read_finished(run), read_evaluation(run)
    if data and not (CARDS / f"{data}.md").is_file():
        known = ", ".join(sorted(path.stem for path in CARDS.glob("*.md")))
        raise InputError(f"data: there is no card {data!r} in data_cards; known are {known}")
    measured_on = evaluation.get("data_path", config.data_path)  # older versions evaluated on the training's data
    about = ModelCardData(
        license="apache-2.0", language="en", library_name="nitre2025-structural-distortion",
        pipeline_tag="image-segmentation",
        tags=["structural-distortion", "image-quality-assessment", config.model, *(["lora"] * bool(config.lora_rank))],
        base_model=config.checkpoint if hub.looks_like_hub_id(config.checkpoint) else None,
    )  # fmt: skip
    cards = [data, "flickr30k_negatives" if config.negative_num else "", config.checkpoint.replace("-", "_")]
    return ModelCard.from_template(
        about,
        template_path=TEMPLATE,
        name=run.resolve().name,
        config=config,
        parameters={name: value for name, value in _public(config).to_dict().items() if name not in LOCAL},
        defaults=Experiment().to_dict() | {"experiment_name": config.experiment_name},
        local=LOCAL,
        address=repo_id or "path/to/this/folder",
        finished=finished,
        evaluation=evaluation,
        figure_names=FIGURE_NAMES,
        data=data,
        elsewhere=Path(measured_on) != Path(config.data_path),
        dump=dump_yaml,
        data_cards="\n\n".join(filter(None, map(_lowered, cards))),
        versions=finished.get("versions", {}),
        kit=lib.__version__,
    )


def write_card(run, repo_id: str = "", data: str = "") -> Path:
    """Write the card of a trained run as `<run>/README.md`."""
    path, card = Path(run) / "README.md", model_card(run, repo_id, data)
    with writing(path, "choose a run in a folder you may write"):
        write_text(path, str(card))
    return path


def push_to_hub(run, repo_id: str, private: bool = True, merge: bool = False, data: str = "") -> str:
    """Write the card of a trained run beside its `model/` and upload both; returns the address of the repository.

    Args:
        run: folder of a trained run.
        repo_id: user/name on the hub; made when there is none. A README.md that is there is replaced.
        private: refuse to upload to a public repository.
        merge: upload a LoRA model as a plain one, which needs no base.
        data: name of the card in data_cards of what it was trained on, such as evalmuse_structure.

    Raises InputError for a run that is not finished, a LoRA model whose base others do not have, and whatever the hub
    or the way there refuses.
    """
    run, card = Path(run), write_card(run, repo_id, data)
    config, evaluation = run_config(run), read_evaluation(run)
    if config.lora_rank and not merge and not _is_public(config.checkpoint):
        remedy = "give merge=True (--merge), which adds the adapter into the weights"
        raise InputError(f"{config.checkpoint} is a folder of this machine, and the LoRA model needs it; {remedy}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        detector = DistortionDetector.from_pretrained(run)
        detector = detector.merged() if merge else detector
        detector.config = _public(detector.config)
        detector.save_pretrained(folder)
        (folder / "README.md").write_bytes(card.read_bytes())
        (folder / "config.yaml").write_text(dump_yaml(_public(config).to_dict()), encoding="utf-8")
        if evaluation:
            write_evaluation(folder, {name: value for name, value in evaluation.items() if name not in LOCAL})
        return hub.upload(repo_id, folder, private)


def _public(config: Experiment) -> Experiment:
    """The same parameters without what is private to a machine; of a checkpoint in a folder only its name is left."""
    own = {name: getattr(Experiment(), name) for name in LOCAL}
    if not _is_public(config.checkpoint):
        own["checkpoint"] = Path(config.checkpoint).name
    return Experiment.from_dict({**config.to_dict(), **own})


def _is_public(checkpoint: str) -> bool:
    """Whether everybody has this checkpoint: it is shipped with the kit or has a hub id."""
    shipped = [path.name for path in SHIPPED.iterdir()]
    return checkpoint in shipped or (hub.looks_like_hub_id(checkpoint) and not Path(checkpoint).exists())


def _lowered(name: str) -> str:
    """A data card with its headings two levels lower; empty when there is none (data_cards is not installed)."""
    path = CARDS / f"{name}.md"
    return ("\n" + path.read_text(encoding="utf-8")).replace("\n#", "\n###").strip() if path.is_file() else ""


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.sharing", description="Upload a trained model to the hub.")
    parser.add_argument("run", help="folder of a trained run, such as runs/demo_full")
    parser.add_argument("repo_id", nargs="?", default="", help="where to, as user/name")
    parser.add_argument("--card", action="store_true", help="only write the card, README.md in the run's folder")
    parser.add_argument("--public", action="store_true", help="for everybody to see; else the repository is private")
    parser.add_argument("--merge", action="store_true", help="upload a LoRA model as a plain one, which needs no base")
    parser.add_argument("--data", default="", help="name of the card in data_cards of the data it was trained on")
    given = parser.parse_args(arguments)
    if not (given.card or given.repo_id):
        parser.error("give user/name to upload to, or --card to write the card only")
    if given.card:
        print(write_card(given.run, given.repo_id, given.data))
    else:
        print(push_to_hub(given.run, given.repo_id, not given.public, given.merge, given.data))


if __name__ == "__main__":
    sys.exit(main())
