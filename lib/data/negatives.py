"""Real photographs as sound examples: a folder with captions -> the prepared split `negatives`.

Flickr30k is what the reference uses: `images/` (or the photographs themselves) beside `results_20130124.token`
(`<file>#<k><tab><caption>`); any other photographs come with a `captions.csv` (columns `image`, `caption`).
Each is cropped to its central square and gets the label nobody would dispute: mos 5 and an empty heatmap.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lib.data.prepare import REMEDY, Progress, prepare_split
from lib.data.regions import Problem
from lib.errors import InputError
from lib.files import read_text_table, replacing, writing
from lib.ids import refuse_id
from lib.stores import read_image

SPLIT = "negatives"
TOKENS = "results_20130124.token"
CAPTIONS = "captions.csv"
JPEG_QUALITY = 95


def add_negatives(
    source,
    data_path,
    limit: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Crop photographs into `<data_path>/negatives` and prepare them there; returns the manifest.

    Of several captions the first is the prompt. `limit` draws that many photographs with `seed` (default: all).
    The crops and `negatives_info.json` are in the challenge's own format, so `prepare_split` does the rest.
    Raises InputError when there are no captions, too few photographs, or the output cannot be written.
    """
    source, target = Path(source), Path(data_path) / SPLIT
    captions = _read_captions(source)
    names = sorted(captions)
    if limit is not None:
        if not 0 < limit <= len(names):
            raise InputError(f"limit is {limit}, but {source} has captions for {len(names)} photographs; correct it")
        names = sorted(np.random.default_rng(seed).permutation(names)[:limit].tolist())
    folder = source / "images" if (source / "images").is_dir() else source
    if folder.resolve() == (target / "images").resolve():
        raise InputError(f"{source} is where the cropped photographs go; give the folder of the original ones")
    info, problems = {}, []
    with writing(target, REMEDY):
        (target / "images").mkdir(parents=True, exist_ok=True)
        for name in names:
            id = Path(name).stem
            if reason := refuse_id(id):
                problems.append(Problem(id, "id refused", f"{reason}; rename the photograph and its captions"))
                continue
            try:
                _crop(folder / name, target / "images" / f"{id}.jpg")
            except (InputError, cv2.error) as error:
                problems.append(Problem(id, "image unreadable", str(error)))
                continue
            info[id] = {"prompt_en": captions[name], "mos": 5, "bbox_info": []}
        for path in (target / "images").iterdir():  # crops of an earlier call with other photographs
            if path.stem not in info:
                path.unlink()
        with replacing(target / f"{SPLIT}_info.json") as part:
            part.write_text(json.dumps(info, ensure_ascii=False), encoding="utf-8")
    if not info:
        raise InputError(f"none of the {len(names)} photographs named in the captions can be read in {folder}")
    return prepare_split(data_path, data_path, SPLIT, workers, progress, earlier=problems)


def _crop(source: Path, target: Path) -> None:
    image = read_image(source)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side, ::-1])  # OpenCV writes BGR
    encoded = cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    with replacing(target) as part:
        part.write_bytes(encoded.tobytes())


def _read_captions(source: Path) -> dict[str, str]:
    """{file name: first caption}; names that are more than a file name are refused."""
    pairs = _token_pairs(source / TOKENS) if (source / TOKENS).is_file() else _csv_pairs(source / CAPTIONS)
    captions: dict[str, str] = {}
    stems: dict[str, str] = {}
    for name, caption in pairs:
        if name in captions:
            continue
        stem = Path(name).stem
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise InputError(f"{source}: the captions name {name!r}, which is no plain file name; correct it")
        if stem in stems:
            raise InputError(f"{source}: {stems[stem]!r} and {name!r} would share the id {stem!r}; rename one")
        captions[name], stems[stem] = caption, name
    if not captions:
        raise InputError(f"{source} has an empty list of captions; check that it was downloaded completely")
    return captions


def _token_pairs(path: Path) -> list[tuple[str, str]]:
    lines = [line.partition("\t") for line in _read_text(path).splitlines() if line.strip()]
    for number, (key, tab, _) in enumerate(lines, start=1):
        if not tab or "#" not in key:
            raise InputError(f"{path}: entry {number} is not `<file>#<k><tab><caption>`; repair or replace the file")
    return [(key.rpartition("#")[0], caption.strip()) for key, _, caption in lines]


def _csv_pairs(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"{path.parent} holds neither {TOKENS} nor {CAPTIONS} (columns image, caption); add one")
    table = read_text_table(path)
    if not {"image", "caption"} <= set(table):
        raise InputError(f"{path} has the columns {', '.join(table)}; it needs image and caption")
    return list(zip(table["image"], table["caption"], strict=True))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from None
