"""Training: the loop, its steps and schedule, checkpoints, processes and the log."""

from lib.records import read_metrics
from lib.train.checkpoint import read_finished
from lib.train.loop import train
from lib.train.processes import launch

__all__ = ["launch", "read_finished", "read_metrics", "train"]
