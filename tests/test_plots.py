"""Plots, galleries and tables: what they draw, on what they draw it, and what they show when there is nothing."""

import itertools
from types import SimpleNamespace

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from lib import plots
from lib.errors import InputError
from lib.evaluate.groups import score_calibration
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.regions import compare_image
from lib.plots import page, rendering
from lib.plots.style import STATUS_COLOURS, short_names
from lib.stores import LabelStore


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


def test_scores_are_drawn_as_mos(ax):
    scores = pd.DataFrame({"predicted": [0.0, 0.5, 1.0, 0.75], "true": [0.25, 0.5, np.nan, 0.5]})
    offsets = plots.score_scatter(ax, {"full": scores}).collections[0].get_offsets()
    assert offsets[:, 1].tolist() == [1, 3, 4]
    assert offsets[:, 0].tolist() == pytest.approx([2, 3, 3], abs=0.06)
    assert [list(values) for values in ax.lines[0].get_data()] == [[2, 3], [1, 3.5]]  # means


def test_distributions_are_shares_of_their_own_sample(ax):
    edges = np.array([0.5, 1.5, 2.5, 3.5])
    plots.distribution(ax, {"train": [1, 2, 2, 9], "test": [3, np.nan], "none": []}, edges, "Scores", "MOS")
    outlines = {patch.get_label(): patch.get_xy() for patch in ax.patches if patch.get_label()}
    assert set(outlines) == {"train (4, median 2)", "test (1, median 3)"}
    tops = outlines["train (4, median 2)"][:, 1]
    assert tops.max() == pytest.approx(0.5) and tops[-2] == pytest.approx(0.25)  # beyond the edges: the last bin
    assert ax.get_xscale() == "linear"
    assert plots.distribution(plt.subplots()[1], {"a": [1]}, np.geomspace(1, 8, 4), "", "").get_xscale() == "log"


def test_charts_say_when_there_is_nothing():
    no_scores = pd.DataFrame({"predicted": [0.1], "true": [np.nan]})
    no_mos = score_calibration(pd.DataFrame(columns=["predicted_mos", "true_mos"]))
    nothing = {
        "nothing was logged yet": lambda ax: plots.learning_curve(ax, []),
        "there is nothing to count": lambda ax: plots.distribution(ax, {"train": [np.nan]}, np.arange(3), "", ""),
        "no image has a score": lambda ax: plots.score_scatter(ax, {"full": no_scores}),
        "too few images have a score": lambda ax: plots.calibration(ax, no_mos),
        "no group is large enough to show": lambda ax: plots.rate_bars(ax, pd.DataFrame()),
    }
    assert {says: texts(chart(plt.subplots()[1])) for says, chart in nothing.items()} == {s: [s] for s in nothing}


def test_regions_are_marked_in_the_colours_of_their_status():
    label, prediction = np.zeros((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
    label[10:40, 10:40], prediction[10:40, 10:40] = 1, 1  # hit
    label[80:110, 10:40] = 1  # missed
    prediction[80:110, 80:110] = 1  # false
    marked = rendering.mark_regions(np.full((128, 128, 3), 255, np.uint8), *compare_image(prediction, label, 0)[1:])
    colours = {name: 255 * np.array(to_rgb(STATUS_COLOURS[name])) for name in ("hit", "missed", "false")}
    assert marked[95, 25] == pytest.approx((255 + colours["missed"]) / 2, abs=2)  # a tint
    assert marked[25, 25] == pytest.approx((255 + colours["hit"]) / 2, abs=2)
    assert (np.abs(marked[80:110, 80:110].reshape(-1, 3) - colours["false"]).sum(axis=1) < 6).any()  # a line
    assert (marked[95, 95] == 255).all()  # within the line the image stays


def test_cases_show_images_labels_and_each_run_with_scores_and_prompt(run):
    ids = run.labels.ids[:2]
    fig = plots.cases(run, ids, "Two")
    assert (fig.get_suptitle(), len(fig.axes)) == ("Two", 2)
    assert texts(fig.axes[0]) == ["image", "label", "prediction", "regions"]
    mos, prompt = run.labels.table.loc[ids[0], ["mos", "prompt"]]
    first, *rest = fig.axes[0].get_title(loc="left").splitlines()
    assert first == f"{ids[0]}: MOS {mos:.2f}, predicted {mos:.2f}" and prompt.startswith(rest[0])
    two = plots.cases([run, SimpleNamespace(**{**vars(run), "name": "demo_lora"})], ids[:1])
    assert (
        texts(two.axes[0]) == ["image", "label", "full", "lora"]
        and two.axes[0].get_title(loc="left").count("predicted") == 2
    )
    assert texts(plots.cases(run, [], "Worst").axes[0]) == ["Worst: there is none"]
    long = [f"sweep_demo_lora_rank{rank}_lr0.001_score_loss-mse-plcc-srcc" for rank in range(20)]
    assert short_names(long)[long[2]] == "rank2_lr0.001_score_loss-mse-\nplcc-srcc"


def test_nothing_of_a_long_gallery_lies_outside_of_it():
    sizes = [(340, 200), (170, 340), (340, 340), (150, 340), (120, 340), (340, 250), (130, 340), (160, 340)]
    tiles = [[np.zeros((*size, 3), np.uint8)] * 4 for size in sizes]
    fig = plots.gallery(tiles, ["an id\na prompt for $5"] * 8, "Worst", ("image", "a\nb"), columns=1, regions=True)
    fig.canvas.draw()
    renderer, frame, found = fig.canvas.get_renderer(), fig.bbox, fig.axes
    drawn = [*fig.legends, fig._suptitle, *[ax._left_title for ax in found], *found[0].texts, *found]
    for box in (artist.get_window_extent(renderer) for artist in drawn):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert found[0].texts[1].get_window_extent(renderer).y0 >= found[1]._left_title.get_window_extent(renderer).y1
    for ax, after in itertools.pairwise(found):
        assert ax.bbox.y0 >= after._left_title.get_window_extent(renderer).y1
    heat, regions = (one.get_window_extent(renderer) for one in fig.legends)
    assert found[-1].bbox.y0 >= heat.y1 and heat.y0 >= regions.y1


def test_figures_table_marks_the_best_and_shows_intervals():
    intervals = {"f1_score": (0.4, 0.6), "srcc": (-0.3, -0.1)}
    model = {"f1_score": 0.5, "rmse_mos": 0.4, "srcc": -0.2, "intervals": intervals}
    styler = plots.figures_table({"model": model, "trivial": {"f1_score": 0.25, "rmse_mos": 0.9, "srcc": None}})
    assert list(styler.data.columns) == ["F1", "SRCC", "RMSE (MOS)"]
    assert styler.data.loc["model"].tolist() == ["0.500 (0.40 to 0.60)", "-0.200 (-0.30 to -0.10)", "0.400"]
    assert styler.data.loc["trivial"].tolist() == ["0.250", "-", "0.900"]
    best = styler.to_html().split("font-weight: bold")[0].rsplit("</style>")[-1].rsplit("\n", 2)[-2]  # one rule for all
    assert "row0_col0" in best and "row0_col2" in best and "row1" not in best  # the highest F1, the lowest RMSE


def test_tables_and_sentences_escape_what_came_from_outside(shown):
    html = plots.table(pd.DataFrame({"id": ["<b>x"], "rows": [12345], "share": [0.123456]})).to_html()
    assert all(text in html for text in ("&lt;b&gt;x", "12,345", "0.123<"))
    plots.say("still_life costs 5*$3 <b>", "one\ntwo")
    assert shown[0].data == "still\\_life costs 5\\*\\$3 \\<b>\n\n- one\n- two"


def test_figures_and_tables_are_saved_for_a_paper(tmp_path, shown, ax):
    formats = ["pdf", "svg", "png", "csv", "tex"]
    ax.plot([0, 1])
    plots.show(ax.figure, tmp_path / "deep" / "line", formats)
    assert shown[0].data[1:4] == b"PNG" and not plt.fignum_exists(ax.figure.number)
    starts = {path.suffix: path.read_bytes()[:4] for path in (tmp_path / "deep").iterdir()}
    assert starts == {".pdf": b"%PDF", ".svg": b"<?xm", ".png": b"\x89PNG"}
    frame = pd.DataFrame({"run": ["a_b & c"], "share": [0.123456], "n": [1234]})
    plots.save(plots.table(frame, "50% of it"), tmp_path / "table", formats)
    figures = plots.figures_table({"full": {"f1_score": 0.5, "intervals": {"f1_score": (0.4, 0.6)}}})
    plots.save(figures, tmp_path / "f", ["tex"])
    assert (tmp_path / "table.csv").read_text() == "run,share,n\na_b & c,0.123456,1234\n"
    latex = (tmp_path / "table.tex").read_text()
    assert r"a\_b \& c & 0.123 & 1234 \\" in latex and r"\caption{50\% of it}" in latex and r"\toprule" in latex
    assert r"full & 0.500 (0.40 to 0.60) \\" in (tmp_path / "f.tex").read_text()
    with pytest.raises(InputError, match="eps: unknown format; use png, pdf, svg, csv, tex"):
        plots.save(ax.figure, tmp_path / "x", ["eps"])
