"""The challenge's format: `<split>/<split>_info.json` beside `<split>/images/`.

One record an id: `prompt_en`, `mos` 1..5 and `bbox_info`, a list of regions for each annotator.
`data_cards/your_own_data.md` shows it by example.
"""

from collections.abc import Iterator
from pathlib import Path

from lib.data.readers.files import Images, read_json
from lib.data.readers.record import NoSplitError, Record, box, finite_number, numbers, polygon, shorten, unusable
from lib.data.regions import Problem, Region, RegionError
from lib.errors import InputError

SHAPES = {1: "rectangle", 2: "polygon"}  # the challenge's `bbox_type`
REGION_LAYOUT = (
    'A region is {"bbox_type": 1, "bbox": [{"x": 10, "y": 20}, {"x": 60, "y": 80}]} (two corners of a rectangle) or '
    '{"bbox_type": 2, "bbox": [[10, 20], [60, 20], [60, 80]]} (a polygon), in pixels.'
)


def read_challenge(data_root, split: str) -> tuple[list[str], Iterator[Record], list[Problem]]:
    """The challenge's format: `<split>/<split>_info.json` beside `<split>/images/`; returns and raises as readers do.

    A record is labelled when it has `bbox_info`; participants' splits have none, which is no problem.
    """
    info = read_info(data_root, split)
    images = Images(Path(data_root) / split / "images")
    records = (check_record(id, raw, images) for id, raw in info.items())
    return list(info), records, images.problems(images.find(id) for id in info)


def read_info(data_root, split: str) -> dict:
    """Read `<data_root>/<split>/<split>_info.json` into {id: raw record}.

    Raises InputError when the folder or file is missing, as `read_json` does, or when the file is not an object with at
    least one entry.
    """
    path = Path(data_root) / split / f"{split}_info.json"
    layout = f"DATA_ROOT must hold {split}/{split}_info.json and {split}/images/"
    if not path.parent.is_dir():
        raise NoSplitError(f"{path.parent} does not exist or is no folder; {layout}")
    if not path.is_file():
        raise InputError(f"{path} does not exist; {layout}")
    info = read_json(path)
    if not isinstance(info, dict) or not info:
        raise InputError(f"{path} holds no object of ids and records; check that it was written completely")
    return info


def check_record(id: str, raw, images: Images) -> Record:
    """Check one entry of the JSON; never raises on what it holds. One without an image cannot be used."""
    if not isinstance(raw, dict):
        return unusable(id, "record malformed", f"the record is {shorten(raw)}, not an object")
    image = images.find(id)
    if image is None:
        return unusable(id, "image missing", f"no image of {images.folder}, or several, have that name")
    record = Record(id, image, n_annotators=0, consensus=False)
    drawn, mos, prompt = raw.get("bbox_info"), raw.get("mos"), raw.get("prompt_en")
    record.labelled = isinstance(drawn, list)
    if record.labelled:
        _parse_annotators(drawn, record)
    elif drawn is not None:
        record.report("bbox_info malformed", f"bbox_info is {shorten(drawn)}, not a list of annotators")
    if drawn is None and mos is not None:
        record.report("bbox_info missing", "there is a mos but no bbox_info; only the score is used")
    if record.labelled and mos is None:
        record.report("mos missing", "there is bbox_info but no mos; only the heatmap is used")
    score = finite_number(mos)
    if score is not None and 1 <= score <= 5:
        record.mos = score
    elif mos is not None:
        record.report("mos unusable", f"mos is {shorten(mos)}, not a number from 1 to 5")
    if isinstance(prompt, str) and prompt:
        record.prompt = prompt
    else:
        record.report("prompt missing", f"prompt_en is {shorten(prompt)}; an empty prompt is used")
    return record


def _parse_annotators(raw: list, record: Record) -> None:
    """Count the annotators who looked at the image and keep their regions; those that are no list are reported."""
    for position, drawn in enumerate(raw):
        if drawn is not None and not isinstance(drawn, list):
            detail = f"annotator at position {position} is {shorten(drawn)}, not a list of regions"
            record.report("annotator malformed", detail)
            continue
        for k, region in enumerate(drawn or []):
            record.add(f"annotator {record.n_annotators}, region {k}", parse_region, region, record.n_annotators)
        record.n_annotators += 1


def parse_region(raw, annotator: int) -> Region:
    """A region of the challenge's JSON, its shape and numbers checked but not its place.

    Points may be `{"x", "y"}` or `[x, y]` in both shapes. Raises RegionError with the reason.
    """
    if not isinstance(raw, dict):
        raise RegionError("region malformed", f"the region is {shorten(raw)}, not an object")
    kind, points = finite_number(raw.get("bbox_type")), raw.get("bbox")
    if kind not in SHAPES:
        shown = shorten(raw.get("bbox_type"))
        raise RegionError("region type unknown", f"bbox_type is {shown}, not 1 (rectangle) or 2 (polygon)")
    if not isinstance(points, list):
        raise RegionError("region malformed", f"bbox is {shorten(points)}, not a list of points")
    pairs = [numbers([one.get("x"), one.get("y")] if isinstance(one, dict) else one, 2) for one in points]
    if SHAPES[kind] == "polygon":
        return polygon(pairs, annotator, "polygon")
    if len(pairs) != 2:
        raise RegionError("region malformed", f"a rectangle has 2 corners, this one {len(pairs)}")
    return box(pairs[0] + pairs[1], annotator)
