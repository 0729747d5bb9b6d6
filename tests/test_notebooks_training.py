"""Notebooks 2 and 3 executed by papermill on a tiny checkpoint, as `make demo` does."""

import json
from pathlib import Path

import papermill
import pytest

from lib.config import Experiment
from lib.model import DistortionDetector

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def execute(name: str, out: Path, **parameters):
    return papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        out / f"{name}.ipynb",
        parameters,
        kernel_name="python3",
        progress_bar=False,
        cwd=str(NOTEBOOKS),
    )


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs if output["output_type"] == "stream")


@pytest.fixture(scope="module")
def trained(prepared, micro_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    notebook = execute(
        "2_train", out, experiment_name="tiny", runs=str(out), data_path=str(prepared),
        checkpoint=str(micro_checkpoint), input_size=32, mask_size=32, mask_stride=8, epoch=2, warmup_epoch=1,
        batch_size=8, batch_size_warmup=8, accumulate_step=1, val_iter=1, num_workers=0, log_iter=1,
    )  # fmt: skip
    return out / "tiny", notebook


def test_training_notebook_leaves_a_loadable_model(trained):
    run, notebook = trained
    assert DistortionDetector.from_pretrained(run).config.epoch == 2
    assert "step 9/9" in printed(notebook)
    assert "of the encoder's" in printed(notebook)


def test_training_notebook_shows_pictures_and_curves(trained):
    images = [o for cell in trained[1].cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(images) >= 2


def test_evaluation_notebook_writes_checked_figures(trained, prepared):
    run, _ = trained
    notebook = execute("3_evaluate", run, run=str(run), threshold_step=50, resamples=20, flip=True)
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["split"] == "test"
    assert set(summary["figures"]) >= {"final_score", "f1_score", "precision", "recall", "giou", "plcc", "srcc"}
    assert set(summary["by_domain"]) == {"shown", "shifted"}
    assert summary["trivial"]["srcc"] is None  # a constant score ranks nothing
    assert summary["before"] is not None
    low, high = summary["intervals"]["giou"]
    assert low <= summary["figures"]["giou"] <= high
    said = "".join(
        o["data"].get("text/markdown", "") for c in notebook.cells for o in c.get("outputs", []) if "data" in o
    )
    assert "A mask that fills every frame would reach F1" in said
    assert f"Final score {summary['figures']['final_score']:.3f}" in printed(notebook)


def test_training_notebook_lists_every_parameter_with_its_default():
    cells = json.loads((NOTEBOOKS / "2_train.ipynb").read_text())["cells"]
    source = "".join(next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))["source"])
    shown: dict = {}
    exec(source, shown)  # noqa: S102 (our own cell of literals)
    del shown["__builtins__"]
    assert shown == Experiment().to_dict()


def test_a_misspelt_parameter_stops_the_notebook(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean lr"):
        execute("2_train", tmp_path, lrr=5)
