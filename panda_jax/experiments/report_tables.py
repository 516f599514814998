"""The tables of one backbone: the paper's wide form, gains, what was lost."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from panda_jax.experiments import paper
from panda_jax.experiments.board import Board, Row
from panda_jax.experiments.layout import (
    LOST,
    Table,
    cell,
    mean_of,
)
from panda_jax.experiments.outcomes import Excluded
from panda_jax.experiments.summaries import Spread, spread


class _Line(NamedTuple):
    """A row of the wide table.

    Attributes:
      row: of the board, or the mean of a label's.
      cells: a target each.
      averages: over each group of targets.
      lost: of each target, whether a run was.
      full: of each target, the n that is not worth a word.
    """

    row: Row
    cells: list[Spread]
    averages: list[Spread]
    lost: list[bool]
    full: int


def wide(board: Board, stem: str) -> Table:
    """All rows by target, with averages: the paper's own form.

    Tasks that are none of the paper's targets get a second average without
    them.
    """
    own = tuple(t for t in board.targets if t in paper.read().targets)
    groups = [board.targets]
    ends = ["average"]
    if own and len(own) < len(board.targets):
        groups.append(own)
        ends.append(f"average of the paper's {len(own)}")
    counts = {len(seeds) for seeds in board.cells.values()}
    lines = list(_lines(board, groups, counts))
    rows = [
        [
            line.row.name,
            *(
                cell(found, lost=gone, count=found.n != line.full)
                for found, gone in zip(line.cells, line.lost, strict=True)
            ),
            *(
                mean_of(found, len(group))
                for found, group in zip(line.averages, groups, strict=True)
            ),
        ]
        for line in lines
    ]
    data = [
        [
            line.row.label,
            line.row.source,
            *(found.mean for found in line.cells),
            *(part for a in line.averages for part in (a.mean, a.of)),
        ]
        for line in lines
    ]
    columns = [part for end in ends for part in (end, f"{end}: targets")]
    return Table(
        stem,
        f"Results on {board.backbone}",
        ["", *board.targets, *ends],
        rows,
        [["label", "source", *board.targets, *columns], *data],
        _wide_notes(board, counts),
    )


def _lines(
    board: Board, groups: Sequence[tuple[str, ...]], counts: set[int]
) -> Iterable[_Line]:
    """Each label's rows, and behind several sources their mean."""
    seeds = max(counts) if len(counts) == 1 else 0
    for label in board.labels():
        members = board.of(label)
        for row in members:
            yield _Line(
                row,
                [board.cell(row, target) for target in board.targets],
                [board.average(row, group) for group in groups],
                [board.is_lost(row, target) for target in board.targets],
                seeds,
            )
        sources = len(board.done(label))
        if sources > 1:
            means = [board.over_sources(label, t) for t in board.targets]
            source = f"mean of {sources} sources"
            yield _Line(
                Row(members[0].kind, label, source),
                # What they differ by is no noise.
                [found._replace(sd=math.nan) for found in means],
                [board.mean_source(label, group) for group in groups],
                [
                    any(board.is_lost(row, target) for row in members)
                    for target in board.targets
                ],
                sources,
            )


def _wide_notes(board: Board, counts: set[int]) -> list[str]:
    many = f"{max(counts, default=0)} seed{'s' * (counts != {1})}"
    if len(counts) > 1:
        many = f"{min(counts)} to {max(counts)} seeds (in brackets)"
    notes = [
        "Points of 100, higher is better; mean ± standard deviation (n - 1) "
        f"over {many}. That of an average is over the averages of the seeds "
        "that have all of the row's targets. An average over fewer targets "
        "than there are says so, and compares with no other; so does a mean "
        "of fewer sources (in brackets)."
    ]
    if board.lost:
        notes.append(
            f"{LOST}: a run of the cell has no result that counts: it failed, "
            "is unfinished or not begun, or cannot be read."
        )
    return notes


def made_table(boards: Sequence[Board]) -> Table | None:
    """What the source prompts score on their own tasks."""
    lines = [
        (board.backbone, label, task, spread(seeds.values()))
        for board in boards
        for (label, task), seeds in sorted(board.made.items())
    ]
    if not lines:
        return None
    return Table(
        "source_prompts",
        "Prompts of the source tasks",
        ["backbone", "row", "task", "score", "seeds"],
        [[*names, cell(found), str(found.n)] for *names, found in lines],
        [
            ["backbone", "label", "task", "mean", "sd", "n"],
            *([*names, f.mean, f.sd, f.n] for *names, f in lines),
        ],
        words=3,
    )


def left_out_table(left_out: Sequence[Excluded]) -> Table:
    """Every run that no average holds; of some kinds only how many."""
    waiting = sum(out.status == "not begun" for out in left_out)
    doubles = sum(_is_plain_double(out) for out in left_out)
    former = sum(out.status == "not listed" for out in left_out)
    shown = [
        out
        for out in left_out
        if out.status not in ("not begun", "not listed")
        and not _is_plain_double(out)
    ]
    notes = []
    if waiting:
        notes.append(
            f"{waiting} runs of the grid have not begun; left_out.csv names "
            "them."
        )
    if former:
        notes.append(
            f"{former} runs are not in the grid's present list: they are of "
            "other settings. left_out.csv names them."
        )
    if doubles:
        notes.append(
            f"{doubles} more folders hold a run that another folder holds "
            "too; it is counted once."
        )
    return Table(
        "left_out",
        "Runs that are in no average",
        ["what", "run", "row", "source", "target", "seed", "reason"],
        [
            [
                out.status,
                out.run_id,
                out.label,
                out.source,
                out.target,
                out.seed,
                " ".join(out.reason.split()),
            ]
            for out in shown
        ],
        [Excluded._fields, *left_out],
        notes,
        words=7,
    )


def _is_plain_double(out: Excluded) -> bool:
    return out.status == "double" and "another value" not in out.reason
