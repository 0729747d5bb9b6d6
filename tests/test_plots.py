"""Charts, pictures and tables: what they draw, on what they draw it, and what they say when there is nothing."""

import io
import itertools
from types import SimpleNamespace

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from lib import plots
from lib.errors import InputError
from lib.evaluate import groups
from lib.metrics import Heatmaps
from lib.metrics.matching import classify_regions
from lib.plots import galleries, page, rendering, tables
from lib.plots.style import STATUS_COLOURS, heat_colours
from lib.reports import data as data_report
from lib.reports import findings
from lib.stores import LabelStore
from lib.workspace import ProgressLines, enter

CURVE = pd.DataFrame({
    "threshold": [0, 100, 200], "n_predicted": [10, 6, 2], "precision": [0.3, 0.5, 1.0], "recall": [1.0, 0.8, 0.4],
    "f1_score": [0.46, 0.62, 0.57], "giou": [0.3, 0.5, 0.4], "final_score": [0.4, 0.6, 0.5],
    "predicted_pixels": [100, 40, 10], "intersection": [50, 30, 9],
})  # fmt: skip


@pytest.fixture(autouse=True)
def style():
    matplotlib.use("agg")
    with matplotlib.rc_context():  # or the tests after these see figures in another style
        plots.use_style()
        yield
    matplotlib.pyplot.close("all")


@pytest.fixture
def ax():
    return matplotlib.pyplot.subplots()[1]


@pytest.fixture(scope="module")
def labels(prepared):
    return LabelStore(prepared / "test")


@pytest.fixture(scope="module")
def predictions(labels):
    """The labels themselves, at a smaller size, as predictions."""
    maps = {id: cv2.resize(labels.heatmap(id), (32, 32), interpolation=cv2.INTER_AREA) for id in labels.ids}
    return Heatmaps(maps, labels.table["score"].to_dict())


def said(ax) -> str:
    return " ".join(text.get_text() for text in ax.texts)


def rendered(fig: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


# Charts


def test_legends_of_curves_that_fill_their_panel_lie_below_it():
    rows = [{"step": 10 * k, "val_final_score": 0.8 + k / 100, "val_srcc": 0.81, "stage": "main"} for k in range(4)]
    fig, axes = plots.figure(1, 3, height=3.4)
    plots.learning_curve(axes[0], rows, values=("val_final_score", "val_srcc"))
    plots.threshold_curve(axes[1], CURVE, chosen=100)
    plots.iou_curve(axes[2], CURVE.assign(iou_threshold=[0, 0.1, 0.5], low=0.3, high=0.7), 0.1)
    rendered(fig)
    for ax in axes:
        box = ax.get_legend().get_window_extent()
        assert fig.bbox.y0 <= box.y0 and box.y1 < ax.xaxis.label.get_window_extent().y0


def test_score_histogram_gives_every_third_a_bar_and_every_split_its_own_share(ax):
    drawn = plots.score_histogram(ax, {"train": [1, 2, 2, 5], "test": [3, np.nan]})
    assert drawn is ax
    heights = {patch.get_label(): patch.get_xy() for patch in ax.patches if patch.get_label()}
    assert set(heights) == {"train (4)", "test (1)"}
    assert heights["train (4)"][:, 1].max() == pytest.approx(0.5)  # two of four images at MOS 2
    assert heights["test (1)"][:, 1].max() == 1
    peak = heights["train (4)"][heights["train (4)"][:, 1].argmax(), 0]
    assert peak == pytest.approx(2 - 1 / 6)


@pytest.mark.parametrize("chart", [plots.score_histogram, plots.agreement, plots.region_sizes, plots.aspect_ratios])
def test_charts_of_data_say_when_there_is_nothing(chart, ax):
    assert chart(ax, {"train": [np.nan]}) is ax
    assert said(ax).startswith("no ")


def test_agreement_is_cumulative(ax):
    plots.agreement(ax, [0.25, 0.75, np.nan, 0.5, 1.0])
    x, y = ax.lines[0].get_data()
    assert list(x) == [0.25, 0.5, 0.75, 1.0]
    assert list(y) == [0.25, 0.5, 0.75, 1.0]
    assert "median 0.62" in ax.get_legend().get_texts()[0].get_text()


def test_region_sizes_count_shares_on_a_logarithmic_axis(ax):
    plots.region_sizes(ax, {"train": np.array([0.001, 0.01, 0.01, 0.1, 0.0])})
    assert ax.get_xscale() == "log"
    assert ax.patches[0].get_xy()[:, 1].max() == pytest.approx(0.5)
    assert "4, median 1.0%" in ax.get_legend().get_texts()[0].get_text()


def test_damage_by_score_draws_the_median_of_each_whole_mos(ax):
    table = pd.DataFrame({"mos": [1.0, 1.33, 5.0, np.nan], "distorted": [0.4, 0.6, 0.0, 0.9]})
    plots.damage_by_score(ax, {"train": table})
    x, y = ax.containers[0].lines[0].get_data()
    assert list(x) == [1, 5]
    assert list(y) == [0.5, 0]


def test_learning_curve_draws_what_was_logged_and_marks_stages(ax):
    rows = [
        {"step": 1, "stage": "warmup", "loss": 2.0, "mask_loss": 1.0},
        {"step": 2, "stage": "warmup", "loss": 1.5, "mask_loss": 0.9},
        {"step": 2, "stage": "warmup", "val_f1_score": 0.1},
        {"step": 3, "stage": "main", "loss": 1.0, "mask_loss": 0.5},
    ]
    assert plots.learning_curve(ax, rows) is ax
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["loss", "mask loss"]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
    assert list(ax.lines[0].get_ydata()) == [2.0, 1.5, 1.0]
    assert ax.lines[-1].get_xdata()[0] == 2  # where the warm-up ended
    assert said(ax) == "main"


def test_learning_curve_before_anything_was_logged(ax):
    assert said(plots.learning_curve(ax, [])) == "nothing was logged yet"
    assert ax.get_title(loc="left") == "Training"


def test_threshold_curve_and_what_it_trades(ax):
    plots.threshold_curve(ax, CURVE, chosen=100, names=("f1_score", "recall"))
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[0.46, 0.62, 0.57], [1.0, 0.8, 0.4]]
    assert ax.lines[2].get_xdata()[0] == 100
    other = matplotlib.pyplot.subplots()[1]
    plots.precision_recall(other, CURVE, chosen=100)
    assert list(other.lines[0].get_xdata()) == [1.0, 0.8, 0.4]
    assert list(other.lines[1].get_data()[0]) == [0.8]
    assert {"0", "100", "200", "F1 0.8"} <= {text.get_text() for text in other.texts}


def test_lines_of_equal_f1_are_right(ax):
    plots.precision_recall(ax, CURVE)
    line = ax.lines[2]  # the first of them is F1 = 0.2
    recall, precision = (np.asarray(values) for values in line.get_data())
    shown = precision < 1
    assert (2 * precision * recall / (precision + recall))[shown] == pytest.approx(0.2)


def test_scores_are_drawn_as_mos(ax):
    scores = pd.DataFrame({"predicted": [0.0, 0.5, 1.0], "true": [0.25, 0.5, np.nan]})
    plots.score_scatter(ax, scores)
    offsets = ax.collections[0].get_offsets()
    assert offsets[:, 1].tolist() == [1, 3]
    assert offsets[:, 0].tolist() == pytest.approx([2, 3], abs=0.06)
    other = matplotlib.pyplot.subplots()[1]
    plots.residuals(other, scores)
    assert sum(patch.get_height() for patch in other.patches) == 2
    assert other.get_legend().get_texts()[0].get_text() == "mean -0.50"


def test_score_charts_without_scores(ax):
    scores = pd.DataFrame({"predicted": [0.1], "true": [np.nan]})
    for chart in (plots.score_scatter, plots.residuals):
        assert said(chart(matplotlib.pyplot.subplots()[1], scores)) == "no image has a score"
    assert "too few" in said(
        plots.calibration(ax, groups.score_calibration(pd.DataFrame(columns=["predicted_mos", "true_mos"])))
    )


def test_rate_bars_show_rate_interval_and_count(ax):
    table = pd.DataFrame(
        {"group": ["small", "large"], "n": [10, 1200], "rate": [0.5, 0.1], "low": [0.2, 0.05], "high": [0.8, 0.2]}
    )
    table.attrs["overall"] = 0.3
    assert plots.rate_bars(ax, table, title="By size") is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["small  (n = 10)", "large  (n = 1,200)"]
    whiskers = ax.containers[0].lines[2][0].get_segments()
    assert [tuple(part[:, 0]) for part in whiskers] == [pytest.approx((0.2, 0.8)), pytest.approx((0.05, 0.2))]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first group stands on top
    assert ax.lines[-1].get_xdata()[0] == 0.3
    assert "no group" in said(plots.rate_bars(matplotlib.pyplot.subplots()[1], table.iloc[:0]))


def test_position_map_writes_each_cell(ax):
    table = pd.DataFrame(
        {
            "group": ["top left", "bottom right"],
            "n": [10, 20],
            "rate": [0.5, 0.1],
            "low": [0.2, 0.05],
            "high": [0.8, 0.2],
        }
    )
    plots.position_map(ax, table)
    rates = np.asarray(ax.images[0].get_array().filled(np.nan), float)
    assert (rates[0, 0], rates[2, 2]) == (0.5, 0.1)
    assert np.isnan(rates).sum() == 7
    assert ax.texts[0].get_text() == "50%\n(20%-80%)\nn = 10"
    assert ax.texts[4].get_text() == "too few"


def test_mean_heatmaps_share_a_scale_when_asked(ax):
    assert plots.mean_heatmap(ax, np.full((4, 4), 30.0), most=60.0) is ax
    assert ax.images[0].get_clim() == (0, 60)
    assert said(plots.mean_heatmap(matplotlib.pyplot.subplots()[1], None)) == "no image has a label"


# Pictures


def test_overlay_leaves_sound_pixels_alone_and_has_one_scale():
    image = np.full((8, 8, 3), 100, np.uint8)
    heatmap = np.zeros((8, 8), np.uint8)
    heatmap[:4], heatmap[4:6] = 255, 64
    blended = rendering.heat_overlay(image, heatmap, opacity=1.0)
    assert (blended[6:] == 100).all()
    for row, value in ((0, 255), (5, 64)):
        assert blended[row, 0] == pytest.approx(255 * np.array(heat_colours()(value)[:3]), abs=1)


def test_heatmap_overlay_takes_a_heatmap_of_another_size(ax):
    image = np.zeros((20, 30, 3), np.uint8)
    assert plots.heatmap_overlay(ax, image, np.full((4, 4), 255, np.uint8), title="one") is ax
    assert ax.images[0].get_array().shape == (20, 30, 3)
    assert np.asarray(ax.images[0].get_array()).max() > 100
    assert ax.get_title(loc="left") == "one"


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


def test_contact_sheet_has_a_tile_an_image_with_its_prompt(labels, predictions):
    fig = plots.contact_sheet(labels, labels.ids[:3], predictions, title="Three")
    tiles = [ax for ax in fig.axes if ax.images]
    assert len(tiles) == 3
    assert fig.get_suptitle() == "Three"
    assert tiles[0].images[0].get_array().shape[1] == 3 * galleries.SIDE + 2 * galleries.GAP
    captions = " ".join(ax.get_title(loc="left") for ax in tiles)
    assert labels.ids[2] in captions
    assert labels.table["prompt"].iloc[0].split()[-1] in captions
    assert "predicted" in captions
    assert rendered(fig).std() > 10


def test_nothing_of_a_long_sheet_lies_outside_of_it():
    sizes = [(340, 200), (170, 340), (340, 340), (150, 340), (120, 340), (340, 250), (130, 340), (160, 340)]
    tiles = [galleries._join([np.zeros((*size, 3), np.uint8)] * 4) for size in sizes]
    fig = galleries._sheet(tiles, ["an id\na prompt"] * 8, 1, "Worst", ("image", "label"), with_regions=True)
    rendered(fig)
    renderer, frame = fig.canvas.get_renderer(), fig.bbox
    *pictures, scale = fig.axes
    drawn = [fig.legends[0], fig._suptitle, scale.xaxis.label, *[ax.title for ax in pictures], *pictures[0].texts]
    for box in (artist.get_window_extent(renderer) for artist in [*drawn, *pictures]):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    for ax, after in itertools.pairwise(pictures):
        assert ax.bbox.y0 >= after.title.get_window_extent(renderer).y1
    assert 0 < pictures[-1].bbox.y0 - scale.bbox.y1 < 0.5 * fig.dpi  # no gap before the scale


def test_a_lost_image_is_a_tile_that_says_so(tmp_path, labels, prepared):
    (tmp_path / "heatmaps").mkdir()
    table = labels.table.head(1).assign(image="nowhere/x.jpg", prompt="costs $5 or $6")
    table.reset_index().to_parquet(tmp_path / "manifest.parquet")
    (tmp_path / "heatmaps" / f"{labels.ids[0]}.png").write_bytes(labels.heatmap_path(labels.ids[0]).read_bytes())
    fig = galleries.contact_sheet(LabelStore(tmp_path), labels.ids[:1])
    tile = np.asarray(fig.axes[0].images[0].get_array())
    assert 200 < np.median(tile) < 256
    assert (tile < 120).any()  # letters
    assert r"\$5 or \$6" in fig.axes[0].get_title(loc="left")  # or it would be set as a formula
    rendered(fig)


def test_cases_show_four_panels(labels, predictions):
    about = {id: f"about a$x_$b {id}" for id in labels.ids[:2]}  # dollar signs would begin a formula
    fig = galleries.cases(labels, predictions, labels.ids[:2], 40, "Worst", about)
    rendered(fig)
    tiles = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title(loc="left").splitlines()[0].replace("\\$", "$") for ax in tiles] == list(about.values())
    assert [text.get_text() for text in tiles[0].texts] == ["image", "label", "prediction", "regions"]
    assert len(fig.legends) == 1


def test_an_empty_gallery_says_so(labels, predictions):
    fig = galleries.cases(labels, predictions, [], 40, "Worst")
    assert "there is none" in said(fig.axes[0])


def test_crops_stay_inside_the_image():
    row = pd.Series({"x0": 0.9, "x1": 1.0, "y0": 0.0, "y1": 0.05})
    left, top, right, bottom = galleries._crop_box(row, (300, 400, 3))
    assert 0 <= left < right <= 400
    assert 0 <= top < bottom <= 300
    assert right - left == bottom - top >= 0.35 * 300
    assert right == 400


def test_training_examples_undo_the_normalisation(experiment):
    from lib.data.dataset import training_data

    fig = galleries.training_examples(training_data(experiment(colour_jitter=0.0, grey=0.0)), n=3)
    tiles = [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]
    assert len(tiles) == 3
    assert all(tile.dtype == np.uint8 and 40 < tile[:, : galleries.SIDE].mean() < 230 for tile in tiles)


# Tables and sentences


def test_figures_table_marks_the_best_and_shows_intervals():
    model = {"f1_score": 0.5, "rmse_mos": 0.4, "intervals": {"f1_score": (0.4, 0.6), "srcc": (0.1, 0.2)}}
    rows = {"model": model, "trivial": {"f1_score": 0.25, "rmse_mos": 0.9, "srcc": None, "intervals": None}}
    styler = tables.figures_table(rows, "Figures")
    shown = styler.data
    assert list(shown.columns) == ["F1", "SRCC", "RMSE (MOS)"]
    assert shown.loc["model", "F1"] == "0.500<br><small>0.40–0.60</small>"
    assert shown.loc["trivial"].tolist() == ["0.250", "-", "0.900"]
    assert shown.loc["model", "SRCC"] == "-"
    negative = {"model": {"srcc": -0.2, "intervals": {"srcc": (-0.3, -0.1)}}}
    assert tables.figures_table(negative).data.loc["model", "SRCC"] == "-0.200<br><small>−0.30–−0.10</small>"
    html = styler.to_html()
    assert html.count("font-weight: bold") == 1  # one rule, shared by the best cells
    best = html.split("font-weight: bold")[0].rsplit("</style>")[-1].rsplit("\n", 2)[-2]
    assert "row0_col0" in best  # the highest F1
    assert "row0_col2" in best  # the lowest RMSE
    assert "row1" not in best


def test_plain_table_escapes_what_came_from_outside():
    html = tables.plain_table(pd.DataFrame({"id": ["<b>x"], "rows": [12345], "share": [0.123456]})).to_html()
    assert "&lt;b&gt;x" in html
    assert "12,345" in html
    assert "0.123<" in html


def test_say_escapes_markdown_and_makes_lists(monkeypatch):
    shown = []
    monkeypatch.setattr(page, "display", shown.append)
    tables.say("still_life costs 5*$3 <b>", "one\ntwo")
    assert shown[0].data == "still\\_life costs 5\\*\\$3 \\<b>\n\n- one\n- two"


def test_show_saves_what_it_shows(tmp_path, monkeypatch, ax):
    shown = []
    monkeypatch.setattr(page, "display", shown.append)
    ax.plot([0, 1])
    tables.show(ax.figure, "A line.", tmp_path / "deep", "line.png")
    assert shown[0].data == (tmp_path / "deep" / "line.png").read_bytes()
    assert not matplotlib.pyplot.fignum_exists(ax.figure.number)
    tables.show(None, "No figure.")
    assert shown[-1].data == "No figure."


def test_a_large_picture_comes_to_the_page_as_jpeg(tmp_path, monkeypatch, ax):
    shown = []
    monkeypatch.setattr(page, "display", shown.append)
    ax.imshow(np.random.default_rng(0).random((300, 400, 3)))
    tables.show(ax.figure, "", tmp_path, "noise.png")
    assert shown[0].data[:2] == b"\xff\xd8"
    assert (tmp_path / "noise.png").read_bytes()[1:4] == b"PNG"


# Notebook 1


def test_counts_and_areas_of_prepared_splits(prepared):
    store = LabelStore(prepared / "train")
    row = data_report.counts({"train": store}).iloc[0]
    assert (row["images"], row["with heatmap"], row["with score"]) == (24, 24, 24)
    assert row["regions"] == len(pd.read_parquet(store.path / "regions.parquet"))
    areas = data_report.region_areas(store)
    assert len(areas) == row["regions"]
    assert ((areas > 0) & (areas <= 1)).all()


def scored(rng, n: int, fall: float) -> dict:
    mos = rng.uniform(1, 5, n)
    table = pd.DataFrame({"mos": mos, "distorted": np.clip(0.5 + rng.normal(0, 0.1, n) - fall * mos, 0, 1)})
    return {"train": SimpleNamespace(table=table)}


def test_scores_fall_with_the_marked_area_only_beyond_chance():
    falls = "the more area is marked, the lower the score"
    noise = [data_report.score_figure(scored(np.random.default_rng(seed), 60, 0))[1] for seed in range(15)]
    assert sum(falls in says for says in noise) <= 1
    assert "do not fall with the marked area beyond chance" in noise[0]
    assert falls in data_report.score_figure(scored(np.random.default_rng(0), 60, 0.05))[1]


def test_area_of_shapes():
    assert data_report._area(np.array([[1.0, 2], [4, 6]]), "rectangle") == 12
    assert data_report._area(np.array([[0.0, 0], [4, 0], [0, 3]]), "polygon") == 6


def test_problems_are_counted_with_what_became_of_them(tmp_path, labels):
    rows = [
        ("a", "region clipped", "x"),
        ("b", "region clipped", "y"),
        ("c", "image missing", "z"),
        ("", "region degenerate", "w"),
    ]
    (tmp_path / "train").mkdir()
    pd.DataFrame(rows, columns=["id", "problem", "detail"]).to_csv(tmp_path / "train" / "problems.csv", index=False)
    labels.table.head(1).reset_index().to_parquet(tmp_path / "train" / "manifest.parquet")
    stores = {"train": LabelStore(tmp_path / "train")}
    table = data_report.problems(stores)
    assert table[["problem", "rows", "effect"]].values.tolist() == [
        ["region clipped", 2, "used, see detail"],
        ["image missing", 1, "image not used"],
        ["region degenerate", 1, "region left out"],
    ]
    assert data_report.say_problems(table, stores).startswith("4 problems (1 x image not used")
    assert "No problem was found in train" in data_report.say_problems(table.iloc[:0], stores)


def test_absent_splits_are_named_but_an_absent_train_is_an_error(raw, tmp_path, monkeypatch):
    sentences = []
    monkeypatch.setattr(data_report, "say", sentences.append)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "val").symlink_to(raw / "val")
    stores = data_report.prepare_splits(tmp_path / "raw", tmp_path / "out", ["val", "test"], workers=1)
    assert list(stores) == ["val"]
    assert "has no test" in sentences[0]
    with pytest.raises(InputError, match="train"):
        data_report.prepare_splits(tmp_path / "raw", tmp_path / "out", ["train", "val"])
    with pytest.raises(InputError, match="holds none of test/, extra/"):
        data_report.prepare_splits(tmp_path / "raw", tmp_path / "out", ["test", "extra"])


def test_heatmaps_are_read_back_and_a_wrong_one_is_named(prepared, tmp_path, labels):
    assert data_report.check_heatmaps({"train": LabelStore(prepared / "train")}).startswith("24 heatmaps")
    (tmp_path / "heatmaps").mkdir()
    id = labels.ids[0]
    labels.table.head(1).reset_index().to_parquet(tmp_path / "manifest.parquet")
    cv2.imwrite(str(tmp_path / "heatmaps" / f"{id}.png"), np.full(labels.heatmap(id).shape, 13, np.uint8))
    with pytest.raises(InputError, match=id):
        data_report.check_heatmaps({"test": LabelStore(tmp_path)})


def test_a_split_without_labels_can_be_shown(tmp_path, labels):
    table = labels.table.assign(
        labelled=False, mos=np.nan, score=np.nan, agreement=np.nan, distorted=np.nan, n_regions=0
    )
    table = table.assign(image=[str(labels.image_path(id)) for id in labels.ids])
    table.drop(columns=["kinds", "domain", "layout", "parts", "severity"]).reset_index().to_parquet(
        tmp_path / "manifest.parquet"
    )
    pd.read_parquet(labels.path / "regions.parquet").head(0).to_parquet(tmp_path / "regions.parquet")
    stores = {"test": LabelStore(tmp_path)}
    for section in (data_report.score_figure, data_report.region_figure, data_report.place_figure):
        fig, says = section(stores)
        rendered(fig)
        assert says.startswith(("There are too few", "No "))
    assert data_report.attribute_figure(stores)[0] is None
    fig, says = data_report.sample_sheet(stores["test"], "test", n=2)
    assert says == "2 of 8 images of test."
    assert "no score" in fig.axes[0].get_title(loc="left")


# Workspace


def test_enter_finds_the_root_from_below_and_twice(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "params")
    assert enter() == enter() == tmp_path.resolve()
    assert (tmp_path / "pyproject.toml").samefile("pyproject.toml")


def test_enter_outside_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="make lab"):
        enter()


def test_progress_prints_few_lines(capsys):
    progress = ProgressLines("prepared", every=1000)
    for done in range(1, 101):
        progress("train", done, 100)
    assert capsys.readouterr().out.splitlines() == ["prepared train 100/100"]


def test_sentences_need_no_figure():
    table = pd.DataFrame(
        {
            "threshold": [50, 100],
            "f1_score": [0.5, 0.4],
            "hit_true": [8, 6],
            "n_predicted": [12, 7],
            "hit_predicted": [7, 5],
        }
    )
    text = findings.threshold(table, 100)
    assert "F1 is 0.400; the best on this split is 0.500 at 50." in text
    assert "Halving it to 50 changes +2 hits and +3 false alarms." in text
    assert "Raising" not in text  # no threshold above was measured
