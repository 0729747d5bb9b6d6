"""Prepare a split once: manifest, label heatmaps, clipped regions, problems.

Images are looked at upright: an EXIF orientation is applied, as browsers and annotation tools do and as
`lib.stores.read_image` does, so regions, heatmap, `width` and `height` all refer to the image as it is shown.

Written for each split under `<data_path>/<split>/`: `heatmaps/<id>.png` as they are made, then `problems.csv`
and `regions.parquet`, and `manifest.parquet` last. A folder without manifest is unfinished: run it again.
"""

import io
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lib.data.attributes import read_attributes
from lib.data.pixels import resize
from lib.data.readers import LAYOUTS, READERS, NoSplitError, Record
from lib.data.readers.files import MISFITS, misfit
from lib.data.readers.record import unusable
from lib.data.regions import LEFT_OUT, Problem, agreement, draw_regions, extent, label_heatmap, mask_outlines, outlines
from lib.errors import InputError
from lib.files import replacing, writing
from lib.ids import refuse_id
from lib.scale import score_from_mos
from lib.stores import image_facts, write_heatmap

SPLITS = ("train", "val", "test")
MANIFEST = {
    "id": "str", "image": "str", "prompt": "str", "mos": "float64", "score": "float64", "labelled": "bool",
    "n_annotators": "int64", "n_regions": "int64", "width": "int64", "height": "int64",
    "distorted": "float64", "agreement": "float64",
}  # fmt: skip
REGIONS = pa.schema(
    [("id", pa.string()), ("annotator", pa.int64()), ("shape", pa.string()), ("points", pa.list_(pa.float64()))]
)  # points are x0, y0, x1, y1, ... clipped to the image
DOUBTFUL = ("corners swapped", "corners doubtful")  # of boxes that may be meant in another way
FAINTEST = 8  # of 255, that counts as marked: a map that was stored as JPEG is not quite 0 where nothing is
REMEDY = "give another data_path with write access and free space"
Progress = Callable[[str, int, int], None]  # (split, records done, records in all)


def prepare(
    data_root,
    data_path,
    splits=SPLITS,
    workers: int | None = None,
    progress: Progress | None = None,
    reader: str = "challenge",
) -> dict:
    """Check and rasterise `<data_root>/<split>` into `<data_path>/<split>`; returns {split: manifest}.

    Args:
        splits: one that is not there is left out, except "train", which is an error; so are data with none of them.
        workers: threads that decode and draw (default: one a core); OpenCV releases the interpreter while it works.
        progress: called after each record as (split, records done, records in all).
        reader: the raw data's format, a name in `lib.data.readers.READERS`.
    Raises InputError when the raw folder cannot be read, holds no usable record, or the output cannot be written.
    """
    if reader not in READERS:
        raise InputError(f"reader is {reader!r}; lib/data/readers has {', '.join(READERS)}")
    manifests = {}
    for split in dict.fromkeys(splits):
        try:
            found = READERS[reader](data_root, split)
        except NoSplitError as error:
            if split == "train":
                raise InputError(str(error)) from None
            continue
        except MISFITS as error:
            raise InputError(f"{data_root}, {split}: {misfit(error)}; repair it or name another reader") from error
        source, target, note = Path(data_root) / split, Path(data_path) / split, progress and partial(progress, split)
        manifests[split] = write_split(source, target, found, workers, note, LAYOUTS.get(reader, ""))
    if not manifests:
        named = ", ".join(splits) or "no split"
        raise InputError(f"{data_root} holds none of {named}; correct data_root or the parameter splits")
    return manifests


def write_split(
    source, target, found: tuple, workers: int | None = None, progress=None, layout="", remedy: str = REMEDY
) -> pd.DataFrame:
    """Write what a reader found in the folder `source` as the prepared split `target`; returns the manifest.

    Args:
        found: (ids, records, problems) as readers give them.
        progress: called as (records done, records in all).
        layout: a sentence on how regions are written, for the refusal of a split whose regions cannot be used.
        remedy: a clause on what to do when `target` cannot be written.
    Raises as `prepare` does.
    """
    ids, records, problems = found
    source, target = Path(source), Path(target)
    attributes, problems = read_attributes(source, taken=MANIFEST), [*problems]
    work = partial(_prepare_record, target=target, physical=cache(os.path.realpath))
    with writing(target, remedy):
        (target / "heatmaps").mkdir(parents=True, exist_ok=True)
        (target / "manifest.parquet").unlink(missing_ok=True)  # heatmaps are about to change under it
        rows, regions = [], []
        for done, (row, drawn, more) in enumerate(_in_order(work, _with_ids(records), workers), start=1):
            rows += row
            regions += drawn
            problems += more
            if progress:
                progress(done, len(ids))
        missing = [row["id"] for row in rows if len(attributes) and row["id"] not in attributes.index]
        if missing:
            detail = f"attributes.csv has no row for {len(missing)} of {len(rows)} images, the first is {missing[0]}"
            problems.append(Problem("", "attributes missing", detail))
        _write_problems(target / "problems.csv", problems)
        if not rows:
            problem, count = Counter(row.problem for row in problems).most_common(1)[0]
            told = f"none of the {len(ids)} records of {source} can be used ({count} x {problem})"
            raise InputError(f"{told}; see {target / 'problems.csv'}")
        _refuse_unreadable_regions(source, target, problems, len(regions), layout)
        columns = dict.fromkeys([*MANIFEST, *(name for row in rows for name in row)])  # further ones come last
        manifest = pd.DataFrame(rows, columns=list(columns)).astype(MANIFEST)
        for name in attributes:
            manifest[name] = manifest["id"].map(attributes[name])
        _finish(target, manifest, regions)
    return manifest


def _with_ids(records: Iterable[Record]) -> Iterator[Record]:
    """The records; one whose id can be no file name, or comes again, cannot be used."""
    seen = set()
    for record in records:
        if record.image is None:
            yield record
        elif reason := refuse_id(record.id):
            yield unusable(record.id, "id refused", f"{reason}; rename the image and its entry")
        elif record.id in seen:
            yield unusable(record.id, "duplicate id", "it is listed again; its first entry is used")
        else:
            seen.add(record.id)
            yield record


def _finish(target: Path, manifest: pd.DataFrame, regions: list[dict]) -> None:
    current = {target / "heatmaps" / f"{id}.png" for id in manifest.loc[manifest["labelled"], "id"]}
    for path in set((target / "heatmaps").glob("*.png")) - current:  # of records that have gone or lost their label
        path.unlink()
    for folder in (target, target / "heatmaps", target / "images"):  # `replacing` leaves these when it is killed
        for path in folder.glob("*.[0-9]*.part"):
            path.unlink()
    with replacing(target / "regions.parquet") as part:
        pq.write_table(pa.Table.from_pylist(regions, schema=REGIONS), part)
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


def _prepare_record(record: Record, target: Path, physical: Callable) -> tuple[list, list, list[Problem]]:
    """A record as ([manifest row] or [], region rows, problems); writes the heatmap of a labelled one."""
    id, problems = record.id, record.problems
    if record.image is None:
        return [], [], problems
    try:
        if isinstance(record.image, bytes):
            record.image = _kept_image(record, target)
        height, width, orientation = image_facts(record.image)
    except (InputError, cv2.error) as error:
        return [], [], [*problems, Problem(id, "image unreadable", str(error))]
    regions, masks, more = draw_regions(record, width, height, orientation)
    if orientation in range(2, 9):
        detail = f"EXIF orientation {orientation} is applied; regions are pixels of the upright {width}x{height}"
        problems.append(Problem(id, "image turned", detail))
    problems += more
    labelled, lost = record.labelled, sum(row.problem in LEFT_OUT for row in problems)
    if lost:
        labelled = bool(regions)
        instead = "the others make the heatmap" if labelled else "so it has no heatmap, only its score"
        problems.append(
            Problem(id, "regions lost", f"{lost} of {lost + len(regions)} regions cannot be used; {instead}")
        )
    outlined = [(one.annotator, *outline) for one in regions for outline in outlines(one, height, width)]
    row = {"labelled": labelled, "n_regions": len(regions), "width": width, "height": height}
    if labelled:
        if record.heatmap is None:
            heatmap, part = np.zeros((height, width), np.uint8), extent(regions, height, width)
            heatmap[part] = label_heatmap(masks[:, *part], record.consensus)
            row["agreement"] = agreement(masks[:, *part])
        else:
            heatmap = resize(record.heatmap, height, width)
            outlined = [(0, *outline) for outline in mask_outlines(heatmap >= FAINTEST)]
            row["n_regions"] = len(outlined)
        write_heatmap(target / "heatmaps" / f"{id}.png", heatmap, label=True)
        row["distorted"] = np.count_nonzero(heatmap >= FAINTEST) / heatmap.size
    row |= {
        "id": id,
        # Links in either path must not mislead `..`.
        "image": os.path.relpath(os.path.join(physical(record.image.parent), record.image.name), physical(target)),
        "prompt": record.prompt,
        "mos": record.mos,
        "score": None if record.mos is None else score_from_mos(record.mos),
        "n_annotators": record.n_annotators if record.labelled else 0,
    }
    drawn = [dict(zip(REGIONS.names, (id, annotator, shape, points.ravel()), strict=True))
             for annotator, shape, points in outlined]  # fmt: skip
    row = record.attributes | row
    for name, value in row.items():
        if isinstance(value, str) and (text := value.encode("utf-8", "replace").decode()) != value:
            problems.append(Problem(id, "text malformed", f"{name} holds half a surrogate pair; it is read as '?'"))
            row[name] = text
    return [row], drawn, problems


def _kept_image(record: Record, target: Path) -> Path:
    """Write an image that lies inside of another file beside the heatmaps; its own bytes, ended by what they are."""
    try:
        with Image.open(io.BytesIO(record.image)) as image:
            ending = image.format.lower().replace("jpeg", "jpg")
    except Exception:  # Pillow raises all kinds of errors
        raise InputError(f"{record.id}: its bytes are not an image that Pillow can read") from None
    path = target / "images" / f"{record.id}.{ending}"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(record.image)
    return path


def _refuse_unreadable_regions(source: Path, target: Path, problems: list[Problem], usable: int, layout: str) -> None:
    """Stop when most regions of a split cannot be used: in another layout all images would be labelled as sound."""
    lost = [row for row in problems if row.problem in LEFT_OUT]
    doubtful = [row for row in problems if row.problem in DOUBTFUL]
    reason = "cannot be used" if len(lost) > usable else "have corners that do not fit"
    if wrong := lost if len(lost) > usable else doubtful if len(doubtful) > max(5, usable / 2) else []:
        raise InputError(
            f"{source}: {len(wrong)} of {len(lost) + usable} regions {reason}, the first of {wrong[0].id}: "
            f"{wrong[0].detail}. {layout}{layout and ' '}All are in {target / 'problems.csv'}"
        )


def _write_problems(path: Path, problems: list[Problem]) -> None:
    table = pd.DataFrame(problems, columns=Problem._fields, dtype=object)
    # Ids and file names may hold NUL, line breaks and half surrogate pairs, which not every reader of CSV takes.
    odd = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
    table = table.map(lambda text: odd.sub(lambda found: repr(found[0])[1:-1], str(text)))
    with replacing(path) as part:
        table.to_csv(part, index=False)
