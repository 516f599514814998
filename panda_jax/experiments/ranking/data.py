"""Scores and results of transfers: read, matched, and cut to pairs.

A `Truth` is what metrics are judged by. `match` brings scores and truth of the
same backbone together; `collect` says which pairs are judged, and what is left
out and why.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from panda_jax.errors import UserError, unknown_name
from panda_jax.experiments.tables import PUBLISHED
from panda_jax.io import csv_rows
from panda_jax.io.files import PathLike
from panda_jax.transfer.combine import combined
from panda_jax.transfer.scores import Scores

COLUMNS = ("source", "target", "score")

# Sources that a target must have.
FEWEST = 3


@dataclasses.dataclass(frozen=True)
class Truth:
    """What M sources did on N targets, once or with several seeds.

    Attributes:
      seeds: [K, M, N] results of K seeds, higher = better; NaN where a seed
        has none.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.sources), len(self.targets))
        if self.seeds.ndim != 3 or self.seeds.shape[1:] != shape:
            raise ValueError(
                f"seeds: shape {self.seeds.shape}, expected (K, {shape[0]}, "
                f"{shape[1]})"
            )

    @functools.cached_property
    def values(self) -> np.ndarray:
        """[M, N], the mean over the seeds that a pair has, NaN without any."""
        known = np.isfinite(self.seeds)
        total = np.where(known, self.seeds, 0.0).sum(axis=0)
        count = known.sum(axis=0)
        return np.where(count, total / np.maximum(count, 1), np.nan)

    @classmethod
    def by_backbone(cls, path: PathLike) -> "dict[str, Truth]":
        """Reads `source,target,score`, with `backbone` and `seed` if it has.

        Returns:
          Backbone -> its results, in the file's order; one named "" where the
          file has no such column.

        Raises:
          UserError: the file is missing or empty, or a line is malformed,
            double or no finite number; the message names file and line.
        """
        found: dict[str, dict[tuple[str, str, str], float]] = {}
        for line, row in csv_rows.read_rows(
            path, COLUMNS, optional=("backbone", "seed"), what="truth file"
        ):
            score = csv_rows.number(path, line, "score", row.pop("score"))
            if not math.isfinite(score):
                raise UserError(
                    f"{path}:{line}: score is {score}, expected a finite "
                    "number; leave out the line of a run without a result."
                )
            if not all(row.values()):
                raise UserError(
                    f"{path}:{line}: got {list(row.values())}, expected names "
                    f"for {', '.join(row)}."
                )
            cells = found.setdefault(row.get("backbone", ""), {})
            key = (row.get("seed", ""), row["source"], row["target"])
            if key in cells:
                raise UserError(
                    f"{path}:{line}: a second result of {key[1]} on {key[2]}; "
                    "remove one, or tell them apart in a column 'seed' or "
                    "'backbone'."
                )
            cells[key] = score
        if not found:
            raise UserError(f"{path}: no results, expected a line a pair.")
        tables: dict[str, Truth] = {}
        for name, cells in found.items():
            axes = [list(dict.fromkeys(n)) for n in zip(*cells, strict=True)]
            csv_rows.check_filled(path, len(cells), *axes)
            values = np.full([len(axis) for axis in axes], np.nan)
            places = [{n: i for i, n in enumerate(axis)} for axis in axes]
            for key, score in cells.items():
                place = (at[n] for at, n in zip(places, key, strict=True))
                values[tuple(place)] = score
            tables[name] = cls(tuple(axes[1]), tuple(axes[2]), values)
        return tables


class Group(NamedTuple):
    """Scores and truth of one backbone, or a file's; "" where there is but one.

    The ceiling is another truth, which is judged beside the metrics.
    """

    name: str
    scores: Scores
    truth: Truth
    ceiling: Truth | None


ScoresLike = Scores | Mapping[str, Scores] | PathLike | Sequence[PathLike]
TruthLike = Truth | Mapping[str, Truth] | PathLike | Sequence[PathLike]


def match(
    scores: ScoresLike, truth: TruthLike, ceiling: TruthLike | None = None
) -> tuple[list[Group], list[tuple[str, str]]]:
    """Brings together what is of the same backbone.

    Args:
      scores: a table; one a backbone, by name; a file, or several in a list or
        with commas between them. A file may have a column `backbone`; several
        files without one are backbones named by their stems. "published" is
        the paper's own.
      truth, ceiling: likewise; where there are as many files as of scores they
        go together in order, else it is one for all.

    Returns:
      The groups, and (name, what it lacks) of the backbones that were left out.

    Raises:
      UserError: a file is bad, two backbones share a name, or none has both.
    """
    files = _read(scores, Scores, "scores.csv")
    truths = _paired(_read(truth, Truth, "truth.csv"), len(files), "truth")
    ceilings = [("", {})] * len(files)
    if ceiling is not None:
        read = _read(ceiling, Truth, "final.csv")
        ceilings = _paired(read, len(files), "ceiling")
    groups: list[Group] = []
    lacking: list[tuple[str, str]] = []
    used: set[str] = set()
    for (stem, tables), (_, results), (_, tops) in zip(
        files, truths, ceilings, strict=True
    ):
        for backbone, table in tables.items():
            name = backbone
            if not name and (stem in results or len(files) > 1):
                name = stem
            elif not name and len(results) == 1:
                name = next(iter(results))
            # Its own, or those that are for all.
            found = results.get(name, results.get(""))
            top = tops.get(name, tops.get(""))
            used.add(name)
            if found is None:
                lacking.append((name, "has scores and no truth"))
                continue
            if name in (group.name for group in groups):
                raise UserError(
                    f"Two tables of scores are of backbone {name!r}; name the "
                    "files differently, or give them a column 'backbone'."
                )
            if ceiling is not None and top is None:
                lacking.append((name, "has no ceiling"))
            groups.append(Group(name, table, found, top))
    unused = {name for _, results in truths for name in results if name} - used
    lacking += [(name, "has truth and no scores") for name in sorted(unused)]
    if not groups:
        raise UserError(
            "No backbone has both scores and truth: "
            f"{'; '.join(f'{name!r} {what}' for name, what in lacking)}. Use "
            "the same names in the column 'backbone', or leave it out."
        )
    return groups, lacking


def _read(given: Any, cls: type, published: str) -> list[tuple[str, dict]]:
    """(stem, backbone -> table) of every file, or of what is in memory."""
    if isinstance(given, cls):
        return [("", {"": given})]
    if isinstance(given, Mapping):
        return [("", dict(given))]
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",") if part]
        if given == ["published"]:
            given = [PUBLISHED / published]
    elif not isinstance(given, Sequence):
        given = [given]
    paths = [pathlib.Path(part) for part in given]
    if not paths:
        raise UserError(f"Got no file, expected one such as {published}.")
    return [(path.stem, cls.by_backbone(path)) for path in paths]


def _paired(
    read: list[tuple[str, dict]], count: int, what: str
) -> list[tuple[str, dict]]:
    """As many as there are score files: in order, or one for all."""
    read = read * count if len(read) == 1 else read
    if len(read) != count:
        raise UserError(
            f"Got {len(read)} {what} files for {count} score files, expected "
            f"as many (they go together in order) or one for all."
        )
    return read


@dataclasses.dataclass(frozen=True)
class Cell:
    """One target of one backbone: S sources that all its metrics have scored.

    Attributes:
      sources: [S] places in `Cells.sources`.
      truth: [S]; higher = better.
      seeds: [K, S], the truth by seed; NaN where a seed has none.
      scores: metric -> [S]; higher = more transferable.
      ceiling: [S], another truth; None where there is none for all.
    """

    backbone: str
    target: str
    sources: np.ndarray
    truth: np.ndarray
    seeds: np.ndarray
    scores: dict[str, np.ndarray]
    ceiling: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What is not judged: targets, sources or pairs (`source>target`)."""

    backbones: tuple[str, ...]
    reason: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.names) - 12
        others = f" and {more} more" if more > 0 else ""
        names = ", ".join(self.names[:12])
        return f"{len(self.names)} {self.reason}: {names}{others}"


@dataclasses.dataclass(frozen=True)
class Cells:
    """Everything that is judged, and what is not.

    Cells are by backbone and target, names in order, combinations last.
    """

    cells: list[Cell]
    sources: tuple[str, ...]
    metrics: tuple[str, ...]
    left_out: list[LeftOut]


def collect(
    groups: Sequence[Group],
    *,
    metrics: Sequence[str] | None = None,
    combine: Sequence[str] = (),
    include_self: bool = True,
) -> Cells:
    """The cells of every backbone: pairs that truth and all metrics have.

    A metric that scores no source of a target is judged on the other targets
    and takes no pair from the others. The arguments are `evaluate_ranking`'s.

    Raises:
      UserError: an unknown metric, or no target with enough sources.
    """
    known = list(dict.fromkeys(m for g in groups for m in g.scores.values))
    for name in metrics or ():
        if name not in known:
            raise unknown_name("metric", name, known)
    names = tuple(dict.fromkeys(metrics or known))
    clash = set(combine) & set(known)
    if clash:
        raise UserError(
            f"The scores have a metric named {clash.pop()!r}, as a combination "
            "is; leave one of them out."
        )
    left: list[tuple[str, str, str]] = []
    tables = []
    for group in groups:
        table = _Table(group, names, include_self, left)
        table.narrow()
        for expression in dict.fromkeys(combine):
            table.add(expression)
        table.narrow()
        tables.append(table)
    sources = sorted({name for table in tables for name in table.judged()})
    cells = [cell for table in tables for cell in table.cells(sources)]
    # One entry a reason and set of names, with all backbones it holds for.
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for backbone, reason, name in left:
        reasons.setdefault((backbone, reason), {})[name] = None
    where: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (backbone, reason), lost in reasons.items():
        where.setdefault((reason, tuple(lost)), []).append(backbone)
    left_out = [LeftOut(tuple(of), *entry) for entry, of in where.items()]
    if not cells:
        raise UserError(
            f"No target has {FEWEST} sources with both truth and scores "
            f"({'; '.join(map(str, left_out))}). Sources and targets need the "
            "same names in both files."
        )
    judged = (*names, *dict.fromkeys(combine))
    return Cells(cells, tuple(sources), judged, left_out)


@dataclasses.dataclass
class _Table:
    """One backbone's scores and truth, by the same sources and targets."""

    group: Group
    metrics: Sequence[str]
    include_self: bool
    left: list[tuple[str, str, str]]

    def __post_init__(self) -> None:
        scores, truth = self.group.scores, self.group.truth
        self.sources = self._common("sources", scores.sources, truth.sources)
        self.targets = self._common("targets", scores.targets, truth.targets)
        self.values: dict[str, np.ndarray] = {}
        for metric in self.metrics:
            if metric in scores.values:
                values = scores.values[metric]
                self.values[metric] = self._of(scores, values)
            else:
                reason = f"targets without a score of {metric}"
                self._leave(reason, self.targets)
        self.truth = self._of(truth, truth.values)
        sources, targets = (
            np.array(names, object) for names in (self.sources, self.targets)
        )
        self.own = sources[:, None] == targets
        if not self.include_self:
            self.truth = np.where(self.own, np.nan, self.truth)

    def narrow(self) -> None:
        """Keeps the pairs that truth and all of a target's metrics have."""
        known = np.isfinite(self.truth)
        kept, missing = known.copy(), np.zeros(known.shape, bool)
        for metric, values in self.values.items():
            missing |= np.isfinite(values) & ~known
            has = np.isfinite(values) & known
            scored = has.any(axis=0)
            none = np.flatnonzero(known.any(axis=0) & ~scored)
            targets = [self.targets[n] for n in none]
            self._leave(f"targets without a score of {metric}", targets)
            pairs = self._pairs(known & ~has & scored)
            self._leave(f"pairs without a score of {metric}", pairs)
            kept &= has | ~scored
        if not self.include_self:
            missing &= ~self.own
        self._leave("pairs with scores and no truth", self._pairs(missing))
        self.truth = np.where(kept, self.truth, np.nan)
        for metric, values in self.values.items():
            self.values[metric] = np.where(kept, values, np.nan)

    def add(self, expression: str) -> None:
        """A combination, as one more metric."""
        if not self.truth.size:
            return
        truth, own = self.group.truth, self.include_self
        results = Scores(truth.sources, truth.targets, {"truth": truth.values})
        scores = Scores(self.sources, self.targets, self.values)
        combination = combined(scores, results, expression, include_self=own)
        self.values[expression] = combination

    def judged(self) -> list[str]:
        """The sources that have a pair left."""
        rows = np.flatnonzero(np.isfinite(self.truth).any(axis=1))
        return [self.sources[m] for m in rows]

    def cells(self, sources: Sequence[str]) -> list[Cell]:
        """Those targets that can be judged, the others are left out by name."""
        truth, top = self.group.truth, self.group.ceiling
        seeds = self._of(truth, truth.seeds)
        ceiling = top and self._of(top, top.values)
        at = {name: place for place, name in enumerate(sources)}
        places = np.array([at.get(name, -1) for name in self.sources], int)
        cells = []
        for n, target in enumerate(self.targets):
            rows = np.flatnonzero(np.isfinite(self.truth[:, n]))
            column = self.truth[rows, n]
            reason = ""
            if len(rows) < FEWEST:
                reason = f"targets with fewer than {FEWEST} sources"
            elif np.ptp(column) == 0:
                reason = "targets on which all sources did the same"
            if reason:
                self._leave(reason, [target])
                continue
            scores = {m: v[rows, n] for m, v in self.values.items()}
            scores = {m: v for m, v in scores.items() if np.isfinite(v).all()}
            if not scores:  # Each metric has named it.
                continue
            for metric in (m for m, v in scores.items() if np.ptp(v) == 0):
                self._leave(
                    "targets (from the rank correlations only) whose scores "
                    f"of {metric} are all the same",
                    [target],
                )
            other = None if ceiling is None else ceiling[rows, n]
            if other is not None and not np.isfinite(other).all():
                self._leave("targets without a whole ceiling", [target])
                other = None
            of = self.group.name, target, places[rows], column
            cells.append(Cell(*of, seeds[:, rows, n], scores, other))
        return cells

    def _common(
        self, what: str, scored: Sequence[str], known: Sequence[str]
    ) -> tuple[str, ...]:
        a, b = set(scored), set(known)
        self._leave(f"{what} with scores and no truth", a - b)
        self._leave(f"{what} with truth and no scores", b - a)
        return tuple(sorted(a & b))

    def _of(self, table: Scores | Truth, values: np.ndarray) -> np.ndarray:
        """[..., M, N] in this table's order, NaN for what it lacks."""
        # A name that is not there finds the row or column of NaN at the end.
        pad = [(0, 0)] * (values.ndim - 2) + [(0, 1), (0, 1)]
        padded = np.pad(values, pad, constant_values=np.nan)
        rows = {name: i for i, name in enumerate(table.sources)}
        columns = {name: i for i, name in enumerate(table.targets)}
        padded = padded[..., [rows.get(n, -1) for n in self.sources], :]
        return padded[..., [columns.get(n, -1) for n in self.targets]]

    def _pairs(self, which: np.ndarray) -> list[str]:
        names = self.sources, self.targets
        return [f"{names[0][m]}>{names[1][n]}" for m, n in np.argwhere(which)]

    def _leave(self, reason: str, names: Sequence[str] | set[str]) -> None:
        self.left += [(self.group.name, reason, name) for name in sorted(names)]
