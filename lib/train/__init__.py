"""Training: the loop, its steps and schedule, checkpoints, processes and the log."""

from lib.train.launch import launch
from lib.train.log import follow, read_metrics
from lib.train.loop import train

__all__ = ["follow", "launch", "read_metrics", "train"]
