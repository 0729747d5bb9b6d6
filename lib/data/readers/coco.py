"""COCO instances: one JSON of images, categories and annotations; polygons and both forms of RLE.

Not listed in `images` is not annotated, listed without annotations is sound. Source: `pycocotools/coco.py` of
cocodataset/cocoapi.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from lib.data.readers.files import Images, find_file, images_folder, match, read_object
from lib.data.readers.record import Record, box, joined, numbers, polygon, shorten, size_of
from lib.data.regions import Problem, Region, RegionError
from lib.data.rle import decode_coco

LAYOUT = "A box of COCO is [x, y, width, height], in pixels."


def read_coco(data_root, split: str):
    """Returns and raises as readers do."""
    path = find_file(data_root, split, ".json")
    content = read_object(path, "images")
    entries = {}  # by COCO's own id, which some tools write as text
    for entry in content["images"]:
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
            entries.setdefault(str(entry.get("id")), entry)
    annotations, problems = defaultdict(list), []
    for raw in content.get("annotations") or []:
        key = str(raw.get("image_id")) if isinstance(raw, dict) else ""
        if key in entries:
            annotations[key].append(raw)
        else:
            detail = f"{path.name}: an annotation belongs to image {shorten(key)}, which is not listed"
            problems.append(Problem("", "annotation without image", detail))
    kinds = {str(row.get("id")): str(row.get("name")) for row in content.get("categories") or []}
    images = Images(images_folder(data_root, split))
    listed = [(entry["file_name"], (entry, annotations[key], kinds)) for key, entry in entries.items()]
    return match(images, listed, _record, problems)


def _record(id: str, image: Path, annotation: tuple[dict, list[dict], dict[str, str]]) -> Record:
    (entry, annotations, kinds), marked = annotation, []
    size = size_of(entry.get("width"), entry.get("height"))
    record = Record(id, image, size=size)
    for raw in annotations:
        where = f"annotation {raw.get('id')}"
        segmentation = raw.get("segmentation")
        if isinstance(segmentation, list) and segmentation:
            parts = segmentation if any(isinstance(part, list) for part in segmentation) else [segmentation]
            for part in parts:
                record.add(where, polygon, part)
        elif segmentation:
            record.add(where, _mask, segmentation, size)
        else:
            record.add(where, _box, record, where, raw.get("bbox"))
        if raw.get("iscrowd"):
            record.report("crowd region", f"{where} is a group that COCO's evaluation ignores; it is used as a region")
        if (category := raw.get("category_id")) is not None and str(category) not in kinds:
            record.report("category unknown", f"{where} is of category {shorten(category)}; its kind is left empty")
        marked.append(kinds.get(str(category)))
    record.attributes["kinds"] = joined(marked)
    return record


def _mask(raw, size: tuple[int, int] | None) -> Region:
    if not isinstance(raw, dict) or "counts" not in raw:
        raise RegionError("region malformed", f"its segmentation is {shorten(raw)}, neither polygons nor an RLE")
    height, width = (int(side) for side in numbers(raw.get("size"), 2))
    if size not in (None, (width, height)):
        raise RegionError(
            "region malformed", f"its RLE is of {width}x{height} pixels, the image of {size[0]}x{size[1]}"
        )
    return Region.of_mask(0, decode_coco(raw["counts"], height, width))


def _box(record: Record, where: str, raw) -> Region:
    x, y, width, height = numbers(raw, 4)
    right, bottom = record.size or (np.inf, np.inf)
    leaves = x + width > right + 1 or y + height > bottom + 1
    if leaves and x < width <= right and y < height <= bottom:
        record.report("corners doubtful", f"{where} is {raw}, which leaves the image unless it is [x0, y0, x1, y1]")
    return box([x, y, x + width, y + height])
