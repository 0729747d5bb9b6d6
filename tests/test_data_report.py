"""What notebook 1 tells of prepared splits."""

import io
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from lib.errors import InputError
from lib.reports import data as data_report
from lib.stores import LabelStore


@pytest.fixture(scope="module")
def labels(prepared):
    return LabelStore(prepared / "test")


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
        fig.savefig(io.BytesIO(), format="png")
        assert says.startswith(("There are too few", "No "))
    assert data_report.attribute_figure(stores)[0] is None
    fig, says = data_report.sample_sheet(stores["test"], "test", n=2)
    assert says == "2 of 8 images of test."
    assert "no score" in fig.axes[0].get_title()
