"""All checks, side by side: the slow ones are an import of torch and a question to the hub."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from lib.doctor import inputs, machine, software
from lib.doctor.report import WARN, Finding, Report

CHECKS = (
    software.python, software.packages, software.kernel, software.widgets, software.browser,
    machine.gpu, machine.memory, machine.shared_memory, machine.disk, machine.ports,
    inputs.raw_data, inputs.prepared_data, inputs.hub,
)  # fmt: skip


def examine(config=None) -> Report:
    """Look at everything a run with this `Experiment` needs (default: what the demo needs); never raises."""
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        return Report(pool.map(lambda check: _guarded(check, config), CHECKS))


def _guarded(check: Callable, config) -> Finding:
    try:
        return check(config)
    except Exception as error:  # a doctor that falls ill helps nobody
        told = f"could not be looked at ({type(error).__name__}: {error})"
        return Finding(check.__name__.replace("_", " "), WARN, told, "when the other lines are fine, look yourself")
