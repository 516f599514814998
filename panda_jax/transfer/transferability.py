"""How well features that a source's prompt gives tell a target's labels.

Each metric reads [M, E, D] features of a target's E labelled training rows
under M sources' prompts, and gives [M], higher = more transferable.  Nothing is
trained but closed-form readouts; the order of the rows changes nothing.

All compute in float64 (`readouts.py`), since they divide by small eigenvalues,
and on the host's processor, since TPUs have no such arithmetic.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
import threadpoolctl

from panda_jax.errors import UserError
from panda_jax.transfer import readouts
from panda_jax.types import Array, ArrayLike


def log_me(
    features: ArrayLike, targets: ArrayLike, *, num_classes: int | None = None
) -> np.ndarray:
    """LogME: the log evidence of a Bayesian linear readout, per row.

    You et al., 2021 (arXiv 2102.11005), section 4: for a column y of the
    targets, with w ~ N(0, 1 / alpha) and y ~ N(F w, 1 / beta),

      max over alpha, beta of log p(y | F, alpha, beta) / E,

    averaged over columns, one a class.  For a given alpha / beta the best beta
    is known, so one number is searched for: on a grid, then by golden section.
    That is the largest maximum; the paper's fixed point stops at the one next
    to its start.

    Args:
      features: [M, E, D], any scale.
      targets: [E] class ids; or [E] or [E, C] scores.
      num_classes: how many classes there are; None for scores.

    Returns:
      [M] float64, in nats a row; unbounded, and comparable among sources of one
      target alone; higher = more transferable.  Classes without a row are left
      out, as are columns of zeros; 0 where nothing is left.

    Raises:
      UserError: features or targets of a wrong shape or type, or not finite.
    """
    rows, columns = _checked(features, targets, num_classes)
    return _on_host(readouts.log_me, rows, columns)


def h_score(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    num_classes: int | None = None,
    shrinkage: bool = True,
) -> np.ndarray:
    """H-score: how far the features' covariance is between classes.

    tr(cov(f)^+ cov(E[f | y])): Bao et al., 2019 (ICIP), equation 4.  With fewer
    rows than features it is C - 1 whatever the features, hence the default:
    tr(S^-1 (1 - a) cov(E[f | y])), S = (1 - a) cov(f) + a tr(cov(f)) / D, a by
    Ledoit and Wolf (Ibrahim et al., 2021, arXiv 2110.06893, section 4).
    Covariances are sums over E rows divided by E.

    For scores E[f | y] is the linear regression of f on y: what class means are
    for indicators of classes.

    Args:
      features: [M, E, D], any scale.
      targets: [E] class ids; or [E] or [E, C] scores.
      num_classes: how many classes there are; None for scores.
      shrinkage: whether to shrink the covariance.

    Returns:
      [M] float64 in [0, C - 1], or [0, C] for scores; 0 for features that are
      all alike; higher = more transferable.

    Raises:
      UserError: features or targets of a wrong shape or type, or not finite.
    """
    rows, columns = _checked(features, targets, num_classes)
    return _on_host(readouts.h_score, rows, columns, shrinkage=shrinkage)


def linear_probe(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    num_classes: int | None = None,
    groups: ArrayLike | None = None,
    penalty: float = 0.1,
) -> np.ndarray:
    """How often a ridge readout is right about a row it was not fitted to.

    Each row in turn is left out: w is fitted to the others,

      argmin over w, b of sum_j (y_j - b - w x_j)^2 + penalty D |w|^2,

    and row i is predicted as mean(y) + w (x_i - mean of the others' x).  That
    is closed form in the hat matrix H of all rows (Hastie et al., 2009,
    equation 7.64).  The mean of y is of all rows, the same for each: b itself
    leaves y_i out, which counts against i's own class, so that features that
    say nothing would score below chance.  Features are scaled to a standard
    deviation of 1 over all rows, which reads no label.

    Args:
      features: [M, E, D], any scale.
      targets: [E] class ids; or [E] or [E, C] scores.
      num_classes: how many classes there are; None for scores.
      groups: [E] of rows that tell of each other (candidates of a question,
        words of a sentence) and are left out together; None for none.
      penalty: of the squared weights, times D, so that it means the same for
        any width.

    Returns:
      [M] float64.  Classes: accuracy in [0, 1], where n classes that tie are
      right one time in n.  Scores: Pearson's r in [-1, 1], the mean over
      columns, 0 for constant ones.  Higher = more transferable.

    Raises:
      UserError: features or targets of a wrong shape or type, or not finite; or
        a penalty that is not above 0.
    """
    if not (penalty > 0 and math.isfinite(penalty)):
        raise UserError(f"penalty is {penalty}, expected a number above 0.")
    rows, columns = _checked(features, targets, num_classes)
    return _on_host(
        readouts.left_out,
        rows,
        columns,
        np.float64(penalty),
        _members(groups, rows.shape[1]),
        classes=num_classes is not None,
    )


def _members(groups: ArrayLike | None, rows: int) -> np.ndarray:
    """[G, S] rows of each group, -1 past its last; each row's own without."""
    ids = np.arange(rows) if groups is None else np.asarray(groups)
    if ids.shape != (rows,):
        raise UserError(
            f"Groups have shape {ids.shape}, expected one for each of the "
            f"{rows} rows of features."
        )
    names, number, sizes = np.unique(
        ids, return_inverse=True, return_counts=True
    )
    if len(names) < 2:
        raise UserError(
            f"All {rows} rows are of one group: nothing is left to fit to "
            "when it is left out."
        )
    found = np.full((len(names), sizes.max()), -1)
    place = np.concatenate([np.arange(size) for size in sizes])
    order = np.argsort(number, kind="stable")
    found[number[order], place] = order
    return found


def _on_host(function: Callable[..., Array], *arrays, **static) -> np.ndarray:
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        # JAX_PLATFORMS=cuda hides it; GPUs have float64 too.
        host = None
    # A BLAS thread a core waits in a loop for each small product: beside other
    # work that made these a hundred times slower.
    with (
        jax.enable_x64(True),
        jax.default_device(host),
        threadpoolctl.threadpool_limits(1, user_api="blas"),
    ):
        return np.asarray(function(*arrays, **static))


def _checked(
    features: ArrayLike, targets: ArrayLike, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features [M, E, D] and float64 targets [E, C]; class ids as indicators.

    Raises:
      UserError: says what was expected.
    """
    rows, labels = np.asarray(features), np.asarray(targets)
    if rows.ndim != 3 or 0 in rows.shape or rows.shape[1] < 2:
        raise UserError(
            f"Features have shape {rows.shape}, expected [M, E, D] with at "
            "least 2 rows of examples."
        )
    if not np.isfinite(rows).all():
        raise UserError("Features are not finite: a prompt's run diverged.")
    shapes = [(rows.shape[1],)]
    if num_classes is None and labels.ndim == 2:
        shapes = [(rows.shape[1], max(labels.shape[1], 1))]
    if labels.shape not in shapes:
        raise UserError(
            f"Targets have shape {labels.shape}, expected one for each of the "
            f"{rows.shape[1]} rows of features."
        )
    integers = np.issubdtype(labels.dtype, np.integer)
    if num_classes is None:
        if integers:
            raise UserError(
                "Targets are integers: give num_classes where they are class "
                "ids, or make them floats where they are scores."
            )
        if not np.isfinite(labels).all():
            raise UserError("Targets are not finite.")
        return rows, np.float64(labels).reshape(len(labels), -1)
    if not integers or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"Targets span {labels.min()} to {labels.max()} "
            f"({labels.dtype}), expected class ids from 0 to {num_classes - 1}."
        )
    return rows, np.eye(num_classes)[labels]
