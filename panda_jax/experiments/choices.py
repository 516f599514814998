"""Which source would each metric have chosen, and what would that have cost?"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from panda_jax.experiments.board import Board
from panda_jax.experiments.layout import MISSING, Table, change, points
from panda_jax.scores import Scores


class Choice(NamedTuple):
    """A target's source by one way to choose.

    Attributes:
      target: the target task.
      chooser: a metric, "oracle" or "itself".
      sources: the chosen one, or several that tie.
      value: what it did (the mean of those that tie), points.
      behind: that minus what the oracle's did: 0 or below, but for "itself".
    """

    target: str
    chooser: str
    sources: tuple[str, ...]
    value: float
    behind: float


# Chooses by the very scores that it is judged by.
ORACLE = "oracle"
# The target's own prompt, which the others may not choose.
ITSELF = "itself"


def choose(board: Board, label: str, scores: Scores | None) -> list[Choice]:
    """The best other source of every target: by what it did, and by metrics.

    The target's own prompt cannot be chosen (every similarity is 1 there) and
    stands beside the others as `itself`. Targets with fewer than two other
    sources are left out.

    Args:
      board: one backbone's results.
      label: of the transfers.
      scores: of any metrics; None for the oracle alone. A metric chooses among
        the sources that it has scored.
    """
    found = []
    for target in board.targets:
        did = _did(board, label, target)
        own = did.pop(target, None)
        if len(did) < 2:
            continue
        best = max(did.values())
        marks = {ORACLE: did}
        for metric in scores.values if scores else ():
            marks[metric] = _scored(scores, metric, target, did)
        for chooser, given in marks.items():
            chosen = tuple(s for s in given if given[s] == max(given.values()))
            if chosen:
                value = statistics.fmean(did[source] for source in chosen)
                found.append(
                    Choice(target, chooser, chosen, value, value - best)
                )
        if own is not None:
            found.append(Choice(target, ITSELF, (target,), own, own - best))
    return found


def _did(board: Board, label: str, target: str) -> dict[str, float]:
    return {
        row.source: board.cell(row, target).mean
        for row in board.of(label)
        if (row, target) in board.cells
    }


def _scored(
    scores: Scores | None, metric: str, target: str, did: dict[str, float]
) -> dict[str, float]:
    if scores is None or target not in scores.targets:
        return {}
    column = scores.values[metric][:, scores.targets.index(target)].tolist()
    marks = dict(zip(scores.sources, column, strict=True))
    return {s: marks[s] for s in did if not math.isnan(marks.get(s, math.nan))}


def choice_table(
    board: Board, label: str, scores: Scores | None
) -> Table | None:
    """Targets down, choosers across, and what the mean source did.

    Returns:
      The table; None where no target has two sources.
    """
    choices = choose(board, label, scores)
    if not choices:
        return None
    by = {(one.target, one.chooser): one for one in choices}
    targets = list(dict.fromkeys(one.target for one in choices))
    choosers = list(dict.fromkeys(one.chooser for one in choices))
    choosers.sort(key=lambda name: name == ITSELF)
    means = {}
    for target in targets:
        others = _did(board, label, target)
        others.pop(target, None)
        means[target] = statistics.fmean(others.values())
    rows = [
        [
            target,
            *(_shown(by.get((target, chooser))) for chooser in choosers),
            points(means[target]),
        ]
        for target in targets
    ]
    rows.append(["average", *_averages(choices, choosers, targets)])
    rows[-1].append(points(statistics.fmean(means.values())))
    names = "backbone,label,target,chooser,source,score,behind_the_best"
    return Table(
        f"best_source_{board.backbone}_{label}",
        f"Best source of {label} on {board.backbone}",
        ["target", *choosers, "mean other source"],
        rows,
        [
            names.split(","),
            *(
                [
                    board.backbone,
                    label,
                    c.target,
                    c.chooser,
                    "|".join(c.sources),
                ]
                + [c.value, c.behind]
                for c in choices
            ),
        ],
        [
            "Points of the source chosen among the other tasks', and in "
            "brackets how far from the best. The oracle chooses by the very "
            "scores that are shown, so that it flatters itself; sources that "
            "tie count with their mean. Itself: the target's own prompt."
        ],
    )


def _shown(choice: Choice | None) -> str:
    if choice is None:
        return MISSING
    behind = f" ({change(choice.behind)})" if choice.chooser != ORACLE else ""
    if choice.chooser == ITSELF:
        return f"{points(choice.value)}{behind}"
    sources = "/".join(choice.sources[:2])
    more = len(choice.sources) - 2
    sources += f" and {more} more" if more > 0 else ""
    return f"{sources} {points(choice.value)}{behind}"


def _averages(
    choices: Sequence[Choice], choosers: Sequence[str], targets: Sequence[str]
) -> list[str]:
    shown = []
    for chooser in choosers:
        own = [one for one in choices if one.chooser == chooser]
        mean = statistics.fmean(one.value for one in own)
        behind = statistics.fmean(one.behind for one in own)
        part = f" ({change(behind)})" if chooser != ORACLE else ""
        if len(own) < len(targets):
            part += f", {len(own)}/{len(targets)} targets"
        shown.append(f"{points(mean)}{part}")
    return shown
