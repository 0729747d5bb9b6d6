"""The environment: Python, packages at their versions, the notebook's kernel, widgets, a browser for the tests.

Every check takes the `Experiment` that is to run (None: the demo) and returns one finding.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lib.doctor.report import BAD, OK, ROOT, WARN, Finding

INSTALL = "make install (conda: conda env update -f environment.yml)"
# What JupyterLab must have in its own environment for widgets to appear.
LAB_EXTENSIONS = {"ipywidgets": "@jupyter-widgets/jupyterlab-manager", "anywidget": "anywidget"}


def python(_config=None) -> Finding:
    """The version, and whether this is the project's environment."""
    version = ".".join(map(str, sys.version_info[:3]))
    where = f"Python {version} in {sys.prefix}"
    if sys.version_info[:2] != (3, 11):
        return Finding("python", BAD, where, "Python 3.11 is needed: make install PYTHON=/path/to/python3.11")
    if Path(sys.prefix) == ROOT / ".venv" or os.environ.get("CONDA_PREFIX") == sys.prefix:
        return Finding("python", OK, where)
    return Finding("python", WARN, f"{where}, which is not this project's .venv", "start JupyterLab with make lab")


def packages(_config=None) -> Finding:
    """Every package of requirements.txt, at its version."""
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    found = {name: _version(name) for name, _ in pins}
    absent = [name for name, _ in pins if not found[name]]
    other = [f"{name} {found[name]} (not {pin})" for name, pin in pins if found[name] and found[name] != pin]
    if absent:
        return Finding("packages", BAD, f"not installed: {', '.join(absent)}", INSTALL)
    if other:
        return Finding("packages", WARN, f"other versions than those tested: {', '.join(other)}", INSTALL)
    return Finding("packages", OK, f"{len(pins)} of requirements.txt at their versions")


def kernel(_config=None) -> Finding:
    """Whether notebooks run in this environment: the kernel `python3`, and in a notebook JupyterLab itself."""
    spec = _kernels().get("python3")
    if spec is None:
        return Finding("kernel", BAD, "there is no kernel named python3", INSTALL)
    program = Path(spec["spec"]["argv"][0])
    # A bare name is replaced by the Python of whoever starts the kernel.
    if program.name != str(program) and program.parent != Path(sys.executable).parent:
        remedy = f"start JupyterLab with make lab, or remove {spec['resource_dir']}"
        return Finding("kernel", BAD, f"the kernel python3 runs {program}, not this environment", remedy)
    lab = lab_program()
    if lab and lab.parent != Path(sys.executable).parent:
        told = f"this kernel runs in {sys.prefix}, JupyterLab in {lab.parent.parent}: widgets may not appear"
        return Finding("kernel", WARN, told, "start JupyterLab with make lab")
    return Finding("kernel", OK, "python3 runs in this environment" + (", as JupyterLab does" if lab else ""))


def _kernels() -> dict:
    """What Jupyter itself finds: name -> {"resource_dir", "spec": {"argv", ...}}."""
    command = [sys.executable, "-m", "jupyter", "kernelspec", "list", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["kernelspecs"]


def lab_program() -> Path | None:
    """The Python that runs the JupyterLab which started this kernel; None outside a notebook."""
    if "JPY_SESSION_NAME" not in os.environ:
        return None
    import psutil

    program = Path(psutil.Process(int(os.environ["JPY_PARENT_PID"])).cmdline()[0])
    return program if program.is_absolute() else None  # started by a bare name: unknown


def widgets(_config=None) -> Finding:
    """The browser's half of the widgets, in JupyterLab's environment and of the right generation."""
    lab = lab_program()
    prefix = lab.parent.parent if lab else Path(sys.prefix)
    folder = prefix / "share" / "jupyter" / "labextensions"
    absent = [name for name, path in LAB_EXTENSIONS.items() if not (folder / path / "package.json").is_file()]
    if absent:
        told = f"{prefix} lacks the JupyterLab extension of {' and '.join(absent)}: the mask inspector stays empty"
        return Finding("widgets", BAD, told, f"{INSTALL}, then restart JupyterLab")
    needed = next(text for text in importlib.metadata.requires("ipywidgets") if "jupyterlab_widgets" in text)
    wanted, found = re.search(r"\d+\.\d+", needed)[0], _version("jupyterlab_widgets")
    if not found.startswith(f"{wanted}."):
        told = f"jupyterlab_widgets {found or 'is not installed'}, but ipywidgets needs {wanted}: 'model not found'"
        return Finding("widgets", BAD, told, f"{INSTALL}, then restart JupyterLab")
    return Finding("widgets", OK, f"ipywidgets {_version('ipywidgets')}, anywidget {_version('anywidget')}")


def browser(_config=None) -> Finding:
    """A Chromium, which only the browser tests need."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found and shutil.which(found):
        return Finding("browser", OK, f"{found} for the browser tests")
    told = f"CHROMIUM is {found}, which cannot be run" if found else "no Chromium: the browser tests are skipped"
    return Finding("browser", WARN, told, "apt-get install chromium, or name one by the variable CHROMIUM")


def _version(name: str) -> str:
    """The installed version without its build (`+cpu`); empty when it is not installed."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""
