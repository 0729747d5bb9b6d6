"""The tables of errors against hand-computed values; groups and intervals that do not take noise for a finding."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.evaluate import groups, tables
from lib.metrics.counts import sweep
from lib.metrics.heatmaps import Heatmaps
from lib.stores import LabelStore


def box(*corners, value=255) -> np.ndarray:
    """uint8 [512, 512], the metric's own grid, with one rectangle; x0, y0, x1, y1 in units of four pixels."""
    mask = np.zeros((512, 512), np.uint8)
    if corners:
        x0, y0, x1, y1 = np.array(corners) * 4
        mask[y0:y1, x0:x1] = value
    return mask


class Labels(Heatmaps):
    """Heatmaps in memory with a manifest."""

    table = None


@pytest.fixture
def pair():
    """Four images: perfect, elsewhere, both empty, and an unlabelled one that must not count."""
    far, near = box(96, 96, 128, 128, value=250), box(16, 16, 48, 48, value=200)
    predictions = {"a": near, "b": far, "c": box(), "d": box(0, 0, 9, 9)}
    labels = Labels({"a": box(16, 16, 48, 48, value=127), "b": box(0, 0, 32, 32, value=64), "c": box(), "d": box()})
    labels.table = pd.DataFrame({
        "image": "x.jpg", "prompt": ["a red cat", "a dog", "a red dog", "x"], "mos": [2.0, 3.0, np.nan, np.nan],
        "score": [0.25, 0.5, np.nan, np.nan], "labelled": [True, True, True, False], "n_annotators": [3, 3, 4, 0],
        "n_regions": [2, 1, 0, 0], "width": [100, 200, 100, 1], "height": [100, 100, 200, 1],
        "distorted": [0.06, 0.06, 0.0, np.nan], "agreement": [0.5, 0.0, 1.0, np.nan],
        "kinds": ["warped+melted", "warped", "", ""], "status": ["p", "q", "r", "s"],
    }, index=pd.Index(list("abcd"), name="id"))  # fmt: skip
    return Heatmaps(predictions, {"a": 0.5, "b": 0.5, "c": 1.0, "d": 0.0}), labels


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
    described = (tables.IMAGE_COLUMNS, tables.REGION_COLUMNS)
    for table, meanings in zip(tables.error_tables(*pair, 100), described, strict=True):
        assert set(table) == {*meanings, "kinds", "status_attribute"}
        described = tables.describe(table, meanings)
        assert described["column"].tolist() == list(table)
        assert described.set_index("column").loc["kinds", "meaning (unit)"].startswith("attribute of the data set")
    assert table["status"].tolist() == ["hit", "hit", "false", "missed"]
    assert table["status_attribute"].tolist() == ["p", "p", "q", "q"]


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


def test_intervals_by_hand():
    once = np.ones(10)
    # Wilson, none of 10: 0 to 0.2775, as published for the score interval without continuity correction
    assert groups.interval(0 * once, once) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert groups.interval(once, once)[2] == 1
    assert groups.interval(np.zeros(16), np.ones(16), "count") == pytest.approx((0, 0, 1.96**2 / 16), abs=1e-4)
    # A bound is the rate of which the one seen is 1.96 standard errors away. Of 1 in 10 the variance, over n - 1, is
    # that of 9 independent observations; of events 3, 0, 0, 1 (mean 1, variance 2) that of half of four.
    rate, low, high = groups.interval(once * ([1] + [0] * 9), once)
    assert [(rate - bound) ** 2 for bound in (low, high)] == pytest.approx(
        [1.96**2 * bound * (1 - bound) / 9 for bound in (low, high)], rel=1e-4
    )
    rate, low, high = groups.interval(np.array([3.0, 0, 0, 1]), np.ones(4), "count")
    assert [(rate - bound) ** 2 for bound in (low, high)] == pytest.approx(
        [1.96**2 * low / 2, 1.96**2 * high / 2], 1e-4
    )
    # The standard error of 1, 2, 3 is 1 / sqrt(3); Student's t at 97.5 % with two degrees of freedom is 4.3027.
    found = groups.interval(np.array([1.0, 2, 3]), np.ones(3), "mean")
    assert found == pytest.approx((2, 0, 2 + 4.3027 / 3**0.5), abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=30))
def test_an_interval_holds_its_rate_and_lies_in_0_to_1(images):
    totals = np.array([min(hits, count) for hits, count in images], float)
    counts = np.array([count for _, count in images], float)
    rate, low, high = groups.interval(totals, counts)
    assert rate == pytest.approx(totals.sum() / counts.sum())
    assert 0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1


@pytest.mark.parametrize("images", [12, 40])
@pytest.mark.parametrize("kind", ["share", "count", "mean"])
def test_intervals_of_rates_cover_what_they_say(kind, images):
    """Images differ in difficulty, Beta(1, 3), and share it among their regions; the mean is 1 / 4."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        chance, counts = rng.beta(1, 3, images), rng.integers(1, 5, images) if kind == "share" else np.ones(images)
        drawn = {"share": rng.binomial(counts.astype(int), chance), "count": rng.poisson(chance), "mean": chance}
        _, low, high = groups.interval(drawn[kind].astype(float), counts, kind)
        covered += low <= 0.25 <= high
    print(f"{kind} of {images} images: {covered / 4:.1f} % of intervals hold the truth")
    assert 0.89 <= covered / 400 <= 0.99


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
    assert groups.in_words(found).startswith("fewer than two groups") and found.attrs["dropped"] == ["s (2)", "x (1)"]
    plain = groups.by_group(table.assign(size=table["size"].astype(str)), "size", "missed", min_n=1)
    assert plain["group"].tolist() == ["s", "l", "x"]  # by rate: 0.75, 0.2, 0
    absent = groups.by_group(table, "domain", "missed")
    assert absent.empty and groups.in_words(absent) == "this data set does not say"


def test_joined_names_count_for_each_and_gaps_have_names():
    table = pd.DataFrame({"kinds": ["warped+melted", "warped+warped", "", None], "n": [1, 2, 3, 4]})
    found = groups.by_group(table, "kinds", "n", min_n=1)
    rows = [("unknown", 1, 4), ("sound", 1, 3), ("warped", 2, 1.5), ("melted", 1, 1)]
    assert list(found[["group", "n", "rate"]].itertuples(index=False, name=None)) == rows


def clustered(rng, images: int, regions: int, rates: list[float]) -> pd.DataFrame:
    """`images` images in turn of each group; all `regions` of an image share its outcome."""
    codes = np.arange(images) % len(rates)
    outcome = rng.random(images) < np.array(rates)[codes]
    table = pd.DataFrame({"id": np.arange(images), "group": codes.astype(str), "missed": outcome})
    return table.loc[table.index.repeat(regions)].reset_index(drop=True)


def of_several_kinds(rng, effect: float = 0) -> pd.DataFrame:
    """150 images of one to three kinds; `effect` is what warped ones are missed more often."""
    rows = []
    for id in range(150):
        kinds = rng.permutation(["warped", "melted", "extra", "lost", "fused"])[: rng.integers(1, 4)]
        chance = rng.beta(2, 4) + effect * ("warped" in kinds)
        rows += [(id, "+".join(kinds), rng.random() < chance) for _ in range(rng.integers(1, 4))]
    return pd.DataFrame(rows, columns=["id", "group", "missed"])


def of_crowds(rng) -> pd.DataFrame:
    """Crowds have many regions, missed at the same rate as others: what varies more is not what differs."""
    crowd, rows = rng.random(200) < 0.08, []
    for id, chance in enumerate(rng.choice([0.05, 0.75], 200)):
        prompt = f"{'crowd' if crowd[id] else 'man'}+{rng.choice(['red', 'green', 'blue'])}"
        rows += [(id, prompt, rng.random() < chance) for _ in range(6 if crowd[id] else 1)]
    return pd.DataFrame(rows, columns=["id", "group", "missed"])


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [
        (lambda rng: clustered(rng, 40, 4, [0.3, 0.3, 0.3]), 0, 6),
        (lambda rng: clustered(rng, 90, 4, [0.3, 0.3, 0.6]), 13, 40),
        (of_several_kinds, 0, 6),
        (lambda rng: of_several_kinds(rng, 0.3), 30, 40),
        (of_crowds, 0, 6),
    ],
    ids=["alike", "one differs", "kinds", "a kind", "crowds"],
)
def test_groups_that_differ_are_found_and_others_seldom(make, least, most):
    """Of 40 simulations 2 are expected to be called different where nothing is, with three standard errors 6."""
    found = [groups.by_group(make(np.random.default_rng(seed)), "group", "missed", n=99) for seed in range(40)]
    assert least <= sum(table.attrs["p"] < 0.05 for table in found) <= most


def test_questions_that_are_asked_together_share_one_level():
    called = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        table = clustered(rng, 60, 2, [0.4])
        columns = [f"noise {number}" for number in range(8)]
        for name in columns:
            table[name] = rng.integers(0, 3, 60).astype(str)[table["id"]]
        table["weak"] = (table["missed"] & (rng.random(120) < 0.5)).map({True: "a", False: "b"})
        asked = {name: (table, name, "missed") for name in [*columns, "weak", "absent"]}
        found = groups.by_groups(asked, n=99)
        called += min(found[name].attrs["p"] for name in columns) < 0.05
        assert np.isnan(found["absent"].attrs["p"]) and found["weak"].attrs["p"] < 0.05  # which is no question
    assert called <= 2  # 0.6 expected, and two standard errors; asked one by one it is 4
    assert "for 9 questions at once)" in groups.in_words(found["weak"])


def test_groups_in_words():
    table = clustered(np.random.default_rng(1), images=120, regions=2, rates=[0.1, 0.6])
    found = groups.by_group(table, "group", "missed")
    high, low = (found.iloc[k] for k in (0, 1))
    assert found.attrs["p"] < 0.001 and high["z"] > 3 > -3 > low["z"]
    assert groups.in_words(found) == (
        f"{high['rate']:.0%} ({high['low']:.0%} to {high['high']:.0%}, n = 120) for 1, {low['rate']:.0%} "
        f"({low['low']:.0%} to {low['high']:.0%}, n = 120) for 0; the groups differ (p < 0.001)"
    )
    equal = pd.DataFrame({"id": range(40), "group": ["a", "b"] * 20, "missed": [True, True, False, False] * 10})
    found = groups.by_group(equal, "group", "missed")
    assert groups.in_words(found).endswith("; no significant difference (p = 1.00)")
    prompts = pd.Series(["A photo of THE man's red T-shirt, café 2x", "and"])
    words = [set(words.split("+")) for words in groups.prompt_words(prompts)]
    assert words == [{"man", "red", "shirt", "café"}, {"(none)"}]


def test_calibration_by_hand():
    predicted = np.linspace(1, 5, 40)
    images = pd.DataFrame({"predicted_mos": predicted, "true_mos": 3 + (predicted - 3) / 2})
    table = groups.score_calibration(images, bins=4)
    assert table["n"].tolist() == [10] * 4
    assert table["rate"].to_numpy() == pytest.approx(3 + (table["predicted"].to_numpy() - 3) / 2)
