"""Steps whose loss or gradient is no number: when they are skipped and when there are too many of them."""

from lib.errors import InputError

MOST_LOSSES = 10  # steps in a row whose loss is no number, before `nonfinite: skip` gives up
MOST_OVERFLOWS = 30  # steps in a row that the loss scaler skips: its search from 65536 down to 1 takes 16


class Skipping:
    """Counts the steps in a row that were skipped.

    Args:
        nonfinite: the parameter: stop | skip. It does not matter to the loss scaler of fp16, which has to skip.
        total: steps of the run, which must not end without a single update.
    """

    def __init__(self, nonfinite: str, total: int):
        self.stops, self.total = nonfinite == "stop", total
        self.updated()

    def updated(self) -> None:
        """A step was taken."""
        self.losses = self.overflows = 0

    def loss(self, step: int, ids: list[str]) -> None:
        """The loss (or, without a loss scaler, a gradient) is no number; raises InputError when that is the end."""
        self.losses += 1
        if self.stops or self.losses >= MOST_LOSSES:
            raise _not_finite("loss or its gradient", self.losses, step, ids, self.stops)

    def overflow(self, step: int, ids: list[str]) -> None:
        """The loss scaler found a gradient that is no number; raises InputError when no scale can be the reason."""
        self.overflows += 1
        if self.overflows >= min(MOST_OVERFLOWS, self.total):
            raise _not_finite("gradient", self.overflows, step, ids, can_skip=False)


def _not_finite(what: str, times: int, step: int, ids: list[str], can_skip: bool) -> InputError:
    more = f" and {len(ids) - 8} more, all in metrics.jsonl" if len(ids) > 8 else ""
    shown = ", ".join(ids[:8]) + more
    again = f" {times} times in a row" if times > 1 else ""
    return InputError(
        f"the {what} is not finite{again} at step {step} (images {shown}); the newest checkpoint is whole: "
        f"{'go on with nonfinite: skip, or ' if can_skip else ''}begin another experiment_name with a lower lr, "
        "clip_grad_norm: 1 or mixed_precision: bf16"
    )
