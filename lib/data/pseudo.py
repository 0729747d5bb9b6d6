"""A previous run's predictions as labels of images that nobody annotated (`pseudo_labels`)."""

from pathlib import Path

import cv2
import numpy as np

from lib.data.pixels import resize
from lib.errors import InputError
from lib.metrics.setting import Setting, chosen_setting
from lib.stores import LabelStore, PredictionStore, open_split


class PseudoLabels:
    """What a run predicted on a split, as labels of that split's images.

    Of a heatmap remains what the run's own setting counts as regions, with its predicted values: losses that ask
    `target > 0` would else find damage everywhere. The score is the predicted one.

    Args:
        folder: `runs/<run>/predictions/<split>`. data_path: prepared data that hold the split.
    """

    def __init__(self, folder, data_path):
        self.path = Path(folder)
        self.predictions = PredictionStore(self.path)
        self.images: LabelStore = open_split(data_path, self.path.name)
        self.setting: Setting = chosen_setting(self.path.parents[1])
        unknown = [id for id in self.predictions.ids if id not in self.images.table.index]
        if unknown:
            raise InputError(
                f"pseudo_labels: {folder} holds predictions of {unknown[0]}, which {self.images.path} does not know; "
                "predict the split again"
            )

    @property
    def ids(self) -> list[str]:
        return self.predictions.ids

    def refuse_shared(self, ids: list[str], what: str) -> None:
        """Refuse images that are among `ids`, which are `what`."""
        shared = sorted(set(self.ids) & set(ids))
        if shared:
            raise InputError(
                f"pseudo_labels: {len(shared)} images of {self.path} are {what} (for example {shared[0]}); give the "
                "predictions of another split"
            )


def pseudo_label(heatmap: np.ndarray, height: int, width: int, setting: Setting) -> np.ndarray:
    """A predicted heatmap uint8 [h, w] as a label uint8 [height, width]: 0 outside the regions of the setting."""
    counts = cv2.resize(setting.mask(heatmap), (width, height), interpolation=cv2.INTER_NEAREST)
    return resize(heatmap, height, width) * counts
