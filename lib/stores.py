"""Heatmaps on disk: prepared labels and predictions, read one image at a time.

Both kinds of store are a folder with a Parquet table (one row an image) and `heatmaps/<id>.png`
(8 bit, one channel). Memory does not grow with the number of heatmaps.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.files import replacing, what_it_is

HELD_OUT = "held_out"  # names, like a split, the images of train that a run with val_split did not train on


def read_image(path) -> np.ndarray:
    """Read an image as uint8 RGB [H, W, 3]; raises InputError naming the file when it cannot."""
    if (image := _decode(path, cv2.IMREAD_COLOR_RGB)) is None:
        known = what_it_is(path) or " Replace it or remove its entry."
        raise InputError(f"{path} is not an image that OpenCV can read.{known}")
    return image


def read_heatmap(path) -> np.ndarray:
    """Read an 8-bit one-channel heatmap [H, W]; raises InputError naming the file when it cannot."""
    if (heatmap := _decode(path, cv2.IMREAD_GRAYSCALE)) is None:
        known = what_it_is(path) or " Delete it and run the step that wrote it again."
        raise InputError(f"{path} is not a readable PNG heatmap.{known}")
    return heatmap


def _decode(path, mode: int) -> np.ndarray | None:
    data = _read_bytes(path)
    try:
        return cv2.imdecode(data, mode) if data.size else None
    except cv2.error:  # a header that claims more pixels than OpenCV reads
        return None


def write_heatmap(path, heatmap: np.ndarray) -> None:
    """Write uint8 [H, W] as PNG by way of a temporary file, so that a killed run leaves no half file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # imencode and write_bytes rather than imwrite: any Unicode path works, and a failure raises.
    encoded = cv2.imencode(".png", heatmap)[1]
    with replacing(path) as part:
        part.write_bytes(encoded.tobytes())


def _read_bytes(path) -> np.ndarray:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


@dataclass(frozen=True)
class Store:
    """A folder of heatmaps with a table; `table_name` tells the two kinds apart."""

    path: Path
    table_name = ""
    made_by = ""

    def __init__(self, path):
        object.__setattr__(self, "path", Path(path))
        if not (self.path / self.table_name).is_file():
            raise InputError(f"{self.path} holds no {self.table_name}; run {self.made_by} first, or correct the path")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row an image, indexed by `id` (text)."""
        return pd.read_parquet(self.path / self.table_name).set_index("id")

    @property
    def ids(self) -> list[str]:
        return list(self.table.index)

    def heatmap_path(self, id: str) -> Path:
        return self.path / "heatmaps" / f"{id}.png"

    def heatmap(self, id: str) -> np.ndarray:
        """uint8 [H, W], 0 (sound) .. 255 (every annotator marked it)."""
        return read_heatmap(self.heatmap_path(id))


class LabelStore(Store):
    """A prepared split: `manifest.parquet`, label heatmaps at the images' own size, `regions.parquet`."""

    table_name = "manifest.parquet"
    made_by = "notebooks/1_data_processing.ipynb"

    def image_path(self, id: str) -> Path:
        return (self.path / self.table.at[id, "image"]).resolve()

    def image(self, id: str) -> np.ndarray:
        """uint8 RGB [H, W, 3]."""
        return read_image(self.image_path(id))


class PredictionStore(Store):
    """Predictions of one run on one split: `scores.parquet` (`id`, `score` in 0..1) and heatmaps."""

    table_name = "scores.parquet"
    made_by = "notebooks/3_evaluate.ipynb"


def open_split(data_path, name: str) -> LabelStore:
    """The prepared data behind a split's name; `held_out` lies in train."""
    return LabelStore(Path(data_path) / ("train" if name == HELD_OUT else name))
