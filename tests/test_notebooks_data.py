"""Notebooks 1 and 4 executed by papermill as the pipeline does it, on a data set of a few dozen small images."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from example_runs import EVALUATION, write_run, write_split
from executed import ROOT, execute, outputs, pictures, printed, prose

from lib.config import Experiment
from lib.stores import LabelStore, write_heatmap


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Notebook 1 on a procedural data set that it writes itself, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a folder")
    counts = {"train": 12, "val": 4, "test": 16}
    parameters = {"synthetic": True, "synthetic_counts": counts, "synthetic_size": 96, "workers": 1}
    return folder, execute("1_data_processing", folder / "out", data_root=str(folder / "raw"), **parameters)


def test_data_notebook_prepares_and_shows(data):
    folder, notebook = data
    for split, count in (("train", 12), ("val", 4), ("test", 16)):
        store = LabelStore(folder / "raw" / "prepared" / split)
        assert len(store.ids) == count
        assert store.heatmap(store.ids[-1]).shape == store.image(store.ids[-1]).shape[:2]
    assert "drawn 32/32" in printed(notebook) and "prepared test 16/16" in printed(notebook)
    assert pictures(notebook) == 8  # one annotation, scores, regions, places, attributes, and a sheet a split
    text = prose(notebook)
    assert "No problem was found in train, val, test" in text
    assert f"32 images (32 with a heatmap) are prepared in {folder / 'raw' / 'prepared'}: train, val, test" in text
    assert outputs(notebook, "stderr") == []


def test_data_notebook_on_participants_data(data, tmp_path):
    """No attributes, a broken record, an unlabelled test split, no val; started from the notebooks' own folder."""
    folder, _ = data
    raw = tmp_path / "raw"
    for split, keep in (("train", 6), ("test", 4)):
        source = folder / "raw" / split
        info = json.loads((source / f"{split}_info.json").read_text())
        info = {id: dict(record) for id, record in list(info.items())[:keep]}
        if split == "test":
            info = {id: {"prompt_en": record["prompt_en"]} for id, record in info.items()}
        else:
            info["ghost"] = next(iter(info.values()))
        (raw / split).mkdir(parents=True)
        (raw / split / "images").symlink_to(source / "images")
        (raw / split / f"{split}_info.json").write_text(json.dumps(info))
    where = {"data_root": str(raw), "data_path": str(tmp_path / "data")}
    notebook = execute("1_data_processing", tmp_path, ROOT / "notebooks", **where)
    told = (f"{raw} has no val", "problems, ", "This data set has no attributes")
    assert all(text in prose(notebook) for text in told)
    assert any("image missing" in table for table in outputs(notebook, "text/html"))
    assert not LabelStore(tmp_path / "data" / "test").table["labelled"].any()


@pytest.fixture(scope="module")
def run(data):
    """A run whose predictions are blurred labels with two faults: one image missed whole, one invented region."""
    folder, _ = data
    run, labels = folder / "runs" / "fake", LabelStore(folder / "raw" / "prepared" / "test")
    config = Experiment(experiment_name="fake", runs=str(folder / "runs"), data_path=str(labels.path.parent))
    config.save(run / "config.yaml")
    marked = [id for id in labels.ids if labels.heatmap(id).any()]
    for id in labels.ids:
        heatmap = cv2.GaussianBlur(cv2.resize(labels.heatmap(id), (64, 64), interpolation=cv2.INTER_AREA), None, 1)
        heatmap = np.zeros_like(heatmap) if id == marked[0] else heatmap
        if id == marked[1]:
            heatmap[:6, :6] = 240
        write_heatmap(run / "predictions" / "test" / "heatmaps" / f"{id}.png", heatmap)
    scores = 0.1 + 0.8 * labels.table["score"].to_numpy()
    pd.DataFrame({"id": labels.ids, "score": scores}).to_parquet(run / "predictions" / "test" / "scores.parquet")
    figures, trivial = {"final_score": 0.7, "f1_score": 0.9}, {"f1_score": 0.25, "srcc": None, "final_score": 0.18}
    evaluation = {"data_path": str(labels.path.parent), "split": "test", "threshold": 40, "figures": figures}
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"trivial": trivial}))
    return run, marked


def test_error_analysis_notebook_tells_its_story(run):
    run, marked = run
    options = {"n_examples": 2, "resamples": 20, "workers": 1, "save_as": ["png", "tex"]}
    notebook = execute("4_error_analysis", run / "out", run=str(run), **options)
    images = pd.read_csv(run / "error_analysis" / "test" / "images.csv", index_col="id")
    assert images.loc[marked[0], "hit"] == 0 < images.loc[marked[0], "missed"] and images.loc[marked[1], "false"] > 0
    regions = pd.read_csv(run / "error_analysis" / "test" / "regions.csv")
    assert len(regions) == images[["n_true", "n_predicted"]].to_numpy().sum()
    assert {"size", "place", "kinds", "domain", "votes"} <= set(regions)
    saved = {path.stem for path in (run / "error_analysis" / "test").glob("*.png")}
    groups = {"size", "place", "kinds", "agreement", "words", "shape", "domain"}  # too few images for `further`
    galleries = {"worst", "best", "missed", "false", "score_errors", "suspects"}
    assert saved == groups | galleries | {"scores", "threshold"}
    assert pictures(notebook) == len(saved) + 2  # the last section's examples are not saved
    text = prose(notebook)
    assert "With threshold 40, regions above 0.06% of the frame, fake finds" in text
    assert f"images.csv ({len(images)} rows)" in printed(notebook)
    assert "Final score & F1" in (run / "error_analysis" / "test" / "figures.tex").read_text()
    tables = outputs(notebook, "text/html")
    for told in ("trivial baseline", "shifted (12 images)"):
        assert any(told in table for table in tables)
    assert outputs(notebook, "stderr") == []


def test_error_analysis_of_sound_images_without_scores_complains_of_nothing(tmp_path):
    cases = {f"s{number}": ([], []) for number in range(12)}
    data = write_split(tmp_path / "data" / "test", cases, score=np.nan).parent.parent
    run = write_run(tmp_path / "run", data / "data", cases, evaluation=EVALUATION)
    notebook = execute("4_error_analysis", tmp_path, run=str(run), resamples=5, workers=1, n_examples=2)
    assert outputs(notebook, "stderr") == []
    assert "nan" not in "".join(outputs(notebook, "text/markdown")).lower()
