"""What the inspector finds out, without the widget: filtering, correcting, opening."""

import json

import numpy as np
import pandas as pd
import pytest
from example_runs import write_run, write_split

from lib.data.prepare import prepare
from lib.data.readers import read_challenge
from lib.errors import InputError
from lib.evaluate.run_on_split import open_run
from lib.stores import LabelStore
from lib.widgets import corrections, ranking


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspection")
    write_split(root / "data/test", kinds=["melted+warped", "warped", "", None], domain=["shown", "shifted"] * 2)
    return open_run(write_run(root / "runs/one", root / "data"), "test")


def test_filters(run):
    facts, _ = ranking.overview([run])
    found = ranking.Ranking([run], [run.threshold], list(facts.index))
    assert found.work() and not found.problems
    table = facts.join(found.table)
    for query, ids in {
        "": ["perfect", "missed", "false", "sound"],
        'domain == "shifted" and score > 0.9': ["sound"],
        "false > 0 or missed > 0": ["missed", "false"],
        "recall < 1": ["missed"],  # it is not defined for sound images
        'kinds.str.contains("melt")': ["perfect"],
        'id in ["sound", "false"]': ["false", "sound"],
        'prompt.str.contains("<THING", case=False, regex=False) and not labelled': [],
    }.items():
        assert list(ranking.select(table, query).index) == ids
    for query, reason in {
        "domian == 1": r"'domian == 1' cannot be used: there is no column domian \(did you mean domain\?\)",
        "score >": "cannot be used: invalid syntax",
        "score": "'score' is no condition; write one such as",
        "prompt > 3": "cannot be used: ",
        "@run": "cannot be used: ",
    }.items():
        with pytest.raises(InputError, match=reason) as caught:
            ranking.select(table, query)
        assert "\n" not in str(caught.value)


# Correcting ---------------------------------------------------------------------------------------------------------


def test_corrections_become_label_sets_that_can_be_prepared(run, tmp_path):
    drawn = run.labels.regions.groupby("id")
    [region] = corrections.label_regions(drawn, "missed")
    assert region == {"annotator": 0, "shape": "rectangle", "points": [[100, 100], [299, 199]]}
    assert corrections.label_regions(drawn, "sound") == []
    triangle = {"shape": "polygon", "points": [[10, 10], [60, 10], [10, 60]]}
    verdicts = {
        "missed": {"regions": [region, triangle]},
        "sound": {"regions": [{"shape": "rectangle", "points": [[50, 40], [20, 30]]}]},
        "false": {"regions": []},
        "perfect": {"regions": None},
        "gone": {"regions": [triangle]},
    }
    before = {path: path.read_bytes() for path in run.labels.path.rglob("*") if path.is_file()}
    written = corrections.export(run.labels, verdicts, tmp_path / "set")
    assert [path.name for path in written] == ["corrected_info.json", "coco.json", "label_studio.json"]
    ids, records, problems = read_challenge(tmp_path / "set", "corrected")
    assert (ids, problems, [found for _, found in records]) == (["missed", "sound", "false"], [], [[], [], []])
    manifest = prepare(tmp_path / "set", tmp_path / "prepared", splits=("corrected",), workers=1)["corrected"]
    assert manifest["score"].tolist() == [0.5, 1, 0.5]
    assert manifest["prompt"].tolist() == [run.labels.table.at[id, "prompt"] for id in manifest["id"]]
    store = LabelStore(tmp_path / "prepared/corrected")
    assert (store.heatmap("missed")[20, 20], store.heatmap("missed")[150, 200], store.heatmap("false").max()) == (
        64,
        64,
        0,
    )
    assert np.count_nonzero(store.heatmap("sound")) == 30 * 10
    assert {path: path.read_bytes() for path in before} == before

    coco = json.loads(written[1].read_text())
    assert [image["file_name"] for image in coco["images"]] == ["missed.jpg", "sound.jpg", "false.jpg"]
    assert [one["image_id"] for one in coco["annotations"]] == [1, 1, 2]
    assert coco["annotations"][1]["segmentation"] == [[10.5, 10.5, 60.5, 10.5, 10.5, 60.5]]
    assert coco["annotations"][1]["area"] == 1250
    tasks = json.loads(written[2].read_text())
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [2, 1, 0]


def test_a_drawn_region_counts_for_every_annotator(tmp_path):
    write_split(tmp_path / "test")
    table = pd.read_parquet(tmp_path / "test/manifest.parquet").assign(n_annotators=3)
    table.to_parquet(tmp_path / "test/manifest.parquet")
    drawn = {"shape": "polygon", "points": [[10, 10], [60, 10], [10, 60]]}
    rows = {"missed": {"regions": [drawn, drawn | {"annotator": 1}]}}
    written, *_ = corrections.export(LabelStore(tmp_path / "test"), rows, tmp_path / "set")
    assert [len(by) for by in json.loads(written.read_text())["missed"]["bbox_info"]] == [1, 2, 1]


# Opening ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_opened_is_named(run, tmp_path):
    with pytest.raises(InputError, match="there is no run .*two; runs with predictions: .*one"):
        open_run(run.folder.parent / "two", "test")
    with pytest.raises(InputError, match="scores.parquet"):
        open_run(run.folder, "val")
    with pytest.raises(InputError, match="must lie in 1..254"):
        open_run(run.folder, "test", threshold=255)
    with pytest.raises(InputError, match="manifest.parquet"):
        open_run(run.folder, "test", data_path=tmp_path)
