"""SynthScars: `<split>/images/` and a list of objects with one key each, {id: {img_file_name, caption, refs}}.

Entries of the same file are united, as the evaluation of LEGION does; `caption` describes the damage and is no prompt.
Source: `GranDf_gcg_ds.py` and `eval/utils.py` of opendatalab/LEGION.
"""

from collections import defaultdict
from pathlib import Path

from lib.data.readers.files import Images, images_folder, match, read_json
from lib.data.readers.record import NoSplitError, Record, polygon, shorten
from lib.data.regions import Problem
from lib.errors import InputError


def read_synthscars(data_root, split: str):
    """Returns and raises as readers do."""
    files = sorted(Path(data_root, split).glob(f"anno*/{split}.json"))  # "annotations", or "annoations" as its README
    if not files:
        raise NoSplitError(f"{data_root} holds no {split}/annotations/{split}.json of SynthScars")
    content = read_json(files[0])
    if not isinstance(content, list):
        raise InputError(f"{files[0]} holds a {type(content).__name__}, not a list of {{id: entry}}; replace it")
    images = Images(images_folder(data_root, split))
    entries, problems = defaultdict(list), []
    for item in content:
        entry = next(iter(item.values()), None) if isinstance(item, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get("img_file_name"), str):
            entries[entry["img_file_name"]].append(entry)
        else:
            problems.append(Problem("", "record malformed", f"{shorten(item)} names no img_file_name"))
    return match(images, entries.items(), _record, problems)


def _record(id: str, image: Path, entries: list[dict]) -> Record:
    caption = " ".join(str(entry.get("caption", "")) for entry in entries)
    record = Record(id, image, attributes={"caption": caption})
    if len(entries) > 1:
        record.report("duplicate id", f"the image has {len(entries)} entries; their regions are united")
    for ref in [ref for entry in entries for ref in entry.get("refs") or []]:
        for part in ref.get("segmentation") or [] if isinstance(ref, dict) else [ref]:
            record.add("a phrase's polygon", polygon, part)
    return record
