"""The notebooks executed headless: on the data that people have, as pages, stopped and resumed, each cell run twice."""

import copy
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from example_evaluations import finished, forget_labels
from example_plans import fetched
from example_runs import CASES, EVALUATION, write_run, write_split
from executed import ROOT, TINY, execute, outputs, pictures, printed, prose, silent_sections
from test_comparison import BETTER, evaluation_of

from lib.challenge import read_submission
from lib.config import Experiment
from lib.data.prepare import prepare
from lib.data.splits import hold_out
from lib.evaluate.robustness import CHANGES
from lib.metrics.field import MEASURES
from lib.model.detector import DistortionDetector
from lib.pipeline.kernel import execute as execute_step
from lib.pipeline.summary import export_page
from lib.stores import LabelStore, write_heatmap
from lib.train.checkpoint import latest_checkpoint, read_state


@pytest.fixture(scope="module")
def procedural(tmp_path_factory):
    """Notebook 1 on a procedural data set that it writes itself, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a folder")
    counts = {"train": 12, "val": 4, "test": 16}
    parameters = {"synthetic": True, "synthetic_counts": counts, "synthetic_size": 96, "workers": 1}
    return folder, execute("1_data_processing", folder / "out", data_root=str(folder / "raw"), **parameters)


def test_data_notebook_prepares_and_shows(procedural):
    folder, notebook = procedural
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


def test_data_notebook_on_participants_data(procedural, tmp_path):
    """No attributes, a broken record, an unlabelled test split, no val; started from the notebooks' own folder."""
    folder, _ = procedural
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
def faulty(procedural):
    """A run whose predictions are blurred labels with two faults: one image missed whole, one invented region."""
    folder, _ = procedural
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


def test_error_analysis_notebook_tells_its_story(faulty):
    run, marked = faulty
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
    assert "settings on val; test had no say in it" in text and "Predicted 8 images of test" in text
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
    cheap = {"threshold_step": 50, "min_areas": [0.0006], "num_processes": 2}
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
    evaluation = json.loads((tmp_path / "both" / "evaluation.json").read_text())
    assert list(evaluation["effects"]) == rows and evaluation["effects"]["plain"]["p"] is None
    assert evaluation["effects"]["together"]["final_score"] == pytest.approx(evaluation["figures"]["final_score"])
    for row in list(evaluation["effects"].values())[1:]:
        assert row["low"] <= row["difference"] <= row["high"]
    assert silent_sections(notebook) == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("notebooks")
    write_split(root / "data/test")
    for name, cases, lr in (("worse", CASES, 0.01), ("better", BETTER, 0.001)):
        evaluation_of(write_run(root / "runs" / name, root / "data", cases, lr=lr), root / "data")
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
    assert page.count("<img ") == 6
    effect = r"<td[^>]*>lr</td>\s*<td[^>]*>0.01</td>\s*<td[^>]*>0.001</td>\s*<td[^>]*>1</td>\s*<td[^>]*>-0.\d+</td>"
    assert len(re.findall(effect, page)) == 1
    _, page = page_of("6_compare_runs", tmp_path, ROOT, monkeypatch, runs=str(compared), names=["worse"], bootstrap=5)
    assert "nothing to compare" in page


def test_the_training_notebook_shows_pictures_and_leaves_a_loadable_model(prepared, micro_checkpoint, tmp_path):
    where = {"experiment_name": "tiny", "runs": str(tmp_path), "checkpoint": str(micro_checkpoint)}
    notebook = execute("2_train", tmp_path, ROOT / "notebooks", data_path=str(prepared), **where, **TINY)
    assert DistortionDetector.from_pretrained(tmp_path / "tiny").config.epoch == 2
    assert "step 9/9" in printed(notebook) and "of the encoder's" in printed(notebook)
    assert pictures(notebook) >= 2


def two_processes(data: Path, checkpoint: Path, runs: Path) -> dict:
    """Parameters of notebook 2 for two processes: 24 images, eight a step, two epochs, so six steps."""
    where = {"experiment_name": "two", "runs": str(runs), "data_path": str(data), "checkpoint": str(checkpoint)}
    return TINY | where | {"epoch": 1, "batch_size": 4, "batch_size_warmup": 4, "val_iter": -1, "num_processes": 2}


@pytest.mark.slow
def test_lines_of_several_processes_appear_in_the_cell_and_in_the_log(prepared, micro_checkpoint, tmp_path, capsys):
    executed, parameters = tmp_path / "executed.ipynb", two_processes(prepared, micro_checkpoint, tmp_path)
    assert execute_step(ROOT / "notebooks/2_train.ipynb", executed, parameters, ROOT) is None
    steps = [f"step {number}/6" for number in range(1, 7)]
    assert re.findall(r"^step \d+/\d+", printed(nbformat.read(executed, 4)), re.MULTILINE) == steps
    assert re.findall(r"^step \d+/\d+", capsys.readouterr().out, re.MULTILINE) == steps


@pytest.mark.slow
@pytest.mark.ci
def test_a_stopped_pipeline_leaves_a_checkpoint_and_goes_on_from_it(prepared, micro_checkpoint, tmp_path):
    parameters = two_processes(prepared, micro_checkpoint, tmp_path) | {"num_processes": 1, "epoch": 1000}
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"name": "plan", "parameters": parameters, "steps": [{"notebook": "2_train"}]}))
    told, _ = _stopped_after("step 3/", plan)
    newest = latest_checkpoint(tmp_path / "two")
    step = read_state(newest)["step"]
    assert step >= 3
    sentence = f"SIGINT: stopped at step {step} of 6006 and saved; the same command goes on from here."
    assert sentence in told
    assert sentence in (tmp_path / "plan" / "notebooks" / "1_2_train.ipynb").read_text()
    told, first = _stopped_after(f"step {step + 1}/", plan)
    assert f"Going on from {newest}." in told
    assert first == step + 1


def _stopped_after(line: str, plan: Path) -> tuple[str, int]:
    """What the pipeline tells until SIGTERM has ended it, sent when it prints the line; the first step it tells of."""
    command = [sys.executable, "-m", "lib.pipeline", plan, "--runs", plan.parent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for text in process.stdout:
        lines.append(text)
        if text.strip().startswith(line):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 130, "".join(lines)
    told = "".join(lines)
    return told, int(re.search(r"step (\d+)/", told)[1])


def execute_twice(name: str, out: Path, **parameters) -> nbformat.NotebookNode:
    """Execute a notebook with every code cell doubled, but the one of the parameters."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            again = copy.deepcopy(cell)
            again.id = f"{cell.id}-again"
            cells.append(again)
    notebook.cells = cells
    nbformat.write(notebook, out / f"{name}.ipynb")
    return execute(name, out, ROOT, out / f"{name}.ipynb", **parameters)


@pytest.mark.slow
@pytest.mark.ci
def test_every_cell_may_run_twice(raw, micro_checkpoint, tmp_path):
    data, runs = tmp_path / "data", tmp_path / "runs"
    run = runs / "one"
    execute_twice("1_data_processing", tmp_path, data_root=str(raw), data_path=str(data), workers=1)
    where = {"experiment_name": "one", "runs": str(runs), "data_path": str(data), "checkpoint": str(micro_checkpoint)}
    trained = execute_twice("2_train", tmp_path, **where, **TINY | {"epoch": 1})
    assert "is already trained" in printed(trained)  # and the second time nothing was trained anew
    views = {"flip": True, "effects": True, "submission": True}
    execute_twice("3_evaluate", tmp_path, run=str(run), threshold_step=50, resamples=5, **views)
    execute_twice("4_error_analysis", tmp_path, run=str(run), resamples=5, workers=1)
    execute_twice("5_mask_inspection", tmp_path, run=str(run), n_static=2)
    execute_twice("6_compare_runs", tmp_path, runs=str(runs), bootstrap=10)
