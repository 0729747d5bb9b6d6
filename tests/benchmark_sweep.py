"""How much faster the threshold sweep is than scoring every threshold the organisers' way.

`python tests/benchmark_sweep.py` writes a set of heatmaps to a temporary folder, sweeps all of it with
`lib.metrics.sweep` from the stores on disk, runs the plain loop on the first images, checks that both give the same
counts and figures at every threshold, and prints the ratio of the times per image and threshold. The loop keeps its
heatmaps in memory, which favours it. `--baseline-images 200` runs it on the whole default set, in some minutes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from pandas.testing import assert_frame_equal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.metrics import FIGURES, score_table, sweep, threshold_curve
from lib.stores import LabelStore, PredictionStore, write_heatmap

SIZE = 512


def make_image(rng: np.random.Generator, regions: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A predicted heatmap of `regions` soft noisy blobs of 180 to 255, and a label of 6 rectangles near some."""
    heatmap, label = np.zeros((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE), np.uint8)
    cells = [(x, y) for x in range(5) for y in range(4)][:regions]
    for number, (column, row) in enumerate(rng.permutation(cells)):
        x, y = int(column * 102 + 51 + rng.integers(-8, 9)), int(row * 128 + 64 + rng.integers(-12, 13))
        blob = np.zeros_like(heatmap)
        axes = int(rng.integers(18, 32)), int(rng.integers(18, 40))
        cv2.ellipse(blob, (x, y), axes, 0, 0, 360, int(rng.integers(180, 256)), -1)
        heatmap = np.maximum(heatmap, cv2.GaussianBlur(blob, None, 6))
        if number < 6:
            cv2.rectangle(label, (x - 25, y - 25), (x + int(rng.integers(10, 60)), y + 25), 64 + 60 * (number % 4), -1)
    noisy = heatmap + rng.normal(0, 2, heatmap.shape)
    return noisy.clip(0, 255).astype(np.uint8), label


def write_set(folder: Path, images: int) -> tuple[PredictionStore, LabelStore]:
    rng = np.random.default_rng(0)
    ids = [f"image_{number:05d}" for number in range(images)]
    base = [make_image(rng) for _ in range(min(images, 200))]
    for number, id in enumerate(ids):
        heatmap, label = base[number % len(base)]
        write_heatmap(folder / "predictions" / "heatmaps" / f"{id}.png", heatmap)
        write_heatmap(folder / "labels" / "heatmaps" / f"{id}.png", label)
    scores = rng.random(images)
    guesses = (scores + rng.random(images)) / 2
    pd.DataFrame({"id": ids, "score": guesses}).to_parquet(folder / "predictions" / "scores.parquet")
    pd.DataFrame({"id": ids, "score": scores, "labelled": True}).to_parquet(folder / "labels" / "manifest.parquet")
    return PredictionStore(folder / "predictions"), LabelStore(folder / "labels")


def plain_regions(mask: np.ndarray, min_area: float) -> list[np.ndarray]:
    """Every kept region as a full frame, as the challenge describes it."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    frames = []
    for contour in contours:
        if cv2.contourArea(contour) > min_area:
            frame = np.zeros((SIZE, SIZE), np.uint8)
            cv2.drawContours(frame, [contour], -1, 1, cv2.FILLED)
            frames.append(frame)
    return frames


def plain_hits(regions: list[np.ndarray], others: list[np.ndarray]) -> int:
    """How many regions overlap one of the others enough, pair by pair, stopping at the first."""
    hits = 0
    for region in regions:
        for other in others:
            if np.logical_and(region, other).sum() / np.logical_or(region, other).sum() > 0.1:
                hits += 1
                break
    return hits


def plain_counts(heatmap: np.ndarray, label: np.ndarray, threshold: int) -> dict:
    """One image at one threshold, everything from scratch: a row of `lib.metrics.sweep`."""
    mask = (heatmap > threshold).astype(np.uint8)
    mask = (cv2.resize(mask, (SIZE, SIZE)) > 0).astype(np.uint8)
    true_mask = (label > 0).astype(np.uint8)
    predicted = plain_regions(mask, 0.0006 * SIZE * SIZE)
    true = plain_regions(true_mask, 150)
    counts = {"n_predicted": len(predicted), "hit_predicted": plain_hits(predicted, true)}
    counts |= {"n_true": len(true), "hit_true": plain_hits(true, predicted), "predicted_pixels": mask.sum()}
    both, either = np.logical_and(mask, true_mask).sum(), np.logical_or(mask, true_mask).sum()
    counts |= {"intersection": both, "union": either, "iou": (both + 1e-4) / (either + 1e-4)}
    return {"threshold": threshold, **counts}


def compare(images: int, thresholds: list[int], baseline_images: int, workers: int | None) -> dict:
    """Seconds per image and threshold of both ways, and how many regions the set has.

    The sweep does all images, the plain loop the first `baseline_images`. On these every count is asserted to be
    the same, and every figure at every threshold.
    """
    with tempfile.TemporaryDirectory() as folder:
        predictions, labels = write_set(Path(folder), images)
        start = time.perf_counter()
        counts = sweep(predictions, labels, thresholds, workers=workers)
        fast = (time.perf_counter() - start) / images / len(thresholds)
        few = [(predictions.heatmap(id), labels.heatmap(id)) for id in labels.ids[:baseline_images]]
        scores = score_table(predictions, labels, labels.ids[:baseline_images])
    start = time.perf_counter()
    plain = pd.DataFrame([plain_counts(*pair, threshold) for pair in few for threshold in thresholds])
    slow = (time.perf_counter() - start) / len(plain)
    ours = counts.iloc[: len(plain)]
    assert_frame_equal(ours[list(plain)], plain, check_dtype=False, rtol=0, atol=1e-12)
    curve, plain_curve = threshold_curve(ours, scores), threshold_curve(plain, scores)
    assert_frame_equal(curve, plain_curve, check_dtype=False, rtol=0, atol=1e-12)
    return {"fast": fast, "slow": slow, "regions": counts["n_predicted"].mean(), "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--thresholds", type=int, default=40)
    parser.add_argument("--baseline-images", type=int, default=20, help="images that the plain loop is run on")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    thresholds = np.linspace(10, 240, options.thresholds).astype(int).tolist()
    found = compare(options.images, thresholds, min(options.baseline_images, options.images), options.workers)
    print(f"{options.images} images of {found['regions']:.1f} predicted regions, {options.thresholds} thresholds")
    for name, way in (("plain loop", "slow"), ("sweep", "fast")):
        print(f"{name:>10}: {found[way] * 1e3:8.3f} ms per image and threshold")
    print(f"all counts and {', '.join(FIGURES)} are equal; ratio of times {found['slow'] / found['fast']:.1f}")


if __name__ == "__main__":
    main()
