"""What trains: LoRA adapters, the two stages, `freeze_params` and `unfreeze_params`; and what a run must save."""

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from lib.config import Experiment
from lib.errors import InputError
from lib.model.encoders.encoder import Encoder, checkpointed
from lib.reference_flags import MODULES


def with_lora(encoder: Encoder, config: Experiment) -> peft.PeftModel:
    """Wrap the encoder with adapters: rsLoRA, Gaussian init, on every layer named; a name without layer is an error."""
    targets = _fragments(config.lora_targets) or encoder.lora_targets
    layers = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    unmatched = sorted(set(targets) - {name.split(".")[-1] for name in layers})
    if unmatched:
        raise InputError(
            f"lora_targets: {', '.join(unmatched)} match no layer of {config.checkpoint}; "
            f"layers of {encoder.model} are {', '.join(encoder.lora_targets)}"
        )
    lora = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, use_rslora=True,
        init_lora_weights="gaussian", bias="none", target_modules=list(targets),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapted = peft.get_peft_model(encoder, lora)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # under autocast: a float32 copy of every layer's input
            if config.lora_dropout:
                _keep_input_only(module)
    return adapted


def _keep_input_only(layer: LoraLayer) -> None:
    """Let the backward pass compute an adapter anew.

    Kept, the copies and masks of dropout, of which each adapter has its own, and the products take more memory than
    training the base does.
    """
    first, second, rate = layer.lora_A["default"], layer.lora_B["default"], layer.lora_dropout["default"].p
    down, up = first.forward, second.forward

    def adapter(x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return checkpointed(first, lambda x: up(down(functional.dropout(x, rate, first.training))), x)

    # peft adds lora_B(lora_A(lora_dropout(x))) to what the layer gives.
    layer.lora_dropout["default"], first.forward, second.forward = nn.Identity(), adapter, lambda x: x


def set_trainable(detector: nn.Module, stage: str) -> list[str]:
    """Decide which parameters train in a stage (`warmup` or `main`); returns their names.

    Warm-up freezes the encoder. In the main stage everything trains, or with LoRA the adapters and heads.
    `freeze_params`, then `unfreeze_params`, then apply by name fragment in both stages, except that the
    warm-up keeps the encoder frozen.
    """
    config, parameters = detector.config, dict(detector.named_parameters())
    names = list(parameters)
    for key in ("freeze_params", "unfreeze_params"):
        unused = [f for f in _fragments(getattr(config, key)) if not any(_matches(name, [f]) for name in names)]
        if unused:
            raise InputError(
                f"{key}: {', '.join(unused)} matches no parameter; names look like {names[0]}, {names[-1]}"
            )
    for name, parameter in parameters.items():
        parameter.requires_grad_(_trains(config, name, stage))
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not trained:
        raise InputError(
            f"freeze_params: {config.freeze_params} leaves nothing to train in the {stage} stage; name less"
        )
    return trained


def own_weights(detector: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that a run must save: all, or with LoRA those that are not the base as it was."""
    state, config = detector.state_dict(), detector.config
    if not config.lora_rank:
        return state
    return {k: v for k, v in state.items() if not k.startswith("encoder.") or "lora_" in k or _trains(config, k)}


def _trains(config: Experiment, name: str, stage: str = "main") -> bool:
    """Whether the parameter of this name trains in a stage; the rules are those of `set_trainable`."""
    in_encoder = name.startswith("encoder.")
    if in_encoder and stage == "warmup":
        return False
    if _matches(name, _fragments(config.unfreeze_params)):
        return True
    frozen_base = in_encoder and config.lora_rank and "lora_" not in name
    return not frozen_base and not _matches(name, _fragments(config.freeze_params))


def _fragments(text: str) -> list[str]:
    fragments = [fragment.strip() for fragment in text.split(",") if fragment.strip()]
    return [MODULES.get(fragment, fragment) for fragment in fragments]


def _matches(name: str, fragments: list[str]) -> bool:
    return any(fragment == "all" or fragment in name for fragment in fragments)
