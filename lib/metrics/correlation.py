"""Agreement of predicted and true scores: PLCC, SRCC, KRCC, RMSE.

Scores run from 0 (broken) to 1 (sound), so higher is better; MOS = 1 + 4 x score. The correlations do not
depend on the scale, the RMSE is in MOS units. A figure that is not defined is NaN, with a sentence that says why.
"""

import warnings

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

MOS_PER_UNIT = 4.0
MAX_EVALUATIONS = 5000
INVERTED = "scores are inverted (SRCC {:.2f}); PLCC hides it because it is computed after a fitted curve"


def score_figures(predicted: np.ndarray, true: np.ndarray, krcc: bool = True) -> tuple[dict, list[str]]:
    """The four figures and the notes about them; without `krcc` it stays NaN.

    Arguments: `predicted`, `true` float [N]. An image without a true score is left out, with a note; a
    predicted score that is not a number leaves every figure undefined, since no order is defined then.
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    labelled = np.isfinite(true)
    notes = [] if labelled.all() else [f"{(~labelled).sum()} images have no true score and count for masks only"]
    predicted, true = predicted[labelled], true[labelled]
    if wrong := np.count_nonzero(~np.isfinite(predicted)):
        told = f"{wrong} predicted scores are not finite numbers, so PLCC, SRCC, KRCC and RMSE are undefined"
        return agreement(predicted[:0], true[:0], true[:0], krcc), [*notes, told]
    curve, note = logistic_curve(predicted, true)
    if reason := _undefined(predicted, true):
        note = f"{reason}, so PLCC, SRCC and KRCC are undefined"
    return agreement(predicted, true, curve, krcc), notes + [note] * bool(note)


def agreement(predicted: np.ndarray, true: np.ndarray, curve: np.ndarray, krcc: bool = True) -> dict[str, float]:
    """`plcc`, `srcc`, `krcc` and `rmse_mos` of finite scores, float [N] each; without `krcc` it stays NaN.

    `curve` is `logistic_curve` at each prediction. Without an image, or when one side is constant, they are NaN.
    """
    found = dict.fromkeys(("plcc", "srcc", "krcc", "rmse_mos"), np.nan)
    if len(true):
        found["rmse_mos"] = float(np.sqrt(np.mean((predicted - true) ** 2)) * MOS_PER_UNIT)
    if not _undefined(predicted, true):
        found |= {"plcc": pearson(curve, true), "srcc": spearman(predicted, true)}
        if krcc:
            from scipy.stats import kendalltau  # the organisers' command does without the second that this takes

            found["krcc"] = float(kendalltau(predicted, true).statistic)
    return found


def _undefined(predicted, true) -> str:
    if len(true) < 2:
        return f"only {len(true)} images have a true score"
    if np.ptp(predicted) == 0:
        return f"every predicted score is {predicted[0]:.6g}"
    return f"every true score is {true[0]:.6g}" if np.ptp(true) == 0 else ""


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; NaN when one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip((a @ b) / scale, -1, 1)) if scale > 0 else np.nan


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation, ties sharing their mean rank."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]


def logistic(x, top, bottom, centre, width):
    """The four-parameter curve of the challenge, from `bottom` to `top` around `centre`."""
    return bottom + (top - bottom) / (1 + np.exp(-(x - centre) / np.abs(width)))


def logistic_curve(predicted, true, max_evaluations: int = MAX_EVALUATIONS) -> tuple[np.ndarray, str]:
    """`logistic`, fitted to (predicted, true), at each prediction, float [N]; and a note, mostly empty.

    The fit starts where the organisers' does but is bounded (theirs may run 1e8 evaluations). When it does not
    converge, or ends in a constant, the predictions themselves are returned and the note says so. Another note warns
    of a curve that falls, since PLCC is positive all the same.
    """
    # Steep curves overflow in exp, which is harmless, and leave no covariance, which is not used.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            start = [true.max(), true.min(), predicted.mean(), predicted.std()]
            parameters, _ = curve_fit(logistic, predicted, true, start, maxfev=max_evaluations)
            fitted, reason = logistic(predicted, *parameters), "is constant"
        except (RuntimeError, TypeError, ValueError) as error:
            # TypeError: fewer images than the four parameters; ValueError: none. RuntimeError: no convergence.
            fitted, reason = None, "needs four images" if isinstance(error, TypeError) else "did not converge"
    # A curve that moves by rounding only is a constant, and its correlation would be noise.
    if fitted is None or not np.ptp(fitted) > 1e-9 * np.ptp(true) or not np.isfinite(pearson(fitted, true)):
        return predicted, f"the logistic fit {reason}: PLCC is the plain Pearson correlation"
    top, bottom, *_ = parameters
    ranks = spearman(predicted, true)  # of unordered scores the fitted curve may fall although it is above 0
    return fitted, INVERTED.format(ranks) if top < bottom and ranks < 0 else ""
