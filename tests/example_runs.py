"""Small prepared splits and runs whose every region is known: rectangles on noise."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from example_masks import frame

from lib.config import Experiment
from lib.stores import write_heatmap

SIZE = 512  # px; the metric's own grid, so that areas can be computed by hand
EVALUATION = {"split": "test", "threshold": 90, "figures": None}  # the fields that every evaluation.json has
# name -> (true boxes, predicted boxes) as x, y, width, height
CASES = {
    "perfect": ([(100, 100, 100, 100)], [(100, 100, 100, 100)]),
    "missed": ([(100, 100, 200, 100)], []),
    "false": ([(300, 300, 100, 100)], [(300, 300, 100, 100), (10, 10, 60, 60), (10, 200, 60, 60)]),
    "sound": ([], []),
}


def manifest(ids, scores, labelled=True, size=(SIZE, SIZE)) -> pd.DataFrame:
    """The columns that every prepared split has, for images (width, height) that nobody opens."""
    columns = {"image": [f"images/{id}.jpg" for id in ids], "prompt": "", "n_annotators": 1, "n_regions": 1}
    labels = {"score": scores, "labelled": labelled, "width": size[0], "height": size[1]}
    return pd.DataFrame({"id": list(ids)} | columns | labels)


def write_split(folder: Path, cases=CASES, labelled=True, size=SIZE, **columns) -> Path:
    """A prepared split with one annotator; `columns` go into the manifest as they are."""
    (folder / "images").mkdir(parents=True)
    rng, rows, regions = np.random.default_rng(0), [], []
    for id, (true, _) in cases.items():
        noise = rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{id}.jpg"), cv2.resize(noise, (size, size)))
        mos = (3.0 if true else 5.0) if labelled else np.nan
        rows.append((id, f"images/{id}.jpg", f"a picture of a {id} <thing>", mos, (mos - 1) / 4, len(true)))
        if labelled:
            write_heatmap(folder / "heatmaps" / f"{id}.png", frame(*true, size=size, value=64))
            corners = [[float(v) for v in (x, y, x + w - 1, y + h - 1)] for x, y, w, h in true]
            regions += [(id, 0, "rectangle", points) for points in corners]
    table = pd.DataFrame(rows, columns=["id", "image", "prompt", "mos", "score", "n_regions"])
    same = {"width": size, "height": size, "labelled": labelled, "n_annotators": int(labelled), "agreement": np.nan}
    table.assign(**same | columns).to_parquet(folder / "manifest.parquet")
    pd.DataFrame(regions, columns=["id", "annotator", "shape", "points"]).to_parquet(folder / "regions.parquet")
    return folder


def write_run(
    folder: Path, data_path: Path, cases=CASES, split="test", size=SIZE, scores=None, evaluation=None, **parameters
) -> Path:
    """A run that predicted the boxes of `cases` with the value 200; by default the score 0.5 everywhere."""
    store = folder / "predictions" / split
    for id, (_, predicted) in cases.items():
        write_heatmap(store / "heatmaps" / f"{id}.png", frame(*predicted, size=size, value=200))
    table = pd.DataFrame({"id": list(cases), "score": scores or [0.5] * len(cases)})
    store.mkdir(parents=True, exist_ok=True)
    table.to_parquet(store / "scores.parquet")
    Experiment(experiment_name=folder.name, data_path=str(data_path), **parameters).save(folder / "config.yaml")
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder
