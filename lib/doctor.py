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
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OK, WARN, BAD = "ok", "warn", "bad"  # fine; worth knowing; something that is needed is missing
INSTALL = "make install (conda: conda env update -f environment.yml)"
# JupyterLab's half of the widgets.
LAB_EXTENSIONS = {"ipywidgets": "@jupyter-widgets/jupyterlab-manager", "anywidget": "anywidget"}
# Weights of the encoder, by a part of the checkpoint's name; the last is AltCLIP's, for all that is unknown too.
ENCODERS = {"tiny": 2e6, "base": 0.2e9, "large": 0.6e9, "": 0.9e9}
LORA_SHARE = 0.15  # adapters of rank 128 and heads, against the encoder
PATIENCE = 3.0  # seconds for an answer of the hub


def python(_config=None):
    """The version, and whether this is the project's environment."""
    line = f"Python {'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}"
    if sys.version_info[:2] != (3, 11):
        return BAD, line, "Python 3.11 is needed: make install PYTHON=/path/to/python3.11"
    if Path(sys.prefix) == ROOT / ".venv" or os.environ.get("CONDA_PREFIX") == sys.prefix:
        return OK, line, ""
    return WARN, f"{line}, which is not this project's .venv", "start JupyterLab with make lab"


def packages(_config=None):
    """Every package of requirements.txt, at its version."""
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    found = {name: _version(name) for name, _ in pins}
    if absent := [name for name, _ in pins if not found[name]]:
        return BAD, f"not installed: {', '.join(absent)}", INSTALL
    if other := [f"{name} {found[name]} (not {pin})" for name, pin in pins if found[name] != pin]:
        return WARN, f"other versions than those tested: {', '.join(other)}", INSTALL
    return OK, f"{len(pins)} of requirements.txt at their versions", ""


def _version(name: str) -> str:
    """The installed version without its build (`+cpu`); empty when it is not installed."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def kernel(_config=None):
    """Whether notebooks run in this environment: the kernel `python3`."""
    command = [sys.executable, "-m", "jupyter", "kernelspec", "list", "--json"]
    kernels = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["kernelspecs"]
    if "python3" not in kernels:
        return BAD, "there is no kernel named python3", INSTALL
    program = Path(kernels["python3"]["spec"]["argv"][0])
    # A bare name is replaced by the Python of whoever starts the kernel.
    if program.is_absolute() and program.parent != Path(sys.executable).parent:
        remedy = f"start JupyterLab with make lab, or remove {kernels['python3']['resource_dir']}"
        return BAD, f"the kernel python3 runs {program}, not this environment", remedy
    return OK, "python3 runs in this environment", ""


def widgets(_config=None):
    """The browser's half of the widgets, of the right generation."""
    folder = Path(sys.prefix, "share", "jupyter", "labextensions")
    if absent := [name for name, path in LAB_EXTENSIONS.items() if not (folder / path / "package.json").is_file()]:
        line = f"JupyterLab lacks the extension of {' and '.join(absent)}: the mask inspector stays empty"
        return BAD, line, f"{INSTALL}, then restart JupyterLab"
    needed = next(text for text in importlib.metadata.requires("ipywidgets") if "jupyterlab_widgets" in text)
    wanted, found = re.search(r"\d+\.\d+", needed)[0], _version("jupyterlab_widgets")
    if not found.startswith(f"{wanted}."):
        line = f"jupyterlab_widgets {found or 'is not installed'}, but ipywidgets needs {wanted}: 'model not found'"
        return BAD, line, f"{INSTALL}, then restart JupyterLab"
    return OK, f"ipywidgets {_version('ipywidgets')}, anywidget {_version('anywidget')}", ""


def gpu(config=None):
    """Name, memory and precision; without one, whether torch, the driver or the machine is the reason."""
    import torch

    with warnings.catch_warnings(record=True) as complaints:  # torch says here why it cannot use a driver
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16 only"
        line = f"{len(cards)} x {cards[0].name}, {_gigabytes(cards[0].total_memory)} each, {half}"
        if config is not None and config.num_processes > len(cards):
            return BAD, f"{line}; num_processes is {config.num_processes}", f"num_processes: {len(cards)}"
        return OK, f"{line}, CUDA {torch.version.cuda}", ""
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        line = f"this machine has an NVIDIA driver, but torch {torch.__version__} is built without CUDA"
        return WARN, line, "install torch of the same version from an index that serves its CUDA build"
    if shutil.which("nvidia-smi"):
        reason = f" ({complaints[-1].message})" if complaints else ""
        remedy = "update the driver, or unset CUDA_VISIBLE_DEVICES"
        return WARN, f"torch for CUDA {torch.version.cuda} cannot use a GPU of this machine{reason}", remedy
    if config is not None and (config.fp16 or config.mixed_precision == "fp16"):
        return BAD, "none, and a CPU cannot do fp16", "fp16: false, mixed_precision: auto"
    if _weights(config) > 20e6:
        return WARN, f"none: a CPU is far too slow for {config.checkpoint}", "use a machine with a GPU"
    return OK, "none: training runs on the CPU, which suits the demo", ""


def memory(config=None):
    """What is free now, against the demo's 1.4 GB, or an encoder's weights twice, which loading them may take."""
    import psutil

    free, needed = psutil.virtual_memory().available, max(1.6e9, 2 * 4 * _weights(config))
    line = f"{_gigabytes(free)} free, about {_gigabytes(needed)} needed"
    return (OK, line, "") if free > needed else (WARN, line, "end other programs")


def disk(config=None):
    """Free space and the right to write where runs go."""
    folder = ROOT / ("runs" if config is None else config.runs)
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(folder, os.W_OK):
        return BAD, f"{folder} cannot be written", "choose another folder with the parameter runs"
    needed = 0.2e9
    if config is not None:
        weights = _weights(config)
        # Float32 weights and two moments of Adam, maybe averages. One checkpoint more is written before the oldest is
        # deleted; then there are the best and the final model.
        checkpoint = 4 * weights * (LORA_SHARE if config.lora_rank else 1) * (4 if config.ema else 3)
        needed = checkpoint * (max(2, config.keep_checkpoints) + 1) + 2 * 4 * weights + 0.1e9
    free = shutil.disk_usage(folder).free
    line = f"{_gigabytes(free)} free in {folder}, about {_gigabytes(needed)} needed"
    return (OK, line, "") if free > needed else (BAD, line, "free space, choose another folder with runs")


def data(config=None):
    """DATA_ROOT, when it is set, and what notebook 1 prepared; the demo draws and prepares its own."""
    given = os.environ.get("DATA_ROOT", "")
    needed = ("train/images", "train/train_info.json")
    if absent := [path for path in needed if given and not Path(given, path).exists()]:
        remedy = "name the folder that holds train/, val/ and test/ (data_cards/evalmuse_structure.md)"
        return BAD, f"DATA_ROOT is {given}, which lacks {' and '.join(absent)}", remedy
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
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(checkpoint, "model.safetensors"), str):
        return OK, f"not needed: {checkpoint} is in the cache {constants.HF_HUB_CACHE}", ""
    if constants.is_offline_mode():
        line = f"HF_HUB_OFFLINE is set and {checkpoint} is not in the cache {constants.HF_HUB_CACHE}"
        return BAD, line, "unset it to fetch the checkpoint once, or give a folder as checkpoint"
    try:
        HfApi().model_info(checkpoint, timeout=PATIENCE)
    except Exception as error:  # the client raises its own types and those of its HTTP library
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            remedy = "correct checkpoint, or log in with `hf auth login` (HF_TOKEN)"
            return BAD, f"{constants.ENDPOINT} does not give {checkpoint} ({status})", remedy
        remedy = "check the connection, set HF_ENDPOINT to a mirror, or give a folder as checkpoint"
        return BAD, f"{constants.ENDPOINT} cannot be reached ({status or type(error).__name__})", remedy
    return OK, f"{constants.ENDPOINT} gives {checkpoint}", ""


def _weights(config) -> float:
    """Weights of the encoder, roughly."""
    name = "tiny" if config is None else config.checkpoint.lower()
    return next(count for part, count in ENCODERS.items() if part in name)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 9.5e9 else f"{size / 1e9:.1f} GB"


CHECKS = (python, packages, kernel, widgets, gpu, memory, disk, data, hub)


def look(config=None) -> list[tuple[str, str, str, str]]:
    """(name, state, line, remedy) of every check; a check that fails is a finding, too."""
    found = []
    for check in CHECKS:
        try:
            found.append((check.__name__, *check(config)))
        except Exception as error:
            line = f"could not be looked at ({type(error).__name__}: {error})"
            found.append((check.__name__, WARN, line, "see to the other lines first"))
    return found


def report(found: list[tuple[str, str, str, str]]) -> str:
    """The findings of `look` as lines."""
    lines = []
    for name, state, line, remedy in found:
        lines += [f"{state:4}  {name:8}  {line}"] + [f"{'':16}-> {remedy}"] * bool(remedy)
    missing = ", ".join(name for name, state, *_ in found if state == BAD)
    return "\n".join([*lines, f"Missing: {missing}." if missing else "Nothing that is needed is missing."])


def examine(config=None) -> None:
    """Print what a run with this `Experiment` needs and does not find (default: what the demo needs)."""
    print(report(look(config)))


def main(arguments: list[str]) -> int:
    """`python -m lib.doctor [PARAMETERS.yaml]`; 0 when nothing needed is missing, else 1; 2 for a bad file."""
    config = None
    if arguments:
        from lib.config import Experiment  # not above: it needs packages that may be what is missing
        from lib.errors import InputError

        try:
            config = Experiment.from_yaml(arguments[0])
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
    found = look(config)
    print(report(found))
    return 1 if any(state == BAD for _, state, *_ in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
