"""One rule for ids, from the annotations to the submission, asked before anything is written."""

import os
import pickle

import numpy as np
import pandas as pd
import pytest

from lib.challenge import import_submission, write_submission
from lib.data.prepare import write_split
from lib.data.readers import Images, Record, check_record
from lib.errors import InputError
from lib.ids import ID_BYTES, refuse_id
from lib.metrics.heatmaps import Heatmaps
from lib.stores import write_heatmap

MASK = np.ones((512, 512), np.uint8)
GOOD = ["a", "007", "a.b", "deux mots", "é 画", "-x", "a" * ID_BYTES, "画" * (ID_BYTES // 3), "it's {id} & $1;#%[0]"]
BAD = [
    "", ".", "..", "../x", "a/b", "a\\b", "a:b", "C:x", 'what is "art"?', "a*", "<a>", "a|b", "a\0b", "a\nb",
    "a\x1b[2J", "\ud800", "a" * (ID_BYTES + 1), "画" * 200,
]  # fmt: skip


RECORD = {"prompt_en": "p", "mos": 3, "bbox_info": []}


@pytest.mark.parametrize("id", GOOD)
def test_ids_that_are_prepared_are_submitted_and_imported(tmp_path, id):
    assert refuse_id(id) == ""
    (tmp_path / f"{id}.jpg").touch()
    record = check_record(id, RECORD, Images(tmp_path))
    assert record.image.is_file() and record.problems == []
    archive = write_submission(Heatmaps({id: MASK}, {id: 0.5}), 0, tmp_path / "submission")
    store, notes = import_submission(archive, tmp_path / "store")
    assert store.ids == [id] and store.heatmap(id).all() and notes == []


@pytest.mark.parametrize("id", BAD)
def test_ids_that_are_refused_are_refused_everywhere_and_nothing_is_written(tmp_path, id):
    assert refuse_id(id)
    write_heatmap(tmp_path / "image.png", MASK)
    records = [Record(name, tmp_path / "image.png") for name in ("good", id, "good")]
    assert write_split(tmp_path, tmp_path / "data", (["good", id, "good"], records, []))["id"].tolist() == ["good"]
    problems = pd.read_csv(tmp_path / "data/problems.csv")
    assert problems["problem"].tolist() == ["id refused", "duplicate id"]
    assert problems["detail"][0] == f"{refuse_id(id)}; rename the image and its entry"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({name: {"score": 0.5, "pred_area": MASK} for name in ("a", id)}))
    with pytest.raises(InputError, match="x.pkl, id .*: this id cannot be a file name") as told:
        import_submission(tmp_path / "x.pkl", tmp_path / "store")
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    assert sorted(os.listdir(tmp_path)) == ["data", "image.png", "x.pkl"]


def test_the_longest_id_is_written_by_any_process(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 2**32 - 1)
    write_heatmap(tmp_path / f"{'a' * ID_BYTES}.png", MASK)
    assert os.listdir(tmp_path) == [f"{'a' * ID_BYTES}.png"]
