"""`DistortionDetector`: encoder, mask head and score head; saving, loading, predicting."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor, nn

from lib.config import Experiment
from lib.data.pixels import resize, to_pixels
from lib.errors import InputError
from lib.files import write_text, writing
from lib.model import hub
from lib.model.encoders.backbone import commit_of, empty_backbone, load_backbone, other_model
from lib.model.encoders.encoder import Encoder, Features, recompute_activations
from lib.model.encoders.text import TextEncoder
from lib.model.heads import MASK_HEADS, SCORE_HEADS
from lib.model.lora import own_weights, with_lora
from lib.model.weights import NOTE, digest, load_weights, read_safetensors, refuse_changed, sha256_of, write_safetensors
from lib.records import read_record
from lib.scale import mos_from_score
from lib.stores import as_rgb


@dataclass
class Prediction:
    """Of one image: `heatmap` float32 [H, W] in 0..1 at the image's own size, `score` in 0..1 (1 is sound)."""

    heatmap: np.ndarray
    score: float

    @property
    def mos(self) -> float:
        """The score on the annotators' scale, 1 (bad) to 5 (sound)."""
        return mos_from_score(self.score)


class DistortionDetector(nn.Module):
    """Image and prompt -> heatmap of distorted regions and structure score.

    Args:
        base: what the encoder started from: `sha256` of its weights then, and the hub's `commit`; empty when not known.
    """

    def __init__(self, config: Experiment, encoder: Encoder, tokenizer, base: dict | None = None):
        super().__init__()
        self.config, self.base = config, {"sha256": "", "commit": ""} | (base or {})
        self.fusion = encoder.fusion(config.fusion)
        self.mask_head = MASK_HEADS[config.mask_head](config, encoder)
        self.score_head = SCORE_HEADS[config.score_head](config, encoder)
        self.encoder = with_lora(encoder, config) if config.lora_rank else encoder
        for name, values in (("mean", encoder.mean), ("std", encoder.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.tokenizer = tokenizer
        self.text = self.text_for(config.input_shape)

    @classmethod
    def from_checkpoint(cls, config: Experiment) -> "DistortionDetector":
        """A detector to train: pretrained encoder of `config.checkpoint`, heads initialised from `config.seed`.

        When the checkpoint is a trained run, encoder (LoRA merged into it) and heads go on from there.
        """
        encoder, tokenizer, heads, base = _starting_point(config)
        # The heads must not depend on what drew random numbers before them.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            detector = cls(config, encoder, tokenizer, base)
        if heads:
            load_weights(detector, heads, config.checkpoint, partial="encoder.")
        if config.gradient_checkpointing:
            recompute_activations(detector, encoder.blocks)
        if config.compile:
            encoder.compile_towers()
        return detector

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, rows: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """pixel_values [B, 3, H, W], input_ids and attention_mask [B, T] -> heatmap [B, *mask_shape], score [B].

        Pixels are RGB, uint8 in 0..255 or float in 0..1; both outputs are in 0..1. H x W is `input_shape`, or another
        size that the encoder can take.
        With `rows` only the first so many images go on to the heads (B = rows); 0 is a number like any other.
        """
        pixels = self.normalise(pixel_values).to(next(self.parameters()).dtype)
        tokens = self.encoder(pixel_values=pixels, input_ids=input_ids, attention_mask=attention_mask)
        features = self.fusion(tokens)  # of Florence-2, whose encoder fuses, as they are
        features = Features(features.before[:rows], features.after[:rows], features.grid)
        return self.mask_head(features, self.config.mask_shape), self.score_head(features)

    def normalise(self, pixel_values: Tensor) -> Tensor:
        """RGB [B, 3, H, W], uint8 in 0..255 or float in 0..1 -> float32 as the encoder was pretrained with."""
        highest = 255 if pixel_values.dtype == torch.uint8 else 1
        return pixel_values.float() * (1 / (highest * self.std)) - self.mean / self.std

    def text_for(self, *shapes: tuple[int, int]) -> TextEncoder:
        """The text encoder whose tokens fit beside images of all these input sizes (height and width in pixels).

        Raises InputError for a size that the encoder or a head cannot take, or that leaves no room for the instruction.
        """
        encoder, config = self.encoder, self.config
        trained, grids = encoder.grid(*config.input_shape), [encoder.grid(*shape) for shape in shapes]
        other = next((grid for grid in grids if grid != trained), None)
        if other and any(getattr(head, "one_grid", False) for head in (self.mask_head, self.score_head)):
            raise InputError(
                f"a head ({config.mask_head}, {config.score_head}) was made for a grid of {trained} tokens and cannot "
                f"read {other}; predict at the training's size (scales 1), or train with heads for any size"
            )
        room = min(encoder.max_text_tokens(*shape) for shape in shapes)
        return TextEncoder(self.tokenizer, room, config.text_padding, encoder.template)

    def predict(self, image, prompt: str = "") -> Prediction:
        """Detect in one image: a path, an image of Pillow, or uint8 RGB [H, W, 3]; see `predict_many`."""
        return next(self.predict_many([image], [prompt]))

    @torch.inference_mode()
    def predict_many(
        self, images: Iterable, prompts: Iterable[str] | None = None, batch_size: int = 16
    ) -> Iterator[Prediction]:
        """Yield the Prediction of each image, in order; images and prompts are taken a batch at a time.

        Args:
            images: as `lib.stores.as_rgb` takes them. prompts: one an image; None when they are unknown.
        Raises InputError for what is no image and for a prompt that is no text, ValueError for another number of them.
        """
        self.eval()
        for name, given in (("images", images), ("prompts", () if prompts is None else prompts)):
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise InputError(f"predict_many needs a list of {name}, one an image, not {type(given).__name__}")
        pairs = zip(images, repeat("")) if prompts is None else zip(images, prompts, strict=True)
        shape = self.config.input_shape
        while pair := list(islice(pairs, batch_size)):
            for _, prompt in pair:
                if not isinstance(prompt, str):
                    kind = type(prompt).__name__
                    raise InputError(f"predict needs a prompt as text, not {kind}; leave it out when unknown")
            batch = [as_rgb(image) for image, _ in pair]
            # Half a surrogate has no tokens.
            text = self.text([prompt.encode("utf-8", "replace").decode() for _, prompt in pair])
            pixels = torch.stack([to_pixels(image, shape, self.config.resampling) for image in batch])
            heatmaps, scores = self(pixels.to(self.device), **{k: v.to(self.device) for k, v in text.items()})
            for image, heatmap, score in zip(batch, heatmaps.float().cpu().numpy(), scores.tolist(), strict=True):
                yield Prediction(resize(heatmap, *image.shape[:2]), score)

    def save_pretrained(self, folder) -> None:
        """Write heads and encoder (LoRA: the adapter only, the base by reference) as safetensors and JSON."""
        folder = Path(folder)
        with writing(folder, "free some space or give another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in (NOTE, "adapter.safetensors", "encoder.safetensors"):  # of what was there before
                (folder / name).unlink(missing_ok=True)
            lora = bool(self.config.lora_rank)  # then also what `unfreeze_params` named in the encoder
            kept = own_weights(self).items()
            heads = {k: v for k, v in kept if "lora_" not in k and (lora or not k.startswith("encoder."))}
            if lora:
                adapter = peft.get_peft_model_state_dict(self.encoder, save_embedding_layers=False)
                files = {"heads.safetensors": heads, "adapter.safetensors": adapter}
            else:
                files = {"heads.safetensors": heads, "encoder.safetensors": self.encoder.state_dict()}
                self.encoder.config.save_pretrained(folder / "backbone")
                self.tokenizer.save_pretrained(folder / "backbone")
            for name, weights in files.items():
                write_safetensors(folder / name, weights)
            saved = sha256_of(folder, *files, *([] if lora else ["backbone/*"]))  # with the tokenizer
            note = {"format": 1, "experiment": self.config.to_dict(), "started_from": self.base, "sha256": saved}
            write_text(folder / NOTE, json.dumps(note, indent=1))

    @classmethod
    def from_pretrained(cls, folder, device="cpu", checkpoint: str = "") -> "DistortionDetector":
        """Load from a run (`runs/<experiment>`), its `model` folder or the hub (`user/name`), in eval mode.

        Args:
            checkpoint: with LoRA where the base is now; else where detector.json says.
        Adapters are refused on another base than they were trained on; to see that takes a few seconds for a large one.
        """
        given, folder = folder, _model_folder(folder)
        if folder is None and hub.looks_like_hub_id(given):
            folder = _model_folder(hub.download(str(given)))
        if folder is None:
            raise InputError(f"{given} holds no trained model ({NOTE}); train one with notebooks/2_train.ipynb")
        config, base, sha256 = _read_note(folder / NOTE)
        refuse_changed(folder, sha256, "copy all of the model again or train again")
        weights = read_safetensors(folder / "heads.safetensors")
        if config.lora_rank:
            encoder, tokenizer = _base_of_adapters(
                folder, replace(config, checkpoint=checkpoint or config.checkpoint), base["sha256"]
            )
            # peft leaves the adapter's name, `default`, out of its files.
            adapter = read_safetensors(folder / "adapter.safetensors").items()
            weights |= {re.sub(r"\.(lora_[AB])\.", r".\1.default.", f"encoder.{k}"): v for k, v in adapter}
        else:
            encoder, tokenizer = empty_backbone(folder / "backbone", config.model)
            weights |= {f"encoder.{k}": v for k, v in read_safetensors(folder / "encoder.safetensors").items()}
        with torch.random.fork_rng(devices=[]):
            detector = cls(config, encoder, tokenizer, base)
        load_weights(detector, weights, folder)
        return detector.to(device).eval()

    def merged(self) -> "DistortionDetector":
        """A LoRA detector as a plain one with equal outputs: the adapter is added into the weights (in place)."""
        if self.config.lora_rank:
            self.encoder = self.encoder.merge_and_unload()
            self.config = replace(self.config, lora_rank=0)
        return self


def _starting_point(config: Experiment) -> tuple[Encoder, Any, dict[str, Tensor], dict]:
    """(encoder, tokenizer, weights of the heads, base) of a trained run, or of a pretrained model without heads."""
    folder = _model_folder(config.checkpoint)
    if folder is None:
        encoder, tokenizer = load_backbone(config.checkpoint, config.model)
        base = {"sha256": digest(encoder.state_dict()), "commit": commit_of(config.checkpoint, config.model)}
        return encoder, tokenizer, {}, base
    model = _read_note(folder / NOTE)[0].model
    if model != config.model:
        raise other_model(f"checkpoint: the run {config.checkpoint}", model, config.model)
    detector = DistortionDetector.from_pretrained(folder)
    base = digest(detector.encoder.state_dict())  # before the merge, whose last digits depend on the machine
    detector = detector.merged()
    heads = {k: v for k, v in detector.state_dict().items() if not k.startswith("encoder.")}
    return detector.encoder, detector.tokenizer, heads, {"sha256": base}


def _base_of_adapters(folder: Path, config: Experiment, sha256: str) -> tuple[Encoder, Any]:
    """(encoder, tokenizer) that the adapters in `folder` were trained on."""
    try:
        encoder, tokenizer, _, base = _starting_point(config)
    except InputError as error:
        raise InputError(
            f"the adapters in {folder} need the base that {NOTE} there names as checkpoint: {error}. If it has moved, "
            f"write its new place there, or give it to DistortionDetector.from_pretrained(..., checkpoint=)"
        ) from None
    # Earlier versions noted the first 16 digits, or nothing.
    if not base["sha256"].startswith(sha256):
        raise InputError(
            f"{folder} holds adapters of other weights than checkpoint: {config.checkpoint} has now; restore "
            "those, or train again"
        )
    return encoder, tokenizer


def _model_folder(folder) -> Path | None:
    """The folder of the saved detector: `folder` or its `model`; None when there is none."""
    candidates = (Path(folder), Path(folder) / "model")
    return next((candidate for candidate in candidates if (candidate / NOTE).is_file()), None)


def _read_note(path: Path) -> tuple[Experiment, dict, dict]:
    """(parameters, base, SHA-256 of the files) of a saved detector; earlier versions noted less."""
    shapes = {"model": str, "input_size": int, "mask_size": int, "mask_head": str, "score_head": str, "lora_rank": int}
    fields = {
        "experiment": dict,
        "experiment?": shapes,
        "base?": str,
        "started_from?": {"sha256": str},
        "sha256?": dict,
    }
    note = read_record(path, fields, "train again or restore it")
    base = {"sha256": note.get("base", ""), "commit": ""} | (note.get("started_from") or {})
    return Experiment.from_dict(note["experiment"], source=str(path)), base, note.get("sha256", {})
