"""A board a backbone: its results as rows and columns; the paper's tables."""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from panda_jax.experiments.report.results import (
    LABELS,
    DoneRun,
    Excluded,
    Results,
)
from panda_jax.experiments.tables import PUBLISHED
from panda_jax.io import csv_rows

KINDS = ("model", "prompt", "pot", "panda", "control")
# Runs that leave a gap where a score should be.
_LOST = ("failed", "unfinished", "not begun", "unreadable", "other metric")


class Published(NamedTuple):
    """The paper's tables, names in its order.

    Attributes:
      cells: (backbone, method, source, target) -> points of 100, of `model`,
        `prompt`, `pot`, `panda`, `prompt_first_epoch` and `pot_first_epoch`;
        the source is "" where there is none.
    """

    cells: Mapping[tuple[str, str, str, str], float]
    backbones: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]


@functools.cache
def published() -> Published:
    """The tables that come with the package."""
    cells: dict[tuple[str, str, str, str], float] = {}
    for name, method in (("results", ""), ("truth", "pot_first_epoch")):
        path = PUBLISHED / f"{name}.csv"
        columns = ("backbone", "source", "target", "score")
        rows = csv_rows.read_rows(path, columns, optional=("method",))
        for line, row in rows:
            place = row["backbone"], row.get("method", method)
            score = csv_rows.number(path, line, "score", row["score"])
            cells[(*place, row["source"], row["target"])] = score
    backbones, _, sources, targets = (
        tuple(dict.fromkeys(filter(None, names)))
        for names in zip(*cells, strict=True)
    )
    return Published(cells, backbones, sources, targets)


class Spread(NamedTuple):
    """Several seeds of one cell, or a row's average over targets.

    Attributes:
      mean: in points of 100; NaN without a value.
      sd: over n seeds, with n - 1; NaN below 2.
      of: of an average, how many targets it is over; else 1.
    """

    mean: float
    sd: float
    n: int
    of: int = 1


def spread(values: Iterable[float]) -> Spread:
    """Mean, sd (n - 1) and n; NaN where there are too few."""
    found = list(values)
    mean = statistics.fmean(found) if found else math.nan
    sd = statistics.stdev(found) if len(found) > 1 else math.nan
    return Spread(mean, sd, len(found))


class Row(NamedTuple):
    """A way to adapt: kind and label of its runs, and source ("" without)."""

    kind: str
    label: str
    source: str = ""

    @property
    def name(self) -> str:
        """The label, with the source where there is one."""
        return f"{self.label}: {self.source}" if self.source else self.label

    @property
    def plain(self) -> "Row":
        """The row without its variant."""
        return self._replace(label=self.label.partition(" [")[0])


class Gain(NamedTuple):
    """What label `first` brings over `second`, by source and target.

    Attributes:
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
        """[M] the paper's gain: of averages over the targets that both have."""
        count = np.isfinite(self.matrix).sum(axis=1)
        total = np.nansum(self.matrix, axis=1)
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
      targets: the tasks that anything but a plain prompt was or should have
        been trained on, and all targets of a grid; the paper's first.
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
                o.plain == row and self.is_lost(o, target) for o in found
            )
        }
        place = ordered((row.source for row in found), published().sources)

        def key(row: Row) -> tuple[int, str, int]:
            return KINDS.index(row.kind), row.label, place.index(row.source)

        return tuple(sorted(found, key=key))

    @property
    def is_incomplete(self) -> bool:
        """Whether a row lacks a target, or a seed that another cell has."""
        seeds = {seed for found in self.cells.values() for seed in found}
        cells = ((row, target) for row in self.rows for target in self.targets)
        some = (set(self.cells.get(cell, {})) != seeds for cell in cells)
        return bool(self.lost) or any(some)

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
        return bool(self.lost.get((row.plain, target), set()) - has)

    def own_tasks(self, label: str) -> list[str]:
        """The targets on which a label has a source of the same name."""
        rows = self.of(label)
        return [r.source for r in rows if (r, r.source) in self.cells]

    def average(self, row: Row, targets: Sequence[str] = ()) -> Spread:
        """A row's mean over some targets or all; those that it lacks left out.

        The sd is over the averages of the seeds that have all of the row's
        targets.
        """
        found = [self.cells.get((row, t)) for t in targets or self.targets]
        cells = [cell for cell in found if cell is not None]
        whole = sorted(set.intersection(*map(set, cells))) if cells else []
        by_seed = spread(statistics.fmean(c[s] for c in cells) for s in whole)
        mean = spread(spread(cell.values()).mean for cell in cells).mean
        return Spread(mean, by_seed.sd, by_seed.n, len(cells))

    @functools.cached_property
    def common(self) -> Mapping[str, Set[str]]:
        """Target -> the sources that all of PoT's and PANDA's labels have."""
        labels = list(filter(self.done, self.labels("pot", "panda")))
        every = {t: [self._sources(x, t) for x in labels] for t in self.targets}
        return {t: set.intersection(*own) for t, own in every.items() if own}

    @property
    def is_uneven(self) -> bool:
        """Whether means of sources are over different ones."""
        labels = list(filter(self.done, self.labels("pot", "panda")))
        common = self.common.items()
        return any(
            self._sources(x, t) != own for t, own in common for x in labels
        )

    def _sources(self, label: str, target: str) -> set[str]:
        rows = self.of(label)
        return {row.source for row in rows if (row, target) in self.cells}

    def mean_source(
        self, label: str, targets: Sequence[str] = (), *, common: bool = False
    ) -> Spread:
        """The average of a label's mean source (see `over_sources`)."""
        targets = targets or self.targets
        found = [self.over_sources(label, t, common=common) for t in targets]
        whole = spread(one.mean for one in found if one.n)
        return Spread(whole.mean, math.nan, 0, whole.n)

    def over_sources(
        self, label: str, target: str, *, common: bool = False
    ) -> Spread:
        """Mean and sd of a target's cells over a label's sources, or common."""
        means = [
            self.cell(row, target).mean
            for row in self.of(label)
            if not common or row.source in self.common.get(target, ())
        ]
        return spread(mean for mean in means if not math.isnan(mean))

    def gain(self, first: str, second: str) -> Gain:
        """What label `first` brings over `second` for the same source."""
        both = itertools.product(self.of(first), self.of(second))
        pairs = [(row, other) for row, other in both if row[2] == other[2]]
        values = [
            spread(self.differences(*pair, target).values()).mean
            for pair in pairs
            for target in self.targets
        ]
        matrix = np.array(values).reshape(len(pairs), len(self.targets))
        sources = tuple(row.source for row, _ in pairs)
        return Gain(first, second, sources, self.targets, matrix)

    def identical(self) -> list[tuple[str, str]]:
        """Controls and prompt-tunings that are the same wherever both are."""
        found = []
        pairs = self.labels("control"), self.labels("prompt")
        for first, second in itertools.product(*pairs):
            rows = self.of(first)[0], self.of(second)[0]
            apart = [self.differences(*rows, target) for target in self.targets]
            both = [value for one in apart for value in one.values()]
            if both and not any(both):
                found.append((first, second))
        return found

    def differences(
        self, row: Row, other: Row, target: str
    ) -> dict[int, float]:
        """Seed -> points of one row minus another, of the seeds of both."""
        ours = self.cells.get((row, target), {})
        theirs = self.cells.get((other, target), {})
        return {s: ours[s] - theirs[s] for s in sorted(ours) if s in theirs}


def make_boards(results: Results) -> list[Board]:
    """A board a backbone, those of the paper first and in its order."""
    ids = dict.fromkeys(run.backbone for run in results.runs)
    # Also one of which no run is done yet.
    ids |= dict.fromkeys(sorted(backbone for backbone, _ in results.targets))
    names: dict[str, str] = {}
    found = []
    for backbone in ids:
        # A folder's name without what it lies in.
        name = base = backbone.rstrip("/").rpartition("/")[2] or backbone
        number = 2
        while name in names.values():
            name, number = f"{base} ({number})", number + 1
        names[backbone] = name
        runs = [run for run in results.runs if run.backbone == backbone]
        lost = [out for out in results.left_out if out.backbone == backbone]
        wanted = {task for id_, task in results.targets if id_ == backbone}
        found.append(_board(name, runs, lost, wanted))
    known = ordered(names.values(), published().backbones)
    return sorted(found, key=lambda board: known.index(board.backbone))


def _board(
    name: str,
    runs: Sequence[DoneRun],
    left_out: Sequence[Excluded],
    wanted: Set[str],
) -> Board:
    """One board; `wanted` are the targets that a grid lists."""
    sources = ("", LABELS["source"])
    gaps = [x for x in left_out if x.status in _LOST and x.label not in sources]
    found = {run.target for run in runs if run.kind not in ("prompt", "source")}
    # Runs that failed are columns too, else averages would seem whole.
    found |= {out.target for out in gaps if out.label != LABELS["prompt"]}
    found |= wanted
    if not found:
        found = {run.target for run in runs if run.kind == "prompt"}
        found |= {out.target for out in gaps}
    targets = ordered(found, published().targets)
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
            lost.setdefault((row.plain, out.target), set()).add(out.seed)
    variants = {run.label: run.variant for run in runs}
    return Board(name, targets, cells, made, lost, variants)


def ordered(tasks: Iterable[str], first: Sequence[str]) -> tuple[str, ...]:
    """Tasks once each: those of `first` in its order, then by name."""
    found = set(tasks)
    known = [task for task in first if task in found]
    return (*known, *sorted(found - set(known)))
