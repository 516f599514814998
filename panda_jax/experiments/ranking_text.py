"""A ranking report as text: averages first, then where they come from."""

import math
from collections.abc import Callable, Sequence

from panda_jax.experiments.findings import (
    CHANCE,
    Comparison,
    Estimate,
    Findings,
)

WIDTH = 100
# Behind an interval of few targets or sources.
FEW_MARK = "(!)"


def text(report: Findings) -> str:
    """The whole report, in blocks of about `WIDTH` characters."""
    blocks = [
        _heading(report),
        *_averages(report),
        *_where(report),
        *_comparisons(report),
        _ceiling(report),
        _left_out(report),
    ]
    return "\n\n".join(block for block in blocks if block)


def _heading(report: Findings) -> str:
    about = report.about
    many = len(report.backbones) > 1
    backbones = f"{len(report.backbones)} backbones x " if many else ""
    own = about["self_pairs"]
    counted = f"{own} self-pairs included" if own else "no self-pairs"
    if not about["include_self"]:
        counted = "self-pairs left out"
    return (
        f"{backbones}{len(report.targets)} targets, {about['sources']} "
        f"sources: {about['pairs']} pairs, {counted}.\n"
        f"[low, high]: {100 * about['confidence']:g}%, over other sources and "
        "targets: spearman and tau by\ncrossed variances, the others by "
        f"{about['resamples']} resamples.\n"
        "p: one-sided, Spearman against sources shuffled alike for all targets "
        f"({about['permutations']} times)."
        + ("\nself: pairs of a task with itself." if report.other_self else "")
        + "".join(f"\n{FEW_MARK}: {caution}." for caution in _cautions(report))
    )


def _cautions(report: Findings) -> list[str]:
    """Of the intervals that are marked, but a single target's."""
    marked = [e for e in report.estimates if not e.target]
    return sorted({e.caution for e in marked} - {""})


def _averages(report: Findings) -> list[str]:
    rows = list(dict.fromkeys(e.metric for e in report.estimates))
    average = {
        (e.metric, e.statistic): e
        for e in report.estimates
        if not e.backbone and not e.target
    }
    columns: dict[str, Callable[[str], str]] = {
        "spearman": lambda row: _bounds(average[row, "spearman"]),
        "p": lambda row: _p(average[row, "spearman"].p),
    }
    if report.other_self:
        other = "no self" if report.about["include_self"] else "with self"
        columns[other] = lambda row: (
            _number(report.other_self[row]) if row in report.other_self else ""
        )
    total = report.about["cells"]
    if any(
        e.cells < total for e in average.values() if e.metric in report.metrics
    ):
        columns["of targets"] = lambda row: (
            f"{average[row, 'spearman'].cells}/{total}"
        )
    for name in dict.fromkeys(e.statistic for e in report.estimates):
        if name != "spearman":
            columns[name] = lambda row, name=name: _bounds(average[row, name])
    title = (
        "Mean over targets"
        + (", then backbones" if len(report.backbones) > 1 else "")
        + "; higher is better, but for regret"
    )
    return _grid(title, rows, columns)


def _where(report: Findings) -> list[str]:
    """Spearman by backbone and by target."""
    found = {
        (e.metric, e.backbone, e.target): e
        for e in report.estimates
        if e.statistic == "spearman"
    }
    metrics = [m for m in dict.fromkeys(key[0] for key in found) if m != CHANCE]

    def columns(of: Callable[[str], tuple[str, str]]) -> dict:
        return {
            metric: lambda row, m=metric: _bounds(found[m, *of(row)])
            for metric in metrics
        }

    blocks = []
    if len(report.backbones) > 1:
        blocks += _grid(
            "Spearman by backbone",
            report.backbones,
            columns(lambda row: (row, "")),
        )
    return blocks + _grid(
        "Spearman by target (intervals over sources alone)",
        report.targets,
        columns(lambda row: ("", row)),
    )


def _comparisons(report: Findings) -> list[str]:
    rows: dict[str, Comparison] = {
        f"{c.first} - {c.second}": c
        for c in report.comparisons
        if c.statistic == "spearman"
    }
    if not rows:
        return []
    columns: dict[str, Callable[[str], str]] = {
        "difference": lambda row: (
            f"{_number(rows[row].difference)}{_interval(rows[row])}"
        ),
        "p": lambda row: _p(rows[row].p),
        "Holm": lambda row: _p(rows[row].holm),
    }
    return _grid(
        "Differences of Spearman (p: two-sided, other sources and targets)",
        list(rows),
        columns,
    )


def _ceiling(report: Findings) -> str:
    found = report.reliability
    if found is None:
        return ""
    return (
        f"The truth has {found.seeds} seeds. Halves of them correlate at "
        f"{found.halves:.3f}, so that the reliability of their mean is "
        f"{found.reliability:.3f}: a perfect predictor would have a Spearman "
        f"of about {found.ceiling:.3f}."
    )


def _left_out(report: Findings) -> str:
    lines = []
    for entry in report.left_out:
        where = ""
        if len(report.backbones) > 1:
            alike = set(entry.backbones) == set(report.backbones)
            where = " (all backbones)"
            where = where if alike else f" ({', '.join(entry.backbones)})"
        lines.append(f"  {entry}{where}")
    return "\n".join(["Left out:", *lines]) if lines else ""


def _grid(
    title: str, rows: Sequence[str], columns: dict[str, Callable[[str], str]]
) -> list[str]:
    """A table, or several where its columns are too many for `WIDTH`."""
    names = max(map(len, rows))
    blocks: list[list[tuple[str, list[str], int]]] = [[]]
    room = WIDTH - names
    for head, cell in columns.items():
        cells = [cell(row) for row in rows]
        width = max(len(head), *map(len, cells)) + 2
        if blocks[-1] and room < width:
            blocks.append([])
            room = WIDTH - names
        room -= width
        blocks[-1].append((head, cells, width))
    found = []
    for block in blocks:
        heads = "".join(head.rjust(width) for head, _, width in block)
        lines = [f"{title}:", " " * names + heads]
        for i, row in enumerate(rows):
            cells = "".join(cells[i].rjust(width) for _, cells, width in block)
            lines.append((row.ljust(names) + cells).rstrip())
        found.append("\n".join(lines))
        title = "The same, continued"
    return found


def _bounds(estimate: Estimate) -> str:
    return f"{_number(estimate.value)}{_interval(estimate)}"


def _interval(entry: Estimate | Comparison) -> str:
    if math.isnan(entry.low):
        return ""
    alone = isinstance(entry, Estimate) and entry.target
    mark = FEW_MARK if entry.caution and not alone else ""
    return f" [{entry.low:z.2f}, {entry.high:z.2f}]{mark}"


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:z.3f}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
