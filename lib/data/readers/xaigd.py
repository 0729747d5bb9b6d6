"""X-AIGD: Parquet files with the images inside, polygons in pixels and a kind for each.

Rows whose `labels` are null, and the unlabelled splits, are not annotated; an empty list is sound. How its authors draw
polygons is not published; outlines are marked as well here. Source: README and dataset card of Coxy7/X-AIGD.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lib.data.readers.record import NoSplitError, Record, joined, polygon, size_of, unusable
from lib.errors import InputError
from lib.files import what_it_is

COLUMNS = ("image", "uid", "labels", "original_prompt", "generator", "width", "height")


def read_xaigd(data_root, split: str):
    """Returns and raises as readers do; `train` and `test` mean `labeled_train` and `labeled_test`."""
    root = Path(data_root)
    named = [*(root / "data").glob(f"{split}-*.parquet"), *(root / "data").glob(f"labeled_{split}-*.parquet")]
    paths = sorted(named or root.glob(f"{split}/*.parquet"))
    if not paths:
        raise NoSplitError(f"{root} holds no data/labeled_{split}-*.parquet of X-AIGD")
    try:
        files = [pq.ParquetFile(path) for path in paths]
        columns = [[name for name in COLUMNS if name in file.schema_arrow.names] for file in files]
        ids = [str(id) for file in files for id in file.read(columns=["uid"])["uid"].to_pylist()]
    except (pa.ArrowException, OSError, KeyError) as error:
        known = "".join(what_it_is(path) for path in paths[:1])
        raise InputError(f"{paths[0]}: not a Parquet file of X-AIGD ({str(error).splitlines()[0]}).{known}") from None

    def records():
        for file, names in zip(files, columns, strict=True):
            for batch in file.iter_batches(batch_size=16, columns=names):  # images are large
                yield from (_record(str(row["uid"]), row) for row in batch.to_pylist())

    return ids, records(), []


def _record(id: str, row: dict) -> Record:
    labels, image = row.get("labels"), row["image"] or {}
    if not image.get("bytes"):
        return unusable(id, "image missing", f"the row holds no bytes of {image.get('path')}")
    record = Record(id, image["bytes"], labels is not None, row.get("original_prompt") or "")
    record.size = size_of(row.get("width"), row.get("height"))
    for number, label in enumerate(labels or []):
        record.add(f"label {number}", polygon, label.get("points"), 0, "polygon")
    record.attributes["kinds"] = joined(label.get("label") for label in labels or [])
    if row.get("generator"):
        record.attributes["generator"] = row["generator"]
    return record
