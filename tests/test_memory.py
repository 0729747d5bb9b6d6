"""The memory that a training takes does not grow with the number of images."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SMALL, LARGE = 500, 5000  # images of train
ALLOWED = 40 * 1024  # KiB: rows of the manifest and of the log; 4,500 images of 64 px would be 54 MiB, tensors far more
# Not ru_maxrss: that of a child begins at what its parent had.
TRAIN = """
import sys
from pathlib import Path
from lib.train.__main__ import main

assert main([sys.argv[1]]) == 0
print(*[line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line])
"""


def repeated(prepared: Path, folder: Path, images: int) -> None:
    """Prepared data whose train split has so many images: those of `prepared` again and again under other ids."""
    (folder / "train/heatmaps").mkdir(parents=True)
    (folder / "val").symlink_to(prepared / "val")
    table = pd.read_parquet(prepared / "train/manifest.parquet")
    table["image"] = [str((prepared / "train" / image).resolve()) for image in table["image"]]
    table = pd.concat([table] * -(-images // len(table))).head(images).reset_index(drop=True)
    for number, source in enumerate(table["id"]):
        os.link(prepared / "train/heatmaps" / f"{source}.png", folder / "train/heatmaps" / f"{number:06d}.png")
    table["id"] = [f"{number:06d}" for number in range(images)]
    table.to_parquet(folder / "train/manifest.parquet", index=False)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(micro_experiment, prepared, tmp_path):
    """The KiB that a process has at most while it trains one epoch and evaluates the images it holds out."""
    peaks = {}
    for images in (SMALL, LARGE):
        folder = tmp_path / str(images)
        repeated(prepared, folder / "prepared", images)
        changes = {"data_path": str(folder / "prepared"), "warmup_epoch": 0, "epoch": 1, "batch_size": 50}
        config = micro_experiment(folder / "runs", val_split=images // 10, val_iter=1, **changes)
        config.save(folder / "config.yaml")
        command = [sys.executable, "-c", TRAIN, str(folder / "config.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[images] = int(done.stdout.split()[-1])
    assert peaks[LARGE] - peaks[SMALL] < ALLOWED, peaks
