"""One notebook run headless by papermill: its printed lines, its peak memory, and what went wrong, in a sentence."""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import psutil

from lib.signals import StopRequest


def execute(notebook: Path, executed: Path, parameters: dict, folder: Path) -> str | None:
    """Run one notebook with `folder` as working directory; its printed lines go to standard output.

    Returns None, or one or two sentences that say what went wrong and in which cell. SIGTERM and SIGINT interrupt the
    running cell as Jupyter's stop button does, and it may take its time to save; then KeyboardInterrupt is raised with
    what the cell said. A second signal raises it at once.
    """
    executed.unlink(missing_ok=True)
    with StopRequest(_interrupt_cell) as stop:
        failure = _execute(notebook, executed, parameters, folder, stop)
    if stop:
        raise KeyboardInterrupt(failure or "")
    return failure


def _execute(notebook: Path, executed: Path, parameters: dict, folder: Path, stop: StopRequest) -> str | None:
    # Imported here so that a wrong plan is refused at once.
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    begun = []  # sources of the cells

    def begin(cell, **_) -> None:
        if stop:
            raise KeyboardInterrupt
        begun.append(cell["source"])

    def where() -> str:
        first = next((line for line in begun[-1].splitlines() if line.strip()), "") if begun else ""
        return f"cell [{len(begun)}], which begins with `{first.strip()}`"

    try:
        papermill.execute_notebook(
            str(notebook), str(executed), parameters, kernel_name="python3", language="python", cwd=folder,
            progress_bar=False, stdout_file=sys.stdout, extra_arguments=["--log-level=CRITICAL"], on_cell_execute=begin,
        )  # fmt: skip
    except PapermillExecutionError as error:
        return f"{where()}\n  {_one_line(f'{error.ename}: {error.evalue}')}"
    except DeadKernelError:
        why = "after the signal" if stop else "probably out of memory (smaller batches help)"
        return f"the kernel died, {why} in {where()}"
    except Exception as error:
        return f"the notebook could not be run: {_one_line(f'{type(error).__name__}: {error}')}"
    return None


def _interrupt_cell(number: int) -> None:
    """Interrupt the kernels; papermill itself would give them five seconds, and a large checkpoint takes longer.

    It runs within a signal handler, where a `print` might interrupt another one.
    """
    name = signal.Signals(number).name
    os.write(2, f"{name}: waiting for the cell, which may save; a second signal ends it at once\n".encode())
    for child in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError):  # a kernel leads a group of its own, another child may not
            os.killpg(child.pid, signal.SIGINT)  # SIGTERM would end a cell that does not listen without a traceback


def _one_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), text)


class PeakMemory:
    """Samples the resident memory of this process's children (kernels and what they start) twice a second.

    `megabytes` is the largest sum seen, in MiB. Pages shared between processes count for each of them.
    """

    def __enter__(self):
        self.megabytes, self._stop = 0.0, threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._stop.set()

    def _sample(self):
        while not self._stop.wait(0.5):
            total = 0
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    total += child.memory_info().rss
            self.megabytes = max(self.megabytes, total / 2**20)
