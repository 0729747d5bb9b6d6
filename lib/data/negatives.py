"""Real photographs as sound examples: a folder with captions -> the prepared split `negatives`.

Flickr30k is what the reference uses: photographs and `results_20130124.token` (`<file>#<k><tab><caption>`); any other
photographs come with a `captions.csv` (columns `image`, `caption`). Each is cropped to its central square and gets the
label nobody would dispute: mos 5 and an empty heatmap.
"""

from functools import partial
from pathlib import Path

import cv2
import pandas as pd

from lib.data.own_images import read_prompts
from lib.data.prepare import Progress, write_split
from lib.data.readers import Images, Record
from lib.data.readers.files import match
from lib.errors import InputError
from lib.stores import read_image

SPLIT = "negatives"
TOKENS = "results_20130124.token"
CAPTIONS = "captions.csv"
JPEG_QUALITY = 95


def add_negatives(source, data_path, workers: int | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """Crop photographs into `<data_path>/negatives` and prepare them there; returns the manifest.

    Of several captions the first is the prompt. Raises InputError when there are no captions, no photographs, or the
    output cannot be written.
    """
    source, target = Path(source), Path(data_path) / SPLIT
    if source.resolve() == target.resolve():
        raise InputError(f"{source} is where the cropped photographs go; give the folder of the original ones")
    captions = _read_captions(source)
    # Photographs that no caption names are no problem.
    ids, records, _ = match(Images(source), sorted(captions.items()), _record)
    return write_split(source, target, (ids, records, []), workers, progress and partial(progress, SPLIT))


def _record(id: str, path: Path, caption: str) -> Record:
    image = read_image(path)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = cv2.cvtColor(image[top : top + side, left : left + side], cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return Record(id, encoded, prompt=caption, mos=5.0, n_annotators=0)


def _read_captions(source: Path) -> dict[str, str]:
    """{photograph: first caption}"""
    tokens, table = source / TOKENS, source / CAPTIONS
    if tokens.is_file():
        lines = tokens.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        parts = [line.partition("\t") for line in lines if line.strip()]
        pairs = [(key.rpartition("#")[0], caption.strip()) for key, _, caption in parts]
        if wrong := [number for number, (name, _) in enumerate(pairs, start=1) if not name]:
            raise InputError(
                f"{tokens}: entry {wrong[0]} is not `<file>#<k><tab><caption>`; repair or replace the file"
            )
    elif table.is_file():
        pairs = read_prompts(table)[["path", "prompt"]].itertuples(index=False)
    else:
        raise InputError(f"{source} holds neither {TOKENS} nor {CAPTIONS} (columns image, caption); add one")
    captions: dict[str, str] = {}
    for name, caption in pairs:
        captions.setdefault(name, caption)
    if not captions:
        raise InputError(f"{source} has an empty list of captions; check that it was downloaded completely")
    return captions
