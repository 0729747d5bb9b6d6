"""`DistortionDetector`: encoder, mask head and score head; what trains; saving, loading, predicting."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, Florence2Config

from lib.backbone import MEAN, STD, Florence2Encoder, TextEncoder, load_backbone
from lib.config import Experiment
from lib.errors import InputError
from lib.heads import MaskHead, ScoreHead
from lib.stores import read_image

# Linear layers of both transformers and the plain convolutions that embed patches. Florence's conv1 / conv2 are
# depthwise: peft cannot merge those.
LORA_TARGETS = ("qkv", "proj", "fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj", "conv", "image_projection")


@dataclass
class Prediction:
    """Of one image: `heatmap` float32 [H, W] in 0..1 at the image's own size, `score` in 0..1 (1 is sound)."""

    heatmap: np.ndarray
    score: float

    @property
    def mos(self) -> float:
        """The score on the annotators' scale, 1 (bad) to 5 (sound)."""
        return 1 + 4 * self.score


class DistortionDetector(nn.Module):
    """Image and prompt -> heatmap of distorted regions and structure score."""

    def __init__(self, config: Experiment, encoder: Florence2Encoder, tokenizer):
        super().__init__()
        self.config = config
        side = config.input_size
        encoder.grid(side, side)
        self.text = TextEncoder(tokenizer, encoder.max_text_tokens(side, side), config.text_padding)
        self.mask_head = MaskHead(config.mask_head, encoder.width, encoder.stride, config.mask_stride)
        self.score_head = ScoreHead(config.score_head, encoder.width)
        if config.gradient_checkpointing:
            encoder.enable_gradient_checkpointing()
        self.encoder = with_lora(encoder, config) if config.lora_rank else encoder

    @classmethod
    def from_checkpoint(cls, config: Experiment) -> "DistortionDetector":
        """A detector to train: pretrained encoder of `config.checkpoint`, heads initialised from `config.seed`."""
        encoder, tokenizer = load_backbone(config.checkpoint)
        # The heads must not depend on what drew random numbers before them.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(config, encoder, tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """pixel_values [B, 3, S, S], input_ids and attention_mask [B, T] -> heatmap [B, M, M], score [B], in 0..1."""
        features = self.encoder(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        size = self.config.mask_size
        return self.mask_head(features, (size, size)), self.score_head(features)

    @torch.inference_mode()
    def predict(self, image, prompt: str = "") -> Prediction:
        """Detect in one image: a path, or uint8 RGB [H, W, 3] (array or PIL). Raises InputError for what is no image."""
        image = read_image(image) if isinstance(image, str | Path) else np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"predict needs a uint8 RGB image [H, W, 3], not {image.dtype} {list(image.shape)}; convert it first")
        self.eval()
        batch = {"pixel_values": to_pixels(image, self.config.input_size)[None], **self.text([prompt])}
        heatmap, score = self(**{name: tensor.to(self.device) for name, tensor in batch.items()})
        height, width = image.shape[:2]
        heatmap = cv2.resize(heatmap[0].float().cpu().numpy(), (width, height), interpolation=cv2.INTER_LINEAR)
        return Prediction(heatmap, float(score[0]))

    def save_pretrained(self, folder) -> None:
        """Write heads and encoder (LoRA: the adapter only, the base by reference) as safetensors and JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        heads = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        save_file(heads, folder / "heads.safetensors")
        if self.config.lora_rank:
            adapter = peft.get_peft_model_state_dict(self.encoder)
            save_file({k: v.contiguous() for k, v in adapter.items()}, folder / "adapter.safetensors")
        else:
            encoder = {k: v.contiguous() for k, v in self.encoder.state_dict().items()}
            save_file(encoder, folder / "encoder.safetensors")
            self.encoder.config.save_pretrained(folder / "backbone")
            self.text.tokenizer.save_pretrained(folder / "backbone")
        (folder / "detector.json").write_text(json.dumps({"format": 1, "experiment": self.config.to_dict()}, indent=1))

    @classmethod
    def from_pretrained(cls, folder, device="cpu") -> "DistortionDetector":
        """Load from a run (`runs/<experiment>`) or from its `model` folder; in eval mode on `device`."""
        folder = _model_folder(folder)
        config = _read_config(folder / "detector.json")
        if config.lora_rank:
            encoder, tokenizer = load_backbone(config.checkpoint)
        else:
            encoder = Florence2Encoder(Florence2Config.from_pretrained(folder / "backbone"))
            tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
        detector = cls(config, encoder, tokenizer)
        weights = read_safetensors(folder / "heads.safetensors")
        if config.lora_rank:
            adapter = read_safetensors(folder / "adapter.safetensors")
            left = peft.set_peft_model_state_dict(detector.encoder, adapter)
            missing = [key for key in left.missing_keys if "lora_" in key]
            if missing or left.unexpected_keys:
                raise InputError(f"{folder / 'adapter.safetensors'} does not fit {config.checkpoint}: {(missing + left.unexpected_keys)[:3]}")
        else:
            encoder_weights = read_safetensors(folder / "encoder.safetensors")
            weights |= {f"encoder.{name}": tensor for name, tensor in encoder_weights.items()}
        load_weights(detector, weights, folder, partial="encoder." if config.lora_rank else "")
        return detector.to(device).eval()

    def merged(self) -> "DistortionDetector":
        """A LoRA detector as a plain one with equal outputs: the adapter is added into the weights (in place)."""
        if self.config.lora_rank:
            self.encoder = self.encoder.merge_and_unload()
            self.config = Experiment.from_dict({**self.config.to_dict(), "lora_rank": 0})
        return self


def to_pixels(image: np.ndarray, side: int) -> Tensor:
    """uint8 RGB [H, W, 3] -> normalised float32 [3, side, side]; the aspect ratio is not kept, as in the reference."""
    height, width = image.shape[:2]
    # Area averaging when shrinking: bicubic would alias stripes into something that looks like damage.
    shrink = height > side and width > side
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
    pixels = (resized.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def with_lora(encoder: Florence2Encoder, config: Experiment):
    """Wrap the encoder with adapters: rsLoRA, Gaussian init, on every target; a target that matches nothing is an error."""
    names = {name.split(".")[-1] for name, module in encoder.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    unmatched = [target for target in LORA_TARGETS if target not in names]
    if unmatched:
        raise InputError(f"LoRA targets {', '.join(unmatched)} match no layer of {config.checkpoint}; is it a Florence-2?")
    lora = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, use_rslora=True,
        init_lora_weights="gaussian", bias="none", target_modules=list(LORA_TARGETS),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return peft.get_peft_model(encoder, lora)


def set_trainable(detector: DistortionDetector, stage: str) -> list[str]:
    """Decide which parameters train in a stage (`warmup` or `main`); returns their names.

    Warm-up freezes the encoder. In the main stage everything trains, or with LoRA the adapters and heads.
    `freeze_params`, then `unfreeze_params`, then apply by name fragment in both stages, except that the
    warm-up keeps the encoder frozen.
    """
    config = detector.config
    freeze, unfreeze = _fragments(config.freeze_params), _fragments(config.unfreeze_params)
    unused = [f for f in (*freeze, *unfreeze) if f != "all" and not any(f in n for n, _ in detector.named_parameters())]
    if unused:
        raise InputError(f"freeze_params / unfreeze_params: {', '.join(unused)} matches no parameter; see detector.named_parameters()")
    trained = []
    for name, parameter in detector.named_parameters():
        in_encoder = name.startswith("encoder.")
        trains = not (in_encoder and config.lora_rank and "lora_" not in name)
        trains = (trains and not _matches(name, freeze)) or _matches(name, unfreeze)
        parameter.requires_grad_(trains and not (stage == "warmup" and in_encoder))
        if parameter.requires_grad:
            trained.append(name)
    if not trained:
        raise InputError("freeze_params leaves nothing to train; name fewer fragments")
    return trained


def _fragments(text: str) -> list[str]:
    return [fragment.strip() for fragment in text.split(",") if fragment.strip()]


def _matches(name: str, fragments: list[str]) -> bool:
    return any(fragment == "all" or fragment in name for fragment in fragments)


def _model_folder(folder) -> Path:
    for candidate in (Path(folder), Path(folder) / "model"):
        if (candidate / "detector.json").is_file():
            return candidate
    raise InputError(f"{folder} holds no trained model (detector.json); train it with notebooks/2_train.ipynb, or correct the path")


def _read_config(path: Path) -> Experiment:
    try:
        return Experiment.from_dict(json.loads(path.read_text())["experiment"], source=str(path))
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); train again or restore it") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a weights file; InputError when it is missing or torn."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the folder is not a complete model") from None
    except Exception as error:  # safetensors raises its own type for a torn file
        raise InputError(f"{path} is not a readable safetensors file ({error}); restore it or train again") from None


def load_weights(detector: nn.Module, weights: dict[str, Tensor], source, partial: str = "") -> None:
    """Load strictly; a difference in names or shapes is an InputError. Names under `partial` may stay as they are."""
    own = detector.state_dict()
    wrong = [
        f"{name}: {list(weights[name].shape)} in the file, {list(own[name].shape)} in the model"
        for name in weights
        if name in own and own[name].shape != weights[name].shape
    ]
    missing = [name for name in own if name not in weights and not (partial and name.startswith(partial))]
    wrong += [f"{name} is not in the file" for name in missing] + [f"{name} is not in the model" for name in weights if name not in own]
    if wrong:
        raise InputError(f"{source} holds weights of another architecture ({'; '.join(wrong[:3])}); check the parameters of the run")
    detector.load_state_dict(weights, strict=False)
