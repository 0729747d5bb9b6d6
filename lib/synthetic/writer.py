"""Writing the procedural data set to disk in the challenge's format."""

import csv
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from lib.errors import InputError
from lib.synthetic.sample import make_sample

VERSION = 1  # raise it when the images change, so that older folders are written anew
NOTE = "synthetic.json"
COLUMNS = ("id", "domain", "kinds", "parts", "severity", "layout")
SPLITS = {"train": 1, "val": 2, "test": 3}  # random streams; further splits get theirs from their name
CHUNK = 16


def write_dataset(
    data_root,
    counts: dict[str, int],
    size: int = 256,
    seed: int = 0,
    shifted: float = 0.25,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `<data_root>/<split>/images/<id>.jpg`, `<split>_info.json` and `attributes.csv` for each split.

    The images depend on `seed`, `size`, the split and their number only, not on `counts` or `workers`. A complete
    folder written with the same arguments is left alone; an interrupted one is written again.

    Args:
        counts: images per split, for example {"train": 2000, "val": 200, "test": 200}.
        size: geometric mean of width and height, pixels. shifted: share of the shifted domain in "test".
        workers: processes; None for one a core, 1 for none besides this one.
        progress: called as progress(done, total) now and then.
    Raises:
        InputError: for a folder that holds something else, or arguments that make no data set.
    """
    root = Path(data_root)
    wanted = {"generator": "lib.synthetic", "version": VERSION, "counts": counts, "size": size, "seed": seed,
              "shifted": shifted}  # fmt: skip
    _check(wanted)
    if _state(root) == {**wanted, "complete": True}:
        return
    _prepare(root, wanted)
    total, done = sum(counts.values()), 0
    jobs = [(str(root / split / "images"), split, start, min(CHUNK, count - start), count, size, seed, shifted)
            for split, count in counts.items() for start in range(0, count, CHUNK)]  # fmt: skip
    rows: dict[str, list] = {split: [] for split in counts}
    for split, part in _run(jobs, workers):
        rows[split] += part
        done += len(part)
        if progress:
            progress(done, total)
    for split in counts:
        _write_tables(root / split, split, rows[split])
    _write_note(root, {**wanted, "complete": True})


def _check(wanted: dict) -> None:
    counts, size = wanted["counts"], wanted["size"]
    if not counts or any(not isinstance(n, int) or n < 0 for n in counts.values()) or not sum(counts.values()):
        raise InputError(f"counts={counts!r} makes no data set; give images per split, such as {{'train': 100}}")
    if size < 32:
        raise InputError(f"size={size} is too small to show anything; give at least 32 pixels")
    if not 0 <= wanted["shifted"] <= 1:
        raise InputError(f"shifted={wanted['shifted']} is not a share; give a number from 0 to 1")


def _state(root: Path) -> dict | None:
    try:
        return json.loads((root / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{root / NOTE} cannot be read ({error}); delete {root} if it is procedural data") from None


def _prepare(root: Path, wanted: dict) -> None:
    """Make sure that `root` is ours, empty it of older procedural images and note what is being written."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; the procedural data set needs a folder")
    known = _state(root)
    if known is None and root.exists() and any(root.iterdir()):
        raise InputError(f"{root} holds files that are not procedural data; choose another folder, none is overwritten")
    try:
        root.mkdir(parents=True, exist_ok=True)
        for split in (known or {}).get("counts", {}):
            _clear(root / split, split)
        _write_note(root, {**wanted, "complete": False})
        for split in wanted["counts"]:
            (root / split / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root} cannot be written: {error.strerror or error}; choose a folder you may write") from None


def _clear(folder: Path, split: str) -> None:
    for path in (folder / "images").glob(f"{split}_*.jpg"):
        path.unlink()
    for name in (f"{split}_info.json", "attributes.csv"):
        (folder / name).unlink(missing_ok=True)


def _write_note(root: Path, note: dict) -> None:
    part = root / (NOTE + ".part")
    part.write_text(json.dumps(note, indent=1), encoding="utf-8")
    part.replace(root / NOTE)


def _run(jobs: list, workers: int | None) -> Iterator[tuple[str, list]]:
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(_write_chunk, jobs)
        return
    # spawn, not fork: the caller may hold threads (a notebook kernel, torch) that do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_chunk, jobs)


def _write_chunk(job: tuple) -> tuple[str, list]:
    folder, split, start, number, count, size, seed, shifted = job
    cv2.setNumThreads(1)  # the processes already use every core
    return split, [_write_image(Path(folder), split, i, size, seed, shifted) for i in range(start, start + number)]


def domain_of(split: str, index: int, shifted: float) -> str:
    """Domain of image `index`: the shifted ones are spread evenly over "test"."""
    share = shifted if split == "test" else 0.0
    return "shifted" if int((index + 1) * share + 1e-9) > int(index * share + 1e-9) else "shown"


def _write_image(folder: Path, split: str, index: int, size: int, seed: int, shifted: float) -> tuple[dict, dict]:
    stream = SPLITS.get(split) or 100 + int.from_bytes(split.encode()[:6], "big")
    key = (seed, stream, index)
    sample = make_sample(key, size, domain_of(split, index, shifted))
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
