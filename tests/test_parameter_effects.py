"""Which parameter of a sweep mattered: pairs of runs that differ in it alone, on final scores chosen by hand."""

import numpy as np
import pandas as pd
import pytest

from lib.evaluate.parameter_effects import effects, factors
from lib.metrics.statistics import Resampled, resampled_sums


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


def test_an_effect_is_found_however_many_are_looked_at():
    values = np.random.default_rng(0).normal(0.5, 0.1, (28, 100))  # 27 comparisons with the first
    values[5] += 0.2
    sweep = {f"r{k}": {"seed": k} for k in range(28)}
    table = effects(factors(sweep), resampled_means(values, 199, 0)).set_index("value")
    assert len(table) == 27
    assert list(table.index[table["p"] < 0.05]) == ["5"]


def test_values_are_in_order_and_the_first_is_the_one_compared_with():
    configs = {"a": {"lr": 10.0}, "b": {"lr": 2.0}, "c": {"lr": 3.0}}
    [factor] = factors(configs)
    assert factor.levels == ("2.0", "3.0", "10.0")
    table = effects([factor], {"a": run(0.5), "b": run(0.25), "c": run(0.75)})
    assert table[["value", "difference"]].to_numpy().tolist() == [["3.0", 0.5], ["10.0", 0.25]]
    [texts] = factors({"a": {"loss": "mse"}, "b": {"loss": ""}})
    assert texts.levels == ("mse", "none")


def test_what_always_changes_together_is_one_factor():
    configs = {"a": {"lr": 1, "epoch": 2, "seed": 0}, "b": {"lr": 3, "epoch": 4, "seed": 0}}
    [factor] = factors(configs)
    first, second = levels = ("lr 1, epoch 2", "lr 3, epoch 4")
    assert (factor.names, factor.title, factor.levels) == (("lr", "epoch"), "lr, epoch", levels)
    [row] = effects([factor], {"a": run(0.5), "b": run(0.75)}).itertuples()
    assert (row.parameter, row.value, row.instead_of, row.difference) == ("lr, epoch", second, first, 0.25)
    many = {name: dict.fromkeys("uvwxyz", name) for name in ("a", "b")}
    assert factors(many)[0].title == "u, v, w, 3 more"


def test_without_pairs_there_is_no_effect():
    configs = {"a": {"lr": 1, "epoch": 5}, "b": {"lr": 2, "epoch": 5}, "c": {"lr": 3, "epoch": 6}}
    table = effects(factors(configs), {name: run(0.5) for name in configs})
    assert table[["parameter", "value", "instead_of"]].to_numpy().tolist() == [["lr", "2", "1"]]  # none for epoch
    assert effects([], {}).empty and factors({"a": {"lr": 1}}) == []
