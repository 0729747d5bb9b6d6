"""The machine: GPU, memory, disk, ports.

Every check takes the `Experiment` that is to run (None: the demo) and returns one finding. What a run needs is a rough
estimate from the size of its encoder; for the demo it was measured.
"""

import os
import shutil
import socket
import warnings
from pathlib import Path

from lib.doctor.report import BAD, OK, ROOT, WARN, Finding, gigabytes

# Weights of the encoder, by a part of the checkpoint's name; the last is AltCLIP's, for all that is unknown too.
ENCODERS = {"tiny": 2e6, "base": 0.2e9, "large": 0.6e9, "": 0.9e9}
SMALL = 20e6  # weights that a CPU can train
LORA_SHARE = 0.15  # adapters of rank 128 and heads, against the encoder
LAB_PORT = 8888
NO_GPU = "none: training runs on the CPU"


def gpu(config=None) -> Finding:
    """Name, memory and precision; without one, whether torch, the driver or the machine is the reason."""
    import torch

    with warnings.catch_warnings(record=True) as complaints:  # torch says here why it cannot use a driver
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return _gpus(torch, config)
    driver = bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia/version").exists()
    if driver and not torch.version.cuda:
        told = f"this machine has an NVIDIA driver, but torch {torch.__version__} is built without CUDA"
        return Finding("gpu", WARN, told, "install torch of the same version from an index that serves its CUDA build")
    if driver:
        said = f" ({complaints[-1].message})" if complaints else ""
        told = f"torch for CUDA {torch.version.cuda} cannot use a GPU of this machine{said}"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        remedy = "update the driver" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible!r}: unset it"
        return Finding("gpu", WARN, told, remedy)
    if config is not None and (config.fp16 or config.mixed_precision == "fp16"):
        return Finding("gpu", BAD, f"{NO_GPU}, which cannot do fp16", "fp16: false, mixed_precision: auto")
    if _weights(config) > SMALL:
        return Finding("gpu", WARN, f"{NO_GPU}, far too slow for {config.checkpoint}", "use a machine with a GPU")
    return Finding("gpu", OK, f"{NO_GPU}, which suits the demo")


def _gpus(torch, config) -> Finding:
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    shown = f"{len(cards)} x {cards[0].name}, {gigabytes(cards[0].total_memory)} each"
    half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16 only"
    told = f"{shown}, {half}, CUDA {torch.version.cuda}"
    if config is not None and config.num_processes > len(cards):
        return Finding("gpu", BAD, f"{told}; num_processes is {config.num_processes}", f"num_processes: {len(cards)}")
    return Finding("gpu", OK, told)


def memory(config=None) -> Finding:
    """What is free now, against the demo's 1.4 GB, or an encoder's weights twice, which loading them may take."""
    import psutil

    free, needed = psutil.virtual_memory().available, max(1.6e9, 2 * 4 * _weights(config))
    told = f"{gigabytes(free)} free, about {gigabytes(needed)} needed"
    return Finding("memory", OK, told) if free > needed else Finding("memory", WARN, told, "end other programs")


def shared_memory(config=None) -> Finding:
    """Data workers hand their batches over in /dev/shm, which containers often keep at 64 MB."""
    if config is None or not config.num_workers or not Path("/dev/shm").is_dir():
        return Finding("shared memory", OK, "not needed: no data workers")
    free = shutil.disk_usage("/dev/shm").free
    if free > 1e9:
        return Finding("shared memory", OK, f"{gigabytes(free)} free in /dev/shm")
    told = f"{gigabytes(free)} free in /dev/shm for {config.num_workers} data workers"
    return Finding("shared memory", WARN, told, "docker run --shm-size=8g, or num_workers: 0")


def disk(config=None) -> Finding:
    """Free space and the right to write where runs and prepared data go."""
    folders = ("runs", "data") if config is None else (config.runs, config.data_path)
    runs, data = (_existing(ROOT / folder) for folder in folders)
    closed = [str(folder) for folder in (runs, data) if not os.access(folder, os.W_OK)]
    if closed:
        remedy = "choose other folders with the parameters runs and data_path"
        return Finding("disk", BAD, f"{' and '.join(closed)} cannot be written", remedy)
    free, needed = shutil.disk_usage(runs).free, _run_bytes(config)
    told = f"{gigabytes(free)} free in {runs}, about {gigabytes(needed)} needed"
    if free > needed:
        return Finding("disk", OK, told)
    return Finding("disk", BAD, told, "free space, choose another folder with runs, or lower keep_checkpoints")


def ports(_config=None) -> Finding:
    """Kernels, JupyterLab and several processes speak over the loopback interface."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        remedy = "allow connections within this machine (firewall, container)"
        return Finding("ports", BAD, f"127.0.0.1 cannot be used ({error.strerror})", remedy)
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", LAB_PORT)) == 0
    if taken:
        return Finding("ports", OK, f"127.0.0.1 works; {LAB_PORT} is in use, JupyterLab takes the next one")
    return Finding("ports", OK, "127.0.0.1 works")


def _weights(config) -> float:
    """Weights of the encoder, roughly."""
    name = "tiny" if config is None else config.checkpoint.lower()
    files = [] if config is None else list(Path(config.checkpoint).expanduser().glob("*.safetensors"))
    if files:
        return sum(file.stat().st_size for file in files) / 2  # at least two bytes a weight
    return next(count for part, count in ENCODERS.items() if part in name)


def _run_bytes(config) -> float:
    """What a run's folder takes at most: float32 weights, two moments of Adam, averages; the demo with its data."""
    if config is None:
        return 0.2e9
    weights = _weights(config)
    trained = weights * (LORA_SHARE if config.lora_rank else 1)
    checkpoint = 4 * trained * (4 if config.ema else 3)
    # One more is written before the oldest is deleted; then there are the best and the final model.
    return checkpoint * (max(2, config.keep_checkpoints) + 1) + 2 * 4 * weights + 0.1e9


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
