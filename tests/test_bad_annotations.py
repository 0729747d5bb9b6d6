"""What people really have, each from a public report: the row of `problems.csv` that it gets, and what stays usable."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data.prepare import prepare
from lib.data.splits import hold_out
from lib.errors import InputError
from lib.stores import LabelStore

SIZE = (64, 48)


def write_image(path: Path, size=SIZE, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (90, 120, 60)).save(path, exif=exif)


def coco(folder: Path, annotations: list[dict], name="a.png", **image) -> None:
    """One image with annotations in COCO's format; `image` changes its entry."""
    (folder / "raw").mkdir(exist_ok=True)
    entry = {"id": 1, "file_name": name, "width": SIZE[0], "height": SIZE[1]} | image
    rows = [{"id": number, "image_id": 1, "category_id": 1} | row for number, row in enumerate(annotations)]
    content = {"images": [entry], "categories": [{"id": 1, "name": "hand"}], "annotations": rows}
    (folder / "raw" / "annotations.json").write_text(json.dumps(content))


def prepared(folder: Path, reader="coco") -> tuple[LabelStore, list[str]]:
    """The split, and the codes of its problems."""
    prepare(folder / "raw", folder / "data", ["train"], workers=1, reader=reader)
    problems = pd.read_csv(folder / "data/train/problems.csv")["problem"]
    return LabelStore(folder / "data" / "train"), [code for code in problems if code != "regions lost"]


def write_challenge(folder: Path, info: dict) -> None:
    """Records in the challenge's format, and the images that they name."""
    for name in info:
        write_image(folder / "raw/train/images" / name)
    (folder / "raw/train/train_info.json").write_text(json.dumps(info))


GOOD = {"segmentation": [[10, 10, 20, 10, 20, 20, 10, 20]]}  # 100 pixels
BAD = {
    "region degenerate": [
        {"segmentation": [[10, 10, 20, 20]]},  # four numbers where a polygon is due
        {"segmentation": [[5, 5]]},
        {"segmentation": [[5, 5, 5, 5, 5, 5]]},
        {"segmentation": [[1, 1, 5, 5, 9, 9]]},
        {"bbox": [5, 5, 0, 9]},
    ],
    "region malformed": [
        {"segmentation": [[1, 1, 5, 1, 5, 5, 3]]},
        {"segmentation": [["1", "1", "5", "1", "5", "5"]]},
        {"segmentation": {"size": [48, 64], "counts": [5, 5]}},  # runs that do not sum up
        {"segmentation": {"size": [64, 48], "counts": [3072]}},  # height and width swapped
        {"segmentation": []},
    ],
    "region outside image": [{"bbox": [500, 5, 9, 9]}],
}
QUIET = [
    {"segmentation": [[54, 0, 64 + 1e-13, 0, 64 + 1e-13, 10, 54, 10]]},
    {"bbox": [54, 38, 10, 10]},  # up to the border
    {"segmentation": [[10, 20, 20, 20, 20, 10, 10, 10]]},  # clockwise
    {"segmentation": [10, 10, 20, 10, 20, 20, 10, 20]},  # without a list around it
    {"bbox": [10.0, 10.0, 10.0, 10.0], "segmentation": None},
]


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_region_costs_itself_only(tmp_path, problem):
    write_image(tmp_path / "raw/images/a.png")
    for region in BAD[problem]:
        coco(tmp_path, [region, GOOD])
        store, problems = prepared(tmp_path)
        assert set(problems) == {problem} and (store.heatmap("a") > 0).sum() == 100, region


def test_what_is_no_problem_stays_quiet(tmp_path):
    """Nor are backups images, and the names of another machine mean the image here."""
    write_image(tmp_path / "raw/images/a.png")
    for name in ("a.png~", "a.jpg.bak", ".a.swp", "a.png.part"):
        (tmp_path / "raw/images" / name).write_bytes(b"")
    for region in QUIET:
        coco(tmp_path, [region])
        store, problems = prepared(tmp_path)
        assert problems == [] and (store.heatmap("a") == 255).sum() == 100, region
    for name in ("C:\\data\\a.png", "..\\..\\a.png", "../../a.png", "/home/me/set/a.png"):
        coco(tmp_path, [GOOD], name)
        store, problems = prepared(tmp_path)
        assert problems == [] and store.ids == ["a"], name


def test_sound_and_not_annotated_differ(tmp_path):
    """`null` and an absent entry are not annotated; an empty list is sound. Ids may have an ending."""
    usual = {"prompt_en": "p", "mos": 3}
    write_challenge(tmp_path, {
        "null.png": usual | {"bbox_info": None}, "absent.png": usual, "a.png": usual | {"bbox_info": []},
        "a.jpg": usual | {"bbox_info": [], "mos": 5},
    })  # fmt: skip
    store, _ = prepared(tmp_path, "challenge")
    assert store.table["labelled"].to_dict() == {"null.png": False, "absent.png": False, "a.png": True, "a.jpg": True}
    assert store.table.loc[["a.png", "a.jpg"], "mos"].tolist() == [3, 5] and not store.heatmap("a.png").any()
    assert [store.image_path(id).name for id in store.ids] == store.ids


def test_images_that_differ_in_their_ending_are_two_and_neither_is_held_out(tmp_path):
    entries = []
    for name, x in (("a.png", 0), ("a.jpg", 20), ("b.png", 0), ("c.png", 0)):
        write_image(tmp_path / "raw/train/images" / name)
        square = [[x, 0, x + 10, 0, x + 10, 10, x, 10]]
        entries.append({name: {"img_file_name": name, "caption": "", "refs": [{"segmentation": square}]}})
    (tmp_path / "raw/train/annotations").mkdir()
    (tmp_path / "raw/train/annotations/train.json").write_text(json.dumps(entries))
    store, problems = prepared(tmp_path, "synthscars")
    assert problems == ["stem ambiguous"] and store.ids == ["a.png", "a.jpg", "b", "c"]
    assert [int(np.argwhere(store.heatmap(id))[0, 1]) for id in ("a.png", "a.jpg")] == [0, 20]
    table = store.table.reset_index().assign(score=0.5)
    table.to_parquet(store.path / "manifest.parquet", index=False)
    assert {id for seed in range(20) for id in hold_out(tmp_path / "data", 1, seed)} == {"b", "c"}


def test_boxes_of_corners_are_not_read_as_width_and_height(tmp_path):
    write_image(tmp_path / "raw/images/a.png")
    coco(tmp_path, [{"bbox": [40 + x, 30, 50 + x, 40]} for x in range(9)])
    told = r"9 of 9 regions have corners that do not fit.*unless it is \[x0, y0.* is \[x, y, width"
    with pytest.raises(InputError, match=told):
        prepared(tmp_path)


def test_boxes_of_width_and_height_are_not_read_as_corners(tmp_path):
    write_image(tmp_path / "raw/images/train/a.png")
    (tmp_path / "raw/annotations/train").mkdir(parents=True)
    boxes = [{"bbox": [30 + x, 30, 10, 10], "body_parts": "hand", "level": "mild"} for x in range(9)]
    (tmp_path / "raw/annotations/train/a.json").write_text(json.dumps({"annotation": boxes, "human": []}))
    with pytest.raises(InputError, match=r"9 of 9 regions have corners that do not fit.*x, y, width, height"):
        prepared(tmp_path, "hadm")


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, None), (3, None), (6, (48 - 10, 0)), (8, (0, 64 - 20)), (5, (0, 0)), (7, (48 - 10, 64 - 20))],
)
def test_annotations_of_the_unrotated_image_are_turned_with_it(tmp_path, orientation, corner):
    """A box of 20x10 in the upper left corner of the stored pixels; `corner` is (x, y) of where it is shown."""
    write_image(tmp_path / "raw/images/a.jpg", orientation=orientation)
    coco(tmp_path, [{"bbox": [0, 0, 20, 10]}], "a.jpg")
    store, problems = prepared(tmp_path)
    y, x = np.argwhere(store.heatmap("a"))[0]
    assert (store.heatmap("a") > 0).sum() == 200
    if corner:
        assert (x, y) == corner and problems == ["image turned", "regions turned"]
    else:  # a half turn keeps the size, so that nobody can know; the note on the image says how it is read
        assert (x, y) == (0, 0) and problems == ["image turned"] * (orientation > 1)


def test_regions_of_a_resized_image_are_stretched_to_it(tmp_path):
    write_image(tmp_path / "raw/images/a.png", (128, 96))
    coco(tmp_path, [GOOD])
    store, problems = prepared(tmp_path)
    assert problems == ["size differs"] and (store.heatmap("a") > 0).sum() == 400


def test_images_of_other_endings_are_read_or_named(tmp_path):
    record = {"prompt_en": "p", "mos": 3, "bbox_info": []}
    write_challenge(tmp_path, {"a.gif": record, "b.avif": record})
    (tmp_path / "raw/train/images/c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    info = {id: record for id in ("a", "b", "c")}
    (tmp_path / "raw/train/train_info.json").write_text(json.dumps(info))
    store, problems = prepared(tmp_path, "challenge")
    assert store.ids == ["a", "b"] and "image unreadable" in problems and "image missing" not in problems
    text = (store.path / "problems.csv").read_text()
    assert "c.heic" in text and "It is a HEIC or AVIF image: save it" in text


@pytest.mark.slow
def test_more_pixels_than_pillow_takes(tmp_path):
    """178,962,432 pixels, 6,000 above Pillow's limit; OpenCV reads up to 2^30."""
    encoded = cv2.imencode(".png", np.zeros((10_923, 16_384), np.uint8))[1]
    (tmp_path / "raw/images").mkdir(parents=True)
    (tmp_path / "raw/images/a.png").write_bytes(encoded.tobytes())
    coco(tmp_path, [GOOD], width=16_384, height=10_923)
    store, problems = prepared(tmp_path)
    assert problems == [] and (store.heatmap("a") > 0).sum() == 100


@pytest.mark.parametrize("reader", ["coco", "labelstudio"])
def test_a_pointer_in_place_of_annotations_is_named(tmp_path, reader):
    write_image(tmp_path / "raw/images/a.png")
    (tmp_path / "raw/annotations.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(InputError, match="annotations.json is not valid JSON.*Git LFS pointer.*git lfs pull"):
        prepared(tmp_path, reader)
