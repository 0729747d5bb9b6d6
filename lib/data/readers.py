"""Readers of raw data: the files of a format -> checked records, which `lib.data.prepare` makes a prepared split of.

A reader is a function in `READERS`: `read(data_root, split) -> (ids, records, problems)`. `ids` are all ids that the
split lists. `records` gives a pair for each of them, in that order and one at a time: the Record, or None when it
cannot be used, and the list of its Problems. `problems` are those of the split as a whole. A reader raises InputError
only when the split cannot be read at all. `data_cards/your_own_data.md` shows how to add one.
"""

import json
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.data.regions import Problem, Region, RegionError
from lib.errors import InputError
from lib.files import what_it_is
from lib.ids import refuse_id

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # in order of preference, any case
SHAPES = {1: "rectangle", 2: "polygon"}  # the challenge's `bbox_type`
REGION_LAYOUT = (
    'A region is {"bbox_type": 1, "bbox": [{"x": 10, "y": 20}, {"x": 60, "y": 80}]} (two corners of a rectangle) or '
    '{"bbox_type": 2, "bbox": [[10, 20], [60, 20], [60, 80]]} (a polygon), in pixels. '
)


@dataclass(frozen=True)
class Record:
    """One checked entry. `regions` are parsed but not yet clipped; `annotator` in them is 0..n_annotators-1."""

    id: str
    prompt: str
    mos: float | None
    regions: list[Region]
    n_annotators: int
    image: Path
    labelled: bool
    n_drawn: int = 0  # regions that the file holds, those that cannot be read included (0: as many as `regions`)


def read_challenge(
    data_root, split: str
) -> tuple[list[str], Iterator[tuple[Record | None, list[Problem]]], list[Problem]]:
    """The challenge's format: `<split>/<split>_info.json` beside `<split>/images/`; returns and raises as readers do.

    A record is labelled when it has `bbox_info`; participants' splits have none, which is no problem.
    """
    folder = Path(data_root) / split
    info, problems = read_info(data_root, split)
    images = list_images(folder)
    records = (check_record(id, raw, folder, images) for id, raw in info.items())
    return list(info), records, problems + _unlisted(images, info)


def _unlisted(images: dict, ids: Iterable[str]) -> list[Problem]:
    listed = {unicodedata.normalize("NFC", id) for id in ids}
    detail = "images/{} has no entry in the JSON; it is not used"
    return [
        Problem(stem, "image not listed", detail.format(name))
        for stem, names in sorted(images.items())
        if stem not in listed
        for name in names
    ]


class RepeatedKeys(dict):
    """A JSON object in which keys came twice (`repeated`); the first value of each is kept."""

    repeated: tuple = ()


def finite_number(value) -> float | None:
    """The value as float if it is a finite JSON number, else None (text, booleans, NaN, infinity, null)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def read_info(data_root, split: str) -> tuple[dict, list[Problem]]:
    """Read `<data_root>/<split>/<split>_info.json` into {id: raw record}; repeated ids keep the first entry.

    Raises InputError when the folder or file is missing, the text is not JSON (line and column are named),
    or it is not an object with at least one entry.
    """
    path = Path(data_root) / split / f"{split}_info.json"
    text = _read_text(path, split)
    try:
        info = json.loads(text, object_pairs_hook=_keep_first, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        known = what_it_is(path) or " Repair or replace the file."
        raise InputError(f"{path} is not valid JSON at {place}: {error.msg}.{known}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be an annotation file; replace it") from None
    if not isinstance(info, dict):
        raise InputError(f"{path} holds a {type(info).__name__}, not an object of id -> record; replace it")
    if not info:
        raise InputError(f"{path} lists no image; check that it was written or downloaded completely")
    repeated = info.repeated if isinstance(info, RepeatedKeys) else ()
    return info, [Problem(id, "duplicate id", "the id is listed again; the first entry is used") for id in repeated]


def _read_text(path: Path, split: str) -> str:
    layout = f"DATA_ROOT must hold {split}/{split}_info.json and {split}/images/"
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} does not exist or is no folder; {layout}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {layout}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding} text at byte {error.start}; save it as UTF-8") from None


def _keep_first(pairs: list[tuple]) -> dict:
    """`object_pairs_hook`: Python's own would keep the last of repeated keys and tell nobody."""
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    first, repeated = RepeatedKeys(), []
    for key, value in pairs:
        if key in first:
            repeated.append(key)
        else:
            first[key] = value
    first.repeated = tuple(repeated)
    return first


def _parse_int(digits: str):
    # Python refuses to convert above 4300 digits, which would lose the whole file for one coordinate.
    return int(digits) if len(digits) < 400 else float(digits)


def list_images(split_dir) -> dict[str, list[str]]:
    """The files of `<split_dir>/images` by id in Unicode NFC; the preferred extension first.

    Copying through macOS or a zip can turn "é" from one code point into two; NFC finds the file again.
    """
    folder = Path(split_dir) / "images"
    images: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, extension = os.path.splitext(entry.name)
                if extension.lower() in EXTENSIONS and entry.is_file():
                    images.setdefault(unicodedata.normalize("NFC", stem), []).append(entry.name)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder} cannot be listed ({reason}); put the images of this split there") from None
    for names in images.values():
        names.sort(key=lambda name: (EXTENSIONS.index(os.path.splitext(name)[1].lower()), name))
    return images


def check_record(id: str, raw, split_dir, images: dict | None = None) -> tuple[Record | None, list[Problem]]:
    """Check one entry of the JSON; never raises on what it holds.

    `images` is `list_images(split_dir)`, to be given when many records are checked. Returns None for a record
    that cannot be used at all (unsafe id, not an object, no image) and in any case a row for each problem.
    """
    reason = refuse_id(id)
    if reason:
        return None, [Problem(id, "id refused", f"{reason}; rename the image and its entry")]
    if not isinstance(raw, dict):
        return None, [Problem(id, "record malformed", f"the record is {shorten(raw)}, not an object")]
    images = list_images(split_dir) if images is None else images
    names = _image_names(id, images)
    if not names:
        expected = Path(split_dir) / "images" / f"{id}.jpg"
        return None, [Problem(id, "image missing", f"{expected} does not exist, nor with another extension")]
    problems = []
    if isinstance(raw, RepeatedKeys):
        problems.append(Problem(id, "duplicate key", f"{shorten(raw.repeated[0])} is given again; the first is used"))
    if len(names) > 1:
        problems.append(Problem(id, "image ambiguous", f"{names[0]} is used, not {', '.join(names[1:])}"))
    labelled, regions, n_annotators, n_drawn = _check_annotators(id, raw.get("bbox_info"), problems)
    if not labelled and raw.get("bbox_info") is None and raw.get("mos") is not None:
        problems.append(Problem(id, "bbox_info missing", "there is a mos but no bbox_info; only the score is used"))
    mos = _check_mos(id, raw.get("mos"), labelled, problems)
    prompt = _check_prompt(id, raw.get("prompt_en"), problems)
    image = Path(split_dir) / "images" / names[0]
    return Record(id, prompt, mos, regions, n_annotators, image, labelled, n_drawn), problems


def _image_names(id: str, images: dict[str, list[str]]) -> list[str]:
    names = images.get(unicodedata.normalize("NFC", id), [])
    # Two files may differ in their normal form only; then the one spelt like the id is meant.
    return [name for name in names if os.path.splitext(name)[0] == id] or names


def _check_annotators(id: str, raw, problems: list[Problem]) -> tuple[bool, list[Region], int, int]:
    """(labelled, regions, annotators, regions drawn); annotators that are no list are reported and not counted."""
    if raw is None:
        return False, [], 0, 0
    if not isinstance(raw, list):
        problems.append(Problem(id, "bbox_info malformed", f"bbox_info is {shorten(raw)}, not a list of annotators"))
        return False, [], 0, 0
    regions, n_annotators, n_drawn = [], 0, 0
    for position, drawn in enumerate(raw):
        if drawn is not None and not isinstance(drawn, list):
            detail = f"annotator at position {position} is {shorten(drawn)}, not a list of regions"
            problems.append(Problem(id, "annotator malformed", detail))
            n_drawn += 1  # what it was meant to be is lost
            continue
        for k, region in enumerate(drawn or []):
            n_drawn += 1
            try:
                regions.append(parse_region(region, n_annotators))
            except RegionError as error:
                detail = f"annotator {n_annotators}, region {k}: {error}"
                problems.append(Problem(id, error.problem, detail))
        n_annotators += 1
    return True, regions, n_annotators, n_drawn


def _check_mos(id: str, raw, labelled: bool, problems: list[Problem]) -> float | None:
    if raw is None:
        if labelled:
            problems.append(Problem(id, "mos missing", "there is bbox_info but no mos; only the heatmap is used"))
        return None
    mos = finite_number(raw)
    if mos is None or not 1 <= mos <= 5:
        problems.append(Problem(id, "mos unusable", f"mos is {shorten(raw)}, not a number from 1 to 5"))
        return None
    return mos


def _check_prompt(id: str, raw, problems: list[Problem]) -> str:
    if raw is None or raw == "":
        problems.append(Problem(id, "prompt missing", "prompt_en is empty or not there; an empty prompt is used"))
        return ""
    if not isinstance(raw, str):
        detail = f"prompt_en is {shorten(raw)}, not text; an empty prompt is used"
        problems.append(Problem(id, "prompt malformed", detail))
        return ""
    clean = raw.encode("utf-8", errors="replace").decode("utf-8")
    if clean != raw:
        problems.append(Problem(id, "prompt malformed", "prompt_en holds half a surrogate pair; it is read as '?'"))
    return clean


def parse_region(raw, annotator: int) -> Region:
    """A region of the challenge's JSON, its shape and numbers checked but not its place.

    Points may be `{"x", "y"}` or `[x, y]` in both shapes. Raises RegionError with the reason.
    """
    if not isinstance(raw, dict):
        raise RegionError("region malformed", f"the region is {shorten(raw)}, not an object")
    if isinstance(raw, RepeatedKeys):
        raise RegionError("region malformed", f"{shorten(raw.repeated[0])} is given twice")
    kind = raw.get("bbox_type")
    if finite_number(kind) is None or kind not in SHAPES:
        raise RegionError("region type unknown", f"bbox_type is {shorten(kind)}, not 1 (rectangle) or 2 (polygon)")
    if not isinstance(raw.get("bbox"), list):
        raise RegionError("region malformed", f"bbox is {shorten(raw.get('bbox'))}, not a list of points")
    points = [_parse_point(point) for point in raw["bbox"]]
    if kind == 1 and len(points) != 2:
        raise RegionError("region malformed", f"a rectangle has 2 corners, this one {len(points)}")
    if kind == 2 and len(points) < 3:
        raise RegionError("region degenerate", f"a polygon has 3 points or more, this one {len(points)}")
    return Region(annotator, SHAPES[kind], np.array(points, dtype=np.float64))


def _parse_point(raw) -> tuple[float, float]:
    pair = [raw.get("x"), raw.get("y")] if isinstance(raw, dict) else raw
    if isinstance(raw, RepeatedKeys) or not isinstance(pair, list) or len(pair) != 2:
        raise RegionError("region malformed", f"{shorten(raw)} is not a point")
    x, y = (finite_number(value) for value in pair)
    if x is None or y is None:
        raise RegionError("region malformed", f"{shorten(raw)} is not a point of two finite numbers")
    return x, y


def shorten(value) -> str:
    """A value as it may stand in a message: its repr, at most 80 characters."""
    if isinstance(value, int) and abs(value) > 10**80:
        return "an integer of more than 80 digits"  # Python refuses to print those above 4300
    if isinstance(value, list | dict) and len(value) > 8:
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)} entries"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an enormous integer, or endless nesting, further inside
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


READERS = {"challenge": read_challenge}  # name (the parameter `reader` of notebook 1) -> function
