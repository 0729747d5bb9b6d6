"""Encoders from checkpoints: a hub id, a folder, or the small one shipped with the kit, by native `transformers`.

The shipped `florence2-tiny` takes the same path as the real models. Module `encoder` says what an encoder is.
"""

import contextlib
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lib.errors import InputError
from lib.model.encoders.altclip import AltClipEncoder
from lib.model.encoders.encoder import Encoder
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.encoders.text import load_tokenizer
from lib.model.hub import looks_like_hub_id, one_sentence
from lib.model.weights import NOTE, refuse_nonfinite

ENCODERS: dict[str, type[Encoder]] = {kind.model: kind for kind in (Florence2Encoder, AltClipEncoder)}
SHIPPED = Path(__file__).parents[2] / "pretrained"


def load_backbone(checkpoint: str, model: str = "florence2") -> tuple[Encoder, PreTrainedTokenizerBase]:
    """Load encoder (float32) and tokenizer from a folder or a hub id; `model` is a key of ENCODERS.

    `user/name@revision` takes a branch, tag or commit of the hub. `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the hub cache are
    honoured by transformers itself.
    Raises InputError with the remedy when the checkpoint cannot be reached, is damaged, or is of another kind.
    """
    kind = ENCODERS[model]
    source, revision = resolve_checkpoint(checkpoint, model)
    remedy = "fetch it again, or give a hub id" if Path(source).is_dir() else ""
    with one_sentence(f"checkpoint: {checkpoint} could not be loaded", remedy), quiet_transformers():
        config = PreTrainedConfig.get_config_dict(source, revision=revision)[0]
        # Microsoft's own files say `florence2` as well, but name code to be run.
        is_of = "remote code" if "auto_map" in config else config.get("model_type")
        if is_of != kind.model:
            raise other_model(f"checkpoint: {checkpoint}", is_of, model)
        native, info = kind.native.from_pretrained(
            source, revision=revision, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = load_tokenizer(source, native.config.text_config.vocab_size, revision)
    # transformers fills what a file lacks with random weights; parts that are not used may be absent.
    absent = [name for name in sorted(info["missing_keys"]) if not any(part in name for part in kind.unused)]
    if absent:
        raise InputError(f"checkpoint: {checkpoint} lacks {len(absent)} weights ({absent[0]}, ...); fetch it again")
    encoder = kind(native.config, native)
    refuse_nonfinite(encoder.state_dict(), f"checkpoint: {checkpoint}")
    return encoder, tokenizer


def commit_of(checkpoint: str, model: str = "florence2") -> str:
    """The hub's commit that `load_backbone` has just loaded; empty for a folder."""
    source, revision = resolve_checkpoint(checkpoint, model)
    path = None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else ""  # snapshots/<commit>/config.json


def empty_backbone(source, model: str, rows: int = 0) -> tuple[Encoder, PreTrainedTokenizerBase]:
    """Encoder without values, for weights that will all be loaded, and tokenizer.

    Args:
        source: the folder of a saved detector, or any checkpoint, whose weights are not looked at.
        rows: word embeddings there must be at least; else as many as config.json says.
    Raises InputError when config or tokenizer is not whole.
    """
    kind = ENCODERS[model]
    with one_sentence(f"{source} is not whole", "copy the model again or train again"):
        config = kind.native.config_class.from_pretrained(source)
        config.text_config.vocab_size = max(rows, config.text_config.vocab_size)
        with torch.device("meta"):  # neither unused parts nor random values cost anything
            encoder = kind(config)
        return encoder.to_empty(device="cpu"), load_tokenizer(source, config.text_config.vocab_size)


def resolve_checkpoint(checkpoint: str, model: str = "florence2") -> tuple[str, str | None]:
    """(folder or hub id, revision or None) of a checkpoint; what cannot be one is refused with the remedy."""
    shipped = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())
    if checkpoint in shipped:
        return str(SHIPPED / checkpoint), None
    if checkpoint.startswith("microsoft/Florence-2"):
        raise InputError(
            f"checkpoint: {checkpoint} needs remote code and does not load in transformers' own Florence-2; "
            f"use florence-community/{checkpoint.removeprefix('microsoft/')}, the same weights converted"
        )
    path = Path(checkpoint).expanduser()
    if checkpoint and path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"checkpoint: {path} holds no config.json; give a folder written by save_pretrained")
        if (path.parent / NOTE).is_file():
            raise InputError(
                f"checkpoint: {path} is a part of the trained model {path.parent}, without weights; give {path.parent}"
            )
        return str(path), None
    if not looks_like_hub_id(checkpoint):
        raise InputError(
            f"checkpoint: {checkpoint!r} is neither a folder nor a hub id; use {ENCODERS[model].hub_ids}, "
            f"a folder written by save_pretrained{''.join(f', or {name}' for name in shipped if model == 'florence2')}"
        )
    name, _, revision = checkpoint.partition("@")
    return name, revision or None


def other_model(what: str, is_of: str, wanted: str) -> InputError:
    """The refusal of a checkpoint or run of another model than the parameter `model` says."""
    known = f"model: {is_of}, or " if is_of in ENCODERS else ""
    return InputError(
        f"{what} is of the kind {is_of!r}, but model is {wanted}; set {known}checkpoint: {ENCODERS[wanted].hub_ids}"
    )


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
