"""Prepare a split once: manifest, label heatmaps, clipped regions, problems.

Images are looked at upright: an EXIF orientation is applied, as browsers and annotation tools do and as
`lib.stores.read_image` does, so regions, heatmap, `width` and `height` all refer to the image as it is shown.

Written for each split under `<data_path>/<split>/`: `heatmaps/<id>.png` as they are made, then `problems.csv`
and `regions.parquet`, and `manifest.parquet` last. A folder without manifest is unfinished: run it again.
"""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lib.data.attributes import join_attributes, read_attributes
from lib.data.readers import READERS, REGION_LAYOUT, Record
from lib.data.regions import LEFT_OUT, Problem, Region, agreement, annotator_masks, clip_regions, label_heatmap
from lib.errors import InputError
from lib.files import clear_leftovers, replacing, writing
from lib.scale import score_from_mos
from lib.stores import read_image, write_heatmap

SPLITS = ("train", "val", "test")
MANIFEST = {
    "id": "str", "image": "str", "prompt": "str", "mos": "float64", "score": "float64", "labelled": "bool",
    "n_annotators": "int64", "n_regions": "int64", "width": "int64", "height": "int64",
    "distorted": "float64", "agreement": "float64",
}  # fmt: skip
REGIONS = pa.schema(
    [("id", pa.string()), ("annotator", pa.int64()), ("shape", pa.string()), ("points", pa.list_(pa.float64()))]
)  # points are x0, y0, x1, y1, ... clipped to the image
EXIF_ORIENTATION = 0x0112
REGIONS_LOST = "regions lost"
REMEDY = "give a DATA_PATH with write access and free space"
Progress = Callable[[str, int, int], None]  # (split, records done, records in all)


def prepare(
    data_root,
    data_path,
    splits=SPLITS,
    workers: int | None = None,
    progress: Progress | None = None,
    reader: str = "challenge",
) -> dict:
    """Prepare the splits that are there; returns {split: manifest}. Arguments and errors as in `prepare_split`.

    A split without a folder is left out, except "train", which is an error; so is a folder with none of the splits.
    """
    present = [split for split in dict.fromkeys(splits) if split == "train" or (Path(data_root) / split).is_dir()]
    if not present:
        named = ", ".join(f"{split}/" for split in splits) or "no split"
        raise InputError(f"{data_root} holds none of {named}; correct data_root or the parameter splits")
    return {split: prepare_split(data_root, data_path, split, workers, progress, reader) for split in present}


def prepare_split(
    data_root,
    data_path,
    split: str,
    workers: int | None = None,
    progress: Progress | None = None,
    reader: str = "challenge",
    earlier: Iterable[Problem] = (),
) -> pd.DataFrame:
    """Check and rasterise `<data_root>/<split>` into `<data_path>/<split>`; returns the manifest.

    `workers` threads (default: one a core) decode and draw; OpenCV releases the interpreter while it works.
    `progress(split, done, total)` is called after each record. `reader` is the raw data's format, a name in
    `lib.data.readers.READERS`. `earlier` are problems to report beside ours.
    Raises InputError when the raw folder cannot be read, holds no usable record, or the output cannot be written.
    """
    source, target = Path(data_root) / split, Path(data_path) / split
    if reader not in READERS:
        raise InputError(f"reader is {reader!r}; lib/data/readers.py has {', '.join(READERS)}")
    ids, records, problems = READERS[reader](data_root, split)
    attributes, more = read_attributes(source, taken=MANIFEST)
    problems = [*earlier, *problems, *more]
    work = partial(_prepare_record, target=target)
    with writing(target, REMEDY):
        _start(target)
        rows, regions = [], []
        for done, (row, drawn, found) in enumerate(_in_order(work, records, workers), start=1):
            rows += row
            regions += drawn
            problems += found
            if progress:
                progress(split, done, len(ids))
        manifest, more = join_attributes(
            pd.DataFrame(rows, columns=list(MANIFEST)).astype(MANIFEST), attributes, set(ids)
        )
        problems += more
        _write_problems(target / "problems.csv", problems)
        if manifest.empty:
            raise InputError(_nothing_usable(source, target, problems, len(ids)))
        _refuse_unreadable_regions(
            source, target, problems, len(regions), REGION_LAYOUT if reader == "challenge" else ""
        )
        _finish(target, manifest, regions)
    return manifest


def _start(target: Path) -> None:
    (target / "heatmaps").mkdir(parents=True, exist_ok=True)
    (target / "manifest.parquet").unlink(missing_ok=True)  # heatmaps are about to change under it


def _finish(target: Path, manifest: pd.DataFrame, regions: list[dict]) -> None:
    current = {target / "heatmaps" / f"{id}.png" for id in manifest.loc[manifest["labelled"], "id"]}
    for path in set((target / "heatmaps").glob("*.png")) - current:  # of records that have gone or lost their label
        path.unlink()
    clear_leftovers(target, target / "heatmaps")
    table = pa.Table.from_pylist(regions, schema=REGIONS)
    with replacing(target / "regions.parquet") as part:
        pq.write_table(table, part)
    with replacing(target / "manifest.parquet") as part:
        manifest.to_parquet(part, index=False)


def _in_order(function, items: Iterable, workers: int | None) -> Iterator:
    """`map` over threads in the order of the items, with few of them in flight so that memory stays flat."""
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _prepare_record(item: tuple, target: Path) -> tuple[list, list, list[Problem]]:
    """(Record, problems) -> ([manifest row] or [], region rows, problems); writes the heatmap of a labelled one."""
    record, problems = item
    if record is None:
        return [], [], problems
    id = record.id
    try:
        height, width = read_image(record.image).shape[:2]
    except (InputError, cv2.error) as error:
        return [], [], [*problems, Problem(id, "image unreadable", str(error))]
    problems += _image_notes(record, width, height)
    regions, more = clip_regions(record, width, height)
    problems += more
    labelled, lost = record.labelled, max(record.n_drawn, len(record.regions)) - len(regions)
    if lost:
        labelled = bool(regions)
        instead = "the others make the heatmap" if labelled else "so it has no heatmap, only its score"
        problems.append(Problem(id, REGIONS_LOST, f"{lost} of {lost + len(regions)} regions cannot be used; {instead}"))
    row = {
        "id": id,
        "image": _relative(record.image, target),
        "prompt": record.prompt,
        "mos": record.mos,
        "score": None if record.mos is None else score_from_mos(record.mos),
        "labelled": labelled,
        "n_annotators": record.n_annotators,
        "n_regions": len(regions),
        "width": width,
        "height": height,
    }
    if labelled:
        row |= _draw(record, regions, target / "heatmaps" / f"{id}.png", width, height)
    return [row], [_region_row(id, region) for region in regions], problems


def _draw(record: Record, regions: list[Region], path: Path, width: int, height: int) -> dict:
    masks = annotator_masks(regions, record.n_annotators, height, width)
    heatmap = label_heatmap(masks)
    write_heatmap(path, heatmap)
    return {"distorted": np.count_nonzero(heatmap) / heatmap.size, "agreement": agreement(masks)}


def _region_row(id: str, region: Region) -> dict:
    return {"id": id, "annotator": region.annotator, "shape": region.shape, "points": region.points.ravel()}


def _image_notes(record: Record, width: int, height: int) -> list[Problem]:
    """Rows for images that are used, but not as they are stored; only the file's header is read."""
    try:
        with Image.open(record.image) as image:
            # Pillow calls 16-bit colour "RGB" as well; the raw mode it decodes from ("RGB;16B") tells.
            arguments = image.tile[0].args if image.tile else ""
            raw = str(arguments[0] if isinstance(arguments, tuple) else arguments)
            stored = raw if ";16" in raw else image.mode
            # For a PNG without EXIF, getexif() would decode the whole image in search of it.
            has_exif = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(EXIF_ORIENTATION, 1) if has_exif else 1
    except Exception:  # OpenCV read it: what Pillow makes of a strange header is no reason to drop the image
        return []
    notes = []
    if stored != "RGB":
        notes.append(Problem(record.id, "image converted", f"{record.image.name} is stored as {stored}; read as RGB"))
    if orientation in range(2, 9):
        detail = f"EXIF orientation {orientation} is applied; regions are pixels of the upright {width}x{height}"
        notes.append(Problem(record.id, "image turned", detail))
    return notes


def _relative(image: Path, target: Path) -> str:
    """POSIX path from `target` to the image, both physical, so that links in either path do not mislead `..`."""
    image = Path(os.path.realpath(image.parent)) / image.name
    try:
        return Path(os.path.relpath(image, os.path.realpath(target))).as_posix()
    except ValueError:  # another drive on Windows
        return image.as_posix()


def _nothing_usable(source: Path, target: Path, problems: list[Problem], total: int) -> str:
    problem, count = Counter(row.problem for row in problems).most_common(1)[0]
    return f"none of the {total} records of {source} can be used ({count} x {problem}); see {target / 'problems.csv'}"


def _refuse_unreadable_regions(source: Path, target: Path, problems: list[Problem], usable: int, layout: str) -> None:
    """Stop when most regions of a split cannot be used: in another layout all images would be labelled as sound."""
    lost = [row for row in problems if row.problem in (*LEFT_OUT, "annotator malformed")]
    if len(lost) > usable:
        raise InputError(
            f"{source}: {len(lost)} of {len(lost) + usable} regions cannot be used, the first of {lost[0].id}: "
            f"{lost[0].detail}. {layout}All are in {target / 'problems.csv'}"
        )


def _write_problems(path: Path, problems: list[Problem]) -> None:
    # A file name or an id may hold half a surrogate pair, which no table can.
    rows = [[str(text).encode("utf-8", "backslashreplace").decode() for text in vars(row).values()] for row in problems]
    table = pd.DataFrame(rows, columns=["id", "problem", "detail"])
    # Refused ids may hold NUL and line breaks, after which not every CSV reader goes on.
    table = table.map(lambda text: re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text))
    with replacing(path) as part:
        table.to_csv(part, index=False, encoding="utf-8", errors="backslashreplace")
