"""Memory of the evaluation at the sizes people have."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from benchmark_sweep import make_image, write_stores

from lib.challenge.submissions import stream_pickle

IMAGES = 10_000
LIMIT = 1.5 * 2**30  # bytes
# Before a program: records how much memory it takes with all its processes.
WATCHED = """
import json, sys, threading, time
import psutil

peak, own, found = [0], psutil.Process(), {}
def watch():
    while True:
        family = [own, *own.children(recursive=True)]
        peak[0] = max(peak[0], sum(p.memory_info().rss for p in family if p.is_running()))
        time.sleep(0.1)
threading.Thread(target=watch, daemon=True).start()
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


@pytest.mark.slow
def test_ten_thousand_images_are_evaluated_in_little_memory(tmp_path):
    """All processes together; the figures of a thousand images repeated ten times are those of the thousand."""
    write_stores(tmp_path, IMAGES, real=100, regions=8, step=2)
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
def test_the_official_command_scores_ten_thousand_images_in_little_memory(tmp_path):
    """Two pickles of 2.6 GB; the figures of a hundred images repeated a hundred times are those of the hundred."""
    rng = np.random.default_rng(0)
    pairs, scores = [make_image(rng, regions=8) for _ in range(100)], rng.random(100).tolist()
    for folder, images in (("all", IMAGES), ("first", len(pairs))):
        for side, name in enumerate(("res/output.pkl", "ref/gt.pkl")):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True)
            masks = [(pair[side] > (120, 0)[side]).astype(np.uint8) for pair in pairs]
            stream_pickle(path, ((f"{k:05d}", scores[k % 100], masks[k % 100]) for k in range(images)))
    assert (tmp_path / "all/ref/gt.pkl").stat().st_size > 2.6e9
    program = """
        from lib.challenge import __main__ as challenge

        found["code"] = challenge.main(sys.argv[1:])
        """
    assert watched(program, tmp_path / "first", tmp_path / "first/out")["code"] == 0
    found = watched(program, tmp_path / "all", tmp_path / "all/out")
    written = [(tmp_path / folder / "out/scores.txt").read_text() for folder in ("all", "first")]
    assert found["code"] == 0 and found["peak"] < LIMIT
    assert written[0] == written[1] and "F1_Score: 0." in written[0]
    shutil.rmtree(tmp_path)  # gigabytes, and pytest keeps the folders of its last three runs
