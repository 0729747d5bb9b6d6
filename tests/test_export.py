"""Run-length encodings, and regions written for other tools: what comes back are the same masks."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data.export import label_studio, write_coco, write_json
from lib.data.prepare import prepare
from lib.data.rle import decode_brush, decode_coco
from lib.stores import LabelStore

GOLDEN = Path(__file__).parent / "golden" / "formats"


def test_encodings_are_those_of_pycocotools_and_label_studio():
    pairs = json.loads((GOLDEN / "coco" / "rle.json").read_text())
    assert len(pairs) == 7
    for pair in pairs:
        mask = decode_coco(pair["compressed"], *pair["size"])
        assert (mask == decode_coco(pair["counts"], *pair["size"])).all() and mask.sum() == pair["area"]
    for brush in json.loads((GOLDEN / "labelstudio" / "brush.json").read_text()):
        alpha = decode_brush(brush["rle"], brush["height"], brush["width"])
        assert alpha.sum(dtype=int) == brush["alpha_sum"] and (alpha > 0).sum() == brush["alpha_positive"]


@pytest.mark.parametrize("counts", [[5], [3, -1, 7], "R", "~0", "é", [[9]], [1.5, 7.5]])
def test_damaged_encodings_are_refused(counts):
    with pytest.raises(ValueError):
        decode_coco(counts, 3, 3)
    brush = json.loads((GOLDEN / "labelstudio" / "brush.json").read_text())[0]
    for damaged in (brush["rle"][:-2], [*brush["rle"][:4], 255], []):
        with pytest.raises(ValueError):
            decode_brush(damaged, brush["height"], brush["width"])


def read_back(tmp_path, reader: str, content) -> LabelStore:
    """What our own reader makes of an export (parsed JSON), beside two images of 20x10."""
    (tmp_path / "raw/images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / "raw/images" / name)
    write_json(tmp_path / "raw/export.json", content)
    prepare(tmp_path / "raw", tmp_path / "data", ["train"], reader=reader)
    return LabelStore(tmp_path / "data/train")


@pytest.fixture
def tables():
    """Two images, of which one has two rectangles: as `lib.evaluate.own_images.scored` would give them."""
    images = pd.DataFrame({"id": ["a", "b"], "image": ["a.png", "b.png"], "width": 20, "height": 10})
    boxes, corners = [(3, 2, 6, 3), (15, 7, 3, 2)], [(0, 0), (1, 0), (1, 1), (0, 1)]
    regions = pd.DataFrame(boxes, columns=["x", "y", "width", "height"]).assign(id="a", heat=[102.0, 255])
    regions["area"] = regions["width"] * regions["height"] / 200
    regions["points"] = [np.float32(box[:2]) + np.float32(corners) * box[2:] for box in boxes]
    mask = np.zeros((10, 20), np.uint8)
    mask[2:5, 3:9] = mask[7:9, 15:18] = 255
    return images.assign(score=[0.25, np.nan]), regions, mask


def test_coco_lists_what_its_readers_need_and_comes_back_with_equal_masks(tmp_path, tables):
    images, regions, mask = tables
    content = json.loads(write_coco(tmp_path / "coco.json", images, [regions[:1], regions[1:]]).read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "a.png", "width": 20, "height": 10, "score": 0.25},
        {"id": 2, "file_name": "b.png", "width": 20, "height": 10, "score": None},
    ]
    rows = [(row["image_id"], row["bbox"], row["area"], row["score"]) for row in content["annotations"]]
    assert rows == [(1, [3, 2, 6, 3], 18, 0.4), (1, [15, 7, 3, 2], 6, 1)]
    store = read_back(tmp_path, "coco", content)
    assert (store.heatmap("a") == mask).all() and not store.heatmap("b").any()
    assert store.table["n_regions"].to_dict() == {"a": 2, "b": 0}


def test_label_studio_comes_back_with_equal_masks_once_somebody_submits_it(tmp_path, tables):
    images, regions, mask = tables
    tasks = label_studio(images, regions, prefix="/data/local-files/?d=images/", model="demo_full")
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=images/a.png" and tasks[0]["data"]["score"] == 0.25
    assert tasks[1]["predictions"] == [{"model_version": "demo_full", "result": []}]
    value = tasks[0]["predictions"][0]["result"][0]["value"]
    assert value["points"] == [[15, 20], [45, 20], [45, 50], [15, 50]]
    store = read_back(tmp_path / "predicted", "labelstudio", tasks)
    assert not store.table["labelled"].any()  # a model's predictions are no labels
    submitted = [task | {"annotations": task.pop("predictions")} for task in tasks]
    store = read_back(tmp_path / "submitted", "labelstudio", submitted)
    assert (store.heatmap("a") == mask).all() and not store.heatmap("b").any()
    assert store.table["kinds"]["a"] == "distortion"
