"""Human Artifact Dataset: `images/<set>/` and `annotations/<set>/<stem>.json`, boxes of damaged body parts.

`annotation` holds local damage, boxes [x0, y0, x1, y1]. `human` frames whole persons with a missing or an extra part:
its tags become an attribute and its boxes no region. Boxes cover sound pixels as well. An image without JSON is not
annotated; one whose `human` alone is filled is neither sound nor labelled. Source: `human_artifact_dataset.py` of
wangkaihong/HADM.
"""

from pathlib import Path

from lib.data.readers.files import Images, match, read_object
from lib.data.readers.record import NoSplitError, Record, box, joined, numbers, shorten, size_of
from lib.data.regions import Region

PARTS = ("face", "torso", "arm", "leg", "hand", "feet")
LAYOUT = "A box of HADM is [x0, y0, x1, y1]; these may be [x, y, width, height]."


def read_hadm(data_root, split: str):
    """Returns and raises as readers do; `train` and `val` mean the sets `train_ALL` and `val_ALL`."""
    names = [name for name in (split, f"{split}_ALL") if Path(data_root, "annotations", name).is_dir()]
    if not names:
        raise NoSplitError(f"{data_root} holds no annotations/{split}/ or annotations/{split}_ALL/ of HADM")
    images = Images(Path(data_root, "images", names[0]))
    files = [(path.stem, path) for path in sorted(Path(data_root, "annotations", names[0]).glob("*.json"))]
    return match(images, files, _record)


def _record(id: str, image: Path, path: Path) -> Record:
    content = read_object(path, "annotation")
    record, kinds, levels = Record(id, image), set(), set()
    for number, raw in enumerate(content["annotation"]):
        raw, where = raw if isinstance(raw, dict) else {}, f"annotation {number}"
        before = len(record.regions)
        record.add(where, _box, record, where, raw.get("bbox"))
        if len(record.regions) > before:
            part = str(raw.get("body_parts"))
            if part not in PARTS:
                record.report("kind unknown", f"{where} is of {shorten(part)}, which HADM does not know; it is used")
            kinds.add(part)
            levels.add(str(raw.get("level")))
    people = [person for person in content.get("human") or [] if isinstance(person, dict)]
    tags = [tag for person in people for tag in person.get("tag") or []]
    record.attributes = {"kinds": joined(kinds), "levels": joined(levels), "human": joined(tags)}
    record.labelled = bool(content["annotation"]) or not tags
    about = content["image"] if isinstance(content.get("image"), dict) else {}
    record.size = size_of(about.get("width"), about.get("height"))
    return record


def _box(record: Record, where: str, raw) -> Region:
    x0, y0, x1, y1 = numbers(raw, 4)
    if x0 > x1 or y0 > y1:
        record.report("corners swapped", f"{where} is ({x0:g}, {y0:g}), ({x1:g}, {y1:g}); its corners are put in order")
    return box([x0, y0, x1, y1])
