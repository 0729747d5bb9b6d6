"""A prepared split as a run sees it, and the one on which that run's threshold may be chosen."""

from pathlib import Path

from lib.config import Experiment
from lib.data.dataset import labelled
from lib.data.held_out import held_out_by
from lib.errors import InputError
from lib.inference import predict
from lib.model import DistortionDetector
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
        """Predict the images that count into `folder`; options as of `lib.inference.predict`."""
        return predict(detector, self.store, folder, self.ids, **options)


def calibration_split(run, data_path, wanted: str = "") -> Split | None:
    """Where the threshold is chosen: the split wanted, else `val`, else what was held out; None without labels."""
    config = run_config(run)
    if wanted:
        split = Split(run, data_path, wanted)
        if not split.labelled:
            raise InputError(
                f"{split.store.path} has no labels to choose a threshold on; name another split or give one"
            )
        return split
    if (Path(data_path) / "val" / LabelStore.table_name).is_file():
        split = Split(run, data_path, "val")
        if split.labelled:
            return split
    return Split(run, data_path, HELD_OUT) if config.val_split else None
