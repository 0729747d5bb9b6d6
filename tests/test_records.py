"""The border to the kit's own files: each kind of damage, in each file, is one sentence with the file and a remedy."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_runs import write_run, write_split
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.evaluate import comparison
from lib.evaluate.run_on_split import open_run
from lib.evaluation_file import read_evaluation
from lib.model import DistortionDetector
from lib.records import read_lines, read_record, read_table
from lib.stores import LabelStore, PredictionStore, write_heatmap
from lib.train import read_finished, read_metrics
from lib.train.checkpoint import read_state

OLD = Path(__file__).parent / "golden" / "old_run"
EVALUATION = {"split": "test", "threshold": 90, "figures": {"final_score": 0.5, "f1_score": 0.5}}
STATE = "checkpoints/step_00000001/state.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
# file -> how the kit reads it, and a column or field that it needs
TABLES = {
    "data/test/manifest.parquet": (lambda root: LabelStore(root / "data/test").table, "labelled"),
    "data/test/regions.parquet": (lambda root: LabelStore(root / "data/test").regions, "points"),
    "run/predictions/test/scores.parquet": (lambda root: PredictionStore(root / "run/predictions/test").table, "id"),
}
RECORDS = {
    "run/evaluation.json": (lambda root: read_evaluation(root / "run"), "threshold"),
    "run/finished.json": (lambda root: read_finished(root / "run"), "seconds"),
    "run/ensemble.json": (lambda root: comparison.parameters(open_run(root / "run", "test")), "runs"),
    "run/model/detector.json": (lambda root: DistortionDetector.from_pretrained(root / "run"), "experiment"),
    f"run/{STATE}": (lambda root: read_state((root / "run" / STATE).parent), "step"),
}
DAMAGE = {
    "empty": (lambda data: b"", "It is empty: copy it again"),
    "cut short": (lambda data: data[: len(data) * 2 // 3], "is cut short"),
    "an LFS pointer": (lambda data: POINTER, "Git LFS pointer"),
    "zipped": (lambda data: b"\x1f\x8b\x08" + data, "gzip file"),
    "other bytes": (lambda data: bytes(range(128, 256)), "is no"),
}


@pytest.fixture
def root(tmp_path) -> Path:
    """A prepared split, and a run with every file that the kit writes."""
    write_split(tmp_path / "data/test")
    run = write_run(tmp_path / "run", tmp_path / "data", evaluation=EVALUATION)
    shutil.copytree(OLD / "model", run / "model")
    for name in ("finished.json", "metrics.jsonl"):
        shutil.copy(OLD / name, run)
    (run / "ensemble.json").write_text(json.dumps({"runs": ["runs/a", "runs/b"], "weights": None}))
    (run / STATE).parent.mkdir(parents=True)
    (run / STATE).write_text(json.dumps({"step": 1, "scaler": None}))
    return tmp_path


def refused(path: Path, read, root: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(root)
    sentence = str(caught.value)
    assert str(path) in sentence and sentence[-1] != " ", sentence
    assert any(word in sentence.lower() for word in ("again", "delete", "update", "ask")), sentence
    return sentence


@pytest.mark.parametrize("name", [*TABLES, *RECORDS])
def test_a_damaged_file_is_named_with_its_damage_and_a_remedy(root, name):
    path, (read, field) = root / name, (TABLES | RECORDS)[name]
    read(root)
    whole = path.read_bytes()
    for damage, sentence in DAMAGE.values():
        path.write_bytes(damage(whole))
        assert sentence in refused(path, read, root)
    if name in TABLES:
        table = pd.read_parquet(io.BytesIO(whole))
        table.drop(columns=field).to_parquet(path)
        assert f"has no column {field}" in refused(path, read, root)
        table.assign(**{field: [{"a": 1}] * len(table)}).to_parquet(path)
        assert f"in the column {field}" in refused(path, read, root)
        return
    for text in ("null", "[]", "3", "[" * 5000):
        path.write_text(text)
        refused(path, read, root)
    record = json.loads(whole)
    path.write_text(json.dumps({key: value for key, value in record.items() if key != field}))
    assert f"holds no {field}" in refused(path, read, root)
    for value in (None, "five", True):
        path.write_text(json.dumps(record | {field: value}))
        assert f"holds {field} = {json.dumps(value)}, which is not" in refused(path, read, root)
    path.write_text(json.dumps(record | {"format": 99}))
    assert "format 99 of a newer version of this kit" in refused(path, read, root)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"n_images": "x"}, "holds n_images"),
        ({"figures": {"final_score": 0.5, "f1_score": None, "plcc": []}}, "holds in figures what holds plcc = []"),
        ({"intervals": {"plcc": [0.1]}}, "holds in intervals what holds plcc = [0.1], which is not two numbers"),
        ({"frozen": {"final_score": 0.5, "f1_score": 0.5, "intervals": 3}}, "holds in frozen what holds in intervals"),
    ],
    ids=["number", "figure", "interval", "baseline"],
)
def test_no_figure_is_something_else(root, changed, told):
    path = root / "run/evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert told in refused(path, lambda _: read_evaluation(root / "run"), root)


def test_a_model_without_its_sizes_is_not_given_others(root):
    path, (read, _) = root / "run/model/detector.json", RECORDS["run/model/detector.json"]
    note = json.loads(path.read_text())
    del note["experiment"]["input_size"]
    path.write_text(json.dumps(note))
    assert "holds in experiment what holds no input_size" in refused(path, read, root)


def test_a_log_says_which_line_is_damaged_and_forgives_half_a_line_at_the_end(root):
    path = root / "run/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + lines[0][:20])
    assert [row["step"] for row in read_metrics(root / "run")] == [1, 2, 3, 4]
    text_as_loss = json.dumps(json.loads(lines[1]) | {"loss": "nan"}) + "\n"
    for torn in ("null\n", lines[1][:20] + "\n", '{"seconds": 1}\n', "\0\0\n", text_as_loss):
        path.write_text(lines[0] + torn + lines[2])
        assert "line 2" in refused(path, lambda root: read_metrics(root / "run"), root)
    path.unlink()
    assert read_metrics(root / "run") == []


def test_values_that_no_run_writes_are_refused(root):
    scores = root / "run/predictions/test/scores.parquet"
    table = pd.read_parquet(scores)
    read = TABLES["run/predictions/test/scores.parquet"][0]
    for value in (3.0, -0.1, float("inf"), float("nan")):
        table.assign(score=[value, *table["score"][1:]]).to_parquet(scores)
        assert "in 0..1" in refused(scores, read, root)
    table.assign(id=table["id"].iloc[0]).to_parquet(scores)
    assert "perfect twice" in refused(scores, read, root)
    (root / "run/predictions/test/images.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="test-.* holds no scores"):  # the others are of other images, it seems
        open_run(root / "run", "test")
    heatmap = root / "data/test/heatmaps/perfect.png"
    write_heatmap(heatmap, np.zeros((300, 400), np.uint8))
    store = LabelStore(root / "data/test")
    assert "400 x 300 pixels, its image 512 x 512" in refused(heatmap, lambda _: store.heatmap("perfect"), root)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_called_that(root):
    for name, (read, _) in (TABLES | RECORDS).items():
        (root / name).chmod(0)
        assert "permission denied" in refused(root / name, read, root)
        (root / name).chmod(0o644)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b", "c"]) | st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.one_of(VALUES.map(json.dumps), st.text()).map(lambda text: text.encode("utf-8", "replace")) | st.binary())
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    fields = {"a": int, "b": float | None, "c": {"a": str}}
    try:
        record = read_record(path, fields, "write it again")
        assert type(record["a"]) is int and isinstance(record["b"], int | float | None)
        assert record["c"] is None or isinstance(record["c"]["a"], str)
    except InputError as error:
        assert str(path) in str(error)
    rows, problems = read_lines(path, fields, "write it again")
    assert len(rows) + len(problems) <= data.count(b"\n") + 1
    with pytest.raises(InputError):
        read_table(path, {"a": int}, "write it again")


def test_a_flipped_byte_in_a_table_is_no_raw_error(root):
    path = root / "data/test/manifest.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            LabelStore(root / "data/test").table  # noqa: B018
