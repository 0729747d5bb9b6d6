"""The tables of errors against hand-computed values; groups and intervals that do not take noise for a finding."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.errors import InputError
from lib.evaluate import groups, tables
from lib.metrics import Heatmaps, sweep
from lib.metrics.baseline import trivial_predictions
from lib.stores import LabelStore, write_heatmap


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


def test_images_by_hand(pair):
    images, _ = tables.error_tables(*pair, 100)
    assert list(images.index) == ["a", "b", "c"]
    a, b, c = (images.loc[id] for id in "abc")
    assert (a["true_mos"], a["predicted_mos"], a["score_error"], a["abs_error"]) == (2, 3, 1, 1)
    assert a["iou"] == pytest.approx(1)
    assert (a["hit"], a["missed"], a["false"], a["n_true"], a["n_predicted"]) == (1, 0, 0, 1, 1)
    assert a["true_area"] == a["predicted_area"] == 1 / 16
    assert (a["missed_area"], a["false_area"], a["peak"]) == (0, 0, 200)
    assert b["iou"] == pytest.approx(0, abs=1e-6)
    assert (b["hit"], b["missed"], b["false"], b["missed_area"], b["false_area"]) == (0, 1, 1, 1 / 16, 1 / 16)
    assert c["iou"] == 1 and np.isnan(c["score_error"])  # nothing on either side
    assert images["aspect"].tolist() == [1, 2, 0.5]
    assert images["shape"].tolist() == ["about square", "wide", "tall"]
    assert images["kinds"].tolist() == ["warped+melted", "warped", ""]


def test_regions_by_hand(pair):
    pair[1].heatmaps["c"][0:13, 0:13] = 64  # its contour encloses 12 x 12: below the official 150
    _, regions = tables.error_tables(*pair, 100)
    regions = regions.set_index(["id", "side"])
    assert len(regions) == 4 and "prompt" not in regions
    true, missed, false = (regions.loc[place] for place in (("a", "true"), ("b", "true"), ("b", "predicted")))
    assert (true["status"], true["area"], true["votes"], true["response"], true["heat"]) == ("hit", 1 / 16, 2, 200, 200)
    assert true[["x", "y", "x0", "y0", "x1", "y1"]].tolist() == [0.25, 0.25, 0.125, 0.125, 0.375, 0.375]
    assert (true["voted"], true["place"], true["size"]) == ("2 annotators", "top left", "5 to 10%")
    assert (missed["status"], missed["votes"], missed["response"], missed["missed"]) == ("missed", 1, 0, True)
    assert (false["status"], false["votes"], false["heat"], false["false"]) == ("false", 0, 250, True)
    assert (false["x"], false["true_mos"], false["agreed"]) == (0.875, 3, "IoU up to 0.25")


def test_every_column_is_described_and_an_attribute_replaces_none(pair):
    images, regions = tables.error_tables(*pair, 100)
    for table, meanings in ((images, tables.IMAGE_COLUMNS), (regions, tables.REGION_COLUMNS)):
        assert set(table) == {*meanings, "kinds", "status_attribute"}
        described = tables.describe(table, meanings)
        assert described["column"].tolist() == list(table)
        assert described.set_index("column").loc["kinds", "meaning (unit)"].startswith("attribute of the data set")
    assert regions["status"].tolist() == ["hit", "hit", "false", "missed"]
    assert regions["status_attribute"].tolist() == ["p", "p", "q", "q"]


def test_tables_agree_with_the_official_counts(prepared):
    labels, rng = LabelStore(prepared / "test"), np.random.default_rng(0)
    noisy = {id: np.roll(labels.heatmap(id), rng.integers(-20, 20), 1) for id in labels.ids}
    predictions = Heatmaps(noisy, dict.fromkeys(labels.ids, 0.5))
    images, regions = tables.error_tables(predictions, labels, 30)
    counts = sweep(predictions, labels, [30]).set_index("id")
    for ours, theirs in (("n_true", "n_true"), ("n_predicted", "n_predicted"), ("hit", "hit_true"), ("iou", "iou")):
        assert images[ours].to_numpy() == pytest.approx(counts[theirs].to_numpy())
    assert (images["n_predicted"] - images["false"]).to_numpy() == pytest.approx(counts["hit_predicted"].to_numpy())
    assert len(regions) == counts[["n_true", "n_predicted"]].to_numpy().sum()


def test_groups_have_inclusive_upper_bounds():
    table = pd.DataFrame({
        "side": "true", "status": "missed", "area": [0.005, 0.0051, 0.5], "aspect": [0.5, 1.0, 2.0], "votes": [1, 4, 0],
        "agreement": [1.0, 0.3, np.nan], "x": [0.1, 0.5, 1.0], "y": [0.0, 0.5, 0.99],
    })  # fmt: skip
    found = tables.with_groups(table)
    assert found["size"].tolist() == ["up to 0.5%", "0.5 to 1%", "above 40%"]
    assert found["shape"].tolist() == ["tall", "about square", "wide"]
    assert found["voted"].tolist()[:2] == ["1 annotator", "4 or more"]
    assert found["voted"].isna().tolist() == [False, False, True]
    assert found["agreed"].tolist()[:2] == ["identical", "0.25 to 0.5"]
    assert found["place"].tolist() == ["top left", "middle centre", "bottom right"]


def test_suspected_label_errors(pair):
    predictions, labels = pair
    predictions.heatmaps["b"][0:128, 0:128] = 3  # hardly any response to what one annotator marked
    predictions.scores["a"] = 1.0  # MOS 5 against 2, while the masks agree
    images, regions = tables.error_tables(predictions, labels, 100)
    found = tables.suspected_label_errors(images, regions, 100).set_index("reason")
    assert set(found.index) == {"nobody marked it", "one annotator alone", "score against regions"}
    assert found.loc["nobody marked it", ["id", "x", "detail"]].tolist() == ["b", 0.875, "predicted at 250 of 255"]
    assert found.loc["nobody marked it", "suspicion"] == pytest.approx(250 / 255)
    assert found.loc["one annotator alone", "suspicion"] == pytest.approx((1 - 3 / 255) * 2 / 3)
    assert found.loc["one annotator alone", "detail"] == "1 of 3, predicted at most 3"
    assert found.loc["score against regions", "suspicion"] == pytest.approx(3 / 4, rel=1e-3)
    assert found.loc["score against regions", "detail"] == "MOS 2.00, predicted 5.00"
    assert found["suspicion"].is_monotonic_decreasing
    predictions.heatmaps["b"], predictions.scores["a"] = box(0, 0, 32, 32), 0.5
    assert tables.suspected_label_errors(*tables.error_tables(predictions, labels, 100), 100).empty


# Groups and intervals


def test_intervals_by_hand():
    # Wilson, 1 of 10: 0.0179 to 0.4042, as published for the score interval without continuity correction
    assert groups.wilson(0.1, 10) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert groups.wilson(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert groups.wilson(1.0, 10)[1] == 1
    assert groups.garwood(1.0, 10) == pytest.approx((0.4795, 1.8390), abs=1e-4)  # ten events, as tabulated
    # Garwood: with none seen in n units the upper bound is -ln(0.025) / n
    table = pd.DataFrame({"false": [0] * 16, "abs_error": [1.0, 2.0, 3.0, *[np.nan] * 13], "kinds": "warped"})
    row = groups.by_group(table, "kinds", "false").iloc[0]
    assert (row["rate"], row["low"], row["high"]) == pytest.approx((0, 0, 3.6889 / 16), abs=1e-4)
    # The standard error of 1, 2, 3 is 1 / sqrt(3); Student's t at 97.5 % with two degrees of freedom is 4.3027.
    row = groups.by_group(table, "kinds", "abs_error", min_n=1).iloc[0]
    assert row[["n", "rate"]].tolist() == [3, 2]
    assert (row["low"], row["high"]) == pytest.approx((0, 2 + 4.3027 / 3**0.5), abs=1e-4)


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
    assert (found.attrs["dropped"], found.attrs["overall"], found.attrs["ordered"]) == (["x (1)"], 0.4, True)
    assert groups.in_words(found).endswith("; too few images to show: x (1)")
    found = groups.by_group(table, "size", "missed", min_n=3)  # images, not rows
    assert found.attrs["dropped"] == ["s (2)", "x (1)"]
    assert groups.in_words(found).startswith("fewer than two groups are large enough")
    plain = groups.by_group(table.assign(size=table["size"].astype(str)), "size", "missed", min_n=1)
    assert plain["group"].tolist() == ["s", "l", "x"]  # by rate: 0.75, 0.2, 0
    absent = groups.by_group(table, "domain", "missed")
    assert absent.empty and groups.in_words(absent) == "this data set does not say"


def test_joined_names_count_for_each_and_gaps_have_names():
    table = pd.DataFrame({"kinds": ["warped+melted", "warped+warped", "", None], "n": [1, 2, 3, 4]})
    found = groups.one_row_per_name(table, "kinds")
    pairs = list(zip(found["kinds"], found["n"], strict=True))
    assert pairs == [("melted", 1), ("warped", 1), ("warped", 2), ("sound", 3), ("unknown", 4)]
    found = groups.by_group(table, "kinds", "n", min_n=1)
    assert dict(zip(found["group"], found["n"], strict=True)) == {"unknown": 1, "sound": 1, "warped": 2, "melted": 1}


def clustered(rng, images: int, regions: int, rates: list[float]) -> pd.DataFrame:
    """`images` images in turn of each group; all `regions` of an image share its outcome."""
    codes = np.arange(images) % len(rates)
    outcome = rng.random(images) < np.array(rates)[codes]
    table = pd.DataFrame({"id": np.arange(images), "group": codes.astype(str), "missed": outcome})
    return table.loc[table.index.repeat(regions)].reset_index(drop=True)


def test_noise_is_seldom_called_a_difference():
    rng = np.random.default_rng(0)
    found = [clustered(rng, images=40, regions=4, rates=[0.3, 0.3, 0.3]) for _ in range(150)]
    p = np.array([groups.difference(t["group"], t["missed"], t["id"], n=199) for t in found])
    assert (p < 0.05).mean() < 0.11  # about 7 of 150 expected; without the design effect it is more than 50
    assert (p < 0.5).mean() > 0.3  # and yet it is a p-value, not a refusal


def of_several_kinds(seed: int, effect: float) -> pd.DataFrame:
    """150 images of one to three kinds, in a row a kind; `effect` is what warped ones are missed more often."""
    rng, rows = np.random.default_rng(seed), []
    for id in range(150):
        kinds = rng.permutation(["warped", "melted", "extra", "lost", "fused"])[: rng.integers(1, 4)]
        chance = rng.beta(2, 4) + effect * ("warped" in kinds)
        rows += [(id, "+".join(kinds), rng.random() < chance) for _ in range(rng.integers(1, 4))]
    return groups.one_row_per_name(pd.DataFrame(rows, columns=["id", "kinds", "missed"]), "kinds")


@pytest.mark.parametrize(("effect", "least", "most"), [(0, 0, 7), (0.3, 30, 40)])
def test_images_of_several_kinds_are_one_value_and_not_several(effect, least, most):
    found = [of_several_kinds(seed, effect) for seed in range(40)]
    p = [groups.difference(table["kinds"], table["missed"], table["id"], n=199) for table in found]
    assert least <= sum(value < 0.05 for value in p) <= most  # copies that count as images of their own: 0 and 2


def test_groups_in_words():
    table = clustered(np.random.default_rng(1), images=120, regions=2, rates=[0.1, 0.6])
    found = groups.by_group(table, "group", "missed")
    assert found.attrs["p"] < 0.001
    high, low = (found.iloc[k] for k in (0, 1))
    assert groups.in_words(found) == (
        f"{high['rate']:.0%} ({high['low']:.0%} to {high['high']:.0%}, n = 120) for 1, {low['rate']:.0%} "
        f"({low['low']:.0%} to {low['high']:.0%}, n = 120) for 0; the groups differ (p < 0.001)"
    )
    equal = pd.DataFrame({"id": range(40), "group": ["a", "b"] * 20, "missed": [True, True, False, False] * 10})
    found = groups.by_group(equal, "group", "missed")
    assert groups.in_words(found).endswith("; no significant difference (p = 1)")


# Words


def test_a_planted_word_stands_out_and_others_do_not():
    assert groups.words("A photo of THE man's red T-shirt, café 2x") == {"man", "red", "shirt", "café"}
    rng = np.random.default_rng(0)
    fillers = ["green", "blue", "walking", "sitting", "park"]
    prompts = [f"{'bicycle' if k % 4 == 0 else 'person'} {' '.join(rng.permutation(fillers)[:2])}" for k in range(200)]
    missed = [rng.random() < (0.7 if "bicycle" in prompt else 0.1) for prompt in prompts]
    images = pd.DataFrame({"prompt": prompts, "missed": np.array(missed, int), "n_true": 1})
    found = groups.prompt_words(images).set_index("group")
    assert {"bicycle", "person"} == set(found.index[found["q"] < 0.01])
    assert found.loc["bicycle", "images"] == 50
    of_bicycles = [miss for miss, prompt in zip(missed, prompts, strict=True) if "bicycle" in prompt]
    assert found.loc["bicycle", "rate"] == pytest.approx(np.mean(of_bicycles))
    assert found.loc["bicycle", "rest"] == found.loc["person", "rate"]
    rare = pd.DataFrame({"prompt": ["rare cat"] * 3 + ["cat"] * 30, "missed": 0, "n_true": 1})
    assert groups.prompt_words(rare, min_images=5).empty


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


def of_crowds(rng) -> pd.DataFrame:
    """Crowds have many regions, missed at the same rate as others: what varies more is not what differs."""
    crowd = rng.random(200) < 0.08
    n_true = np.where(crowd, 6, 1)
    missed = rng.binomial(n_true, rng.choice([0.05, 0.75], 200))
    prompts = [f"{'crowd' if many else 'man'} {rng.choice(['red', 'green', 'blue'])}" for many in crowd]
    return pd.DataFrame({"prompt": prompts, "n_true": n_true, "missed": missed})


@pytest.mark.parametrize(
    ("make", "value", "of"),
    [
        (lambda rng: unrelated(rng, 300), "missed", "n_true"),
        (lambda rng: unrelated(rng, 300), "score_error", None),
        (of_crowds, "missed", "n_true"),
    ],
)
def test_words_of_unrelated_prompts_seldom_stand_out(make, value, of):
    found = [groups.prompt_words(make(np.random.default_rng(seed)), value, of, n=199) for seed in range(60)]
    assert sum((words["q"] < 0.05).any() for words in found) <= 8  # 3 expected; by normal p-values it is 30 to 58


# Calibration, the trivial baseline


def test_calibration_by_hand():
    predicted = np.linspace(1, 5, 40)
    images = pd.DataFrame({"predicted_mos": predicted, "true_mos": 3 + (predicted - 3) / 2})
    table = groups.score_calibration(images, bins=4)
    assert table["n"].tolist() == [10] * 4
    assert table["rate"].to_numpy() == pytest.approx(3 + (table["predicted"].to_numpy() - 3) / 2)
    curve = pd.DataFrame({"threshold": [0, 100, 200], "predicted_pixels": [100, 40, 10], "intersection": [50, 30, 9]})
    table = groups.heat_calibration(curve)
    assert table["pixels"].tolist() == [60, 30, 10]
    assert table["rate"].tolist() == pytest.approx([20 / 60, 21 / 30, 0.9])
    assert table["predicted"].tolist() == [50.5, 150.5, 228]


def test_the_trivial_baseline_is_the_mean_of_train(tmp_path):
    table = pd.DataFrame({"id": ["a", "b", "c"], "labelled": [True, True, False], "score": [0.0, 1.0, np.nan]})
    table.to_parquet(tmp_path / "manifest.parquet")
    write_heatmap(tmp_path / "heatmaps" / "a.png", np.full((64, 32), 200, np.uint8))
    write_heatmap(tmp_path / "heatmaps" / "b.png", np.zeros((10, 20), np.uint8))
    baseline = trivial_predictions(LabelStore(tmp_path), ["x", "y"])
    assert baseline.ids == ["x", "y"]
    assert baseline.heatmap("x").shape == (128, 128) and (baseline.heatmap("x") == 100).all()
    assert baseline.heatmap("x") is baseline.heatmap("y")  # one copy, whatever the number of images
    assert baseline.table["score"].to_dict() == {"x": 0.5, "y": 0.5}
    assert baseline.portable(["y"]).ids == ["y"]
    table.assign(labelled=False).to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="no labels to average"):
        trivial_predictions(LabelStore(tmp_path), ["a"])
