"""Which pairs a metric is judged on, and what was left out and why."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from panda_jax.combine import combined
from panda_jax.errors import UserError, unknown_name
from panda_jax.experiments.truth import Group
from panda_jax.scores import Scores

FEWEST = 3


@dataclasses.dataclass(frozen=True)
class Cell:
    """One target of one backbone: S sources that all its metrics have scored.

    Attributes:
      backbone: its name.
      target: its name.
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
    """What is not judged, by name.

    Attributes:
      backbones: where.
      reason: such as "targets without truth".
      names: of the targets, sources or pairs (`source>target`).
    """

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
    """Everything that is judged.

    Attributes:
      cells: backbone by backbone, targets in order of name.
      sources: all names, in order.
      metrics: all names, combinations last.
      left_out: what is not judged.
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
    and takes no pair from the others.

    Args:
      groups: scores and truth of each backbone.
      metrics: which; None for all.
      combine: expressions that `combine.combined` evaluates.
      include_self: whether a source of the target's own name counts.

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
    left_out = _merged(left)
    if not cells:
        reasons = "; ".join(map(str, left_out))
        raise UserError(
            f"No target has {FEWEST} sources with both truth and scores "
            f"({reasons}). Sources and targets need the same names in both "
            "files."
        )
    judged = (*names, *dict.fromkeys(combine))
    return Cells(cells, tuple(sources), judged, left_out)


class _Table:
    """One backbone's scores and truth, by the same sources and targets."""

    def __init__(
        self,
        group: Group,
        metrics: Sequence[str],
        include_self: bool,
        left: list[tuple[str, str, str]],
    ) -> None:
        self.group, self.include_self, self.left = group, include_self, left
        scores, truth = group.scores, group.truth
        self.sources = self._common("sources", scores.sources, truth.sources)
        self.targets = self._common("targets", scores.targets, truth.targets)
        self.values = {
            metric: self._of(
                scores.sources, scores.targets, scores.values[metric]
            )
            for metric in metrics
            if metric in scores.values
        }
        for metric in metrics:
            if metric not in self.values:
                self._leave(
                    f"targets without a score of {metric}", self.targets
                )
        self.truth = self._of(truth.sources, truth.targets, truth.values)
        own = np.array([[s == t for t in self.targets] for s in self.sources])
        self.own = own.reshape(self.truth.shape).astype(bool)
        if not include_self:
            self.truth = np.where(self.own, np.nan, self.truth)

    def narrow(self) -> None:
        """Keeps the pairs that truth and all of a target's metrics have."""
        known = np.isfinite(self.truth)
        kept = known.copy()
        for metric, values in self.values.items():
            has = np.isfinite(values) & known
            scored = has.any(axis=0)
            self._leave(
                f"targets without a score of {metric}",
                self._names(np.logical_and(known.any(axis=0), ~scored)),
            )
            self._leave(
                f"pairs without a score of {metric}",
                self._pairs(known & ~has & scored),
            )
            kept &= has | ~scored
        missing = np.zeros(known.shape, bool)
        for values in self.values.values():
            missing |= np.isfinite(values) & ~known
        if not self.include_self:
            missing &= ~self.own
        self._leave("pairs with scores and no truth", self._pairs(missing))
        self.truth = np.where(kept, self.truth, np.nan)
        self.values = {
            metric: np.where(kept, values, np.nan)
            for metric, values in self.values.items()
        }

    def add(self, expression: str) -> None:
        """A combination, as one more metric."""
        if not self.truth.size:
            return
        truth = self.group.truth
        results = Scores(truth.sources, truth.targets, {"truth": truth.values})
        self.values[expression] = combined(
            Scores(self.sources, self.targets, self.values),
            results,
            expression,
            include_self=self.include_self,
        )

    def judged(self) -> list[str]:
        """The sources that have a pair left."""
        rows = np.flatnonzero(np.isfinite(self.truth).any(axis=1))
        return [self.sources[m] for m in rows]

    def cells(self, sources: Sequence[str]) -> list[Cell]:
        """Those targets that can be judged, the others are left out by name."""
        truth, top = self.group.truth, self.group.ceiling
        seeds = self._of(truth.sources, truth.targets, truth.seeds)
        ceiling = top and self._of(top.sources, top.targets, top.values)
        at = {name: place for place, name in enumerate(sources)}
        places = np.array([at.get(name, -1) for name in self.sources], int)
        cells = []
        for n, target in enumerate(self.targets):
            rows = np.flatnonzero(np.isfinite(self.truth[:, n]))
            column = self.truth[rows, n]
            if len(rows) < FEWEST:
                self._leave(
                    f"targets with fewer than {FEWEST} sources", [target]
                )
                continue
            if np.ptp(column) == 0:
                self._leave(
                    "targets on which all sources did the same", [target]
                )
                continue
            scores = {m: v[rows, n] for m, v in self.values.items()}
            scores = {m: v for m, v in scores.items() if np.isfinite(v).all()}
            if not scores:  # Each metric has named it.
                continue
            for metric, values in scores.items():
                if np.ptp(values) == 0:
                    self._leave(
                        "targets (from the rank correlations only) whose "
                        f"scores of {metric} are all the same",
                        [target],
                    )
            other = None if ceiling is None else ceiling[rows, n]
            if other is not None and not np.isfinite(other).all():
                self._leave("targets without a whole ceiling", [target])
                other = None
            cells.append(
                Cell(
                    self.group.name,
                    target,
                    places[rows],
                    column,
                    seeds[:, rows, n],
                    scores,
                    other,
                )
            )
        return cells

    def _common(
        self, what: str, scored: Sequence[str], known: Sequence[str]
    ) -> tuple[str, ...]:
        self._leave(
            f"{what} with scores and no truth", set(scored) - set(known)
        )
        self._leave(
            f"{what} with truth and no scores", set(known) - set(scored)
        )
        return tuple(sorted(set(scored) & set(known)))

    def _of(
        self, sources: Sequence[str], targets: Sequence[str], values: np.ndarray
    ) -> np.ndarray:
        """[..., M, N] in this table's order, NaN for what it lacks."""
        # A name that is not there finds the row or column of NaN at the end.
        pad = [(0, 0)] * (values.ndim - 2) + [(0, 1), (0, 1)]
        padded = np.pad(values, pad, constant_values=np.nan)
        rows, columns = (
            [{name: i for i, name in enumerate(has)}.get(n, -1) for n in wanted]
            for has, wanted in (
                (sources, self.sources),
                (targets, self.targets),
            )
        )
        return padded[..., rows, :][..., columns]

    def _names(self, which: np.ndarray) -> list[str]:
        return [self.targets[n] for n in np.flatnonzero(which)]

    def _pairs(self, which: np.ndarray) -> list[str]:
        return [
            f"{self.sources[m]}>{self.targets[n]}"
            for m, n in np.argwhere(which)
        ]

    def _leave(self, reason: str, names: Sequence[str] | set[str]) -> None:
        self.left += [(self.group.name, reason, name) for name in sorted(names)]


def _merged(left: Sequence[tuple[str, str, str]]) -> list[LeftOut]:
    """One entry a reason and set of names, with all backbones it holds for."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for backbone, reason, name in left:
        names.setdefault((backbone, reason), {})[name] = None
    where: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (backbone, reason), found in names.items():
        where.setdefault((reason, tuple(found)), []).append(backbone)
    return [
        LeftOut(tuple(backbones), reason, found)
        for (reason, found), backbones in where.items()
    ]
