"""Error tables against hand-computed values; groups, intervals and sentences that do not take noise for a finding."""

import itertools
import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate import analysis, groups, words
from lib.metrics import Heatmaps, score_table, sweep, threshold_curve
from lib.metrics.baseline import mean_label, trivial_predictions
from lib.metrics.setting import Setting
from lib.reports import errors as error_figures
from lib.reports import findings
from lib.stores import LabelStore, write_heatmap

matplotlib.use("agg")


def box(*corners, value=255) -> np.ndarray:
    """uint8 [512, 512], the metric's own grid, with one rectangle; x0, y0, x1, y1 in units of four pixels."""
    mask = np.zeros((512, 512), np.uint8)
    if corners:
        x0, y0, x1, y1 = np.array(corners) * 4
        mask[y0:y1, x0:x1] = value
    return mask


class Labels(Heatmaps):
    """Heatmaps in memory with a manifest."""

    def __init__(self, heatmaps, table):
        super().__init__(heatmaps)
        self.manifest = table

    @property
    def table(self):
        return self.manifest


@pytest.fixture
def pair():
    """Four images: perfect, elsewhere, both empty, and an unlabelled one that must not count."""
    labels = {"a": box(16, 16, 48, 48, value=127), "b": box(0, 0, 32, 32, value=64), "c": box(), "d": box()}
    predictions = {
        "a": box(16, 16, 48, 48, value=200),
        "b": box(96, 96, 128, 128, value=250),
        "c": box(),
        "d": box(0, 0, 9, 9),
    }
    table = pd.DataFrame({
        "image": "x.jpg", "prompt": ["a red cat", "a dog", "a red dog", "x"], "mos": [2.0, 3.0, np.nan, np.nan],
        "score": [0.25, 0.5, np.nan, np.nan], "labelled": [True, True, True, False], "n_annotators": [3, 3, 4, 0],
        "n_regions": [2, 1, 0, 0], "width": [100, 200, 100, 1], "height": [100, 100, 200, 1],
        "distorted": [0.06, 0.06, 0.0, np.nan], "agreement": [0.5, 0.0, 1.0, np.nan],
        "kinds": ["warped+melted", "warped", "", ""], "status": ["p", "q", "r", "s"],
    }, index=pd.Index(list("abcd"), name="id"))  # fmt: skip
    return Heatmaps(predictions, {"a": 0.5, "b": 0.5, "c": 1.0, "d": 0.0}), Labels(labels, table)


# Tables


def test_image_errors_by_hand(pair):
    images = analysis.image_errors(*pair, threshold=100)
    assert list(images.index) == ["a", "b", "c"]
    a, b, c = (images.loc[id] for id in "abc")
    assert (a["true_mos"], a["predicted_mos"], a["score_error"]) == (2, 3, 1)
    assert a["iou"] == pytest.approx(1)
    assert (a["hit"], a["missed"], a["false"], a["n_true"], a["n_predicted"]) == (1, 0, 0, 1, 1)
    assert a["true_area"] == a["predicted_area"] == 1 / 16
    assert (a["missed_area"], a["false_area"], a["peak"]) == (0, 0, 200)
    assert b["iou"] == pytest.approx(0, abs=1e-6)
    assert (b["hit"], b["missed"], b["false"]) == (0, 1, 1)
    assert (b["missed_area"], b["false_area"]) == (1 / 16, 1 / 16)
    assert c["iou"] == 1  # nothing on either side
    assert np.isnan(c["score_error"])
    assert images["aspect"].tolist() == [1, 2, 0.5]
    assert images["kinds"].tolist() == ["warped+melted", "warped", ""]


def test_region_errors_by_hand(pair):
    regions = analysis.region_errors(*pair, threshold=100).set_index(["id", "side"])
    assert len(regions) == 4
    true = regions.loc[("a", "true")]
    assert (true["status"], true["area"], true["votes"], true["response"], true["heat"]) == ("hit", 1 / 16, 2, 200, 200)
    assert true[["x", "y", "x0", "y0", "x1", "y1"]].tolist() == [0.25, 0.25, 0.125, 0.125, 0.375, 0.375]
    missed, false = regions.loc[("b", "true")], regions.loc[("b", "predicted")]
    assert (missed["status"], missed["votes"], missed["response"]) == ("missed", 1, 0)
    assert (false["status"], false["votes"], false["heat"]) == ("false", 0, 250)
    assert (false["x"], false["true_mos"]) == (0.875, 3)


def test_an_attribute_does_not_replace_a_column_of_ours(pair):
    images, regions = analysis.compare(*pair, threshold=100)
    assert set(regions["status"]) == {"hit", "missed", "false"}
    assert regions["status_attribute"].tolist()[0] == "p"
    assert images["status_attribute"].tolist() == ["p", "q", "r"]


def test_small_regions_do_not_count(pair):
    predictions, labels = pair
    labels.heatmaps["c"][0:13, 0:13] = 64  # its contour encloses 12 x 12: below the official 150
    assert analysis.image_errors(predictions, labels, 100).loc["c", "n_true"] == 0
    assert "c" not in set(analysis.region_errors(predictions, labels, 100)["id"])


def test_tables_agree_with_the_official_counts(prepared, monkeypatch):
    labels = LabelStore(prepared / "test")
    rng = np.random.default_rng(0)
    noisy = {id: np.roll(labels.heatmap(id), rng.integers(-20, 20), 1) for id in labels.ids}
    predictions = Heatmaps(noisy, dict.fromkeys(labels.ids, 0.5))
    images, regions = analysis.compare(predictions, labels, 30)
    counts = sweep(predictions, labels, [30]).set_index("id")
    for ours, theirs in (("n_true", "n_true"), ("n_predicted", "n_predicted"), ("hit", "hit_true"), ("iou", "iou")):
        assert images[ours].to_numpy() == pytest.approx(counts[theirs].to_numpy())
    assert (images["n_predicted"] - images["false"]).to_numpy() == pytest.approx(counts["hit_predicted"].to_numpy())
    assert len(regions) == counts[["n_true", "n_predicted"]].to_numpy().sum()
    parallel = analysis.compare(predictions, labels, 30, workers=2)
    monkeypatch.setattr(analysis, "pays_for", lambda masks: 1 if masks == 10 * len(labels.ids) else pytest.fail())
    analysis.compare(predictions, labels, 30)
    pd.testing.assert_frame_equal(images, parallel[0])


def test_a_threshold_out_of_range_is_refused(pair):
    with pytest.raises(InputError, match="threshold 300"):
        analysis.compare(*pair, threshold=300)


# Suspects


def test_suspected_label_errors(pair):
    predictions, labels = pair
    predictions.heatmaps["b"][0:128, 0:128] = 3  # hardly any response to what one annotator marked
    predictions.scores["a"] = 1.0  # MOS 5 against 2, while the masks agree
    images, regions = analysis.compare(predictions, labels, 100)
    found = analysis.suspected_label_errors(images, regions, 100).set_index("reason")
    assert set(found.index) == {"nobody marked it", "one annotator alone", "score against regions"}
    assert found.loc["nobody marked it", ["id", "x"]].tolist() == ["b", 0.875]
    assert found.loc["nobody marked it", "suspicion"] == pytest.approx(250 / 255)
    assert found.loc["one annotator alone", "suspicion"] == pytest.approx((1 - 3 / 255) * 2 / 3)
    assert found.loc["score against regions", "suspicion"] == pytest.approx(3 / 4, rel=1e-3)
    assert found.loc["score against regions", "detail"] == "MOS 2.00, predicted 5.00"
    assert found["suspicion"].is_monotonic_decreasing
    assert "2 images deserve a second look" in findings.suspects(found.reset_index())


def test_good_predictions_raise_no_suspicion(pair):
    predictions, labels = pair
    predictions.heatmaps["b"] = box(0, 0, 32, 32)
    found = analysis.suspected_label_errors(*analysis.compare(predictions, labels, 100), 100)
    assert found.empty
    assert findings.suspects(found) == "No label contradicts a confident prediction."


# Groups and intervals


def test_wilson_by_hand():
    # 1 of 10: 0.0179 to 0.4042, as published for the score interval without continuity correction
    assert groups.wilson(0.1, 10) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert groups.wilson(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert groups.wilson(1.0, 10)[1] == 1


def test_events_never_seen_may_still_happen():
    # Garwood: with none seen in n units the upper bound is -ln(0.025) / n
    assert groups.ratio(np.zeros(16), np.ones(16), "count")[:3] == pytest.approx((0, 0, 3.6889 / 16), abs=1e-4)
    assert groups.garwood(1.0, 10) == pytest.approx((0.4795, 1.8390), abs=1e-4)  # ten events, as tabulated
    table = pd.DataFrame({"false": [0] * 16, "kinds": "warped"})
    assert groups.by_group(table, "kinds", "false").iloc[0]["high"] == pytest.approx(3.6889 / 16, abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=30))
def test_an_interval_holds_its_rate_and_lies_in_0_to_1(images):
    totals = np.array([min(hits, count) for hits, count in images], float)
    counts = np.array([count for _, count in images], float)
    rate, low, high, variance = groups.ratio(totals, counts)
    assert rate == pytest.approx(totals.sum() / counts.sum())
    assert 0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1
    assert variance > 0


def test_regions_that_share_an_image_count_less():
    values = np.array([1.0, 0, 1, 1, 0, 0, 1, 0] * 5)
    _, low, high, _ = groups.ratio(values, np.ones(40))
    _, low_shared, high_shared, _ = groups.ratio(4 * values[:10], np.full(10, 4.0))  # ten images of four equal regions
    assert high_shared - low_shared > 1.5 * (high - low)


def test_by_group_counts_and_orders():
    table = pd.DataFrame({
        "id": list("aabbccddee"), "missed": [True, True, False, True, False, False, False, False, True, False],
        "size": pd.Categorical(["s"] * 4 + ["l"] * 5 + ["x"], ["s", "m", "l", "x"], ordered=True),
    })  # fmt: skip
    found = groups.by_group(table, "size", "missed", min_n=2)
    assert found[["group", "n", "images", "rate"]].values.tolist() == [["s", 4, 2, 0.75], ["l", 5, 3, 0.2]]
    assert found.attrs["dropped"] == ["x (1)"]
    assert groups.by_group(table, "size", "missed", min_n=3).attrs["dropped"] == ["s (2)", "x (1)"]  # images, not rows
    assert found.attrs["overall"] == 0.4
    assert found.attrs["ordered"]
    plain = groups.by_group(table.assign(size=table["size"].astype(str)), "size", "missed", min_n=1)
    assert plain["group"].tolist() == ["s", "l", "x"]  # by rate: 0.75, 0.2, 0


def test_means_of_a_quantity_by_hand():
    table = pd.DataFrame({"abs_error": [1.0, 2.0, 3.0, np.nan], "domain": "d"}, index=list("abcd"))
    row = groups.by_group(table, "domain", "abs_error", min_n=1).iloc[0]
    # The standard error of 1, 2, 3 is 1 / sqrt(3); Student's t at 97.5 % with two degrees of freedom is 4.3027.
    assert row[["n", "rate"]].tolist() == [3, 2]
    assert (row["low"], row["high"]) == pytest.approx((0, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_intervals_of_means_hold_the_true_one():
    rng, held = np.random.default_rng(0), 0
    for _ in range(600):
        low, high = groups.ratio(rng.normal(10, 1, 5), np.ones(5), "mean")[1:3]
        held += low <= 10 <= high
    assert 0.92 < held / 600 < 0.98  # with the normal's 1.96 it is 0.88


def test_what_the_data_lack_is_said_and_not_drawn(pair):
    images, regions = map(groups.with_bins, analysis.compare(*pair, threshold=100))
    found = groups.by_group(regions, "domain", "missed")
    assert found.empty
    assert found.attrs["absent"]
    assert findings.groups(found, "missed regions", "domain").endswith("this data set does not tell.")
    fig, says = error_figures.by_image(images, regions, "domain", "the domain")
    assert fig is None
    assert "does not tell the domain" in says


def clustered(rng, images: int, regions: int, rates: list[float]) -> pd.DataFrame:
    """`images` images in turn of each group; all `regions` of an image share its outcome."""
    codes = np.arange(images) % len(rates)
    outcome = rng.random(images) < np.array(rates)[codes]
    table = pd.DataFrame({"id": np.arange(images), "group": codes.astype(str), "missed": outcome})
    return table.loc[table.index.repeat(regions)].reset_index(drop=True)


def test_noise_is_seldom_called_a_difference():
    rng = np.random.default_rng(0)
    tables = [clustered(rng, images=40, regions=4, rates=[0.3, 0.3, 0.3]) for _ in range(150)]
    p = np.array([groups.difference(t["group"], t["missed"], t["id"], n=199) for t in tables])
    assert (p < 0.05).mean() < 0.11  # about 7 of 150 expected; without the design effect it is more than 50
    assert (p < 0.5).mean() > 0.3  # and yet it is a p-value, not a refusal


def of_several_kinds(seed: int, effect: float) -> pd.DataFrame:
    """150 images of one to three kinds, in a row a kind; `effect` is what warped ones are missed more often."""
    rng, rows = np.random.default_rng(seed), []
    for id in range(150):
        kinds = rng.permutation(["warped", "melted", "extra", "lost", "fused"])[: rng.integers(1, 4)]
        chance = rng.beta(2, 4) + effect * ("warped" in kinds)
        rows += [(id, "+".join(kinds), rng.random() < chance) for _ in range(rng.integers(1, 4))]
    return groups.one_row_a_part(pd.DataFrame(rows, columns=["id", "kinds", "missed"]), "kinds")


@pytest.mark.parametrize(("effect", "least", "most"), [(0, 0, 7), (0.3, 30, 40)])
def test_images_of_several_kinds_are_one_value_and_not_several(effect, least, most):
    tables = [of_several_kinds(seed, effect) for seed in range(40)]
    p = [groups.difference(table["kinds"], table["missed"], table["id"], n=199) for table in tables]
    found = sum(value < 0.05 for value in p)
    print(f"{found} of 40 tables with an effect of {effect} show one")
    assert least <= found <= most  # copies that count as images of their own: 0 and 2


def test_a_true_difference_is_found():
    table = clustered(np.random.default_rng(1), images=120, regions=2, rates=[0.1, 0.6])
    found = groups.by_group(table, "group", "missed")
    assert found.attrs["p"] < 0.001
    text = findings.groups(found, "missed regions", "size")
    assert text.startswith("Missed regions depend on size: ")
    assert "for 1 and " in text  # the worst first


def test_equal_groups_are_called_equal():
    table = pd.DataFrame({"id": range(40), "group": ["a", "b"] * 20, "missed": [True, True, False, False] * 10})
    found = groups.by_group(table, "group", "missed")
    assert found.attrs["p"] == 1
    assert "no dependence on size beyond chance" in findings.groups(found, "missed regions", "size")


def test_parts_of_joined_names():
    table = pd.DataFrame({"kinds": ["warped+melted", "warped+warped", "", None], "n": [1, 2, 3, 4]})
    found = groups.one_row_a_part(table, "kinds")
    pairs = list(zip(found["kinds"], found["n"], strict=True))
    assert pairs == [("melted", 1), ("warped", 1), ("warped", 2), ("sound", 3), ("unknown", 4)]


def test_bins_have_inclusive_upper_bounds():
    table = pd.DataFrame({
        "side": "true", "status": "missed", "area": [0.005, 0.0051, 0.5], "aspect": [0.5, 1.0, 2.0], "votes": [1, 4, 0],
        "agreement": [1.0, 0.3, np.nan], "x": [0.1, 0.5, 1.0], "y": [0.0, 0.5, 0.99],
    })  # fmt: skip
    found = groups.with_bins(table)
    assert found["size"].tolist() == ["up to 0.5%", "0.5 to 1%", "above 40%"]
    assert found["shape"].tolist() == ["tall", "about square", "wide"]
    assert found["voted"].tolist()[:2] == ["1 annotator", "4 or more"]
    assert found["voted"].isna().tolist() == [False, False, True]
    assert found["agreed"].tolist()[:2] == ["identical", "0.25 to 0.5"]
    assert found["place"].tolist() == ["top left", "middle centre", "bottom right"]


# Words


def test_words_of_a_prompt():
    assert words.words("A photo of THE man's red T-shirt, café 2x") == {"man", "red", "shirt", "café"}


def test_a_planted_word_stands_out_and_others_do_not():
    rng = np.random.default_rng(0)
    fillers = ["green", "blue", "walking", "sitting", "park"]
    prompts = [f"{'bicycle' if k % 4 == 0 else 'person'} {' '.join(rng.permutation(fillers)[:2])}" for k in range(200)]
    missed = [rng.random() < (0.7 if "bicycle" in prompt else 0.1) for prompt in prompts]
    images = pd.DataFrame({"prompt": prompts, "missed": np.array(missed, int), "n_true": 1})
    found = words.prompt_words(images).set_index("group")
    assert {"bicycle", "person"} == set(found.index[found["q"] < 0.01])
    assert found.loc["bicycle", "images"] == 50
    assert found.loc["bicycle", "rate"] == pytest.approx(
        np.mean([m for m, p in zip(missed, prompts, strict=True) if "bicycle" in p])
    )
    assert found.loc["bicycle", "rest"] == found.loc["person", "rate"]
    text = findings.words(found.reset_index(), "missed regions")
    assert "2 of 7 words stand out beyond chance" in text
    assert "'bicycle'" in text


def test_rare_words_are_left_out():
    images = pd.DataFrame({"prompt": ["rare cat"] * 3 + ["cat"] * 30, "missed": 0, "n_true": 1})
    found = words.prompt_words(images, min_images=5)
    assert found.empty
    assert findings.words(found, "missed regions").endswith("no word is in enough prompts.")


def unrelated(rng, images: int, vocabulary: int = 150) -> pd.DataFrame:
    """Images whose errors have nothing to do with their prompts: words frequent and rare, some errors large."""
    names = np.array(["".join(letters) for letters in itertools.product("abcdefghij", repeat=3)])[:vocabulary]
    share = np.minimum(0.5, 3 / np.arange(3, vocabulary + 3))
    n_true = rng.poisson(1.5, images)
    return pd.DataFrame({
        "prompt": [" ".join(names[rng.random(vocabulary) < share]) for _ in range(images)],
        "n_true": n_true, "missed": rng.binomial(n_true, rng.beta(0.5, 1, images)),
        "score_error": rng.normal(0, 0.5, images) * rng.gamma(1, 1, images),
    })  # fmt: skip


def false_finds(tables: list[pd.DataFrame], *args, alpha: float = 0.05) -> int:
    """In how many tables any word is called one that stands out."""
    return sum((words.prompt_words(table, *args, n=199)["q"] < alpha).any() for table in tables)


def test_words_of_unrelated_prompts_seldom_stand_out():
    tables = [unrelated(np.random.default_rng(seed), 300) for seed in range(60)]
    missed, errors = false_finds(tables), false_finds(tables, "score_error", None)
    print(f"{missed} and {errors} of 60 tables have a word that stands out")
    assert max(missed, errors) <= 8  # 3 expected, and three standard errors; by normal p-values it is 30 to 58


def test_a_word_of_images_with_many_regions_does_not_stand_out_for_that():
    # Crowds have many regions, missed at the same rate as others: what varies more is not what differs.
    tables = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        crowd = rng.random(200) < 0.08
        n_true = np.where(crowd, 6, 1)
        missed = rng.binomial(n_true, rng.choice([0.05, 0.75], 200))
        prompts = [f"{'crowd' if many else 'man'} {rng.choice(['red', 'green', 'blue'])}" for many in crowd]
        tables.append(pd.DataFrame({"prompt": prompts, "n_true": n_true, "missed": missed}))
    assert false_finds(tables) <= 8


# Scores, thresholds, sentences


def test_score_calibration_bins():
    predicted = np.linspace(1, 5, 40)
    images = pd.DataFrame({"predicted_mos": predicted, "true_mos": 3 + (predicted - 3) / 2})
    table = groups.score_calibration(images, bins=4)
    assert table["n"].tolist() == [10] * 4
    assert table["rate"].to_numpy() == pytest.approx(3 + (table["predicted"].to_numpy() - 3) / 2)
    images["score_error"] = images["predicted_mos"] - images["true_mos"]
    assert "about right on average" in findings.scores(images)
    assert "too wide a range (one predicted MOS more means 0.50 true MOS more, 0.50 to 0.50)" in findings.scores(images)


@pytest.mark.parametrize("n", [5, 50])
def test_the_range_of_calibrated_scores_is_seldom_called_wrong(n):
    called = {"range": 0, "bias": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        predicted = rng.uniform(1.5, 4.5, n)
        true = predicted + rng.normal(0, 0.5, n)
        frame = pd.DataFrame({"predicted_mos": predicted, "true_mos": true, "score_error": predicted - true})
        called["range"] += "the right range" not in findings.scores(frame)
        called["bias"] += "about right on average" not in findings.scores(frame)
    print(called)
    assert max(called.values()) <= 20  # 10 of 200 expected; by the bare slope 40 to 140


def test_scores_that_are_wrong_are_called_so():
    predicted = np.linspace(2.5, 3.5, 40)
    true = 3 + 2 * (predicted - 3) - 0.4 + np.tile([-0.1, 0.1], 20)
    images = pd.DataFrame({"predicted_mos": predicted, "true_mos": true, "score_error": predicted - true})
    text = findings.scores(images)
    assert text.startswith("Scores are too kind: mean error +0.40 MOS") and "too narrow a range" in text
    exact = images.assign(true_mos=predicted, score_error=0.0)
    assert "about right" in findings.scores(exact) and "the right range" in findings.scores(exact)


def test_heat_calibration_by_hand():
    curve = pd.DataFrame({"threshold": [0, 100, 200], "predicted_pixels": [100, 40, 10], "intersection": [50, 30, 9]})
    table = groups.heat_calibration(curve)
    assert table["pixels"].tolist() == [60, 30, 10]
    assert table["rate"].tolist() == pytest.approx([20 / 60, 21 / 30, 0.9])
    assert table["predicted"].tolist() == [50.5, 150.5, 228]
    assert "marked 70%" in findings.heat(table, 150)


def test_the_overall_sentence_counts(pair):
    text = findings.overall(analysis.image_errors(*pair, threshold=100), Setting(100, 0.03))
    assert text.startswith("With threshold 100, regions above 3.00% of the frame, the model finds")
    assert "finds 1 of 2 true regions (50%) and misses 1" in text
    assert "1 of 2 predicted regions (50%) are false alarms" in text
    assert "2 of 3 images (67%) have neither" in text


def test_figures_by_group_have_intervals(prepared):
    labels = LabelStore(prepared / "test")
    predictions = Heatmaps({id: labels.heatmap(id) for id in labels.ids}, labels.table["score"].to_dict())
    counts, scores = sweep(predictions, labels, [10]), score_table(predictions, labels)
    rows = analysis.figures_by(counts, scores, labels.table["domain"], n=20)
    assert set(rows) == {"shifted (2 images)", "shown (6 images)"}
    assert rows["shown (6 images)"]["f1_score"] == pytest.approx(1)
    assert rows["shown (6 images)"]["intervals"]["f1_score"] == pytest.approx((1, 1))


# The trivial baseline


def test_the_trivial_baseline_is_the_mean_of_train(tmp_path):
    table = pd.DataFrame({"id": ["a", "b", "c"], "labelled": [True, True, False], "score": [0.0, 1.0, np.nan]})
    table.to_parquet(tmp_path / "manifest.parquet")
    write_heatmap(tmp_path / "heatmaps" / "a.png", np.full((64, 32), 200, np.uint8))
    write_heatmap(tmp_path / "heatmaps" / "b.png", np.zeros((10, 20), np.uint8))
    baseline = trivial_predictions(LabelStore(tmp_path), ["x", "y"])
    assert baseline.ids == ["x", "y"]
    assert baseline.heatmap("x").shape == (128, 128)
    assert (baseline.heatmap("x") == 100).all()
    assert baseline.heatmap("x") is baseline.heatmap("y")  # one copy, whatever the number of images
    assert baseline.table["score"].to_dict() == {"x": 0.5, "y": 0.5}
    assert baseline.portable(["y"]).ids == ["y"]


def test_the_trivial_baseline_works_as_predictions(prepared):
    train, test = LabelStore(prepared / "train"), LabelStore(prepared / "test")
    counts = sweep(trivial_predictions(train, test.ids), test, [5, 50], workers=1)
    assert counts["n_predicted"].max() > 0
    assert threshold_curve(counts, score_table(trivial_predictions(train, test.ids), test))["plcc"].isna().all()
    assert mean_label(train).max() <= 255


def test_a_baseline_needs_labels(tmp_path):
    pd.DataFrame({"id": ["a"], "labelled": [False], "score": [np.nan]}).to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="no labels to average"):
        trivial_predictions(LabelStore(tmp_path), ["a"])


# Every section, also on data that lack something


def sections(images, regions, predictions, labels, threshold=100):
    curve = threshold_curve(sweep(predictions, labels, [0, 50, threshold, 200]), score_table(predictions, labels))
    suspects = analysis.suspected_label_errors(images, regions, threshold)
    arguments = (labels, predictions)
    return [
        error_figures.case_gallery(*arguments, images, "worst", threshold, 2),
        error_figures.case_gallery(*arguments, images, "best", threshold, 2),
        error_figures.by_region(regions, "size", "area"),
        error_figures.by_place(regions),
        error_figures.by_image(images, regions, "kinds", "kind"),
        error_figures.by_votes(regions),
        error_figures.by_word(images),
        error_figures.by_image(images, regions, "shape", "aspect ratio"),
        error_figures.by_image(images, regions, "severity", "severity"),
        error_figures.region_gallery(*arguments, regions, "missed", threshold, 2),
        error_figures.region_gallery(*arguments, regions, "false", threshold, 2),
        error_figures.score_figure(images, score_table(predictions, labels)),
        error_figures.score_gallery(*arguments, images, 2),
        error_figures.threshold_figure(curve, threshold),
        error_figures.suspect_gallery(*arguments, images, suspects, threshold, 2),
    ]


@pytest.mark.parametrize(
    "case", ["usual", "nothing predicted", "everything predicted", "no scores", "no attributes", "sound"]
)
def test_every_section_has_something_to_say(case, prepared, monkeypatch):
    labels = LabelStore(prepared / "test")
    heatmaps = {id: np.roll(labels.heatmap(id), 8, 1) for id in labels.ids}
    scores = labels.table["score"].to_dict()
    table = labels.table.copy()
    if case == "nothing predicted":
        heatmaps = {id: np.zeros_like(heatmap) for id, heatmap in heatmaps.items()}
    if case == "everything predicted":
        heatmaps = {id: np.full_like(heatmap, 255) for id, heatmap in heatmaps.items()}
    if case == "no scores":
        table[["mos", "score"]] = np.nan
    if case == "no attributes":
        table = table.drop(columns=["kinds", "domain", "layout", "parts", "severity"])
    if case == "sound":
        monkeypatch.setattr(LabelStore, "heatmap", lambda self, id: np.zeros((64, 64), np.uint8))
    labels.__dict__["table"] = table
    predictions = Heatmaps(heatmaps, scores)
    images, regions = map(groups.with_bins, analysis.compare(predictions, labels, 100, workers=1))
    for fig, says in sections(images, regions, predictions, labels):
        assert says
        assert says[-1] in ".)"
        assert "nan" not in says.lower()
        if fig is not None:
            fig.set_dpi(20)  # what is drawn matters here, not how sharply
            fig.canvas.draw()
            plt.close(fig)
        else:
            assert case == "no attributes"
            assert "does not tell" in says


# Opening a run


@pytest.fixture
def run(tmp_path, prepared):
    labels = LabelStore(prepared / "test")
    folder = tmp_path / "runs" / "one"
    Experiment(experiment_name="one", runs=str(tmp_path / "runs"), data_path=str(prepared)).save(folder / "config.yaml")
    (folder / "predictions" / "test").mkdir(parents=True)
    table = pd.DataFrame({"id": labels.ids, "score": labels.table["score"].to_numpy()})
    table.to_parquet(folder / "predictions" / "test" / "scores.parquet")
    return folder


def test_a_run_opens_with_its_own_data_and_threshold(run, prepared):
    about = {"threshold": 77, "split": "test", "data_path": str(prepared), "trivial": {"f1_score": 0.5}}
    (run / "evaluation.json").write_text(json.dumps(about))
    opened, trivial = analysis.open_run(run, "test")
    assert opened.labels.path == prepared / "test"
    assert len(opened.predictions.ids) == len(opened.judged_ids) == 8
    assert (opened.setting, trivial) == (Setting(77), {"f1_score": 0.5})
    for other in ({"split": "val"}, {"data_path": str(prepared / "elsewhere")}):  # a baseline of other images
        (run / "evaluation.json").write_text(json.dumps(about | other))
        assert analysis.open_run(run, "test")[1] == {}
    assert analysis.open_run(run, "test", threshold=12)[0].threshold == 12


def test_an_image_that_was_not_predicted_is_not_left_out_in_silence(run):
    scores = run / "predictions" / "test" / "scores.parquet"
    pd.read_parquet(scores).iloc[1:].to_parquet(scores)
    with pytest.raises(InputError, match="1 images are labelled but not predicted"):
        _ = analysis.open_run(run, "test", threshold=12)[0].judged_ids


def test_what_a_run_lacks_is_named(run, tmp_path):
    with pytest.raises(InputError, match="run notebook 3 first or give the parameter threshold"):
        analysis.open_run(run, "test")
    with pytest.raises(InputError, match="val holds no scores.parquet"):
        analysis.open_run(run, "val", threshold=10)
    with pytest.raises(InputError, match="there is no run .*nowhere"):
        analysis.open_run(tmp_path / "nowhere", "test")
    (run / "config.yaml").unlink()
    with pytest.raises(InputError, match="give data_path"):
        analysis.open_run(run, "test", threshold=10)


def test_tables_are_written_whole(tmp_path, pair):
    images, regions = analysis.compare(*pair, threshold=100)
    paths = analysis.write_tables(tmp_path / "out", images=images, regions=regions)
    assert [path.name for path in paths] == ["images.csv", "regions.csv"]
    again = pd.read_csv(paths[0], index_col="id")
    assert again.loc["a", "true_area"] == 0.0625
    assert len(pd.read_csv(paths[1])) == len(regions)
    assert not list((tmp_path / "out").glob("*.part"))


def test_scores_are_called_too_narrow_or_too_wide_only_beyond_chance():
    wrong = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        predicted = rng.uniform(1, 5, 12)
        images = pd.DataFrame({"predicted_mos": predicted, "true_mos": predicted + rng.normal(0, 0.7, 12)})
        images["score_error"] = images["predicted_mos"] - images["true_mos"]
        wrong += "the right range, within chance" not in findings.scores(images)
    assert wrong <= 8  # one in twenty; of the slope alone it was every second


def test_what_an_image_does_not_tell_is_unknown_and_an_empty_kind_is_sound():
    table = pd.DataFrame({"domain": ["a", None, ""], "kinds": ["warped", None, ""], "missed": [1, 2, 3]})
    assert groups.one_row_a_part(table, "domain")["domain"].tolist() == ["a", "unknown", "unknown"]
    assert groups.one_row_a_part(table, "kinds")["kinds"].tolist() == ["warped", "unknown", "sound"]


def test_few_images_have_no_interval():
    ids = [f"i{number}" for number in range(8)]
    counts = pd.DataFrame({"id": ids, "threshold": 90, "n_predicted": 1, "hit_predicted": 1, "n_true": 1, "hit_true": 1,
                           "iou": 0.5, "predicted_pixels": 1, "intersection": 1, "union": 1})  # fmt: skip
    scores = pd.DataFrame({"predicted": np.linspace(0, 1, 8), "true": np.linspace(0, 1, 8)}, index=ids)
    domains = pd.Series(["many"] * 6 + ["few", None], index=ids)
    rows = analysis.figures_by(counts, scores, domains, n=20)
    assert list(rows) == ["few (1 images)", "many (6 images)", "unknown (1 images)"]
    assert np.isnan(rows["few (1 images)"]["intervals"]["f1_score"]).all()
    assert np.isfinite(rows["many (6 images)"]["intervals"]["f1_score"]).all()


def test_all_suspects_are_kept_and_counted(pair):
    images, regions = analysis.compare(*pair, 100)
    unmarked = pd.concat([regions.head(1).assign(id=f"i{n}", status="false", votes=0, heat=250.0) for n in range(80)])
    found = analysis.suspected_label_errors(images.head(0), unmarked, 100)
    assert len(found) == 80 and findings.suspects(found).startswith("80 images deserve")
