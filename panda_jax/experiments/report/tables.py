"""The tables of a report: the paper's wide form, averages, gains, choices."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from panda_jax.experiments import tables
from panda_jax.experiments.report.board import (
    Board,
    Gain,
    Spread,
    published,
    spread,
)
from panda_jax.experiments.report.comparisons import Comparison
from panda_jax.experiments.report.results import Excluded
from panda_jax.experiments.tables import LOST, MISSING, Table, change, points
from panda_jax.transfer.scores import Scores

# Chooses by the very scores that it is judged by.
ORACLE = "oracle"
# The target's own prompt, which the others may not choose.
ITSELF = "itself"


def _cell(found: Spread, *, lost: bool = False, count: bool = False) -> str:
    """Mean and sd; n where it counts, and a mark where a run was lost."""
    mark = LOST * lost
    n = f" ({found.n})" * count
    return f"{_with_sd(found)}{n}{mark}" if found.n else mark or MISSING


def _mean_of(found: Spread, targets: int) -> str:
    """An average over targets; of how many, where some are missing."""
    part = f" ({found.of}/{targets})" * (found.of < targets)
    return MISSING if math.isnan(found.mean) else f"{_with_sd(found)}{part}"


def _with_sd(found: Spread) -> str:
    sd = "" if math.isnan(found.sd) else f" ± {points(found.sd)}"
    return f"{points(found.mean)}{sd}"


def wide(board: Board) -> Table:
    """All rows by target, with averages: the paper's own form.

    Behind several sources of a label stands their mean. Tasks that are none of
    the paper's targets get a second average without them.
    """
    own = tuple(t for t in board.targets if t in published().targets)
    groups = [board.targets]
    ends = ["average"]
    if own and len(own) < len(board.targets):
        groups.append(own)
        ends.append(f"average of the paper's {len(own)}")
    counts = {len(seeds) for seeds in board.cells.values()}
    rows, data = [], []
    for label in board.labels():
        lines = [
            (
                row,
                [board.cell(row, target) for target in board.targets],
                [board.average(row, group) for group in groups],
                [board.is_lost(row, target) for target in board.targets],
                # The n that is not worth a word.
                max(counts) if len(counts) == 1 else 0,
            )
            for row in board.of(label)
        ]
        sources = len(board.done(label))
        if sources > 1:
            row = lines[0][0]._replace(source=f"mean of {sources} sources")
            means = [board.over_sources(label, t) for t in board.targets]
            # What they differ by is no noise.
            means = [found._replace(sd=math.nan) for found in means]
            over = [board.mean_source(label, group) for group in groups]
            lost = [any(c) for c in zip(*(x[3] for x in lines), strict=True)]
            lines.append((row, means, over, lost, sources))
        for row, cells, over, lost, full in lines:
            marked = zip(cells, lost, strict=True)
            shown = [_cell(c, lost=x, count=c.n != full) for c, x in marked]
            rows.append(
                [row.name, *shown, *map(_mean_of, over, map(len, groups))]
            )
            parts = [part for a in over for part in (a.mean, a.of)]
            data.append([*row[1:], *(found.mean for found in cells), *parts])
    columns = [part for end in ends for part in (end, f"{end}: targets")]
    many = f"{max(counts, default=0)} seed{'s' * (counts != {1})}"
    if len(counts) > 1:
        many = f"{min(counts)} to {max(counts)} seeds (in brackets)"
    notes = [
        "Points of 100, higher is better; mean ± standard deviation (n - 1) "
        f"over {many}. That of an average is over the averages of the seeds "
        "that have all of the row's targets. An average over fewer targets "
        "than there are says so, and compares with no other; so does a mean "
        "of fewer sources (in brackets).",
        f"{LOST}: a run of the cell has no result that counts: it failed, is "
        "unfinished or not begun, or cannot be read.",
    ]
    return Table(
        f"results_{board.backbone}",
        f"Results on {board.backbone}",
        ["", *board.targets, *ends],
        rows,
        [["label", "source", *board.targets, *columns], *data],
        notes if board.lost else notes[:1],
    )


def averages(boards: Sequence[Board]) -> Table:
    """Each label's average over targets, of its mean source."""
    uneven = any(board.is_uneven for board in boards)
    rows = []
    for board in boards:
        targets = len(board.targets)
        for label in board.labels():
            members = board.done(label) or board.of(label)
            first, many = members[0], len(members)
            found = board.average(first)
            if many > 1:
                found = board.mean_source(label)
            lost = any(
                board.is_lost(row, target)
                for row in board.of(label)
                for target in board.targets
            )
            shared = _mean_of(board.mean_source(label, common=True), targets)
            sources = str(many) if first.source else MISSING
            row = [board.backbone, label, sources, points(found.mean)]
            row[-1] += LOST * lost
            row += [f"{found.of}/{targets}", shared]
            rows.append(row if uneven else row[:-1])
    head = ["backbone", "row", "sources", "average", "targets"]
    notes = [f"{LOST}: some of its runs have no result that counts."]
    return Table(
        "averages",
        "Average over targets, mean of sources",
        [*head, *["common sources"] * uneven],
        rows,
        notes=notes * any(LOST in row[3] for row in rows),
        words=2,
    )


def source_prompts(boards: Sequence[Board]) -> Iterator[Table]:
    """What the source prompts score on their own tasks, if there are any."""
    lines = [
        (board.backbone, label, task, spread(seeds.values()))
        for board in boards
        for (label, task), seeds in sorted(board.made.items())
    ]
    rows = [[*names, _cell(found), str(found.n)] for *names, found in lines]
    data = [[*names, *found[:3]] for *names, found in lines]
    if lines:
        yield Table(
            "source_prompts",
            "Prompts of the source tasks",
            ["backbone", "row", "task", "score", "seeds"],
            rows,
            [["backbone", "label", "task", "mean", "sd", "n"], *data],
            words=3,
        )


def left_out(runs: Sequence[Excluded]) -> Table:
    """Every run that no average holds; of some kinds only how many."""
    shown: list[Excluded] = []
    counts = dict.fromkeys(("not begun", "not listed", "double"), 0)
    for out in runs:
        # A double with another value is worth a look.
        if out.status in counts and "another value" not in out.reason:
            counts[out.status] += 1
        else:
            shown.append(out)
    texts = {
        "not begun": "runs of the grid have not begun; left_out.csv names "
        "them.",
        "not listed": "runs are not in the grid's present list: they are of "
        "other settings. left_out.csv names them.",
        "double": "more folders hold a run that another folder holds too; it "
        "is counted once.",
    }
    return Table(
        "left_out",
        "Runs that are in no average",
        ["what", "run", "row", "source", "target", "seed", "reason"],
        # Status and name; label to seed; the reason in one line.
        [[*out[:2], *out[5:], " ".join(out.reason.split())] for out in shown],
        [Excluded._fields, *runs],
        [f"{n} {texts[status]}" for status, n in counts.items() if n],
        words=7,
    )


def gain_table(gain: Gain, board: Board) -> Table:
    """The gain of every pair, with averages of both sides."""
    matrix = np.column_stack([gain.matrix, gain.by_source]).tolist()
    lines = [[n, *row] for n, row in zip(gain.sources, matrix, strict=True)]
    columns = gain.matrix.T
    by_target = [spread(c[np.isfinite(c)].tolist()).mean for c in columns]
    lines.append(["mean of sources", *by_target, _mean(gain.by_source)])
    head = ["source", *gain.targets, "average"]
    return Table(
        f"gain_{board.backbone}_{gain.first}_{gain.second}",
        f"{gain.first} minus {gain.second} on {board.backbone}",
        head,
        [[name, *map(change, values)] for name, *values in lines],
        [head, *lines],
        [
            "Points, the mean over the seeds that both have; above 0 = "
            f"{gain.first} is better."
        ],
    )


def _difference(first: str, second: str, tasks: str) -> str:
    return f"{first} - {second}" + ", other tasks only" * (tasks == "other")


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
        mean, least, most = values.mean(), values.min(), values.max()
        low, high = (
            f"{gain.sources[m]} > {gain.targets[n]}"
            for m, n in (known[values.argmin()], known[values.argmax()])
        )
        above = int((values > 0).sum())
        best = int(np.nanargmax(gain.by_source))
        source, greatest = gain.sources[best], float(gain.by_source[best])
        of_pairs = len(values), float(mean), float(least), low, float(most)
        of_sources = _mean(gain.by_source), greatest, source
        of = board.backbone, gain.first, gain.second, tasks
        data.append([*of, *of_pairs, high, above, *of_sources])
        row = [board.backbone, _difference(*of[1:]), change(mean, digits=2)]
        row += [f"{change(least)} ({low})", f"{change(most)} ({high})"]
        row += [f"{above}/{len(values)}", change(of_sources[0], digits=2)]
        rows.append([*row, f"{change(greatest)} ({source})"])
    head = (
        "backbone,gain,mean of pairs,least,greatest,above 0,mean of sources,"
        "greatest of sources"
    )
    names = (
        "backbone,first,second,tasks,pairs,mean,least,least_pair,greatest,"
        "greatest_pair,above_0,mean_by_source,greatest_by_source,best_source"
    )
    return Table(
        "gains",
        "Gain by pair and by source",
        head.split(","),
        rows,
        [names.split(","), *data],
        [
            "A pair is source > target. A source's gain is that of its average "
            "over targets: what the paper's 2.3 and 24.1 are of."
        ],
        words=2,
    )


def above_model_tuning(board: Board) -> Iterator[Table]:
    """Rows against model-tuning, over the targets that both have, if any."""
    rows, data = [], []
    for reference in (row for row in board.rows if row.kind == "model"):
        for row in (row for row in board.rows if row.kind != "model"):
            pairs = [
                (board.cell(row, t).mean, board.cell(reference, t).mean)
                for t in board.targets
                if (row, t) in board.cells and (reference, t) in board.cells
            ]
            if not pairs:
                continue
            ours, theirs = map(statistics.fmean, zip(*pairs, strict=True))
            more, won = ours - theirs, sum(a > b for a, b in pairs)
            names = board.backbone, *row[1:], reference.label
            data.append([*names, more, won, len(pairs)])
            if more > 0:
                shown = change(more, digits=2), f"{won}/{len(pairs)}"
                rows.append([row.name, *shown])
    names = "backbone,label,source,against,difference,targets_won,targets"
    note = (
        f"{len(rows)} of {len(data)} rows have a better average than "
        "model-tuning over the targets that both have."
    )
    if data:
        yield Table(
            f"above_model_tuning_{board.backbone}",
            f"Rows above model-tuning on {board.backbone}",
            ["row", "above by", "targets won"],
            rows,
            [names.split(","), *data],
            [note],
        )


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


class Choice(NamedTuple):
    """A target's source by one way to choose.

    Attributes:
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


def choose(board: Board, label: str, scores: Scores | None) -> list[Choice]:
    """The best other source of every target: by what it did, and by metrics.

    A metric chooses among the sources that it has scored. The target's own
    prompt cannot be chosen (every similarity is 1 there) and stands beside the
    others as `itself`. Targets with fewer than two other sources are left out.
    """
    found = []
    for target in board.targets:
        did = _did(board, label, target)
        own = did.pop(target, None)
        if len(did) < 2:
            continue
        best = max(did.values())
        marks = {ORACLE: did}
        if scores is not None and target in scores.targets:
            n = scores.targets.index(target)
            for metric, values in scores.values.items():
                column = zip(scores.sources, values[:, n].tolist(), strict=True)
                each = {s: v for s, v in column if not math.isnan(v)}
                marks[metric] = {s: each[s] for s in did if s in each}
        for chooser, given in marks.items():
            chosen = tuple(s for s in given if given[s] == max(given.values()))
            if chosen:
                value = statistics.fmean(did[source] for source in chosen)
                one = target, chooser, chosen, value, value - best
                found.append(Choice(*one))
        if own is not None:
            found.append(Choice(target, ITSELF, (target,), own, own - best))
    return found


def _did(board: Board, label: str, target: str) -> dict[str, float]:
    return {
        row.source: board.cell(row, target).mean
        for row in board.of(label)
        if (row, target) in board.cells
    }


def choice_table(
    board: Board, label: str, scores: Scores | None
) -> Iterator[Table]:
    """Targets down, choosers across, and the mean source, if there are two."""
    choices = choose(board, label, scores)
    if not choices:
        return
    by = {(one.target, one.chooser): one for one in choices}
    targets = list(dict.fromkeys(one.target for one in choices))
    choosers = list(dict.fromkeys(one.chooser for one in choices))
    choosers.sort(key=lambda name: name == ITSELF)
    means, rows = [], []
    for target in targets:
        others = _did(board, label, target)
        others.pop(target, None)
        means.append(statistics.fmean(others.values()))
        shown = [_shown(by.get((target, chooser))) for chooser in choosers]
        rows.append([target, *shown, points(means[-1])])
    last = ["average"]
    for chooser in choosers:
        own = [one for one in choices if one.chooser == chooser]
        last.append(points(statistics.fmean(one.value for one in own)))
        if chooser != ORACLE:
            behind = statistics.fmean(one.behind for one in own)
            last[-1] += f" ({change(behind)})"
        if len(own) < len(targets):
            last[-1] += f", {len(own)}/{len(targets)} targets"
    rows.append([*last, points(statistics.fmean(means))])
    names = "backbone,label,target,chooser,source,score,behind_the_best"
    data = [
        [board.backbone, label, *one[:2], "|".join(one.sources), *one[3:]]
        for one in choices
    ]
    yield Table(
        f"best_source_{board.backbone}_{label}",
        f"Best source of {label} on {board.backbone}",
        ["target", *choosers, "mean other source"],
        rows,
        [names.split(","), *data],
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
    names = "/".join(choice.sources[:2])
    if len(choice.sources) > 2:
        names += f" and {len(choice.sources) - 2} more"
    names = f"{names} " * (choice.chooser != ITSELF)
    return f"{names}{points(choice.value)}{behind}"


def comparison_table(
    comparisons: Sequence[Comparison],
    stem: str = "comparisons",
    title: str = "Differences, paired",
) -> Table:
    """Each comparison with its interval, p, and what they hold for."""
    rows = []
    for one in comparisons:
        row = [one.backbone or "all", _difference(*one[1:4])]
        row += map(str, (one.targets, one.sources, one.seeds, one.pairs))
        bounds = tables.interval(one.low, one.high)
        row += [change(one.difference, digits=2), bounds]
        row += map(tables.chance, (one.p, one.holm))
        rows.append([*row, one.holds_for, one.caution])
    head = (
        "backbone,difference,targets,sources,seeds,pairs,points,interval,p,"
        "Holm,holds for,caution"
    )
    data = [[*one[:8], "|".join(one.unpaired), *one[9:]] for one in comparisons]
    data = [Comparison._fields, *data]
    return Table(stem, title, head.split(","), rows, data, words=2, ends=2)


class Beside(NamedTuple):
    """A cell of ours, the mean over n seeds, and the paper's, in points."""

    backbone: str
    label: str
    source: str
    target: str
    ours: float
    n: int
    published: float
    difference: float


def beside(boards: Sequence[Board]) -> list[Beside]:
    """Every cell that both have; PANDA's recipes each beside the paper's."""
    cells = published().cells
    found = []
    for board in boards:
        for row in board.rows:
            for target in board.targets:
                ours = board.cell(row, target)
                place = board.backbone, row.kind, row.source, target
                printed = cells.get(place, math.nan)
                if ours.n and not math.isnan(printed):
                    place = board.backbone, row.label, row.source, target
                    both = ours.mean, ours.n, printed, ours.mean - printed
                    found.append(Beside(*place, *both))
    return found


def beside_tables(boards: Sequence[Board]) -> Iterable[Table]:
    """A summary, and the differences of each backbone in the wide form."""
    found = beside(boards)
    groups: dict[tuple[str, str], list[Beside]] = {}
    for one in found:
        groups.setdefault((one.backbone, one.label), []).append(one)
    rows = []
    for names, members in groups.items():
        far = max(members, key=lambda one: abs(one.difference))
        place = f"{far.source} > {far.target}".removeprefix(" > ")
        ours, _, printed, apart = zip(*(m[4:] for m in members), strict=True)
        means = map(points, map(statistics.fmean, (ours, printed)))
        size = points(statistics.fmean(map(abs, apart)))
        most = f"{change(far.difference)} ({place})"
        apart = change(statistics.fmean(apart))
        rows.append([*names, str(len(members)), *means, apart, size, most])
    if rows:
        head = "backbone,row,cells,ours,published,difference,size,greatest"
        yield Table(
            "published_cells",
            "Ours minus published, over the cells that both have",
            head.split(","),
            rows,
            [Beside._fields, *found],
            ["Means over these cells; size: of the differences without sign."],
            words=2,
        )
    for board in boards:
        own = [one for one in found if one.backbone == board.backbone]
        by = {(c.label, c.source, c.target): c.difference for c in own}
        targets = {c.target for c in own}
        targets = [t for t in board.targets if t in targets]
        rows = []
        for row in board.rows:
            values = [by.get((*row[1:], t), math.nan) for t in targets]
            if not all(map(math.isnan, values)):
                rows.append([row.name, *map(change, values)])
        if own:
            yield Table(
                f"published_differences_{board.backbone}",
                f"Ours minus published on {board.backbone}",
                ["", *targets],
                rows,
            )
