"""PAL4VST and PAL4Inpaint: `images/<split>/<stem>.*` and masks `labels/<split>/<stem>.png`, 0 sound, 1 bad.

An image without mask is not annotated, one with a mask of zeros is sound. Source: `artifacts.py` and the
configurations of owenzlz/PAL4VST.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from lib.data.readers.files import Images, match
from lib.data.readers.record import NoSplitError, Record
from lib.data.regions import Region
from lib.files import what_it_is


def read_pal4vst(data_root, split: str):
    """Returns and raises as readers do."""
    labels = Path(data_root, "labels", split)
    if not labels.is_dir():
        raise NoSplitError(f"{labels} does not exist or is no folder; PAL4VST has labels/{split}/ and images/{split}/")
    images = Images(Path(data_root, "images", split))
    return match(images, [(path.stem, path) for path in sorted(labels.glob("*.png"))], _record)


def _record(id: str, image: Path, path: Path) -> Record:
    record = Record(id, image, labelled=False)
    try:
        with Image.open(path) as stored:  # OpenCV would turn the indices of a palette into colours
            mask = np.asarray(stored if stored.mode == "P" else stored.convert("RGB"))
    except Exception:  # Pillow raises all kinds of errors
        known = what_it_is(path) or " It is left out."
        record.report("annotation unreadable", f"{path.name} is no image that Pillow can read.{known}")
        return record
    mask = mask.max(axis=2) if mask.ndim == 3 else mask
    values = np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0] > 0):
        shown = ", ".join(map(str, values[:6]))
        record.report("mask values", f"{path.name} holds {shown}, not 0 and one more; it is not read as a mask")
        return record
    if values[-1] > 1:
        record.report("mask values", f"{path.name} holds {values[-1]} in place of 1; what is above 0 is marked")
    if mask.any():
        record.regions.append(Region.of_mask(0, mask > 0))
    record.labelled, record.size = True, mask.shape[::-1]
    return record
