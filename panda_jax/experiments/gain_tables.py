"""What PANDA gains over PoT, and which rows beat model-tuning."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from panda_jax.experiments.board import Board, Gain
from panda_jax.experiments.layout import Table, change
from panda_jax.experiments.summaries import spread


def gain_table(gain: Gain, board: Board, stem: str) -> Table:
    """The gain of every pair, with averages of both sides."""
    by_target = [
        spread(column[np.isfinite(column)].tolist()).mean
        for column in gain.matrix.T
    ]
    lines = [
        *zip(
            gain.sources,
            gain.matrix.tolist(),
            gain.by_source.tolist(),
            strict=True,
        ),
        ("mean of sources", by_target, _mean(gain.by_source)),
    ]
    rows = [
        [name, *map(change, values), change(mean)]
        for name, values, mean in lines
    ]
    return Table(
        stem,
        f"{gain.first} minus {gain.second} on {board.backbone}",
        ["source", *gain.targets, "average"],
        rows,
        [
            ["source", *gain.targets, "average"],
            *([name, *values, mean] for name, values, mean in lines),
        ],
        [
            "Points, the mean over the seeds that both have; above 0 = "
            f"{gain.first} is better."
        ],
    )


def gain_summary(gains: Sequence[tuple[Board, Gain]]) -> Table:
    """Mean, least and greatest gain: of pairs, and of sources as the paper."""
    rows, data = [], []
    scopes = []
    for board, gain in gains:
        scopes.append((board, gain, "all"))
        if np.isfinite(gain.matrix[gain.own]).any():
            scopes.append((board, gain.other_tasks(), "other"))
    for board, gain, tasks in scopes:
        known = np.argwhere(np.isfinite(gain.matrix))
        if not len(known):
            continue
        values = gain.matrix[tuple(known.T)]
        low, high = (known[i] for i in (values.argmin(), values.argmax()))
        best = int(np.nanargmax(gain.by_source))
        numbers = [
            len(values),
            float(values.mean()),
            float(values.min()),
            _pair(gain, low),
            float(values.max()),
            _pair(gain, high),
            int((values > 0).sum()),
            _mean(gain.by_source),
            float(gain.by_source[best]),
            gain.sources[best],
        ]
        data.append([board.backbone, gain.first, gain.second, tasks, *numbers])
        rows.append(
            [
                board.backbone,
                f"{gain.first} - {gain.second}"
                + ", other tasks only" * (tasks == "other"),
                change(values.mean(), digits=2),
                f"{change(values.min())} ({_pair(gain, low)})",
                f"{change(values.max())} ({_pair(gain, high)})",
                f"{numbers[6]}/{len(values)}",
                change(_mean(gain.by_source), digits=2),
                f"{change(gain.by_source[best])} ({gain.sources[best]})",
            ]
        )
    names = (
        "backbone,first,second,tasks,pairs,mean,least,least_pair,greatest,"
        "greatest_pair,above_0,mean_by_source,greatest_by_source,best_source"
    )
    return Table(
        "gains",
        "Gain by pair and by source",
        [
            "backbone",
            "gain",
            "mean of pairs",
            "least",
            "greatest",
            "above 0",
            "mean of sources",
            "greatest of sources",
        ],
        rows,
        [names.split(","), *data],
        [
            "A pair is source > target. A source's gain is that of its average "
            "over targets: what the paper's 2.3 and 24.1 are of."
        ],
        words=2,
    )


def beats(board: Board) -> Table | None:
    """Rows against model-tuning, over the targets that both have."""
    references = [row for row in board.rows if row.kind == "model"]
    if not references or len(board.rows) == len(references):
        return None
    rows, data = [], []
    for reference in references:
        for row in board.rows:
            if row.kind == "model":
                continue
            both = [
                t
                for t in board.targets
                if (row, t) in board.cells and (reference, t) in board.cells
            ]
            if not both:
                continue
            ours, theirs = (
                [board.cell(one, t).mean for t in both]
                for one in (row, reference)
            )
            more = statistics.fmean(ours) - statistics.fmean(theirs)
            won = sum(a > b for a, b in zip(ours, theirs, strict=True))
            data.append(
                [
                    board.backbone,
                    *row[1:],
                    reference.label,
                    more,
                    won,
                    len(both),
                ]
            )
            if more > 0:
                rows.append(
                    [row.name, change(more, digits=2), f"{won}/{len(both)}"]
                )
    if not data:
        return None
    names = "backbone,label,source,against,difference,targets_won,targets"
    return Table(
        f"above_model_tuning_{board.backbone}",
        f"Rows above model-tuning on {board.backbone}",
        ["row", "above by", "targets won"],
        rows,
        [names.split(","), *data],
        [
            f"{len(rows)} of {len(data)} rows have a better average than "
            "model-tuning over the targets that both have."
        ],
    )


def _pair(gain: Gain, place: np.ndarray) -> str:
    return f"{gain.sources[place[0]]} > {gain.targets[place[1]]}"


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
