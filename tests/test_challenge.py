"""The organisers' command and formats, from good input to bad."""

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from example_masks import frame, golden
from example_runs import CASES, write_split

from lib.challenge import __main__ as challenge
from lib.challenge import import_submission, write_submission
from lib.challenge.__main__ import score_folder
from lib.challenge.submissions import read_submission
from lib.errors import InputError
from lib.evaluate.run_on_split import open_run
from lib.metrics.counts import challenge_figures, score_table, sweep
from lib.metrics.figures import FIGURES
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.matching import to_grid
from lib.metrics.regions import compare

ROOT = Path(__file__).parents[1]


def entries(masks: dict, scores) -> dict:
    return {id: {"score": score, "pred_area": mask} for (id, mask), score in zip(masks.items(), scores, strict=True)}


def write_input(folder, predicted, true, readme="method: test\n") -> Path:
    for name, content in (("res/output.pkl", predicted), ("ref/gt.pkl", true)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content))
    if readme:
        (folder / "res" / "readme.txt").write_text(readme)
    return folder


def run_command(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lib.challenge", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def good() -> tuple[dict, dict]:
    """Five images whose masks and scores are right."""
    masks = {f"img{k}": frame((20 * k, 30, 60, 80)) for k in range(5)}
    return entries(masks, [0.1, 0.3, 0.5, 0.7, 0.9]), entries(masks, [1.0, 2.0, 3.0, 4.0, 5.0])


def test_official_command_writes_the_official_lines(tmp_path):
    predictions, labels = golden()
    masks = {id: (predictions.heatmap(id) > 90).astype(np.uint8) for id in labels.ids}
    predicted, true = entries(masks, predictions.scores.values()), entries(labels.heatmaps, labels.scores.values())
    done = run_command(write_input(tmp_path / "in", predicted, true), tmp_path / "out")
    assert done.returncode == 0 and done.stderr == ""
    expected = "Final_Score: 0.7402\nSRCC: 0.8974\nPLCC: 0.8968\n"
    expected += "Precision: 0.8780\nRecall: 0.5455\nF1_Score: 0.6729\nGIoU: 0.4002\n"
    assert (tmp_path / "out" / "scores.txt").read_text() == expected + "method: test\n"
    assert done.stdout == expected


def test_missing_ids_and_files_are_named(tmp_path, good, capsys):
    assert challenge.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "gt.pkl cannot be read: No such file" in capsys.readouterr().err
    predicted, true = good
    del predicted["img3"]
    assert challenge.main([str(write_input(tmp_path, predicted, true)), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "img3" in error and "output.pkl" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_masks_of_another_size_are_resized_as_they_stand(tmp_path):
    """The organisers' two lines; only bytes of 0 and 1 are rounded while they are resized."""

    def read(masks: dict) -> tuple:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(entries(masks, [0.5] * len(masks))))
        return read_submission(tmp_path / "x.pkl")

    mask = np.random.default_rng(0).random((300, 400)) > 0.7
    for kind in ("u1", "u2", "i2", "f4", "f8", ">f4", ">u2"):
        for value in (1, 255):
            expected = cv2.resize(mask.astype(kind[-2:]) * np.dtype(kind[-2:]).type(value), (512, 512)) > 0
            stored = {"a": mask.astype(kind) * np.dtype(kind).type(value), "b": np.asfortranarray(mask.astype(kind))}
            found, notes = read(stored | {"c": np.zeros((200, 200), kind)})
            np.testing.assert_array_equal(to_grid(found.heatmap("a")), expected)
            assert found.heatmap("a").dtype == np.uint8 and not found.heatmap("c").any()
            told = [note for note in notes if "300 x 400; like official predictions, it is resized before" in note]
            assert len(told) == 2 * (kind != "u1") + (kind == "u1" and value == 255)
    for kind in ("?", "i1", "i4", "i8", "u4", "f2"):  # which OpenCV cannot resize
        found, notes = read({"a": mask.astype(kind)})
        np.testing.assert_array_equal(found.heatmap("a"), mask.astype(np.uint8), strict=True)
        assert len(notes) == 1 and "id 'a': pred_area is" in notes[0] and "official command cannot resize" in notes[0]


def test_unusual_but_clear_input_is_read(tmp_path, good):
    predicted, true = good
    predicted["img0"]["pred_area"] = predicted["img0"]["pred_area"] * np.uint8(255)
    predicted["img1"]["pred_area"] = predicted["img1"]["pred_area"].astype(bool)
    predicted["img2"]["pred_area"] = np.asfortranarray(predicted["img2"]["pred_area"].astype(">f4"))
    predicted["img3"]["score"] = np.array([0.7], np.float32)
    true["img1"]["pred_area"] = np.repeat(np.repeat(true["img1"]["pred_area"], 2, 0), 2, 1)
    figures, notes = score_folder(write_input(tmp_path, predicted, true, readme=""), tmp_path / "out")
    assert figures["f1_score"] == pytest.approx(1) and figures["giou"] == pytest.approx(1)
    assert len(notes) == 3 and "img0" in notes[0] and "img1" in notes[1] and "resized" in notes[1]
    assert "readme.txt cannot be read (No such file" in notes[2]
    for score in (np.nan, np.inf):  # no number: the masks are left
        predicted["img2"]["score"] = score
        figures, notes = score_folder(write_input(tmp_path, predicted, true), tmp_path / "out")
        assert np.isnan(figures["srcc"]) and figures["f1_score"] == pytest.approx(1)
        assert figures["final_score"] == pytest.approx(0.7) and any("img2" in note for note in notes)
        assert "SRCC: nan" in (tmp_path / "out" / "scores.txt").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred_area": np.zeros((512, 512, 1), np.uint8)}, "shape \\(512, 512, 1\\)"),
        ({"pred_area": np.zeros((0, 5), np.uint8)}, "shape \\(0, 5\\)"),
        ({"pred_area": np.zeros((1, 20000), np.uint8)}, "up to 16384"),
        ({"pred_area": np.full((8, 8), np.nan)}, "NaN"),
        ({"pred_area": np.full((8, 8), 0.4)}, "threshold it"),
        ({"pred_area": np.full((8, 8), -1)}, "from -1"),
        ({"pred_area": np.arange(256, dtype=np.uint8).reshape(16, 16)}, "0 to 255; threshold"),
        ({"pred_area": [[0, 1]]}, "is a list"),
        ({"pred_area": None}, "is a NoneType"),
        ({"score": "high"}, "score is a str"),
        ({"score": True}, "score is a bool"),
        ({"score": np.zeros(2)}, "score is an array of shape"),
        ({"score": 10**400}, "score is an integer beyond any float"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_id(tmp_path, good, change, words):
    predicted, true = good
    predicted["img4"].update(change)
    with pytest.raises(InputError, match=f"output.pkl, id 'img4'.*{words}"):
        score_folder(write_input(tmp_path, predicted, true), tmp_path / "out")
    for content in ({}, [1, 2], {"a": 3}, {"a": {"score": 1.0}}, {"a": {"pred_area": frame()}}):
        with pytest.raises(InputError, match="output.pkl"):
            score_folder(write_input(tmp_path, content, true), tmp_path / "out")


@pytest.mark.parametrize("area", [0.0006, 0.01])
def test_submission_scores_like_the_predictions_it_came_from(tmp_path, area):
    predictions, labels = golden()
    archive = write_submission(predictions, 90, tmp_path / "submission", area)
    assert sorted(zipfile.ZipFile(archive).namelist()) == ["output.pkl", "readme.txt"]
    plain = pickle.loads((tmp_path / "submission" / "output.pkl").read_bytes())  # as the organisers read it
    assert list(plain) == labels.ids and plain[labels.ids[0]]["pred_area"].dtype == np.uint8
    assert (tmp_path / "submission" / "output.pkl").read_bytes().count(b"numpy._core") == 0
    source = write_input(tmp_path / "in", plain, entries(labels.heatmaps, labels.scores.values()))
    figures, _ = score_folder(source, tmp_path / "out")
    direct = challenge_figures(sweep(predictions, labels, [90], None, area), score_table(predictions, labels))
    named = [name for name in FIGURES if name != "krcc"]  # which the organisers do not report
    assert [figures[name] for name in named] == pytest.approx([direct[name] for name in named], abs=1e-12)


def test_submissions_and_imports_that_cannot_be_meant(tmp_path, capsys):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(entries({"a": frame(), "b": frame()}, [1.0, 4.0])))
    with pytest.raises(InputError, match="score of b is 4, outside 0..1"):
        import_submission(tmp_path / "x.pkl", tmp_path / "no")
    for worst, best in ((5, 1), (0, np.inf), (np.nan, 5)):
        with pytest.raises(InputError, match=f"score range {worst:g} {best:g} is none"):
            import_submission(tmp_path / "x.pkl", tmp_path / "no", (worst, best))
    call = ["--import", str(tmp_path / "x.pkl"), str(tmp_path / "run/predictions/test"), "--score-range", "1", "5"]
    assert [challenge.main(call), challenge.main(call)] == [0, 2]
    assert "predictions/test exists already; import into a new folder" in capsys.readouterr().err


def test_an_imported_submission_is_opened_like_a_run(tmp_path):
    """Masks of 0 and 255, scores as MOS; the labels are the split's own."""
    write_split(tmp_path / "data/test")
    masks = {id: frame(*predicted) for id, (_, predicted) in CASES.items()}
    masks["false"] = masks["false"] * np.uint8(255)
    (tmp_path / "output.pkl").write_bytes(pickle.dumps(entries(masks, [5.0, 2.0, 3.0, 4.0])))
    run = tmp_path / "runs/theirs"
    done = run_command("--import", tmp_path / "output.pkl", run / "predictions/test", "--score-range", 1, 5)
    assert done.returncode == 0 and "4 images" in done.stdout
    assert "id 'false': pred_area holds 0 and 255" in done.stderr
    opened = open_run(run, "test", data_path=tmp_path / "data")
    assert opened.predictions.table["score"].to_dict() == {"perfect": 1, "missed": 0.25, "false": 0.5, "sound": 0.75}
    assert all(np.array_equal(opened.predictions.heatmap(id), (masks[id] > 0) * 255) for id in masks)
    images, _ = compare(opened.predictions, opened.labels, opened.threshold)
    # perfect: 1 of 1, false: 1 of 3, missed: nothing; two of the three true regions are hit.
    assert images["n_predicted"].sum() == 4 and images["n_true"].sum() == 3
    figures = opened.measured().figures()
    assert (figures["precision"], figures["recall"]) == (2 / 4, 2 / 3)


def test_a_failed_submission_leaves_the_one_before(tmp_path, monkeypatch):
    predictions = Heatmaps({"a": frame(), "b": frame()}, {"a": 0.5, "b": 0.5})
    write_submission(predictions, 0, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["output.pkl", "readme.txt", "submission.zip"]
    predictions.heatmaps["a"] = frame((0, 0, 9, 9))
    for broken in ("lib.challenge.submissions.pickle.Pickler", "pathlib.Path.write_text", "zipfile.ZipFile.write"):
        with monkeypatch.context() as failing, pytest.raises(InputError, match="cannot be written .No space"):
            failing.setattr(broken, Mock(side_effect=OSError(28, "No space left on device")))
            write_submission(predictions, 0, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
