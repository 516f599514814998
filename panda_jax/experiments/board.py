"""One backbone's results as rows and columns: cells, averages, gains."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from panda_jax.experiments import paper
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
    """

    first: str
    second: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    matrix: np.ndarray

    @property
    def by_source(self) -> np.ndarray:
        """[M] differences of the averages over the targets that both have.

        The paper's gain of a source.
        """
        known = np.isfinite(self.matrix)
        count = known.sum(axis=1)
        total = np.where(known, self.matrix, 0.0).sum(axis=1)
        return np.where(count, total / np.maximum(count, 1), np.nan)

    @property
    def own(self) -> np.ndarray:
        """[M, N] which pairs are of a task with itself."""
        return np.array(self.sources)[:, None] == np.array(self.targets)

    def other_tasks(self) -> "Gain":
        """The same without pairs of a task with itself."""
        return self._replace(matrix=np.where(self.own, np.nan, self.matrix))


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
                plain_row(other) == row and self.is_lost(other, target)
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
        return bool(self.lost.get((plain_row(row), target), set()) - has)

    def own_tasks(self, label: str) -> list[str]:
        """The targets on which a label has a source of the same name."""
        return [
            row.source
            for row in self.of(label)
            if (row, row.source) in self.cells
        ]

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

    @functools.cached_property
    def common(self) -> Mapping[str, Set[str]]:
        """Target -> the sources that all of PoT's and PANDA's labels have."""
        transfers = filter(self.done, self.labels("pot", "panda"))
        labels = list(transfers)
        return {
            target: set.intersection(
                *(self._sources(label, target) for label in labels)
            )
            for target in self.targets
            if labels
        }

    @property
    def is_uneven(self) -> bool:
        """Whether means of sources are over different ones."""
        return any(
            self._sources(label, target) != common
            for target, common in self.common.items()
            for label in self.labels("pot", "panda")
            if self.done(label)
        )

    def _sources(self, label: str, target: str) -> set[str]:
        rows = self.of(label)
        return {row.source for row in rows if (row, target) in self.cells}

    def mean_source(
        self, label: str, targets: Sequence[str] = (), *, common: bool = False
    ) -> Spread:
        """The average of a label's mean source (see `over_sources`).

        Args:
          label: which.
          targets: of these; empty for all.
          common: over the sources that all labels have.
        """
        values = [
            found.mean
            for target in targets or self.targets
            if (found := self.over_sources(label, target, common=common)).n
        ]
        mean = statistics.fmean(values) if values else math.nan
        return Spread(mean, math.nan, 0, len(values))

    def over_sources(
        self, label: str, target: str, *, common: bool = False
    ) -> Spread:
        """Mean and sd of a target's cells over the n sources of a label."""
        means = [
            self.cell(row, target).mean
            for row in self.of(label)
            if not common or row.source in self.common.get(target, ())
        ]
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
        sources = tuple(row.source for row, _ in pairs)
        return Gain(first, second, sources, self.targets, matrix)

    def identical(self) -> list[tuple[str, str]]:
        """Controls and prompt-tunings that are the same wherever both are."""
        found = []
        for first in self.labels("control"):
            for second in self.labels("prompt"):
                both = [
                    difference
                    for target in self.targets
                    for difference in self.differences(
                        self.of(first)[0], self.of(second)[0], target
                    ).values()
                ]
                if both and not any(both):
                    found.append((first, second))
        return found

    def differences(
        self, row: Row, other: Row, target: str
    ) -> dict[int, float]:
        """Seed -> points of one row minus another, of the seeds of both."""
        ours, theirs = (
            self.cells.get((one, target), {}) for one in (row, other)
        )
        return {s: ours[s] - theirs[s] for s in sorted(ours) if s in theirs}


def plain_row(row: Row) -> Row:
    """A row without its variant."""
    return row._replace(label=row.label.partition(" [")[0])


def ordered(tasks: Iterable[str], first: Sequence[str]) -> tuple[str, ...]:
    """Tasks once each: those of `first` in its order, then by name."""
    found = set(tasks)
    known = [task for task in first if task in found]
    return (*known, *sorted(found - set(known)))
