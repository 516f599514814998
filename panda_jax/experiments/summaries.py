"""Mean, standard deviation and n of several seeds or targets."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Several seeds of one cell, or a row's average over targets.

    Attributes:
      mean: in points of 100; NaN without a value.
      sd: over seeds, with n - 1; NaN below 2.
      n: seeds.
      of: of an average, how many targets it is over; else 1.
    """

    mean: float
    sd: float
    n: int
    of: int = 1


def spread(values: Iterable[float]) -> Spread:
    """Mean, sd (n - 1) and n; NaN where there are too few."""
    found = list(values)
    return Spread(
        statistics.fmean(found) if found else math.nan,
        statistics.stdev(found) if len(found) > 1 else math.nan,
        len(found),
    )


def average(cells: Sequence[Mapping[int, float]]) -> Spread:
    """The mean of several targets' means, and the sd over whole seeds."""
    means = [spread(cell.values()).mean for cell in cells]
    whole = set.intersection(*map(set, cells)) if cells else set()
    by_seed = spread(
        statistics.fmean(cell[seed] for cell in cells) for seed in sorted(whole)
    )
    mean = statistics.fmean(means) if means else math.nan
    return Spread(mean, by_seed.sd, by_seed.n, len(cells))
