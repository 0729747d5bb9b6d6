"""`Experiment`: every parameter of the recipe, flat, under the seed's names, in YAML and out."""

import dataclasses
import datetime
import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from lib.errors import InputError, nearest
from lib.files import replacing

KIND_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping",
}  # fmt: skip
REMOVED = ("accelerate_config",)  # parameters of earlier versions, which files of their runs still hold
PLACES = ("experiment_name", "runs", "data_path")  # parameters that say where, not how


def _field(default, **rules):
    """A field of `Experiment` with rules: `low` and `high` bound a number (by default 0 and nothing; -1 means never).

    `choices` are the allowed texts, `terms` those that may be joined with -; "module:NAME" stands for the registry that
    implements them, which is imported only to check a value other than the default. A run may go on with another value
    of what is `free`, and until it has finished of what is `movable`: neither changes what is learned.
    """
    return dataclasses.field(default=default, metadata=rules)


@dataclass
class Experiment:
    """One training run. Values are checked on construction; `InputError` names the key and the remedy."""

    # Where
    experiment_name: str = _field("", free=True)  # folder in `runs`; empty: the seed's pattern (see `name`)
    runs: str = _field("runs", free=True)
    data_path: str = _field("data/prepared", movable=True)  # what notebook 1 wrote
    # Model
    model: str = _field(
        "florence2", choices="lib.model.encoders.backbone:ENCODERS"
    )  # altclip: the organisers' baseline
    checkpoint: str = "florence-community/Florence-2-large"  # hub id, folder, or florence2-tiny (shipped)
    mask_head: str = _field("concat", choices="lib.model.heads:MASK_HEADS")
    score_head: str = _field("linear", choices="lib.model.heads:SCORE_HEADS")
    input_size: int = _field(768, low=1)  # pixels: both sides, or the height when input_width is given
    input_width: int = 0  # pixels; 0: as input_size
    mask_size: int = _field(768, low=1)  # pixels, height of the predicted heatmap; the width in the input's proportion
    mask_stride: int = _field(1, low=1)  # the mask head stops at this stride and interpolates to mask_size
    text_padding: str = _field("longest", choices=("longest", "max_length"))  # max_length: as the reference
    gradient_checkpointing: bool = _field(False, free=True)
    # What trains
    lora_rank: int = 0  # 0: full fine-tuning
    lora_alpha: int = _field(8, low=1)
    lora_dropout: float = _field(0.05, high=1)
    freeze_params: str = ""  # comma-separated fragments of parameter names; `all` is every one
    unfreeze_params: str = ""  # the same; wins over freeze_params
    # Recipe
    epoch: int = 50  # of the main stage
    warmup_epoch: int = 5  # of the first stage: encoder frozen, constant rate
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
    # Losses
    mask_loss: str = _field("dice-mse", terms="lib.model.losses:MASK_LOSSES")  # joined with -
    score_loss: str = _field("mse-plcc-srcc", terms="lib.model.losses:SCORE_LOSSES")  # joined with -
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
    num_workers: int = _field(4, free=True)
    # Running
    num_processes: int = _field(1, low=1)  # GPUs or, on a CPU, gloo processes
    mixed_precision: str = _field("auto", choices=("auto", "no", "bf16", "fp16"))
    fp16: bool = False  # the seed's flag: the same as mixed_precision: fp16 on a GPU
    nonfinite: str = _field("stop", choices=("stop", "skip"), free=True)  # what a loss that is no number does
    val_iter: int = _field(-1, low=-1)  # epochs between evaluations; -1: never
    save_iter: int = _field(5, low=-1, free=True)  # epochs between checkpoints; -1: only at the end
    keep_checkpoints: int = _field(1, free=True)  # of a finished run; 0: only its model
    log_iter: int = _field(20, low=1, free=True)  # optimizer steps between lines of the log
    wandb: str = _field("", free=True)  # project at Weights & Biases to report to as well
    seed: int = 42

    def __post_init__(self):
        problems = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
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
        if self.epoch + self.warmup_epoch == 0:
            problems.append("epoch and warmup_epoch are both 0: there is nothing to train")
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
        values = {key: value for key, value in values.items() if key not in REMOVED}
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


EXPONENT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def parse_value(text: str):
    """The value that `text` is in YAML; the text itself when it is no YAML."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        return text


def read_yaml(path) -> dict:
    """Read a YAML mapping (an empty file is an empty one). Raises InputError naming the file, for bad YAML the line."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; parameter sets live in notebooks/params") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise InputError(f"{path} must hold a mapping of names to values, not {KIND_NAMES.get(type(values), values)}")
    return values or {}


def free_to_change(finished: bool) -> set[str]:
    """The parameters that may differ between a run and its continuation, `finished` or not."""
    rules = ("free",) if finished else ("free", "movable")
    return {field.name for field in fields(Experiment) if any(field.metadata.get(rule) for rule in rules)}


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
        if isinstance(known, str):
            module, _, registry = known.partition(":")
            known = getattr(importlib.import_module(module), registry)
        terms = value.split("-") if "terms" in rules else [value]
        twice = [f"{name}: {term!r} is given twice" for term in known if terms.count(term) > 1]
        unknown = [term for term in terms if term not in known]
        return twice + [f"{name}: {term!r} is none of {', '.join(known)}{nearest(term, known)}" for term in unknown]
    if field.type not in (int, float):
        return []
    low, high = rules.get("low", 0), rules.get("high", math.inf)
    if low <= value <= high and math.isfinite(value) and (low >= 0 or value != 0):
        return []
    bounds = f"lie in {low}..{high}" if high < math.inf else f"be {'' if low else 'a number of '}at least {low}"
    return [f"{name}: {value} must {bounds if low >= 0 else 'be -1 (never) or a number of epochs'}"]
