"""Give a trained model away: its card, and its upload to the Hugging Face hub.

`python -m lib.sharing runs/demo_full user/name` uploads, `python -m lib.sharing runs/demo_full --card` only writes the
card. What leaves is what `from_pretrained` needs, README.md, evaluation.json and config.yaml; of the parameters those
that mean something only on this machine (`lib.sharing.model_facts.LOCAL`) go back to their defaults.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import yaml

from lib.config import Experiment
from lib.errors import InputError
from lib.files import replacing, writing
from lib.model import hub
from lib.model.detector import NOTE, DistortionDetector
from lib.sharing.model_card import written_card
from lib.sharing.model_facts import LOCAL, Facts, facts_of, is_public, public, read_json


def model_card(run, repo_id: str = "", data: str = "") -> str:
    """The card of a trained run, README.md of its repository; arguments and errors as in `push_to_hub`."""
    return written_card(facts_of(run, data), repo_id)


def write_card(run, repo_id: str = "", data: str = "") -> Path:
    """Write the card of a trained run as `<run>/README.md`."""
    path, text = Path(run) / "README.md", model_card(run, repo_id, data)
    with writing(path, "choose a run in a folder you may write"), replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def push_to_hub(run, repo_id: str, private: bool = True, merge: bool = False, data: str = "") -> str:
    """Write the card of a trained run beside its `model/` and upload both; returns the address of the repository.

    Args:
        run: folder of a trained run.
        repo_id: user/name on the hub; made when there is none. A README.md that is there is replaced.
        private: refuse to upload to a public repository.
        merge: upload a LoRA model as a plain one, which needs no base.
        data: name of the card in data_cards of what it was trained on; procedural data are recognised.

    Raises InputError for a run that is not finished, a LoRA model whose base others do not have, and whatever the hub
    or the way there refuses.
    """
    run, facts = Path(run), facts_of(run, data)
    if not (run / "model" / NOTE).is_file():
        raise InputError(f"{run} holds no trained model ({NOTE}); train it again with notebooks/2_train.ipynb")
    with tempfile.TemporaryDirectory() as scratch:
        model = run / "model"
        if merge and facts.config.lora_rank:
            model = Path(scratch)
            DistortionDetector.from_pretrained(run).merged().save_pretrained(model)
        files = _model_files(model, "give merge=True (--merge), which adds the adapter into the weights")
        files["README.md"] = write_card(run, repo_id, data)
        files["config.yaml"] = yaml.safe_dump(public(facts.config).to_dict(), sort_keys=False).encode()
        if facts.evaluation:
            told = {name: value for name, value in facts.evaluation.items() if name not in LOCAL}
            files["evaluation.json"] = json.dumps(told, indent=1, ensure_ascii=False).encode()
        return hub.upload(repo_id, files, private)


def push_detector(detector: DistortionDetector, repo_id: str, private: bool = True) -> str:
    """Upload a detector that belongs to no run, with a card of its parameters; arguments as in `push_to_hub`."""
    with tempfile.TemporaryDirectory() as scratch:
        detector.save_pretrained(scratch)
        files = _model_files(Path(scratch), "upload detector.merged(), which has the adapter in its weights")
        files["README.md"] = written_card(Facts(repo_id.split("/")[-1], detector.config), repo_id).encode()
        return hub.upload(repo_id, files, private)


def _model_files(folder: Path, remedy: str) -> dict[str, bytes | Path]:
    """{path in the repository: content} of a saved detector; InputError when others could not load it."""
    note = read_json(folder / NOTE)
    config = Experiment.from_dict(note["experiment"], source=str(folder / NOTE))
    if config.lora_rank and not is_public(config.checkpoint):
        raise InputError(f"{config.checkpoint} is a folder of this machine, and the LoRA model needs it; {remedy}")
    files = {path.relative_to(folder).as_posix(): path for name in hub.MODEL_FILES for path in folder.glob(name)}
    needed = {"heads.safetensors", "adapter.safetensors" if config.lora_rank else "encoder.safetensors"}
    if missing := needed - files.keys():
        raise InputError(f"{folder} lacks {', '.join(sorted(missing))}: the model is incomplete; train it again")
    return files | {NOTE: json.dumps({**note, "experiment": public(config).to_dict()}, indent=1).encode()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.sharing", description="Upload a trained model to the hub.")
    parser.add_argument("run", help="folder of a trained run, such as runs/demo_full")
    parser.add_argument("repo_id", nargs="?", default="", help="where to, as user/name")
    parser.add_argument("--card", action="store_true", help="only write the card, README.md in the run's folder")
    parser.add_argument("--public", action="store_true", help="for everybody to see; else the repository is private")
    parser.add_argument("--merge", action="store_true", help="upload a LoRA model as a plain one, which needs no base")
    parser.add_argument("--data", default="", help="name of the card in data_cards of the data it was trained on")
    given = parser.parse_args(arguments)
    try:
        if given.card and (given.public or given.merge):
            raise InputError("--card uploads nothing, which leaves --public and --merge without effect; drop one")
        if given.card:
            print(write_card(given.run, given.repo_id, given.data))
        elif given.repo_id:
            print(push_to_hub(given.run, given.repo_id, not given.public, given.merge, given.data))
        else:
            raise InputError("where to? Give user/name, or --card to write the card only")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
