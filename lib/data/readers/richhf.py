"""RichHF-18K: `<split>.tfrecord` with a heatmap and four scores an image; images and prompts come from Pick-a-Pic v1.

The images lie in `images/` (or `images/<split>/`), named by their uid, the prompts in `prompts.json`, {uid: text}.
The label is the artifact map itself, the mean of three annotators; an image without record is not annotated.
Sources: README of google-research-datasets/richhf-18k, `richhf_18k/` of google-research/google-research; of TFRecord
`tensorflow/core/lib/io/record_reader.cc` and `tensorflow/core/example/{example,feature}.proto`.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from lib.data.readers.files import Images, find_file, images_folder, match, read_json
from lib.data.readers.record import Record
from lib.data.regions import Problem
from lib.errors import InputError
from lib.files import what_it_is
from lib.scale import mos_from_score

NAMES = {"val": "dev"}  # of the published files
SCORES = ("misalignment_score", "aesthetics_score", "overall_score")  # kept as attributes
ANNOTATORS = 3
LENGTH = 12  # bytes of a record's length and its checksum


def read_richhf(data_root, split: str):
    """Returns and raises as readers do; the file is read twice: for its uids, then record by record."""
    path = find_file(data_root, NAMES.get(split, split), ".tfrecord")
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

    return match(images, [(uid, uid) for uid in uids], read, problems)


def _uid(features: dict) -> str:
    name = (features.get("filename") or [b""])[0].decode("utf-8", "replace")
    return Path(name.replace("\\", "/")).stem


def _record(id: str, image: Path, features: dict, prompt) -> Record:
    record = Record(id, image, prompt=prompt or "", n_annotators=ANNOTATORS)
    score = (features.get("artifact_score") or [None])[0]
    if score is not None and 0 <= score <= 1:
        record.mos = mos_from_score(score)
    elif score is not None:
        record.report("mos unusable", f"artifact_score is {score}, not a number from 0 to 1")
    encoded = (features.get("artifact_map") or [b""])[0]
    record.heatmap = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE) if encoded else None
    record.labelled = record.heatmap is not None
    if encoded and not record.labelled:
        record.report("annotation unreadable", "artifact_map is no image that OpenCV can read")
    record.attributes = {name: features[name][0] for name in SCORES if features.get(name)}
    labels = (features.get("prompt_misalignment_label") or [b""])[0].decode("utf-8", "replace").split()
    words = [word for word in re.split(r"[,.?!\":; ]", record.prompt) if word]
    if prompt and labels and len(words) != len(labels):
        detail = f"{len(labels)} labels of words, but the prompt has {len(words)}; they are left out"
        record.report("token count", detail)
    elif prompt and labels:
        misaligned = [word for word, label in zip(words, labels, strict=True) if label == "0"]
        record.attributes["misaligned_words"] = " ".join(misaligned)
    return record


def read_tfrecord(path: Path) -> Iterator[tuple[dict[str, list], str]]:
    """The tf.train.Examples of a TFRecord file, one at a time: ({feature: its values}, what is wrong with it).

    Values are bytes or floats. A record whose checksum is wrong comes with empty features and a reason; so
    does the last one when the file ends within it. Raises InputError when the file is no TFRecord at all.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c  # not needed for other formats

    size, number = path.stat().st_size, 0
    with open(path, "rb") as file:
        while head := file.read(LENGTH):
            number += 1
            length, check = struct.unpack("<QI", head) if len(head) == LENGTH else (0, 0)
            if len(head) < LENGTH or masked_crc32c(head[:8]) != check:
                if number == 1:
                    raise InputError(f"{path} is no TFRecord file.{what_it_is(path)}")
                yield {}, f"record {number} has a damaged length; nothing after it can be read"
                return
            if file.tell() + length + 4 > size:
                yield {}, f"the file ends within record {number}; copy it again"
                return
            data, check = file.read(length), struct.unpack("<I", file.read(4))[0]
            if masked_crc32c(data) != check:
                yield {}, f"record {number} is damaged (its checksum is wrong)"
                continue
            try:
                yield _example(data), ""
            except (ValueError, IndexError, struct.error):
                yield {}, f"record {number} is no tf.train.Example"


def _example(data: bytes) -> dict[str, list]:
    features = {}
    for _, entry in _fields(b"".join(value for number, value in _fields(data) if number == 1)):
        parts = dict(_fields(entry))  # 1 the name, 2 the feature
        features[parts[1].decode()] = [
            value for kind, part in _fields(parts.get(2, b"")) for value in _values(kind, part)
        ]
    return features


def _values(kind: int, part: bytes) -> list:
    """The values of a bytes_list (1) or float_list (2); nobody asks for those of an int64_list (3)."""
    found = [value for number, value in _fields(part) if number == 1]
    return np.frombuffer(b"".join(found), "<f4").tolist() if kind == 2 else found


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of the fields of a protobuf message: bytes, also of fixed widths, or an integer."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 2, 5):
            length, place = _varint(data, place) if kind == 2 else (8 if kind == 1 else 4, place)
            if place + length > len(data):
                raise ValueError("a field is longer than its message")
            value, place = data[place : place + length], place + length
        else:
            raise ValueError(f"unknown wire type {kind}")
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while data[place] & 128:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1
