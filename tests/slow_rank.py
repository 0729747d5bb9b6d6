"""Ranks that are slow to end, started by torchrun: `slow_rank FOLDER/saves` and `slow_rank FOLDER/deaf`."""

import os
import signal
import sys
import time
from pathlib import Path

SAVING = 35  # seconds, more than the 30 that torchrun gives by itself


def save(number: int, _frame) -> None:
    time.sleep(SAVING)
    Path(f"{sys.argv[1]}_{os.environ['RANK']}").touch()
    sys.exit(0)


if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, save if sys.argv[1].endswith("saves") else signal.SIG_IGN)
    print("up", flush=True)
    time.sleep(300)
