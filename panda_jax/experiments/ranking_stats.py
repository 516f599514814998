"""How well a metric's scores rank one target's sources: the statistics.

Each is of a `Sample`: scores, truth, and counts [R, S] that say how many times
each of R resamplings holds each of the S sources. Ones are the sources as they
are; a source that is held twice stands for two sources that tie in score and
truth. So a bootstrap of thousands of resamplings is a few array operations, by
the same code as the statistic itself.

Ties in the score are never broken by the order of the sources: the rank
correlations have their own treatment, the others are expected values over all
orders of what ties.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

Statistic = Callable[["Sample"], np.ndarray]


class Descending:
    """S values from the greatest down, equal ones in one of G groups.

    Attributes:
      codes: [S], each value's group, 0 the greatest.
      above: [R, G], how many stand above a group.
      sizes: [R, G], how many stand in it.
    """

    def __init__(self, values: np.ndarray, counts: np.ndarray) -> None:
        _, self.codes = np.unique(-values, return_inverse=True)
        self._order = np.argsort(self.codes, kind="stable")
        self._starts = np.flatnonzero(
            np.diff(self.codes[self._order], prepend=-1)
        )
        self.sizes = self.sums(counts)
        self.above = np.cumsum(self.sizes, axis=1) - self.sizes

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[R, S] summed within each group: [R, G]."""
        return np.add.reduceat(values[:, self._order], self._starts, axis=1)

    @functools.cached_property
    def deviations(self) -> np.ndarray:
        """Average ranks minus the mean rank: [R, S], exact in halves."""
        total = self.sizes.sum(axis=1, keepdims=True)
        return (self.above + self.sizes / 2 - total / 2)[:, self.codes]


class Sample:
    """One metric's scores of a target's sources, beside the truth.

    Attributes:
      score: [S]; higher = more transferable.
      truth: [S], what the sources did; higher = better.
      counts: [R, S] integers, 0 or more.
      total: [R, 1], how many sources a resampling holds.
      scores, truths: score and truth in descending order.
    """

    def __init__(
        self, score: np.ndarray, truth: np.ndarray, counts: np.ndarray
    ) -> None:
        self.score, self.truth, self.counts = score, truth, counts
        self.total = counts.sum(axis=1, keepdims=True)
        self.scores = Descending(score, counts)
        self.truths = Descending(truth, counts)


def spearman(sample: Sample) -> np.ndarray:
    """Spearman's rank correlation, -1 to 1, higher = better: [R].

    Ties have their average rank. NaN where score or truth is constant.
    """
    x, y = sample.scores.deviations, sample.truths.deviations
    held_x, held_y = sample.counts * x, sample.counts * y
    return _correlation(
        (held_x * y).sum(1), (held_x * x).sum(1), (held_y * y).sum(1)
    )


def weighted_tau(sample: Sample) -> np.ndarray:
    """Vigna's weighted Kendall tau, -1 to 1, higher = better: [R].

    A pair of sources counts with 1/rank of the one plus 1/rank of the other,
    so that the top matters most; ranks by score and ranks by truth (each with
    the other to break its ties) give two values, whose mean this is. A pair
    that ties in score or truth adds nothing, and the norms leave it out, as in
    tau-b. The same as `scipy.stats.weightedtau` (Vigna, WWW 2015). NaN where
    score or truth is constant.
    """
    x, y, counts = sample.scores, sample.truths, sample.counts
    agree = np.sign(x.codes[:, None] - x.codes) * np.sign(
        y.codes[:, None] - y.codes
    )
    pull = counts.astype(np.float64) @ agree.astype(np.float64)
    differ_x, differ_y = (
        sample.total - side.sizes[:, side.codes] for side in (x, y)
    )
    harmonic = _table(lambda place: 1 / (place + 1), sample.total.max())
    taus = []
    for first, second in ((x, y), (y, x)):
        order = np.lexsort((second.codes, first.codes))
        ends = np.cumsum(counts[:, order], axis=1)
        weight = np.empty(counts.shape)
        weight[:, order] = harmonic[ends] - harmonic[ends - counts[:, order]]
        taus.append(
            _correlation(
                (weight * pull).sum(1),
                (weight * differ_x).sum(1),
                (weight * differ_y).sum(1),
            )
        )
    return (taus[0] + taus[1]) / 2


def ndcg(sample: Sample, *, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain at k, 0 to 1, higher = better: [R].

    A source's gain is its truth, 0 for the target's worst source and 1 for its
    best; place i is discounted by log2(i + 1). Sources that tie in score share
    the mean discount of their places (the expected value over their orders),
    as `sklearn.metrics.ndcg_score` does. NaN where no source held has a gain.
    """
    gains = sample.truth - sample.truth.min()
    gains = gains / (gains.max() or 1.0)
    discounts = _table(
        lambda place: (place < k) / np.log2(place + 2), sample.total.max()
    )

    def cumulated(ranking: Descending) -> np.ndarray:
        ends = discounts[ranking.above + ranking.sizes]
        share = ends - discounts[ranking.above]
        held = ranking.sums(sample.counts * gains)
        return (held * share / np.maximum(ranking.sizes, 1)).sum(axis=1)

    return _ratio(cumulated(sample.scores), cumulated(sample.truths))


def regret(sample: Sample, *, k: int) -> np.ndarray:
    """The best truth minus the best among the k of highest score: [R].

    In the truth's units, 0 or more, lower = better: what is lost by trying
    only the k sources that the metric likes most. Where several tie for the
    last of the k places, the expected value of drawing among them.
    """
    x = sample.scores
    order = np.lexsort((sample.truths.codes, x.codes))
    codes, held = x.codes[order], sample.counts[:, order]
    above, sizes = x.above[:, codes], x.sizes[:, codes]
    truth = np.where(held > 0, sample.truth[order], -np.inf)
    best = truth.max(axis=1, keepdims=True)
    so_far = np.maximum.accumulate(truth, axis=1)
    so_far = np.concatenate([np.full_like(best, -np.inf), so_far], axis=1)
    best_above = so_far[:, np.searchsorted(codes, codes)]
    # Of those that tie for the last places, the best in truth come first, so
    # that a source is the best drawn if it is and none before it is.
    drawn = np.clip(k - above, 0, sizes)
    none_before = _none_of(np.cumsum(held, axis=1) - held - above, drawn, sizes)
    none_yet = np.zeros(none_before.shape)
    none_yet[:, :-1] = np.where(
        codes[1:] == codes[:-1], none_before[:, 1:], 0.0
    )
    chance = none_before - none_yet
    reach = np.minimum(k, sample.total)
    last = (above < reach) & (reach <= above + sizes) & (held > 0)
    with np.errstate(invalid="ignore"):
        lost = chance * (best - np.maximum(best_above, truth))
    lost = np.where(last, lost, 0.0).sum(axis=1)
    return np.where(sample.total[:, 0] > 0, lost, np.nan)


def top_gain(sample: Sample) -> np.ndarray:
    """Truth of the source of highest score minus the mean source's: [R].

    In the truth's units, higher = better, 0 for a choice at random. Several of
    highest score count with their mean.
    """
    x, held = sample.scores, sample.counts * sample.truth
    top = np.argmax(x.sizes > 0, axis=1)[:, None]
    best = _ratio(
        np.take_along_axis(x.sums(held), top, 1),
        np.take_along_axis(x.sizes, top, 1),
    )
    return best[:, 0] - _ratio(held.sum(1), sample.total[:, 0])


def statistics(ks: Sequence[int]) -> dict[str, Statistic]:
    """Name -> statistic, those at k for every k."""
    return {
        "spearman": spearman,
        "tau": weighted_tau,
        **{f"ndcg@{k}": functools.partial(ndcg, k=k) for k in ks},
        **{f"regret@{k}": functools.partial(regret, k=k) for k in ks},
        "gain@1": top_gain,
    }


def _none_of(
    first: np.ndarray, drawn: np.ndarray, among: np.ndarray
) -> np.ndarray:
    """Chance that `drawn` of `among` things are none of the `first` ones."""
    chance = np.ones(first.shape)
    for t in range(int(drawn.max(initial=0))):
        left = np.maximum(among - first - t, 0) / np.maximum(among - t, 1)
        chance *= np.where(t < drawn, left, 1.0)
    return chance


def _table(value: Callable[[np.ndarray], np.ndarray], most: int) -> np.ndarray:
    """Sums of a place's value over the first 0, 1, ... `most` places."""
    values = value(np.arange(most, dtype=np.float64))
    return np.concatenate([[0.0], np.cumsum(values)])


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Their quotient, NaN where `under` is 0."""
    safe = np.where(under > 0, under, np.nan)
    return over / safe


def _correlation(
    product: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Sum of products over the root of both sums of squares, within [-1, 1]."""
    return np.clip(_ratio(product, np.sqrt(first * second)), -1, 1)
