"""The challenge's JSON: nothing in it may crash the reader, and nothing may vanish without a row."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.readers import Images, Record, check_record, read_info
from lib.data.regions import LEFT_OUT, Region, agreement, draw, draw_regions, label_heatmap, outlines, region_area
from lib.errors import InputError
from lib.scale import HEATMAP_LEVELS

GOLDEN = Path(__file__).parent / "golden" / "labels"
IMAGES = Images(GOLDEN.parent / "formats" / "labelme")  # alpha.png and others


def rectangle(x0, y0, x1, y1):
    return {"bbox_type": 1, "bbox": [{"x": x0, "y": y0}, {"x": x1, "y": y1}]}


def polygon(*points):
    return {"bbox_type": 2, "bbox": [list(point) for point in points]}


def check(raw, id="alpha"):
    """check_record on an image that exists; problems as their codes."""
    record = check_record(id, raw, IMAGES)
    return record, [row.problem for row in record.problems]


def labelled(*annotators, mos=3):
    return {"prompt_en": "a cat", "mos": mos, "bbox_info": list(annotators)}


def write_info(tmp_path, content, split="train"):
    folder = tmp_path / split
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}_info.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- the file


def test_unreadable_file_is_one_sentence_with_its_path(tmp_path):
    for content, words in [
        ('{"a": 1,\n "b": }', ["line 2", "column 7"]),
        ("[1, 2]", ["no object of ids and records"]),
        ("{}", ["no object of ids and records"]),
        (b'{"a": "\xff\xfe"}', ["byte 0xff in position 7"]),
        ("[" * 200_000, ["is not valid JSON", "recursion"]),
        ('{"a": {}, "b": {"mos": 1, "mos": 5}}', ["'mos' is given twice"]),
    ]:
        path = write_info(tmp_path, content)
        with pytest.raises(InputError) as error:
            read_info(tmp_path, "train")
        assert all(word in str(error.value) for word in [str(path), *words])
        assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_matter(tmp_path):
    write_info(tmp_path, '\ufeff{"b": {"mos": 1}, "a é": {}}')
    assert list(read_info(tmp_path, "train").items()) == [("b", {"mos": 1}), ("a é", {})]


# --- the record


def test_points_are_pairs_or_objects_and_annotators_lists_or_null():
    objects = {"bbox_type": 2, "bbox": [{"x": 0, "y": 0}, {"x": 4, "y": 0}, {"x": 0, "y": 4}]}
    raw = labelled([rectangle(1, 2, 3, 4)], None, [], [objects, {"bbox_type": 1, "bbox": [[5, 5], [7, 7]]}])
    record, problems = check(raw)
    assert problems == [] and record.image == IMAGES.folder / "alpha.png"
    assert (record.prompt, record.mos, record.labelled, record.n_annotators) == ("a cat", 3.0, True, 4)
    assert [(region.annotator, region.shape, region.points.tolist()) for region in record.regions] == [
        (0, "rectangle", [[1, 2], [3, 4]]),
        (3, "polygon", [[0, 0], [4, 0], [0, 4]]),
        (3, "rectangle", [[5, 5], [7, 7]]),
    ]


SOUND = {"prompt_en": "p", "mos": 2, "bbox_info": []}


WRONG = {
    "mos unusable": [{"mos": mos} for mos in (0.99, 5.01, "3", True, [3], float("nan"), 10**400)],
    "mos missing": [{"mos": None}],
    "bbox_info missing": [{"bbox_info": None}],
    "bbox_info malformed": [{"bbox_info": {"0": []}}, {"bbox_info": "[]"}],
    "annotator malformed": [{"bbox_info": [[], "x", [], None]}],
    "prompt missing": [{"prompt_en": None}, {"prompt_en": 7}, {"prompt_en": ""}],
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_reported_and_the_rest_is_used(problem):
    for change in WRONG[problem]:
        record, problems = check(SOUND | change)
        assert problems == [problem], change
        assert record.mos == (None if "mos" in change else 2)
        assert record.labelled == isinstance((SOUND | change)["bbox_info"], list)
        assert record.n_annotators == (3 if "annotator" in problem else 0)  # those that are no list do not count


MALFORMED = [None, [1, 2], {"bbox_type": 1}, {"bbox_type": 1, "bbox": "1,2"},
             {"bbox_type": 1, "bbox": [{"x": 1, "y": 2}]}, {"bbox_type": 1, "bbox": [{"x": 1}, {"x": 2, "y": 3}]},
             rectangle(1, 2, float("nan"), 4),
             rectangle(1, 2, "3", 4), rectangle(1, True, 3, 4), polygon((1, 2), (3, 4), (5,))]  # fmt: skip
UNKNOWN = [{"bbox_type": 3, "bbox": []}, {"bbox_type": True, "bbox": []}, {"bbox_type": [1], "bbox": []}, {"bbox": []}]


def test_bad_regions_are_reported_and_their_neighbours_kept():
    bad = {"region malformed": MALFORMED, "region type unknown": UNKNOWN,
           "region degenerate": [polygon((1, 2), (3, 4)), polygon()]}  # fmt: skip
    for problem, regions in bad.items():
        for region in regions:
            record, problems = check(labelled([rectangle(1, 1, 2, 2), region, rectangle(3, 3, 4, 4)]))
            assert problems == [problem] and len(record.regions) == 2 and problem in LEFT_OUT, region


def test_images_are_found_in_any_case_and_normal_form_if_one_alone_is_meant(tmp_path):
    for name in ("a.b.PNG", "deux mots.JPeG", "twice.png", "twice.jpg", "e\u0301.webp", "notes.txt", "a.jpg.part"):
        (tmp_path / name).touch()
    images = Images(tmp_path)
    for id, name in {"a.b": "a.b.PNG", "é": "e\u0301.webp", "twice.png": "twice.png"}.items():
        record = check_record(id, labelled([]), images)
        assert record.image.name == name and record.image.is_file() and record.problems == []
    for id in ("a", "folder", "notes", "twice"):
        record = check_record(id, labelled([]), images)
        assert record.image is None and [row.problem for row in record.problems] == ["image missing"]


# --- drawing


DRAWN = [
    *((rectangle(*corners), 18, (1, 2, 6, 4), []) for corners in [(1, 2, 7, 5), (7, 5, 1, 2), (7, 2, 1, 5)]),
    (rectangle(0, 0, 10, 8), 80, (0, 0, 9, 7), []),  # exactly the pixels of a 10x8 image
    (rectangle(-1e-13, 0, 10 + 1e-13, 8), 80, (0, 0, 9, 7), []),  # a matter of arithmetic
    (rectangle(0.6, 1.4, 3.4, 2.6), 2 * 2, (1, 1, 2, 2), []),  # centres of pixels from 1.5 to 2.5
    (rectangle(-3, 2, 12, 99), 60, (0, 2, 9, 7), ["region clipped"]),
    (rectangle(2, 2, 1e300, 5), 24, (2, 2, 9, 4), ["region clipped"]),
    (rectangle(9, 2, 15, 5), 3, (9, 2, 9, 4), ["region clipped"]),
    (rectangle(10, 2, 15, 5), 0, None, ["region outside image"]),
    (rectangle(-5, 2, 0, 5), 0, None, ["region outside image"]),
    (rectangle(3, 2, 3, 5), 0, None, ["region degenerate"]),
    (rectangle(3.6, 2, 4.4, 5), 0, None, ["region degenerate"]),  # between two columns of centres
    (polygon((0, 0), (9, 0), (9, 7), (0, 7)), 80, (0, 0, 9, 7), []),
    (polygon((1, 1), (3, 3), (5, 5)), 0, None, ["region degenerate"]),
    (polygon((20, 1), (30, 1), (20, 5)), 0, None, ["region outside image"]),
    (polygon((-6, 20), (20, 20), (20, -1)), 0, None, ["region outside image"]),  # its box overlaps, it does not
    (polygon((1, 1), (1e308, 1), (1e308, 5), (1, 5)), 45, (1, 1, 9, 5), ["region clipped"]),
    (polygon((0, 0), (6, 6), (6, 0), (0, 6)), 31, (0, 0, 6, 6), []),  # a figure of eight has signed area zero
]


@pytest.mark.parametrize(("region", "pixels", "box", "problems"), DRAWN)
def test_drawing_in_a_10x8_image(region, pixels, box, problems):
    record, found = check(labelled([region]))
    assert found == []
    _, masks, found = draw_regions(record, 10, 8)
    rows, columns = np.nonzero(masks[0])
    assert (len(rows), [row.problem for row in found]) == (pixels, problems)
    assert not len(rows) or (columns.min(), rows.min(), columns.max(), rows.max()) == box


def test_triangle_is_cut_along_the_border_not_squeezed():
    # The slanted edge from (5, 0) to (15, 5) leaves the image at x = 9, y = 2. Moving its far corner onto the
    # border instead would bend the edge.
    record, _ = check(labelled([polygon((5, 0), (15, 5), (5, 5))]))
    regions, masks, _ = draw_regions(record, 10, 8)
    assert masks[0].sum(axis=1).tolist() == [2, 4, 5, 5, 5, 5, 0, 0]
    [(shape, points)] = outlines(regions[0], 8, 10)
    assert shape == "polygon" and points.max(axis=0).tolist() == [9, 5]
    assert region_area("rectangle", [1.0, 2, 4, 6]) == 12 and region_area("polygon", [0.0, 0, 4, 0, 0, 3]) == 6


def region(annotator, *corners):
    return Region(annotator, "rectangle", np.array(corners, dtype=float).reshape(2, 2))


@given(st.lists(st.tuples(st.integers(-4, 9), st.integers(-4, 9)), min_size=4, max_size=4, unique=True))
def test_rectangles_are_the_same_as_a_polygon_by_edges(points):
    (x0, y0), (x1, y1) = points[:2]
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)
    by_edges = draw(Region(0, "edge polygon", corners), 6, 7)
    assert (draw(region(0, x0, y0, x1, y1), 6, 7) == by_edges).all()


def test_labels_are_those_of_the_reference():
    """Pixel by pixel, but for polygons of one or two points: the reference draws a dot or a line, we report them."""
    golden = json.loads((GOLDEN / "labels.json").read_text())
    arrays = np.load(GOLDEN / "labels.npz")
    for case in golden["cases"]:
        record, problems = check(labelled(*case["bbox_info"]))
        _, masks, more = draw_regions(record, 64, 48)
        expected = arrays[case["case"]]
        different = label_heatmap(masks) != expected
        if case["case"] == "mixed":
            assert [row.problem for row in [*more]] == [] and problems == ["region degenerate"] * 2
            assert different.sum() == 12 and different[2, 62] and different[40:45, 2:13].sum() == 11
        else:
            assert not different.any(), case["case"]
    assert len(golden["cases"]) == 10


@pytest.mark.parametrize("annotators", range(7))
def test_heatmap_counts_annotators_and_stays_255_above_four(annotators):
    # Annotator k marks the columns from k on, so column c is marked by min(c + 1, annotators) of them.
    regions = [region(k, k, 0, 7, 1) for k in range(annotators)]
    masks = draw_regions(Record("a", None, n_annotators=annotators, regions=regions), 7, 1)[1]
    assert label_heatmap(masks)[0].tolist() == [HEATMAP_LEVELS[min(c + 1, annotators, 4)] for c in range(7)]


def test_agreement():
    a, b, empty = np.zeros((3, 1, 4), dtype=bool)
    a[0, :2], b[0, 1:3] = True, True
    assert agreement(np.stack([a, b])) == pytest.approx(1 / 3)
    assert agreement(np.stack([a, b, empty])) == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert agreement(np.stack([a, a])) == 1
    assert agreement(np.stack([empty, empty])) == 1
    assert agreement(a[None]) is None and agreement(np.zeros((0, 1, 4), dtype=bool)) is None


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


@settings(max_examples=60)
@given(id=st.text(max_size=6), raw=junk | st.fixed_dictionaries({}, optional={"mos": junk, "bbox_info": junk}))
def test_junk_never_crashes_and_never_vanishes(id, raw):
    record = check_record(id, raw, IMAGES)
    assert record.image is None and len(record.problems) == 1
    record = check_record("alpha", raw, IMAGES)
    assert record.image or record.problems


@given(raw=annotators, width=st.integers(1, 25), height=st.integers(1, 25))
def test_every_region_is_used_or_reported(raw, width, height):
    record = check_record("alpha", labelled(*raw), IMAGES)
    kept, masks, more = draw_regions(record, width, height)
    left_out = [row for row in record.problems + more if row.problem in LEFT_OUT]
    assert sum(len(drawn or []) for drawn in raw) == len(kept) + len(left_out)
    assert masks.shape == (len(raw), height, width)
    for region in kept:
        assert draw(region, height, width).any()
        for _, points in outlines(region, height, width):
            assert (points >= 0).all() and (points <= [width, height]).all()
