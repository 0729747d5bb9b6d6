"""Speed and memory of the evaluation at the sizes people have."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmark_sweep import compare, make_image

from lib.stores import write_heatmap

IMAGES = 10_000
LIMIT = 1.5 * 2**30  # bytes


@pytest.mark.slow
def test_the_sweep_is_twenty_times_faster_than_threshold_by_threshold():
    thresholds = np.linspace(10, 240, 40).astype(int).tolist()
    found = compare(40, thresholds, baseline_images=2, workers=None)  # asserts equal counts, too
    assert found["regions"] == pytest.approx(20, abs=3)
    assert found["slow"] / found["fast"] > 20


@pytest.mark.slow
def test_ten_thousand_images_are_evaluated_in_little_memory(tmp_path):
    """All processes together; the figures of a thousand images repeated ten times are those of the thousand."""
    for part, name in (("predictions", "scores"), ("labels", "manifest")):
        write_store(tmp_path / part, name, labels=part == "labels")
    program = textwrap.dedent(
        """
        import json, sys, threading, time
        import psutil
        from lib.metrics import challenge_figures, score_table, sweep
        from lib.statistics import bootstrap_figures
        from lib.stores import LabelStore, PredictionStore

        peak, own = [0], psutil.Process()
        def watch():
            while True:
                family = [own, *own.children(recursive=True)]
                peak[0] = max(peak[0], sum(p.memory_info().rss for p in family if p.is_running()))
                time.sleep(0.2)
        threading.Thread(target=watch, daemon=True).start()
        predictions, labels = PredictionStore(sys.argv[1] + "/predictions"), LabelStore(sys.argv[1] + "/labels")
        figures = {}
        for name, ids in (("all", labels.ids), ("first", labels.ids[:1000])):
            counts, scores = sweep(predictions, labels, [60, 120], ids), score_table(predictions, labels, ids)
            counts = counts[counts["threshold"] == 120]
            figures[name] = challenge_figures(counts, scores)["f1_score"]
            bootstrap_figures(counts, scores, n=100)
        print(json.dumps({"peak": peak[0], **figures}))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", program, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=1200).stdout
    found = json.loads(printed)
    print(f"peak of {IMAGES:,} images: {found['peak'] / 2**20:.0f} MiB")
    assert found["peak"] < LIMIT
    assert found["all"] == pytest.approx(found["first"], abs=1e-12)


def write_store(folder, table: str, labels: bool) -> None:
    """IMAGES heatmaps of which a hundred are real and the others links to them."""
    rng = np.random.default_rng(0)
    pairs = [make_image(rng, regions=8) for _ in range(100)]
    names = [f"{number:05d}" for number in range(IMAGES)]
    for number, name in enumerate(names):
        path = folder / "heatmaps" / f"{name}.png"
        if number < len(pairs):
            write_heatmap(path, pairs[number][labels][::2, ::2])
        else:
            path.hardlink_to(folder / "heatmaps" / f"{names[number % len(pairs)]}.png")
    scores = np.tile(rng.random(100), IMAGES // 100)
    pd.DataFrame({"id": names, "score": scores, "labelled": True}).to_parquet(folder / f"{table}.parquet")
