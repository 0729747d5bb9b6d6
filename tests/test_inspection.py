"""What the inspector shows, without the widget: judging, drawing, ranking, verdicts. Values are computed by hand."""

import json
import math

import cv2
import numpy as np
import pytest
from example_masks import frame
from example_runs import CASES, SIZE, write_run, write_split
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.evaluate import tables
from lib.evaluate.run_on_split import open_run
from lib.metrics.matching import match_regions
from lib.metrics.setting import Setting, chosen_setting
from lib.plots import rendering
from lib.plots.style import STATUS_COLOURS
from lib.stores import LabelStore, PredictionStore
from lib.widgets import image, ranking


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspection")
    write_split(root / "data/test", kinds=["melted+warped", "warped", "", ""])
    return open_run(write_run(root / "runs/one", root / "data"), "test")


def scene_of(run, id):
    return image.read_scene(run.labels, id, image.regions_by_image(run.labels), SIZE)


def drawn(run, id, layer, **options):
    scene, heatmap = scene_of(run, id), run.predictions.heatmap(id)
    judgement = image.compare(heatmap, scene.truth, run.threshold)
    return scene, image.draw(scene, heatmap, judgement, layer, run.threshold, **options)


def figures_of(run, id):
    truth = image.truth_of(run.labels.heatmap(id))
    return image.figures_of(run.predictions.heatmap(id), truth, run.threshold)


# One image ----------------------------------------------------------------------------------------------------------


def test_figures_of_an_image_with_a_hit_and_two_false_alarms(run):
    figures = figures_of(run, "false")
    assert (figures["precision"], figures["recall"]) == (1 / 3, 1)
    assert (figures["missed_regions"], figures["false_regions"], figures["wrong_regions"]) == (0, 2, 2)
    assert figures["false_area"] == pytest.approx(2 * 60 * 60 / SIZE**2)
    assert figures["missed_area"] == 0
    assert figures["iou"] == pytest.approx(10000 / 17200, abs=1e-6)


def test_what_needs_a_label_is_undefined_without_one():
    heatmap = frame((0, 0, 128, 128), value=200)
    figures = image.figures_of(heatmap, None, 90)
    assert {name for name, value in figures.items() if not math.isnan(value)} == {"n_predicted", "predicted_area"}
    assert figures["predicted_area"] == 1 / 16
    assert [region.status for region in image.compare(heatmap, None, 90).predicted] == ["unjudged"]
    assert all(math.isnan(value) for value in image.figures_of(None, image.truth_of(frame()), 90).values())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 254))
def test_outlines_and_figures_agree(seed, threshold):
    rng = np.random.default_rng(seed)
    heatmap, label = (cv2.resize(rng.integers(0, 256, (12, 9), np.uint8), (90, 120)) for _ in range(2))
    label[label < 150] = 0
    judged = image.compare(heatmap, image.truth_of(label), threshold)
    counts = match_regions(heatmap > threshold, label > 0)
    statuses = [region.status for region in (*judged.predicted, *judged.true)]
    assert statuses.count("missed") == judged.figures["missed_regions"] == counts.n_true - counts.hit_true
    assert statuses.count("false") == judged.figures["false_regions"] == counts.n_predicted - counts.hit_predicted
    assert [region.status for region in judged.predicted].count("hit") == counts.hit_predicted


# Drawing ------------------------------------------------------------------------------------------------------------


def test_differences_have_the_colours_of_the_metric(run):
    _, picture = drawn(run, "false", "difference", regions=False, opacity=1.0)
    assert tuple(picture[350, 350]) == rendering.rgb(STATUS_COLOURS["hit"])
    assert tuple(picture[40, 40]) == rendering.rgb(STATUS_COLOURS["false"])
    _, picture = drawn(run, "missed", "difference", regions=False, opacity=1.0)
    assert tuple(picture[150, 150]) == rendering.rgb(STATUS_COLOURS["missed"])


def test_outlines_lie_on_the_border_in_the_colour_of_the_status(run):
    for id, colour, row in (("false", "hit", 300), ("false", "false", 10), ("missed", "missed", 100)):
        _, picture = drawn(run, id, "image")
        found = (picture[row - 1 : row + 2] == rendering.rgb(STATUS_COLOURS[colour])).all(axis=2)
        assert found.sum() > 20, (id, colour)
        assert not (picture[row + 20 : row + 30] == rendering.rgb(STATUS_COLOURS[colour])).all(axis=2)[:, 120:200].any()


def test_annotators_are_outlined_at_the_scale_of_the_picture(run):
    annotators = image.regions_by_image(run.labels)
    assert [(one[0], one[1], one[2].tolist()) for one in image.annotators_of(annotators, "missed")] == [
        (0, "rectangle", [[100, 100], [299, 199]])
    ]
    scene = image.read_scene(run.labels, "missed", annotators, SIZE // 2)
    assert scene.scale == (0.5, 0.5)
    nothing = image.compare(None, None, 90)
    picture = image.draw(scene, None, nothing, "image", 90, annotators=True)
    assert (picture[50, 60:140] > 200).all()
    assert (picture[60:90, 60:140] == scene.image[60:90, 60:140]).mean() > 0.9


def test_a_lost_image_becomes_a_placeholder_and_a_problem(tmp_path):
    write_split(tmp_path / "test")
    (tmp_path / "test/images/perfect.jpg").unlink()
    (tmp_path / "test/heatmaps/perfect.png").write_bytes(b"no picture")
    labels = LabelStore(tmp_path / "test")
    scene = image.read_scene(labels, "perfect", image.regions_by_image(labels), 256)
    assert scene.image.shape == (256, 256, 3)
    assert (scene.image < 150).any()  # words on grey
    assert scene.label is None
    assert "perfect.jpg does not exist" in scene.problems[0]
    assert "perfect.png is not a readable" in scene.problems[1]


# Ranking ------------------------------------------------------------------------------------------------------------


def table_of(run, other=None):
    runs = [run] if other is None else [run, other]
    facts, notes = ranking.overview(runs)
    found = ranking.Ranking(runs, [one.threshold for one in runs], list(facts.index))
    assert found.work()
    return facts.join(found.table), notes, found


def test_error_analysis_and_inspector_mean_the_same_by_worst(tmp_path):
    rng, cases = np.random.default_rng(0), {}
    for k in range(24):
        boxes = [(int(x), int(y), 14, 12) for x, y in rng.integers(0, 110, (4, 2))]
        cases[f"{k:02d}"] = (boxes[: k % 4], boxes[k % 3 : 3])
    cases |= {"tied": cases["05"], "also tied": cases["05"], "sound": ([], [])}
    write_split(tmp_path / "data/test", cases, size=128)
    scores = list(rng.permutation(len(cases)) / len(cases))
    opened = open_run(write_run(tmp_path / "run", tmp_path / "data", cases, size=128, scores=scores), "test")
    images, _ = tables.error_tables(opened.predictions, opened.labels, opened.threshold, workers=1)
    wrong, area = images["missed"] + images["false"], images["missed_area"] + images["false_area"]
    worst = tables.worst_first(wrong, area, images["predicted_mos"])
    assert worst == ranking.order(table_of(opened)[0], "worst")
    assert wrong[worst].is_monotonic_decreasing and wrong.nunique() > 3
    assert images.loc[[id for id in worst if "tied" in id or id == "05"], "predicted_mos"].is_monotonic_increasing


def test_unreadable_images_come_last_and_are_told(tmp_path):
    write_split(tmp_path / "data/test")
    one = open_run(write_run(tmp_path / "runs/one", tmp_path / "data"), "test")
    one.predictions.heatmap_path("false").unlink()
    table, _, found = table_of(one)
    assert list(found.problems) == ["false"]
    assert ranking.order(table, "worst") == ["missed", "perfect", "sound", "false"]


def test_an_image_whose_ranking_fails_does_not_hold_up_the_others(run, monkeypatch):
    read = ranking.figures_of
    monkeypatch.setattr(ranking, "figures_of", lambda heatmap, *rest: read(heatmap, *rest) if heatmap.any() else 1 / 0)
    table, _, found = table_of(run)
    assert found.problems == dict.fromkeys(["missed", "sound"], "ZeroDivisionError: division by zero")
    assert ranking.order(table, "worst") == ["false", "perfect", "missed", "sound"]


def test_a_second_run_gives_gains(run, tmp_path):
    cases = CASES | {"false": ([], [(300, 300, 100, 100)]), "perfect": ([], [])}
    other = open_run(write_run(tmp_path / "two", run.labels.path.parent, cases), "test")
    table, _, _ = table_of(run, other)
    assert ranking.order(table, "other run better")[0] == "false"
    assert ranking.order(table, "other run worse")[0] == "perfect"
    assert table.at["false", "gain"] == pytest.approx(7200 / SIZE**2)


def test_filters(run):
    table, _, _ = table_of(run)
    assert list(ranking.select(table, kind="warped").index) == ["perfect", "missed"]
    assert list(ranking.select(table, kind="sound").index) == ["false", "sound"]
    assert list(ranking.select(table, text="PICTURE mis").index) == ["missed"]
    assert list(ranking.select(table, text="[").index) == []
    assert list(ranking.select(table.drop(columns="kinds"), kind="warped").index) == []
    assert ranking.kinds_of(table.assign(kinds=["a+b", "", None, "a"])) == [["a", "b"], ["sound"], ["unknown"], ["a"]]
    table = table.assign(verdict=["", "unsure", "", ""], note=["", "", "", "odd"], problem=["", "", "lost", ""])
    shown = {show: list(ranking.select(table, show=show).index) for show in ranking.SHOW}
    assert shown["all"] == ["perfect", "missed", "false", "sound"]
    assert shown["not judged"] == ["perfect", "false", "sound"]
    assert (shown["unsure"], shown["with a note"], shown["unreadable"]) == (["missed"], ["sound"], ["false"])


# Opening ------------------------------------------------------------------------------------------------------------


def test_regions_up_to_the_smallest_area_do_not_count(run):
    heatmap = np.zeros((100, 100), np.uint8)
    heatmap[10:25, 10:25] = 200  # 2.25 % of the frame
    truth = image.truth_of(np.zeros_like(heatmap))
    assert image.figures_of(heatmap, truth, 90, 0.01)["n_predicted"] == 1
    assert image.figures_of(heatmap, truth, 90, 0.03)["n_predicted"] == 0
    assert [one.status for one in image.compare(heatmap, truth, 90, 0.03).predicted] == ["small"]


def test_the_threshold_comes_from_the_evaluation(run, tmp_path):
    assert run.threshold == 90
    (tmp_path / "evaluation.json").write_text(json.dumps({"threshold": 120, "min_area_ratio": 0.02}))
    assert chosen_setting(tmp_path) == Setting(120, 0.02)
    (tmp_path / "evaluation.json").write_text('{"split": "test"}')
    with pytest.raises(InputError, match="holds no threshold"):
        chosen_setting(tmp_path)


def test_what_cannot_be_opened_is_named(run, tmp_path):
    with pytest.raises(InputError, match="there is no run .*two; runs with predictions: .*one"):
        open_run(run.folder.parent / "two", "test")
    with pytest.raises(InputError, match="scores.parquet"):
        open_run(run.folder, "val")
    with pytest.raises(InputError, match="must lie in 1..254"):
        open_run(run.folder, "test", threshold=255)
    with pytest.raises(InputError, match="manifest.parquet"):
        open_run(run.folder, "test", data_path=tmp_path)


def test_held_out_images_have_the_labels_of_train(tmp_path):
    write_split(tmp_path / "data/train")
    cases = {id: CASES[id] for id in ("missed", "false")}
    opened = open_run(write_run(tmp_path / "run", tmp_path / "data", cases, split="held_out"), "held_out")
    assert opened.labels.path.name == "train"
    assert opened.labelled_ids == ["missed", "false"]
    assert isinstance(opened.predictions, PredictionStore)
