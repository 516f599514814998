"""The paper's figures: computed anew, doubted, and beside our own."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from panda_jax.experiments import doubts, paper
from panda_jax.experiments.board import Board, Row
from panda_jax.experiments.layout import MISSING, Table, change, points
from panda_jax.experiments.outcomes import LABELS

# The one that the paper's code sets.
_SEED = 11


class Beside(NamedTuple):
    """A cell that we and the paper have.

    Attributes:
      backbone, label, source, target: where.
      ours: points, the mean over n seeds.
      n: seeds.
      published: points, of one seed.
      difference: ours minus published.
    """

    backbone: str
    label: str
    source: str
    target: str
    ours: float
    n: int
    published: float
    difference: float


def boards() -> list[Board]:
    """The paper's final scores as boards of one seed, 11."""
    published = paper.read()
    found = {name: {} for name in published.backbones}
    for (backbone, method, source, target), score in published.cells.items():
        if method in paper.METHODS:
            label = LABELS.get(method, "PANDA")
            row = Row(method, label, source)
            found[backbone][row, target] = {_SEED: score}
    return [
        Board(name, published.targets, cells, {}, {}, {})
        for name, cells in found.items()
    ]


def headline_table() -> Table:
    """The paper's headline figures, from the paper's cells."""
    figures = paper.headline(paper.read())
    return Table(
        "published_headline",
        "The paper's headline figures, computed from its tables",
        ["figure", "computed", "printed", "how"],
        [
            [f.name, points(f.value, digits=2), points(f.printed), f.how]
            for f in figures
        ],
        [paper.Figure._fields, *figures],
        [
            "Printed: the abstract's figures; the mean of the printed "
            "averages. A greatest of many is no expectation and has no "
            "interval; those of differences stand in the next table."
        ],
        ends=1,
    )


def doubts_table() -> Table:
    """What in the paper's tables cannot be right."""
    published = paper.read()
    counts = doubts.question_counts(published.targets)
    flags = doubts.doubts(published.cells, counts)
    return Table(
        "published_doubts",
        "Rows and cells of the paper's tables in doubt",
        ["backbone", "method", "source", "target", "printed", "reason"],
        [
            [
                flag.backbone,
                flag.method,
                flag.source or MISSING,
                flag.target or "all",
                points(flag.value),
                flag.reason,
            ]
            for flag in flags
        ],
        [doubts.Flag._fields, *flags],
        [
            f"{len(flags)} of {len(published.cells)} cells and their rows. "
            "A score that is the mean of several runs need be no k / n. They "
            "are counted all the same: nothing was corrected."
        ],
        words=4,
        ends=1,
    )


def beside(boards: Sequence[Board]) -> list[Beside]:
    """Every cell that both have; PANDA's recipes each beside the paper's."""
    cells = paper.read().cells
    found = []
    for board in boards:
        for row in board.rows:
            for target in board.targets:
                ours = board.cell(row, target)
                place = (board.backbone, row.kind, row.source, target)
                if place in cells and ours.n:
                    printed = cells[place]
                    found.append(
                        Beside(
                            board.backbone,
                            row.label,
                            row.source,
                            target,
                            ours.mean,
                            ours.n,
                            printed,
                            ours.mean - printed,
                        )
                    )
    return found


def beside_tables(boards: Sequence[Board]) -> list[Table]:
    """A summary, and the differences of each backbone in the wide form."""
    found = beside(boards)
    if not found:
        return []
    groups: dict[tuple[str, str], list[Beside]] = {}
    for one in found:
        groups.setdefault((one.backbone, one.label), []).append(one)
    rows = []
    for (backbone, label), members in groups.items():
        far = max(members, key=lambda one: abs(one.difference))
        place = f"{far.source} > {far.target}".removeprefix(" > ")
        rows.append(
            [
                backbone,
                label,
                str(len(members)),
                points(statistics.fmean(one.ours for one in members)),
                points(statistics.fmean(one.published for one in members)),
                change(statistics.fmean(one.difference for one in members)),
                points(statistics.fmean(abs(o.difference) for o in members)),
                f"{change(far.difference)} ({place})",
            ]
        )
    head = "backbone,row,cells,ours,published,difference,size,greatest"
    tables = [
        Table(
            "published_cells",
            "Ours minus published, over the cells that both have",
            head.split(","),
            rows,
            [Beside._fields, *found],
            ["Means over these cells; size: of the differences without sign."],
            words=2,
        )
    ]
    for board in boards:
        own = [one for one in found if one.backbone == board.backbone]
        if own:
            tables.append(_differences(board, own))
    return tables


def _differences(board: Board, cells: Sequence[Beside]) -> Table:
    by = {(c.label, c.source, c.target): c.difference for c in cells}
    targets = [t for t in board.targets if any(c.target == t for c in cells)]
    places = {(c.label, c.source) for c in cells}
    rows = []
    for row in board.rows:
        if (row.label, row.source) in places:
            values = [
                by.get((row.label, row.source, t), math.nan) for t in targets
            ]
            rows.append([row.name, *map(change, values)])
    return Table(
        f"published_differences_{board.backbone}",
        f"Ours minus published on {board.backbone}",
        ["", *targets],
        rows,
    )
