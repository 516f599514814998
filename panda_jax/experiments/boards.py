"""One backbone's results as rows and columns: cells, averages, gains."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from panda_jax.experiments import paper
from panda_jax.experiments.outcomes import LABELS, DoneRun, Excluded
from panda_jax.experiments.results import Results
from panda_jax.experiments.summaries import Spread, average, spread

KINDS = ("model", "prompt", "pot", "panda", "control")


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
      targets: N names: the tasks that anything but a plain prompt was
        trained on, those of the paper first and in its order.
      cells: (row, target) -> seed -> points of 100; higher = better.
      made: task -> seed -> points, of the prompts that were made to be
        sources.
      lost: cells of which a run failed, is unfinished or not begun; the label
        of such a run says nothing of a variant.
    """

    backbone: str
    targets: tuple[str, ...]
    cells: Mapping[tuple[Row, str], Mapping[int, float]]
    made: Mapping[str, Mapping[int, float]]
    lost: Set[tuple[Row, str]]

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every row: by kind, label, and source in the paper's order.

        Those without any result are among them, so that they are seen.
        """
        found = {row for row, _ in self.cells}
        known = {(_plain(row.label), row.source) for row in found}
        found |= {row for row, _ in self.lost if row[1:] not in known}
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
        return any(
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
        """Whether a run of the cell failed, is unfinished or not begun."""
        plain = row._replace(label=_plain(row.label))
        return (plain, target) in self.lost

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
                [self._difference(*pair, target) for target in self.targets]
                for pair in pairs
            ]
        ).reshape(len(pairs), len(self.targets))
        known = np.isfinite(matrix)
        count = known.sum(axis=1)
        total = np.where(known, matrix, 0.0).sum(axis=1)
        by_source = np.where(count, total / np.maximum(count, 1), np.nan)
        sources = tuple(row.source for row, _ in pairs)
        return Gain(first, second, sources, self.targets, matrix, by_source)

    def _difference(self, row: Row, other: Row, target: str) -> float:
        ours, theirs = (
            self.cells.get((one, target), {}) for one in (row, other)
        )
        both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        return statistics.fmean(both) if both else math.nan


def make_boards(results: Results) -> list[Board]:
    """A board a backbone, those of the paper first and in its order."""
    ids = dict.fromkeys(run.backbone for run in results.runs)
    names = display_names(ids)
    found = []
    for backbone in ids:
        runs = [run for run in results.runs if run.backbone == backbone]
        lost = [out for out in results.left_out if out.backbone == backbone]
        found.append(_board(names[backbone], runs, lost))
    known = list(paper.read().backbones)
    known += sorted(board.backbone for board in found)
    return sorted(found, key=lambda board: known.index(board.backbone))


def _board(
    name: str, runs: Sequence[DoneRun], left_out: Sequence[Excluded]
) -> Board:
    adapted = [run for run in runs if run.kind not in ("prompt", "source")]
    first = paper.read().targets
    targets = ordered((run.target for run in adapted), first)
    made: dict[str, dict[int, float]] = {}
    cells: dict[tuple[Row, str], dict[int, float]] = {}
    if not adapted:
        plain = (run.target for run in runs if run.kind == "prompt")
        targets = ordered(plain, first)
    for run in runs:
        if run.kind == "source" or run.target not in targets:
            made.setdefault(run.target, {})[run.seed] = run.value
            continue
        row = Row(run.kind, run.label, run.source)
        cells.setdefault((row, run.target), {})[run.seed] = run.value
    kinds = {label: kind for kind, label in LABELS.items() if kind in KINDS}
    lost = {
        (Row(kinds.get(out.label, "panda"), out.label, out.source), out.target)
        for out in left_out
        if out.status in ("failed", "unfinished", "not begun")
        and out.target in targets
        and out.label not in ("", LABELS["source"])
    }
    return Board(name, targets, cells, made, lost)


def _plain(label: str) -> str:
    """A label without its variant."""
    return label.partition(" [")[0]


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
