"""The challenge's JSON: nothing in it may crash the reader, and nothing may vanish without a row."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.data.readers import Record, check_record, list_images, read_info
from lib.data.regions import LEFT_OUT, Region, agreement, annotator_masks, clip_regions, label_heatmap, region_area
from lib.errors import InputError
from lib.scale import HEATMAP_LEVELS, mos_from_score, score_from_mos

IMAGES = {"a": ["a.jpg"]}


def rectangle(x0, y0, x1, y1):
    return {"bbox_type": 1, "bbox": [{"x": x0, "y": y0}, {"x": x1, "y": y1}]}


def polygon(*points):
    return {"bbox_type": 2, "bbox": [list(point) for point in points]}


def check(raw, id="a"):
    """check_record on an image that is taken to exist; problems as their codes."""
    record, problems = check_record(id, raw, "split", IMAGES)
    return record, [row.problem for row in problems]


def labelled(*annotators, mos=3):
    return {"prompt_en": "a cat", "mos": mos, "bbox_info": list(annotators)}


def clip(*regions, width=10, height=8):
    record, problems = check(labelled(list(regions)))
    assert problems == []
    kept, found = clip_regions(record, width, height)
    return [region.points.tolist() for region in kept], [row.problem for row in found]


def write_info(tmp_path, content, split="train"):
    folder = tmp_path / split
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}_info.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- the file


def test_read_info_returns_records_in_order(tmp_path):
    write_info(tmp_path, '\ufeff{"b": {"mos": 1}, "a é": {"mos": 2}}')  # with a byte order mark
    info, problems = read_info(tmp_path, "train")
    assert list(info) == ["b", "a é"] and problems == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1,\n "b": }', ["line 2", "column 7"]),
        ("", ["line 1", "column 1"]),
        ("[1, 2]", ["list", "not an object"]),
        ("{}", ["lists no image"]),
        (b'{"a": "\xff\xfe"}', ["byte 7", "UTF-8"]),
        ("[" * 200_000, ["nested too deeply"]),
    ],
)
def test_unreadable_file_is_one_sentence_with_its_path(tmp_path, content, words):
    path = write_info(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_info(tmp_path, "train")
    assert all(word in str(error.value) for word in [str(path), *words])
    assert "\n" not in str(error.value)


def test_wrong_data_root_names_path_and_layout(tmp_path):
    with pytest.raises(InputError, match="DATA_ROOT") as error:
        read_info(tmp_path / "nowhere", "train")
    assert str(tmp_path / "nowhere" / "train") in str(error.value)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="train_info.json does not exist.*train/images"):
        read_info(tmp_path, "train")


def test_repeated_ids_keep_the_first_entry(tmp_path):
    write_info(tmp_path, '{"a": {"mos": 1}, "b": {}, "a": {"mos": 2}, "a": {"mos": 3}}')
    info, problems = read_info(tmp_path, "train")
    assert info == {"a": {"mos": 1}, "b": {}}
    assert [(row.id, row.problem) for row in problems] == [("a", "duplicate id")] * 2


def test_repeated_keys_inside_a_record_are_reported(tmp_path):
    write_info(tmp_path, '{"a": {"prompt_en": "p", "mos": 1, "mos": 5, "bbox_info": []}}')
    info, problems = read_info(tmp_path, "train")
    record, codes = check(info["a"])
    assert problems == [] and codes == ["duplicate key"] and record.mos == 1


def test_one_enormous_integer_does_not_lose_the_file(tmp_path):
    bad = rectangle(1, 1, 5, 5)
    text = json.dumps({"a": labelled([bad])}).replace('"y": 1', '"y": ' + "9" * 5000)
    write_info(tmp_path, text)
    info, _ = read_info(tmp_path, "train")
    assert check(info["a"])[1] == ["region malformed"]


# --- the record


def test_sound_record():
    raw = labelled([rectangle(1, 2, 3, 4)], None, [], [polygon((0, 0), (4, 0), (0, 4)), rectangle(5, 5, 7, 7)])
    record, problems = check(raw)
    assert problems == []
    assert (record.prompt, record.mos, record.labelled, record.n_annotators) == ("a cat", 3.0, True, 4)
    assert [(region.annotator, region.shape) for region in record.regions] == [
        (0, "rectangle"),
        (3, "polygon"),
        (3, "rectangle"),
    ]
    assert record.image.as_posix() == "split/images/a.jpg"


def test_participants_record_has_no_label_and_no_problem():
    record, problems = check({"prompt_en": "a cat"})
    assert problems == [] and not record.labelled and record.mos is None and record.n_annotators == 0


@pytest.mark.parametrize("mos", [0.99, 5.01, "3", True, [3], float("nan"), float("inf"), 10**400])
def test_unusable_mos_leaves_the_heatmap_usable(mos):
    record, problems = check(labelled([rectangle(1, 1, 3, 3)], mos=mos))
    assert problems == ["mos unusable"]
    assert record.mos is None and record.labelled and len(record.regions) == 1


@pytest.mark.parametrize(
    ("raw", "problem", "is_labelled"),
    [
        ({"prompt_en": "p", "bbox_info": []}, "mos missing", True),
        ({"prompt_en": "p", "mos": 2}, "bbox_info missing", False),
        ({"prompt_en": "p", "mos": 2, "bbox_info": None}, "bbox_info missing", False),
        ({"prompt_en": "p", "mos": 2, "bbox_info": {"0": []}}, "bbox_info malformed", False),
        ({"prompt_en": "p", "mos": 2, "bbox_info": "[]"}, "bbox_info malformed", False),
        ({"mos": 2, "bbox_info": []}, "prompt missing", True),
        ({"prompt_en": 7, "mos": 2, "bbox_info": []}, "prompt malformed", True),
        ({"prompt_en": "a \ud800 b", "mos": 2, "bbox_info": []}, "prompt malformed", True),
    ],
)
def test_what_is_missing_is_reported_and_the_rest_is_used(raw, problem, is_labelled):
    record, problems = check(raw)
    assert problems == [problem] and record.labelled == is_labelled
    assert record.mos == raw.get("mos")
    record.prompt.encode("utf-8")  # what Parquet and the tokenizer need


def test_malformed_annotator_is_not_counted():
    record, problems = check(labelled("x", [rectangle(1, 1, 3, 3)], {"bbox_type": 1}, []))
    assert problems == ["annotator malformed"] * 2
    assert record.n_annotators == 2 and record.regions[0].annotator == 0


@pytest.mark.parametrize(
    ("region", "problem"),
    [
        (None, "region malformed"),
        ([1, 2], "region malformed"),
        ({"bbox_type": 1}, "region malformed"),
        ({"bbox_type": 1, "bbox": "1,2,3,4"}, "region malformed"),
        ({"bbox_type": 1, "bbox": [{"x": 1, "y": 2}]}, "region malformed"),
        ({"bbox_type": 1, "bbox": [{"x": 1}, {"x": 2, "y": 3}]}, "region malformed"),
        (rectangle(1, 2, float("nan"), 4), "region malformed"),
        (rectangle(1, 2, "3", 4), "region malformed"),
        (rectangle(1, True, 3, 4), "region malformed"),
        (polygon((1, 2), (3, 4), (5,)), "region malformed"),
        (polygon((1, 2), (3, 4)), "region degenerate"),
        (polygon(), "region degenerate"),
        ({"bbox_type": 3, "bbox": []}, "region type unknown"),
        ({"bbox_type": True, "bbox": []}, "region type unknown"),
        ({"bbox_type": [1], "bbox": []}, "region type unknown"),
        ({"bbox": []}, "region type unknown"),
    ],
)
def test_bad_region_is_reported_and_its_neighbours_kept(region, problem):
    record, problems = check(labelled([rectangle(1, 1, 2, 2), region, rectangle(3, 3, 4, 4)]))
    assert problems == [problem] and len(record.regions) == 2 and problem in LEFT_OUT


def test_points_may_be_pairs_or_objects_in_both_shapes():
    pairs = {"bbox_type": 1, "bbox": [[1, 2], [3, 4]]}
    objects = {"bbox_type": 2, "bbox": [{"x": 0, "y": 0}, {"x": 4, "y": 0}, {"x": 0, "y": 4}]}
    record, problems = check(labelled([pairs, objects]))
    assert problems == []
    assert [region.points.tolist() for region in record.regions] == [[[1, 2], [3, 4]], [[0, 0], [4, 0], [0, 4]]]


def test_images_are_found_by_preference_any_case_and_normal_form(tmp_path):
    names = ["a.b.PNG", "a.b.jpg", "deux mots.JPeG", "e\u0301.webp", "notes.txt", "a.jpg.part"]
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / name).touch()
    (tmp_path / "images" / "folder.jpg").mkdir()
    images = list_images(tmp_path)
    assert images == {"a.b": ["a.b.jpg", "a.b.PNG"], "deux mots": ["deux mots.JPeG"], "é": ["e\u0301.webp"]}
    record, problems = check_record("a.b", labelled([]), tmp_path)
    assert record.image.name == "a.b.jpg" and [row.problem for row in problems] == ["image ambiguous"]
    record, problems = check_record("é", labelled([]), tmp_path, images)
    assert record.image.name == "e\u0301.webp" and record.image.is_file() and problems == []
    for id in ("a", "folder", "notes"):
        record, problems = check_record(id, labelled([]), tmp_path, images)
        assert record is None and [row.problem for row in problems] == ["image missing"]


# --- clipping


@pytest.mark.parametrize("corners", [(1, 2, 7, 5), (7, 5, 1, 2), (7, 2, 1, 5), (1, 5, 7, 2)])
def test_rectangle_corners_come_in_any_order(corners):
    assert clip(rectangle(*corners)) == ([[[1, 2], [7, 5]]], [])


@pytest.mark.parametrize(
    ("region", "points", "problems"),
    [
        (rectangle(0, 0, 9, 7), [[[0, 0], [9, 7]]], []),  # exactly the pixels of a 10x8 image
        (rectangle(-3, 2, 12, 99), [[[0, 2], [9, 7]]], ["region clipped"]),
        (rectangle(2, 2, 10, 5), [[[2, 2], [9, 5]]], ["region clipped"]),  # 10 is one past the last pixel
        (rectangle(2, 2, 1e300, 5), [[[2, 2], [9, 5]]], ["region clipped"]),
        (rectangle(10, 2, 15, 5), [], ["region outside image"]),
        (rectangle(-5, 2, -1, 5), [], ["region outside image"]),
        (rectangle(9, 2, 15, 5), [], ["region outside image"]),  # touches with its edge only
        (rectangle(3, 2, 3, 5), [], ["region degenerate"]),
        (rectangle(3, 2, 3, 2), [], ["region degenerate"]),
        (polygon((1, 1), (3, 3), (5, 5)), [], ["region degenerate"]),
        (polygon((2, 2), (2, 2), (2, 2)), [], ["region degenerate"]),
        (polygon((20, 1), (30, 1), (20, 5)), [], ["region outside image"]),
        (polygon((-6, 20), (20, 20), (20, -1)), [], ["region outside image"]),  # its box overlaps, it does not
        (polygon((1, 1), (1e308, 1), (1, 1e-308)), [[[1, 1], [9, 1], [9, 0], [1, 0]]], ["region clipped"]),
    ],
)
def test_clipping(region, points, problems):
    kept, found = clip(region)
    assert found == problems and len(kept) == len(points)
    if kept:
        assert {tuple(np.round(p, 3)) for p in kept[0]} == {tuple(p) for p in points[0]}


def test_triangle_is_cut_along_the_border_not_squeezed():
    # The slanted edge from (5, 0) to (15, 5) leaves the image at x = 9, y = 2. Moving its far corner onto the
    # border instead would bend the edge.
    kept, problems = clip(polygon((5, 0), (15, 5), (5, 5)))
    assert problems == ["region clipped"]
    assert {tuple(point) for point in kept[0]} == {(5, 0), (9, 2), (9, 5), (5, 5)}


def test_figure_of_eight_is_not_degenerate():
    kept, problems = clip(polygon((0, 0), (6, 6), (6, 0), (0, 6)))  # signed area zero
    assert len(kept) == 1 and problems == []


# --- heatmaps


def region(annotator, *corners):
    return Region(annotator, "rectangle", np.array(corners, dtype=float).reshape(2, 2))


def test_rectangle_includes_both_corners_and_rounds():
    masks = annotator_masks([region(0, 0.6, 1.4, 3.4, 2.6)], 1, height=5, width=6)
    expected = np.zeros((1, 5, 6), dtype=bool)
    expected[0, 1:4, 1:4] = True
    assert masks.dtype == bool and (masks == expected).all()


def test_polygon_includes_its_outline():
    triangle = Region(0, "polygon", np.array([[0, 0], [3, 0], [0, 3]], dtype=float))
    expected = [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert annotator_masks([triangle], 1, 4, 4)[0].astype(int).tolist() == expected


def test_one_annotators_overlapping_regions_count_once():
    masks = annotator_masks([region(0, 0, 0, 2, 0), region(0, 1, 0, 3, 0)], 1, 1, 5)
    assert label_heatmap(masks).tolist() == [[64, 64, 64, 64, 0]]


@pytest.mark.parametrize("annotators", range(7))
def test_heatmap_counts_annotators_and_stays_255_above_four(annotators):
    # Annotator k marks the columns from k on, so column c is marked by min(c + 1, annotators) of them.
    masks = annotator_masks([region(k, k, 0, 6, 0) for k in range(annotators)], annotators, 1, 7)
    heatmap = label_heatmap(masks)
    assert masks.shape == (annotators, 1, 7) and heatmap.dtype == np.uint8
    assert heatmap[0].tolist() == [HEATMAP_LEVELS[min(c + 1, annotators, 4)] for c in range(7)]


def test_256_annotators_do_not_wrap_to_zero():
    assert label_heatmap(np.ones((256, 2, 2), dtype=bool)).tolist() == [[255, 255], [255, 255]]


def test_agreement():
    a, b, empty = np.zeros((3, 1, 4), dtype=bool)
    a[0, :2], b[0, 1:3] = True, True
    assert agreement(np.stack([a, b])) == pytest.approx(1 / 3)
    assert agreement(np.stack([a, b, empty])) == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert agreement(np.stack([a, a])) == 1
    assert agreement(np.stack([empty, empty])) == 1
    assert agreement(a[None]) is None and agreement(np.zeros((0, 1, 4), dtype=bool)) is None


def test_scores():
    assert [score_from_mos(mos) for mos in (1, 3, 5)] == [0, 0.5, 1]
    assert mos_from_score(np.array([0, 0.5, 1])).tolist() == [1, 3, 5]


# --- junk

numbers = st.integers() | st.floats() | st.integers(-20, 30)
junk = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
points = st.fixed_dictionaries({"x": numbers, "y": numbers}) | st.lists(numbers, min_size=2, max_size=2)
drawn = st.fixed_dictionaries({"bbox_type": st.sampled_from([1, 2]), "bbox": st.lists(points | junk, max_size=5)})
triangles = st.fixed_dictionaries({"bbox_type": st.just(2), "bbox": st.lists(points, min_size=3, max_size=6)})
rectangles = st.fixed_dictionaries({"bbox_type": st.just(1), "bbox": st.lists(points, min_size=2, max_size=2)})
regions = st.one_of(rectangles, triangles, drawn, junk)
annotators = st.lists(st.lists(regions, max_size=4) | st.none(), max_size=6)


@given(id=st.text(max_size=6), raw=junk | st.fixed_dictionaries({}, optional={"mos": junk, "bbox_info": junk}))
def test_junk_never_crashes_and_never_vanishes(id, raw):
    record, problems = check_record(id, raw, "split", {})
    assert record is None and len(problems) == 1
    record, problems = check_record("a", raw, "split", IMAGES)
    assert record is not None or problems


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(raw=annotators, width=st.integers(1, 25), height=st.integers(1, 25))
def test_every_region_is_used_or_reported(raw, width, height):
    record, problems = check_record("a", labelled(*raw), "split", IMAGES)
    kept, more = clip_regions(record, width, height)
    left_out = [row for row in problems + more if row.problem in LEFT_OUT]
    assert sum(len(drawn or []) for drawn in raw) == len(kept) + len(left_out)
    assert record.n_annotators == len(raw)
    for region in kept:
        assert (region.points >= 0).all() and (region.points <= [width - 1, height - 1]).all()
        mask = annotator_masks([region], record.n_annotators, height, width)
        assert mask[region.annotator].any() and mask.sum() == mask[region.annotator].sum()


@given(text=st.text(max_size=30) | junk.map(lambda value: json.dumps(value)) | st.binary(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_is_read_or_refused_in_one_line(tmp_path, text):
    write_info(tmp_path, text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        info, _ = read_info(tmp_path, "train")
    except InputError as error:
        assert "train_info.json" in str(error) and "\n" not in str(error)
    else:
        assert isinstance(info, dict) and info


integers = st.integers(-12, 24)


@given(st.lists(st.tuples(integers, integers), min_size=3, max_size=6))
def test_clipped_polygon_covers_the_same_pixels(points):
    """Cutting then drawing = drawing on a larger canvas then cutting, but for the rounding at the cut edges."""
    width, height, margin = 10, 8, 30
    whole = Region(0, "polygon", np.array(points, dtype=float))
    record = Record("a", "", None, [whole], 1, None, True)
    kept, problems = clip_regions(record, width, height)
    shifted = Region(0, "polygon", whole.points + margin)
    canvas = annotator_masks([shifted], 1, height + 2 * margin, width + 2 * margin)[0]
    expected = canvas[margin : margin + height, margin : margin + width]
    drawn = annotator_masks(kept, 1, height, width)[0]
    # Along the border a sliver is rounded onto it or off it, and a cut concave polygon may keep a line of a pixel.
    inner = (slice(1, -1), slice(1, -1))
    if kept:
        assert not (expected & ~widen(drawn))[inner].any()
        assert not (drawn & ~widen(expected))[inner].any()
    elif problems[0].problem == "region outside image" and len(points) == 3:
        assert not expected[inner].any()


def widen(mask):
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def test_area_of_regions():
    assert region_area("rectangle", [1.0, 2, 4, 6]) == 12
    assert region_area("polygon", [0.0, 0, 4, 0, 0, 3]) == 6
