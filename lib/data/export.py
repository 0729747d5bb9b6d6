"""Regions for other tools: COCO instances, and pre-annotations that people correct in Label Studio.

Both functions take two tables, as `lib.evaluate.own_images` gives them. `images` has a row an image: `id`,
`image` (the file's name as the tool will see it), `width` and `height` in pixels; what else it holds (a score, a
verdict, a prompt) goes along. `regions` has a row a region: `id`, its box `x`, `y`, `width`, `height` in pixels, `area`
as a share of the image, `heat` 0..255, and its outline `points` (x and y in turn or [N, 2], pixels, edge coordinates).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lib.files import replacing, write_text

KIND = "distortion"


def write_coco(path, images: pd.DataFrame, regions: Iterable[pd.DataFrame]) -> Path:
    """Write COCO instances: an annotation a region, with `score` its heat; images without a region are listed as well.

    `regions` come in parts, such as `[regions]`, and are written one by one. Returns the path.
    """
    numbers = {id: number for number, id in enumerate(images["id"], start=1)}
    pixels = dict(zip(images["id"], (images["width"] * images["height"]).tolist(), strict=True))
    annotations = (
        {
            "id": number,
            "image_id": numbers[row["id"]],
            "category_id": 1,
            "iscrowd": 0,
            "bbox": [round(row[side], 2) for side in ("x", "y", "width", "height")],
            "area": round(row["area"] * pixels[row["id"]], 2),
            "score": row["heat"] / 255,
            "segmentation": [np.ravel(row["points"]).astype(float).round(2).tolist()],
        }
        for number, row in enumerate((row for part in regions for row in _records(part)), start=1)
    )
    listed = ({"id": numbers[row.pop("id")], "file_name": row.pop("image")} | row for row in _records(images))
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write(json.dumps({"categories": [{"id": 1, "name": KIND}]})[:-1])
        for name, rows in (("images", listed), ("annotations", annotations)):
            file.write(f',\n"{name}": [')
            for number, row in enumerate(rows):
                file.write(("," if number else "") + "\n" + json.dumps(row, ensure_ascii=False, allow_nan=False))
            file.write("]")
        file.write("}\n")
    return Path(path)


def label_studio(images: pd.DataFrame, regions: pd.DataFrame, prefix: str = "", model: str = "") -> list[dict]:
    """Label Studio tasks with the regions as predictions, for the labelling configuration

        <Image name="image" value="$image"/>
        <PolygonLabels name="label" toName="image"><Label value="distortion"/></PolygonLabels>

    `prefix` stands before the file's name ("/data/local-files/?d=images/" for files that the server holds, say);
    `model` names who predicted.
    """
    drawn = regions.groupby("id").indices
    tasks = []
    for image in _records(images):
        results = []
        for number, region in enumerate(_records(regions.iloc[drawn.get(image["id"], [])])):
            percent = np.reshape(region["points"], (-1, 2)).astype(float) * 100 / [image["width"], image["height"]]
            names = {"id": f"region{number}", "from_name": "label", "to_name": "image", "type": "polygonlabels"}
            size = {"original_width": image["width"], "original_height": image["height"], "image_rotation": 0}
            value = {"points": percent.tolist(), "closed": True, "polygonlabels": [KIND]}
            results.append(names | size | {"score": region["heat"] / 255, "value": value})
        data = image | {"image": f"{prefix}{image['image']}"}
        tasks.append({"data": data, "predictions": [{"model_version": model, "result": results}]})
    return tasks


def write_json(path, content) -> Path:
    """Write what `label_studio` made; returns the path."""
    write_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False))
    return Path(path)


def _records(table: pd.DataFrame) -> Iterator[dict]:
    """The rows with what JSON knows: Python's own numbers, null where a value is missing."""
    for start in range(0, len(table), 1000):  # as objects a whole table would take many times its memory
        part = table.iloc[start : start + 1000]
        yield from part.astype(object).where(part.notna(), None).to_dict("records")
