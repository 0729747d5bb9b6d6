"""Open what a run predicted on a split beside its labels, from the run's folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from lib.config import Experiment
from lib.errors import InputError
from lib.metrics import paired_ids
from lib.metrics.calibration import Smoothed
from lib.metrics.matching import PREDICTED_AREA_RATIO
from lib.metrics.setting import Setting, chosen_setting
from lib.stores import HELD_OUT, LabelStore, PredictionStore, open_split


@dataclass(frozen=True)
class Inspected:
    """One run on one split. `threshold` (0..255) makes masks of its heatmaps, regions up to `min_area` are dropped."""

    folder: Path
    split: str
    predictions: PredictionStore | Smoothed  # as the setting of notebook 3 blurs them
    labels: LabelStore
    threshold: int
    min_area: float = PREDICTED_AREA_RATIO  # contour area as a fraction of the frame

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def setting(self) -> Setting:
        """How heatmaps become regions here."""
        return Setting(self.threshold, self.min_area, getattr(self.predictions, "sigma", 0.0))

    @property
    def evaluation(self) -> dict:
        """The run's evaluation.json, {} before notebook 3."""
        path = self.folder / "evaluation.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def judged_ids(self) -> list[str]:
        """The images to judge: all that are labelled, of train's those that were held out.

        Raises InputError when one of them was not predicted, or none is labelled.
        """
        return paired_ids(self.predictions, self.labels, self.labelled_ids if self.split == HELD_OUT else None)

    @property
    def labelled_ids(self) -> list[str]:
        """The predicted images that have a label, in the order of the split."""
        table = self.labels.table
        return list(table.index[table["labelled"].astype(bool) & table.index.isin(self.predictions.ids)])

    @property
    def verdicts_path(self) -> Path:
        return self.folder / "verdicts" / f"{self.split}.jsonl"


def open_run(run, split: str, data_path="", threshold: int = 0) -> Inspected:
    """Open `<run>/predictions/<split>` and its labels.

    Arguments: `run` folder of a trained run; `data_path` prepared data (empty: the run's own); `threshold` 1..254,
    or 0 for the one that notebook 3 chose, else 90. Raises InputError when something is missing.
    """
    folder = Path(run)
    if not folder.is_dir():
        known = sorted({path.parents[1].as_posix() for path in folder.parent.glob("*/predictions/*/")})
        hint = f"runs with predictions: {', '.join(known)}" if known else "train and evaluate one first"
        raise InputError(f"there is no run {run}; {hint}")
    predictions = PredictionStore(folder / "predictions" / split)
    labels = open_split(data_path or _data_path(folder), split)
    if not 0 <= threshold <= 254:
        raise InputError(f"threshold: {threshold} must lie in 1..254, or be 0 for the one that notebook 3 chose")
    setting = chosen_setting(folder)
    if setting.smoothing:
        predictions = Smoothed(predictions, setting.smoothing)
    return Inspected(folder, split, predictions, labels, threshold or setting.threshold, setting.min_area)


def _data_path(folder: Path) -> str:
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{path} does not exist, so the data of this run is unknown; give data_path")
    return Experiment.from_yaml(path).data_path
