"""The procedural data set: determinism, format, truth of the regions, statistics of the labels, refusals."""

import csv
import hashlib
import json
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from lib.errors import InputError
from lib.synthetic import KINDS, PARTS, make_sample, write_dataset
from lib.synthetic.annotators import annotate, opinion_score, visible_damage
from lib.synthetic.backgrounds import PLACES
from lib.synthetic.damage import Damage, reshape
from lib.synthetic.figures import POSE_NAMES, figure, random_look
from lib.synthetic.materials import PATTERNS, pattern_tile
from lib.synthetic.objects import THINGS
from lib.synthetic.sample import changed_region
from lib.synthetic.scenes import LAYOUTS, random_scene
from lib.synthetic.shapes import tube
from lib.synthetic.writer import NOTE, domain_of

PEOPLE = ("man", "woman", "boy", "girl")
SMALL = {"train": 20, "val": 3, "test": 8}


@pytest.fixture(scope="module")
def shown():
    return [make_sample((1, i), 96) for i in range(300)]


@pytest.fixture(scope="module")
def shifted():
    return [make_sample((2, i), 96, "shifted") for i in range(120)]


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


def test_same_seed_same_sample_and_other_seed_another():
    first, again, other = make_sample(7, 64), make_sample(7, 64), make_sample(8, 64)
    assert np.array_equal(first.image, again.image)
    assert first.annotators == again.annotators and first.mos == again.mos and first.prompt == again.prompt
    assert not (first.image.shape == other.image.shape and np.array_equal(first.image, other.image))


def test_files_do_not_depend_on_the_number_of_workers(folder, tmp_path):
    write_dataset(tmp_path / "two", SMALL, size=64, seed=5, shifted=0.25, workers=2)
    assert digests(tmp_path / "two") == digests(folder)


def test_an_image_does_not_depend_on_how_many_are_written(folder, tmp_path):
    write_dataset(tmp_path / "few", {"test": 3}, size=64, seed=5, shifted=0.25, workers=1)
    few, many = records(tmp_path / "few", "test"), records(folder, "test")
    assert list(few) == ["test_000000", "test_000001", "test_000002"]
    for id, record in few.items():
        assert record == many[id]
        name = f"test/images/{id}.jpg"
        assert (tmp_path / "few" / name).read_bytes() == (folder / name).read_bytes()


def test_splits_and_seeds_give_different_images(folder, tmp_path):
    write_dataset(tmp_path / "other", {"train": 3}, size=64, seed=6, workers=1)
    images = [p.read_bytes() for root in (folder, tmp_path / "other") for p in sorted(root.rglob("*.jpg"))]
    assert len(set(images)) == len(images) == sum(SMALL.values()) + 3


# --- format --------------------------------------------------------------------------------------------------


def test_folder_has_the_challenge_format(folder):
    for split, count in SMALL.items():
        info = records(folder, split)
        assert len(info) == count
        assert {p.stem for p in (folder / split / "images").iterdir()} == set(info)
        for id, record in info.items():
            assert set(record) == {"prompt_en", "mos", "bbox_info"}
            height, width = cv2.imread(str(folder / split / "images" / f"{id}.jpg")).shape[:2]
            check_annotators(record["bbox_info"], width, height)
            assert 1 <= record["mos"] <= 5
            assert record["prompt_en"].startswith("a photo of a")


def check_annotators(annotators, width, height):
    assert len(annotators) in (3, 4)
    for regions in annotators:
        for region in regions or ():
            if region["bbox_type"] == 1:
                low, high = region["bbox"]
                assert set(low) == set(high) == {"x", "y"}
                assert 0 <= low["x"] < high["x"] <= width and 0 <= low["y"] < high["y"] <= height
            else:
                assert region["bbox_type"] == 2
                points = np.array(region["bbox"])
                assert 5 <= len(points) <= 12 and points.shape[1] == 2
                assert (points >= 0).all() and (points < (width, height)).all()


def test_attributes_table_matches_the_images(folder):
    with (folder / "test" / "attributes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "domain", "kinds", "parts", "severity", "layout"]
    assert [row["id"] for row in rows] == list(records(folder, "test"))
    assert [row["domain"] for row in rows] == ["shown", "shown", "shown", "shifted"] * 2
    for row in rows:
        assert (row["kinds"] == "") == (float(row["severity"]) == 0) == (row["parts"] == "")
        assert 0 <= float(row["severity"]) <= 1 and row["layout"] in LAYOUTS


def test_shares_of_the_shifted_domain():
    assert sum(domain_of("test", i, 0.25) == "shifted" for i in range(200)) == 50
    assert sum(domain_of("test", i, 0.1) == "shifted" for i in range(200)) == 20
    assert {domain_of("train", i, 1.0) for i in range(9)} == {"shown"}
    assert {domain_of("test", i, 0.0) for i in range(9)} == {"shown"}


def test_shapes_and_ranges_of_a_sample(shown):
    shapes = {sample.image.shape[:2] for sample in shown}
    assert shapes == {(96, 96), (111, 83), (83, 111), (118, 78), (78, 118)}  # 1:1, 3:4, 4:3, 2:3, 3:2 about 96
    for sample in shown[:60]:
        assert sample.image.dtype == sample.truth.dtype == sample.part_map.dtype == np.uint8
        assert sample.truth.shape == sample.part_map.shape == sample.image.shape[:2]
        assert set(np.unique(sample.truth)) <= {0, 1} and sample.part_map.max() < len(PARTS)
        assert len(sample.kinds) == len(sample.parts) <= 3


@pytest.mark.parametrize("size", [32, 200, 448])
def test_any_size(size):
    height, width = make_sample(3, size).image.shape[:2]
    assert abs((height * width) ** 0.5 - size) < 2


# --- truth ---------------------------------------------------------------------------------------------------


def test_truth_holds_what_changed_and_nothing_when_sound(shown, shifted):
    amounts = []
    for sample in shown + shifted:
        if not sample.kinds:
            assert not sample.truth.any() and np.array_equal(sample.image, sample.sound)
            continue
        changed = cv2.absdiff(sample.image, sample.sound).max(axis=2) > 45
        amounts.append(changed.sum() / sample.truth.sum())
        assert (changed & (sample.truth == 1)).sum() >= 0.85 * changed.sum()
        assert sample.truth.mean() < 0.75  # it stays local
    assert np.quantile(amounts, 0.02) > 0.1 and np.median(amounts) > 0.4  # and it can be seen


def test_damage_leaves_a_sound_twin():
    damaged = next(s for s in (make_sample(i, 64) for i in range(20)) if s.kinds)
    assert not make_sample(0, 64, damaged=False).kinds
    assert damaged.image.shape == damaged.sound.shape and not np.array_equal(damaged.image, damaged.sound)


def test_changed_region_closes_gaps_fills_holes_and_drops_specks():
    sound = np.zeros((100, 100, 3), np.uint8)
    image = sound.copy()
    image[20:40, 20:30] = image[20:40, 32:42] = 200  # two blocks with a gap of two pixels
    image[60:80, 60:80] = 200
    image[66:74, 66:74] = 0  # a hole
    image[90, 5] = 255  # a speck
    region = changed_region(sound, image)
    assert region[22:38, 20:42].all()  # the rounded brush leaves a notch at either end of the gap
    assert region[60:80, 60:80].all()
    assert 20 * 22 + 20 * 20 - 8 <= region.sum() <= 20 * 22 + 20 * 20
    assert not changed_region(sound, sound).any()


def test_damage_is_large_enough_to_see_at_128_pixels(shown):
    single = [sample for sample in shown if len(sample.kinds) == 1]
    spans = []
    for sample in single:
        _, _, width, height = cv2.boundingRect(sample.truth)
        spans.append(max(width, height) / min(sample.truth.shape))
    assert np.median(spans) > 0.25
    assert np.quantile(spans, 0.05) > 0.12


def test_a_missing_arm_leaves_a_stump_and_extra_fingers_are_more():
    rng = np.random.default_rng(0)
    look = random_look(rng, 300.0, "shown", 200.0)
    group = figure(rng, look, "waving", (100, 10), 300.0, "half")
    fingers = len(group.of("left hand"))
    reshape(group, Damage("extra_fingers", 0, "left hand", 1.0, 1), (200, 200))
    now = [patch for patch in group.of("left hand") if patch.when != "sound"]
    assert len(now) == fingers + 5  # nine fingers instead of four
    whole = sum(np.ptp(p.outline[:, 1]) for p in group.of("right arm"))
    reshape(group, Damage("missing", 0, "right arm", 0.8, 1), (200, 200))
    left = [patch for patch in group.of("right arm") if patch.when != "sound"]
    assert left and sum(np.ptp(p.outline[:, 1]) for p in left) < 0.5 * whole


# --- votes and annotators ------------------------------------------------------------------------------------


def test_visible_damage_by_hand():
    truth = np.zeros((10, 10), np.uint8)
    truth[:5, :5] = 1  # a quarter, square root 0.5
    assert visible_damage(truth, 1.0) == pytest.approx(0.5)
    assert visible_damage(truth, 0.0) == pytest.approx(0.275)
    assert visible_damage(np.zeros_like(truth), 1.0) == 0


def test_mos_is_in_thirds_and_skewed_like_the_reference(shown):
    mos = np.array([sample.mos for sample in shown])
    assert np.allclose(mos * 3, np.round(mos * 3))
    counts = Counter(np.round(mos).astype(int).tolist())
    assert counts[2] > counts[3] > max(counts[4], counts[5]) > min(counts[4], counts[5]) > counts[1] > 0
    sound = [sample.mos for sample in shown if not sample.kinds]
    assert 0.1 < len(sound) / len(shown) < 0.25
    assert min(sound) >= 4 and np.mean(np.array(sound) == 5) > 0.5


def test_mos_follows_the_damage(shown, shifted):
    for samples in (shown, shifted):
        damage = [sample.visible for sample in samples]
        assert spearmanr([-sample.mos for sample in samples], damage)[0] > 0.85


def test_worse_damage_gets_lower_votes():
    rng = np.random.default_rng(0)
    means = [np.mean([opinion_score(rng, damage) for _ in range(200)]) for damage in (0, 0.1, 0.2, 0.4, 0.8)]
    assert means == sorted(means, reverse=True) and means[0] > 4.5 and means[-1] < 1.5


def test_annotators_disagree_but_mark_the_right_place(shown):
    overlaps, silent, shapes = [], Counter(), Counter()
    for sample in shown:
        height, width = sample.truth.shape
        check_annotators(sample.annotators, width, height)
        for regions in sample.annotators:
            if not regions:
                silent[repr(regions)] += 1
                continue
            mask = np.zeros((height, width), np.uint8)
            for region in regions:
                shapes[region["bbox_type"]] += 1
                fill(mask, region)
            if sample.kinds:
                overlaps.append((mask & sample.truth).sum() / (mask | sample.truth).sum())
    assert silent["None"] > 10 and silent["[]"] > 10
    assert min(shapes[1], shapes[2]) > 0.3 * shapes.total()
    assert 0.5 < np.mean(overlaps) < 0.85
    assert np.std(overlaps) > 0.05


def fill(mask, region):
    if region["bbox_type"] == 1:
        (low, high) = ((p["x"], p["y"]) for p in region["bbox"])
        cv2.rectangle(mask, low, high, 1, -1)
    else:
        cv2.fillPoly(mask, [np.array(region["bbox"], np.int32)], 1)


def test_severe_damage_is_missed_less_often():
    truth = np.zeros((100, 100), np.uint8)
    truth[30:60, 30:60] = 1

    def missed(severity):
        rng = np.random.default_rng(1)
        annotators = [regions for _ in range(150) for regions in annotate(rng, truth, severity)]
        return np.mean([not regions for regions in annotators])

    assert missed(1.0) < 0.09 < 0.14 < missed(0.0) < 0.3


# --- variety and the shifted domain --------------------------------------------------------------------------


def test_every_kind_layout_thing_and_pattern_occurs(shown, shifted):
    assert {kind for sample in shown for kind in sample.kinds} == set(KINDS["shown"])
    assert {kind for sample in shifted for kind in sample.kinds} >= set(KINDS["shifted"])
    assert {sample.layout for sample in shown} == set(LAYOUTS)
    prompts = " | ".join(sample.prompt for sample in shown)
    for word in (*THINGS["shown"], *PATTERNS["shown"], *PLACES["shown"], *POSE_NAMES["shown"], *PEOPLE):
        assert word in prompts, word


def test_the_shifted_domain_never_shows_elsewhere(shown, shifted):
    secret = [*THINGS["shifted"], *PATTERNS["shifted"], *PLACES["shifted"], "jumping"]
    everything = " | ".join(sample.prompt for sample in shifted)
    for word in secret:
        assert word in everything, word
        assert not any(word in sample.prompt for sample in shown), word
    assert not {kind for sample in shown for kind in sample.kinds} & set(KINDS["shifted"])
    assert all(any(word in sample.prompt for word in (*secret, *THINGS["shown"], *PLACES["shown"]))
               for sample in shifted)  # fmt: skip


def test_prompts_name_what_is_drawn():
    rng = np.random.default_rng(4)
    for domain in ("shown", "shifted"):
        for _ in range(40):
            scene = random_scene(rng, 96.0, domain)
            assert all(group.words in scene.prompt and group.name in group.words for group in scene.groups)
            nouns = [word for word in scene.prompt.replace(",", "").split() if word in PEOPLE]
            assert sorted(nouns) == sorted(group.name for group in scene.groups if group.figure)


def test_part_map_agrees_with_the_prompt(shown):
    torso, body = PARTS.index("torso"), PARTS.index("object body")
    for sample in shown:
        words = sample.prompt.split()
        person = any(word in PEOPLE for word in words)
        assert person == bool((sample.part_map == torso).any())
        if any(thing in words for thing in THINGS["shown"]) and "missing" not in sample.kinds:
            assert (sample.part_map == body).any()


@pytest.mark.parametrize("pattern", [*PATTERNS["shown"], *PATTERNS["shifted"]])
def test_pattern_tiles_are_seamless_and_strong(pattern):
    tile = pattern_tile(pattern, (40, 60, 120), (250, 240, 230), 24).astype(int)
    assert tile.shape == (24, 24, 3)
    assert np.ptp(tile.mean(axis=2)) > 70
    for axis in (0, 1):
        inside = abs(np.diff(tile, axis=axis)).mean(axis=(1 - axis, 2)).max()
        seam = abs(tile.take(0, axis) - tile.take(-1, axis)).mean()
        assert seam <= inside + 25


def test_tube_has_the_width_and_length_of_a_capsule():
    outline = tube(np.array([[0.0, 0.0], [5.0, 0.0], [10.0, 0.0]]), 2.0, 2.0)
    assert outline[:, 1].max() == pytest.approx(2, abs=1e-5) and outline[:, 1].min() == pytest.approx(-2, abs=1e-5)
    assert outline[:, 0].max() == pytest.approx(12, abs=0.1) and outline[:, 0].min() == pytest.approx(-2, abs=0.1)
    assert cv2.contourArea(outline) == pytest.approx(40 + np.pi * 4, rel=0.03)


# --- the folder on disk --------------------------------------------------------------------------------------


def test_a_complete_folder_is_left_alone_and_an_incomplete_one_is_written_again(tmp_path):
    root, counts = tmp_path / "data", {"train": 4, "val": 2}
    calls = []
    write_dataset(root, counts, size=48, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (6, 6)
    before = digests(root)
    image = root / "train" / "images" / "train_000001.jpg"
    stamp = image.stat().st_mtime_ns
    write_dataset(root, counts, size=48, workers=1)
    assert image.stat().st_mtime_ns == stamp  # not touched
    image.unlink()
    write_dataset(root, counts, size=48, workers=1)
    assert digests(root) == before
    note = json.loads((root / NOTE).read_text())
    (root / NOTE).write_text(json.dumps({**note, "complete": False}))
    image.write_bytes(b"half a file")
    write_dataset(root, counts, size=48, workers=1)
    assert digests(root) == before


def test_other_arguments_or_an_older_generator_replace_our_own_folder(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, {"train": 5, "val": 1}, size=48, workers=1)
    write_dataset(root, {"train": 2}, size=48, workers=1)
    assert {p.name for p in (root / "train" / "images").iterdir()} == {"train_000000.jpg", "train_000001.jpg"}
    assert not list((root / "val").rglob("*.jpg"))
    note = json.loads((root / NOTE).read_text())
    (root / NOTE).write_text(json.dumps({**note, "version": 0}))
    write_dataset(root, {"train": 2}, size=48, workers=1)
    assert json.loads((root / NOTE).read_text()) == note


def test_foreign_folders_are_never_overwritten(tmp_path):
    real = tmp_path / "real"
    (real / "train").mkdir(parents=True)
    (real / "train" / "train_info.json").write_text("{}")
    before = digests(real)
    with pytest.raises(InputError, match="real holds other files"):
        write_dataset(real, {"train": 1}, workers=1)
    (real / NOTE).write_text(json.dumps({"generator": "somebody else"}))
    with pytest.raises(InputError, match="not overwritten"):
        write_dataset(real, {"train": 1}, workers=1)
    (real / NOTE).write_text("{broken")
    with pytest.raises(InputError, match="cannot be read"):
        write_dataset(real, {"train": 1}, workers=1)
    (real / NOTE).unlink()
    assert digests(real) == before
    with pytest.raises(InputError, match="is a file"):
        write_dataset(real / "train" / "train_info.json", {"train": 1}, workers=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"counts": {}}, "counts="), ({"counts": {"train": -1}}, "counts="), ({"counts": {"../x": 1}}, "no name"),
     ({"size": 8}, "size=8"), ({"seed": -1}, "seed=-1"), ({"shifted": 1.5}, "shifted=1.5")],
)  # fmt: skip
def test_unusable_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        write_dataset(tmp_path / "data", **{"counts": {"train": 1}, "workers": 1, **arguments})
    assert not (tmp_path / "data").exists()


def test_an_unknown_domain_is_refused():
    with pytest.raises(InputError, match="'shwon'"):
        make_sample(0, 64, "shwon")


def test_speed_is_sane():
    started = time.process_time()
    for i in range(12):
        make_sample((9, i), 256)
    assert 12 / (time.process_time() - started) > 7.5  # a core's share of 15 images a second on two
