"""Run notebooks in order, headless: `python -m lib.pipeline notebooks/params/demo.yaml`.

The plan (see `lib.plans`) is checked before anything starts. Each notebook runs in a kernel of its own by papermill,
with the repository's root as working directory; its printed lines stream through. Below `runs/<plan>/`:

    state.json           finished steps; the same command goes on at the first unfinished one
    notebooks/*.ipynb    executed notebooks, and beside them in the folder above the same as HTML pages
    index.html           links to the pages, and the figures
    summary.json         figures of the test split, time, peak memory

Exit codes: 0 done, 1 a notebook failed, 2 the plan or the command line cannot be used, 130 interrupted.
A step counts as finished as long as its notebook's code, its parameters and all steps before it are the same and
what it `writes` exists. Changes in `lib` are not looked at: `--from STEP` or `--fresh` runs again.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil

from lib import reports
from lib.errors import InputError
from lib.files import replacing
from lib.notebooks import nearest
from lib.plans import Override, Plan, Step, load_plan

ROOT = Path(__file__).resolve().parents[1]


class StepError(Exception):
    """A notebook did not run to its end; the message is what the user reads."""


class Lines:
    """A file for papermill that prints whole lines at once, indented, without the ticks of progress bars."""

    def __init__(self):
        self.rest = ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            print("    " + line.rstrip("\r").rpartition("\r")[2], flush=True)

    def flush(self) -> None:
        """Nothing: an unfinished line waits for its end."""


class PeakMemory:
    """Samples the resident memory of this process's children (kernels and what they start) twice a second.

    `peak_mb` is the largest sum seen, in MiB. Pages shared between processes count for each of them.
    """

    def __enter__(self):
        self.peak_mb, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _sample(self):
        while not self._stop.wait(0.5):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.peak_mb = max(self.peak_mb, total / 2**20)


@dataclass
class State:
    """`state.json`: step name -> {fingerprint, finished, seconds, peak_memory_mb}."""

    path: Path
    steps: dict

    @classmethod
    def load(cls, path: Path) -> "State":
        if not path.exists():
            return cls(path, {})
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            return cls(path, {name: dict(entry) for name, entry in steps.items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is damaged; run again with --fresh to begin anew") from None

    def finished(self, step: Step, root: Path) -> bool:
        entry = self.steps.get(step.name, {})
        unchanged = entry.get("finished") and entry.get("fingerprint") == step.fingerprint
        return bool(unchanged) and all((root / path).exists() for path in step.writes)

    def add(self, step: Step, finished: bool, seconds: float, peak_mb: float) -> None:
        """Record a run; the time of an unfinished attempt adds to that of the next."""
        entry = self.steps.get(step.name, {})
        if entry.get("finished") or entry.get("fingerprint") != step.fingerprint:
            entry = {}
        self.steps[step.name] = {
            "fingerprint": step.fingerprint,
            "finished": finished,
            "seconds": entry.get("seconds", 0.0) + seconds,
            "peak_memory_mb": max(entry.get("peak_memory_mb", 0.0), peak_mb),
        }
        self._save()

    def forget(self, names: list[str]) -> None:
        """Drop steps about to be made anew; the time of unfinished attempts at the first one stays."""
        for name in names:
            if name != names[0] or self.steps.get(name, {}).get("finished"):
                self.steps.pop(name, None)
        self._save()

    def _save(self) -> None:
        with replacing(self.path) as part:
            part.write_text(json.dumps({"steps": self.steps}, indent=2), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parse(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the kernel and keep the state
    try:
        overrides = [Override.parse(text) for text in options.set]
        plan = load_plan(options.plan, options.notebooks, overrides, options.runs and options.runs.resolve())
        if options.check:
            print(f"{options.plan} is fine: {', '.join(step.name for step in plan.steps)}")
            return 0
        folder = (options.runs or ROOT / "runs").resolve() / plan.name
        return _locked_run(plan, folder, options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except StepError as error:
        print(f"\n{error}\nMend it and give the same command again: finished steps are not repeated.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on at the first unfinished step.", file=sys.stderr)
        return 130


def _parse(argv):
    parser = argparse.ArgumentParser(prog="python -m lib.pipeline", description="Run a plan's notebooks in order.")
    parser.add_argument("plan", type=Path, help="a plan, such as notebooks/params/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="[STEP.]NAME=VALUE", help="override a parameter")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="STEP", help="run this step alone, finished or not")
    which.add_argument("--from", dest="first", metavar="STEP", help="run this step and all after it, finished or not")
    which.add_argument("--fresh", action="store_true", help="run every step again; nothing is deleted")
    parser.add_argument("--check", action="store_true", help="check the plan and run nothing")
    parser.add_argument("--runs", type=Path, help="folder for outputs (default: runs; also given to the notebooks)")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="folder of the notebooks")
    return parser.parse_args(argv)


def _locked_run(plan: Plan, folder: Path, options) -> int:
    try:
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=0):
            run(plan, folder, options.only, options.first, options.fresh)
    except filelock.Timeout:
        raise InputError(f"{folder} is in use by another pipeline; wait for it or end it") from None
    except OSError as error:
        raise InputError(f"cannot work in {folder}: {error}") from None
    return 0


def run(plan: Plan, folder: Path, only: str | None = None, first: str | None = None, fresh: bool = False) -> None:
    """Run what is not finished, then write the summary into `folder`. Raises StepError, InputError."""
    names = [step.name for step in plan.steps]
    for name in filter(None, (only, first)):
        if name not in names:
            raise InputError(f"there is no step {name!r}{nearest(name, names)}; steps are {', '.join(names)}")
    state = State(folder / "state.json", {}) if fresh else State.load(folder / "state.json")
    _prepare_environment()
    for number, step in enumerate(plan.steps, 1):
        if only and step.name != only:
            continue
        done = number <= names.index(first) if first else state.finished(step, ROOT)
        if done and not only:
            print(f"[{number}/{len(names)}] {step.name}: skipped, finished before", flush=True)
            continue
        state.forget(names[number - 1 :])  # what follows was made from the old result
        print(f"[{number}/{len(names)}] {step.name}: {step.notebook.name}", flush=True)
        _run_step(plan, step, folder, number, state)
    _finish(plan, folder, state)


def _prepare_environment() -> None:
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not the user's other ones
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a debugger's warning that would open every page
    for name in ("JUPYTER_PATH", "MPLBACKEND"):  # a backend from outside would keep figures out of the pages
        os.environ.pop(name, None)
    logging.getLogger("papermill").propagate = False  # what it has to say arrives as exceptions
    logging.getLogger("papermill").addHandler(logging.NullHandler())


def _run_step(plan: Plan, step: Step, folder: Path, number: int, state: State) -> None:
    executed = folder / "notebooks" / f"{number}_{step.name}.ipynb"
    page = folder / f"{number}_{step.name}.html"
    failure, finished, start = None, False, time.monotonic()
    try:
        with PeakMemory() as memory:
            failure = execute(step.notebook, executed, step.parameters)
        finished = failure is None
    finally:
        seconds = time.monotonic() - start
        state.add(step, finished, seconds, memory.peak_mb)
    if executed.exists():
        reports.export_page(executed, page, title=step.name)
        reports.write_index(plan, folder, None)
    if failure:
        files = "".join(f"\n  {file}" for file in (executed, page) if file.exists())
        raise StepError(f"{step.name} failed after {reports.duration(seconds)}: {failure}{files}")
    missing = [path for path in step.writes if not (ROOT / path).exists()]
    if missing:
        raise StepError(f"{step.name} ended without writing {', '.join(missing)}, which the plan expects of it")
    print(f"    done in {reports.duration(seconds)}, peak memory {memory.peak_mb:.0f} MiB", flush=True)


def execute(notebook: Path, executed: Path, parameters: dict) -> str | None:
    """Run one notebook; None, or one or two sentences about what went wrong and in which cell."""
    # Imported here so that a wrong plan is refused at once.
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    executed.unlink(missing_ok=True)
    try:
        # papermill fills {name} in paths; a folder may really be called so
        source, target = (str(path.resolve()).replace("{", "{{").replace("}", "}}") for path in (notebook, executed))
        where = {"kernel_name": "python3", "language": "python", "cwd": ROOT}
        how = {"progress_bar": False, "stdout_file": Lines(), "extra_arguments": ["--log-level=CRITICAL"]}
        papermill.execute_notebook(source, target, parameters, **where, **how)
    except PapermillExecutionError as error:
        return f"{_cell(error.exec_count, error.source)}\n  {_one_line(f'{error.ename}: {error.evalue}')}"
    except DeadKernelError:
        return f"the kernel died, probably out of memory (smaller batches help){_last_cell(executed)}"
    except Exception as error:
        return f"the notebook could not be run: {_one_line(f'{type(error).__name__}: {error}')}"
    return None


def _cell(number, source: str) -> str:
    first = next((line for line in source.splitlines() if line.strip()), "")
    return f"cell [{number}], which begins with `{first.strip()}`"


def _last_cell(executed: Path) -> str:
    """The cell during which a kernel died: papermill marks it before it saves."""
    try:
        cells = [c for c in json.loads(executed.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    except (OSError, ValueError, KeyError):
        return ""
    begun = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("start_time")]
    return f" in {_cell(len(begun), ''.join(begun[-1]['source']))}" if begun else ""


def _one_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), text)


def _finish(plan: Plan, folder: Path, state: State) -> None:
    unfinished = [step.name for step in plan.steps if not state.finished(step, ROOT)]
    if unfinished:
        reports.write_index(plan, folder, None)
        print(f"Not finished yet: {', '.join(unfinished)}. Give the command without --only or --from to run them.")
        return
    entries = [state.steps[step.name] for step in plan.steps]
    try:
        summary = reports.summarise(plan, folder.parent)
    except InputError as error:
        raise StepError(f"All steps ran, but the summary cannot be written: {error}") from None
    summary["seconds"] = round(sum(entry["seconds"] for entry in entries), 1)
    summary["peak_memory_mb"] = round(max(entry["peak_memory_mb"] for entry in entries))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    reports.write_index(plan, folder, summary)
    print(reports.closing(plan, folder, summary), flush=True)


if __name__ == "__main__":
    sys.exit(main())
