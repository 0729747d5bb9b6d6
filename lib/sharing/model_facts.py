"""What is known about a trained model, read from its run's folder, and what of it may leave this machine."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from lib.config import Experiment
from lib.errors import InputError
from lib.model.encoders.backbone import SHIPPED
from lib.model.hub import looks_like_hub_id
from lib.stores import LabelStore
from lib.synthetic.writer import NOTE as DRAWN

CARDS = Path(__file__).parents[2] / "data_cards"
PROCEDURAL = "procedural"
# Parameters that mean something only where the model was trained, and may tell what is nobody else's business.
LOCAL = ("runs", "data_path", "pseudo_labels", "accelerate_config", "wandb")


@dataclass(frozen=True)
class Facts:
    """What is known about a model: its parameters and, when it comes from a run, what the run wrote down."""

    name: str
    config: Experiment
    training: dict = field(default_factory=dict)  # finished.json
    evaluation: dict = field(default_factory=dict)  # evaluation.json
    data: str = ""  # name of a card in data_cards: trained on; empty: unknown
    measured_on: str = ""  # the same of the data it was evaluated on


def facts_of(run, data: str = "") -> Facts:
    """Read a run's folder. `data` names the card in data_cards of its data; procedural data are recognised.

    Raises InputError when the run is not finished, or a file is damaged, or there is no such card.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} is no run (it holds no config.yaml); give a folder that notebook 2 wrote")
    if not (run / "finished.json").is_file():
        raise InputError(f"{run} holds no finished.json: its training has not ended; run notebooks/2_train.ipynb again")
    config = Experiment.from_yaml(run / "config.yaml")
    known = sorted(path.stem for path in CARDS.glob("*.md"))
    if data and data not in known:
        raise InputError(f"data: there is no card {data!r} in data_cards; known are {', '.join(known)}")
    evaluation = read_json(run / "evaluation.json") if (run / "evaluation.json").is_file() else {}
    training, data = read_json(run / "finished.json"), data or _recognised(config.data_path)
    elsewhere = evaluation.get("data_path", config.data_path)  # evaluated by an older version: as trained
    measured_on = data if Path(elsewhere) == Path(config.data_path) else _recognised(elsewhere)
    return Facts(run.resolve().name, config, training, evaluation, data, measured_on)


def read_json(path: Path) -> dict:
    """A mapping from a JSON file of a run; InputError when it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); run the notebook that wrote it again, or restore it") from None


def _recognised(data_path: str) -> str:
    """`procedural` for prepared data whose raw folder (<raw>/train/images/<id>.jpg) was drawn by `lib.synthetic`."""
    train = Path(data_path) / "train"
    if not (train / LabelStore.table_name).is_file():
        return ""
    store = LabelStore(train)
    raw = store.image_path(store.ids[0]).parents[2]
    return PROCEDURAL if (raw / DRAWN).is_file() else ""


def public(config: Experiment) -> Experiment:
    """The same parameters without what is private to a machine; of a checkpoint in a folder only its name is left."""
    own = {name: getattr(Experiment(), name) for name in LOCAL}
    if not is_public(config.checkpoint):
        own["checkpoint"] = Path(config.checkpoint).name
    return Experiment.from_dict({**config.to_dict(), **own})


def is_public(checkpoint: str) -> bool:
    """Whether everybody has this checkpoint: it is shipped with the kit or has a hub id."""
    shipped = [path.name for path in SHIPPED.iterdir()]
    return checkpoint in shipped or (looks_like_hub_id(checkpoint) and not Path(checkpoint).exists())
