"""Heatmaps on disk: prepared labels and predictions, read one image at a time.

Both kinds of store are a folder with a Parquet table (one row an image) and `heatmaps/<id>.png`
(8 bit, one channel). Memory does not grow with the number of heatmaps.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageCms, ImageOps

from lib.errors import InputError
from lib.files import replacing, what_it_is
from lib.records import read_table

# Without a filter a label of 1024 px is read in 1 ms instead of 6.
LABEL_PNG = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 3]
HELD_OUT = "held_out"  # names, like a split, the images of train that a run with val_split did not train on


def read_image(path, remedy: str = "Replace it or remove its entry.") -> np.ndarray:
    """Read an image as uint8 RGB [H, W, 3], upright; raises InputError naming the file when it cannot.

    What OpenCV does not know (GIF, TGA, ...) is read by Pillow; of several frames the first counts. So are TIFFs, of
    which OpenCV decodes damaged ones into wrong pixels.
    """
    image = _decode(path, cv2.IMREAD_COLOR_RGB)
    if image is None or Path(path).suffix.lower() in (".tif", ".tiff"):
        try:
            with Image.open(path) as opened:
                return _by_pillow(opened)
        except Exception:  # Pillow's decoders raise whatever they like at damaged files
            known = what_it_is(path) or f" {remedy}"
            raise InputError(f"{path} is not an image that OpenCV or Pillow can read.{known}") from None
    return image


def image_facts(path) -> tuple[int, int, int]:
    """(height, width, EXIF orientation) of an image that can be read; upright, raises as `read_image`.

    Of a JPEG only the header and the end are read: OpenCV takes any that has both, whatever lies between.
    """
    orientation = 1
    with suppress(Exception), Image.open(path) as image:  # whatever is wrong here, `read_image` says
        # For a PNG without EXIF, getexif() would decode the whole image in search of it.
        if image.format != "PNG" or "exif" in image.info:
            orientation = image.getexif().get(0x0112, 1)
        if image.format == "JPEG":
            image.fp.seek(-2, os.SEEK_END)
            if image.fp.read() == b"\xff\xd9":
                height, width = image.size if orientation in range(5, 9) else image.size[::-1]
                return height, width, orientation
    return *read_image(path).shape[:2], orientation


def as_rgb(image) -> np.ndarray:
    """A path, an image of Pillow in any mode, or an array uint8 [H, W, 3] -> uint8 RGB [H, W, 3], upright.

    Raises InputError for what is none of these, and for an image that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        if "://" in str(image):
            raise InputError(f"{image} is an address; download the image and give its path")
        return read_image(image, "Give the path of an image.")
    told = type(image).__name__
    try:
        if isinstance(image, Image.Image):
            told = f"an image of mode {image.mode}"
            return _by_pillow(image)
        array = np.asarray(image)
        told = f"{told} of {array.dtype} {list(array.shape)}"
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
            return array
        reason = ""
    except Exception as error:  # Pillow loads late and raises anything; so do ragged lists and tensors without an array
        reason = f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    raise InputError(
        f"needed: a path, an image of Pillow or a uint8 RGB array [H, W, 3], not {told}{reason}; convert it"
    )


def _by_pillow(image: Image.Image) -> np.ndarray:
    """Upright uint8 RGB [H, W, 3]; ValueError for 32 bits a channel, whose range is unknown."""
    if image.mode == "LAB":
        rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("more than 16 bits a channel")
    return np.asarray(image.convert("RGB"))


def read_heatmap(path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an 8-bit one-channel heatmap [H, W]; raises InputError naming the file when it cannot.

    That of a label must be of its image's `size` (height, width).
    """
    if (heatmap := _decode(path, cv2.IMREAD_GRAYSCALE)) is None:
        known = what_it_is(path) or " Delete it and run the step that wrote it again."
        raise InputError(f"{path} is not a readable PNG heatmap.{known}")
    if size and heatmap.shape != size:
        (height, width), (h, w) = size, heatmap.shape
        raise InputError(f"{path} has {w} x {h} pixels, its image {width} x {height}; prepare the data again")
    return heatmap


def _decode(path, mode: int) -> np.ndarray | None:
    try:
        data = np.fromfile(path, dtype=np.uint8)
        return cv2.imdecode(data, mode) if data.size else None
    except cv2.error:  # a header that claims more pixels than OpenCV reads
        return None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"{ascii(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def write_heatmap(path, heatmap: np.ndarray, label: bool = False) -> None:
    """Write uint8 [H, W] as PNG by way of a temporary file, so that a killed run leaves no half file.

    A `label` has few levels in large areas, and is written in the way that is read fastest.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # imencode and write_bytes rather than imwrite: any Unicode path works, and a failure raises.
    encoded = cv2.imencode(".png", heatmap, LABEL_PNG if label else [])[1]
    with replacing(path) as part:
        part.write_bytes(encoded)


class Store:
    """A folder of heatmaps with a table; `table_name` and its `columns` tell the two kinds apart."""

    table_name = ""
    columns = {"id": str, "score": float}
    made_by = ""

    def __init__(self, path):
        self.path = Path(path)
        try:
            there = (self.path / self.table_name).is_file()
        except OSError as error:  # of a folder without permission; a file that is not there is none
            raise InputError(f"{self.path}: {error.strerror}; ask its owner for the right to read it") from None
        if not there:
            raise InputError(f"{self.path} holds no {self.table_name}; run {self.made_by} first, or correct the path")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row an image, indexed by `id` (text); raises InputError when the file is not what `made_by` writes."""
        path = self.path / self.table_name
        table = read_table(path, self.columns, f"run {self.made_by} again").set_index("id")
        if table.index.has_duplicates:
            raise InputError(f"{path} holds {table.index[table.index.duplicated()][0]} twice; run {self.made_by} again")
        wrong = table["score"][~self._usable(table["score"])]
        if len(wrong):
            raise InputError(
                f"{path} holds the score {wrong.iloc[0]:.6g} of {wrong.index[0]}, which is not in 0..1; correct it, or "
                f"run {self.made_by} again"
            )
        return table

    @staticmethod
    def _usable(scores: pd.Series) -> pd.Series:
        return scores.between(0, 1)

    def only(self, ids: Iterable[str]) -> "Store":
        """The same store with these images alone in its table: light to send to another process."""
        part = copy(self)
        part.__dict__["table"] = self.table.loc[list(ids)]
        return part

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
    columns = Store.columns | {"image": str, "prompt": str, "labelled": bool, "n_annotators": float, "n_regions": float,
                               "width": int, "height": int}  # fmt: skip
    made_by = "notebooks/1_data_processing.ipynb"

    @staticmethod
    def _usable(scores: pd.Series) -> pd.Series:
        return scores.between(0, 1) | scores.isna()  # null without a label

    def heatmap(self, id: str) -> np.ndarray:
        """uint8 [H, W] of its image's size, 0 (sound) .. 255 (every annotator marked it)."""
        return read_heatmap(self.heatmap_path(id), (self.table.at[id, "height"], self.table.at[id, "width"]))

    @property
    def regions(self) -> pd.DataFrame:
        """What annotators drew: `id`, `annotator`, `shape`, `points` (x and y in turn, pixels of the image)."""
        columns = {"id": str, "annotator": int, "shape": str, "points": list}
        return read_table(self.path / "regions.parquet", columns, f"run {self.made_by} again")

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
