"""Which software a model was made with."""

import importlib.metadata
import platform

import lib

PACKAGES = ("torch", "transformers", "peft", "accelerate")


def versions() -> dict[str, str]:
    """{name: version} of Python, this kit and the packages a model depends on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "kit": lib.__version__, **packages}
