"""Writing the procedural data set to disk in the challenge's format."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from joblib import Parallel, delayed

from lib.errors import InputError
from lib.files import write_text, writing
from lib.records import read_record
from lib.synthetic.sample import make_sample

VERSION = 3  # raise it when the images change, so that older folders are written anew
GENERATOR = "lib.synthetic"
NOTE = "synthetic.json"
COLUMNS = ("id", "domain", "kinds", "parts", "severity", "layout")
STREAMS = {"train": 1, "val": 2, "test": 3}  # seeds of the splits; any other split gets one from its name
CHUNK = 16


def write_dataset(
    data_root,
    counts: dict[str, int],
    size: int = 256,
    seed: int = 0,
    shifted: float = 0.8,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `<data_root>/<split>/images/<id>.jpg`, `<split>_info.json` and `attributes.csv` for each split.

    An image depends on `seed`, `size`, `shifted`, its split and its number only, not on `counts` or `workers`. A
    complete folder written with the same arguments is left alone; any other one of ours is written again.

    Args:
        counts: images per split, for example {"train": 1600, "val": 300, "test": 600}.
        size: geometric mean of width and height, pixels. shifted: share of the domain that the shipped
            encoder was not pretrained on.
        workers: processes; None for one a core, 1 for none besides this one.
        progress: called as progress(done, total) now and then.
    Raises:
        InputError: for a folder that holds something else or cannot be written, or arguments that make no data set.
    """
    root, counts = Path(data_root), {str(split): number for split, number in counts.items()}
    wanted = {"generator": GENERATOR, "version": VERSION, "counts": counts, "size": size, "seed": seed,
              "shifted": shifted}  # fmt: skip
    _check(wanted)
    if _is_complete(root, wanted):
        return
    _prepare(root, wanted)
    with writing(root, "free the disk or choose another folder"):
        rows = _write_images(_jobs(root, wanted), workers, progress)
        for split in counts:
            _write_tables(root / split, split, rows.get(split, []))
        _write_note(root, {**wanted, "complete": True})


def domain_of(index: int, shifted: float) -> str:
    """Domain of image `index`: those of the share `shifted` are spread evenly."""
    return "shifted" if int((index + 1) * shifted + 1e-9) > int(index * shifted + 1e-9) else "shown"


def _check(wanted: dict) -> None:
    counts = wanted["counts"]
    if not counts or any(not isinstance(n, int) or n < 0 for n in counts.values()) or not sum(counts.values()):
        raise InputError(f"counts={counts!r} makes no data set; give images per split, such as {{'train': 100}}")
    if wrong := [split for split in counts if not split.isidentifier()]:
        raise InputError(f"{wrong[0]!r} is no name for a split; use letters, digits and underscores")


def _note(root: Path) -> dict | None:
    """What `synthetic.json` says about a folder of ours; None for any other folder."""
    path, remedy = root / NOTE, f"delete {root} if it is procedural data"
    note = read_record(path, {}, remedy) if path.is_file() else {}
    return note if note.get("generator") == GENERATOR else None


def _is_complete(root: Path, wanted: dict) -> bool:
    if _note(root) != {**wanted, "complete": True}:
        return False
    return all(
        (root / split / f"{split}_info.json").is_file()
        and (root / split / "attributes.csv").is_file()
        and len(list((root / split / "images").glob("*.jpg"))) == count
        for split, count in wanted["counts"].items()
    )


def _prepare(root: Path, wanted: dict) -> None:
    """Make sure that `root` is ours, remove older procedural images and note what is being written."""
    known = _note(root)
    with writing(root, "free the disk or choose a folder you may write"):
        if known is None and root.exists() and any(root.iterdir()):
            raise InputError(f"{root} holds other files than procedural data and is not overwritten; "
                             "choose an empty folder")  # fmt: skip
        root.mkdir(parents=True, exist_ok=True)
        for split in (known or {}).get("counts", {}):
            _clear(root / split, split)
        _write_note(root, {**wanted, "complete": False})
        for split in wanted["counts"]:
            (root / split / "images").mkdir(parents=True, exist_ok=True)


def _clear(folder: Path, split: str) -> None:
    for path in (folder / "images").glob(f"{split}_*.jpg"):
        path.unlink()
    for name in (f"{split}_info.json", "attributes.csv"):
        (folder / name).unlink(missing_ok=True)


def _write_note(root: Path, note: dict) -> None:
    write_text(root / NOTE, json.dumps(note, indent=1))


def _jobs(root: Path, wanted: dict) -> list[tuple]:
    settings = wanted["size"], wanted["seed"], wanted["shifted"]
    return [(str(root / split / "images"), split, range(start, min(start + CHUNK, count)), *settings)
            for split, count in wanted["counts"].items() for start in range(0, count, CHUNK)]  # fmt: skip


def _write_images(jobs: list[tuple], workers: int | None, progress) -> dict[str, list]:
    """Carry out the jobs; returns split -> [(label, attributes), ...] in the order of the images."""
    total, done = sum(len(job[2]) for job in jobs), 0
    rows: dict[str, list] = {}
    tasks = (delayed(_write_chunk)(*job) for job in jobs)
    for split, part in Parallel(n_jobs=workers or -1, return_as="generator")(tasks):
        rows.setdefault(split, []).extend(part)
        done += len(part)
        if progress:
            progress(done, total)
    return rows


def _write_chunk(folder: str, split: str, numbers: range, size: int, seed: int, shifted: float) -> tuple[str, list]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes already use every core
    try:
        return split, [_write_image(Path(folder), split, index, size, seed, shifted) for index in numbers]
    finally:
        cv2.setNumThreads(threads)


def _write_image(folder: Path, split: str, index: int, size: int, seed: int, shifted: float) -> tuple[dict, dict]:
    """Write one JPEG; returns its entry of `<split>_info.json` and its row of `attributes.csv`."""
    key = (seed, STREAMS.get(split) or 1000 + int.from_bytes(split.encode(), "big"), index)
    sample = make_sample(key, size, domain_of(index, shifted))
    id = f"{split}_{index:06d}"
    quality = int(np.random.default_rng(key).integers(85, 96))
    encoded = cv2.imencode(".jpg", sample.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    (folder / f"{id}.jpg").write_bytes(encoded.tobytes())
    label = {"prompt_en": sample.prompt, "mos": round(sample.mos, 2), "bbox_info": sample.annotators}
    attributes = {"id": id, "domain": sample.domain, "kinds": "+".join(sample.kinds), "parts": "+".join(sample.parts),
                  "severity": round(sample.severity, 3), "layout": sample.layout}  # fmt: skip
    return label, attributes


def _write_tables(folder: Path, split: str, rows: list) -> None:
    info = {attributes["id"]: label for label, attributes in rows}
    (folder / f"{split}_info.json").write_text(json.dumps(info), encoding="utf-8")
    with (folder / "attributes.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(attributes for _, attributes in rows)
