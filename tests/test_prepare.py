"""Preparing a split: what is usable is used, what is not has a row, and a killed run leaves nothing half done."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data import prepare as module
from lib.data import readers
from lib.data.negatives import add_negatives
from lib.data.prepare import prepare, write_split
from lib.data.readers.record import unusable
from lib.data.splits import hold_out
from lib.errors import InputError
from lib.stores import LabelStore, read_image

LABEL = {"prompt_en": "two cats", "mos": 2, "bbox_info": [[{"bbox_type": 1, "bbox": [[2, 1], [5, 3]]}], [], None]}


def picture(height=12, width=16, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height))


def raw_split(root, records, images=None, split="train"):
    """Write a split in the challenge's format; `images` are {file name: uint8 RGB}, default one JPEG a record."""
    folder = root / split / "images"
    folder.mkdir(parents=True, exist_ok=True)
    images = {f"{id}.jpg": picture() for id in records} if images is None else images
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / name)
    (root / split / f"{split}_info.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def prepare_split(data_root, data_path, split="train", **options) -> pd.DataFrame:
    return prepare(data_root, data_path, [split], **options)[split]


def codes(data_path, split="train"):
    """{id: [problem, ...]} of problems.csv."""
    table = pd.read_csv(data_path / split / "problems.csv", dtype=str, keep_default_na=False)
    assert list(table) == ["id", "problem", "detail"]
    return table.groupby("id")["problem"].apply(list).to_dict()


def test_manifest_heatmap_and_regions_by_hand(tmp_path):
    raw_split(tmp_path / "raw", {"a": LABEL})
    manifest = prepare_split(tmp_path / "raw", tmp_path / "data")
    row = manifest.iloc[0].to_dict()
    assert row == {
        "id": "a", "image": "../../raw/train/images/a.jpg", "prompt": "two cats", "mos": 2.0, "score": 0.25,
        "labelled": True, "n_annotators": 3, "n_regions": 1, "width": 16, "height": 12,
        "distorted": pytest.approx(3 * 2 / (16 * 12)), "agreement": pytest.approx(1 / 3),
    }  # fmt: skip
    store = LabelStore(tmp_path / "data" / "train")
    expected = np.zeros((12, 16), dtype=np.uint8)
    expected[1:3, 2:5] = 64  # the far edges are outside
    assert (store.heatmap("a") == expected).all() and store.image("a").shape == (12, 16, 3)
    pd.testing.assert_frame_equal(store.table.reset_index(), manifest)
    regions = pd.read_parquet(tmp_path / "data" / "train" / "regions.parquet")
    assert regions.drop(columns="points").to_dict("records") == [{"id": "a", "annotator": 0, "shape": "rectangle"}]
    assert regions["points"][0].tolist() == [2, 1, 5, 3]
    assert (tmp_path / "data" / "train" / "problems.csv").read_text() == "id,problem,detail\n"


UNREADABLE = ("text", "empty", "half", "flipped", "loop")
ENDINGS = ("jpg", "png", "webp", "tif")


@pytest.fixture(scope="module")
def defects(tmp_path_factory):
    """A raw split with each defect once, prepared: (data_path, manifest)."""
    root = tmp_path_factory.mktemp("defects")
    images = {f"{name}.jpg": picture() for name in ("sound", "a.b", "deux mots", "ünï", "no mos", "cut")}
    images |= {"not listed.jpg": picture(), "tiny.PNG": picture(), "NA.WebP": picture()}
    ids = [name.rsplit(".", 1)[0] for name in images if name != "not listed.jpg"]
    records = {id: LABEL for id in ids}
    folder = raw_split(root / "raw", {}, images)
    image = Image.fromarray(picture())
    cv2.imwrite(str(folder / "deep.png"), picture().astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ENDINGS:
        image.save(folder / f"turned {ending}.{ending}", exif=exif)
        records[f"turned {ending}"] = LABEL
    image.save(folder / "whole.tif", compression="tiff_adobe_deflate")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "flipped.tif", compression="tiff_adobe_deflate")
    flipped = bytearray((folder / "flipped.tif").read_bytes())
    flipped[len(flipped) // 2] ^= 0x10  # OpenCV decodes this into wrong pixels without a word
    (folder / "flipped.tif").write_bytes(flipped)
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").touch()
    whole = (folder / "sound.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    for id in ("deep", *UNREADABLE, "whole", "gone", "../x", "/etc/x"):
        records[id] = LABEL
    records |= {"": LABEL, "a\0b": LABEL, "no mos": LABEL | {"mos": None}}
    far = {"bbox_type": 1, "bbox": [[90, 90], [99, 99]]}
    over = {"bbox_type": 1, "bbox": [[14, 10], [99, 99]]}
    records["cut"] = LABEL | {"bbox_info": [[far, over, "?"], 7]}
    (root / "raw" / "train" / "train_info.json").write_text(json.dumps(records), encoding="utf-8")
    manifest = prepare_split(root / "raw", root / "data", workers=2)
    return root / "data", manifest


def test_each_defect_is_a_row_and_everything_else_is_used(defects):
    data, manifest = defects
    turned = {f"turned {ending}": ["image turned"] for ending in ENDINGS}
    unusable = {id: ["image unreadable"] for id in UNREADABLE}
    unusable |= {id: ["image missing"] for id in ("gone", "../x", "/etc/x", "", "a\\x00b")}
    assert codes(data) == turned | unusable | {
        "not listed": ["image not listed"], "no mos": ["mos missing"],
        "cut": ["region malformed", "annotator malformed", "region outside image", "region clipped", "regions lost"],
    }  # fmt: skip
    used = {"sound", "a.b", "deux mots", "ünï", "no mos", "cut", "tiny", "NA", "whole", "deep"}
    used |= {f"turned {ending}" for ending in ENDINGS}
    asked = json.loads((data.parent / "raw/train/train_info.json").read_text(encoding="utf-8"))
    assert manifest["id"].tolist() == [id for id in asked if id in used]  # in order, with two workers
    heatmaps = {path.name for path in (data / "train" / "heatmaps").iterdir()}
    assert heatmaps == {f"{id}.png" for id in used}
    assert not list(data.parent.rglob("x.png"))  # where "../x" would have gone
    table = manifest.set_index("id")
    assert np.isnan(table.at["no mos", "score"]) and table.at["no mos", "labelled"]
    assert table.loc["cut", ["n_regions", "n_annotators"]].tolist() == [1, 1]


def test_images_and_heatmaps_have_one_size_also_when_turned(defects):
    data, manifest = defects
    store = LabelStore(data / "train")
    for id, row in manifest.set_index("id").iterrows():
        image = store.image(id)
        if id in ("deep", "whole"):  # cv2.imwrite took the one for BGR
            assert (image == (picture()[..., ::-1] if id == "deep" else picture())).all()
        assert image.shape == (row["height"], row["width"], 3) and image.dtype == np.uint8
        assert store.heatmap(id).shape == image.shape[:2]
    # Orientation 6: the stored rows are the shown columns. Stored 12x16, shown 16x12.
    upright = np.rot90(picture(), k=-1).astype(int)
    for id in (f"turned {ending}" for ending in ENDINGS):
        assert store.table.loc[id, ["height", "width"]].tolist() == [16, 12]
        assert np.abs(store.image(id) - upright).mean() < 15  # JPEG at this size; other turns give 60 and more
        assert (store.heatmap(id)[1:3, 2:5] == 64).all()  # regions are pixels of the image as it is shown


def test_image_path_holds_through_links(tmp_path):
    raw_split(tmp_path / "disk" / "deep" / "raw", {"a": LABEL})
    (tmp_path / "raw").symlink_to(tmp_path / "disk" / "deep" / "raw")
    (tmp_path / "other" / "place").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "other" / "place")
    prepare_split(tmp_path / "raw", tmp_path / "data")
    store = LabelStore(tmp_path / "data" / "train")
    assert read_image(store.path / store.table.at["a", "image"]).shape == (12, 16, 3)
    assert store.image("a").shape == (12, 16, 3)


# --- again, interrupted, refused


def test_a_run_after_another_or_an_interrupted_one_starts_afresh(tmp_path):
    raw_split(tmp_path, {id: LABEL for id in "abcdef"})
    prepare_split(tmp_path, tmp_path / "data")

    def interrupt(split, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_split(tmp_path, tmp_path / "data", progress=interrupt)
    with pytest.raises(InputError, match="holds no manifest.parquet"):
        LabelStore(tmp_path / "data" / "train")
    for name in ("heatmaps/a.png", "heatmaps/gone.png", "regions.parquet", "problems.csv"):
        (tmp_path / "data/train" / f"{name}.{os.getpid()}.part").write_text("half")  # as a killed run leaves it
    (tmp_path / "data/train/download.zip.part").touch()  # somebody else's
    raw_split(tmp_path, {"a": LABEL, "b": {"prompt_en": "p"}, "c": LABEL}, images={})
    assert prepare_split(tmp_path, tmp_path / "data")["id"].tolist() == ["a", "b", "c"]
    assert [path.name for path in (tmp_path / "data").rglob("*.part")] == ["download.zip.part"]
    assert sorted(path.name for path in (tmp_path / "data/train/heatmaps").iterdir()) == ["a.png", "c.png"]
    assert codes(tmp_path / "data").keys() == set("def")


def test_refusals_name_path_and_remedy(tmp_path):
    with pytest.raises(InputError, match="raw/train does not exist.*DATA_ROOT.*train/images"):
        prepare_split(tmp_path / "raw", tmp_path / "data")
    (tmp_path / "raw" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="train_info.json does not exist.*train/images"):
        prepare_split(tmp_path / "raw", tmp_path / "data")
    folder = raw_split(tmp_path / "raw", {"a": LABEL})
    with pytest.raises(InputError, match="a.jpg/train cannot be written.*another data_path"):
        prepare_split(tmp_path / "raw", folder / "a.jpg")
    (folder / "a.jpg").unlink()
    with pytest.raises(InputError, match="none of the 1 records.*image missing.*problems.csv"):
        prepare_split(tmp_path / "raw", tmp_path / "data")
    assert codes(tmp_path / "data") == {"a": ["image missing"]}
    folder.rmdir()
    with pytest.raises(InputError, match="images cannot be listed"):
        prepare_split(tmp_path / "raw", tmp_path / "data")


# --- attributes


def test_attributes_are_joined_by_id_and_their_defects_reported(tmp_path):
    raw_split(tmp_path, {id: LABEL for id in ("1", "NA", "3")})

    def attributes(text):
        (tmp_path / "train" / "attributes.csv").write_text(text, encoding="utf-8")
        return prepare_split(tmp_path, tmp_path / "data").set_index("id"), codes(tmp_path / "data")

    table, found = attributes("id,kinds,severity,domain\n3,warp+melt,0.5,shown\nNA,,,shifted\n1,missing,1,shown\n")
    assert table["kinds"].to_dict() == {"1": "missing", "NA": "", "3": "warp+melt"} and found == {}
    assert table["severity"].dtype == "float64" and np.isnan(table.at["NA", "severity"])
    assert table["domain"].tolist() == ["shown", "shifted", "shown"]
    table, found = attributes("id,kinds\n1,warp\n7,melt\nNA,\n")
    assert table["kinds"].iloc[:2].tolist() == ["warp", ""] and pd.isna(table.at["3", "kinds"])
    assert found == {"": ["attributes missing"]}
    for text, words in {
        "name,kinds\n1,x\n": "no column `id`", "id,a\n1,2,3\n": "not a readable",
        "id,score\n1,9\n": "a column score, which", "id,a\n1,2\n1,3\n": "holds 1 twice",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=f"attributes.csv.*{words}"):
            attributes(text)


# --- held-out split


@pytest.fixture
def prepared(tmp_path):
    records = {f"é {k}": LABEL for k in range(20)} | {"no label": {"prompt_en": "p"}, "no mos": LABEL | {"mos": None}}
    raw_split(tmp_path, records)
    prepare_split(tmp_path, tmp_path / "data")
    return tmp_path / "data"


def test_hold_out_is_drawn_once_and_for_all(prepared):
    ids = hold_out(prepared, 5, seed=1)
    assert len(set(ids)) == 5 and ids == sorted(ids) and all(id.startswith("é ") for id in ids)
    path = prepared / "train" / "held_out_5_1.json"
    assert json.loads(path.read_text(encoding="utf-8")) == ids == hold_out(prepared, 5, seed=1)
    assert any(hold_out(prepared, 5, seed=seed) != ids for seed in (2, 3))
    path.write_text(json.dumps(["é 0", "é 1", "é 2", "é 3", "é 4"]))
    assert hold_out(prepared, 5, seed=1) == ["é 0", "é 1", "é 2", "é 3", "é 4"]  # the file decides
    path.unlink()
    assert hold_out(prepared, 5, seed=1) == ids


def test_hold_out_refuses_what_leaves_nothing_and_a_draw_of_other_data(prepared):
    assert hold_out(prepared, 0, seed=1) == [] and len(hold_out(prepared, 19, seed=1)) == 19
    for n in (20, -1):
        with pytest.raises(InputError, match=f"val_split is {n}.*20 labelled images.*0 to 19"):
            hold_out(prepared, n, seed=1)
    with pytest.raises(InputError, match="run notebooks/1_data_processing.ipynb first"):
        hold_out(prepared / "nowhere", 2, seed=1)
    for content in ('["gone", "é 1"]', '["é 1", "é 1"]', '["é 1"]', '["é 1"', "7", "[[1], [2]]"):
        (prepared / "train" / "held_out_2_0.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="held_out_2_0.json.*Delete it"):
            hold_out(prepared, 2, seed=0)


# --- negatives


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photos" / "images"
    folder.mkdir(parents=True)
    for k, (height, width) in enumerate([(12, 20), (20, 12), (15, 15)]):
        Image.fromarray(picture(height, width, k)).save(folder / f"{k}.jpg", quality=95)
    lines = [f"{k}.jpg#{n}\tcaption {n} of {k}" for k in range(3) for n in range(2)]
    (tmp_path / "photos" / "results_20130124.token").write_text("\n".join(lines) + "\n")
    return tmp_path / "photos"


def test_negatives_are_square_sound_and_captioned(photographs, tmp_path):
    manifest = add_negatives(photographs, tmp_path / "data").set_index("id")
    assert manifest["prompt"].to_dict() == {str(k): f"caption 0 of {k}" for k in range(3)}
    assert (manifest["score"] == 1).all() and (manifest["mos"] == 5).all() and manifest["labelled"].all()
    assert (manifest["distorted"] == 0).all() and manifest["width"].tolist() == [12, 12, 15]
    store = LabelStore(tmp_path / "data" / "negatives")
    assert not store.heatmap("1").any() and store.heatmap("1").shape == (12, 12)
    middle = read_image(photographs / "images" / "0.jpg")[:, 4:16].astype(int)
    assert np.abs(store.image("0") - middle).mean() < 6


def test_negatives_from_csv_with_a_bad_photograph(photographs, tmp_path):
    (photographs / "results_20130124.token").unlink()
    table = pd.DataFrame({"image": ["0.jpg", "0.jpg", "1.jpg", "2.jpg"], "caption": ["a, b", "x", "c", "d"]})
    table.to_csv(photographs / "captions.csv", index=False)
    (photographs / "images" / "1.jpg").write_text("no image")
    manifest = add_negatives(photographs, tmp_path / "data")
    assert manifest["id"].tolist() == ["0", "2"] and manifest["prompt"][0] == "a, b"
    assert codes(tmp_path / "data", "negatives") == {"1": ["annotation unreadable"]}


def test_negatives_refusals(photographs, tmp_path):
    tokens, table = photographs / "results_20130124.token", photographs / "captions.csv"
    tokens.write_text("0.jpg caption\n")
    with pytest.raises(InputError, match="entry 1"):
        add_negatives(photographs, tmp_path / "data")
    tokens.write_text("../../gone.jpg#0\tcaption\n")
    with pytest.raises(InputError, match=r"none of the 1 records of .* \(1 x image missing\)"):
        add_negatives(photographs, tmp_path / "data")
    tokens.unlink()
    with pytest.raises(InputError, match="neither results_20130124.token nor captions.csv"):
        add_negatives(photographs, tmp_path / "data")
    table.write_text("name,text\n")
    with pytest.raises(InputError, match="captions.csv has no column `path`"):
        add_negatives(photographs, tmp_path / "data")
    photographs.rename(tmp_path / "negatives")
    with pytest.raises(InputError, match="original"):
        add_negatives(tmp_path / "negatives", tmp_path)


def test_few_records_are_in_flight(tmp_path):
    """However many there are, memory holds some."""
    started, ahead = [], []

    def records():
        for k in range(100):
            started.append(k)
            yield unusable(str(k), "image missing", "")

    with pytest.raises(InputError, match="none of the 100 records"):
        found = [str(k) for k in range(100)], records(), []
        write_split(tmp_path, tmp_path / "data", found, 2, lambda done, total: ahead.append(len(started) - done))
    assert len(ahead) == 100 and max(ahead) <= 8


def test_absent_splits_are_left_out_but_an_absent_train_is_an_error(raw, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "val").symlink_to(raw / "val")
    assert list(prepare(tmp_path / "raw", tmp_path / "out", ["val", "test"], workers=1)) == ["val"]
    with pytest.raises(InputError, match="train"):
        prepare(tmp_path / "raw", tmp_path / "out", ["train", "val"])
    with pytest.raises(InputError, match="holds none of test, extra"):
        prepare(tmp_path / "raw", tmp_path / "out", ["test", "extra"])


@pytest.mark.parametrize("region", [{"bbox_type": 2, "bbox": [1, 2]}, {"bbox_type": 1, "bbox": [[99, 1], [120, 3]]}])
def test_an_image_whose_regions_cannot_be_read_is_not_sound(tmp_path, region):
    box = LABEL["bbox_info"][0][0]
    records = {
        "lost": LABEL | {"bbox_info": [[region], []]},
        "part": LABEL | {"bbox_info": [[region, box], []]},
        "nobody": LABEL | {"bbox_info": [[], None]},
        "whole": LABEL | {"bbox_info": [[box, box, box]]},
    }
    raw_split(tmp_path / "raw", records)
    table = prepare_split(tmp_path / "raw", tmp_path / "data").set_index("id")
    assert table["labelled"].to_dict() == {"lost": False, "part": True, "nobody": True, "whole": True}
    assert table["score"].notna().all()
    assert not (tmp_path / "data/train/heatmaps/lost.png").exists()
    problems = pd.read_csv(tmp_path / "data/train/problems.csv").set_index(["id", "problem"])["detail"]
    assert problems["lost", "regions lost"].startswith("1 of 1 regions cannot be used")
    assert problems["part", "regions lost"].startswith("1 of 2 regions cannot be used")
    raw_split(tmp_path / "all", {id: LABEL | {"bbox_info": [[region]]} for id in "ab"})
    with pytest.raises(InputError, match=r"2 of 2 regions cannot be used, the first of a: .*\"bbox_type\": 1"):
        prepare_split(tmp_path / "all", tmp_path / "none")
    assert not (tmp_path / "none/train/manifest.parquet").exists()


def test_names_that_are_no_text_cost_nothing_else(tmp_path):
    records = {"a": LABEL | {"prompt_en": "a \ud800 b"}, "b\udc80": LABEL}
    folder = raw_split(tmp_path / "raw", records, {"a.jpg": picture()})
    (folder / os.fsdecode(b"caf\xe9.jpg")).touch()
    manifest = prepare_split(tmp_path / "raw", tmp_path / "data")
    assert manifest[["id", "prompt"]].to_numpy().tolist() == [["a", "a ? b"]]
    assert codes(tmp_path / "data")["a"] == ["text malformed"] and "image not listed" in str(codes(tmp_path / "data"))


# --- readers


def test_the_reader_of_the_data_card_prepares_another_format(tmp_path, monkeypatch):
    """The example of data_cards/your_own_data.md as it stands there."""
    card = (Path(__file__).parents[1] / "data_cards" / "your_own_data.md").read_text(encoding="utf-8")
    monkeypatch.setattr(readers, "READERS", dict(readers.READERS))
    monkeypatch.setattr(module, "READERS", readers.READERS)
    exec(card.split("```python\n")[1].split("```")[0], {})
    (tmp_path / "raw/train/images").mkdir(parents=True)
    for name in ("b.png", "a.png"):
        Image.fromarray(picture()).save(tmp_path / "raw/train/images" / name)
    rows = "b.png,two cats,2,5,3,2,1\nb.png,two cats,2,12,8,99,99\na.png,a dog,2,90,90,99,99\n"
    (tmp_path / "raw/train/boxes.csv").write_text("image,prompt,mos,x0,y0,x1,y1\n" + rows)
    seen = []
    manifests = prepare(tmp_path / "raw", tmp_path / "data", reader="boxes", progress=lambda *step: seen.append(step))
    table = manifests["train"].set_index("id")
    assert table["score"].to_dict() == {"b": 0.25, "a": 0.25} and table["n_regions"].tolist() == [2, 0]
    assert table["labelled"].to_dict() == {"b": True, "a": False}
    assert (LabelStore(tmp_path / "data/train").heatmap("b") > 0).sum() == 3 * 2 + 4 * 4
    assert codes(tmp_path / "data") == {"b": ["region clipped"], "a": ["region outside image", "regions lost"]}
    assert seen == [("train", 1, 2), ("train", 2, 2)]
    with pytest.raises(InputError, match="reader is 'yolo'; lib/data/readers has challenge, coco, .*, boxes"):
        prepare(tmp_path / "raw", tmp_path / "data", reader="yolo")


def test_the_record_of_the_data_card_is_sound(tmp_path):
    card = (Path(__file__).parents[1] / "data_cards" / "your_own_data.md").read_text(encoding="utf-8")
    raw_split(tmp_path, json.loads(card.split("```json\n")[1].split("```")[0]), {"cat_01.jpg": picture(100, 120)})
    prepare_split(tmp_path, tmp_path / "data")
    assert codes(tmp_path / "data") == {}
    assert set(np.unique(LabelStore(tmp_path / "data/train").heatmap("cat_01"))) == {0, 64, 127}
