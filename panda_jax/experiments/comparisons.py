"""Is one way to adapt better than another, and how sure is that?

A difference is the mean over a source's seeds, then over a target's sources,
over targets, over backbones.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from panda_jax.experiments import resampling
from panda_jax.experiments.board import Board
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
      tasks: `all`, or `other`: without sources of the target's own name.
      targets: over how many, as are `sources`, `seeds` and `pairs`.
      sources, seeds, pairs: likewise.
      unpaired: names of the first's runs (source>target seed) that have no
        partner.
      difference: first minus second, points; above 0 = the first is better.
      low: of the bootstrap interval; NaN of a single pair.
      high: of the same.
      p: two-sided, by flipping the sign of whole targets: holds for other
        targets too. It is never below 2 / 2^targets.
      holm: p corrected for the number of comparisons of the backbone (and the
        same `tasks`).
      p_seeds: by flipping whole seeds: holds for these targets. It is never
        below 2 / 2^seeds.
      holm_seeds: p_seeds corrected likewise.
      same_as: the second of a comparison before it with the very same
        differences, which is corrected for once; else "".
    """

    backbone: str
    first: str
    second: str
    tasks: str
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
    same_as: str


def compare(
    boards: Sequence[Board],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Comparison]:
    """PANDA against PoT, prompt-tuning and its control; PoT against the second.

    The interval draws targets, sources and seeds by name, all with replacement
    (Owen's pigeonhole bootstrap, as in `resampling.draw`): runs that share one
    of them are no independent witnesses. A seed's source prompt serves all
    targets.

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
    return [
        one
        for backbone, members in scopes
        for tasks in ("all", "other")
        for one in _family(
            members,
            {"backbone": backbone, "tasks": tasks},
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
    ]


def _family(
    boards: Sequence[Board], names: dict[str, str], **options: Any
) -> list[Comparison]:
    """All comparisons of some boards, corrected for how many they are."""
    others = names["tasks"] == "other"
    found: list[tuple[Comparison, tuple[bytes, ...]]] = []
    unique: dict[tuple[bytes, ...], Comparison] = {}
    for first, second in dict.fromkeys(n for b in boards for n in compared(b)):
        if others and not any(board.own_tasks(first) for board in boards):
            continue
        pairs = paired(boards, first, second, other_tasks=others)
        if not pairs.cells:
            continue
        one = _compare(pairs, **options)
        one = one._replace(first=first, second=second, **names)
        # What differs from two twins by the same has been tested once.
        same = unique.setdefault(_key(first, pairs), one)
        if same is not one:
            one = one._replace(same_as=same.second)
        found.append((one, _key(first, pairs)))
    holm = dict(
        zip(
            unique,
            zip(
                resampling.holm([one.p for one in unique.values()]),
                resampling.holm([one.p_seeds for one in unique.values()]),
                strict=True,
            ),
            strict=True,
        )
    )
    return [
        one._replace(holm=holm[key][0], holm_seeds=holm[key][1])
        for one, key in found
    ]


def _key(first: str, pairs: Pairs) -> tuple[bytes, ...]:
    """Equal where all differences of the same first label are."""
    return first.encode(), *(
        part
        for cell in pairs.cells
        for part in (cell.backbone.encode(), cell.target.encode())
        + (cell.sources.tobytes(), cell.seeds.tobytes())
    )


def _compare(
    pairs: Pairs, *, resamples: int, confidence: float, seed: int
) -> Comparison:
    """One comparison, without names and not yet corrected."""
    cells, K = pairs.cells, len(pairs.seeds)
    draws = resampling.draw(
        cells, sources=len(pairs.sources), resamples=resamples, seed=seed
    )
    drawn = np.random.default_rng([seed, 4]).multinomial(
        K, np.full(K, 1 / K), size=resamples
    )
    seeds = np.concatenate([np.ones((1, K), np.int64), drawn])
    means = np.stack(
        [
            _target_means(cell, draws.sources[:, cell.sources], seeds)
            for cell in cells
        ],
        axis=1,
    )
    averages = resampling.average(means, cells, draws.targets)
    count = sum(int(np.isfinite(cell.seeds).sum()) for cell in cells)
    # Of a single pair every resampling is the same, which is no certainty.
    resampled = averages[1:] if count > 1 else averages[:0]
    low, high = resampling.interval(resampled, confidence).tolist()
    return Comparison(
        backbone="",
        first="",
        second="",
        tasks="",
        targets=len({cell.target for cell in cells}),
        sources=len(pairs.sources),
        seeds=K,
        pairs=count,
        unpaired=tuple(pairs.unpaired),
        difference=float(averages[0]),
        low=low,
        high=high,
        p=_flipped(means[0], cells, seed),
        holm=math.nan,
        p_seeds=_flipped(_parts(cells), _by_seed(pairs.seeds), seed),
        holm_seeds=math.nan,
        same_as="",
    )


def _target_means(
    cell: Cell, sources: np.ndarray, seeds: np.ndarray
) -> np.ndarray:
    """A target's mean difference in every resampling, the first as observed.

    Args:
      cell: K seeds of S sources.
      sources: [R, S] how many times each is held.
      seeds: [R, K] likewise.

    Returns:
      [R]; NaN where a resampling holds no pair.
    """
    known = np.isfinite(cell.seeds)
    values = np.where(known, cell.seeds, 0.0)
    drawn = seeds @ known.astype(np.int64)
    means = seeds @ values / np.maximum(drawn, 1)
    held = sources * (drawn > 0)
    count = held.sum(axis=1)
    total = (means * held).sum(axis=1)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _parts(cells: Sequence[Cell]) -> np.ndarray:
    """[K] what each seed adds to the difference, over targets and backbones."""
    parts = []
    for cell in cells:
        known = np.isfinite(cell.seeds)
        values = np.where(known, cell.seeds, 0.0) / known.sum(axis=0)
        parts.append(values.mean(axis=1))
    ones = np.ones((1, len(cells)))
    return resampling.average(np.stack(parts, axis=1), cells, ones)


def _by_seed(seeds: Sequence[int]) -> list[Cell]:
    """Seeds as if each were a target, for `resampling.sign_flips`."""
    none = np.zeros(0)
    return [Cell("", f"{s}", none, none, none, {}, None) for s in seeds]


def _flipped(means: np.ndarray, cells: Sequence[Cell], seed: int) -> float:
    p = resampling.sign_flips(means[:, None], cells, flips=_FLIPS, seed=seed)
    return float(p[0])
