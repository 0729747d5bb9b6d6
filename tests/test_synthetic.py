"""The procedural data set: determinism, format, truth of the regions, statistics of the labels, refusals."""

import csv
import hashlib
import json

import cv2
import numpy as np
import pytest

from lib.errors import InputError
from lib.synthetic import KINDS, make_sample, write_dataset
from lib.synthetic.backgrounds import PLACES
from lib.synthetic.materials import PATTERNS
from lib.synthetic.objects import THINGS
from lib.synthetic.scenes import LAYOUTS
from lib.synthetic.writer import NOTE

SMALL = {"train": 20, "val": 3, "test": 8}


@pytest.fixture(scope="module")
def shown():
    return [make_sample((1, i), 96) for i in range(100)]


@pytest.fixture(scope="module")
def shifted():
    return [make_sample((2, i), 96, "shifted") for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "synthetic set"
    write_dataset(root, SMALL, size=64, seed=5, shifted=0.25, workers=1)
    return root


def digests(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.*")}


def records(root, split):
    return json.loads((root / split / f"{split}_info.json").read_text(encoding="utf-8"))


# --- determinism -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "domain", "mos", "kinds", "regions", "means"),
    [
        ((1, 3), "shown", 3.0, ("warped",), [1, 2, 1],
         [[[172, 159, 169], [183, 178, 184], [188, 175, 164]], [[161, 163, 157], [183, 173, 160], [179, 151, 126]]]),
        ((2, 5), "shifted", 4.0, (), [0, 1, 0],
         [[[173, 194, 219], [178, 177, 175], [177, 196, 220]], [[176, 179, 198], [150, 123, 150], [199, 196, 210]]]),
    ],
)  # fmt: skip
def test_the_images_are_those_of_the_shipped_weights(seed, domain, mos, kinds, regions, means):
    sample = make_sample(seed, 96, domain)
    assert (sample.mos, sample.kinds) == (mos, kinds)
    assert [len(drawn or []) for drawn in sample.annotators] == regions
    found = cv2.resize(sample.image, (3, 2), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(found - means).max() <= 1  # mean colours of six tiles; other OpenCV versions may round differently


def test_files_depend_neither_on_the_number_of_workers_nor_of_images(folder, tmp_path):
    write_dataset(tmp_path / "two", SMALL, size=64, seed=5, shifted=0.25, workers=2)
    assert digests(tmp_path / "two") == digests(folder)
    write_dataset(tmp_path / "few", {"test": 3}, size=64, seed=5, shifted=0.25, workers=1)
    few, many = records(tmp_path / "few", "test"), records(folder, "test")
    assert list(few.items()) == list(many.items())[:3]
    assert digests(tmp_path / "few/test/images").items() <= digests(folder / "test/images").items()


def test_attributes_table_matches_the_images(folder):
    with (folder / "test" / "attributes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "domain", "kinds", "parts", "severity", "layout"]
    assert [row["id"] for row in rows] == list(records(folder, "test"))
    assert [row["domain"] for row in rows] == ["shown", "shown", "shown", "shifted"] * 2
    for row in rows:
        assert (row["kinds"] == "") == (float(row["severity"]) == 0) == (row["parts"] == "")
        assert 0 <= float(row["severity"]) <= 1 and row["layout"] in LAYOUTS


def test_the_shifted_domain_never_shows_elsewhere(shown, shifted):
    prompts = " | ".join(sample.prompt for sample in shifted)
    secret = [*THINGS["shifted"], *PATTERNS["shifted"], *PLACES["shifted"], "jumping"]
    assert sum(word in prompts for word in secret) > len(secret) / 2
    assert not any(word in sample.prompt for sample in shown for word in secret)
    assert not {kind for sample in shown for kind in sample.kinds} & set(KINDS["shifted"])


# --- the folder on disk --------------------------------------------------------------------------------------


def test_a_folder_is_left_alone_when_complete_and_else_written_again(tmp_path):
    root, counts, calls = tmp_path / "data", {"train": 4, "val": 2}, []

    def write(**given):
        write_dataset(root, counts | given, size=48, workers=1, progress=lambda *step: calls.append(step))

    write()
    assert calls[-1] == (6, 6)
    before, note = digests(root), json.loads((root / NOTE).read_text())
    image = root / "train" / "images" / "train_000001.jpg"
    stamp = image.stat().st_mtime_ns
    write()
    assert image.stat().st_mtime_ns == stamp  # not touched
    for change in ({}, {"complete": False}, {"version": 0}):
        image.unlink() if not change else image.write_bytes(b"half a file")
        (root / NOTE).write_text(json.dumps(note | change))
        write()
        assert digests(root) == before
    write(train=2, val=0)
    assert {path.name for path in root.rglob("*.jpg")} == {"train_000000.jpg", "train_000001.jpg"}


def test_foreign_folders_are_never_overwritten(tmp_path):
    real = tmp_path / "real"
    (real / "train").mkdir(parents=True)
    (real / "train" / "train_info.json").write_text("{}")
    for note, told in (
        (None, "real holds other files"),
        ('{"generator": "another"}', "not overw"),
        ("{", "is cut short. Delete"),
    ):
        if note:
            (real / NOTE).write_text(note)
        with pytest.raises(InputError, match=told):
            write_dataset(real, {"train": 1}, workers=1)
    assert [path.name for path in (real / "train").iterdir()] == ["train_info.json"]
    with pytest.raises(InputError, match="train_info.json cannot be written"):
        write_dataset(real / "train" / "train_info.json", {"train": 1}, workers=1)


def test_unusable_arguments_are_refused(tmp_path):
    for arguments, told in [
        ({"counts": {}}, "counts="), ({"counts": {"train": -1}}, "counts="), ({"counts": {"../x": 1}}, "no name"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=told):
            write_dataset(tmp_path / "data", **{"counts": {"train": 1}, "workers": 1, **arguments})
    assert not (tmp_path / "data").exists()
