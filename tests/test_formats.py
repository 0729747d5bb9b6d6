"""Readers of the field's formats: a small example of each, its masks pixel by pixel, its problems row by row.

The examples are ours. Expected masks were drawn by the libraries that define the formats; along outlines these differ
by a pixel.
"""

import contextlib
import json
import shutil
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from lib.data.prepare import prepare
from lib.data.readers import READERS, NoSplitError
from lib.data.readers.richhf import read_tfrecord
from lib.errors import InputError
from lib.scale import HEATMAP_LEVELS
from lib.stores import LabelStore

GOLDEN = Path(__file__).parent / "golden" / "formats"
FORMATS = sorted(path.name for path in GOLDEN.iterdir())
# Our words for what the examples call otherwise.
CODES = {
    "image without entry": "image not listed",
    "annotation missing": "image not listed",
    "record missing": "image not listed",
    "mask size": "size differs",
}
WIDER = np.ones((3, 3), np.uint8)


def copy_raw(name: str, folder: Path) -> Path:
    """An example without what is expected of it."""
    shutil.copytree(GOLDEN / name, folder, ignore=shutil.ignore_patterns("expected*", "rle.json", "brush.json"))
    return folder


@pytest.fixture(scope="module", params=FORMATS)
def example(request, tmp_path_factory):
    """(name, what is expected, manifest of all splits indexed by id, {id: heatmap}, problems)"""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    manifests = prepare(copy_raw(name, folder / "raw"), folder / "data", reader=name, workers=2)
    stores = [LabelStore(folder / "data" / split) for split in manifests]
    table = pd.concat([store.table for store in stores])
    heatmaps = {id: store.heatmap(id) for store in stores for id in store.table.index[store.table["labelled"]]}
    problems = [pd.read_csv(store.path / "problems.csv", dtype=str, keep_default_na=False) for store in stores]
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    return name, expected, table, heatmaps, pd.concat(problems)


def places(node, at=()):
    """The way to each value in a JSON tree."""
    yield at
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*at, key))


JSON_FILES = [path.relative_to(GOLDEN) for path in sorted(GOLDEN.rglob("*.json"))]
JSON_FILES = [path for path in JSON_FILES if path.name not in ("expected.json", "rle.json", "brush.json")]


@pytest.mark.parametrize("file", JSON_FILES, ids=str)
@hypothesis.settings(max_examples=30)
@hypothesis.given(data=st.data())
def test_an_odd_value_anywhere_is_told(file, data, tmp_path_factory):
    """No annotation file ends in an error of Python's, whichever of its values is something else."""
    folder, (name, *within) = tmp_path_factory.mktemp("odd"), file.parts
    raw = copy_raw(name, folder / "raw")
    holder = [json.loads((GOLDEN / file).read_text())]
    *way, last = data.draw(st.sampled_from([(0, *at) for at in places(holder[0])]))
    node = holder
    for key in way:
        node = node[key]
    node[last] = data.draw(st.sampled_from([3, "x", None, True, [], {}, [1], {"a": 1}]))
    raw.joinpath(*within).write_text(json.dumps(holder[0]))
    with contextlib.suppress(InputError):
        prepare(raw, folder / "data", reader=name, workers=1)


def test_masks(example):
    name, expected, _, heatmaps, _ = example
    for id, heatmap in heatmaps.items():
        if name == "richhf":  # the map itself, brought to the image's size
            wanted = cv2.imread(str(GOLDEN / name / "expected" / f"{id}.label.png"), cv2.IMREAD_GRAYSCALE)
            wanted = cv2.resize(wanted, heatmap.shape[::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(heatmap.astype(int) - wanted).max() <= 2  # decoders of JPEG differ
            continue
        count = cv2.imread(str(GOLDEN / name / "expected" / f"{id}.count.png"), cv2.IMREAD_GRAYSCALE)
        several = (expected["records"][id]["n_annotators"] or 1) > 1
        wanted = np.take(HEATMAP_LEVELS, count) if several else 255 * count
        wanted = cv2.resize(wanted.astype(np.uint8), heatmap.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        assert (heatmap <= cv2.dilate(wanted, WIDER)).all() and (heatmap >= cv2.erode(wanted, WIDER)).all(), id
        # labelme draws circles with PIL, and Label Studio's turned rectangle is drawn by pycocotools.
        assert (heatmap != wanted).sum() <= {"labelme": 12, "labelstudio": 2}.get(name, 0), id


def test_problems_each_once_and_no_others(example):
    _, expected, _, _, problems = example
    found = problems[problems["problem"] != "regions lost"]  # a sum of rows that are there, too
    wanted = [(row["id"], CODES.get(row["problem"], row["problem"])) for row in expected["problems"]]
    assert sorted(zip(found["id"], found["problem"], strict=True)) == sorted(wanted)


def test_annotated_or_sound_scores_prompts_annotators_and_kinds(example):
    name, expected, table, heatmaps, _ = example
    for id, record in expected["records"].items():
        assert (id in heatmaps) == record["annotated"], id
        if record["annotated"]:
            assert (table.at[id, "n_regions"] == 0) == record["annotated_as_sound"] == (not heatmaps[id].any())
        if id not in table.index:
            continue
        row = table.loc[id]
        assert row["prompt"] == (record["prompt"] or "")
        assert row["score"] == record["score_01"] or (np.isnan(row["score"]) and record["score_01"] is None)
        if record["annotated"] and name != "gtpkl":  # whose number of annotators nobody knows
            assert row["n_annotators"] == record["n_annotators"]
        if record.get("kinds") and name != "hadm":
            assert row["kinds"] == "+".join(sorted(record["kinds"]))
        if record.get("human_tags"):
            assert row["human"] == "+".join(sorted(record["human_tags"])) and "hand" in row["kinds"]


def test_every_reader_has_an_example_and_names_a_missing_split(tmp_path):
    assert set(READERS) == {*FORMATS, "challenge"}
    for name, read in READERS.items():
        (tmp_path / name).mkdir()
        with pytest.raises(NoSplitError, match=str(tmp_path / name)):
            read(tmp_path / name, "val")


# --- TFRecord


def test_damaged_records_cost_no_others_and_a_file_that_was_not_fetched_says_so():
    for name, reasons in {
        "train": ["", "", "", ""],
        "damaged_crc": ["", "record 2 is damaged (its checksum is wrong)", "", ""],
        "cut_short": ["", "the file ends within record 2; copy it again"],
    }.items():
        found = list(read_tfrecord(GOLDEN / "richhf" / f"{name}.tfrecord"))
        assert [reason for _, reason in found] == reasons
        assert all(bool(features) == (not reason) for features, reason in found)
    with pytest.raises(InputError, match="not_fetched.tfrecord is no TFRecord file. It is a Git LFS pointer.*git lfs"):
        next(read_tfrecord(GOLDEN / "richhf" / "not_fetched.tfrecord"))
