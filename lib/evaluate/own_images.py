"""Own images scored by a run: a folder becomes a split without labels, its predictions a table of images and regions.

All goes into one folder: `images/` (the split: manifest, problems), `heatmaps/`, `regions.parquet`, `scores.parquet`,
`scores.csv`. Images are measured and written some at a time, so that memory does not grow with what they hold.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lib.data.own_images import read_images
from lib.data.prepare import write_split
from lib.files import replacing, write_text, writing
from lib.metrics.heatmaps import map_images
from lib.metrics.matching import CHALLENGE_SIZE, GRID, filled, find_contours
from lib.metrics.setting import Setting
from lib.records import read_text_table
from lib.scale import mos_from_score
from lib.stores import LabelStore, PredictionStore

SPLIT = "images"  # folder of the split within that of the results
LISTING = "listing.json"  # beside the manifest: a digest of what it was made from
REGIONS = "regions.parquet"
SCHEMA = pa.schema([
    ("id", pa.string()), *[(name, pa.float64()) for name in ("x", "y", "width", "height", "area", "heat")],
    ("peak", pa.int64()), ("points", pa.list_(pa.float32())),
])  # fmt: skip
BATCH = 1000  # images, or regions, at a time
REMEDY = "give an OUT with write access and free space"


def own_split(images, out, prompts="", progress=None) -> LabelStore:
    """The images of a folder as a split without labels in `<out>/images`; made again only when something has changed.

    Args:
        images: folder of images, sub-folders included. prompts: see `lib.data.own_images.prompts_of`.
        progress: called as (images read, images in all).
    What cannot be read is a row of `problems.csv`. Raises InputError when there is no image that can.
    """
    target = Path(out) / SPLIT
    ids, records, problems = read_images(images, prompts, out)
    records, digest, note = list(records), hashlib.sha256(), target / LISTING
    for record in records:
        file = os.stat(record.image) if os.path.exists(record.image) else os.lstat(record.image)  # of a broken link
        identity = str(record.image.absolute()), record.prompt, file.st_size, file.st_mtime_ns
        digest.update(repr(identity).encode(errors="surrogatepass"))
    digest = digest.hexdigest()
    if note.is_file() and (target / LabelStore.table_name).is_file() and note.read_bytes() == digest.encode():
        return LabelStore(target)
    with writing(target, REMEDY):
        note.unlink(missing_ok=True)
        write_split(images, target, (ids, records, problems), progress=progress, remedy=REMEDY)
        write_text(note, digest)
    return LabelStore(target)


def unreadable(labels: LabelStore) -> pd.DataFrame:
    """The images that were left out and why: `path` and `detail`, a row an image."""
    problems = read_text_table(labels.path / "problems.csv")
    lost = problems[problems["problem"].isin(["image unreadable", "id refused"])]
    return lost.rename(columns={"id": "image"})[["image", "detail"]].reset_index(drop=True)


def scored(
    labels: LabelStore, predictions: PredictionStore, setting: Setting, root, out, progress=None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What predictions say of images without labels: (images, regions), worst score first.

    Args:
        setting: how heatmaps become regions. root: the folder to which `path` is relative. out: folder of the results.
        progress: called as (done, total).

    - images, a row an image (index `id`): `path`, `prompt`, `width`, `height` (pixels), `score` (0 bad .. 1 sound),
      `mos` (the same, 1..5), `area` (distorted share of the frame), `n_regions`, `peak` (highest of 0..255).
    - regions, a row a predicted region that counts, an image's largest first: `id`, `x`, `y`, `width`, `height` (box in
      pixels of the image), `area` (share of the frame), `heat` and `peak` (mean and highest heatmap value).

    Both are written: `regions.parquet` as images are measured, with the outlines that `outlines` reads; then
    `scores.parquet` and `scores.csv` with the boxes of an image in a column `regions`.
    """
    out = Path(out)
    images = labels.table[labels.table.index.isin(predictions.ids)][["image", "prompt", "width", "height"]]
    places = [os.path.relpath(labels.path / image, Path(root).resolve()) for image in images["image"]]
    images["image"] = [place.replace(os.sep, "/") for place in places]
    images["score"] = predictions.table["score"].astype(float)
    images["mos"] = mos_from_score(images["score"])
    images = images.rename(columns={"image": "path"}).sort_values(["score", "path"])
    found = map_images(_describe, predictions, labels, list(images.index), setting, cost=5, progress=progress)
    facts, rows = [], []
    with writing(out, REMEDY):
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob("*.[0-9]*.part"):  # by a killed run
            left.unlink()
        with replacing(out / REGIONS) as part, pq.ParquetWriter(part, SCHEMA) as file:
            for image, drawn in found:
                facts.append(image)
                rows += [dict(zip(SCHEMA.names, row, strict=True)) for row in drawn]
                if len(rows) >= BATCH or len(facts) == len(images):
                    file.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    rows.clear()
        images[["area", "n_regions", "peak"]] = pd.DataFrame(facts, index=images.index)
        regions = pd.read_parquet(out / REGIONS, columns=SCHEMA.names[:-1])
        _write_scores(images, regions, out)
    return images, regions


def outlines(out, ids=None) -> Iterator[pd.DataFrame]:
    """The regions that `scored` wrote to `out`, some at a time: its columns and `points`, float32 [2 N].

    `points` are x and y in turn, pixels of the image, edges of pixels being whole numbers. `ids` chooses images.
    """
    yield SCHEMA.empty_table().to_pandas()  # there may be no region
    with pq.ParquetFile(Path(out) / REGIONS) as file:  # not a data set of Arrow, which reads ahead
        for part in file.iter_batches(BATCH):
            yield (part if ids is None else part.filter(pc.is_in(part["id"], pa.array(ids, pa.string())))).to_pandas()


def _describe(id, predictions, labels, setting: Setting) -> tuple[tuple, list[tuple]]:
    """((`area`, `n_regions`, `peak`) of `images`, rows of SCHEMA) of one image."""
    heatmap = predictions.heatmap(id)
    mask = setting.thresholded(heatmap)
    heat = cv2.resize(heatmap, (CHALLENGE_SIZE, CHALLENGE_SIZE), interpolation=cv2.INTER_LINEAR)
    scale = np.array([labels.table.at[id, "width"], labels.table.at[id, "height"]]) / CHALLENGE_SIZE
    regions = []
    for contour in find_contours(mask, setting.min_area * GRID):
        box, inside = filled(contour)
        values = heat[box][inside & mask[box].view(bool)]
        place = np.array(cv2.boundingRect(contour)) * np.tile(scale, 2)
        simple = cv2.approxPolyDP(contour, 1.0, True)  # the steps of an enlarged heatmap would double the files
        outline = simple if len(simple) > 2 else contour
        points = ((outline[:, 0] + 0.5) * scale).astype(np.float32).ravel()
        regions.append((id, *place.tolist(), len(values) / GRID, float(values.mean()), int(values.max()), points))
    regions.sort(key=lambda row: -row[5])
    return (sum(row[5] for row in regions), len(regions), int(heatmap.max())), regions


def _write_scores(images: pd.DataFrame, regions: pd.DataFrame, out: Path) -> None:
    """`scores.parquet` and `scores.csv`; the regions are in the order of the images."""
    sides = regions[["x", "y", "width", "height"]].to_numpy(float).round(1)
    boxes = pa.ListArray.from_arrays(np.arange(len(regions) + 1, dtype=np.int32) * 4, sides.ravel())
    columns = {"box": boxes, "area": regions["area"].round(5), "peak": regions["peak"]}
    each = pa.StructArray.from_arrays([pa.array(column) for column in columns.values()], list(columns))
    ends = np.cumsum([0, *images["n_regions"]], dtype=np.int32)
    column, table = pa.ListArray.from_arrays(ends, each), images.reset_index()
    with replacing(out / PredictionStore.table_name) as part:
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False).append_column("regions", column), part)
    with replacing(out / "scores.csv") as part, open(part, "w", encoding="utf-8", newline="") as file:
        for start in range(0, len(table), BATCH):
            text = [json.dumps(found.as_py()) for found in column[start : start + BATCH]]
            rows = table.iloc[start : start + BATCH].assign(regions=text)
            rows.to_csv(file, index=False, header=start == 0, float_format="%.5g", lineterminator="\n")
