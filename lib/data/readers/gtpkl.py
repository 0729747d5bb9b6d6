"""The organisers' `gt.pkl`: {id: {"score": 0..1, "pred_area": uint8 [H, W] of 0 and 1}}, with the images in a folder.

The masks are thresholded already and their annotators are gone, so they count as consensus; they are stretched to the
image. An id that the file lacks is not annotated. Source: `evaluate.py` of DYEvaLab/EvalMuse-Structure.
"""

import numpy as np

from lib.data.readers.files import Images, find_file, images_folder, match
from lib.data.readers.record import Record, shorten
from lib.data.regions import Region
from lib.errors import InputError
from lib.pickles import StoredArray, load_pickle
from lib.scale import mos_from_score


def read_gtpkl(data_root, split: str):
    """Returns and raises as readers do."""
    path = find_file(data_root, split, ".pkl")
    content = load_pickle(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no images; it must be a dict of id -> {{'score', 'pred_area'}}")
    return match(Images(images_folder(data_root, split)), content.items(), _record)


def _record(id: str, image, entry) -> Record:
    record = Record(id, image)
    entry = entry if isinstance(entry, dict) else {}
    score, stored = entry.get("score"), entry.get("pred_area")
    if isinstance(score, StoredArray):
        score = np.asarray(score).ravel()[0] if np.asarray(score).size == 1 else None
    if isinstance(score, bool) or not isinstance(score, int | float | np.number) or not 0 <= score <= 1:
        record.report("mos unusable", f"the score is {shorten(score)}, not a number from 0 to 1")
    else:
        record.mos = mos_from_score(float(score))
    mask = np.asarray(stored) if isinstance(stored, StoredArray) else None
    record.labelled = mask is not None and mask.ndim == 2 and mask.size > 0
    if not record.labelled:
        record.report("record malformed", "pred_area is no array [H, W]; only the score is used")
    elif mask.any():
        record.regions.append(Region.of_mask(0, mask > 0))
    return record
