"""Which runs are compared: the same backbone, target, seed and source.

Where only one of the two has a source, the other's run is its partner for all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments.boards import Board, Row
from panda_jax.experiments.cells import Cell


class Pairs(NamedTuple):
    """The differences of two labels.

    Attributes:
      cells: one a backbone and target.
      sources: all names, in order.
      unpaired: source>target and seed of runs without a partner.
    """

    cells: list[Cell]
    sources: list[str]
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


def paired(boards: Sequence[Board], first: str, second: str) -> Pairs:
    """The differences of label `first` minus label `second` on some boards."""
    sources = sorted(
        {row.source for board in boards for row in board.of(first)}
    )
    cells: list[Cell] = []
    unpaired: list[str] = []
    for board in boards:
        partners = {row.source: row for row in board.of(second)}
        for target in board.targets:
            values: dict[tuple[int, str], float] = {}
            for row in board.of(first):
                other = partners.get(row.source, partners.get(""))
                _differences(board, row, other, target, values, unpaired)
            if values:
                cells.append(_cell(board.backbone, target, sources, values))
    return Pairs(cells, sources, unpaired)


def _differences(
    board: Board,
    row: Row,
    other: Row | None,
    target: str,
    values: dict[tuple[int, str], float],
    unpaired: list[str],
) -> None:
    theirs = board.cells.get((other, target), {}) if other else {}
    for seed, value in sorted(board.cells.get((row, target), {}).items()):
        if seed in theirs:
            values[seed, row.source] = value - theirs[seed]
        else:
            unpaired.append(f"{row.source}>{target} seed {seed}")


def _cell(
    backbone: str,
    target: str,
    sources: Sequence[str],
    values: dict[tuple[int, str], float],
) -> Cell:
    """The differences of one target: of every source, and by seed."""
    own = sorted({source for _, source in values}, key=sources.index)
    seeds = sorted({seed for seed, _ in values})
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
