"""`Experiment`: every parameter of the recipe, flat, under the seed's names, in YAML and out."""

import dataclasses
import datetime
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from lib.errors import InputError, nearest
from lib.files import write_text
from lib.reference_flags import hint
from lib.yaml_files import KIND_NAMES, dump_yaml, read_yaml

REMOVED = ("accelerate_config",)  # parameters of earlier versions, which files of their runs still hold
PLACES = ("experiment_name", "runs", "data_path")  # parameters that say where, not how


def _field(default, **rules):
    """A field of `Experiment` with rules: `low` and `high` bound a number (by default 0 and nothing; -1 means never).

    `choices` are the allowed texts, `terms` those that may be joined with -; "module:NAME" stands for the registry that
    implements them, which is imported (with torch) only to check a value that is neither the default nor of `usual`
    terms. A run may go on with another value of what is `free`: it does not change what is learned.
    """
    return dataclasses.field(default=default, metadata=rules)


@dataclass
class Experiment:
    """One training run. Values are checked on construction; `InputError` names the key and the remedy."""

    # Where
    experiment_name: str = _field("", free=True)  # folder in `runs`; empty: the seed's pattern (see `name`)
    runs: str = _field("runs", free=True)
    data_path: str = "data/prepared"  # what notebook 1 wrote
    # Model
    model: str = _field(
        "florence2", choices="lib.model.encoders.backbone:ENCODERS"
    )  # altclip: the organisers' baseline
    checkpoint: str = "florence-community/Florence-2-large"  # hub id, folder, or florence2-tiny (shipped)
    mask_head: str = _field("concat", choices="lib.model.heads:MASK_HEADS")
    score_head: str = _field("linear", choices="lib.model.heads:SCORE_HEADS")
    input_size: int = _field(768, low=1)  # pixels: both sides, or the height when input_width is given
    input_width: int = 0  # pixels; 0: as input_size
    resampling: str = _field("area", choices=("area", "lanczos"))  # of images; lanczos: as the reference
    mask_size: int = _field(768, low=1)  # pixels, height of the predicted heatmap; the width in the input's proportion
    mask_stride: int = _field(1, low=1)  # the mask head stops at this stride and interpolates to mask_size
    mask_norm: str = _field("group", choices=("group", "batch"))  # batch: as the reference
    align_corners: bool = False  # of the mask head's x2 steps; true: as the reference
    fusion: str = _field("multihead", choices="lib.model.encoders.altclip:FUSIONS")  # of AltCLIP; rahf: the baseline's
    text_padding: str = _field("longest", choices=("longest", "max_length"))  # max_length: as the reference
    gradient_checkpointing: bool = _field(False, free=True)
    compile: bool = _field(False, free=True)  # the encoder by torch.compile: minutes at first; not yet seen on a GPU
    # What trains
    lora_rank: int = 0  # 0: full fine-tuning
    lora_alpha: int = _field(8, low=1)
    lora_dropout: float = _field(0.05, high=1)
    lora_targets: str = ""  # comma-separated names of the layers that get adapters; empty: all the encoder names
    freeze_params: str = ""  # comma-separated fragments of parameter names; `all` is every one
    unfreeze_params: str = ""  # the same; wins over freeze_params
    # Recipe
    epoch: int = 50  # of the main stage
    iters: int = 0  # optimizer steps of the main stage, with epoch: 0
    warmup_epoch: int = 5  # of the first stage: encoder frozen, constant rate
    warmup_encoder: str = _field("eval", choices=("eval", "train"))  # train: its dropout disturbs the frozen features
    carry_optimizer: bool = False  # the main stage goes on with the warm-up's optimizer: the heads keep their moments
    batch_size: int = _field(8, low=1)  # of one process and one micro-batch
    batch_size_warmup: int = _field(16, low=1)
    batch_size_val: int = _field(16, low=1, free=True)
    accumulate_step: int = _field(16, low=1)  # micro-batches per optimizer step
    lr: float = 1e-4  # of the heads
    backbone_lr_decay: float = 0.1  # the encoder's rate is lr times this; adapters of LoRA too
    min_lr: float = 0.0  # where the cosine of the heads ends; the encoder's in proportion
    weight_decay: float = 5e-5  # of the heads
    backbone_weight_decay: float = 1e-2
    clip_grad_norm: float = 0.0  # 0: no clipping
    ema: bool = False  # evaluate and save an exponential moving average of the weights
    ema_decay: float = _field(0.999, high=1)
    # Losses; several are joined with -
    mask_loss: str = _field("dice-mse", terms="lib.model.losses:MASK_LOSSES", usual=("dice", "mse", "bce"))
    score_loss: str = _field("mse-plcc-srcc", terms="lib.model.losses:SCORE_LOSSES")
    mask_loss_weight: float = 1.0
    score_loss_weight: float = 1.0
    # Data
    val_split: int = 0  # images held out of train; 0: the `val` split, when it has labels
    negative_num: int = 0  # photographs without distortion appended to train
    pseudo_labels: str = ""  # a run's predictions/<split>: what it predicted there is appended to train as labels
    hflip: float = _field(0.5, high=1)  # probabilities of the augmentations
    random_crop: float = _field(0.5, high=1)
    colour_jitter: float = _field(0.1, high=1)
    grey: float = _field(0.1, high=1)
    augment_after_resize: bool = False  # colours and JPEG at input_size and in random order, as the reference
    num_workers: int = _field(4, free=True)
    # Running
    num_processes: int = _field(1, low=1)  # GPUs or, on a CPU, gloo processes
    process_timeout: int = _field(60, low=1, free=True)  # minutes that a process waits for the others
    mixed_precision: str = _field("auto", choices=("auto", "no", "bf16", "fp16"))
    fp16: bool = False  # the seed's flag: the same as mixed_precision: fp16 on a GPU
    nonfinite: str = _field("stop", choices=("stop", "skip"), free=True)  # what a loss that is no number does
    val_iter: int = _field(-1, low=-1)  # epochs between evaluations; -1: never
    save_iter: int = _field(5, low=-1, free=True)  # epochs between checkpoints; -1: only at the end
    keep_checkpoints: int = _field(1, free=True)  # of a finished run; 0: only its model
    log_iter: int = _field(20, low=1, free=True)  # optimizer steps between lines of the log
    wandb: str = _field("", free=True)  # project at Weights & Biases to report to as well
    deterministic: bool = False  # a GPU repeats a run to the last bit, as a CPU does anyway; slower
    seed: int = _field(42, high=2**63 - 1)

    def __post_init__(self):
        problems = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int and abs(value) < 2**53:
                setattr(self, field.name, value := float(value))
            if type(value) is not field.type:
                example = f"for example {field.default!r}"
                problems.append(f"{field.name}: {value!r} is not {KIND_NAMES[field.type]}, {example}")
            elif value != field.default:
                problems += _against_rules(field, value)
        if problems := problems or self._contradictions():
            raise InputError("; ".join(problems))

    def _contradictions(self) -> list[str]:
        name, problems = self.experiment_name, []
        if self.epoch and self.iters:
            problems.append(f"epoch: {self.epoch} and iters: {self.iters} both say how long to train; set one to 0")
        if self.epoch + self.iters + self.warmup_epoch == 0:
            problems.append("epoch, iters and warmup_epoch are all 0: there is nothing to train")
        if self.mask_loss_weight + self.score_loss_weight == 0:
            problems.append("mask_loss_weight and score_loss_weight are both 0: there is nothing to learn")
        if self.min_lr > self.lr:
            problems.append(f"min_lr: {self.min_lr} is above lr ({self.lr}); the rate falls from lr to min_lr")
        if self.fp16 and self.mixed_precision not in ("auto", "fp16"):
            problems.append(f"fp16: true contradicts mixed_precision: {self.mixed_precision}; give one of them")
        if name != Path(name).name or name == "..":
            problems.append(f"experiment_name: {name!r} must be one plain folder name; give the rest in runs")
        return problems

    @property
    def input_shape(self) -> tuple[int, int]:
        """Height and width of the network's input, in pixels."""
        return self.input_size, self.input_width or self.input_size

    @property
    def mask_shape(self) -> tuple[int, int]:
        """Height and width of the predicted heatmap, in pixels."""
        height, width = self.input_shape
        return self.mask_size, max(1, round(self.mask_size * width / height))

    @property
    def name(self) -> str:
        """The experiment's name: the one given, or the seed's pattern with today's date."""
        if self.experiment_name:
            return self.experiment_name
        warmup = f"_warmup{self.warmup_epoch}" if self.lora_rank == 0 else ""
        return (
            f"{datetime.date.today():%Y%m%d}_{self.model}_{self.mask_loss}_{self.score_loss}_lora{self.lora_rank}"
            f"_{self.score_head}_{self.mask_head}{warmup}_gpu{self.num_processes}"
        )

    @property
    def folder(self) -> Path:
        """The run's folder, `runs/<experiment>`."""
        return Path(self.runs) / self.name

    def resolved(self) -> "Experiment":
        """The same with its name fixed: that of a run of these parameters which has not ended, else today's."""
        if self.experiment_name:
            return self
        for folder in sorted(Path(self.runs).glob("?" * 8 + self.name[8:]), reverse=True):
            named = dataclasses.replace(self, experiment_name=folder.name)
            begun = (folder / "config.yaml").is_file() and not (folder / "finished.json").is_file()
            if begun and Experiment.from_yaml(folder / "config.yaml") == named:
                return named
        return dataclasses.replace(self, experiment_name=self.name)

    @classmethod
    def from_dict(cls, values: dict, source: str = "parameters") -> "Experiment":
        """Build from a mapping; unknown keys are an `InputError` that names the nearest valid one."""
        values = _renamed({key: value for key, value in values.items() if key not in REMOVED})
        known = [field.name for field in fields(cls)]
        unknown = [f"{key!r} is no parameter{hint(key, known)}" for key in values if key not in known]
        if unknown:
            raise InputError(f"{source}: " + "; ".join(unknown))
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    @classmethod
    def from_yaml(cls, path, **overrides) -> "Experiment":
        """Read a parameter set; `overrides` win over the file."""
        return cls.from_dict({**read_yaml(path), **overrides}, source=str(path))

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def save(self, path) -> None:
        """Write as YAML, in the order of the fields."""
        write_text(path, dump_yaml(self.to_dict()))


def _renamed(values: dict) -> dict:
    """Parameters under today's names; only the whole record of a run of an earlier version has other ones.

    It is known by `mask_norm`, which it does not hold. Its losses and its `conv` head were others than the
    reference's of that name.
    """
    if "mask_norm" in values or not {"runs", "mask_loss", "score_head", "wandb", "seed"} <= values.keys():
        return values
    terms = {"dice": "binary_dice", "soft_dice": "dice"}
    loss, head = str(values["mask_loss"]).split("-"), values["score_head"]
    return values | {
        "mask_loss": "-".join(terms.get(term, term) for term in loss),
        "score_head": {"conv": "conv_mean"}.get(head, head),
    }


# The parameters that may differ between a run and its continuation.
FREE = {field.name for field in fields(Experiment) if field.metadata.get("free")}


def differing(configs: Mapping[str, dict]) -> list[str]:
    """The parameters that are not the same in all of several runs ({run: every parameter}), without `PLACES`."""
    names = next(iter(configs.values()), {})
    return [
        name for name in names if name not in PLACES and len({repr(config[name]) for config in configs.values()}) > 1
    ]


def _against_rules(field, value) -> list[str]:
    """What is wrong with a value by the rules of its field."""
    rules, name = field.metadata, field.name
    if known := rules.get("choices") or rules.get("terms"):
        terms = value.split("-") if "terms" in rules else [value]
        if set(terms) <= set(usual := rules.get("usual", ())):
            known = usual
        elif isinstance(known, str):
            module, _, registry = known.partition(":")
            known = getattr(importlib.import_module(module), registry)
        unknown = [term for term in terms if term not in known]
        return [f"{name}: {term!r} is none of {', '.join(known)}{nearest(term, known)}" for term in unknown]
    if field.type not in (int, float):
        return []
    low, high = rules.get("low", 0), rules.get("high", math.inf)
    if low <= value <= high and math.isfinite(value) and (low >= 0 or value != 0):
        return []
    bounds = f"lie in {low}..{high}" if high < math.inf else f"be {'' if low else 'a number of '}at least {low}"
    return [f"{name}: {value} must {bounds if low >= 0 else 'be -1 (never) or a number of epochs'}"]
