"""What trains: LoRA adapters, the two stages, `freeze_params` and `unfreeze_params`; and what a run must save."""

import peft
import torch
from torch import Tensor, nn

from lib.config import Experiment
from lib.errors import InputError
from lib.model.encoders.encoder import Encoder


def with_lora(encoder: Encoder, config: Experiment) -> peft.PeftModel:
    """Wrap the encoder with adapters: rsLoRA, Gaussian init, on every target; one that matches nothing is an error."""
    layers = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    unmatched = sorted(set(encoder.lora_targets) - {name.split(".")[-1] for name in layers})
    if unmatched:
        raise InputError(
            f"LoRA targets {', '.join(unmatched)} match no layer of {config.checkpoint}; is it "
            f"{encoder.title}? Set lora_rank to 0 to train it in full"
        )
    lora = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, use_rslora=True,
        init_lora_weights="gaussian", bias="none", target_modules=list(encoder.lora_targets),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return peft.get_peft_model(encoder, lora)


def set_trainable(detector: nn.Module, stage: str) -> list[str]:
    """Decide which parameters train in a stage (`warmup` or `main`); returns their names.

    Warm-up freezes the encoder. In the main stage everything trains, or with LoRA the adapters and heads.
    `freeze_params`, then `unfreeze_params`, then apply by name fragment in both stages, except that the
    warm-up keeps the encoder frozen.
    """
    config = detector.config
    names = [name for name, _ in detector.named_parameters()]
    for key in ("freeze_params", "unfreeze_params"):
        unused = [f for f in _fragments(getattr(config, key)) if f != "all" and not any(f in name for name in names)]
        if unused:
            raise InputError(
                f"{key}: {', '.join(unused)} matches no parameter; names look like {names[0]}, {names[-1]}"
            )
    trained = [name for name in names if trains(config, name, stage)]
    if not trained:
        raise InputError(
            f"freeze_params: {config.freeze_params} leaves nothing to train in the {stage} stage; name less"
        )
    for name, parameter in detector.named_parameters():
        parameter.requires_grad_(trains(config, name, stage))
    return trained


def trains(config: Experiment, name: str, stage: str = "main") -> bool:
    """Whether the parameter of this name trains in a stage; the rules are those of `set_trainable`."""
    in_encoder = name.startswith("encoder.")
    if in_encoder and stage == "warmup":
        return False
    if _matches(name, _fragments(config.unfreeze_params)):
        return True
    frozen_base = in_encoder and config.lora_rank and "lora_" not in name
    return not frozen_base and not _matches(name, _fragments(config.freeze_params))


def own_weights(detector: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that a run must save: all, or with LoRA those that are not the base as it was."""
    state, config = detector.state_dict(), detector.config
    if not config.lora_rank:
        return state
    return {k: v for k, v in state.items() if not k.startswith("encoder.") or "lora_" in k or trains(config, k)}


def _fragments(text: str) -> list[str]:
    return [fragment.strip() for fragment in text.split(",") if fragment.strip()]


def _matches(name: str, fragments: list[str]) -> bool:
    return any(fragment == "all" or fragment in name for fragment in fragments)
