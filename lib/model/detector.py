"""`DistortionDetector`: encoder, mask head and score head; saving, loading, predicting."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import torch
from torch import Tensor, nn

from lib.config import Experiment
from lib.data.pixels import resize, to_pixels
from lib.errors import InputError
from lib.files import replacing, writing
from lib.model import hub
from lib.model.encoders.backbone import empty_backbone, load_backbone, other_model
from lib.model.encoders.encoder import Encoder, Features, recompute_activations
from lib.model.encoders.text import TextEncoder
from lib.model.heads import MASK_HEADS, SCORE_HEADS
from lib.model.lora import own_weights, set_trainable, with_lora
from lib.model.weights import digest, load_weights, read_safetensors, write_safetensors
from lib.scale import mos_from_score
from lib.stores import read_image

__all__ = [
    "DistortionDetector", "Prediction", "load_weights", "own_weights", "read_safetensors", "set_trainable", "to_pixels",
]  # fmt: skip

NOTE = "detector.json"  # written last: a folder without it is no whole model


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
        base: with LoRA a hash of the encoder's weights as they were without adapters; empty when it is not known.
    """

    def __init__(self, config: Experiment, encoder: Encoder, tokenizer, base: str = ""):
        super().__init__()
        self.config, self.base = config, base
        room = encoder.max_text_tokens(*config.input_shape)
        self.text = TextEncoder(tokenizer, room, config.text_padding, encoder.template)
        self.fusion = encoder.fusion()
        make_mask_head, make_score_head = MASK_HEADS[config.mask_head], SCORE_HEADS[config.score_head]
        self.mask_head = make_mask_head(config.mask_head, encoder.width, encoder.stride, config.mask_stride)
        self.score_head = make_score_head(config.score_head, encoder.width)
        self.score_head.checked(encoder.grid(*config.input_shape))
        self.encoder = with_lora(encoder, config) if config.lora_rank else encoder

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
        return detector

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, rows: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """pixel_values [B, 3, H, W], input_ids and attention_mask [B, T] -> heatmap [B, *mask_shape], score [B].

        Both are in 0..1. H x W is `input_shape`, or another size that the encoder can take.
        With `rows` only the first so many images go on to the heads (B = rows); 0 is a number like any other.
        """
        tokens = self.encoder(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        features = self.fusion(tokens)  # of Florence-2, whose encoder fuses, as they are
        features = Features(features.before[:rows], features.after[:rows], features.grid)
        return self.mask_head(features, self.config.mask_shape), self.score_head(features)

    @torch.inference_mode()
    def predict(self, image, prompt: str = "") -> Prediction:
        """Detect in one image: a path, or uint8 RGB [H, W, 3] (array or PIL). InputError for what is no image."""
        image = read_image(image) if isinstance(image, str | Path) else np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            found = f"{image.dtype} {list(image.shape)}"
            raise InputError(f"predict needs a path or a uint8 RGB image [H, W, 3], not {found}; convert it first")
        if not isinstance(prompt, str):
            raise InputError(
                f"predict needs one prompt as text, not {type(prompt).__name__}; leave it out when unknown"
            )
        prompt = prompt.encode("utf-8", "replace").decode()  # half a surrogate pair has no tokens
        self.eval()
        pixels = to_pixels(image, self.config.input_shape, self.config.model)
        batch = {"pixel_values": pixels[None], **self.text([prompt])}
        heatmap, score = self(**{name: tensor.to(self.device) for name, tensor in batch.items()})
        return Prediction(resize(heatmap[0].float().cpu().numpy(), *image.shape[:2]), float(score[0]))

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
            write_safetensors(folder / "heads.safetensors", heads)
            if lora:
                adapter = peft.get_peft_model_state_dict(self.encoder, save_embedding_layers=False)
                write_safetensors(folder / "adapter.safetensors", adapter)
            else:
                write_safetensors(folder / "encoder.safetensors", self.encoder.state_dict())
                self.encoder.config.save_pretrained(folder / "backbone")
                self.text.tokenizer.save_pretrained(folder / "backbone")
            with replacing(folder / NOTE) as part:
                note = {"format": 1, "experiment": self.config.to_dict()}
                part.write_text(json.dumps(note | ({"base": self.base} if lora else {}), indent=1))

    @classmethod
    def from_pretrained(cls, folder, device="cpu") -> "DistortionDetector":
        """Load from a run (`runs/<experiment>`), its `model` folder or the hub (`user/name`), in eval mode.

        Adapters are refused on another base than they were trained on; to see that takes a few seconds for a large one.
        """
        given, folder = folder, _model_folder(folder)
        if folder is None and hub.looks_like_hub_id(given):
            folder = _model_folder(hub.download(str(given)))
        if folder is None:
            raise InputError(f"{given} holds no trained model ({NOTE}); train one with notebooks/2_train.ipynb")
        config, trained_on = _read_note(folder / NOTE)
        weights, base = read_safetensors(folder / "heads.safetensors"), ""
        if config.lora_rank:
            encoder, tokenizer, _, base = _starting_point(config)
            if trained_on not in ("", base):
                raise InputError(
                    f"{folder} holds adapters of other weights than checkpoint: {config.checkpoint} has now; restore "
                    "those, or train again"
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
            self.config = Experiment.from_dict({**self.config.to_dict(), "lora_rank": 0})
        return self


def _starting_point(config: Experiment) -> tuple[Encoder, object, dict[str, Tensor], str]:
    """(encoder, tokenizer, weights of the heads, base) of a trained run, or of a pretrained model without heads.

    The base is a hash of the encoder's weights when adapters are to be put on them, else empty.
    """
    folder = _model_folder(config.checkpoint)
    if folder is None:
        encoder, tokenizer = load_backbone(config.checkpoint, config.model)
        return encoder, tokenizer, {}, _base(config, encoder)
    found = _read_note(folder / NOTE)[0].model
    if found != config.model:
        raise other_model(f"checkpoint: the run {config.checkpoint}", found, config.model)
    detector = DistortionDetector.from_pretrained(folder)
    base = _base(config, detector.encoder)  # before the merge, whose last digits depend on the machine
    detector = detector.merged()
    heads = {k: v for k, v in detector.state_dict().items() if not k.startswith("encoder.")}
    return detector.encoder, detector.text.tokenizer, heads, base


def _base(config: Experiment, encoder: nn.Module) -> str:
    return digest(encoder.state_dict()) if config.lora_rank else ""


def _model_folder(folder) -> Path | None:
    """The folder of the saved detector: `folder` or its `model`; None when there is none."""
    candidates = (Path(folder), Path(folder) / "model")
    return next((candidate for candidate in candidates if (candidate / NOTE).is_file()), None)


def _read_note(path: Path) -> tuple[Experiment, str]:
    """(parameters, base) of a saved detector; models of older versions did not note the latter."""
    try:
        note = json.loads(path.read_text())
        return Experiment.from_dict(note["experiment"], source=str(path)), note.get("base", "")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); train again or restore it") from None
