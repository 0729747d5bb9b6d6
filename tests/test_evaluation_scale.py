"""Speed and memory of the evaluation at the sizes people have."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from benchmark_sweep import compare, make_image
from example_runs import manifest

from lib.challenge.submissions import stream_pickle
from lib.stores import write_heatmap

IMAGES = 10_000
LIMIT = 1.5 * 2**30  # bytes
# What stands before a program, and records how much memory it takes with all its processes.
WATCHED = """
import json, sys, threading, time
import psutil

peak, own = [0], psutil.Process()
def watch():
    while True:
        family = [own, *own.children(recursive=True)]
        peak[0] = max(peak[0], sum(p.memory_info().rss for p in family if p.is_running()))
        time.sleep(0.1)
threading.Thread(target=watch, daemon=True).start()
found = {}
"""


def watched(program: str, *arguments) -> dict:
    """What a program in a process of its own puts into `found`, with the `peak` of its memory in bytes."""
    program = WATCHED + textwrap.dedent(program) + "print(json.dumps({**found, 'peak': peak[0]}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=1200).stdout
    found = json.loads(printed.splitlines()[-1])
    print(f"peak: {found['peak'] / 2**20:.0f} MiB")
    return found


@pytest.fixture
def roomy_path(tmp_path):
    """For gigabytes: pytest keeps the temporary folders of its last three runs, this one is emptied."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.alone
def test_the_sweep_is_twenty_times_faster_than_threshold_by_threshold():
    thresholds = np.linspace(10, 240, 40).astype(int).tolist()
    found = compare(40, thresholds, baseline_images=20)  # asserts equal counts and figures, too
    assert found["regions"] == pytest.approx(20, abs=3)
    assert found["slow"] / found["fast"] > 20
    assert len(found["curve"]) == 40 and found["curve"]["final_score"].nunique() > 10


@pytest.mark.slow
def test_ten_thousand_images_are_evaluated_in_little_memory(tmp_path):
    """All processes together; the figures of a thousand images repeated ten times are those of the thousand."""
    for part, name in (("predictions", "scores"), ("labels", "manifest")):
        write_store(tmp_path / part, name, labels=part == "labels")
    program = """
        from lib.metrics.counts import challenge_figures, score_table, sweep
        from lib.metrics.statistics import bootstrap_figures
        from lib.stores import LabelStore, PredictionStore

        predictions, labels = PredictionStore(sys.argv[1] + "/predictions"), LabelStore(sys.argv[1] + "/labels")
        for name, ids in (("all", labels.ids), ("first", labels.ids[:1000])):
            counts, scores = sweep(predictions, labels, [60, 120], ids), score_table(predictions, labels, ids)
            counts = counts[counts["threshold"] == 120]
            found[name] = challenge_figures(counts, scores)["f1_score"]
            bootstrap_figures(counts, scores, n=100)
        """
    found = watched(program, tmp_path)
    assert found["peak"] < LIMIT
    assert found["all"] == pytest.approx(found["first"], abs=1e-12)


@pytest.mark.slow
def test_the_official_command_scores_ten_thousand_images_in_little_memory(roomy_path):
    """Two pickles of 2.6 GB; the figures of a hundred images repeated a hundred times are those of the hundred."""
    pairs, scores = example_pairs()
    for folder, images in (("all", IMAGES), ("first", len(pairs))):
        for side, name in enumerate(("res/output.pkl", "ref/gt.pkl")):
            path = roomy_path / folder / name
            path.parent.mkdir(parents=True)
            masks = [(pair[side] > (120, 0)[side]).astype(np.uint8) for pair in pairs]
            stream_pickle(path, ((f"{k:05d}", scores[k % 100], masks[k % 100]) for k in range(images)))
    assert (roomy_path / "all/ref/gt.pkl").stat().st_size > 2.6e9
    program = """
        from lib.challenge import __main__ as challenge

        found["code"] = challenge.main(sys.argv[1:])
        """
    assert watched(program, roomy_path / "first", roomy_path / "first/out")["code"] == 0
    found = watched(program, roomy_path / "all", roomy_path / "all/out")
    written = [(roomy_path / folder / "out/scores.txt").read_text() for folder in ("all", "first")]
    assert found["code"] == 0 and found["peak"] < LIMIT
    assert written[0] == written[1] and "F1_Score: 0." in written[0]


def example_pairs() -> tuple[list[tuple[np.ndarray, np.ndarray]], list[float]]:
    """A hundred heatmaps with their labels, and scores."""
    rng = np.random.default_rng(0)
    return [make_image(rng, regions=8) for _ in range(100)], rng.random(100).tolist()


def write_store(folder, table: str, labels: bool, images: int = IMAGES, step: int = 2) -> None:
    """Heatmaps of which a hundred are real, of every `step`-th pixel, and the others links to them."""
    pairs, scores = example_pairs()
    names = [f"{number:06d}" for number in range(images)]
    for number, name in enumerate(names):
        path = folder / "heatmaps" / f"{name}.png"
        if number < len(pairs):
            write_heatmap(path, pairs[number][labels][::step, ::step])
        else:
            path.hardlink_to(folder / "heatmaps" / f"{names[number % len(pairs)]}.png")
    size = pairs[0][labels][::step, ::step].shape[::-1]
    rows = manifest(names, np.tile(scores, images // 100), size=size).assign(agreement=np.nan)
    rows.to_parquet(folder / f"{table}.parquet")
