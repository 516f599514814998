"""How sure is a mean? Its interval and p where units are crossed, and Holm's.

A table's rows (targets) and columns (seeds) both have a part of their own in
its cells, so that cells are no independent witnesses. The model is a row's
part plus a column's part plus a rest, the first two drawn anew with every row
and column. Their variances come from sums of squares, each adjusted for the
other side (Henderson's method 3), the degrees of freedom from Satterthwaite
(1946); so Clark (1973) tests what words and readers share. A side whose part
does not show is pooled with the rest (Bozivich, Bancroft & Hartley 1956) by a
preliminary F test, whose level is a quarter where both sides have as many
units, and more for a side with fewer: its part weighs more and shows less. And
the df are at most three times those of the side with fewer units. Both rules
were chosen by simulation: benchmarks/calibration.py.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# Below this many units of a side, by weight, nobody knows how units differ.
# With 2, no rule that was tried has both size and power (see
# benchmarks/calibration.py); of 3 with some missing cells a little less is
# left.
FEWEST = 2.5
# Below this many units of a side an interval comes with a caution.
FEW = 5


class Inference(NamedTuple):
    """A mean, and what it says of other units; NaN where nothing can be said.

    Attributes:
      mean: the weighted mean of the cells [...].
      low, high: [...] the ends of the interval.
      p: [...] two-sided, of a mean of 0.
      freedom: [...] of t.
      rows, columns: whether it speaks for other such, or for these alone.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    freedom: np.ndarray
    rows: bool
    columns: bool


def infer(
    values: np.ndarray,
    weights: np.ndarray,
    *,
    confidence: float = 0.95,
    estimate: np.ndarray | None = None,
) -> Inference:
    """The mean of a table, its interval and p.

    With fewer than 3 rows, the columns alone are random: the interval holds
    for these rows. With fewer than 3 columns likewise; with fewer of both, or
    where all cells are alike, there is none.

    Args:
      values: [..., rows, columns]; what has no weight is not looked at.
      weights: [rows, columns], 0 or more; 0 where there is no cell.
      confidence: of the interval.
      estimate: [...] what the cells are pseudo-values of; None for their mean.
    """
    known = weights > 0
    rows, columns = (known.any(axis=1 - side) for side in (0, 1))
    values, weights = (
        part[..., rows, :][..., columns] for part in (values, weights)
    )
    table = _table(weights.shape, (weights / weights.sum()).tobytes())
    cells = values[..., table.known]
    mean = cells @ table.weights if estimate is None else estimate
    scale = np.abs(cells).max(axis=-1)
    # What all cells share is in no spread, and would only cost digits.
    cells = cells - cells.mean(axis=-1, keepdims=True)
    # As many of equal weight would say as much.
    by_row, by_column = (1 / (side @ side) >= FEWEST for side in table.sides)
    variance = freedom = np.full(mean.shape, np.nan)
    if by_row and table.is_nested:
        # A column of one row alone is a part of that row.
        by_column = True
        variance, freedom = _one_way(table, cells, 0)
    elif by_row and by_column and table.is_crossed:
        variance, freedom = _crossed(table, cells)
    elif by_row or by_column:
        by_column = by_column and not by_row
        variance, freedom = _one_way(table, cells, 0 if by_row else 1)
    # What is left of equal cells by rounding is no spread.
    known_spread = variance > (1e-10 * scale) ** 2
    error = np.sqrt(np.where(known_spread, variance, np.nan))
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error
    p = 2 * stats.t.sf(np.abs(mean) / error, freedom)
    low, high = mean - half, mean + half
    return Inference(mean, low, high, p, freedom, by_row, by_column)


class _Table:
    """Where a table has cells, and the projections that belong to it.

    Attributes:
      known: [rows, columns] which n cells there are; their weights: [n].
      sides: each row's and each column's sum of weights.
      units: [n, rows] and [n, columns], 1 where a cell is of it.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.known = weights > 0
        self.weights = weights[self.known]
        self.sides = weights.sum(axis=1), weights.sum(axis=0)
        places = zip(weights.shape, np.nonzero(self.known), strict=True)
        self.units = tuple(np.eye(size)[place] for size, place in places)
        self.n = len(self.weights)
        self._models: dict[tuple[int, ...], _Model] = {}
        # No column is of two rows.
        alone = (self.known.sum(axis=0) == 1).all()
        self.is_nested = bool(alone and min(weights.shape) > 1)
        # Rows, columns and the rest can be told apart.
        both = sum(weights.shape) - 1
        self.is_crossed = _rank(self.projection(0, 1)) == both < self.n

    def model(self, *sides: int) -> "_Model":
        """The model in which some sides have a part."""
        if sides not in self._models:
            self._models[sides] = _Model(self, sides)
        return self._models[sides]

    def projection(self, *sides: int) -> np.ndarray:
        """[n, n], onto what the mean and the units of some sides explain."""
        parts = [np.ones((self.n, 1)), *(self.units[side] for side in sides)]
        design = np.concatenate(parts, axis=1)
        return design @ np.linalg.pinv(design)


@functools.lru_cache(maxsize=16)
def _table(shape: tuple[int, int], weights: bytes) -> _Table:
    """Many means are of one table's cells."""
    return _Table(np.frombuffer(weights).reshape(shape))


def _rank(projection: np.ndarray) -> int:
    return round(np.trace(projection))


def _squares(cells: np.ndarray, form: np.ndarray) -> np.ndarray:
    return ((cells @ form) * cells).sum(axis=-1)


def _one_way(
    table: _Table, cells: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Variance and df by the t test of one side's means."""
    share = table.sides[side]
    means = (cells * table.weights) @ table.units[side] / share
    spread = means.var(axis=-1, ddof=1)
    return spread * (share @ share), np.full(spread.shape, len(share) - 1.0)


def _crossed(table: _Table, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance and df of the mean where rows and columns are random."""
    both = table.model(0, 1)
    variance, freedom = both.estimate(cells)
    freedom = np.minimum(freedom, 3 * min(both.freedoms.values()))
    none = table.model().estimate(cells)
    # The part that shows least goes first, then the other is looked at anew.
    margins = [both.margin(cells, side) for side in (0, 1)]
    least = np.where(margins[0] < margins[1], 0, 1)
    hides = np.minimum(*margins) < 1
    for side in (0, 1):
        other = table.model(side)
        shows = other.margin(cells, side) >= 1
        chosen = hides & (least != side)
        found = [
            np.where(shows, one, rest)
            for one, rest in zip(other.estimate(cells), none, strict=True)
        ]
        variance = np.where(chosen, found[0], variance)
        freedom = np.where(chosen, found[1], freedom)
    return variance, freedom


class _Model:
    """Which sides have a part of their own, and what follows for the mean."""

    def __init__(self, table: _Table, sides: tuple[int, ...]) -> None:
        self.table, self.sides = table, sides
        whole = table.projection(*sides)
        self.rest = np.eye(table.n) - whole
        self.rest_freedom = table.n - _rank(whole)
        # Each side adjusted for the other.
        self.forms = {
            side: whole - table.projection(*(s for s in sides if s != side))
            for side in sides
        }
        self.freedoms = {side: _rank(self.forms[side]) for side in sides}

    def margin(self, cells: np.ndarray, side: int) -> np.ndarray:
        """F of a side's own part over the F from which it counts as one."""
        own = _squares(cells, self.forms[side]) / self.freedoms[side]
        rest = _squares(cells, self.rest) / self.rest_freedom
        own_units, others = (len(self.table.sides[s]) for s in (side, 1 - side))
        level = min(1.0, others / own_units / 4)
        # Below 1 a part's variance would be less than none.
        least = max(
            1.0, stats.f.isf(level, self.freedoms[side], self.rest_freedom)
        )
        margin = own / np.where(rest > 0, rest, 1.0) / least
        return np.where(rest > 0, margin, np.where(own > 0, np.inf, 0.0))

    def estimate(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean's variance, and Satterthwaite's degrees of freedom."""
        table, n = self.table, self.table.n
        # Of the covariance of the cells: each side's part, then the rest's.
        parts = [table.units[s] @ table.units[s].T for s in self.sides]
        parts.append(np.eye(n))
        shares = [table.weights @ part @ table.weights for part in parts]
        form = np.zeros((n, n))
        unbiased = self.rest / self.rest_freedom
        variances = []
        for side, part, share in zip(self.sides, parts, shares, strict=False):
            own = self.forms[side] - self.freedoms[side] * unbiased
            own = own / np.trace(self.forms[side] @ part)
            variances.append(_squares(cells, own))
            form += share * own
        form += shares[-1] * unbiased
        variances.append(_squares(cells, unbiased))
        turned = [form @ part for part in parts]
        squared = np.zeros(cells.shape[:-1])
        for first, one in zip(variances, turned, strict=True):
            for second, other in zip(variances, turned, strict=True):
                squared += first * second * np.sum(one * other.T)
        variance = _squares(cells, form)
        known = squared > 0
        freedom = variance**2 / np.where(known, squared, 1.0)
        return variance, np.where(known, freedom, np.nan)


def few(counts: Iterable[tuple[int, str]]) -> list[str]:
    """Those of (count, noun) that are below `FEW`, such as "1 seed"."""
    return [f"{n} {noun}{'s' * (n != 1)}" for n, noun in counts if n < FEW]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values; NaN stays."""
    known = sorted((value, i) for i, value in enumerate(p) if value == value)
    corrected = [float("nan")] * len(p)
    least = 0.0
    for place, (value, i) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - place)))
        corrected[i] = least
    return corrected
