"""What is missing on this machine and how to mend it: `make doctor`, or in a notebook `examine(config)`.

A check is a function of the `Experiment` that is to run (None: the demo) that returns (state, line, remedy). Packages
are imported inside the checks only, so that a half installed environment can be examined.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from lib.errors import InputError, command

ROOT = Path(__file__).resolve().parents[1]
OK, WARN, BAD = "ok", "warn", "bad"  # fine; worth knowing; something that is needed is missing
INSTALL = "make install (conda: conda env update -f environment.yml)"
# Weights of the encoder, by a part of the checkpoint's name; the last is AltCLIP's, for all that is unknown too.
ENCODERS = {"tiny": 2e6, "base": 0.2e9, "large": 0.6e9, "": 0.9e9}
LORA_SHARE = 0.15  # adapters of rank 128 and heads, against the encoder


def packages(_config=None):
    """Every package that pyproject.toml asks for, at the version of constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["notebooks"]
    # Lower case: pip writes Jinja2 for the jinja2 that is asked for.
    tested = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text("utf-8").lower(), re.M))
    absent, other = [], []
    for name in [re.match(r"[\w.-]+", requirement)[0] for requirement in asked]:
        try:
            version = importlib.metadata.version(name).partition("+")[0]  # without its build, such as +cpu
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
            continue
        other += [] if version == tested[name.lower()] else [f"{name} {version} (not {tested[name.lower()]})"]
    if absent:
        return BAD, f"not installed: {', '.join(absent)}", INSTALL
    if other:
        return WARN, f"other versions than those tested: {', '.join(other)}", INSTALL
    return OK, f"{len(asked)} at the versions of constraints.txt, in {sys.prefix}", ""


def kernel(_config=None):
    """Whether the kernel `python3` is of this environment, and JupyterLab has its half of the widgets."""
    command = [sys.executable, "-m", "jupyter", "kernelspec", "list", "--json"]
    kernels = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["kernelspecs"]
    if "python3" not in kernels:
        return BAD, "there is no kernel named python3", INSTALL
    program = Path(kernels["python3"]["spec"]["argv"][0])
    # A bare name is replaced by the Python of whoever starts the kernel.
    if program.is_absolute() and program.parent != Path(sys.executable).parent:
        remedy = f"start JupyterLab with make lab, or remove {kernels['python3']['resource_dir']}"
        return BAD, f"the kernel python3 runs {program}, not this environment", remedy
    extensions = Path(sys.prefix, "share", "jupyter", "labextensions")
    for extension in ("@jupyter-widgets/jupyterlab-manager", "anywidget"):
        if not (extensions / extension / "package.json").is_file():
            line = f"JupyterLab lacks the extension {extension}: the mask inspector stays empty"
            return BAD, line, f"{INSTALL}, then restart JupyterLab"
    return OK, "python3 runs in this environment, and JupyterLab has the widgets", ""


def gpu(config=None):
    """Name, memory and precision; without one, whether torch, the driver or the machine is the reason."""
    import torch

    if torch.cuda.is_available():  # which warns of a driver that it cannot use
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16 only"
        memory = _gigabytes(cards[0].total_memory)
        return OK, f"{len(cards)} x {cards[0].name}, {memory} each, {half}, CUDA {torch.version.cuda}", ""
    if shutil.which("nvidia-smi"):
        line = f"this machine has an NVIDIA driver, but torch {torch.__version__} cannot use it"
        return WARN, line, "install torch built for CUDA, update the driver, or unset CUDA_VISIBLE_DEVICES"
    if _weights(config) > 20e6:
        return WARN, f"none: a CPU is far too slow for {config.checkpoint}", "use a machine with a GPU"
    return OK, "none: training runs on the CPU, which suits the demo", ""


def shared(config=None):
    """Shared memory, through which data workers hand over their batches; a container often has 64 MB."""
    if config is None or not config.num_workers or not Path("/dev/shm").is_dir():
        return OK, "not needed: no data workers, or none that use /dev/shm", ""
    (height, width), (mask_height, mask_width) = config.input_shape, config.mask_shape
    batch = max(config.batch_size, config.batch_size_warmup if config.warmup_epoch else 0, config.batch_size_val)
    # Every worker keeps two batches ready, pixels and label a byte each.
    needed = 2 * config.num_processes * config.num_workers * batch * (3 * height * width + mask_height * mask_width)
    return _enough("/dev/shm", needed, "lower num_workers, or docker run --shm-size")


def disk(config=None):
    """Free space and the right to write where runs go."""
    folder = ROOT / ("runs" if config is None else config.runs)
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(folder, os.W_OK):
        return BAD, f"{folder} cannot be written", "choose another folder with the parameter runs"
    # Float32 weights, two moments of Adam, maybe averages; one checkpoint more is written before the oldest is deleted.
    share, kept = (1, 2) if config is None else (LORA_SHARE if config.lora_rank else 1, max(2, config.keep_checkpoints))
    needed = 0.1e9 + _weights(config) * (16 * share * (kept + 1) + 8)  # and the best and the final model
    return _enough(folder, needed, "free space, choose another folder with runs")


def data(config=None):
    """What notebook 1 prepared; the demo draws and prepares its own."""
    folder = ROOT / ("data/demo/prepared" if config is None else config.data_path)
    splits = [path.parent.name for path in sorted(folder.glob("*/manifest.parquet"))]
    if config is not None and "train" not in splits:
        remedy = "run 1_data_processing.ipynb with the same data_path, or correct data_path"
        return BAD, f"{folder} holds no prepared train split", remedy
    return OK, f"{folder} with {', '.join(splits)}" if splits else "none prepared yet; make demo draws its own", ""


def hub(config=None):
    """Whether the checkpoint can be had: shipped, a folder, in the cache, or from the hub. The demo ships its own."""
    checkpoint = "florence2-tiny" if config is None else config.checkpoint
    if (ROOT / "lib/pretrained" / checkpoint).is_dir() or Path(checkpoint).expanduser().is_dir():
        return OK, f"not needed: {checkpoint} is a folder on this machine", ""
    from huggingface_hub import constants, try_to_load_from_cache

    from lib.model.hub import find

    name, _, revision = checkpoint.partition("@")
    if isinstance(try_to_load_from_cache(name, "model.safetensors", revision=revision or None), str):
        return OK, f"not needed: {checkpoint} is in the cache {constants.HF_HUB_CACHE}", ""
    try:
        find(checkpoint)
    except InputError as error:
        return BAD, *str(error).split("; ", 1)
    return OK, f"{constants.ENDPOINT} gives {checkpoint}", ""


def _enough(folder, needed: float, remedy: str):
    free = shutil.disk_usage(folder).free
    line = f"{_gigabytes(free)} free in {folder}, about {_gigabytes(needed)} needed"
    return (OK, line, "") if free > needed else (BAD, line, remedy)


def _weights(config) -> float:
    """Weights of the encoder, roughly."""
    name = "tiny" if config is None else config.checkpoint.lower()
    return next(count for part, count in ENCODERS.items() if part in name)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 9.5e9 else f"{size / 1e9:.1f} GB"


CHECKS = (packages, kernel, gpu, shared, disk, data, hub)


def examine(config=None) -> bool:
    """Print what a run with this `Experiment` (default: the demo) needs; returns whether nothing is missing."""
    missing = []
    for check in CHECKS:
        try:
            state, line, remedy = check(config)
        except Exception as error:  # a check that fails is a finding, too
            line = f"could not be looked at ({type(error).__name__}: {error})"
            state, remedy = WARN, "see to the other lines first"
        print(f"{state:4}  {check.__name__:8}  {line}" + f"\n{'':16}-> {remedy}" * bool(remedy))
        missing += [check.__name__] * (state == BAD)
    print(f"Missing: {', '.join(missing)}." if missing else "Nothing that is needed is missing.")
    return not missing


@command
def main(arguments: list[str]) -> int:
    """`python -m lib.doctor [PARAMETERS.yaml]`; 0 when nothing needed is missing, else 1; 2 for a bad file."""
    if not arguments:
        return int(not examine())
    from lib.config import Experiment  # not above: it needs packages that may be what is missing

    return int(not examine(Experiment.from_yaml(arguments[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
