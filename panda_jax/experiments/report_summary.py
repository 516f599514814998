"""The first section of a report: what is done, and the averages."""

import math
from collections.abc import Iterator, Sequence

from panda_jax.experiments import agreement
from panda_jax.experiments.board import Board
from panda_jax.experiments.comparisons import Comparison
from panda_jax.experiments.layout import (
    LOST,
    MISSING,
    Section,
    Table,
    chance,
    change,
    interval,
    mean_of,
    points,
)
from panda_jax.experiments.results import Results


def summary(
    results: Results, boards: Sequence[Board], comparisons: Sequence[Comparison]
) -> Section:
    """The first thing that is read: how many runs, and the averages."""
    counts = {
        status: sum(out.status == status for out in results.left_out)
        for status in (
            "failed",
            "unfinished",
            "not begun",
            "unreadable",
            "not listed",
            "other metric",
            "other",
        )
    }
    lost = [f"{n} {status}" for status, n in counts.items() if n]
    value = {
        "best": "best evaluation on the development split",
        "final": "last evaluation",
        "first_epoch": "evaluation after the first epoch",
    }[results.value]
    text = [
        f"{len(results.runs)} runs are done, "
        + (f"{', '.join(lost)} (named at the end)." if lost else "none lost."),
        *agreement.warnings(results.runs, results.left_out),
        f"A run's score is that of its {value}, in points of 100.",
        *agreement.fixed_rows(results.runs),
        *_cautions(boards),
        *_in_words(comparisons),
    ]
    return Section("Summary", text, [_averages(boards)])


def _cautions(boards: Sequence[Board]) -> Iterator[str]:
    """What the averages do not tell."""
    if any(board.is_incomplete for board in boards):
        yield (
            "Not every row has every target and seed, so that averages are of "
            "different runs. Gains and statistics compare only what both have."
        )
    for board in boards:
        if board.labels("panda") and not board.labels("control"):
            yield (
                f"{board.backbone} has no control (PANDA with weight 0): what "
                "its settings do is not told apart from what the distillation "
                "does."
            )
        for first, second in board.identical():
            yield (
                f"{first} is identical to {second} on {board.backbone} in "
                "every run that both have, as it is with equal settings: it "
                "tells nothing new."
            )
    own = sum(
        len(board.own_tasks(n)) for board in boards for n in board.labels()
    )
    if own:
        yield (
            f"Cells of a task with its own prompt as source: {own}. As in the "
            "paper they are in all averages, gains and statistics; rows "
            '"other tasks only" under Statistics are without them.'
        )
    if any(board.is_uneven for board in boards):
        yield (
            "PoT and PANDA lack results of different sources, so that their "
            'averages do not compare. Those in the column "common sources" '
            "do: of each target they are over the sources that all have."
        )


def _averages(boards: Sequence[Board]) -> Table:
    uneven = any(board.is_uneven for board in boards)
    rows = []
    for board in boards:
        for label in board.labels():
            members = board.done(label) or board.of(label)
            sources = str(len(members)) if members[0].source else MISSING
            found = board.average(members[0])
            if len(members) > 1:
                found = board.mean_source(label)
            lost = any(
                board.is_lost(row, target)
                for row in board.of(label)
                for target in board.targets
            )
            shared = board.mean_source(label, common=True)
            rows.append(
                [
                    board.backbone,
                    label,
                    sources,
                    points(found.mean) + LOST * lost,
                    f"{found.of}/{len(board.targets)}",
                    *[mean_of(shared, len(board.targets))] * uneven,
                ]
            )
    notes = [f"{LOST}: some of its runs have no result that counts."]
    return Table(
        "averages",
        "Average over targets, mean of sources",
        [
            *("backbone", "row", "sources", "average", "targets"),
            *["common sources"] * uneven,
        ],
        rows,
        notes=notes * any(LOST in row[3] for row in rows),
        words=2,
    )


def _in_words(comparisons: Sequence[Comparison]) -> list[str]:
    """Each comparison as a sentence, those over all backbones if any."""
    comparisons = [one for one in comparisons if one.tasks == "all"]
    overall = [one for one in comparisons if not one.backbone]
    return [_sentence(one) for one in overall or comparisons]


def _sentence(one: Comparison) -> str:
    """A difference with what it holds for, and its caution beside it."""
    where = f" on {one.backbone}" if one.backbone else ""
    told = (
        f"{one.first} minus {one.second}{where}: "
        f"{change(one.difference, digits=2)} points"
    )
    if not math.isnan(one.p):
        told += (
            f" {interval(one.low, one.high)}, p = {chance(one.holm)} "
            f"(Holm, {one.tests} test{'s' * (one.tests != 1)}), for "
            f"{one.holds_for}"
        )
    return f"{told} ({one.caution})." if one.caution else f"{told}."
