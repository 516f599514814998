"""The sections of a report, from what was found."""

from collections.abc import Iterable, Sequence

from panda_jax.experiments import (
    agreement,
    choices,
    gain_tables,
    paper_tables,
    report_tables,
)
from panda_jax.experiments.boards import Board, Gain
from panda_jax.experiments.comparisons import Comparison
from panda_jax.experiments.layout import (
    MISSING,
    Picture,
    Section,
    Table,
    chance,
    change,
    interval,
    points,
)
from panda_jax.experiments.results import Results
from panda_jax.scores import Scores


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
    text = [
        f"{len(results.runs)} runs are done, "
        + (f"{', '.join(lost)} (named at the end)." if lost else "none lost.")
    ]
    value = {
        "best": "best evaluation on the development split",
        "final": "last evaluation",
        "first_epoch": "evaluation after the first epoch",
    }[results.value]
    text += agreement.warnings(results.runs, results.left_out)
    text.append(f"A run's score is that of its {value}, in points of 100.")
    if any(board.is_incomplete for board in boards):
        text.append(
            "Not every row has every target and seed, so that averages are of "
            "different runs. Gains and statistics compare only what both have."
        )
    text += [
        f"{board.backbone} has no control (PANDA with weight 0): what its "
        "settings do is not told apart from what the distillation does."
        for board in boards
        if board.labels("panda") and not board.labels("control")
    ]
    rows = []
    for board in boards:
        for label in board.labels():
            members = board.done(label) or board.of(label)
            several = len(members) > 1
            found = board.average(members[0])
            if several:
                found = board.mean_source(label)
            rows.append(
                [
                    board.backbone,
                    label,
                    str(len(members)) if members[0].source else MISSING,
                    points(found.mean),
                    f"{found.of}/{len(board.targets)}",
                ]
            )
    table = Table(
        "averages",
        "Average over targets, mean of sources",
        ["backbone", "row", "sources", "average", "targets"],
        rows,
        words=2,
    )
    return Section("Summary", [*text, *_in_words(comparisons)], [table])


def _in_words(comparisons: Sequence[Comparison]) -> list[str]:
    """Each comparison as a sentence, those over all backbones if any."""
    overall = [one for one in comparisons if not one.backbone]
    return [
        f"{one.first} minus {one.second}"
        + (f" on {one.backbone}" if one.backbone else "")
        + f": {change(one.difference, digits=2)} points "
        f"{interval(one.low, one.high)}, p = {chance(one.holm)} over "
        f"targets, {chance(one.holm_seeds)} over seeds of these targets (Holm)."
        for one in overall or comparisons
    ]


def of_backbone(
    board: Board,
    gains: Sequence[tuple[Board, Gain]],
    scores: Scores | None,
    drawn: Sequence[Picture],
) -> Section:
    if not board.rows:
        return Section(board.backbone, ["Nothing but source prompts so far."])
    tables = [report_tables.wide(board, f"results_{board.backbone}")]
    for owner, gain in gains:
        if owner is board:
            stem = f"gain_{board.backbone}_{gain.first}_{gain.second}"
            tables.append(gain_tables.gain_table(gain, board, stem))
    tables += filter(
        None,
        (
            gain_tables.beats(board),
            *(
                choices.choice_table(board, label, scores)
                for label in board.labels("pot", "panda")
            ),
        ),
    )
    return Section(board.backbone, (), tables, drawn)


def statistics(
    boards: Sequence[Board],
    gains: Sequence[tuple[Board, Gain]],
    comparisons: Sequence[Comparison],
    resamples: int,
    confidence: float,
) -> Section:
    tables = [gain_tables.gain_summary(gains)] if gains else []
    if comparisons:
        tables.append(_comparison_table(comparisons))
    fewest = min((one.targets for one in comparisons), default=0)
    text = [
        "Runs are compared in pairs of the same target and seed, and of the "
        "same source where both have one; then the mean over seeds, over "
        "sources, over targets, over backbones.",
        f"[low, high]: {100 * confidence:g}% bootstrap, {resamples} resamples, "
        "of targets and sources by name and of the seeds within each target.",
        "p (targets): the sign of all of a target's differences is flipped at "
        "once, all backbones together: what other targets would show. With N "
        "targets it is at least 2 / 2^N. p (seeds): each target's seeds are "
        "flipped: what other seeds of these targets would show. Holm: "
        "corrected for the comparisons of the same backbone.",
    ]
    if 0 < fewest < 6:
        text.append(
            f"With {fewest} target{'s' * (fewest > 1)} p (targets) is at least "
            f"{min(1.0, 2 / 2**fewest):.4f}, and the interval is too narrow: "
            "so few cannot speak for other tasks."
        )
    unpaired = [one for one in comparisons if one.unpaired and one.backbone]
    text += [
        f"{one.first} - {one.second} on {one.backbone}: {len(one.unpaired)} "
        f"runs have no partner: {', '.join(one.unpaired[:8])}"
        + (", ..." if len(one.unpaired) > 8 else ".")
        for one in unpaired
    ]
    return Section("Statistics", text, tables)


def _comparison_table(comparisons: Sequence[Comparison]) -> Table:
    rows = [
        [
            one.backbone or "all",
            f"{one.first} - {one.second}",
            change(one.difference, digits=2),
            interval(one.low, one.high),
            *map(chance, (one.p, one.holm, one.p_seeds, one.holm_seeds)),
            *map(str, (one.targets, one.sources, one.seeds, one.pairs)),
        ]
        for one in comparisons
    ]
    at = Comparison._fields.index("unpaired")
    head = (
        "backbone,difference,points,interval,p (targets),Holm,p (seeds),Holm,"
        "targets,sources,seeds,pairs"
    )
    return Table(
        "comparisons",
        "Differences, paired",
        head.split(","),
        rows,
        [
            Comparison._fields,
            *(
                [*one[:at], "|".join(one.unpaired), *one[at + 1 :]]
                for one in comparisons
            ),
        ],
        words=2,
    )


def published(boards: Sequence[Board]) -> Section:
    tables = paper_tables.beside_tables(boards)
    text = (
        []
        if tables
        else [
            "No cell is in both: the paper has BERT-large to BERT-tiny "
            "(bert-large ... bert-tiny here) on its nine targets."
        ]
    )
    return Section(
        "Beside the published numbers",
        text,
        [*tables, paper_tables.headline_table(), paper_tables.doubts_table()],
    )


def rest(results: Results, boards: Sequence[Board]) -> Iterable[Section]:
    made = report_tables.made_table(boards)
    if made:
        yield Section("Source prompts", (), [made])
    text = (
        [] if results.left_out else ["None: every run that was found counts."]
    )
    table = report_tables.left_out_table(results.left_out)
    yield Section("Left out", text, [table] * bool(results.left_out))
