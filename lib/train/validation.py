"""Evaluation while training: predict the held-out images into the run's folder and compute the challenge metric."""

from lib.config import Experiment
from lib.data.dataset import validation_source
from lib.distributed import rank
from lib.errors import InputError
from lib.metrics import best_threshold, score_table, sweep, threshold_curve
from lib.predict.prediction import predict

THRESHOLDS = range(10, 250, 10)
REPORTED = ("final_score", "f1_score", "plcc", "srcc")


class Validation:
    """Callable: detector -> figures at the best of a coarse grid of thresholds.

    The threshold is chosen on the same images, so these figures compare epochs of one run with each other;
    notebook 3 measures a run, with the threshold of one split applied to another.
    """

    def __init__(self, config: Experiment):
        found = validation_source(config)
        if found is None:
            raise InputError(
                f"val_iter is {config.val_iter}, but {config.data_path} has no labelled val split and val_split is 0; "
                "set val_split to a number of training images to hold out, or val_iter to -1"
            )
        self.config = config
        self.store, self.ids = found

    def __call__(self, detector) -> dict[str, float] | None:
        """Figures on rank 0, None elsewhere; all ranks must call it, since they share the work."""
        folder = self.config.folder / "predictions" / "validation"
        options = {"batch_size": self.config.batch_size_val, "num_workers": self.config.num_workers, "progress": False}
        predictions = predict(detector, self.store, folder, self.ids, **options)
        if rank():
            return None
        counts = sweep(predictions, self.store, THRESHOLDS, ids=self.ids)
        curve = threshold_curve(counts, score_table(predictions, self.store, self.ids)).set_index("threshold")
        threshold = best_threshold(curve.reset_index())
        return {**{name: float(curve.at[threshold, name]) for name in REPORTED}, "threshold": threshold}
