"""Which runs are compared: the same backbone, target, seed and source.

Where only one of the two has a source, the other's run is its partner for all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments.board import Board
from panda_jax.experiments.cells import Cell


class Pairs(NamedTuple):
    """The differences of two labels.

    Attributes:
      cells: one a backbone and target; their seeds are all of `seeds`, NaN
        where a target lacks one.
      sources: all names, in order.
      seeds: all, in order.
      unpaired: source>target and seed of runs without a partner.
    """

    cells: list[Cell]
    sources: list[str]
    seeds: list[int]
    unpaired: list[str]


def compared(board: Board) -> list[tuple[str, str]]:
    """PANDA with all others, and PoT with prompt-tuning: labels of each."""
    plain, pots = board.labels("prompt"), board.labels("pot")
    controls = board.labels("control")
    return [
        *(
            (panda, other)
            for panda in board.labels("panda")
            for others in (pots, plain, controls)
            for other in alike(board, panda, others)
        ),
        *((pot, other) for pot in pots for other in alike(board, pot, plain)),
    ]


def alike(board: Board, label: str, others: Sequence[str]) -> list[str]:
    """Those that agree in every setting in which both have variants.

    A control has none in the weight of the distillation, so that it is for all
    of these, and of the sweep's learning rates for its own.
    """
    ours = board.variants.get(label, {})
    found = []
    for other in others:
        theirs = board.variants.get(other, {})
        if all(ours[name] == theirs[name] for name in ours.keys() & theirs):
            found.append(other)
    return found


def paired(
    boards: Sequence[Board],
    first: str,
    second: str,
    *,
    other_tasks: bool = False,
) -> Pairs:
    """The differences of label `first` minus label `second` on some boards.

    Args:
      boards: which.
      first: a label.
      second: a label.
      other_tasks: whether to leave out sources of the target's own name.
    """
    found: list[tuple[str, str, dict[tuple[int, str], float]]] = []
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
                found.append((board.backbone, target, values))
    sources = sorted({name for *_, values in found for _, name in values})
    seeds = sorted({seed for *_, values in found for seed, _ in values})
    cells = [_cell(*each, sources, seeds) for each in found]
    return Pairs(cells, sources, seeds, unpaired)


def _cell(
    backbone: str,
    target: str,
    values: dict[tuple[int, str], float],
    sources: Sequence[str],
    seeds: Sequence[int],
) -> Cell:
    """The differences of one target: of every source, and by seed."""
    own = sorted({source for _, source in values}, key=sources.index)
    table = np.array(
        [[values.get((seed, s), math.nan) for s in own] for seed in seeds]
    )
    return Cell(
        backbone,
        target,
        np.array([sources.index(source) for source in own]),
        np.nanmean(table, axis=0),
        table,
        {},
        None,
    )
