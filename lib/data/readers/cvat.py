"""CVAT for images 1.1: `annotations.xml` with boxes, polygons, masks and ellipses; the images in a folder.

An image without `<image>` is not annotated. Source: `dataset_manager/formats/cvat.py` of cvat-ai/cvat and its "XML
annotation format".
"""

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from lib.data.readers.files import Images, find_file, images_folder, match
from lib.data.readers.record import Record, bitmap, ellipse, joined, numbers, polygon, shorten, size_of, turned_box
from lib.data.regions import Region, RegionError
from lib.data.rle import from_runs
from lib.errors import InputError
from lib.files import what_it_is

NO_REGION = ("tag", "attribute")


def read_cvat(data_root, split: str):
    """Returns and raises as readers do."""
    path = find_file(data_root, split, ".xml")
    try:
        root = parse(path).getroot()
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise InputError(f"{path} is not XML that can be read: {error}.{what_it_is(path)}") from None
    if root.find("track") is not None:
        raise InputError(f'{path} is "CVAT for video"; export it as "CVAT for images 1.1"')
    images = Images(images_folder(data_root, split))
    return match(images, [(node.get("name", ""), node) for node in root.iter("image")], _record)


def _record(id: str, image: Path, node: Element) -> Record:
    size = size_of(_number(node.get("width")), _number(node.get("height")))
    kinds = joined(shape.get("label") for shape in node if shape.tag not in NO_REGION)
    record = Record(id, image, size=size, attributes={"kinds": kinds})
    for number, shape in enumerate(node):
        if shape.tag not in NO_REGION:
            record.add(f"{shape.tag} {number}", _region, shape, size)
    return record


def _region(shape: Element, size: tuple[int, int] | None) -> Region:
    def get(*names: str) -> list[float]:
        return numbers([_number(shape.get(name, "0" if name == "rotation" else None)) for name in names])

    if shape.tag == "box":
        x0, y0, x1, y1, degrees = get("xtl", "ytl", "xbr", "ybr", "rotation")
        return turned_box(x0, y0, x1 - x0, y1 - y0, degrees, ((x0 + x1) / 2, (y0 + y1) / 2))
    if shape.tag == "polygon":
        return polygon([_number(value) for value in shape.get("points", "").replace(";", ",").split(",")])
    if shape.tag == "ellipse":
        return ellipse(*get("cx", "cy", "rx", "ry", "rotation"))
    if shape.tag == "mask":
        left, top, width, height = (int(value) for value in get("left", "top", "width", "height"))
        counts = numbers([_number(value) for value in shape.get("rle", "").split(",")])
        return bitmap(from_runs(counts, width * height).reshape(height, width), left, top, size)
    raise RegionError("region type unknown", f"{shorten(shape.tag)} has no area")


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
