"""The sections of a report, from what was found."""

from collections.abc import Iterable, Sequence

from panda_jax.experiments import (
    choices,
    gain_tables,
    paper_tables,
    report_tables,
)
from panda_jax.experiments.board import Board, Gain
from panda_jax.experiments.comparisons import Comparison
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
        "of targets, sources and seeds by name: a seed's source prompt serves "
        "all targets, so that these are no independent witnesses of it.",
        "p (targets): the sign of all of a target's differences is flipped at "
        "once, all backbones together: what other targets would show. With N "
        "targets it is at least 2 / 2^N. p (seeds): that of all of a seed's "
        "differences, all targets together: what other seeds of these targets "
        "would show. With K seeds it is at least 2 / 2^K. Holm: corrected for "
        "the comparisons of the same backbone.",
    ]
    if 0 < fewest < 6:
        text.append(
            f"With {fewest} target{'s' * (fewest > 1)} p (targets) is at least "
            f"{min(1.0, 2 / 2**fewest):.4f}, and the interval is too narrow: "
            "so few cannot speak for other tasks."
        )
    seeds = max((one.seeds for one in comparisons), default=0)
    if 0 < seeds < 6:
        text.append(
            f"With {seeds} seed{'s' * (seeds > 1)} p (seeds) is at least "
            f"{min(1.0, 2 / 2**seeds):.4f}."
        )
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


def _comparison_table(comparisons: Sequence[Comparison]) -> Table:
    rows = [
        [
            one.backbone or "all",
            f"{one.first} - {one.second}"
            + ", other tasks only" * (one.tasks == "other"),
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
