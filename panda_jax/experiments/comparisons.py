"""Is one way to adapt better than another, and how sure is that?

A difference is the mean over a source's seeds, then over a target's sources,
over targets, over backbones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments import resampling, two_way
from panda_jax.experiments.board import Board
from panda_jax.experiments.pairs import Pairs, compared, paired

# Below this many targets or seeds a comparison warns.
FEW = 5


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
      low: of the interval; NaN where nothing can be said.
      high: of the same.
      p: two-sided, that the difference is 0.
      holm: p corrected for the number of `tests`.
      tests: comparisons of the backbone (and the same `tasks`) with a p.
      holds_for: what interval and p speak for, such as "other targets, these
        seeds"; sources and backbones are always these.
      caution: what stands beside them where targets or seeds are few; else "".
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
    tests: int
    holds_for: str
    caution: str
    same_as: str


def compare(
    boards: Sequence[Board], *, confidence: float = 0.95
) -> list[Comparison]:
    """PANDA against PoT, prompt-tuning and its control; PoT against the second.

    Targets and seeds are crossed, as a seed's source prompt serves all targets:
    see `two_way.infer`.

    Args:
      boards: one a backbone; of several there is also a comparison over all.
      confidence: of the intervals.
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
            confidence=confidence,
        )
    ]


def _family(
    boards: Sequence[Board], names: dict[str, str], *, confidence: float
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
        one = _compare(pairs, confidence)
        one = one._replace(first=first, second=second, **names)
        # What differs from two twins by the same has been tested once.
        same = unique.setdefault(_key(first, pairs), one)
        if same is not one:
            one = one._replace(same_as=same.second)
        found.append((one, _key(first, pairs)))
    raw = [one.p for one in unique.values()]
    holm = dict(zip(unique, resampling.holm(raw), strict=True))
    tests = sum(not math.isnan(p) for p in raw)
    return [one._replace(holm=holm[key], tests=tests) for one, key in found]


def _key(first: str, pairs: Pairs) -> tuple[bytes, ...]:
    """Equal where all differences of the same first label are."""
    return first.encode(), *(
        part
        for cell in pairs.cells
        for part in (cell.backbone.encode(), cell.target.encode())
        + (cell.sources.tobytes(), cell.seeds.tobytes())
    )


def _compare(pairs: Pairs, confidence: float) -> Comparison:
    """One comparison, without names and not yet corrected."""
    values, weights = _table(pairs)
    found = two_way.infer(values, weights, confidence=confidence)
    targets, seeds = weights.shape
    pieces = [int(np.isfinite(cell.seeds).sum()) for cell in pairs.cells]
    return Comparison(
        backbone="",
        first="",
        second="",
        tasks="",
        targets=targets,
        sources=len(pairs.sources),
        seeds=seeds,
        pairs=sum(pieces),
        unpaired=tuple(pairs.unpaired),
        difference=float(found.mean),
        low=float(found.low),
        high=float(found.high),
        p=float(found.p),
        holm=math.nan,
        tests=0,
        holds_for=_holds_for(found),
        caution=_caution(found, targets, seeds),
        same_as="",
    )


def _table(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """What each target and seed adds to the difference.

    Returns:
      [targets, seeds] mean differences over sources and backbones, and their
      weights: a backbone's targets weigh alike, a target's sources, and a
      source's seeds; 0 where there is no pair.
    """
    targets = sorted({cell.target for cell in pairs.cells})
    backbones = [cell.backbone for cell in pairs.cells]
    values = np.zeros((len(targets), len(pairs.seeds)))
    weights = values.copy()
    for cell in pairs.cells:
        known = np.isfinite(cell.seeds)
        share = known / known.sum(axis=0) / len(cell.sources)
        share /= backbones.count(cell.backbone) * len(set(backbones))
        row = targets.index(cell.target)
        weights[row] += share.sum(axis=1)
        values[row] += (share * np.where(known, cell.seeds, 0.0)).sum(axis=1)
    has = weights > 0
    return np.where(has, values / np.where(has, weights, 1.0), 0.0), weights


def _holds_for(found: two_way.Inference) -> str:
    if np.isnan(found.p):
        return "nothing else"
    if found.rows and found.columns:
        return "other targets and seeds"
    if found.rows:
        return "other targets, these seeds"
    return "other seeds, these targets"


def _caution(found: two_way.Inference, targets: int, seeds: int) -> str:
    """What the reader of an interval must know, in the same line."""
    few = [
        f"{count} {name}{'s' * (count != 1)}"
        for count, name in ((targets, "target"), (seeds, "seed"))
        if count < FEW
    ]
    if np.isnan(found.p) and (found.rows or found.columns):
        few.append("no spread")
    if not few:
        return ""
    if np.isnan(found.p):
        return f"{', '.join(few)}: no interval"
    return f"only {' and '.join(few)}"
