"""Encoders from checkpoints: a hub id, a folder, or the small one shipped with the kit, by native `transformers`.

The shipped `florence2-tiny` takes the same path as the real models. Module `encoder` says what an encoder is.
"""

import contextlib
import textwrap
from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from lib.errors import InputError
from lib.model.encoders.altclip import AltClipEncoder
from lib.model.encoders.encoder import Encoder
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.encoders.text import load_tokenizer

ENCODERS: dict[str, type[Encoder]] = {kind.model: kind for kind in (Florence2Encoder, AltClipEncoder)}
SHIPPED = Path(__file__).parents[2] / "pretrained"


def load_backbone(checkpoint: str, model: str = "florence2") -> tuple[Encoder, object]:
    """Load encoder (float32) and tokenizer from a hub id or a folder; `model` is a key of ENCODERS.

    `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the hub cache are honoured by transformers itself.
    Raises InputError with the remedy when the checkpoint cannot be reached, is damaged, or is of another kind.
    """
    kind = ENCODERS[model]
    source = resolve_checkpoint(checkpoint, model)
    try:
        _refuse_other_kinds(checkpoint, PreTrainedConfig.get_config_dict(source)[0], kind)
        with quiet_transformers():
            native, found = kind.native.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        tokenizer = load_tokenizer(source)
    except InputError:
        raise
    except Exception as error:  # transformers, safetensors and the hub client each raise types of their own
        remedy = "check the id, the connection or HF_ENDPOINT, or give a local folder"
        if Path(source).is_dir():
            remedy = "the folder is damaged or incomplete: fetch it again, or give a hub id"
        raise InputError(f"checkpoint: {checkpoint} could not be loaded ({_told(error)}); {remedy}") from None
    # transformers fills what a file lacks with random weights; parts that are not used may be absent.
    absent = [name for name in sorted(found["missing_keys"]) if not any(part in name for part in kind.unused)]
    if absent:
        raise InputError(f"checkpoint: {checkpoint} lacks {len(absent)} weights ({absent[0]}, ...); fetch it again")
    return kind(native.config, native), tokenizer


def empty_backbone(folder: Path, model: str) -> tuple[Encoder, object]:
    """Encoder without values, for weights that will all be loaded, and tokenizer from the folder of a saved detector.

    Raises InputError when the folder is not whole.
    """
    kind = ENCODERS[model]
    try:
        config = kind.native.config_class.from_pretrained(folder)
        with torch.device("meta"):  # neither unused parts nor random values cost anything
            encoder = kind(config)
        return encoder.to_empty(device="cpu"), load_tokenizer(folder)
    except InputError:
        raise
    except Exception as error:  # missing or damaged files raise whatever transformers makes of them
        raise InputError(f"{folder} is not whole ({_told(error)}); copy the model again or train again") from None


def resolve_checkpoint(checkpoint: str, model: str = "florence2") -> str:
    """A hub id stays; the name of a shipped checkpoint becomes its folder; other kinds are refused with the remedy."""
    shipped = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())
    if checkpoint in shipped:
        return str(SHIPPED / checkpoint)
    for kind in ENCODERS.values():
        if kind.model != model and checkpoint.startswith(kind.publishers):
            raise other_model(f"checkpoint: {checkpoint}", kind.model, model)
    if checkpoint.startswith("microsoft/"):
        name = checkpoint.split("/")[1] if checkpoint.startswith("microsoft/Florence-2") else "Florence-2-large"
        raise InputError(
            f"checkpoint: {checkpoint} needs remote code and does not load in transformers' own Florence-2; "
            f"use florence-community/{name}, the same weights converted"
        )
    path = Path(checkpoint).expanduser()
    if checkpoint and path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"checkpoint: {path} holds no config.json; give a folder written by save_pretrained")
        return str(path)
    if path.exists() or path.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise InputError(
            f"checkpoint: {checkpoint!r} is neither a folder nor a hub id; use {ENCODERS[model].hub_ids}, "
            f"a folder written by save_pretrained{''.join(f', or {name}' for name in shipped if model == 'florence2')}"
        )
    return checkpoint


def other_model(what: str, found: str, wanted: str) -> InputError:
    """The refusal of a checkpoint or run of another model than the parameter `model` says."""
    return InputError(
        f"{what} is {ENCODERS[found].title}, but model is {wanted}; "
        f"set model: {found}, or checkpoint: {ENCODERS[wanted].hub_ids}"
    )


def _refuse_other_kinds(checkpoint: str, config: dict, wanted: type[Encoder]) -> None:
    found = config.get("model_type")
    remedy = f"use a native {wanted.title} such as {wanted.hub_ids}"
    if "auto_map" in config:  # Microsoft's own files say `florence2` as well, but name code to be run
        raise InputError(f"checkpoint: {checkpoint} needs remote code; {remedy}")
    if found in ENCODERS and found != wanted.model:
        raise other_model(f"checkpoint: {checkpoint}", found, wanted.model)
    if found != wanted.model:
        raise InputError(f"checkpoint: {checkpoint} is of the kind {found!r}; {remedy}")


def _told(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...")


@contextlib.contextmanager
def quiet_transformers():
    """Silence the loading bar and the report of weights: a notebook needs one line, not forty."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
