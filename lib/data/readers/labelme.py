"""labelme: `<stem>.json` beside each image, with a list of shapes; an image without JSON is not annotated.

Its own masks include outlines, so polygons and rectangles are drawn that way here. Source: `labelme/_label_file.py` and
`labelme/utils/shape.py` of wkentaro/labelme.
"""

import base64
import math
from pathlib import Path

import cv2
import numpy as np

from lib.data.readers.files import Images, match, read_object
from lib.data.readers.record import NoSplitError, Record, bitmap, ellipse, joined, numbers, polygon, shorten, size_of
from lib.data.regions import Region, RegionError


def read_labelme(data_root, split: str):
    """Returns and raises as readers do; `train` may lie in `data_root` itself."""
    folder = Path(data_root, split)
    folder = folder if folder.is_dir() or split != "train" else Path(data_root)
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise NoSplitError(f"{folder} holds no JSON files of labelme beside its images")
    images = Images(folder)
    stems = [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in files]
    # A JSON file of something else may lie there, too.
    return match(images, [row for row in stems if images.find(row[0]) or b'"shapes"' in row[1].read_bytes()], _record)


def _record(id: str, image: Path, path: Path) -> Record:
    content = read_object(path, "shapes")
    size = size_of(content.get("imageWidth"), content.get("imageHeight"))
    kinds = joined(shape.get("label") for shape in content["shapes"] if isinstance(shape, dict))
    record = Record(id, image, size=size, attributes={"kinds": kinds})
    for number, shape in enumerate(content["shapes"]):
        record.add(f"shape {number}", _region, shape, size)
    return record


def _region(shape, size: tuple[int, int] | None) -> Region:
    if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
        raise RegionError("region malformed", f"{shorten(shape)} is not a shape with points")
    kind, points = shape.get("shape_type") or "polygon", shape["points"]  # old files name no type
    if kind in ("polygon", "oriented_rectangle"):
        return polygon(points, shape="polygon")
    if kind not in ("rectangle", "circle", "mask") or len(points) != 2:
        raise RegionError("region type unknown", f"shape_type {shorten(kind)} of {len(points)} points has no area")
    (x0, y0), (x1, y1) = (numbers(point, 2) for point in points)
    if kind == "rectangle":
        return polygon([x0, y0, x1, y0, x1, y1, x0, y1], shape="polygon")
    if kind == "circle":
        radius = math.dist((x0, y0), (x1, y1)) + 0.5  # with the outline, about the centre of a pixel
        return ellipse(x0 + 0.5, y0 + 0.5, radius, radius)
    mask = cv2.imdecode(np.frombuffer(base64.b64decode(shape.get("mask")), np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise RegionError("region malformed", "its mask is no image in base64")
    return bitmap(mask > 0, int(x0), int(y0), size)
