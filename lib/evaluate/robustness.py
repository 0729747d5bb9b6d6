"""How much scores and masks move when an image is changed in a way that leaves its structure alone.

Images are re-encoded, halved, blurred or cropped, and predicted anew by the same run.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lib.evaluate.predicting import Job, predict_jobs
from lib.evaluate.run_on_split import RunOnSplit
from lib.metrics.matching import CHALLENGE_SIZE, SMOOTHING
from lib.scale import mos_from_score
from lib.stores import LabelStore, PredictionStore, read_image, write_heatmap

CUT = 0.05  # of each side that the crop takes away at either end
FIGURES = ("final_score", "f1_score", "plcc", "srcc")
COLUMNS = ["change", "id", "mos", "mos_changed", "broken", "broken_changed", "area", "area_changed", "mask_iou"]


def _encoded(image: np.ndarray, kind: str, flag: int, quality: int) -> np.ndarray:
    data = cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [flag, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _halved(image: np.ndarray, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.resize(image, (max(1, width // 2), max(1, height // 2)), interpolation=interpolation)


def _cropped(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    down, across = int(CUT * height), int(CUT * width)
    return np.ascontiguousarray(image[down : height - down, across : width - across])


JPEG, WEBP = cv2.IMWRITE_JPEG_QUALITY, cv2.IMWRITE_WEBP_QUALITY
CHANGES = {  # name -> function of uint8 RGB [H, W, 3]
    **{f"JPEG {quality}": partial(_encoded, kind=".jpg", flag=JPEG, quality=quality) for quality in (95, 75, 50)},
    "WebP 75": partial(_encoded, kind=".webp", flag=WEBP, quality=75),
    "half size": _halved,
    "blur": partial(cv2.GaussianBlur, ksize=None, sigmaX=1.0),  # pixels
    "crop": _cropped,
}
# What happens to a label, for changes that move pixels.
LABEL_CHANGES = {"half size": partial(_halved, interpolation=cv2.INTER_NEAREST), "crop": _cropped}


def changed_split(labels: LabelStore, ids: Sequence[str], change: str, folder) -> LabelStore:
    """A prepared split of changed images, stored without loss, with their labels changed in the same way."""
    folder, rows = Path(folder), []
    alter, alter_label = CHANGES[change], LABEL_CHANGES.get(change, lambda heatmap: heatmap)
    (folder / "images").mkdir(parents=True)
    for id in ids:
        image = alter(read_image(labels.image_path(id)))
        cv2.imwrite(str(folder / "images" / f"{id}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        rows.append({"image": f"images/{id}.png", "width": image.shape[1], "height": image.shape[0]})
        if labels.table.at[id, "labelled"]:
            write_heatmap(folder / "heatmaps" / f"{id}.png", alter_label(labels.heatmap(id)))
    table = labels.table.loc[list(ids)].assign(**pd.DataFrame(rows, index=list(ids)))
    table.reset_index().to_parquet(folder / LabelStore.table_name, index=False)
    return LabelStore(folder)


def measure_robustness(
    run, on: RunOnSplit, n: int, changes: Sequence[str] = tuple(CHANGES), device="cpu", processes: int = 1, **options
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict `n` images, evenly spread over those of `on`, once for each change: (images, figures).

    Args:
        run: folder of the run that predicted `on`, whose predictions and setting the changed ones are held against.
        changes: names in CHANGES. device, processes, options: as in `lib.evaluate.predicting.predict_jobs`.

    - images, a row an image and change: `change`, `id`, `mos`, `mos_changed` (1..5), `broken`, `broken_changed` (a
      region counts), `area`, `area_changed` (share of the frame), `mask_iou` (of both masks; 1 when both are empty).
    - figures, a row a change and one of the images as they are: `change` and FIGURES; empty without labels.

    Raises InputError as `predict_jobs` does.
    """
    ids = [on.images[place] for place in np.unique(np.linspace(0, len(on.images) - 1, n).astype(int))]
    part, rows = replace(on, images=ids), []
    figures = [_figures("as they are", part)] if part.labelled_ids else []
    for change in changes:
        # One change at a time and not kept: the changed images may take more room than those they are made from.
        with tempfile.TemporaryDirectory() as folder:
            split = changed_split(on.labels, ids, change, Path(folder) / "split")
            job = Job(split, ids, Path(folder) / "predictions")
            [found] = predict_jobs(run, [job], device, processes, progress=False, **options)
            rows += [[change, id, *_compared(on, found, id, change)] for id in ids]
            if part.labelled_ids:
                figures.append(_figures(change, replace(part, labels=split, source=found)))
    return pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(figures, columns=["change", *FIGURES])


def by_change(images: pd.DataFrame) -> pd.DataFrame:
    """What each change does on average, a row a change, from `images` of `measure_robustness`.

    Columns: `change`; `mos_shift` (mean of after - before), `mos_moved` (mean size of it), `area_shift`,
    `flipped` (share of images whose verdict, broken or not, changes), `mask_iou` (mean).
    """
    shift = images["mos_changed"] - images["mos"]
    columns = {"mos_shift": shift, "mos_moved": shift.abs(), "area_shift": images["area_changed"] - images["area"]}
    columns |= {"flipped": images["broken"] != images["broken_changed"], "mask_iou": images["mask_iou"]}
    return pd.DataFrame(columns).groupby(images["change"], sort=False).mean().reset_index()


def _compared(on: RunOnSplit, changed: PredictionStore, id: str, change: str) -> tuple:
    """The columns of one image from `mos` on; masks are compared on the 512 grid, where both show the same place."""
    before, after = (_on_grid(store.heatmap(id)) for store in (on.source, changed))
    mask, mask_changed = on.setting.mask(before), on.setting.mask(after)
    shown = on.setting.mask(_on_grid(_cropped(before))) if change == "crop" else mask  # what both show
    both, either = np.count_nonzero(shown & mask_changed), np.count_nonzero(shown | mask_changed)
    scores = (float(mos_from_score(store.table.at[id, "score"])) for store in (on.source, changed))
    iou = (both + SMOOTHING) / (either + SMOOTHING)
    areas = float(mask.mean()), float(mask_changed.mean())
    return *scores, bool(mask.any()), bool(mask_changed.any()), *areas, iou


def _on_grid(heatmap: np.ndarray) -> np.ndarray:
    return cv2.resize(heatmap, (CHALLENGE_SIZE, CHALLENGE_SIZE), interpolation=cv2.INTER_LINEAR)


def _figures(change: str, on: RunOnSplit) -> dict:
    figures = on.measured().figures()
    return {"change": change} | {name: figures[name] for name in FIGURES}
