"""Folders of images that nobody prepared: what is found, whose a prompt is, what cannot be read, what is written."""

import json
import os
import re
import tracemalloc

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from example_evaluations import finished
from executed import ROOT, execute, prose, silent_sections
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from lib.data.export import write_coco
from lib.data.own_images import image_id, prompts_of, read_images, read_prompts
from lib.data.readers.files import image_files
from lib.errors import InputError
from lib.evaluate.generators import compare_generators
from lib.evaluate.own_images import outlines, own_split, scored, unreadable
from lib.evaluate.predicting import Job, predict_jobs
from lib.evaluate.robustness import CHANGES, LABEL_CHANGES, by_change, changed_split, measure_robustness
from lib.evaluate.run_on_split import RunOnSplit
from lib.ids import refuse_id
from lib.metrics.setting import Setting
from lib.pipeline.__main__ import main
from lib.plots import write_score_page
from lib.stores import LabelStore, PredictionStore, write_heatmap


def paint(path, seed=0, size=(40, 30), mode="RGB", **options):
    """An image of smooth noise, by Pillow in the format that the name, or `format`, says."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path, **options)
    return np.asarray(image)


def test_images_of_all_sub_folders_are_found_and_nothing_else(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/a.jpg", "sub/deep er/ä.webp", ".hidden/c.png", "__MACOSX/d.png", "sub/._a.jpg",
                 "out/heatmaps/a.png", "notes.txt", "a.jpg.part"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert image_files(tmp_path, tmp_path / "out") == ["a.jpg", "b.PNG", "sub/a.jpg", "sub/deep er/ä.webp"]
    with pytest.raises(InputError, match="holds no image"):
        read_images(tmp_path / "out", leave_out=tmp_path / "out")
    with pytest.raises(InputError, match="cannot be listed .No such file or directory.; give the folder"):
        read_images(tmp_path / "nowhere")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(min_size=1, max_size=300))
def test_every_path_has_an_id_of_its_own_that_is_a_file_name(path, other):
    other = other.encode(errors="replace").decode()
    for name in (path, other, f"{path}/{other}", f"{path}%2F{other}"):
        assert not refuse_id(image_id(f"{name}.png"))
    assert (image_id(path + ".png") == image_id(other + ".png")) == (path == other)
    assert image_id(f"{path}/{other}.png") != image_id(f"{path}%2F{other}.png")


ROWS = [("a.png", "a man"), ("sub/b.png", 'says "hi",\nand\u2028waves'), ("./sub\\c.png", "")]


def test_tables_of_prompts_are_read_and_belong_to_their_images(tmp_path):
    """By paths relative to the folder; a table that lies there is used without being named."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, columns in {"p.csv": ("path", "prompt"), "P.JSONL": ("file_name", "text"), "p.parquet":
                          ("image", "caption"), "images/metadata.csv": ("file", "prompt_en")}.items():  # fmt: skip
        path, written = tmp_path / name, pd.DataFrame(ROWS, columns=columns).assign(seed=[1, 2, 3])
        if path.suffix == ".csv":
            written.to_csv(path, index=False)
        elif path.suffix == ".parquet":
            written.to_parquet(path)
        else:
            path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in written.to_dict("records")))
        table = read_prompts(path)
        assert table["path"].tolist() == ["a.png", "sub/b.png", "sub/c.png"]
        assert table["prompt"].tolist() == [prompt for _, prompt in ROWS]
        assert table["seed"].astype(int).tolist() == [1, 2, 3]
        expected = dict(zip(table["path"], table["prompt"], strict=True))
        assert prompts_of(folder, IMAGES, "" if path.parent == folder else path) == expected


IMAGES = ["a.png", "sub/b.png", "sub/c.png", "d.png"]


def test_tables_in_sub_folders_text_files_and_paths_of_other_places(tmp_path):
    for name, text in {
        "sub/metadata.jsonl": '{"file_name": "b.png", "text": "from a table"}\n', "sub/b.txt": "from a file",
        "d.txt": "\ufeffa hand \n",
        "tables/p.csv": f"path,prompt\n../a.png,one\n{tmp_path}/d.png,two\nx.png,three\na.png,four\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert prompts_of(tmp_path, IMAGES) == {"sub/b.png": "from a table", "d.png": "a hand"}
    assert prompts_of(tmp_path, IMAGES, tmp_path / "tables/p.csv") == {"a.png": "one", "d.png": "two"}
    # Half of an emoji in a prompt is a question mark.
    (tmp_path / "p.jsonl").write_text('{"path": "a.png", "prompt": "a \\ud83d", "seed": 1}\n')
    assert read_prompts(tmp_path / "p.jsonl").to_dict("records") == [{"path": "a.png", "prompt": "a ?", "seed": 1}]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", "name,prompt\na,b\n", r"p.csv has no column `path` \(it has name, prompt\); add it"),
        ("p.csv", "path,words\na,b\n", "p.csv has no column `prompt`"),
        ("p.jsonl", '{"path": "a.png", "prompt": "x"}\n{"path": ', "p.jsonl, line 2 is cut short"),
        ("p.jsonl", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("p.jsonl", '{"path": "a", "prompt": ["x", "y"]}', r"p.jsonl has the prompt \['x', 'y'\], which is no text"),
        ("p.jsonl", '{"path": "a", "prompt": {"en": "x"}}', "p.jsonl has the prompt {.* which is no text; give one"),
        ("p.parquet", "path,prompt", "p.parquet is no readable Parquet table"),
        ("p.xlsx", "", "p.xlsx is no table of prompts that can be read; give .csv, .jsonl, .parquet"),
        ("p.csv", None, "p.csv does not exist"),
    ],
)
def test_a_table_that_is_none_is_told(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=told):
        read_prompts(tmp_path / name)


def test_whatever_pillow_or_opencv_reads_is_read_upright(tmp_path):
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("workflow", "x" * 3_000_000, zip=True)
    metadata.add_text("parameters", "y" * 1_500_000)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    for name, options in {
        "metadata.png": {"pnginfo": metadata}, "webp inside.png": {"format": "webp", "lossless": True},
        "UPPER.JPEG": {"quality": 95}, "palette.GIF": {"mode": "P"}, "alpha.png": {"mode": "RGBA"}, "a.tga": {},
        "grey.bmp": {"mode": "L"}, "a.avif": {"quality": 90}, "turned.jpg": {"exif": turned, "quality": 95},
    }.items():  # fmt: skip
        paint(tmp_path / name, **options)
    original = paint(tmp_path / "a.png").astype(int)
    labels = own_split(tmp_path, tmp_path / "out")
    assert len(labels.ids) == 10 and unreadable(labels).empty
    for id in labels.ids:
        image, expected = labels.image(id).astype(int), original
        if id == "turned.jpg":
            expected = np.rot90(original, -1)
        if id == "grey.bmp":
            expected = np.repeat(cv2.cvtColor(original.astype(np.uint8), cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
        assert image.shape == expected.shape == (*labels.table.loc[id, ["height", "width"]], 3)
        assert np.abs(image - expected).mean() < 20, id


@pytest.fixture(scope="module")
def run(micro_experiment, tmp_path_factory):
    return finished(micro_experiment(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def folder(tmp_path):
    """Six images in two folders; files and links that cannot be read."""
    own = tmp_path / "own"
    for number, name in enumerate(["a.png", "a.jpg", "b/a.png", "b/c.webp", "b/d.PNG", "e.bmp"]):
        paint(own / name, number)
    whole = (own / "b" / "a.png").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    files = {b"cut.png": whole[: len(whole) // 2], b"empty.png": b"", b"pointer.png": pointer, b"\xff.png": whole}
    for name, content in files.items():
        with open(os.fsencode(own) + b"/" + name, "wb") as file:
            file.write(content)
    for name, place in (("gone.png", "nowhere.png"), ("loop.png", "loop.png")):
        (own / name).symlink_to(place)
    return own


def test_what_cannot_be_read_is_listed_and_costs_nothing_else(folder, tmp_path, run):
    labels = own_split(folder, tmp_path / "out")
    assert labels.table["image"].map(lambda image: (labels.path / image).exists()).all()
    assert labels.ids == ["a.jpg", "a.png", "b%2Fa.png", "b%2Fc.webp", "b%2Fd.PNG", "e.bmp"]
    lost = unreadable(labels).set_index("image")["detail"]
    told = {"pointer.png": "git lfs pull", "empty.png": "It is empty", "'\\udcff.png'": "rename it", "cut.png": ""}
    told |= {"gone.png": "does not exist", "loop.png": "symbolic links"}
    assert set(lost.index) == set(told) and all(told[image] in lost[image] for image in told)
    [predictions] = predict_jobs(run, [Job(labels, labels.ids, tmp_path / "out")], progress=False)
    assert predictions.ids == labels.ids
    (labels.path / "listing.json").write_bytes(b"\xff")
    (folder / "a.txt").write_text("a prompt")  # seen the next time
    assert own_split(folder, tmp_path / "out").table["prompt"].tolist()[:2] == ["a prompt"] * 2
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/images cannot be written .*; give an OUT with write access"):
        own_split(folder, tmp_path / "file")


def test_scores_and_regions_are_those_of_the_heatmaps(tmp_path):
    """Two images of 200 x 100: one with a square of 0.1 x 0.2 of the frame and a speck, one without anything."""
    for name in ("a.png", "b.png"):
        paint(tmp_path / "own" / name, size=(200, 100))
    labels, out = own_split(tmp_path / "own", tmp_path / "out"), tmp_path / "out"
    heatmap = np.zeros((512, 512), np.uint8)
    heatmap[100:200, 300:350] = 120
    heatmap[150, 320] = 220
    heatmap[400:405, 400:405] = 255
    write_heatmap(out / "heatmaps" / "a.png.png", heatmap)
    write_heatmap(out / "heatmaps" / "b.png.png", np.full((64, 64), 90, np.uint8))
    pd.DataFrame({"id": ["a.png", "b.png"], "score": [0.25, 0.125]}).to_parquet(out / "scores.parquet")
    (out / "regions.parquet.123.part").write_text("of a killed run")
    images, regions = scored(labels, PredictionStore(out), Setting(90, 0.001), tmp_path / "own", out)
    assert not list(out.glob("*.part"))
    assert images.index.tolist() == images["path"].tolist() == ["b.png", "a.png"]
    assert images["mos"].tolist() == [1.5, 2.0]
    assert images["n_regions"].tolist() == [0, 1] and images["peak"].tolist() == [90, 255]
    assert images["area"].tolist() == [0, 50 * 100 / 512**2]
    [region] = regions.itertuples()
    box = np.array([300, 100, 50, 100]) * [200, 100, 200, 100] / 512
    np.testing.assert_allclose([region.x, region.y, region.width, region.height], box)
    assert (region.id, region.area, region.peak) == ("a.png", 50 * 100 / 512**2, 220)
    assert region.heat == pytest.approx(120 + 100 / 5000)
    [points] = pd.concat(outlines(out, ["a.png"]))["points"]
    np.testing.assert_allclose(points.reshape(-1, 2).min(0), np.array([300.5, 100.5]) * [200, 100] / 512, rtol=1e-6)
    table = pd.read_csv(out / "scores.csv", keep_default_na=False)
    assert json.loads(table.at[1, "regions"])[0]["box"] == [round(value, 1) for value in box]
    assert PredictionStore(out).table.loc["a.png", "regions"][0]["peak"] == 220
    heatmap[:] = 0
    heatmap[400:402, 400:402] = 255
    write_heatmap(out / "heatmaps" / "a.png.png", heatmap)
    scored(labels, PredictionStore(out), Setting(90, 0), tmp_path / "own", out)
    assert [len(part["points"].iloc[0]) for part in outlines(out) if len(part)] == [8]  # still a polygon


def test_memory_does_not_grow_with_the_regions(tmp_path):
    """Of an image stay its rows of the tables, but not its outlines: 20 and 60 images of 40 regions each."""
    heatmap, peaks = np.zeros((512, 512), np.uint8), []
    for number in range(40):
        cv2.circle(heatmap, (40 + number % 8 * 60, 40 + number // 8 * 60), 20, 200, -1)
    for count in (20, 60):
        own, out = tmp_path / f"{count}", tmp_path / f"out_{count}"
        for number in range(count):
            paint(own / f"{number}.png", size=(64, 64))
            write_heatmap(out / f"heatmaps/{number}.png.png", heatmap)
        labels = own_split(own, out)
        pd.DataFrame({"id": labels.ids, "score": 0.5}).to_parquet(out / "scores.parquet")
        tracemalloc.start()
        predictions, setting = PredictionStore(out), Setting(90)
        images, regions = scored(labels, predictions, setting, own, out)
        write_score_page(out / "index.html", "", labels, predictions, setting, images, unreadable(labels), pictures=5)
        write_coco(out / "regions.json", images.reset_index().rename(columns={"path": "image"}), outlines(out))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found = json.loads((out / "regions.json").read_text())
        assert len(regions) == len(found["annotations"]) == 40 * len(found["images"]) == 40 * count
    assert (peaks[1] - peaks[0]) / 40 < 20_000  # bytes an image; they were 100,000


def test_make_score_leaves_a_page_of_a_folder(run, tmp_path):
    """The plan behind the command, on six images, one of which has a prompt, and a file that is none."""
    for number in range(6):
        paint(tmp_path / "own" / f"{number % 2}" / f"{number}.png", number)
    (tmp_path / "own" / "broken.png").write_bytes(b"no image")
    (tmp_path / "prompts.csv").write_text("path,prompt\n1/1.png,a chair\n")
    out, more = tmp_path / "out", ["threshold=1", "overlays=true", "robustness=3", "pictures=4"]
    given = [f"run={run}", f"images={tmp_path}/own", f"prompts={tmp_path}/prompts.csv", f"out={out}", *more]
    plan, sets = str(ROOT / "notebooks/params/score.yaml"), [word for one in given for word in ("--set", one)]
    command = [plan, "--runs", str(tmp_path / "runs"), "--fresh", *sets]
    assert main([*command, "--set", f"run={run}_not"]) == 1 and not out.exists()  # told before the folder is read
    assert main(command) == 0
    notebook = nbformat.read(tmp_path / "runs/score/notebooks/1_7_score_images.ipynb", 4)
    text = prose(notebook)
    assert "6 images can be read, 1 cannot. 1 have a prompt." in text and "changes most verdicts" in text
    assert silent_sections(notebook) == []
    table = pd.read_csv(out / "scores.csv", keep_default_na=False)
    assert len(table) == 6 and table["score"].is_monotonic_increasing
    assert table.set_index("path").at["1/1.png", "prompt"] == "a chair"
    regions = json.loads((out / "regions.json").read_text())
    assert {image["file_name"] for image in regions["images"]} == set(table["path"])
    assert len(regions["annotations"]) == table["n_regions"].sum() > 0
    assert len(list((out / "overlays").glob("*.jpg"))) == len(list((out / "heatmaps").glob("*.png"))) == 6
    assert (out / "index.html").is_file()


def test_notebook_8_compares_folders_by_their_prompts(run, tmp_path):
    rows = [(f"{number}.png", f"a hand with {number} fingers") for number in range(6)]
    pd.DataFrame(rows, columns=["path", "prompt"]).to_csv(tmp_path / "prompts.csv", index=False)
    folders = [tmp_path / name / "images" for name in ("old", "new")]
    for number in range(12):
        paint(folders[number // 6] / f"{number % 6}.png", number)
    given = {"images": list(map(str, folders)), "prompts": str(tmp_path / "prompts.csv"), "column": "", "resamples": 50}
    given |= {"out": str(tmp_path / "out"), "reencoded": 2, "n_gallery": 1, "run": str(run)}
    notebook = execute("8_compare_generators", tmp_path, **given)
    text = prose(notebook)
    assert "All generators share 6 prompts" in text and "re-encoding moves the mean by" in text
    assert re.search("(old|new)_images has the best mean MOS", text)
    assert silent_sections(notebook) == []
    assert len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == 12


def test_generators_are_paired_by_prompt_where_they_share_them():
    """Prompts differ by far more than the generators, so that only pairs can tell; hand-computed means."""
    images = pd.DataFrame({"generator": np.repeat(["a", "b"], 30), "prompt": [f"p{n}" for n in range(30)] * 2,
                           "broken": [n % 3 == 0 for n in range(30)] * 2, "area": 0.1})  # fmt: skip
    better = 0.1 + np.tile([0.01, -0.01], 15)
    images["mos"] = np.concatenate([np.linspace(1, 4, 30), np.linspace(1, 4, 30) + better])
    summary, differences, prompts = compare_generators(images, 300)
    assert prompts == sorted(f"p{number}" for number in range(30))
    assert summary.loc["a", ["broken", "mos", "n_images"]].tolist() == pytest.approx([1 / 3, 2.5, 30])
    row = differences.set_index("measure").loc["mos"]
    assert row["difference"] == pytest.approx(0.1) and 0.08 < row["low"] < row["high"] < 0.12 and row["p"] < 0.01
    _, differences, prompts = compare_generators(images.assign(prompt=images["generator"] + images["prompt"]), 300)
    row = differences.set_index("measure").loc["mos"]
    assert prompts == [] and row["difference"] == pytest.approx(0.1) and row["low"] < -0.2 and row["p"] > 0.5
    for few in (images[images["generator"] == "a"], images.iloc[:33]):
        with pytest.raises(InputError, match="needs two generators; there is a|b has 3 images, fewer than 5"):
            compare_generators(few)
    # Ten prompts of ten equal images each: the interval must be that of ten, not of a hundred.
    levels, number = np.linspace(1, 5, 10), pd.Series(np.arange(100) // 10)
    rows = pd.DataFrame({"mos": levels[number], "broken": False, "area": 0.0})
    images = [rows.assign(generator=name, prompt=name + number.astype(str)) for name in "ab"]
    summary = compare_generators(pd.concat(images, ignore_index=True), 500)[0]
    spread = 2 * 1.96 * levels.std() / np.sqrt(10)
    assert (summary["mos_high"] - summary["mos_low"]).to_numpy() == pytest.approx([spread] * 2, rel=0.15)


def test_changes_keep_what_they_must(prepared, tmp_path):
    labels = LabelStore(prepared / "val")
    id = labels.table["distorted"].idxmax()
    for change in CHANGES:
        split = changed_split(labels, labels.ids[:2] + [id], change, tmp_path / change)
        image, label = split.image(id), split.heatmap(id)
        assert image.shape[:2] == label.shape == tuple(split.table.loc[id, ["height", "width"]])
        original = labels.image(id)
        if change not in LABEL_CHANGES:
            assert (label == labels.heatmap(id)).all()
            assert 0 < np.abs(image.astype(int) - original).mean() < 12
    down, across = (int(0.05 * side) for side in original.shape[:2])
    assert (LabelStore(tmp_path / "crop").image(id) == original[down:-down, across:-across]).all()


def test_robustness_of_the_same_image_is_none(run, prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(CHANGES, "nothing", lambda image: image)
    labels = LabelStore(prepared / "val")
    [predictions] = predict_jobs(run, [Job(labels, labels.ids, tmp_path)], progress=False)
    on = RunOnSplit(run, "val", labels, labels.ids, predictions, Setting(90))
    images, figures = measure_robustness(run, on, 8, ["nothing"])
    [row] = by_change(images).itertuples(index=False)
    assert tuple(row) == pytest.approx(("nothing", 0, 0, 0, 0, 1), abs=1e-4)
    assert figures["change"].tolist() == ["as they are", "nothing"]
    pd.testing.assert_series_equal(figures.iloc[0, 1:], figures.iloc[1, 1:], check_names=False, atol=1e-3)
