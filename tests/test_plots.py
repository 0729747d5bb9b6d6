"""Plots, galleries and tables: what they draw, on what they draw it, and what they show when there is nothing."""

import io
import itertools
from types import SimpleNamespace

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from lib import plots
from lib.evaluate.groups import score_calibration
from lib.metrics import Heatmaps
from lib.metrics.matching import classify_regions
from lib.plots import galleries, page, rendering
from lib.plots.style import STATUS_COLOURS, heat_colours
from lib.stores import LabelStore

CURVE = pd.DataFrame({
    "threshold": [0, 100, 200], "n_predicted": [10, 6, 2], "precision": [0.3, 0.5, 1.0], "recall": [1.0, 0.8, 0.4],
    "f1_score": [0.46, 0.62, 0.57], "giou": [0.3, 0.5, 0.4], "final_score": [0.4, 0.6, 0.5],
    "predicted_pixels": [100, 40, 10], "intersection": [50, 30, 9],
})  # fmt: skip
GROUPS = pd.DataFrame({"group": ["top left", "bottom right"], "n": [10, 1200], "rate": [0.5, 0.1], "low": [0.2, 0.05],
                       "high": [0.8, 0.2]})  # fmt: skip


@pytest.fixture(autouse=True)
def style():
    matplotlib.use("agg")
    with matplotlib.rc_context():  # or the tests after these see figures in another style
        plots.use_style()
        yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


@pytest.fixture
def shown(monkeypatch) -> list:
    found = []
    monkeypatch.setattr(page, "display", found.append)
    return found


@pytest.fixture(scope="module")
def run(prepared):
    """The labels themselves, at a smaller size, as predictions."""
    labels = LabelStore(prepared / "test")
    maps = {id: cv2.resize(labels.heatmap(id), (32, 32), interpolation=cv2.INTER_AREA) for id in labels.ids}
    predictions = Heatmaps(maps, labels.table["score"].to_dict())
    return SimpleNamespace(name="demo_full", labels=labels, predictions=predictions, threshold=40, min_area=0.0006)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def tiles(fig: Figure) -> list:
    return [ax for ax in fig.axes if ax.images]


def rendered(fig: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=40)
    return np.asarray(Image.open(buffer).convert("RGB"))


# Charts


def test_legends_of_curves_that_fill_their_panel_lie_below_it():
    rows = [{"step": 10 * k, "val_final_score": 0.8 + k / 100, "val_srcc": 0.81, "stage": "main"} for k in range(4)]
    fig, axes = plots.figure(1, 3, height=3.4)
    plots.learning_curve(axes[0], rows, values=("val_final_score", "val_srcc"))
    plots.threshold_curve(axes[1], CURVE, chosen=100)
    plots.iou_curve(axes[2], CURVE.assign(iou_threshold=[0, 0.1, 0.5], low=0.3, high=0.7), 0.1)
    fig.canvas.draw()
    for ax in axes:
        box = ax.get_legend().get_window_extent()
        assert fig.bbox.y0 <= box.y0 and box.y1 < ax.xaxis.label.get_window_extent().y0


def test_learning_curve_draws_what_was_logged_and_marks_stages(ax):
    assert texts(plots.learning_curve(plt.subplots()[1], [])) == ["nothing was logged yet"]
    rows = [
        {"step": 1, "stage": "warmup", "loss": 2.0, "mask_loss": 1.0},
        {"step": 2, "stage": "warmup", "loss": 1.5, "mask_loss": 0.9},
        {"step": 2, "stage": "warmup", "val_f1_score": 0.1},
        {"step": 3, "stage": "main", "loss": 1.0, "mask_loss": 0.5},
    ]
    assert plots.learning_curve(ax, rows) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss", "mask loss"]
    assert [list(values) for values in ax.lines[0].get_data()] == [[1, 2, 3], [2.0, 1.5, 1.0]]
    assert ax.lines[-1].get_xdata()[0] == 2  # where the warm-up ended
    assert texts(ax) == ["main"]


def test_threshold_curve_and_what_it_trades(ax):
    plots.threshold_curve(ax, CURVE, chosen=100, names=("f1_score", "recall"))
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[0.46, 0.62, 0.57], [1.0, 0.8, 0.4]]
    assert ax.lines[2].get_xdata()[0] == 100
    other = plots.precision_recall(plt.subplots()[1], CURVE, chosen=100)
    assert list(other.lines[0].get_xdata()) == [1.0, 0.8, 0.4]
    assert list(other.lines[1].get_data()[0]) == [0.8]
    assert {"0", "100", "200", "F1 0.8"} <= set(texts(other))
    recall, precision = (np.asarray(values) for values in other.lines[2].get_data())  # the line of F1 = 0.2
    inside = precision < 1
    assert (2 * precision * recall / (precision + recall))[inside] == pytest.approx(0.2)


def test_scores_are_drawn_as_mos(ax):
    scores = pd.DataFrame({"predicted": [0.0, 0.5, 1.0], "true": [0.25, 0.5, np.nan]})
    offsets = plots.score_scatter(ax, scores).collections[0].get_offsets()
    assert offsets[:, 1].tolist() == [1, 3]
    assert offsets[:, 0].tolist() == pytest.approx([2, 3], abs=0.06)
    errors = plots.residuals(plt.subplots()[1], scores)
    assert sum(patch.get_height() for patch in errors.patches) == 2
    assert errors.get_legend().get_texts()[0].get_text() == "mean -0.50"


def test_rate_bars_show_rate_interval_and_count(ax):
    groups = GROUPS.copy()
    groups.attrs["overall"] = 0.3
    assert plots.rate_bars(ax, groups, title="By place") is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["top left  (n = 10)", "bottom right  (n = 1,200)"]
    whiskers = ax.containers[0].lines[2][0].get_segments()
    assert [tuple(part[:, 0]) for part in whiskers] == [pytest.approx((0.2, 0.8)), pytest.approx((0.05, 0.2))]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first group stands on top
    assert ax.lines[-1].get_xdata()[0] == 0.3


def test_rate_panels_keep_the_order_of_the_first_panel():
    other = GROUPS.iloc[::-1].reset_index(drop=True)
    other.attrs["kind"] = "mean"
    fig = plots.rate_panels({"Miss rate": GROUPS, "Error (MOS)": other}, "By place")
    fig.canvas.draw()
    left, right = ([label.get_text() for label in ax.get_yticklabels()] for ax in fig.axes)
    assert left == right and fig.get_suptitle() == "By place"
    ends = [[ax.get_xticklabels()[k].get_text()[-1] for ax in fig.axes] for k in (0, -1)]
    assert [end[0] for end in ends] == ["%", "%"] and "%" not in [end[1] for end in ends]


def test_position_map_writes_each_cell(ax):
    plots.position_map(ax, GROUPS)
    rates = np.asarray(ax.images[0].get_array().filled(np.nan), float)
    assert (rates[0, 0], rates[2, 2]) == (0.5, 0.1)
    assert np.isnan(rates).sum() == 7
    assert (texts(ax)[0], texts(ax)[4]) == ("50%\n(20%-80%)\nn = 10", "too few")


def test_charts_of_splits_count_shares():
    ax = plots.score_histogram(plt.subplots()[1], {"train": [1, 2, 2, 5], "test": [3, np.nan]})
    outlines = {patch.get_label(): patch.get_xy() for patch in ax.patches if patch.get_label()}
    assert set(outlines) == {"train (4)", "test (1)"}
    assert outlines["train (4)"][outlines["train (4)"][:, 1].argmax()] == pytest.approx((2 - 1 / 6, 0.5))
    ax = plots.agreement(plt.subplots()[1], [0.25, 0.75, np.nan, 0.5, 1.0])
    assert [list(values) for values in ax.lines[0].get_data()] == [[0.25, 0.5, 0.75, 1.0]] * 2
    assert "median 0.62" in ax.get_legend().get_texts()[0].get_text()
    ax = plots.region_sizes(plt.subplots()[1], {"train": np.array([0.001, 0.01, 0.01, 0.1, 0.0])})
    assert ax.get_xscale() == "log" and ax.patches[0].get_xy()[:, 1].max() == pytest.approx(0.5)
    assert "4, median 1.0%" in ax.get_legend().get_texts()[0].get_text()
    table = pd.DataFrame({"mos": [1.0, 1.33, 5.0, np.nan], "distorted": [0.4, 0.6, 0.0, 0.9]})
    ax = plots.damage_by_score(plt.subplots()[1], {"train": table})
    assert [list(values) for values in ax.containers[0].lines[0].get_data()] == [[1, 5], [0.5, 0]]
    assert plots.mean_heatmap(ax, np.full((4, 4), 30.0), most=60.0).images[0].get_clim() == (0, 60)


NO_SCORES = pd.DataFrame({"predicted": [0.1], "true": [np.nan]})
NO_MOS = pd.DataFrame(columns=["predicted_mos", "true_mos"])


@pytest.mark.parametrize(
    ("chart", "data", "says"),
    [
        (plots.score_histogram, {"train": [np.nan]}, "no image has a score"),
        (plots.agreement, {"train": [np.nan]}, "no image has two annotators"),
        (plots.region_sizes, {"train": [np.nan]}, "no region was drawn"),
        (plots.aspect_ratios, {"train": [np.nan]}, "no image"),
        (plots.mean_heatmap, None, "no image has a label"),
        (plots.score_scatter, NO_SCORES, "no image has a score"),
        (plots.residuals, NO_SCORES, "no image has a score"),
        (plots.calibration, score_calibration(NO_MOS), "too few images have a score"),
        (plots.rate_bars, GROUPS.iloc[:0], "no group is large enough to show"),
    ],
)
def test_charts_say_when_there_is_nothing(chart, data, says, ax):
    assert texts(chart(ax, data)) == [says]


# Pictures


def test_overlay_leaves_sound_pixels_alone_and_has_one_scale(ax):
    image, heatmap = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.uint8)
    heatmap[:4], heatmap[4:6] = 255, 64
    blended = rendering.heat_overlay(image, heatmap, opacity=1.0)
    assert (blended[6:] == 100).all()
    for row, value in ((0, 255), (5, 64)):
        assert blended[row, 0] == pytest.approx(255 * np.array(heat_colours()(value)[:3]), abs=1)
    assert plots.heatmap_overlay(ax, np.zeros((20, 30, 3), np.uint8), heatmap, title="one") is ax
    assert ax.images[0].get_array().shape == (20, 30, 3) and ax.get_title(loc="left") == "one"


def test_regions_are_marked_in_the_colours_of_their_status():
    label, prediction = np.zeros((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
    label[10:40, 10:40], prediction[10:40, 10:40] = 1, 1  # hit
    label[80:110, 10:40] = 1  # missed
    prediction[80:110, 80:110] = 1  # false
    marked = galleries.mark_regions(np.full((128, 128, 3), 255, np.uint8), *classify_regions(prediction, label))
    colours = {name: 255 * np.array(to_rgb(STATUS_COLOURS[name])) for name in ("hit", "missed", "false")}
    assert marked[95, 25] == pytest.approx((255 + colours["missed"]) / 2, abs=2)  # a tint
    assert marked[25, 25] == pytest.approx((255 + colours["hit"]) / 2, abs=2)
    assert (np.abs(marked[80:110, 80:110].reshape(-1, 3) - colours["false"]).sum(axis=1) < 6).any()  # a line
    assert (marked[95, 95] == 255).all()  # within the line the image stays


def test_contact_sheet_has_a_tile_an_image_with_its_scores_and_prompt(run):
    ids = run.labels.ids[:3]
    fig = plots.contact_sheet(run.labels, ids, run.predictions, title="Three")
    found = tiles(fig)
    assert len(found) == 3 and fig.get_suptitle() == "Three"
    assert found[0].images[0].get_array().shape[1] == 3 * galleries.SIDE + 2 * galleries.GAP
    mos, prompt = run.labels.table.loc[ids[0], ["mos", "prompt"]]
    first, *rest = found[0].get_title(loc="left").splitlines()
    assert first == f"{ids[0]}: MOS {mos:.2f}, predicted {mos:.2f}"
    assert prompt.startswith(rest[0])
    assert rendered(fig).std() > 10


def test_cases_show_four_panels_with_their_captions(run):
    about = {id: f"about a$x_$b {id}" for id in run.labels.ids[:2]}  # dollar signs would begin a formula
    fig = plots.cases(run, run.labels.ids[:2], "Worst", about)
    rendered(fig)
    assert [ax.get_title(loc="left").splitlines()[0].replace("\\$", "$") for ax in tiles(fig)] == list(about.values())
    assert texts(tiles(fig)[0]) == ["image", "label", "prediction", "regions"]
    assert len(fig.legends) == 1
    assert texts(plots.cases(run, [], "Worst").axes[0]) == ["Worst: there is none"]
    two = plots.cases([run, SimpleNamespace(**{**vars(run), "name": "demo_lora"})], run.labels.ids[:1])
    assert texts(tiles(two)[0]) == ["image", "label", "full", "lora"]
    assert tiles(two)[0].get_title(loc="left").splitlines()[0].count("predicted") == 2


def test_an_image_without_a_label_has_regions_that_are_not_judged(tmp_path, run, monkeypatch):
    labels = LabelStore(run.labels.path)
    labels.__dict__["table"] = labels.table.assign(labelled=False, score=np.nan)
    marked = []
    monkeypatch.setattr(galleries, "mark_regions", lambda image, *regions: marked.extend(regions) or image)
    fig = plots.cases(SimpleNamespace(**{**vars(run), "labels": labels}), labels.ids[:4])
    assert {one.status for one in itertools.chain(*marked)} <= {"unjudged", "small"} and any(marked)
    assert "no score" in tiles(fig)[0].get_title(loc="left")


def test_crops_say_what_they_show_and_stay_inside_the_image(run):
    box = {"x0": 0.9, "x1": 1.0, "y0": 0.0, "y1": 0.05, "place": "top right", "area": 0.005}
    row = {"id": run.labels.ids[0], "side": "true", "votes": 1, "heat": 30.0, "response": 41, **box}
    fig = plots.region_crops(run, pd.DataFrame([row, row | {"side": "predicted"}]), "Missed")
    captions = [ax.get_title(loc="left").splitlines()[1] for ax in tiles(fig)]
    marked = "top right, marked by one annotator, predicted at most 41"
    assert captions == [marked, "top right, predicted at 30 of 255"]
    left, top, right, bottom = galleries._crop_box(pd.Series(box), (300, 400, 3))
    assert 0 <= left < right == 400 and 0 <= top < bottom <= 300
    assert right - left == bottom - top >= 0.35 * 300


def test_nothing_of_a_long_sheet_lies_outside_of_it():
    sizes = [(340, 200), (170, 340), (340, 340), (150, 340), (120, 340), (340, 250), (130, 340), (160, 340)]
    pictures = [galleries._join([np.zeros((*size, 3), np.uint8)] * 4) for size in sizes]
    names = ("image", "a name of\ntwo lines")
    fig = galleries._sheet(pictures, ["an id\na prompt"] * 8, 1, "Worst", names, with_regions=True)
    fig.canvas.draw()
    renderer, frame = fig.canvas.get_renderer(), fig.bbox
    *found, scale = fig.axes
    drawn = [fig.legends[0], fig._suptitle, scale.xaxis.label, *[ax.title for ax in found], *found[0].texts]
    for box in (artist.get_window_extent(renderer) for artist in [*drawn, *found]):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert found[0].texts[1].get_window_extent(renderer).y0 >= found[1].title.get_window_extent(renderer).y1
    for ax, after in itertools.pairwise(found):
        assert ax.bbox.y0 >= after.title.get_window_extent(renderer).y1
    assert 0 < found[-1].bbox.y0 - scale.bbox.y1 < 0.5 * fig.dpi  # no gap before the scale


def test_a_lost_image_is_a_tile_that_says_so(tmp_path, run):
    (tmp_path / "heatmaps").mkdir()
    id = run.labels.ids[0]
    table = run.labels.table.head(1).assign(image="nowhere/x.jpg", prompt="costs $5 or $6")
    table.reset_index().to_parquet(tmp_path / "manifest.parquet")
    (tmp_path / "heatmaps" / f"{id}.png").write_bytes(run.labels.heatmap_path(id).read_bytes())
    fig = plots.contact_sheet(LabelStore(tmp_path), [id])
    tile = np.asarray(fig.axes[0].images[0].get_array())
    assert 200 < np.median(tile) < 256
    assert (tile < 120).any()  # letters
    assert r"\$5 or \$6" in fig.axes[0].get_title(loc="left")  # or it would be set as a formula
    rendered(fig)


def test_training_examples_undo_the_normalisation(experiment):
    from lib.data.dataset import training_data

    fig = plots.training_examples(training_data(experiment(colour_jitter=0.0, grey=0.0)), n=3)
    found = [np.asarray(ax.images[0].get_array()) for ax in tiles(fig)]
    assert len(found) == 3
    assert all(tile.dtype == np.uint8 and 40 < tile[:, : galleries.SIDE].mean() < 230 for tile in found)


# What a page shows


def test_figures_table_marks_the_best_and_shows_intervals():
    model = {"f1_score": 0.5, "rmse_mos": 0.4, "intervals": {"f1_score": (0.4, 0.6), "srcc": (0.1, 0.2)}}
    rows = {"model": model, "trivial": {"f1_score": 0.25, "rmse_mos": 0.9, "srcc": None, "intervals": None}}
    styler = plots.figures_table(rows, "Figures")
    assert list(styler.data.columns) == ["F1", "SRCC", "RMSE (MOS)"]
    assert styler.data.loc["model"].tolist() == ["0.500<br><small>0.40–0.60</small>", "-", "0.400"]
    assert styler.data.loc["trivial"].tolist() == ["0.250", "-", "0.900"]
    negative = {"model": {"srcc": -0.2, "intervals": {"srcc": (-0.3, -0.1)}}}
    assert plots.figures_table(negative).data.loc["model", "SRCC"] == "-0.200<br><small>−0.30–−0.10</small>"
    html = styler.to_html()
    best = html.split("font-weight: bold")[0].rsplit("</style>")[-1].rsplit("\n", 2)[-2]  # one rule for all cells
    assert "row0_col0" in best and "row0_col2" in best  # the highest F1, the lowest RMSE
    assert "row1" not in best and html.count("font-weight: bold") == 1


def test_table_escapes_what_came_from_outside():
    html = plots.table(pd.DataFrame({"id": ["<b>x"], "rows": [12345], "share": [0.123456]})).to_html()
    assert all(text in html for text in ("&lt;b&gt;x", "12,345", "0.123<"))


def test_say_escapes_markdown_and_makes_lists(shown):
    plots.say("still_life costs 5*$3 <b>", "one\ntwo")
    assert shown[0].data == "still\\_life costs 5\\*\\$3 \\<b>\n\n- one\n- two"


def test_show_saves_what_it_shows_and_a_large_picture_is_a_jpeg_on_the_page(tmp_path, shown, ax):
    ax.plot([0, 1])
    plots.show(ax.figure, tmp_path / "deep", "line.png")
    assert shown[0].data == (tmp_path / "deep" / "line.png").read_bytes()
    assert not plt.fignum_exists(ax.figure.number)
    fig, ax = plt.subplots()
    ax.imshow(np.random.default_rng(0).random((300, 400, 3)))
    plots.show(fig, tmp_path, "noise.png")
    assert shown[1].data[:2] == b"\xff\xd8"
    assert (tmp_path / "noise.png").read_bytes()[1:4] == b"PNG"
