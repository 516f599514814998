"""The sections of a report, from what was found."""

from collections.abc import Iterable, Sequence

from panda_jax.experiments import (
    choices,
    gain_tables,
    paper_tables,
    report_tables,
)
from panda_jax.experiments.board import Board, Gain
from panda_jax.experiments.comparisons import Comparison, compare
from panda_jax.experiments.layout import (
    Picture,
    Section,
    Table,
    chance,
    change,
    interval,
)
from panda_jax.experiments.results import Results
from panda_jax.scores import Scores


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
    confidence: float,
) -> Section:
    tables = [gain_tables.gain_summary(gains)] if gains else []
    if comparisons:
        tables.append(_comparison_table(comparisons))
    text = [
        "Runs are compared in pairs of the same target and seed, and of the "
        "same source where both have one; then the mean over seeds, over "
        "sources, over targets, over backbones.",
        f"[low, high]: {100 * confidence:g}% interval. Targets and seeds are "
        "crossed, since a seed's source prompt serves all targets: both are "
        "random, by their sums of squares, with Satterthwaite's degrees of "
        "freedom. Sources and backbones are these. With fewer than 3 seeds, "
        "or targets, it holds for these alone, as its line says; with fewer "
        "of both there is none.",
        "Holm: p corrected for the comparisons of the same backbone; of "
        f"{len(comparisons)} in this report, in as many families as there are "
        "backbones (and all, and other tasks only).",
    ]
    if any(one.tasks == "other" for one in comparisons):
        text.append(
            "Other tasks only: without sources of the target's own name; "
            "corrected among themselves."
        )
    text += [
        f"{one.first} - {one.second} on {one.backbone or 'all'} has the very "
        f"differences of {one.first} - {one.same_as}: Holm counts them once."
        for one in comparisons
        if one.same_as and one.tasks == "all"
    ]
    unpaired = [
        one
        for one in comparisons
        if one.unpaired and one.backbone and one.tasks == "all"
    ]
    text += [
        f"{one.first} - {one.second} on {one.backbone}: {len(one.unpaired)} "
        f"runs have no partner: {', '.join(one.unpaired[:8])}"
        + (", ..." if len(one.unpaired) > 8 else ".")
        for one in unpaired
    ]
    return Section("Statistics", text, tables)


def _comparison_table(
    comparisons: Sequence[Comparison],
    stem: str = "comparisons",
    title: str = "Differences, paired",
) -> Table:
    rows = [
        [
            one.backbone or "all",
            f"{one.first} - {one.second}"
            + ", other tasks only" * (one.tasks == "other"),
            *map(str, (one.targets, one.sources, one.seeds, one.pairs)),
            change(one.difference, digits=2),
            interval(one.low, one.high),
            *map(chance, (one.p, one.holm)),
            one.holds_for,
            one.caution,
        ]
        for one in comparisons
    ]
    at = Comparison._fields.index("unpaired")
    head = (
        "backbone,difference,targets,sources,seeds,pairs,points,interval,p,"
        "Holm,holds for,caution"
    )
    return Table(
        stem,
        title,
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
        ends=2,
    )


def published(boards: Sequence[Board], confidence: float) -> Section:
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
        [
            *tables,
            paper_tables.headline_table(),
            _comparison_table(
                compare(paper_tables.boards(), confidence=confidence),
                "published_comparisons",
                "The paper's differences, by the statistics above",
            ),
            paper_tables.doubts_table(),
        ],
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
