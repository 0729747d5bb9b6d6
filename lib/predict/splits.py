"""A prepared split as a run sees it, and the one on which that run's threshold may be chosen."""

from pathlib import Path

from lib.config import Experiment
from lib.data.dataset import labelled
from lib.data.held_out import held_out_by
from lib.errors import InputError
from lib.model.detector import DistortionDetector
from lib.predict.prediction import predict
from lib.stores import HELD_OUT, LabelStore, PredictionStore, open_split


def run_config(run) -> Experiment:
    """The parameters that a run was trained with; InputError when the folder is no run."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise InputError(f"{run} holds no config.yaml; give the folder of a run that notebooks/2_train.ipynb wrote")
    return Experiment.from_yaml(path)


class Split:
    """A prepared split as one run sees it: the store, the images that count, and which of them have labels.

    Args:
        run: folder of a trained run. data_path: prepared data. name: a split's folder, or `held_out`.
    """

    def __init__(self, run, data_path, name: str):
        self.run, self.data_path, self.name = Path(run), Path(data_path), name
        config = run_config(self.run)
        self.store = open_split(data_path, name)
        self.ids = self.store.ids
        if name == HELD_OUT:
            if not config.val_split:
                raise InputError(
                    f"{run} trained on all of train, so nothing is held out (val_split is 0); name another split"
                )
            self.ids = held_out_by(run, data_path, config)
        known = set(labelled(self.store))
        self.labelled = [id for id in self.ids if id in known]

    def predict(self, detector: DistortionDetector, folder, **options) -> PredictionStore:
        """Predict the images that count into `folder`; options as of `lib.predict.prediction.predict`."""
        return predict(detector, self.store, folder, self.ids, **options)


def calibration_split(runs: list, data_path, reported: str, wanted: str = "") -> Split | None:
    """Where the threshold is chosen: the split wanted; else `val` or what was held out, another than the reported one.

    Args:
        runs: one, or those of an ensemble, none of which may have trained on it. reported: the split with the figures.
    The reported one itself where no other has labels; None without any. InputError when the split wanted has none.
    """
    if wanted:
        split = Split(runs[0], data_path, wanted)
        if not split.labelled:
            raise InputError(
                f"{split.store.path} has no labels to choose a threshold on; name another split or give one"
            )
        return split
    val = _labelled_val(runs[0], data_path)
    if val and reported != val.name:
        return val
    return _held_out_by_all(runs, data_path) or val


def _labelled_val(run, data_path) -> Split | None:
    if not (Path(data_path) / "val" / LabelStore.table_name).is_file():
        return None
    split = Split(run, data_path, "val")
    return split if split.labelled else None


def _held_out_by_all(runs: list, data_path) -> Split | None:
    """None when one of the runs has trained on images that another held out."""
    if not all(run_config(run).val_split for run in runs):
        return None
    splits = [Split(run, data_path, HELD_OUT) for run in runs]
    return splits[0] if all(split.ids == splits[0].ids for split in splits) else None
