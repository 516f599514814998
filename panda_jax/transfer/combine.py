"""Several metrics as one: sums of ranks or z-scores, and a prior from results.

Metrics have scales of their own, so each is first made comparable within a
target's column: as ranks (1 for the worst source; ties share their mean) or as
z-scores.  Higher = more transferable, before and after.  A source without a
(finite) score under one of the metrics has none in the combination, and is left
out of the others' ranks as well.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.errors import UserError, unknown_name
from panda_jax.transfer.scores import Scores
from panda_jax.types import ArrayLike

PRIOR = "prior"

_GRAMMAR = (
    "expected metrics joined by '+', each after an optional 'WEIGHT*' above 0, "
    "all after an optional 'z:', as in 'e_avg+on+panda+1.5*prior'"
)


class Expression(NamedTuple):
    """What `parse` reads.

    Attributes:
      weights: metric -> its factor.
      z: whether z-scores are summed, else ranks.
    """

    weights: dict[str, float]
    z: bool


def parse(expression: str) -> Expression:
    """Reads "a+b+1.5*prior", or "z:a+b".

    Raises:
      UserError: it is no such sum.
    """
    terms = expression.strip()
    z = terms.startswith("z:")
    weights: dict[str, float] = {}
    for term in terms.removeprefix("z:").split("+"):
        factor, star, name = term.rpartition("*")
        name = name.strip()
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise UserError(
                f"Combination {expression!r}: term {term!r}, {_GRAMMAR}."
            )
        if name in weights:
            raise UserError(
                f"Combination {expression!r} names {name!r} twice; give it "
                "once, with a weight."
            )
        weights[name] = weight
    return Expression(weights, z)


def combined(
    scores: Scores,
    truth: "Scores | ArrayLike | None",
    expression: str,
    *,
    include_self: bool = True,
) -> np.ndarray:
    """The combination that an expression names.

    Args:
      scores: of M sources and N targets.
      truth: results of transfers, for `prior`: a table, whose first metric is
        read and may be of more targets; or [M, N] in the order of `scores`; or
        None where the expression names no prior.
      expression: as `parse` reads it; `prior` stands for `source_prior`, any
        other name for a metric of `scores`.
      include_self: whether a source of the target's own name is ranked, and
        its result part of the prior.

    Returns:
      [M, N]; higher = more transferable; NaN where a term has no score.  Ranks
      are from 1 to M and no increasing map of a metric changes their sum;
      z = (x - mean) / standard deviation (over M, not M - 1) is 0 for a metric
      that is the same for all, reads how far sources are apart, and no change
      of a metric's unit or zero changes it.

    Raises:
      UserError: a malformed expression, an unknown metric, no truth for a
        prior, or one of another shape.
    """
    weights, z = parse(expression)
    own = np.array([[s == t for t in scores.targets] for s in scores.sources])
    values = dict(scores.values)
    for name in weights:
        if name not in {*values, PRIOR}:
            raise unknown_name("metric", name, {*values, PRIOR})
    if PRIOR in weights:
        values[PRIOR] = _prior_of(scores, truth, expression, include_self)
    parts = [values[name] for name in weights]
    if not include_self:
        parts = [np.where(own, np.nan, part) for part in parts]
    return _sum(parts, list(weights.values()), _z_scores if z else _ranks)


def source_prior(
    truth: ArrayLike, *, self_pairs: ArrayLike | None = None
) -> np.ndarray:
    """How well each source did on the targets other than the one in question.

    For target n the sum, over targets j other than n, of a source's rank among
    the results on j.  Column n of the results is not read for column n, so that
    nothing of what is to be predicted leaks into the prediction.

    Args:
      truth: [M, N] results of transfers, higher = better; NaN where there is
        none.  A source without a result on j counts as the middle one of j.
      self_pairs: [M, N] whether a source is of the target's own task: such
        results, which are longer training rather than transfer, are left out.

    Returns:
      [M, N] rank sums; NaN for a source without a result on any other target;
      higher = more transferable.
    """
    results = np.array(truth, np.float64)
    if self_pairs is not None:
        results[np.asarray(self_pairs, bool)] = np.nan
    known = np.isfinite(results)
    ranks = _ranks(np.where(known, results, np.nan))
    ranks = np.where(known, ranks, (known.sum(0) + 1) / 2)
    others = known.sum(1, keepdims=True) - known
    # Ranks are whole or half numbers, so that equal sums stay equal.
    return np.where(others, ranks.sum(1, keepdims=True) - ranks, np.nan)


def _prior_of(
    scores: Scores,
    truth: "Scores | ArrayLike | None",
    expression: str,
    include_self: bool,
) -> np.ndarray:
    """[M, N] `source_prior` in the order of `scores`."""
    sources, targets = scores.sources, list(scores.targets)
    if truth is None:
        raise UserError(
            f"Combination {expression!r} reads results on other targets "
            f"({PRIOR!r}): give the truth, or leave the term out."
        )
    if isinstance(truth, Scores):
        # Targets that are not asked for tell as much of a source as the others.
        targets += [name for name in truth.targets if name not in targets]
        table = next(iter(truth.values.values()))
        results = np.full((len(sources), len(targets)), np.nan)
        for m, source in enumerate(sources):
            for n, target in enumerate(targets):
                if source in truth.sources and target in truth.targets:
                    results[m, n] = table[
                        truth.sources.index(source), truth.targets.index(target)
                    ]
    else:
        results = np.asarray(truth, np.float64)
        if results.shape != (len(sources), len(targets)):
            raise UserError(
                f"The truth has shape {results.shape}, expected "
                f"{(len(sources), len(targets))}: a row a source, a column a "
                "target."
            )
    own = np.array([[s == t for t in targets] for s in sources])
    prior = source_prior(results, self_pairs=None if include_self else own)
    return prior[:, : len(scores.targets)]


def _sum(
    parts: Sequence[np.ndarray],
    weights: Sequence[float],
    comparable: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The weighted sum of the parts, made comparable where all have scores."""
    known = np.isfinite(parts).all(0)
    total = np.zeros(known.shape)
    for weight, part in zip(weights, parts, strict=True):
        total += weight * comparable(np.where(known, part, np.nan))
    return total


def _ranks(matrix: np.ndarray) -> np.ndarray:
    """Ranks within columns, 1 for the least; ties share their mean."""
    # SciPy's statistics take half a second to import.
    from scipy.stats import rankdata

    return rankdata(matrix, axis=0, nan_policy="omit")


def _z_scores(matrix: np.ndarray) -> np.ndarray:
    """Deviations within columns, in standard deviations."""
    known = np.isfinite(matrix)
    count = np.maximum(known.sum(0), 1)
    filled = np.where(known, matrix, 0)
    deviations = filled - filled.sum(0) / count
    deviations = np.where(known, deviations, 0)
    # Equal numbers may differ from their mean by rounding.
    constant = np.abs(deviations).max(0) <= 1e-12 * np.abs(filled).max(0)
    deviations = np.where(constant, 0, deviations)
    spread = np.sqrt(np.square(deviations).sum(0) / count)
    return np.where(known, deviations / np.where(spread > 0, spread, 1), np.nan)
