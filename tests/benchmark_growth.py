"""What grows with a split, from preparing it to looking at it: CPU seconds and memory.

    python tests/benchmark_growth.py                  # 1,000 and 10,000 images, some minutes
    python tests/benchmark_growth.py 100000 --data    # preparing and opening alone

Images are 64 px; a hundred are real, the others hard links to them. Each size is measured in a process of its own.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from benchmark_sweep import write_stores
from benchmarking import in_own_process

from lib.config import Experiment
from lib.data.dataset import training_data
from lib.data.export import write_coco
from lib.data.order import StepSampler
from lib.data.prepare import prepare
from lib.evaluate import groups, tables
from lib.evaluate.own_images import outlines, own_split, scored, unreadable
from lib.evaluate.run_on_split import RunOnSplit
from lib.metrics.field import measure_maps
from lib.metrics.setting import Grid, Setting
from lib.plots import write_score_page
from lib.stores import PredictionStore

REAL = 100


def write_raw(folder: Path, images: int) -> None:
    """A raw split `train` in the challenge's format, a region of two annotators each."""
    (folder / "train" / "images").mkdir(parents=True)
    rng, records = np.random.default_rng(0), {}
    for number in range(images):
        path = folder / "train" / "images" / f"{number:06d}.png"
        if number < REAL:
            cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (64, 64)))
        else:
            os.link(path.with_name(f"{number % REAL:06d}.png"), path)
        x, y = rng.integers(4, 40, 2).tolist()
        drawn = [{"bbox_type": 1, "bbox": [[x, y], [x + 18, y + 14]]}]
        records[path.stem] = {"prompt_en": "a cat on a chair", "mos": 1 + number % 5, "bbox_info": [drawn, drawn]}
    (folder / "train" / "train_info.json").write_text(json.dumps(records))


def score_own(folder: Path, heatmaps: Path, out: Path) -> None:
    """What `make score` does with a folder of images beside predicting them."""
    labels = own_split(folder, out)
    (out / "heatmaps").mkdir()
    for id in labels.ids:
        os.link(heatmaps / id, out / "heatmaps" / f"{id}.png")
    pd.DataFrame({"id": labels.ids, "score": 0.5}).to_parquet(out / "scores.parquet")
    predictions, setting = PredictionStore(out), Setting(90)
    images, _ = scored(labels, predictions, setting, folder, out)
    write_score_page(out / "index.html", "", labels, predictions, setting, images, unreadable(labels))
    write_coco(out / "regions.json", images.reset_index().rename(columns={"path": "image"}), outlines(out))


def measure(images: int, data_alone: bool) -> dict[str, float]:
    """CPU seconds of each part, of this process and those it starts, and the peak of its memory in MiB."""
    seconds = {}

    def timed(name: str, function, *arguments, **options):
        start = time.process_time()
        result = function(*arguments, **options)
        seconds[name] = time.process_time() - start
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_raw(folder / "raw", images)
        timed("preparing", prepare, folder / "raw", folder / "data", ["train"], 1)
        config = Experiment(data_path=str(folder / "data"), input_size=32, mask_size=32)
        data = timed("opening for training", training_data, config)
        steps = StepSampler(len(data), 0, 0, 16, 1).flat(0, 50)
        timed("50 batches of 16", lambda: [[data[key] for key in batch] for batch in steps])
        seconds["MiB after that"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if data_alone:
            return seconds
        store, labels = write_stores(folder, images, REAL, regions=8, step=8)
        on = RunOnSplit(folder, "test", labels, labels.ids, store)
        timed("2 settings", Grid((60, 90)).curves, store, labels, labels.ids)
        timed("field, side 64", measure_maps, store, labels, side=64, workers=1)
        measured = timed("figures", on.measured)
        timed("intervals, 100 draws", measured.with_intervals, 100)
        options = {"ids": on.labelled_ids, "workers": 1}
        _, regions = timed("error tables", tables.error_tables, store, labels, 90, **options)
        true = regions[regions["side"] == "true"]
        heatmaps = folder / "predictions" / "heatmaps"
        timed("a folder of one's own", score_own, folder / "raw" / "train" / "images", heatmaps, folder / "out")
        timed("2 questions", groups.by_groups, {name: (true, name, "missed") for name in ("size", "place")})
    return seconds | {"peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main(arguments: list[str]) -> None:
    option = ["--data"] if "--data" in arguments else []
    sizes = [word for word in arguments if word.isdigit()]
    if "--one" in arguments:
        print(json.dumps(measure(int(sizes[0]), bool(option))))
        return
    for images in sizes or ("1000", "10000"):
        found = in_own_process(__file__, "--one", images, *option)
        print(f"{int(images):,} images:", ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
