"""Where notebooks work: in the repository's root, so that `data/demo` and `runs/...` mean the same everywhere.

And how they are run: by somebody in JupyterLab, or headless.
"""

import importlib
import os
import sys
import time
from pathlib import Path

from IPython import get_ipython

from lib.errors import InputError


def enter(start=None) -> Path:
    """Change to the repository's root, found upward from `start` (default: the working directory), and return it.

    JupyterLab starts a kernel in `notebooks/`, the pipeline in the root; a second call changes nothing. What is
    imported from `lib` afterwards is that of this repository, also in an environment made for another clone.
    Raises InputError when no folder upward holds `pyproject.toml` and `notebooks/`.
    """
    start = Path(start or os.getcwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            os.chdir(folder)
            own = folder / "lib" / "__init__.py"
            if own.is_file() and not own.samefile(sys.modules["lib"].__file__):
                print(f"lib is taken from {folder}, the environment {sys.prefix} is of another folder")
                sys.path.insert(0, str(folder))
                for name in [name for name in sys.modules if name.partition(".")[0] == "lib"]:
                    del sys.modules[name]
                importlib.import_module("lib")
            return folder
    raise InputError(f"{start} is not inside the kit's repository; start JupyterLab there (make lab)")


def in_jupyterlab() -> bool:
    """Whether a Jupyter server started this kernel; papermill and nbclient do not name a session."""
    return "JPY_SESSION_NAME" in os.environ and hasattr(get_ipython(), "kernel")


class ProgressLines:
    """A callback that prints a line every few seconds and one at the end; made for pages and logs as well as for Lab.

    Called as `(done, total)` or `(part, done, total)`; a part, such as a split, has its own line at its end.
    """

    def __init__(self, what: str, every: float = 10.0):
        self.what, self.every = what, every
        self.started = self.printed = time.monotonic()

    def __call__(self, *place) -> None:
        *part, done, total = place
        if done == 1:
            self.started = time.monotonic()
        now = time.monotonic()
        if done == total or now - self.printed > self.every:
            self.printed = now
            seconds = now - self.started
            speed = f", {done / seconds:.0f} a second" if seconds > 0.5 else ""
            print(" ".join([self.what, *part, f"{done:,}/{total:,}{speed}"]), flush=True)
