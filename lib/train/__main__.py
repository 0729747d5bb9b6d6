"""`python -m lib.train CONFIG.yaml`: one training; torchrun starts this in every process."""

import contextlib
import os
import signal
import sys

import torch

from lib.config import Experiment
from lib.errors import InputError, command
from lib.signals import STOPPED, handled_by
from lib.train.loop import train


@command
def main(argv: list[str] | None = None) -> int:
    """Train with the parameters in a YAML file.

    Returns the exit code: 2 for unusable input, 130 for a run that was interrupted and saved. Under torchrun the latter
    is 0: it would report anything else as a failure and end ranks that still save.
    """
    arguments = sys.argv[1:] if argv is None else argv
    first = os.environ.get("RANK", "0") == "0"
    # While it loads, a signal ends the first process with a sentence. Others may wait for it where no handler runs.
    loading = handled_by(signal.default_int_handler) if first else contextlib.nullcontext()
    try:
        with loading:
            if len(arguments) != 1:
                raise InputError("usage: python -m lib.train CONFIG.yaml")
            train(Experiment.from_yaml(arguments[0]).resolved())
    except KeyboardInterrupt as stopped:
        if first:
            print(str(stopped) or STOPPED, flush=True)
        return 0 if "TORCHELASTIC_RUN_ID" in os.environ else 130
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
