"""RichHF-18K: `<split>.tfrecord` with a heatmap and four scores an image; images and prompts come from Pick-a-Pic v1.

The images lie in `images/` (or `images/<split>/`), named by their uid, the prompts in `prompts.json`, {uid: text}.
The label is the artifact map itself, the mean of three annotators; an image without record is not annotated.
Source: README of google-research-datasets/richhf-18k and `richhf_18k/` of google-research/google-research.
"""

import re
from pathlib import Path

import cv2
import numpy as np

from lib.data.readers.files import Images, find_file, images_folder, match, read_json
from lib.data.readers.record import Drawing, NoSplitError
from lib.data.readers.tfrecord import read_tfrecord
from lib.data.regions import Problem
from lib.errors import InputError
from lib.scale import mos_from_score

NAMES = {"val": "dev"}  # of the published files
SCORES = ("misalignment_score", "aesthetics_score", "overall_score")  # kept as attributes
ANNOTATORS = 3


def read_richhf(data_root, split: str):
    """Returns and raises as readers do; the file is read twice: for its uids, then record by record."""
    try:
        path = find_file(data_root, split, ".tfrecord")
    except NoSplitError:
        if split not in NAMES:
            raise
        path = find_file(data_root, NAMES[split], ".tfrecord")
    problems, uids = [], []
    for features, wrong in read_tfrecord(path):
        uids += [_uid(features)] if not wrong else []
        problems += [Problem("", "record damaged", f"{path.name}: {wrong}")] if wrong else []
    about = Path(data_root) / "prompts.json"
    prompts = read_json(about) if about.is_file() else {}
    if not isinstance(prompts, dict):
        raise InputError(f"{about} holds a {type(prompts).__name__}, not an object {{uid: prompt}}")
    images = Images(images_folder(data_root, split))
    records_again = (features for features, wrong in read_tfrecord(path) if not wrong)

    def read(id: str, image: Path, uid: str):
        features = next(features for features in records_again if _uid(features) == uid)  # in the order of `uids`
        return _record(id, image, features, prompts.get(uid))

    ids, records, more = match(images, [(uid, uid) for uid in uids], read)
    return ids, records, problems + more


def _uid(features: dict) -> str:
    name = (features.get("filename") or [b""])[0].decode("utf-8", "replace")
    return Path(name.replace("\\", "/")).stem


def _record(id: str, image: Path, features: dict, prompt):
    drawing = Drawing(id)
    score = (features.get("artifact_score") or [None])[0]
    if score is not None and not 0 <= score <= 1:
        drawing.report("mos unusable", f"artifact_score is {score}, not a number from 0 to 1")
        score = None
    encoded = (features.get("artifact_map") or [b""])[0]
    heatmap = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE) if encoded else None
    if encoded and heatmap is None:
        drawing.report("annotation unreadable", "artifact_map is no image that OpenCV can read")
    attributes = {name: features[name][0] for name in SCORES if features.get(name)}
    labels = (features.get("prompt_misalignment_label") or [b""])[0].decode("utf-8", "replace").split()
    words = [word for word in re.split(r"[,.?!\":; ]", prompt or "") if word]
    if prompt and labels and len(words) != len(labels):
        drawing.report(
            "token count", f"{len(labels)} labels of words, but the prompt has {len(words)}; they are left out"
        )
    elif prompt and labels:
        attributes["misaligned_words"] = " ".join(
            word for word, label in zip(words, labels, strict=True) if label == "0"
        )
    return drawing.record(
        image,
        labelled=heatmap is not None,
        prompt=prompt or "",
        mos=None if score is None else mos_from_score(score),
        n_annotators=ANNOTATORS if heatmap is not None else 0,
        heatmap=heatmap,
        attributes=attributes,
    )
