"""How sure an average over targets is: jackknife, bootstrap, permutations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments.cells import Cell
from panda_jax.experiments.ranking_stats import Descending, Sample, Statistic


class Draws(NamedTuple):
    """R resamplings, the first of which is what was observed.

    Attributes:
      sources: [R, S] how many times each holds a source.
      targets: [R, C] how many times each holds a cell's target.
    """

    sources: np.ndarray
    targets: np.ndarray


def draw(
    cells: Sequence[Cell], *, sources: int, resamples: int, seed: int
) -> Draws:
    """Sources and targets, both drawn with replacement, by name.

    A source that is drawn is drawn for every target and backbone, a target for
    every backbone: what is common to cells stays common, so that 45 cells of 9
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
    means = []
    for backbone in dict.fromkeys(cell.backbone for cell in cells):
        own = [c for c, cell in enumerate(cells) if cell.backbone == backbone]
        part = values[:, own]
        extra = (1,) * (part.ndim - 2)
        weight = weights[:, own].reshape(len(weights), len(own), *extra)
        known = ~np.isnan(part)
        means.append(_mean(np.where(known, part, 0) * weight, known * weight))
    stacked = np.stack(means, axis=1)
    known = ~np.isnan(stacked)
    return _mean(np.where(known, stacked, 0), known)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1)
    return np.where(
        total > 0, values.sum(axis=1) / np.where(total > 0, total, 1), np.nan
    )


def interval(values: np.ndarray, confidence: float) -> np.ndarray:
    """The percentile interval over R resamplings: [R, ...] to [2, ...]."""
    if not len(values):
        return np.full((2, *values.shape[1:]), np.nan)
    tail = (1 - confidence) / 2
    known = np.where(np.isnan(values).all(axis=0), 0.0, values)
    bounds = np.nanquantile(known, [tail, 1 - tail], axis=0)
    return np.where(np.isnan(values).all(axis=0), np.nan, bounds)


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
        ones = np.ones((1, len(cell.sources)), np.int64)
        y = Descending(cell.truth, ones).deviations[0]
        moved = y[orders[name]]
        for m, metric in enumerate(metrics):
            score = cell.scores.get(metric)
            if score is not None and np.ptp(score) > 0:
                x = Descending(score, ones).deviations[0]
                values[:, c, m] = moved @ x / np.sqrt((x @ x) * (y @ y))
    return values


def chance(observed: np.ndarray, permuted: np.ndarray) -> np.ndarray:
    """One-sided p: how often a shuffle reaches what was observed.

    Args:
      observed: [...].
      permuted: [P, ...]; the observed one counts as one more shuffle.
    """
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
      [..., targets, sources] and their weights [targets, sources]: what
      `two_way.infer` takes.
    """
    known = ~np.isnan(values[0]).reshape(len(cells), -1).any(axis=1)
    kept = [(c, cell) for c, cell in enumerate(cells) if known[c]]
    names = sorted({cell.target for _, cell in kept})
    backbones = [cell.backbone for _, cell in kept]
    shape = (len(names), len(values) - 1)
    table = np.zeros((*values.shape[2:], *shape))
    weights = np.zeros(shape)
    for c, cell in kept:
        M, row = len(cell.sources), names.index(cell.target)
        without = np.nan_to_num(values[1 + cell.sources, c])
        found = M * values[0, c] - (M - 1) * without
        share = 1 / (M * backbones.count(cell.backbone) * len(set(backbones)))
        table[..., row, cell.sources] += share * np.moveaxis(found, 0, -1)
        weights[row, cell.sources] += share
    return table / np.where(weights > 0, weights, 1.0), weights


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values; NaN stays."""
    known = sorted((value, i) for i, value in enumerate(p) if value == value)
    corrected = [float("nan")] * len(p)
    least = 0.0
    for place, (value, i) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - place)))
        corrected[i] = least
    return corrected


class Reliability(NamedTuple):
    """What the truth's own noise allows.

    Attributes:
      seeds: how many the truth is the mean of (the fewest of any cell).
      halves: mean Spearman between the means of two sets of seeds.
      reliability: of the mean over all seeds, by Spearman and Brown.
      ceiling: its root: about what a predictor of the noise-free truth reaches.
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
    Brown; r < 0 counts as 0).

    Returns:
      None where some cell has fewer than two whole seeds, or all seeds are
      constant.
    """
    whole = [cell.seeds[np.isfinite(cell.seeds).all(1)] for cell in cells]
    K = min(map(len, whole))
    if K < 2:
        return None
    rng = np.random.default_rng([seed, 3])
    half = K // 2
    values = np.full((splits, len(cells)), np.nan)
    for c, seeds in enumerate(whole):
        ones = np.ones((1, seeds.shape[1]), np.int64)
        for split in range(splits):
            order = rng.permutation(len(seeds))
            x, y = (
                Descending(seeds[part].mean(axis=0), ones).deviations[0]
                for part in (order[:half], order[half : 2 * half])
            )
            under = np.sqrt((x @ x) * (y @ y))
            if under > 0:
                values[split, c] = x @ y / under
    weights = np.ones((1, len(cells)))
    means = average(values, cells, weights)
    means = means[~np.isnan(means)]
    if not len(means):
        return None
    halves = float(means.mean())
    r, factor = max(halves, 0.0), K / half
    reliability = factor * r / (1 + (factor - 1) * r)
    return Reliability(K, halves, reliability, reliability**0.5)
