"""One backbone's results as rows and columns: cells, averages, gains."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from panda_jax.experiments import paper
from panda_jax.experiments.outcomes import LABELS, DoneRun, Excluded
from panda_jax.experiments.results import Results
from panda_jax.experiments.summaries import Spread, average, spread

KINDS = ("model", "prompt", "pot", "panda", "control")
# Runs that leave a gap where a score should be.
_LOST = ("failed", "unfinished", "not begun", "unreadable", "other metric")


class Row(NamedTuple):
    """A way to adapt: kind and label of its runs, and source ("" without)."""

    kind: str
    label: str
    source: str = ""

    @property
    def name(self) -> str:
        """The label, with the source where there is one."""
        return f"{self.label}: {self.source}" if self.source else self.label


class Gain(NamedTuple):
    """What one way brings over another, by source and target.

    Attributes:
      first: the label of the one.
      second: that of the other.
      sources: M names.
      targets: N names.
      matrix: [M, N] points, the mean over the seeds that both have; NaN where
        they have none.
      by_source: [M] differences of the averages over the targets that both
        have: the paper's gain of a source.
    """

    first: str
    second: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    matrix: np.ndarray
    by_source: np.ndarray


@dataclasses.dataclass(frozen=True)
class Board:
    """The results of one backbone.

    Attributes:
      backbone: its name, without the folders that it may lie in.
      targets: N names: the tasks that anything but a plain prompt was or
        should have been trained on, and all targets of a grid; those of the
        paper first and in its order.
      cells: (row, target) -> seed -> points of 100; higher = better.
      made: (label, task) -> seed -> points, of the prompts that were made to
        be sources.
      lost: cell -> seeds whose run has no result that counts; the label of
        such a run says nothing of a variant.
      variants: label -> the settings that it names.
    """

    backbone: str
    targets: tuple[str, ...]
    cells: Mapping[tuple[Row, str], Mapping[int, float]]
    made: Mapping[tuple[str, str], Mapping[int, float]]
    lost: Mapping[tuple[Row, str], Set[str]]
    variants: Mapping[str, Mapping[str, Any]]

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every row: by kind, label, and source in the paper's order.

        Those without any result are among them, so that they are seen.
        """
        found = {row for row, _ in self.cells}
        # Of a variant without any result no label is known.
        found |= {
            row
            for row, target in self.lost
            if not any(
                _plain_row(other) == row and self.is_lost(other, target)
                for other in found
            )
        }
        place = ordered((row.source for row in found), paper.read().sources)
        return tuple(
            sorted(
                found,
                key=lambda row: (
                    KINDS.index(row.kind),
                    row.label,
                    place.index(row.source),
                ),
            )
        )

    @property
    def is_incomplete(self) -> bool:
        """Whether a row lacks a target, or a seed that another cell has."""
        seeds = {seed for found in self.cells.values() for seed in found}
        return bool(self.lost) or any(
            set(self.cells.get((row, target), {})) != seeds
            for row in self.rows
            for target in self.targets
        )

    def labels(self, *kinds: str) -> tuple[str, ...]:
        """The labels of some kinds (of all without any), in order."""
        rows = (row for row in self.rows if not kinds or row.kind in kinds)
        return tuple(dict.fromkeys(row.label for row in rows))

    def of(self, label: str) -> tuple[Row, ...]:
        """The rows of a label."""
        return tuple(row for row in self.rows if row.label == label)

    def done(self, label: str) -> tuple[Row, ...]:
        """The rows of a label that have any result."""
        known = {row for row, _ in self.cells}
        return tuple(row for row in self.of(label) if row in known)

    def cell(self, row: Row, target: str) -> Spread:
        """Mean, sd and n of a cell over its seeds."""
        return spread(self.cells.get((row, target), {}).values())

    def is_lost(self, row: Row, target: str) -> bool:
        """Whether a run of the cell has no result that counts."""
        has = set(map(str, self.cells.get((row, target), ())))
        # A seed that the row has was lost by another variant.
        return bool(self.lost.get((_plain_row(row), target), set()) - has)

    def average(self, row: Row, targets: Sequence[str] = ()) -> Spread:
        """A row's mean over targets, those that it lacks left out.

        The sd is over the averages of the seeds that have all of the row's
        targets.

        Args:
          row: which.
          targets: of these; empty for all.
        """
        cells = [
            self.cells[row, target]
            for target in targets or self.targets
            if (row, target) in self.cells
        ]
        return average(cells)

    def mean_source(self, label: str, targets: Sequence[str] = ()) -> Spread:
        """The average of a label's mean source (see `over_sources`)."""
        values = [
            found.mean
            for target in targets or self.targets
            if (found := self.over_sources(label, target)).n
        ]
        mean = statistics.fmean(values) if values else math.nan
        return Spread(mean, math.nan, 0, len(values))

    def over_sources(self, label: str, target: str) -> Spread:
        """Mean and sd of a target's cells over the n sources of a label."""
        means = [self.cell(row, target).mean for row in self.of(label)]
        return spread(mean for mean in means if not math.isnan(mean))

    def gain(self, first: str, second: str) -> Gain:
        """What label `first` brings over `second` for the same source."""
        pairs = [
            (row, other)
            for row in self.of(first)
            for other in self.of(second)
            if row.source == other.source
        ]
        matrix = np.array(
            [
                [
                    spread(self.differences(*pair, target).values()).mean
                    for target in self.targets
                ]
                for pair in pairs
            ]
        ).reshape(len(pairs), len(self.targets))
        known = np.isfinite(matrix)
        count = known.sum(axis=1)
        total = np.where(known, matrix, 0.0).sum(axis=1)
        by_source = np.where(count, total / np.maximum(count, 1), np.nan)
        sources = tuple(row.source for row, _ in pairs)
        return Gain(first, second, sources, self.targets, matrix, by_source)

    def differences(
        self, row: Row, other: Row, target: str
    ) -> dict[int, float]:
        """Seed -> points of one row minus another, of the seeds of both."""
        ours, theirs = (
            self.cells.get((one, target), {}) for one in (row, other)
        )
        return {s: ours[s] - theirs[s] for s in sorted(ours) if s in theirs}


def make_boards(results: Results) -> list[Board]:
    """A board a backbone, those of the paper first and in its order."""
    ids = dict.fromkeys(run.backbone for run in results.runs)
    # Also one of which no run is done yet.
    ids |= dict.fromkeys(sorted(backbone for backbone, _ in results.targets))
    names = display_names(ids)
    found = []
    for backbone in ids:
        runs = [run for run in results.runs if run.backbone == backbone]
        lost = [out for out in results.left_out if out.backbone == backbone]
        wanted = {task for name, task in results.targets if name == backbone}
        found.append(_board(names[backbone], runs, lost, wanted))
    known = list(paper.read().backbones)
    known += sorted(board.backbone for board in found)
    return sorted(found, key=lambda board: known.index(board.backbone))


def _board(
    name: str,
    runs: Sequence[DoneRun],
    left_out: Sequence[Excluded],
    wanted: Set[str],
) -> Board:
    """One board; `wanted` are the targets that a grid lists."""
    sources = ("", LABELS["source"])
    gaps = [
        out
        for out in left_out
        if out.status in _LOST and out.label not in sources
    ]
    found = {run.target for run in runs if run.kind not in ("prompt", "source")}
    found |= {out.target for out in gaps if out.label != LABELS["prompt"]}
    # Runs that failed are columns too, else averages would seem whole.
    targets = ordered(found | wanted, paper.read().targets)
    if not targets:
        plain = {run.target for run in runs if run.kind == "prompt"}
        plain |= {out.target for out in gaps}
        targets = ordered(plain, paper.read().targets)
    made: dict[tuple[str, str], dict[int, float]] = {}
    cells: dict[tuple[Row, str], dict[int, float]] = {}
    for run in runs:
        if run.kind == "source" or run.target not in targets:
            seeds = made.setdefault((run.label, run.target), {})
        else:
            row = Row(run.kind, run.label, run.source)
            seeds = cells.setdefault((row, run.target), {})
        seeds[run.seed] = run.value
    kinds = {label: kind for kind, label in LABELS.items() if kind in KINDS}
    lost: dict[tuple[Row, str], set[str]] = {}
    for out in gaps:
        if out.target in targets:
            row = Row(kinds.get(out.label, "panda"), out.label, out.source)
            lost.setdefault((_plain_row(row), out.target), set()).add(out.seed)
    variants = {run.label: run.variant for run in runs}
    return Board(name, targets, cells, made, lost, variants)


def _plain_row(row: Row) -> Row:
    """A row without its variant."""
    return row._replace(label=row.label.partition(" [")[0])


def ordered(tasks: Iterable[str], first: Sequence[str]) -> tuple[str, ...]:
    """Tasks once each: those of `first` in its order, then by name."""
    found = set(tasks)
    known = [task for task in first if task in found]
    return (*known, *sorted(found - set(known)))


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """Backbone id -> its name, a folder's without what it lies in."""
    names: dict[str, str] = {}
    for backbone in ids:
        name = base = backbone.rstrip("/").rpartition("/")[2] or backbone
        number = 2
        while name in names.values():
            name, number = f"{base} ({number})", number + 1
        names[backbone] = name
    return names
