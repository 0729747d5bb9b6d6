"""Run notebooks in order, headless: `python -m lib.pipeline notebooks/params/demo.yaml`.

The plan (see `lib.pipeline.plans`) is checked before anything starts. Each notebook runs in a kernel of its own by
papermill, with the repository's root as working directory; its printed lines stream through. Below `runs/<plan>/`:

    state.json           finished steps; the same command goes on at the first unfinished one
    notebooks/*.ipynb    executed notebooks; in the folder above the same as HTML pages
    index.html           how the steps went, the figures with intervals, the parameters that differ
    summary.json         figures of the test split, time, peak memory

Exit codes: 0 done, 1 a notebook failed, 2 the plan or the command line cannot be used, 130 interrupted.
A step counts as finished as long as its notebook's code, its parameters and the steps that it needs are the same and
what it `writes` exists; the rows of a sweep do not need each other. Changes in `lib` are not looked at: `--fresh` runs
all again, and what a run has trained it still knows.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lib.errors import InputError, command
from lib.files import locked, write_text
from lib.pipeline.kernel import PeakMemory, execute
from lib.pipeline.plans import Plan, Step, load_plan
from lib.pipeline.summary import as_text, duration, evaluation_of, publish, summarise
from lib.records import read_record
from lib.signals import handled_by

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = "interrupted"  # the `failure` of a step that a signal ended


class StepError(Exception):
    """A notebook did not run to its end; the message is what the user reads."""


@command
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parse(argv)
    try:
        with handled_by(signal.default_int_handler):  # which ends the notebook and keeps the state
            _start(options)
    except StepError as error:
        print(f"\n{error}\nMend it and give the same command again: finished steps are not repeated.", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        where = f" in {stopped}\n" if str(stopped) else ". "
        print(f"\nInterrupted{where}The same command goes on at the first unfinished step.", file=sys.stderr)
        return 130
    return 0


def _start(options) -> None:
    plan = load_plan(options.plan, options.notebooks, options.set, options.runs and options.runs.resolve())
    folder = (options.runs or ROOT / "runs").resolve() / plan.name
    try:
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", f"{folder} is in use by another pipeline; wait for it or end it"):
            run(plan, folder, options.fresh)
    except OSError as error:
        raise InputError(f"cannot work in {folder}: {error}; choose another folder with --runs FOLDER") from None


def _parse(argv):
    parser = argparse.ArgumentParser(prog="python -m lib.pipeline", description="Run a plan's notebooks in order.")
    parser.add_argument("plan", type=Path, help="a plan, such as notebooks/params/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="[STEP.]NAME=VALUE", help="override a parameter")
    parser.add_argument("--fresh", action="store_true", help="run every step again; nothing is deleted")
    parser.add_argument("--runs", type=Path, help="folder for outputs (default: runs; also given to the notebooks)")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="folder of the notebooks")
    return parser.parse_args(argv)


def run(plan: Plan, folder: Path, fresh: bool = False) -> None:
    """Run what is not finished, then write the summary into `folder`. Raises StepError, InputError."""
    state = State(folder / "state.json", fresh)

    def write_pages(reports: dict[str, dict]) -> None:
        try:
            publish(plan, folder, reports)
        except (InputError, OSError) as error:  # told now: a later step may end the plan with a sentence of its own
            print(error, file=sys.stderr, flush=True)

    _prepare_environment()
    with ThreadPoolExecutor(1) as publishing:  # a page is made while the next kernel starts
        for number, step in enumerate(plan.steps, 1):
            where = f"[{number}/{len(plan.steps)}] {step.name}:"
            if state.finished(step):
                print(f"{where} skipped, finished before", flush=True)
                continue
            state.forget([step.name, *(later.name for later in plan.steps[number:] if later.needs(step))])
            if step.labelled and (evaluation := evaluation_of((ROOT / step.labelled).parent))["figures"] is None:
                print(f"{where} left out, {evaluation['split']} has no labels", flush=True)
                state.add(step, None, left_out=True)
                continue
            print(f"{where} {step.notebook.name}", flush=True)
            try:
                _run_step(step, folder, state)
            finally:
                publishing.submit(write_pages, {step.name: state.report(step) for step in plan.steps})
    _finish(plan, folder, state)


class State:
    """`state.json`: step name -> {fingerprint, finished, failure, seconds, peak_memory_mb}, or {..., left_out}."""

    def __init__(self, path: Path, fresh: bool):
        self.path, self.steps = path, {}
        if path.exists() and not fresh:
            self.steps = read_record(path, {"steps": dict}, "run again with --fresh to begin anew")["steps"]

    def finished(self, step: Step) -> bool:
        """Whether a step need not run: it ended well, nothing of it has changed, and what it writes is there."""
        entry = self.steps.get(step.name, {})
        unchanged = entry.get("finished") and entry.get("fingerprint") == step.fingerprint
        return bool(unchanged) and all((ROOT / path).exists() for path in step.writes)

    def report(self, step: Step) -> dict:
        """The step's entry with its `status`: finished, left out, interrupted, failed, or not run."""
        entry = self.steps.get(step.name, {})
        if self.finished(step):
            return {"status": "left out"} if entry.get("left_out") else {"status": "finished", **entry}
        if not entry.get("failure") or entry.get("fingerprint") != step.fingerprint:
            return {"status": "not run"}
        return {"status": INTERRUPTED if entry["failure"] == INTERRUPTED else "failed", **entry}

    def add(self, step: Step, failure: str | None, **facts) -> None:
        """Record how a step ended, with `seconds` and `peak_memory_mb`, or that it is `left_out`."""
        entry = {"fingerprint": step.fingerprint, "finished": failure is None, "failure": failure}
        self.steps[step.name] = entry | facts
        self._save()

    def forget(self, names: list[str]) -> None:
        """Drop steps that are about to be made anew."""
        self.steps = {name: entry for name, entry in self.steps.items() if name not in names}
        self._save()

    def _save(self) -> None:
        write_text(self.path, json.dumps({"steps": self.steps}, indent=2))


def _prepare_environment() -> None:
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not the user's other ones
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a debugger's warning that would open every page
    # A backend from outside would keep figures out of the pages; a session of JupyterLab's the lines of a training.
    for name in ("JUPYTER_PATH", "MPLBACKEND", "JPY_SESSION_NAME"):
        os.environ.pop(name, None)
    logging.getLogger("papermill").propagate = False  # what it has to say arrives as exceptions
    logging.getLogger("papermill").addHandler(logging.NullHandler())


def _run_step(step: Step, folder: Path, state: State) -> None:
    executed, page = folder / "notebooks" / f"{step.stem}.ipynb", folder / f"{step.stem}.html"
    failure, start = INTERRUPTED, time.monotonic()
    try:
        with PeakMemory() as memory:
            failure = execute(step.notebook, executed, step.parameters, ROOT)
        missing = [path for path in step.writes if not (ROOT / path).exists()]
        if missing and not failure:
            failure = f"it ended without writing {', '.join(missing)}, which the plan expects of it"
    finally:
        seconds = time.monotonic() - start
        state.add(step, failure, seconds=seconds, peak_memory_mb=memory.megabytes)
    if failure:
        raise StepError(f"{step.name} failed after {duration(seconds)}: {failure}\n  {executed}\n  {page}")
    print(f"done in {duration(seconds)}, peak memory {memory.megabytes:.0f} MiB", flush=True)


def _finish(plan: Plan, folder: Path, state: State) -> None:
    """The summary and the closing words, once all steps are finished."""
    reports = {step.name: state.report(step) for step in plan.steps}
    summary = summarise(plan, folder.parent)
    ran = [entry for entry in reports.values() if "seconds" in entry]  # not those left out
    summary["seconds"] = round(sum(entry["seconds"] for entry in ran), 1)
    summary["peak_memory_mb"] = round(max((entry["peak_memory_mb"] for entry in ran), default=0))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    publish(plan, folder, reports, summary)
    pages = [page for step in plan.steps if (page := folder / f"{step.stem}.html").exists()]
    made = [ROOT / path for step in plan.steps for path in step.writes if path.endswith(".html")]
    looks = [*made, folder / "index.html", *pages, folder / "summary.json"]
    print(as_text(summary), "\nLook at:", *(f"  {path}" for path in looks), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
