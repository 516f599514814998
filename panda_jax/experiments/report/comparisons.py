"""Is one way to adapt better than another, and how sure is that?

Runs are compared with those of the same backbone, target, seed and source;
where only one of the two has a source, the other's run is its partner for all.
A difference is the mean over a source's seeds, then over a target's sources,
over targets, over backbones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments import inference
from panda_jax.experiments.report.board import Board


class Comparison(NamedTuple):
    """One label against another, on the pairs that both have.

    Attributes:
      backbone: its name; "" for all backbones together.
      tasks: `all`, or `other`: without sources of the target's own name.
      targets, sources, seeds, pairs: over how many.
      unpaired: the first's runs (source>target seed) without a partner.
      difference: first minus second, points; above 0 = the first is better.
      low, high: of the interval; NaN where nothing can be said.
      p: two-sided, that the difference is 0.
      holm: p corrected for the number of `tests` of the backbone and `tasks`.
      holds_for: what interval and p speak for, such as "other targets, these
        seeds"; sources and backbones are always these.
      caution: what stands beside them where targets or seeds are few; else "".
      same_as: the second of an earlier one of the very same differences, which
        is corrected for once; else "".
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


# (backbone, target) -> (seed, source) -> points between two labels.
Cells = dict[tuple[str, str], dict[tuple[int, str], float]]


def compared(board: Board) -> list[tuple[str, str]]:
    """PANDA with all others, and PoT with prompt-tuning: labels of each."""
    plain, pots = board.labels("prompt"), board.labels("pot")
    others = (*pots, *plain, *board.labels("control"))
    pairs = [(panda, others) for panda in board.labels("panda")]
    pairs += [(pot, plain) for pot in pots]
    return [(one, x) for one, all_ in pairs for x in alike(board, one, all_)]


def alike(board: Board, label: str, others: Sequence[str]) -> list[str]:
    """Those that agree in every setting in which both have variants.

    A control has none in the distillation's weight, so that it is for all.
    """
    ours = board.variants.get(label, {})

    def agrees(other: str) -> bool:
        theirs = board.variants.get(other, {})
        return all(ours[name] == theirs[name] for name in ours.keys() & theirs)

    return list(filter(agrees, others))


def compare(
    boards: Sequence[Board], *, confidence: float = 0.95
) -> list[Comparison]:
    """PANDA against PoT, prompt-tuning and its control; PoT against the second.

    Targets and seeds are crossed, as a seed's source prompt serves all targets:
    see `inference.infer`. Of several backbones there is also one over all.
    """
    scopes = [(board.backbone, [board]) for board in boards]
    if len(boards) > 1:
        scopes.append(("", list(boards)))
    found = []
    for backbone, members in scopes:
        for tasks in ("all", "other"):
            found += _family(members, backbone, tasks, confidence)
    return found


def _family(
    boards: Sequence[Board], backbone: str, tasks: str, confidence: float
) -> list[Comparison]:
    """All comparisons of some boards, corrected for how many they are."""
    found: list[tuple[Comparison, str]] = []
    unique: dict[str, Comparison] = {}
    for first, second in dict.fromkeys(n for b in boards for n in compared(b)):
        others = tasks == "other"
        if others and not any(board.own_tasks(first) for board in boards):
            continue
        cells, unpaired = paired(boards, first, second, other_tasks=others)
        if not cells:
            continue
        names = backbone, first, second, tasks
        one = _compare(cells, names, confidence)._replace(unpaired=unpaired)
        # What differs from two twins by the same has been tested once.
        key = repr((first, cells))
        same = unique.setdefault(key, one)
        if same is not one:
            one = one._replace(same_as=same.second)
        found.append((one, key))
    raw = [one.p for one in unique.values()]
    holm = dict(zip(unique, inference.holm(raw), strict=True))
    tests = sum(not math.isnan(p) for p in raw)
    return [one._replace(holm=holm[key], tests=tests) for one, key in found]


def paired(
    boards: Sequence[Board],
    first: str,
    second: str,
    *,
    other_tasks: bool = False,
) -> tuple[Cells, tuple[str, ...]]:
    """Label `first` minus label `second`, and the first's without a partner.

    With `other_tasks` sources of the target's own name are left out.
    """
    cells: Cells = {}
    unpaired: list[str] = []
    for board in boards:
        partners = {row.source: row for row in board.of(second)}
        for target in board.targets:
            values: dict[tuple[int, str], float] = {}
            for row in board.of(first):
                if other_tasks and row.source == target:
                    continue
                other = partners.get(row.source, partners.get(""))
                both = board.differences(row, other, target) if other else {}
                values |= {(seed, row.source): d for seed, d in both.items()}
                unpaired += [
                    f"{row.source}>{target} seed {seed}"
                    for seed in sorted(board.cells.get((row, target), ()))
                    if seed not in both
                ]
            if values:
                cells[board.backbone, target] = values
    return cells, tuple(unpaired)


def _compare(
    cells: Cells, names: tuple[str, str, str, str], confidence: float
) -> Comparison:
    """One comparison, not yet corrected."""
    values, weights = _table(cells)
    found = inference.infer(values, weights, confidence=confidence)
    targets, seeds = weights.shape
    unknown = np.isnan(found.p)
    few = inference.few(((targets, "target"), (seeds, "seed")))
    if unknown and (found.rows or found.columns):
        few.append("no spread")
    caution = f"only {' and '.join(few)}" if few else ""
    holds_for = "other targets, these seeds"
    if unknown:
        caution = f"{', '.join(few)}: no interval" if few else ""
        holds_for = "nothing else"
    elif found.columns:
        both = "other targets and seeds"
        holds_for = both if found.rows else "other seeds, these targets"
    return Comparison(
        *names,
        targets=targets,
        sources=len({source for cell in cells.values() for _, source in cell}),
        seeds=seeds,
        pairs=sum(map(len, cells.values())),
        unpaired=(),
        difference=float(found.mean),
        low=float(found.low),
        high=float(found.high),
        p=float(found.p),
        holm=math.nan,
        tests=0,
        holds_for=holds_for,
        caution=caution,
        same_as="",
    )


def _table(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """[targets, seeds] mean differences over sources and backbones; weights.

    A backbone's targets weigh alike, a target's sources, and a source's seeds.
    """
    targets = sorted({target for _, target in cells})
    backbones = [backbone for backbone, _ in cells]
    seeds = sorted({seed for cell in cells.values() for seed, _ in cell})
    values = np.zeros((len(targets), len(seeds)))
    weights = values.copy()
    for (backbone, target), cell in cells.items():
        sources = sorted({source for _, source in cell})
        table = np.array(
            [[cell.get((seed, s), math.nan) for s in sources] for seed in seeds]
        )
        known = np.isfinite(table)
        share = known / known.sum(axis=0) / len(sources)
        share /= backbones.count(backbone) * len(set(backbones))
        row = targets.index(target)
        weights[row] += share.sum(axis=1)
        values[row] += (share * np.where(known, table, 0.0)).sum(axis=1)
    has = weights > 0
    return np.where(has, values / np.where(has, weights, 1.0), 0.0), weights
