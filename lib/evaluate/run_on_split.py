"""One source of predictions on one prepared split: heatmaps beside labels, the setting, counts and figures.

The source is a run, an ensemble of runs or a baseline. `open_run` opens what notebook 3 wrote of a run.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lib.config import Experiment
from lib.data.attributes import named
from lib.data.splits import held_out_by, labelled
from lib.errors import InputError
from lib.evaluation_file import read_evaluation
from lib.files import write_text
from lib.metrics.counts import challenge_figures, score_table, sweep, threshold_curve
from lib.metrics.setting import USUAL_THRESHOLD, Setting, Smoothed, chosen_setting
from lib.metrics.statistics import bootstrap_figures
from lib.records import parse_record
from lib.stores import HELD_OUT, LabelStore, PredictionStore, open_split

IMAGES = "images.json"  # beside predictions: a digest of the images
NOTE = "prediction.json"  # beside predictions: what decided them
VIEWS = ("flip", "scales", "ensemble", "weights")  # of it: what another evaluation of the same run may choose otherwise


@dataclass(frozen=True, eq=False)
class RunOnSplit:
    """Predictions of a run on a split, beside the labels.

    Attributes:
        folder: of the run or ensemble.
        split: name of the prepared split, or `held_out`.
        labels: the prepared split.
        images: ids of the split's images that count: all, or what the run held out of train.
        source: predicted heatmaps (uint8 [H, W]) and scores (0..1) before any blur; None before the prediction.
        setting: how heatmaps become regions.
        counts: rows of `lib.metrics.counts.sweep` for the labelled images; None before `measured`.
        scores: rows of `lib.metrics.counts.score_table` for them, or None.
        views: what of prediction.json makes a prediction another one, such as `flip` and `scales`; None: as it lies
            there.
    """

    folder: Path
    split: str
    labels: LabelStore
    images: list[str]
    source: Any = None
    setting: Setting = Setting(USUAL_THRESHOLD)
    counts: pd.DataFrame | None = None
    scores: pd.DataFrame | None = None
    views: dict | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def data_path(self) -> Path:
        """The prepared data that hold the split."""
        return self.labels.path.parent

    @property
    def predictions(self):
        """The source as the setting blurs it."""
        return Smoothed(self.source, self.setting.smoothing) if self.setting.smoothing else self.source

    @property
    def threshold(self) -> int:
        """0..255; a pixel counts when its heatmap value is above."""
        return self.setting.threshold

    @property
    def min_area(self) -> float:
        """Regions up to this contour area (fraction of the frame) are dropped."""
        return self.setting.min_area

    @cached_property
    def labelled_ids(self) -> list[str]:
        """The images that have a label, in the order of `images`."""
        known = set(labelled(self.labels))
        return [id for id in self.images if id in known]

    @cached_property
    def place(self) -> Path:
        """Folder of the predictions and of what was measured of them, `<run>/predictions/<split>`.

        What was made of other images or with other `views` never replaces those: it has a folder of its own, named
        after the images or the views as well.
        """
        usual = self.folder / "predictions" / self.split
        note, table = usual / IMAGES, PredictionStore.table_name
        if note.is_file():
            known = note.read_bytes() == json.dumps(self.images_digest).encode()
        else:  # an earlier version did not note the images
            known = not (usual / table).is_file() or set(PredictionStore(usual).ids) <= set(self.labels.ids)
        place = usual if known else usual.with_name(f"{self.split}-{self.images_digest}")
        if self.views is None or not (place / table).is_file() or not (place / NOTE).is_file():
            return place
        if self.views.items() <= _views_at(place).items():
            return place
        text = "-".join(f"{name}_{value}" for name, value in self.views.items())
        plain = re.sub("[^A-Za-z0-9.]+", "_", text).strip("_")
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return place.with_name(f"{place.name}-{plain if len(plain) < 40 else digest}")

    @cached_property
    def images_digest(self) -> str:
        """Eight digits that tell the split's images from others: a hash of their ids, sizes and prompts."""
        table = self.labels.table[["width", "height", "prompt"]].sort_index()
        return hashlib.sha256(table.to_csv().encode("utf-8", "backslashreplace")).hexdigest()[:8]

    def note_images(self) -> None:
        """Note beside the predictions of which images they are."""
        write_text(self.place / IMAGES, json.dumps(self.images_digest))

    @cached_property
    def evaluation(self) -> dict:
        """What notebook 3 measured of these predictions (see `lib.evaluation_file`); {} before it did."""
        found = read_evaluation(self.place)
        if not found and self.place.name == self.split:  # an earlier version kept the latest evaluation of a run only
            of_run = read_evaluation(self.folder)
            found = of_run if of_run.get("split", self.split) == self.split else {}
        return found

    @property
    def verdicts_path(self) -> Path:
        return self.folder / "verdicts" / f"{self.place.name}.jsonl"

    def measured(self, thresholds=(), progress=None) -> "RunOnSplit":
        """The same with `counts` and `scores`, at the setting's threshold and at further `thresholds`."""
        at = sorted({self.threshold, *thresholds})
        counts = sweep(self.predictions, self.labels, at, self.labelled_ids, self.min_area, progress=progress)
        return replace(self, counts=counts, scores=score_table(self.source, self.labels, self.labelled_ids))

    def at(self, ids=None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(counts, scores) at the setting's threshold, of all images or of `ids`."""
        counts = self.counts[self.counts["threshold"] == self.threshold]
        return (counts, self.scores) if ids is None else (counts[counts["id"].isin(ids)], self.scores.loc[list(ids)])

    @property
    def curve(self) -> pd.DataFrame:
        """The figures at every measured threshold; see `lib.metrics.counts.threshold_curve`."""
        return threshold_curve(self.counts, self.scores)

    def figures(self) -> dict:
        """The challenge's figures at the setting's threshold."""
        return challenge_figures(*self.at())

    def with_intervals(self, resamples: int, seed: int = 0, ids=None) -> dict:
        """The figures with their `intervals` (95 %, bootstrap over images), of all images or of `ids`."""
        measured = self.at(ids)
        return {**challenge_figures(*measured), "intervals": bootstrap_figures(*measured, resamples, seed)}

    def by_group(self, column: str, resamples: int, seed: int = 0) -> dict[str, dict]:
        """`with_intervals` and `n_images` for each value of a manifest column; {} when the manifest lacks it."""
        if column not in self.labels.table:
            return {}
        names = named(self.labels.table.loc[self.labelled_ids, column])
        groups = names.groupby(names).groups.items()
        return {
            str(value): {**self.with_intervals(resamples, seed, ids), "n_images": len(ids)} for value, ids in groups
        }


def _views_at(place: Path) -> dict:
    """What of the predictions in a folder makes them others than those of the same run with other settings."""
    text = (place / NOTE).read_text(encoding="utf-8", errors="replace")
    return {name: value for name, value in parse_record(text, {})[0].items() if name in VIEWS}


def run_config(run) -> Experiment:
    """The parameters that a run was trained with; InputError when the folder is no run."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        remedy = "give the folder of a run that notebooks/2_train.ipynb wrote, or data_path with imported predictions"
        raise InputError(f"{run} holds no config.yaml; {remedy}")
    return Experiment.from_yaml(path)


def unpredicted(run, data_path, split: str, views: dict | None = None) -> RunOnSplit:
    """A run on a prepared split before its prediction; `held_out` are the images that the run kept from training.

    `data_path` is empty for the run's own data.
    """
    config = run_config(run)
    labels = open_split(data_path or config.data_path, split)
    images = labels.ids
    if split == HELD_OUT:
        if not config.val_split:
            raise InputError(
                f"{run} trained on all of train, so nothing is held out (val_split is 0); name another split"
            )
        images = held_out_by(run, labels.path.parent, config)
    return RunOnSplit(Path(run), split, labels, images, views=views)


def open_run(run, split: str, data_path="", threshold: int = 0) -> RunOnSplit:
    """Open `<run>/predictions/<split>` and its labels.

    Args:
        run: folder of a trained run.
        split: predicted by notebook 3, or the name of a folder in the run's `predictions`, such as `test-flip_False`.
        data_path: prepared data; empty for the run's own.
        threshold: 1..254, or 0 for the one that notebook 3 chose (90 when it chose none).
    Raises InputError when something is missing.
    """
    folder = Path(run)
    place, views = folder / "predictions" / split, None
    PredictionStore(place)  # a split that was never predicted is named before its data are
    beside = read_evaluation(place)
    if beside.get("split", split) != split:
        split, views, data_path = beside["split"], _views_at(place), data_path or beside.get("data_path", "")
    labels = open_split(data_path or run_config(folder).data_path, split)
    opened = RunOnSplit(folder, split, labels, [], views=views)
    if views and opened.place != place:
        raise InputError(f"{place} holds predictions of other images than {labels.path}; give their data_path")
    predictions = PredictionStore(opened.place)
    setting = chosen_setting(opened.place if read_evaluation(opened.place) else folder)
    images = list(labels.table.index[labels.table.index.isin(predictions.ids)])
    setting = replace(setting, threshold=threshold or setting.threshold)
    return replace(opened, images=images, source=predictions, setting=setting)
