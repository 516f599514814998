"""Do the paper's own tables hold? Its headline figures, statistics and doubts.

    python benchmarks/paper_audit.py [--out_dir=DIR]

Prints, as Markdown, the paper's headline figures computed anew from its tables,
its differences of methods by the statistics that `panda-jax report` has for
runs, and the rows and cells of its tables that cannot be right. Nothing is
corrected. DIR gets the tables as csv, unrounded.
"""

import argparse
import itertools
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from panda_jax.tasks import specs

from panda_jax.experiments.report.board import (
    Board,
    Published,
    Row,
    published,
)
from panda_jax.experiments.report.comparisons import compare
from panda_jax.experiments.report.results import LABELS
from panda_jax.experiments.report.tables import comparison_table
from panda_jax.experiments.tables import (
    MISSING,
    PUBLISHED,
    Section,
    Table,
    markdown,
    points,
    write_csv,
)
from panda_jax.io import csv_rows

# What the abstract says of PANDA over vanilla PoT: "2.3% average score (up to
# 24.1%) among all tasks and model sizes".
CLAIMED_MEAN = 2.3
CLAIMED_MAXIMUM = 24.1
METHODS = ("model", "prompt", "pot", "panda")
# The one that the paper's code sets.
SEED = 11
# A printed figure is within half of its last digit.
_ROUNDING = 0.05 + 1e-9

# (backbone, method, source, target) -> points.
Cells = Mapping[tuple[str, str, str, str], float]


class Figure(NamedTuple):
    """A figure computed from the cells beside the one that is printed.

    Attributes:
      name: what it is.
      value: points, from the cells.
      printed: points, from what the paper prints; NaN where it prints none.
      how: its definition.
    """

    name: str
    value: float
    printed: float
    how: str


class Flag(NamedTuple):
    """A row or cell that cannot be right, or not be what it says.

    Attributes:
      backbone, method, source, target: where; the target is "" for a row.
      value: the cell's points; NaN for a row.
      reason: in words.
    """

    backbone: str
    method: str
    source: str
    target: str
    value: float
    reason: str


def headline(paper: Published) -> list[Figure]:
    """The paper's gain of PANDA over PoT, and its averages, from the cells.

    2.27 and 24.1 are of the same thing: a source's PANDA average over the
    targets minus its PoT average. The mean is over the sources of all
    backbones, the maximum over the same. Over single cells the mean is the
    same, and the maximum another.
    """
    by_source = {
        (backbone, source): row_mean(paper, backbone, "panda", source)
        - row_mean(paper, backbone, "pot", source)
        for backbone in paper.backbones
        for source in paper.sources
    }
    by_cell = {
        (backbone, source, target): value
        - paper.cells[backbone, "pot", source, target]
        for (backbone, method, source, target), value in paper.cells.items()
        if method == "panda"
    }
    most = max(by_source, key=lambda key: by_source[key])
    most_cell = max(by_cell, key=lambda key: by_cell[key])
    of = (
        f"average over {len(paper.targets)} targets, PANDA minus PoT of the "
        "same source"
    )
    rows = (
        f"{len(by_source)} rows ({len(paper.backbones)} backbones x "
        f"{len(paper.sources)} sources)"
    )
    return [
        Figure(
            "mean gain",
            statistics.fmean(by_source.values()),
            CLAIMED_MEAN,
            f"{of}; mean over {rows}",
        ),
        Figure(
            "maximum gain",
            by_source[most],
            CLAIMED_MAXIMUM,
            f"{of}; maximum over {rows}: {most[0]}, {most[1]}",
        ),
        Figure(
            "maximum gain of one cell",
            by_cell[most_cell],
            math.nan,
            f"one target in place of the average: {most_cell[0]}, "
            f"{most_cell[1]} on {most_cell[2]}",
        ),
        *_averages(paper),
        *_best(paper),
    ]


def printed_averages() -> dict[tuple[str, str, str], float]:
    """(backbone, method, source) -> the average as the paper prints it."""
    path = PUBLISHED / "averages.csv"
    columns = ("backbone", "method", "source", "score")
    found = {}
    for line, row in csv_rows.read_rows(path, columns):
        place = row["backbone"], row["method"], row["source"]
        found[place] = csv_rows.number(path, line, "score", row["score"])
    return found


def _averages(paper: Published) -> list[Figure]:
    printed = printed_averages()
    return [
        Figure(
            f"{backbone} {method}",
            statistics.fmean(
                row_mean(paper, backbone, method, source) for source in sources
            ),
            statistics.fmean(
                printed[backbone, method, source] for source in sources
            ),
            f"average over {len(paper.targets)} targets"
            + (f", mean of {len(sources)} sources" if len(sources) > 1 else ""),
        )
        for backbone in paper.backbones
        for method in METHODS
        for sources in [paper.sources if method in ("pot", "panda") else ("",)]
    ]


def _best(paper: Published) -> list[Figure]:
    return [
        Figure(
            f"{backbone} {method}, best source",
            statistics.fmean(
                max(
                    paper.cells[backbone, method, source, target]
                    for source in paper.sources
                )
                for target in paper.targets
            ),
            math.nan,
            "the best source of each target, chosen by the score itself",
        )
        for backbone in paper.backbones
        for method in ("pot", "panda")
    ]


def row_mean(
    paper: Published, backbone: str, method: str, source: str
) -> float:
    """A row's average over all targets, from its cells."""
    return statistics.fmean(
        paper.cells[backbone, method, source, target]
        for target in paper.targets
    )


def doubts(cells: Cells, counts: Mapping[str, int]) -> list[Flag]:
    """Duplicated rows and impossible cells of a table.

    A row is duplicated where another source of the same backbone and method has
    the same figure on every target (of at least 3). A cell is impossible where
    it is no number, lies outside of its metric's range, is no rounded k / n of
    an accuracy over n questions, or is an epoch's that beats the best epoch.

    Args:
      cells: (backbone, method, source, target) -> points, to one decimal.
      counts: target -> n questions of its development split, of those whose
        score is an accuracy.
    """
    found = _duplicates(cells)
    for (backbone, method, source, target), value in cells.items():
        reasons = [
            _range(value, target),
            _fraction(value, counts.get(target, 0)),
        ]
        whole = method.removesuffix("_first_epoch")
        best = cells.get((backbone, whole, source, target), math.inf)
        if value > best:
            reasons.append(f"the best epoch is printed as {best:g}")
        found += [
            Flag(backbone, method, source, target, value, reason)
            for reason in reasons
            if reason
        ]
    return found


def _duplicates(cells: Cells) -> list[Flag]:
    rows: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for (backbone, method, source, target), value in cells.items():
        group = rows.setdefault((backbone, method), {})
        group.setdefault(source, {})[target] = value
    return [
        Flag(
            backbone,
            method,
            f"{first}, {second}",
            "",
            math.nan,
            f"the same {len(group[first])} figures for both sources",
        )
        for (backbone, method), group in rows.items()
        for first, second in itertools.combinations(group, 2)
        if len(group[first]) > 2 and group[first] == group[second]
    ]


def _range(value: float, target: str) -> str:
    signed = {"matthews", "pearson_spearman"}
    lowest = -100.0 if specs.get(target).metrics[0] in signed else 0.0
    if lowest <= value <= 100.0:
        return ""
    return f"outside of {lowest:g} to 100"


def _fraction(value: float, n: int) -> str:
    """Why a score is no accuracy over n questions; "" where it may be."""
    if not n or not math.isfinite(value):
        return ""
    right = value * n / 100
    below, above = math.floor(right), math.ceil(right)
    less, more = 100 * below / n, 100 * above / n
    if min(value - less, more - value) <= _ROUNDING:
        return ""
    cut = " (cut off, not rounded, it would be)" if more - value < 0.1 else ""
    return (
        f"no number of right answers among {n} gives it: {below} are "
        f"{less:.2f}, {above} are {more:.2f}{cut}"
    )


def question_counts(targets: Sequence[str]) -> dict[str, int]:
    """Target -> questions of its development split, of those whose main metric
    is the accuracy over them."""
    found = {target: specs.get(target) for target in targets}
    return {
        target: spec.rows["validation"]
        for target, spec in found.items()
        if spec.metrics[0] == "accuracy" and "validation" in spec.rows
    }


def boards() -> list[Board]:
    """The paper's final scores as boards of one seed."""
    paper = published()
    found: dict[str, dict] = {name: {} for name in paper.backbones}
    for (backbone, method, source, target), score in paper.cells.items():
        if method in METHODS:
            row = Row(method, LABELS.get(method, "PANDA"), source)
            found[backbone][row, target] = {SEED: score}
    return [
        Board(name, paper.targets, cells, {}, {}, {})
        for name, cells in found.items()
    ]


def tables() -> list[Table]:
    """The headline figures, the differences of methods, and the doubts."""
    paper = published()
    figures = headline(paper)
    flags = doubts(paper.cells, question_counts(paper.targets))
    return [
        Table(
            "published_headline",
            "The paper's headline figures, computed from its tables",
            ["figure", "computed", "printed", "how"],
            [
                [f.name, points(f.value, digits=2), points(f.printed), f.how]
                for f in figures
            ],
            [Figure._fields, *figures],
            [
                "Printed: the abstract's figures; the mean of the printed "
                "averages. A greatest of many is no expectation and has no "
                "interval; those of differences stand in the next table."
            ],
            ends=1,
        ),
        comparison_table(
            compare(boards()),
            "published_comparisons",
            "The paper's differences, by the statistics of a report",
        ),
        Table(
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
            [Flag._fields, *flags],
            [
                f"{len(flags)} of {len(paper.cells)} cells and their rows. A "
                "score that is the mean of several runs need be no k / n. They "
                "are counted all the same: nothing was corrected."
            ],
            words=4,
            ends=1,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out_dir", type=pathlib.Path, help="gets csv files")
    out = parser.parse_args().out_dir
    found = tables()
    sections = [Section("Audit", (), found)]
    print(markdown("The paper's own tables", sections), end="")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out, found)


if __name__ == "__main__":
    main()
