"""Weights & Biases, when the parameter `wandb` names a project: the values of TensorBoard under the same names.

The package is optional (`pip install wandb`). Its own settings, such as WANDB_MODE, WANDB_ENTITY and WANDB_BASE_URL,
are honoured. Facts about wandb in the comments were seen with wandb 0.31.
"""

import importlib
import os
import textwrap
import uuid
from pathlib import Path

from lib.config import Experiment
from lib.errors import InputError
from lib.files import replacing

PATIENCE = "300"  # seconds that the end of a run waits for its upload; what is left stays on disk for `wandb sync`


class WandbRun:
    """A run at Weights & Biases; a training that goes on goes on with the same run, whose id lies in its folder.

    Without a network the run is recorded in `<folder>/wandb` for `wandb sync`. Raises InputError when wandb is not
    installed or refuses to begin, for example because nobody has logged in.
    """

    def __init__(self, folder: Path, config: Experiment):
        self.wandb, self.project = _installed(config.wandb), config.wandb
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", PATIENCE)  # by itself wandb waits for ever
        begin = {
            "project": config.wandb, "name": config.name, "id": _run_id(folder), "resume": "allow",
            "dir": str(folder), "config": config.to_dict(),
        }  # fmt: skip
        self.run = self._begun(begin)
        # wandb drops what is logged under a step it has seen, and a run may go on from before the step it died at.
        # With a step of our own such values are drawn over those they repeat.
        self.run.define_metric("*", step_metric="step")

    def _begun(self, begin: dict):
        try:
            return self.wandb.init(**begin)
        except self.wandb.errors.AuthenticationError as error:
            raise self._refusal(error) from None
        except self.wandb.errors.CommError as error:
            print(
                f"wandb: the server cannot be used ({_short(error)}); recording in {begin['dir']}/wandb, "
                "send it later with `wandb sync`.",
                flush=True,
            )
            self.wandb.teardown()  # or the id counts as taken by the attempt that failed
            return self.wandb.init(**begin, mode="offline")
        except Exception as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> InputError:
        return InputError(
            f"wandb: {self.project!r} cannot be reported to ({_short(error)}); run `wandb login`, set "
            "WANDB_MODE=offline, or leave the parameter empty"
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Report {name: number} after `step` optimizer steps; a failure is told once and ends the reporting."""
        if self.run is None:
            return
        try:
            self.run.log({"step": step, **values})
        except Exception as error:  # whatever happens to wandb, the training goes on
            print(f"wandb: reporting has stopped ({_short(error)}); metrics.jsonl and TensorBoard go on.", flush=True)
            self.run = None

    def finish(self, complete: bool) -> None:
        """Send what is left and end; a run that is not `complete` is shown as failed until it goes on."""
        if self.run is None:
            return
        try:
            self.run.finish(exit_code=0 if complete else 1)
        except Exception as error:
            print(f"wandb: the run could not be ended ({_short(error)}).", flush=True)


def _installed(project: str):
    try:
        wandb = importlib.import_module("wandb")  # optional, hence no import at the top
        wandb.init  # noqa: B018 (a folder `wandb` in the working directory imports as an empty package)
    except (ImportError, AttributeError):
        raise InputError(
            f"wandb: {project!r} needs the package wandb; run `pip install wandb`, or leave the parameter empty to "
            "report to TensorBoard only"
        ) from None
    return wandb


def _run_id(folder: Path) -> str:
    path = Path(folder) / "wandb_id"
    if not path.is_file():
        with replacing(path) as part:
            part.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


def _short(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
