"""Start a training from a notebook: in this process, or in several that stream their progress here."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from lib.config import Experiment
from lib.signals import Interrupted
from lib.train.checkpoint import open_folder
from lib.train.log import RowsShown
from lib.train.loop import train
from lib.train.processes import STOPPED, refuse_more_than_gpus, run_in_processes


def launch(config: Experiment, on_rows: Callable[[list[dict]], None] | None = None) -> Path:
    """Train with `config.num_processes` processes and return the run's folder.

    SIGINT and SIGTERM let the processes save and end; then Interrupted is raised, and the same call goes on from there.

    Args:
        on_rows: called in this process with all rows of metrics.jsonl (see `read_metrics`) whenever some were added, at
            most about once a second, and at the end.
    Raises InputError for what a process found wrong with the input, RuntimeError with a process's traceback else.
    """
    config = config.resolved()  # the name may hold a date: all processes and all days of a run agree on one
    show = RowsShown(config.folder, on_rows)
    try:
        if config.num_processes == 1:
            train(config, show)
        else:
            _train_in_processes(config, show)
    except KeyboardInterrupt as stopped:  # also while it loads, or at a second signal
        show.now()
        raise Interrupted(str(stopped) or STOPPED) from None
    show.now()
    return config.folder


def _train_in_processes(config: Experiment, show: RowsShown) -> None:
    refuse_more_than_gpus(config.num_processes)
    open_folder(config)  # wrong parameters are refused before any process starts
    try:
        with tempfile.TemporaryDirectory() as scratch:
            config.save(Path(scratch) / "config.yaml")
            run_in_processes("lib.train", Path(scratch) / "config.yaml", config.num_processes, show)
    except Interrupted:
        if not (config.folder / "finished.json").is_file():  # else the signal came after the last step
            stopped = f"{config.name} was stopped; the same command goes on from its newest checkpoint."
            raise Interrupted(stopped) from None
