"""Is one way to adapt better than another, and how sure is that?

A difference is the mean over a source's seeds, then over a target's sources,
over targets, over backbones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments import resampling
from panda_jax.experiments.boards import Board
from panda_jax.experiments.cells import Cell
from panda_jax.experiments.pairs import Pairs, compared, paired

# Random sign patterns, where all are too many.
_FLIPS = 10_000


class Comparison(NamedTuple):
    """One label against another, on the pairs that both have.

    Attributes:
      backbone: its name; "" for all backbones together.
      first: the one.
      second: the other.
      targets: over how many, as are `sources`, `seeds` and `pairs`.
      sources, seeds, pairs: likewise.
      unpaired: names of the first's runs (source>target seed) that have no
        partner.
      difference: first minus second, points; above 0 = the first is better.
      low: of the bootstrap interval; NaN of a single pair.
      high: of the same.
      p: two-sided, by flipping the sign of whole targets: holds for other
        targets too. It is never below 2 / 2^targets.
      holm: p corrected for the number of comparisons of the backbone.
      p_seeds: by flipping each target's seeds: holds for these targets.
      holm_seeds: p_seeds corrected likewise.
    """

    backbone: str
    first: str
    second: str
    targets: int
    sources: int
    seeds: int
    pairs: int
    unpaired: tuple[str, ...]
    difference: float
    low: float
    high: float
    p: float
    holm: float
    p_seeds: float
    holm_seeds: float


def compare(
    boards: Sequence[Board],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Comparison]:
    """PANDA against PoT, prompt-tuning and its control; PoT against the second.

    The interval draws targets and sources by name, both with replacement, and
    within each target the seeds (Owen's pigeonhole bootstrap, as in
    `resampling.draw`): runs that share a target or a source are no independent
    witnesses.

    Args:
      boards: one a backbone; of several there is also a comparison over all,
        in which a target's backbones are drawn and flipped together.
      resamples: of the bootstrap; 0 for no intervals.
      confidence: of the intervals.
      seed: of everything drawn.
    """
    scopes = [(board.backbone, [board]) for board in boards]
    if len(boards) > 1:
        scopes.append(("", list(boards)))
    found: list[Comparison] = []
    for backbone, members in scopes:
        names = dict.fromkeys(n for board in members for n in compared(board))
        family = [
            one
            for first, second in names
            if (
                one := _compare(
                    backbone,
                    first,
                    second,
                    paired(members, first, second),
                    resamples=resamples,
                    confidence=confidence,
                    seed=seed,
                )
            )
        ]
        corrected = (
            resampling.holm([one.p for one in family]),
            resampling.holm([one.p_seeds for one in family]),
        )
        found += [
            one._replace(holm=holm, holm_seeds=holm_seeds)
            for one, holm, holm_seeds in zip(family, *corrected, strict=True)
        ]
    return found


def _compare(
    backbone: str,
    first: str,
    second: str,
    pairs: Pairs,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Comparison | None:
    """One comparison, not yet corrected; None where nothing is paired."""
    cells = pairs.cells
    if not cells:
        return None
    draws = resampling.draw(
        cells, sources=len(pairs.sources), resamples=resamples, seed=seed
    )
    rng = np.random.default_rng([seed, 4])
    means = np.stack(
        [
            _target_means(cell, draws.sources[:, cell.sources], rng)
            for cell in cells
        ],
        axis=1,
    )
    averages = resampling.average(means, cells, draws.targets)
    pairs_of = [int(np.isfinite(cell.seeds).sum()) for cell in cells]
    # Of a single pair every resampling is the same, which is no certainty.
    drawn = averages[1:] if sum(pairs_of) > 1 else averages[:0]
    low, high = resampling.interval(drawn, confidence).tolist()
    runs = _by_seed(cells)
    return Comparison(
        backbone,
        first,
        second,
        targets=len({cell.target for cell in cells}),
        sources=len({s for cell in cells for s in cell.sources.tolist()}),
        seeds=max(len(cell.seeds) for cell in cells),
        pairs=sum(pairs_of),
        unpaired=tuple(pairs.unpaired),
        difference=float(averages[0]),
        low=low,
        high=high,
        p=_flipped(means[0], cells, seed),
        holm=math.nan,
        p_seeds=_flipped(np.array([r.truth[0] for r in runs]), runs, seed),
        holm_seeds=math.nan,
    )


def _target_means(
    cell: Cell, sources: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A target's mean difference in every resampling, the first as observed.

    Args:
      cell: K seeds of S sources.
      sources: [R, S] how many times each is held.
      rng: draws the seeds.

    Returns:
      [R]; NaN where a resampling holds no pair.
    """
    K = len(cell.seeds)
    times = rng.multinomial(K, np.full(K, 1 / K), size=len(sources) - 1)
    seeds = np.concatenate([np.ones((1, K), np.int64), times])
    known = np.isfinite(cell.seeds)
    values = np.where(known, cell.seeds, 0.0)
    drawn = seeds @ known.astype(np.int64)
    means = seeds @ values / np.maximum(drawn, 1)
    held = sources * (drawn > 0)
    count = held.sum(axis=1)
    total = (means * held).sum(axis=1)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _by_seed(cells: Sequence[Cell]) -> list[Cell]:
    """Each target's seeds apart, as if each were a target."""
    return [
        Cell(
            cell.backbone,
            f"{cell.target} {k}",
            np.zeros(1, np.int64),
            np.array([float(np.nanmean(differences))]),
            differences[None],
            {},
            None,
        )
        for cell in cells
        for k, differences in enumerate(cell.seeds)
    ]


def _flipped(means: np.ndarray, cells: Sequence[Cell], seed: int) -> float:
    p = resampling.sign_flips(means[:, None], cells, flips=_FLIPS, seed=seed)
    return float(p[0])
