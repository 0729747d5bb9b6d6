"""Notebooks 3 to 6 on the splits people have: labelled, without labels, held out of train; and as pages."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from example_evaluations import finished, forget_labels
from example_plans import fetched
from example_runs import CASES, write_run, write_split
from executed import ROOT, execute, outputs, prose, silent_sections
from test_comparison import BETTER, evaluation_of

from lib.challenge import read_submission
from lib.data.prepare import prepare
from lib.data.splits import hold_out
from lib.evaluate.robustness import CHANGES
from lib.metrics.field import MEASURES
from lib.pipeline.page import export_page


def run_notebook(name: str, run, out, **parameters):
    """The executed notebook, and its prose with what it printed."""
    notebook = execute(name, out, run=str(run), resamples=5, **parameters)
    return notebook, "\n".join([prose(notebook), *outputs(notebook, "stdout")])


@pytest.fixture(scope="module")
def data(raw, tmp_path_factory):
    """Prepared data whose test split has no labels, as the challenge hands it out."""
    folder = tmp_path_factory.mktemp("data")
    prepare(raw, folder, workers=1)
    forget_labels(folder / "test")
    return folder


@pytest.fixture(scope="module")
def run(micro_experiment, data, tmp_path_factory):
    """An untrained run that held 6 images out of train."""
    return finished(micro_experiment(tmp_path_factory.mktemp("runs"), data_path=str(data), val_split=6, seed=2))


def test_a_split_without_labels_is_predicted_and_submitted(run, tmp_path):
    notebook, text = run_notebook("3_evaluate", run, tmp_path, threshold_step=50, submission=True, effects=True)
    assert text.count("This split has no labels") >= 4 and "tell domains apart" not in text
    assert "Predicted 8 images of test" in text
    assert json.loads((run / "evaluation.json").read_text())["figures"] is None
    submission, notes = read_submission(run / "submission" / "submission.zip")
    assert len(submission.ids) == 8 and not notes
    assert all(submission.heatmap(id).shape == (512, 512) for id in submission.ids)
    assert not [text for text in outputs(notebook, "text/plain") if text.startswith("'")]  # prose, not a value
    assert silent_sections(notebook) == []


def test_images_held_out_of_train_are_measured_and_explained(run, data, tmp_path):
    where = {"split": "held_out", "calibration": "held_out", "robustness": 2}
    where |= {"threshold": 90, "min_areas": [0.0006, 0.01], "frozen": str(run)}
    notebook, text = run_notebook("3_evaluate", run, tmp_path, **where)
    assert "Threshold 90, regions above 0.06% of the frame: set by hand." in text
    evaluation = json.loads((run / "evaluation.json").read_text())
    own, trivial = (evaluation[name]["final_score"] for name in ("figures", "trivial"))
    assert f"Final score: {own:.3f} (" in text and f"trivial baseline {trivial:.3f}" in text
    assert set(evaluation["robustness"]) == {"as they are", *CHANGES}
    assert evaluation["robustness"]["crop"].keys() >= {"f1_score", "mos_moved", "flipped"}
    assert evaluation["frozen"]["ahead"].keys() == {"difference", "low", "high", "p"} and "encoder frozen" in text
    assert "epsilon is 1e-08" in text.lower() and set(MEASURES) < set(evaluation["field"])
    assert re.search("trivial baseline: .* so PLCC, SRCC and KRCC are undefined", text)
    assert silent_sections(notebook) == []
    notebook, text = run_notebook("4_error_analysis", run, tmp_path, split="held_out", workers=1)
    assert f"6 labelled images of {data / 'train'}; threshold 90, regions above 0.06% of the frame" in text
    assert "With threshold 90, regions above 0.06% of the frame, run finds" in text
    assert silent_sections(notebook) == []
    rows = (run / "error_analysis" / "held_out" / "images.csv").read_text().splitlines()[1:]
    assert sorted(re.split(",", row)[0] for row in rows) == sorted(hold_out(data, 6, 2))
    suspects = pd.read_csv(run / "error_analysis" / "held_out" / "suspects.csv")
    assert list(suspects) == ["id", "reason", "suspicion", "x", "y", "area", "detail"]
    assert suspects["suspicion"].between(0, 1).all() and suspects["suspicion"].is_monotonic_decreasing


@pytest.mark.slow
@pytest.mark.ci
def test_every_way_to_a_stronger_prediction_shows_in_the_outputs(micro_experiment, tmp_path):
    """On a labelled split, without a model that has learned: what was asked for is told, whatever it is worth."""
    runs = [finished(micro_experiment(tmp_path, experiment_name=f"run_{seed}", seed=seed)) for seed in (1, 2)]
    views = {"flip": True, "scales": [1.0, 2.0], "smoothings": [0.0, 8.0], "effects": True}
    together = {"ensemble": [str(runs[1])], "weights": [3.0, 1.0], "ensemble_name": "both"}
    cheap = {"threshold_step": 50, "min_areas": [0.0006], "num_processes": 2, "before": False}
    notebook, text = run_notebook("3_evaluate", runs[0], tmp_path, **views, **together, **cheap)
    assert "the best of 12 settings on val; test had no say in it" in text
    assert f"written to {tmp_path / 'both' / 'evaluation.json'}" in text
    told = json.loads((tmp_path / "both" / "ensemble.json").read_text())
    assert told == {"runs": [run.as_posix() for run in runs], "weights": [3.0, 1.0]}
    for run in runs:
        member = run / "predictions" / "test"
        note = json.loads((member / "prediction.json").read_text())
        assert (note["flip"], note["scales"]) == (True, [1.0, 2.0])
        assert len(list(member.glob("scores_*.part.jsonl"))) == 2
    ensemble = json.loads((tmp_path / "both" / "predictions" / "test" / "prediction.json").read_text())
    assert ensemble["weights"] == [0.75, 0.25]
    [effects] = [html for html in outputs(notebook, "text/html") if "Each on its own against the plain" in html]
    rows = re.findall(r"<td[^>]*col0[^>]*>([^<]*)</td>", effects)
    assert rows == ["plain", "flip", "scales", "smoothing", "ensemble", "together"]
    assert list(json.loads((tmp_path / "both" / "evaluation.json").read_text())["effects"]) == rows
    assert silent_sections(notebook) == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("notebooks")
    write_split(root / "data/test")
    for name, cases in (("worse", CASES), ("better", BETTER)):
        evaluation_of(write_run(root / "runs" / name, root / "data", cases), root / "data")
    return root / "runs"


def page_of(name: str, out: Path, cwd: Path, monkeypatch, **parameters) -> tuple[nbformat.NotebookNode, str]:
    """The executed notebook and its page."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = execute(name, out, cwd, **parameters)
    export_page(out / f"{name}_executed.ipynb", out / "page.html", name)
    page = (out / "page.html").read_text(encoding="utf-8")
    assert fetched(page) == []
    return notebook, page


def test_mask_inspection_leaves_a_picture_where_the_widget_was(compared, tmp_path, monkeypatch):
    verdicts = compared / "worse/verdicts/test.jsonl"
    verdicts.parent.mkdir()
    verdicts.write_text("broken\n")
    parameters = {
        "run": str(compared / "worse"),
        "compare_with": str(compared / "better"),
        "n_static": 2,
        "n_exported": 3,
    }
    notebook, page = page_of("5_mask_inspection", tmp_path, ROOT / "notebooks", monkeypatch, **parameters)
    assert outputs(notebook, "application/vnd.jupyter.widget-view+json") and page.count("<img ") == 1
    assert "wrong_area" in page and "0 of 4 images judged" in page
    assert page.count("line 1 is no JSON; mend or delete") == 1
    assert verdicts.read_text() == "broken\n"
    # The predicted regions of the first images come back from either format: two false ones and a hit, then none.
    tasks = json.loads((verdicts.parent / "test_predicted/label_studio.json").read_text())
    assert [task["data"]["image"].rpartition("=")[2] for task in tasks] == ["false.jpg", "missed.jpg", "perfect.jpg"]
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [3, 0, 1]
    assert len(json.loads((verdicts.parent / "test_predicted/coco.json").read_text())["annotations"]) == 4


def test_comparison_names_the_better_run_and_takes_a_single_one(compared, tmp_path, monkeypatch):
    _, page = page_of("6_compare_runs", tmp_path, ROOT, monkeypatch, runs=str(compared), bootstrap=20, n_gallery=1)
    assert "2 runs on test; the others are compared with better." in page
    assert "worse has less wrong area than better on 0 of 4 images, more on 2." in page
    assert page.count("<img ") == 5
    _, page = page_of("6_compare_runs", tmp_path, ROOT, monkeypatch, runs=str(compared), names=["worse"], bootstrap=5)
    assert "nothing to compare" in page
