"""`Experiment`: every parameter of the recipe, flat, under the seed's names, in YAML and out."""

import dataclasses
import datetime
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import yaml

from lib.errors import InputError, nearest
from lib.files import replacing

MASK_LOSSES = ("mse", "dice", "soft_dice", "bce")
SCORE_LOSSES = ("mse", "plcc", "srcc")
CHOICES = {
    "model": ("florence2", "altclip"),
    "mask_head": ("concat", "last", "concat_cls"),
    "score_head": ("linear", "linear2", "conv", "linear_cls", "linear2_cls"),
    "text_padding": ("longest", "max_length"),
    "mixed_precision": ("auto", "no", "bf16", "fp16"),
    "nonfinite": ("stop", "skip"),
}


KIND_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping",
}  # fmt: skip


class Limit(NamedTuple):
    """A range of numbers and how it is told: "must {told}"."""

    told: str
    low: float = 0
    high: float = math.inf

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and math.isfinite(value)


LIMITS = {
    Limit("be at least 1", 1): (
        "input_size", "mask_size", "mask_stride", "lora_alpha", "batch_size", "batch_size_warmup", "batch_size_val",
        "accumulate_step", "num_processes", "log_iter",
    ),
    Limit("be a number of at least 0"): (
        "input_width", "lora_rank", "epoch", "warmup_epoch", "lr", "backbone_lr_decay", "min_lr", "weight_decay",
        "backbone_weight_decay", "clip_grad_norm", "mask_loss_weight", "score_loss_weight", "val_split", "negative_num",
        "num_workers", "keep_checkpoints", "seed",
    ),
    Limit("lie in 0..1", 0, 1): ("lora_dropout", "ema_decay", "hflip", "random_crop", "colour_jitter", "grey"),
}  # fmt: skip


@dataclass
class Experiment:
    """One training run. Values are checked on construction; `InputError` names the key and the remedy."""

    # Where
    experiment_name: str = ""  # folder below `runs`; empty: built from the values as the seed does
    runs: str = "runs"
    data_path: str = "data/prepared"  # what notebook 1 wrote
    # Model
    model: str = "florence2"  # florence2 | altclip (the organisers' baseline)
    checkpoint: str = "florence-community/Florence-2-large"  # hub id, folder, or florence2-tiny (shipped)
    mask_head: str = "concat"  # concat | last | concat_cls
    score_head: str = "linear"  # linear | linear2 | conv | linear_cls | linear2_cls
    input_size: int = 768  # pixels: both sides, or the height when input_width is given
    input_width: int = 0  # pixels; 0: as input_size
    mask_size: int = 768  # pixels, height of the predicted heatmap; its width is in the input's proportion
    mask_stride: int = 1  # the mask head stops at this stride and interpolates to mask_size
    text_padding: str = "longest"  # max_length: pad to 1024 and attend to the padding, as the reference did
    gradient_checkpointing: bool = False
    # What trains
    lora_rank: int = 0  # 0: full fine-tuning
    lora_alpha: int = 8
    lora_dropout: float = 0.05
    freeze_params: str = ""  # comma-separated fragments of parameter names; `all` is every one
    unfreeze_params: str = ""  # the same; wins over freeze_params
    # Recipe
    epoch: int = 50  # of the main stage
    warmup_epoch: int = 5  # of the first stage: encoder frozen, constant rate
    batch_size: int = 8  # of one process and one micro-batch
    batch_size_warmup: int = 16
    batch_size_val: int = 16
    accumulate_step: int = 16  # micro-batches per optimizer step
    lr: float = 1e-4  # of the heads
    backbone_lr_decay: float = 0.1  # the encoder's rate is lr times this; adapters of LoRA too
    min_lr: float = 0.0  # where the cosine of the heads ends; the encoder's in proportion
    weight_decay: float = 5e-5  # of the heads
    backbone_weight_decay: float = 1e-2
    clip_grad_norm: float = 0.0  # 0: no clipping
    ema: bool = False  # evaluate and save an exponential moving average of the weights
    ema_decay: float = 0.999
    # Losses
    mask_loss: str = "dice-mse"  # terms of mse, dice, soft_dice, bce joined with -
    score_loss: str = "mse-plcc-srcc"  # terms of mse, plcc, srcc joined with -
    mask_loss_weight: float = 1.0
    score_loss_weight: float = 1.0
    # Data
    val_split: int = 0  # images held out of train; 0: the `val` split, when it has labels
    negative_num: int = 0  # photographs without distortion appended to train
    pseudo_labels: str = ""  # a run's predictions/<split>: what it predicted there is appended to train as labels
    hflip: float = 0.5  # probabilities of the augmentations
    random_crop: float = 0.5
    colour_jitter: float = 0.1
    grey: float = 0.1
    num_workers: int = 4
    # Running
    num_processes: int = 1  # GPUs or, on a CPU, gloo processes
    accelerate_config: str = ""  # file of `accelerate config` for FSDP; empty: every process holds the whole model
    mixed_precision: str = "auto"  # auto | no | bf16 | fp16
    fp16: bool = False  # the seed's flag: the same as mixed_precision: fp16 on a GPU
    nonfinite: str = "stop"  # a loss that is no number: stop, or skip that step's update
    val_iter: int = -1  # epochs between evaluations; -1: never
    save_iter: int = 5  # epochs between checkpoints; -1: only at the end
    keep_checkpoints: int = 1  # how many remain when the run has ended; 0: only the final model
    log_iter: int = 20  # optimizer steps between lines of the log
    wandb: str = ""  # project at Weights & Biases to report to as well; empty: TensorBoard only
    seed: int = 42

    def __post_init__(self):
        problems = [problem for field in fields(self) if (problem := self._mistyped(field))]
        if not problems:
            problems = self._invalid()
        if problems:
            raise InputError("; ".join(problems))

    def _mistyped(self, field) -> str | None:
        value = getattr(self, field.name)
        if field.type is float and type(value) is int:
            setattr(self, field.name, float(value))
        elif type(value) is not field.type:
            example = f", for example {field.default!r}"
            return f"{field.name}: {value!r} is not {KIND_NAMES[field.type]}{example}"
        return None

    def _invalid(self) -> list[str]:
        problems = [
            f"{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}{nearest(getattr(self, name), allowed)}"
            for name, allowed in CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        problems += _bad_terms("mask_loss", self.mask_loss, MASK_LOSSES)
        problems += _bad_terms("score_loss", self.score_loss, SCORE_LOSSES)
        for limit, names in LIMITS.items():
            values = {name: getattr(self, name) for name in names}
            problems += [
                f"{name}: {value} must {limit.told}" for name, value in values.items() if not limit.holds(value)
            ]
        for name in ("val_iter", "save_iter"):
            if getattr(self, name) == 0 or getattr(self, name) < -1:
                problems.append(f"{name}: {getattr(self, name)} must be -1 (never) or a number of epochs")
        if self.epoch + self.warmup_epoch == 0:
            problems.append("epoch and warmup_epoch are both 0: there is nothing to train")
        if self.mask_loss_weight + self.score_loss_weight == 0:
            problems.append("mask_loss_weight and score_loss_weight are both 0: there is nothing to learn")
        if self.min_lr > self.lr:
            problems.append(f"min_lr: {self.min_lr} is above lr ({self.lr}); the rate falls from lr to min_lr")
        if self.fp16 and self.mixed_precision not in ("auto", "fp16"):
            problems.append(f"fp16: true contradicts mixed_precision: {self.mixed_precision}; give one of them")
        if self.experiment_name != Path(self.experiment_name).name or self.experiment_name == "..":
            problems.append(
                f"experiment_name: {self.experiment_name!r} must be one plain folder name; give the rest in runs"
            )
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

    def settled(self) -> "Experiment":
        """The same with a name for good: that of a run of these parameters which has not ended, else today's."""
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
        known = [field.name for field in fields(cls)]
        unknown = [f"{key!r} is no parameter{nearest(key, known)}" for key in values if key not in known]
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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """PyYAML with two habits mended: YAML 1.1 reads 1e-4 as text, and the last of two equal keys wins in silence."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_value(text: str):
    """The value that `text` is in YAML; the text itself when it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        return text


def read_yaml(path) -> dict:
    """Read a YAML mapping (an empty file is an empty one). Raises InputError naming the file, for bad YAML the line."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; parameter sets live in notebooks/params") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of names to values, not {KIND_NAMES.get(type(values), values)}")
    return values


def _bad_terms(key: str, value: str, known: tuple[str, ...]) -> list[str]:
    terms = value.split("-")
    twice = [f"{key}: {term!r} is given twice" for term in known if terms.count(term) > 1]
    unknown = [term for term in terms if term not in known]
    return twice + [f"{key}: {term!r} is none of {', '.join(known)}{nearest(term, known)}" for term in unknown]
