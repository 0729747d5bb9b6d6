"""One training sample at 768 px, and preparing an image: ours against the reference's way.

`python tests/benchmark_data.py [ROUNDS]`: CPU milliseconds on one thread, interleaved, medians of rounds. The
reference's way is made anew from its description: Pillow's Lanczos, labels kept in memory at 512 px and resized by way
of float64; it prepares without its overlays. The floor is what every sample takes: decode, resize once, to planes.
"""

import dataclasses
import io
import json
import os
import pickle
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from lib.config import Experiment
from lib.data.augment import augment, fit
from lib.data.pixels import to_planes
from lib.data.prepare import prepare
from lib.stores import read_heatmap, read_image, write_heatmap

SIZE, IMAGES = 768, 24
RECIPE = Experiment(input_size=SIZE, mask_size=SIZE)
OURS = {
    "ours (area)": RECIPE,
    "ours (lanczos, colours after the resize)": dataclasses.replace(
        RECIPE, resampling="lanczos", augment_after_resize=True
    ),
}
FLOORS = [f"floor of {name}" for name in OURS]
MEAN, STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)


def picture(side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of waves and a little noise, which compresses like a photograph, and a label of four polygons."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(np.float32) * (1024 / side)
    image = np.full((side, side, 3), 128, np.float32)
    for fx, fy in rng.normal(0, 0.05, (40, 2)):
        image += np.sin(fx * x + fy * y + rng.uniform(0, 6))[..., None] * rng.uniform(0, 18, 3).astype(np.float32)
    image += rng.normal(0, 4, image.shape).astype(np.float32)
    label = np.zeros((side, side), np.uint8)
    for level in (64, 127, 180, 255):
        angles, centre = np.sort(rng.uniform(0, 2 * np.pi, 12)), rng.uniform(0.2, 0.8, 2) * side
        points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.03, 0.12, (12, 1)) * side
        cv2.fillPoly(label, [np.rint(points).astype(np.int32)], level)
    return np.clip(image, 0, 255).astype(np.uint8), label


def reference(path: str, stored: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The reference's sample: pixels float32 [3, S, S] and label float64 [1, S, S]."""
    image = Image.open(path).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    labels = [cv2.resize(stored, (SIZE, SIZE)).astype(float) / 255, np.zeros((SIZE, SIZE))]
    if rng.random() < 0.5:
        h, w = (int(SIZE * rng.uniform(0.8, 1)) for _ in range(2))
        top, left = int(rng.integers(0, SIZE - h + 1)), int(rng.integers(0, SIZE - w + 1))
        image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        labels = [_enlarge(_enlarge(label)[top : top + h, left : left + w]) for label in labels]
    if rng.random() < 0.1:
        image = _pillow_colours(image, rng)
    if rng.random() < 0.1:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.5:
        image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), [label[:, ::-1] for label in labels]
    pixels = ((np.asarray(image).astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels), np.ascontiguousarray(labels[0])[None]


def _enlarge(label: np.ndarray) -> np.ndarray:
    """To SIZE by SIZE, linearly and without a blur, since it grows; also when it has that size already."""
    factors = [SIZE / side for side in label.shape]
    return ndimage.zoom(label, factors, order=1, mode="mirror", grid_mode=True)


def _pillow_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    from PIL import ImageEnhance

    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.95, 1.05))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1))
    h, s, v = image.convert("HSV").split()
    h = Image.fromarray((np.asarray(h).astype(int) + int(rng.integers(-6, 7))).astype(np.uint8))
    image = Image.merge("HSV", (h, s, v)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=int(rng.integers(70, 101)))
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def ours(path: str, label: str, config: Experiment, rng: np.random.Generator) -> tuple:
    """Our sample, as `DistortionData` makes it: uint8 [3, S, S] and uint8 [S, S]."""
    image, heatmap = augment(read_image(path), read_heatmap(label), rng, config)
    return to_planes(image), heatmap


def floor(path: str, label: str, config: Experiment) -> tuple:
    """The same without augmentation."""
    image, heatmap = fit(read_image(path), read_heatmap(label), config)
    return to_planes(image), heatmap


def cpu(function, *arguments) -> float:
    """CPU milliseconds of one call."""
    started = time.process_time()
    function(*arguments)
    return 1000 * (time.process_time() - started)


def samples(folder: Path, side: int, ending: str, rounds: int) -> dict[str, float]:
    """{way: milliseconds a sample}, each the median over rounds of the mean over images."""
    cases = []
    for seed in range(IMAGES):
        image, label = picture(side, seed)
        path, heatmap = folder / f"{side}_{seed}.{ending}", folder / f"{side}_{seed}.label.png"
        Image.fromarray(image).save(path, **({"quality": 92} if ending == "jpg" else {}))
        write_heatmap(heatmap, label, label=True)
        cases.append((str(path), str(heatmap), cv2.resize(label, (512, 512))))
    found = {name: [] for name in ("reference", *OURS, *FLOORS)}
    for turn in range(rounds):
        spent = dict.fromkeys(found, 0.0)
        for number, (path, heatmap, stored) in enumerate(cases):
            key = (turn, number)
            spent["reference"] += cpu(reference, path, stored, np.random.default_rng(key))
            for name, config in OURS.items():
                spent[name] += cpu(ours, path, heatmap, config, np.random.default_rng(key))
                spent[f"floor of {name}"] += cpu(floor, path, heatmap, config)
        for name, total in spent.items():
            found[name].append(total / len(cases))
    return {name: float(np.median(values)) for name, values in found.items()}


def annotated(folder: Path, count: int) -> None:
    """A raw split of so many images of 1024 px, eight different ones, with up to two regions of three annotators."""
    (folder / "train" / "images").mkdir(parents=True)
    records = {}
    for number in range(count):
        path, rng = folder / "train" / "images" / f"{number}.jpg", np.random.default_rng(number)
        if number < 8:
            Image.fromarray(picture(1024, number)[0]).save(path, quality=92)
        else:
            os.link(folder / "train" / "images" / f"{number % 8}.jpg", path)
        corners = [[rng.integers(100, 900, 2) for _ in range(rng.integers(0, 3))] for _ in range(3)]
        regions = [
            [{"bbox_type": 2, "bbox": (c + rng.integers(-90, 90, (9, 2))).tolist()} for c in found] for found in corners
        ]
        records[str(number)] = {"prompt_en": "a cat", "mos": 3.0, "bbox_info": regions}
    (folder / "train" / "train_info.json").write_text(json.dumps(records))


def prepare_as_the_reference(raw: Path, target: Path) -> None:
    """Masks in float64, levels, 512 px, all in one pickle."""
    found = {}
    for id, record in json.loads((raw / "train" / "train_info.json").read_text()).items():
        shape = cv2.imread(str(raw / "train" / "images" / f"{id}.jpg")).shape[:2]
        total = np.zeros(shape)
        for drawn in record["bbox_info"]:
            mask = np.zeros(shape)
            for region in drawn:
                cv2.fillPoly(mask, [np.array(region["bbox"])], 1)
            total = total + mask
        levels = total.astype(np.uint8)
        for count, level in ((1, 64), (2, 127), (3, 180), (4, 255)):
            levels[levels == count] = level
        found[id] = cv2.resize(levels, (512, 512)), record["prompt_en"], record["mos"]
    target.write_bytes(pickle.dumps(found))


def preparing(folder: Path, rounds: int, count: int = 64) -> dict[str, float]:
    """{way: milliseconds an image}."""
    annotated(folder / "raw", count)
    found = {"reference": [], "ours": []}
    for _ in range(rounds):
        found["reference"].append(cpu(prepare_as_the_reference, folder / "raw", folder / "all.pkl") / count)
        found["ours"].append(cpu(prepare, folder / "raw", folder / "prepared", ["train"], 1) / count)
    return {name: float(np.median(values)) for name, values in found.items()}


def main(rounds: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, ending in ((1024, "jpg"), (512, "jpg"), (1024, "png")):
            found = samples(folder, side, ending, rounds)
            parts = [f"{way} {value:.1f} ({found['reference'] / value:.1f}x)" for way, value in found.items()]
            print(f"{side} px {ending}, ms a sample: {'; '.join(parts)}", flush=True)
        found = preparing(folder, rounds)
        print(f"preparing 1024 px jpg, ms an image: reference {found['reference']:.1f}, ours {found['ours']:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
