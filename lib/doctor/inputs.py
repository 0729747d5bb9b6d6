"""What a run takes: raw data, prepared data, the checkpoint from the hub, its cache or a folder.

Every check takes the `Experiment` that is to run (None: the demo) and returns one finding.
"""

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

from lib.doctor.report import BAD, OK, ROOT, WARN, Finding

PATIENCE = 2.0  # seconds for an answer of the hub
FLORENCE = "florence-community/Florence-2-large"
TRUE = ("1", "true", "yes", "on")  # as huggingface_hub reads its variables


def raw_data(_config=None) -> Finding:
    """DATA_ROOT, when it is set: the challenge's folders and JSON files."""
    given = os.environ.get("DATA_ROOT", "")
    if not given:
        return Finding("raw data", OK, "DATA_ROOT is not set; only make full and make lora need it")
    needed = (Path("train/images"), Path("train/train_info.json"))
    absent = [str(path) for path in needed if not (Path(given) / path).exists()]
    if absent:
        remedy = "name the folder that holds train/, val/ and test/ (data_cards/evalmuse_structure.md)"
        return Finding("raw data", BAD, f"DATA_ROOT is {given}, which lacks {' and '.join(absent)}", remedy)
    splits = [split for split in ("train", "val", "test") if (Path(given) / split / f"{split}_info.json").is_file()]
    return Finding("raw data", OK, f"{given} with {', '.join(splits)}")


def prepared_data(config=None) -> Finding:
    """What notebook 1 writes; the demo draws and prepares its own."""
    folder = ROOT / ("data/demo/prepared" if config is None else config.data_path)
    splits = [path.parent.name for path in sorted(folder.glob("*/manifest.parquet"))]
    if "train" in splits:
        return Finding("prepared data", OK, f"{folder} with {', '.join(splits)}")
    if config is None:
        return Finding("prepared data", OK, "none yet; make demo draws its own")
    remedy = "run 1_data_processing.ipynb with the same data_path, or correct data_path"
    return Finding("prepared data", BAD, f"{folder} holds no prepared train split", remedy)


def hub(config=None) -> Finding:
    """Whether the checkpoint can be had: shipped, a folder, in the cache, or from the hub. The demo ships its own."""
    checkpoint = FLORENCE if config is None else config.checkpoint
    if (ROOT / "lib/pretrained" / checkpoint).is_dir() or Path(checkpoint).expanduser().is_dir():
        return Finding("hub", OK, f"not needed: {checkpoint} is a folder on this machine")
    if cached(checkpoint):
        return Finding("hub", OK, f"not needed: {checkpoint} is in the cache {cache_folder()}")
    problem, remedy = _offline() or _refusal(checkpoint)
    if not problem:
        return Finding("hub", OK, f"{endpoint()} gives {checkpoint}")
    if config is None:
        return Finding("hub", WARN, f"{problem}; the demo does not need it, {checkpoint} does", remedy)
    return Finding("hub", BAD, problem, remedy)


def endpoint() -> str:
    """The hub or the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_home() -> Path:
    """Where huggingface_hub keeps its things, by its own variables."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME", f"{caches}/huggingface")).expanduser()


def cache_folder() -> Path:
    """Where it keeps what it fetched."""
    return Path(os.environ.get("HF_HUB_CACHE", hub_home() / "hub")).expanduser()


def has_token() -> bool:
    """Whether downloads are made in somebody's name; the token itself is not read."""
    return bool(os.environ.get("HF_TOKEN")) or (hub_home() / "token").is_file()


def cached(checkpoint: str) -> bool:
    """Whether the cache holds the checkpoint's weights."""
    folder = cache_folder() / f"models--{checkpoint.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/*.safetensors"))


def _offline() -> tuple[str, str] | None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").lower() in TRUE:
            remedy = f"unset {name} to fetch it once, or give a folder as checkpoint"
            return f"{name} is set and the checkpoint is not in the cache {cache_folder()}", remedy
    return None


def _refusal(checkpoint: str) -> tuple[str, str]:
    """(problem, remedy) of asking the hub for the checkpoint's config.json; empty when it would give it."""
    answers: list = []
    address = f"{endpoint()}/{checkpoint}/resolve/main/config.json"
    # In a thread, since looking up a name knows no timeout.
    asking = threading.Thread(target=lambda: answers.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    status = answers[0] if answers else "no answer"
    if status == 200 or status in (401, 403) and has_token():
        return "", ""
    if status in (401, 403):
        remedy = "correct checkpoint, or set HF_TOKEN (or: hf auth login)"
        return f"{endpoint()} has no {checkpoint}, or gives it only with a token ({status})", remedy
    if status == 404:
        return f"{endpoint()} has no {checkpoint}", f"correct checkpoint, for example {FLORENCE}"
    remedy = "set HF_ENDPOINT to a mirror, or the proxy, or give a folder as checkpoint"
    return f"{endpoint()} cannot be reached ({status})", remedy


def _ask(address: str) -> int | str:
    """The HTTP status of an address, redirects followed, or what prevented an answer."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
