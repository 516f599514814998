"""How well a metric ranks a target's sources: statistics, and resampling them.

Each statistic is of a `Sample`: scores, truth, and counts [R, S] that say how
many times each of R resamplings holds each of the S sources (ones: as they
are; a source held twice stands for two that tie in score and truth). So
thousands of resamplings are a few array operations. Ties in the score are never
broken by the order of the sources: the rank correlations have their own
treatment, the others are expected values over all orders of what ties.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments.ranking.data import Cell

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
        ordered = self.codes[self._order]
        self._starts = np.flatnonzero(np.diff(ordered, prepend=-1))
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
      counts: [R, S] integers, 0 or more; total: [R, 1] their sums.
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
    return _correlation(held_x * y, held_x * x, held_y * y)


def weighted_tau(sample: Sample) -> np.ndarray:
    """Vigna's weighted Kendall tau, -1 to 1, higher = better: [R].

    A pair of sources counts with 1/rank of the one plus 1/rank of the other;
    ranks by score and ranks by truth (each with the other to break its ties)
    give two values, whose mean this is. A pair that ties in score or truth adds
    nothing, and the norms leave it out, as in tau-b. The same as
    `scipy.stats.weightedtau` (Vigna, WWW 2015). NaN where either is constant.
    """
    x, y, counts = sample.scores, sample.truths, sample.counts
    signs = [np.sign(side.codes[:, None] - side.codes) for side in (x, y)]
    pull = counts.astype(np.float64) @ (signs[0] * signs[1]).astype(np.float64)
    differ = [sample.total - side.sizes[:, side.codes] for side in (x, y)]
    harmonic = _cumulated(lambda place: 1 / (place + 1), sample.total.max())
    taus = []
    for first, second in ((x, y), (y, x)):
        order = np.lexsort((second.codes, first.codes))
        ends = np.cumsum(counts[:, order], axis=1)
        weight = np.empty(counts.shape)
        weight[:, order] = harmonic[ends] - harmonic[ends - counts[:, order]]
        norms = (weight * apart for apart in differ)
        taus.append(_correlation(weight * pull, *norms))
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
    discounts = _cumulated(
        lambda place: (place < k) / np.log2(place + 2), sample.total.max()
    )

    def discounted(ranking: Descending) -> np.ndarray:
        ends = discounts[ranking.above + ranking.sizes]
        share = ends - discounts[ranking.above]
        held = ranking.sums(sample.counts * gains)
        return (held * share / np.maximum(ranking.sizes, 1)).sum(axis=1)

    return _ratio(discounted(sample.scores), discounted(sample.truths))


def regret(sample: Sample, *, k: int) -> np.ndarray:
    """The best truth minus the best among the k of highest score: [R].

    In the truth's units, 0 or more, lower = better. Where several tie for the
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
    before = np.cumsum(held, axis=1) - held - above
    none_before = np.ones(before.shape)  # chance that none of them is drawn
    for t in range(int(drawn.max(initial=0))):
        left = np.maximum(sizes - before - t, 0) / np.maximum(sizes - t, 1)
        none_before *= np.where(t < drawn, left, 1.0)
    none_yet = np.zeros(none_before.shape)
    tied = codes[1:] == codes[:-1]
    none_yet[:, :-1] = np.where(tied, none_before[:, 1:], 0.0)
    reach = np.minimum(k, sample.total)
    last = (above < reach) & (reach <= above + sizes) & (held > 0)
    is_best = none_before - none_yet  # chance of it
    # Written like this the published figures stay the same to the last digit:
    # NumPy sums in the order of the memory that it reuses for the product.
    with np.errstate(invalid="ignore"):
        lost = is_best * (best - np.maximum(best_above, truth))
    lost = np.where(last, lost, 0.0).sum(axis=1)
    return np.where(sample.total[:, 0] > 0, lost, np.nan)


def top_gain(sample: Sample) -> np.ndarray:
    """Truth of the source of highest score minus the mean source's: [R].

    In the truth's units, higher = better, 0 for a choice at random. Several of
    highest score count with their mean.
    """
    x, held = sample.scores, sample.counts * sample.truth
    top = np.argmax(x.sizes > 0, axis=1)[:, None]
    sums, sizes = (
        np.take_along_axis(part, top, 1) for part in (x.sums(held), x.sizes)
    )
    return _ratio(sums, sizes)[:, 0] - _ratio(held.sum(1), sample.total[:, 0])


def statistics(ks: Sequence[int]) -> dict[str, Statistic]:
    """Name -> statistic, those at k for every k."""
    return {
        "spearman": spearman,
        "tau": weighted_tau,
        **{f"ndcg@{k}": functools.partial(ndcg, k=k) for k in ks},
        **{f"regret@{k}": functools.partial(regret, k=k) for k in ks},
        "gain@1": top_gain,
    }


def _cumulated(
    value: Callable[[np.ndarray], np.ndarray], most: int
) -> np.ndarray:
    """Sums of a place's value over the first 0, 1, ... `most` places."""
    values = value(np.arange(most, dtype=np.float64))
    return np.concatenate([[0.0], np.cumsum(values)])


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Their quotient, NaN where `under` is 0."""
    return over / np.where(under > 0, under, np.nan)


def _correlation(
    product: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Sum of products over the root of both sums of squares, within [-1, 1]."""
    under = np.sqrt(first.sum(1) * second.sum(1))
    return np.clip(_ratio(product.sum(1), under), -1, 1)


class Draws(NamedTuple):
    """How often each of R resamplings, the observed first, holds what.

    Sources are [R, S], and cells, by their targets, [R, C].
    """

    sources: np.ndarray
    targets: np.ndarray


def draw(
    cells: Sequence[Cell], *, sources: int, resamples: int, seed: int
) -> Draws:
    """Sources and targets, both drawn with replacement, by name.

    A source is drawn for every target and backbone, a target for every
    backbone: what is common to cells stays common, so that 45 cells of 9
    targets do not pass for 45 independent ones (Owen's pigeonhole bootstrap).
    """
    rng = np.random.default_rng([seed, 0])
    names = sorted({cell.target for cell in cells})
    places = [names.index(cell.target) for cell in cells]

    def counts(n: int) -> np.ndarray:
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        return np.concatenate([np.ones((1, n), np.int64), drawn])

    return Draws(counts(sources), counts(len(names))[:, places])


def measured(
    cells: Sequence[Cell],
    scores: Sequence[np.ndarray | None],
    counts: np.ndarray,
    statistics: dict[str, Statistic],
) -> np.ndarray:
    """Every statistic of one metric in every cell and resampling.

    Args:
      cells: C of them.
      scores: each cell's [S], None where the metric has none.
      counts: [R, all sources].
      statistics: K of them.

    Returns:
      [R, C, K]; NaN where undefined.
    """
    values = np.full((len(counts), len(cells), len(statistics)), np.nan)
    for c, (cell, score) in enumerate(zip(cells, scores, strict=True)):
        if score is not None:
            sample = Sample(score, cell.truth, counts[:, cell.sources])
            for s, statistic in enumerate(statistics.values()):
                values[:, c, s] = statistic(sample)
    return values


def average(
    values: np.ndarray, cells: Sequence[Cell], weights: np.ndarray
) -> np.ndarray:
    """Means over each backbone's targets, and of these over the backbones.

    Args:
      values: [R, C, ...]; cells that are NaN are left out.
      cells: C of them.
      weights: [R, C], or [1, C] for all R alike.

    Returns:
      [R, ...]; NaN where no cell has a value.
    """

    def mean(values: np.ndarray, weights: np.ndarray | float) -> np.ndarray:
        known = ~np.isnan(values)
        total = (known * weights).sum(axis=1)
        found = (np.where(known, values, 0) * weights).sum(axis=1)
        return np.where(
            total > 0, found / np.where(total > 0, total, 1), np.nan
        )

    means = []
    for backbone in dict.fromkeys(cell.backbone for cell in cells):
        own = [c for c, cell in enumerate(cells) if cell.backbone == backbone]
        extra = (1,) * (values.ndim - 2)
        weight = weights[:, own].reshape(len(weights), len(own), *extra)
        means.append(mean(values[:, own], weight))
    return mean(np.stack(means, axis=1), 1)


def interval(values: np.ndarray, confidence: float) -> np.ndarray:
    """The percentile interval over R resamplings: [R, ...] to [2, ...]."""
    if not len(values):
        return np.full((2, *values.shape[1:]), np.nan)
    tail = (1 - confidence) / 2
    unknown = np.isnan(values).all(axis=0)
    known = np.where(unknown, 0.0, values)
    bounds = np.nanquantile(known, [tail, 1 - tail], axis=0)
    return np.where(unknown, np.nan, bounds)


def shuffled(
    cells: Sequence[Cell],
    metrics: Sequence[str],
    *,
    sources: int,
    permutations: int,
    seed: int,
) -> np.ndarray:
    """Spearman where the truth's sources have changed names: [P, C, metrics].

    One shuffle of the sources is for all cells: where a source is good (or
    scored high) on all targets, the cells are no independent witnesses. Of a
    cell that lacks some sources, the others keep the shuffle's order.
    """
    keys = np.random.default_rng([seed, 1]).random((permutations, sources))
    values = np.full((permutations, len(cells), len(metrics)), np.nan)
    orders: dict[bytes, np.ndarray] = {}
    for c, cell in enumerate(cells):
        name = cell.sources.tobytes()
        if name not in orders:
            orders[name] = np.argsort(keys[:, cell.sources], axis=1)
        y = _deviations(cell.truth)
        moved = y[orders[name]]
        for m, metric in enumerate(metrics):
            score = cell.scores.get(metric)
            if score is not None and np.ptp(score) > 0:
                x = _deviations(score)
                values[:, c, m] = moved @ x / np.sqrt((x @ x) * (y @ y))
    return values


def _deviations(values: np.ndarray) -> np.ndarray:
    """[S] average ranks minus their mean."""
    return Descending(values, np.ones((1, len(values)), np.int64)).deviations[0]


def chance(observed: np.ndarray, permuted: np.ndarray) -> np.ndarray:
    """One-sided p: how often shuffles [P, ...] and the observed reach it."""
    reached = (permuted >= observed - 1e-12).sum(axis=0)
    p = (1 + reached) / (1 + len(permuted))
    untested = np.isnan(observed) | (len(permuted) == 0)
    return np.where(untested, np.nan, p)


def pseudo(
    values: np.ndarray, cells: Sequence[Cell]
) -> tuple[np.ndarray, np.ndarray]:
    """Each target's and source's part of an average, by the jackknife.

    A cell of M sources has M v - (M - 1) v_i, with v its value and v_i that
    without source i (0, which tells nothing, where that is undefined).

    Args:
      values: [1 + all sources, C, ...]: of all, then without each source; what
        is NaN in the first is left out.
      cells: C of them, of any backbones.

    Returns:
      [..., targets, sources] and weights [targets, sources] for `infer`.
    """
    known = ~np.isnan(values[0]).reshape(len(cells), -1).any(axis=1)
    kept = [(c, cell) for c, cell in enumerate(cells) if known[c]]
    names = sorted({cell.target for _, cell in kept})
    backbones = [cell.backbone for _, cell in kept]
    weights = np.zeros((len(names), len(values) - 1))
    table = np.zeros((*values.shape[2:], *weights.shape))
    for c, cell in kept:
        M, row = len(cell.sources), names.index(cell.target)
        without = np.nan_to_num(values[1 + cell.sources, c])
        found = M * values[0, c] - (M - 1) * without
        share = 1 / (M * backbones.count(cell.backbone) * len(set(backbones)))
        table[..., row, cell.sources] += share * np.moveaxis(found, 0, -1)
        weights[row, cell.sources] += share
    return table / np.where(weights > 0, weights, 1.0), weights


class Reliability(NamedTuple):
    """What the truth's own noise allows.

    Attributes:
      seeds: how many the truth is the mean of (the fewest of any cell).
      halves: mean Spearman between the means of two sets of seeds.
      reliability: of the mean over all seeds, by Spearman and Brown; its root
        is the ceiling, about what a predictor of the noise-free truth reaches.
    """

    seeds: int
    halves: float
    reliability: float
    ceiling: float


def split_half(
    cells: Sequence[Cell], *, splits: int = 100, seed: int = 0
) -> Reliability | None:
    """How well the truth of some seeds ranks as that of as many others.

    Two disjoint sets of K // 2 seeds are drawn, K the fewest that any cell has;
    their mean correlation r over splits and cells becomes f r / (1 + (f - 1) r)
    with f = K / (K // 2), the reliability of the mean over all K (Spearman,
    Brown; r < 0 counts as 0). None below two whole seeds of a cell, or where
    all seeds are constant.
    """
    whole = [cell.seeds[np.isfinite(cell.seeds).all(1)] for cell in cells]
    K = min(map(len, whole))
    if K < 2:
        return None
    rng = np.random.default_rng([seed, 3])
    half = K // 2
    values = np.full((splits, len(cells)), np.nan)
    for c, seeds in enumerate(whole):
        for split in range(splits):
            order = rng.permutation(len(seeds))
            parts = order[:half], order[half : 2 * half]
            x, y = (_deviations(seeds[part].mean(axis=0)) for part in parts)
            under = np.sqrt((x @ x) * (y @ y))
            if under > 0:
                values[split, c] = x @ y / under
    means = average(values, cells, np.ones((1, len(cells))))
    means = means[~np.isnan(means)]
    if not len(means):
        return None
    halves = float(means.mean())
    r, factor = max(halves, 0.0), K / half
    reliability = factor * r / (1 + (factor - 1) * r)
    return Reliability(K, halves, reliability, reliability**0.5)
