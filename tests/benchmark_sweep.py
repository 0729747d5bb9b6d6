"""How much faster the threshold sweep is than scoring every threshold the organisers' way.

`python tests/benchmark_sweep.py` writes a set of heatmaps to a temporary folder, sweeps all of it with
`lib.metrics.counts.sweep` from the stores on disk, runs the plain loop on the first images, checks that both give the
same counts and figures at every threshold, and prints the ratio of the times per image and threshold. The loop keeps
its heatmaps in memory, which favours it. Two numbers, such as `200 20`, say of how many images the set is and how many
the loop is run on.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from example_runs import manifest
from pandas.testing import assert_frame_equal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.metrics.counts import score_table, sweep, threshold_curve
from lib.metrics.figures import FIGURES
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


def write_stores(folder: Path, images: int, real: int = 200, regions: int = 20, step: int = 1) -> tuple:
    """(PredictionStore, LabelStore): every `step`-th pixel; so many are `real`, the others links to them."""
    rng, ids = np.random.default_rng(0), [f"{number:06d}" for number in range(images)]
    base = [make_image(rng, regions) for _ in range(min(images, real))]
    for part, side in (("predictions", 0), ("labels", 1)):
        for number, id in enumerate(ids):
            path = folder / part / "heatmaps" / f"{id}.png"
            if number < len(base):
                write_heatmap(path, base[number][side][::step, ::step])
            else:
                path.hardlink_to(path.with_name(f"{ids[number % real]}.png"))
    scores, guesses = (np.resize(rng.random(len(base)), images) for _ in range(2))
    pd.DataFrame({"id": ids, "score": (scores + guesses) / 2}).to_parquet(folder / "predictions" / "scores.parquet")
    sides = (SIZE // step, SIZE // step)
    rows = manifest(ids, scores, size=sides).assign(agreement=np.nan)
    rows.to_parquet(folder / "labels" / "manifest.parquet")
    return PredictionStore(folder / "predictions"), LabelStore(folder / "labels")


def plain_regions(mask: np.ndarray, min_area: float) -> list[np.ndarray]:
    """Every kept region as a full frame, as the challenge describes it."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    kept = [contour for contour in contours if cv2.contourArea(contour) > min_area]
    return [cv2.drawContours(np.zeros((SIZE, SIZE), np.uint8), [contour], -1, 1, cv2.FILLED) for contour in kept]


def plain_hits(regions: list[np.ndarray], others: list[np.ndarray]) -> int:
    """How many regions overlap one of the others enough, pair by pair, stopping at the first."""
    return sum(any((one & other).sum() / (one | other).sum() > 0.1 for other in others) for one in regions)


def plain_counts(heatmap: np.ndarray, label: np.ndarray, threshold: int) -> dict:
    """One image at one threshold, everything from scratch: a row of `lib.metrics.counts.sweep`."""
    mask, true_mask = cv2.resize((heatmap > threshold).astype(np.uint8), (SIZE, SIZE)), (label > 0).astype(np.uint8)
    predicted, true = plain_regions(mask, 0.0006 * SIZE * SIZE), plain_regions(true_mask, 150)
    both, either = (mask & true_mask).sum(), (mask | true_mask).sum()
    return {
        "threshold": threshold, "n_predicted": len(predicted), "hit_predicted": plain_hits(predicted, true),
        "n_true": len(true), "hit_true": plain_hits(true, predicted), "predicted_pixels": mask.sum(),
        "intersection": both, "union": either, "iou": (both + 1e-4) / (either + 1e-4),
    }  # fmt: skip


def compare(images: int, thresholds: list[int], baseline_images: int) -> dict:
    """Seconds per image and threshold of both ways, and how many regions the set has.

    The sweep does all images, the plain loop the first `baseline_images`. On these every count is asserted to be
    the same, and every figure at every threshold.
    """
    with tempfile.TemporaryDirectory() as folder:
        predictions, labels = write_stores(Path(folder), images)
        start = time.perf_counter()
        counts = sweep(predictions, labels, thresholds)
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
    images, plain = (int(number) for number in [*sys.argv[1:], 200, 20][:2])
    found = compare(images, np.linspace(10, 240, 40).astype(int).tolist(), min(plain, images))
    print(f"{images} images of {found['regions']:.1f} predicted regions, 40 thresholds")
    for name, way in (("plain loop", "slow"), ("sweep", "fast")):
        print(f"{name:>10}: {found[way] * 1e3:8.3f} ms per image and threshold")
    print(f"all counts and {', '.join(FIGURES)} are equal; ratio of times {found['slow'] / found['fast']:.1f}")


if __name__ == "__main__":
    main()
