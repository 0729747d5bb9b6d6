"""A folder of small images scored by a run: seconds, memory, and a kill in the middle, after which it goes on.

`python tests/benchmark_own_images.py [--blind] RUN [IMAGES ...]`, by default 1,000 and 10,000 images of 64 px. With
`--blind` brightness takes the place of the network, so that what is left is the work around it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

SCORE = """
import sys, time
from pathlib import Path
from lib import plots
from lib.data.export import write_coco
from torch.nn.functional import interpolate
from lib.evaluate import own_images
from lib.evaluate.processes import Job, predict_jobs
from lib.metrics.setting import chosen_setting
from lib.model import DistortionDetector

def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))

def brightness(self, pixel_values, input_ids, attention_mask, rows=None):
    grey = pixel_values.float().mean(1, keepdim=True) / 255
    heat = (4 * interpolate(grey, self.config.mask_shape)[:, 0] - 2).clamp(0, 1)
    return heat, grey.mean((1, 2, 3))

run, images, out, blind = sys.argv[1:]
if blind == "True":
    DistortionDetector.forward = brightness
times = [time.time()]
labels = own_images.own_split(images, out)
times.append(time.time())
[predictions] = predict_jobs(run, [Job(labels, labels.ids, Path(out))], "cpu", progress=False, batch_size=16)
times.append(time.time())
predicted, setting = peak(), chosen_setting(run)
scores, regions = own_images.scored(labels, predictions, setting, images, out)
measured = peak()
unread, page = own_images.unreadable(labels), Path(out) / "index.html"
plots.write_score_page(page, "", labels, predictions, setting, scores, unread)
listed = scores.reset_index().rename(columns={"path": "image"})
write_coco(Path(out) / "regions.json", listed, own_images.outlines(out))
times.append(time.time())
sizes = [Path(out, name).stat().st_size / 2**20 for name in ("index.html", "regions.json")]
seconds = [f"{b - a:.1f}" for a, b in zip(times, times[1:])]
print(*seconds, predicted, measured, peak(), len(regions), *map(round, sizes))
"""


def folder_of(root: Path, images: int) -> Path:
    """So many PNGs in sub-folders of a thousand; fifty different ones, the others are links to them."""
    rng = np.random.default_rng(0)
    for number in range(images):
        path = root / "images" / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < 50:
            noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC))
        else:
            os.link(root / "images" / "000" / f"{number % 50:06d}.png", path)
    return root / "images"


def measure(run: str, images: int, blind: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        command = [sys.executable, "-c", SCORE, run, str(folder_of(root, images)), str(root / "out"), str(blind)]
        child = subprocess.Popen(command, start_new_session=True)
        while child.poll() is None and len(list((root / "out").glob("heatmaps/*.png"))) < images / 2:
            time.sleep(1)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        done = len(list((root / "out").glob("heatmaps/*.png")))
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        table = pd.read_csv(root / "out" / "scores.csv")
        assert len(table) == images == len(list((root / "out").glob("heatmaps/*.png")))
        print(
            f"{images:,} images, killed after {done:,}; then {result[0]} s to look at the folder, {result[1]} s to "
            f"predict the rest, {result[2]} s to measure and write {result[6]} regions; at most {result[3]} MiB when "
            f"predicted, {result[4]} measured, {result[5]} written; page {result[7]} MiB, COCO {result[8]} MiB",
            flush=True,
        )


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--blind"]
    for count in map(int, given[1:] or (1000, 10000)):
        measure(given[0], count, "--blind" in sys.argv)
