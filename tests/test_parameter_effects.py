"""Which parameter of a sweep mattered: pairs of runs that differ in it alone, on final scores chosen by hand."""

import numpy as np
import pandas as pd
import pytest

from lib.evaluate.parameter_effects import effects, factors, verdict
from lib.metrics.statistics import Resampled, resampled_sums
from lib.reports import comparison as comparison_figures


def run(score: float, noise: float = 0.001) -> Resampled:
    """A run whose resampled scores lie evenly around its own, within `noise`."""
    return Resampled({"final_score": score}, pd.DataFrame({"final_score": score + np.linspace(-noise, noise, 101)}))


GRID = {
    "a": {"lr": 1e-3, "epoch": 2, "runs": "x"}, "b": {"lr": 1e-2, "epoch": 2, "runs": "x"},
    "c": {"lr": 1e-3, "epoch": 4, "runs": "x"}, "d": {"lr": 1e-2, "epoch": 4, "runs": "x"},
}  # fmt: skip
SCORES = {"a": 0.5, "b": 0.7, "c": 0.5, "d": 0.6}


def test_a_grid_averages_its_pairs():
    table = effects(factors(GRID), {name: run(score) for name, score in SCORES.items()}).set_index("parameter")
    # lr: (0.7 - 0.5 + 0.6 - 0.5) / 2; epoch: (0.5 - 0.5 + 0.6 - 0.7) / 2
    assert table["difference"].tolist() == pytest.approx([0.15, -0.05])
    assert table[["value", "instead_of", "pairs"]].to_numpy().tolist() == [["0.01", "0.001", 2], ["4", "2", 2]]
    # All runs were moved alike by every resample, so the differences are sure: p is 1 in 102.
    assert table["low"].tolist() == pytest.approx([0.15, -0.05])
    assert table["p"].tolist() == pytest.approx([1 / 102, 1 / 102])


def resampled_means(values: np.ndarray, n: int, seed: int) -> dict[str, Resampled]:
    """Runs [R, images] whose final score is the mean over images."""
    draws = resampled_sums(values.T, n, seed) / values.shape[1]
    return {
        f"r{k}": Resampled({"final_score": float(row.mean())}, pd.DataFrame({"final_score": draws[:, k]}))
        for k, row in enumerate(values)
    }


SWEEP = {f"r{k}": {"seed": k} for k in range(28)}  # 27 comparisons with the first


def test_an_effect_is_found_however_many_are_looked_at():
    values = np.random.default_rng(0).normal(0.5, 0.1, (28, 100))
    values[5] += 0.2
    table = effects(factors(SWEEP), resampled_means(values, 199, 0)).set_index("value")
    assert len(table) == 27
    assert list(table.index[table["p"] < 0.05]) == ["5"]


def test_effects_are_seldom_seen_where_there_are_none():
    found = 0
    for seed in range(80):
        values = np.random.default_rng(seed).normal(0.5, 0.1, (28, 100))
        found += (effects(factors(SWEEP), resampled_means(values, 199, seed))["p"] < 0.05).any()
    print(f"{found} of 80 sweeps without an effect show one")
    assert found <= 10  # 4 expected


def test_values_are_in_order_and_the_first_is_the_one_compared_with():
    configs = {"a": {"lr": 10.0}, "b": {"lr": 2.0}, "c": {"lr": 3.0}}
    [factor] = factors(configs)
    assert factor.levels == ("2.0", "3.0", "10.0")
    table = effects([factor], {"a": run(0.5), "b": run(0.25), "c": run(0.75)})
    assert table[["value", "difference"]].to_numpy().tolist() == [["3.0", 0.5], ["10.0", 0.25]]
    [texts] = factors({"a": {"loss": "mse"}, "b": {"loss": ""}})
    assert texts.levels == ("mse", "none")


def test_what_never_differs_apart_is_one_factor():
    configs = {"a": {"lr": 1, "epoch": 2, "seed": 0}, "b": {"lr": 3, "epoch": 4, "seed": 0}}
    [factor] = factors(configs)
    assert (factor.title, factor.levels) == ("lr, epoch", ("1, 2", "3, 4"))
    said = verdict([factor], effects([factor], {"a": run(0.5), "b": run(0.75)}))
    assert "lr, epoch: 3, 4 instead of 1, 2 changes the final score by +0.250" in said
    assert "lr, epoch never differ apart, so which of them mattered cannot be told." in said


def test_the_verdict_names_the_largest_effect_beyond_chance():
    found = factors(GRID)
    resampled = {name: run(score) for name, score in SCORES.items()}
    lines = verdict(found, effects(found, resampled)).splitlines()
    assert lines[0] == "lr has the largest effect beyond chance. Intervals and p hold for all 2 comparisons at once."
    told = "lr: 0.01 instead of 0.001 changes the final score by +0.150 (+0.150 to +0.150, p = 0.0098, 2 pairs of runs)"
    assert lines[1] == told + ", beyond chance."
    rng = np.random.default_rng(0)
    for one in resampled.values():
        one.draws["final_score"] += rng.normal(0, 1, len(one.draws))
    lines = verdict(found, effects(found, resampled)).splitlines()
    assert lines[0].startswith("No parameter has an effect beyond chance.")
    assert lines[1].endswith("not beyond chance.")


def test_larger_effects_that_chance_may_explain_are_told():
    columns = ["parameter", "value", "instead_of", "pairs", "difference", "low", "high", "p"]
    rows = [
        ("lr", "1", "0", 1, 0.05, 0.04, 0.06, 0.01),
        ("lr", "2", "0", 1, 0.09, -0.1, 0.3, 0.4),
        ("epoch", "3", "2", 1, -0.08, -0.2, 0.1, 0.2),
        ("seed", "1", "0", 1, 0.01, 0.0, 0.02, 0.3),
    ]
    lines = verdict(factors({"a": {"lr": 0}, "b": {"lr": 1}}), pd.DataFrame(rows, columns=columns)).splitlines()
    assert lines[0].startswith(
        "lr has the largest effect beyond chance. Larger ones that chance may explain: of lr, epoch."
    )
    assert [line.split(" instead")[0] for line in lines[1:5]] == ["lr: 2", "epoch: 3", "lr: 1", "seed: 1"]


def test_what_the_runs_cannot_tell_is_told():
    # Every run differs from every other in both.
    configs = {"a": {"lr": 1, "epoch": 5}, "b": {"lr": 2, "epoch": 5}, "c": {"lr": 3, "epoch": 6}}
    found = factors(configs)
    said = verdict(found, effects(found, {name: run(0.5) for name in configs}))
    assert "epoch: no two runs differ in it alone, so what it did cannot be told." in said
    assert verdict([], effects([], {})) == "No parameter differs between these runs."


def test_every_factor_has_a_panel_on_one_scale():
    configs = {name: config | {"seed": k} for k, (name, config) in enumerate(GRID.items())}
    resampled = {name: run(score, 0.05) for name, score in SCORES.items()}
    fig, says = comparison_figures.effects_figure(factors(configs), resampled)
    assert [ax.get_title() for ax in fig.axes] == ["lr", "epoch", "seed"]
    assert len({ax.get_ylim() for ax in fig.axes}) == 1
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["0.001", "0.01"]
    assert fig.axes[0].get_ylabel() == "final score"
    assert "seed: no two runs differ in it alone" in says
    assert comparison_figures.effects_figure([], {})[0] is None
