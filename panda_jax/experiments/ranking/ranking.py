"""`evaluate_ranking`: how well metrics say which source helps a target."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_jax.errors import UserError
from panda_jax.experiments import inference
from panda_jax.experiments.ranking import data, statistics
from panda_jax.experiments.ranking.data import ScoresLike, TruthLike
from panda_jax.experiments.ranking.report import (
    CEILING,
    CHANCE,
    Comparison,
    Estimate,
    RankingReport,
)

# Statistics that one source more or less moves but little.
SMOOTH = ("spearman", "tau")


def evaluate_ranking(
    scores: ScoresLike,
    truth: TruthLike,
    *,
    metrics: Sequence[str] | None = None,
    combine: Sequence[str] = (),
    ceiling: TruthLike | None = None,
    include_self: bool = True,
    ks: Sequence[int] = (3, 5),
    resamples: int = 2000,
    permutations: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankingReport:
    """Judges metrics by how they rank the sources of each target.

    Each statistic is computed a target over its sources, averaged over the
    targets of each backbone, and then over the backbones. What each is, and
    how ties are treated, is said in `statistics`. Intervals of spearman and
    tau, and p of two metrics' difference, are of `inference.infer`, sources and
    targets being crossed, over the jackknife's parts (`statistics.pseudo`).
    The others jump where a source goes, which no jackknife follows: theirs are
    percentiles of a bootstrap over both (`statistics.draw`), without p. With
    fewer than 3 targets an interval is over sources alone. A combination with a
    prior is taken as it is, its prior not learned again in each resampling.

    Args:
      scores: a table of scores, one a backbone by name, or score files (see
        `data.match`); higher = more transferable.
      truth: results of transfers, likewise; higher = better. With a column
        `seed` the truth is the mean over seeds, and their split halves say how
        high a predictor could come.
      metrics: which to judge; None for all.
      combine: combinations to judge beside them, such as "e_avg+on+panda" or
        "e_avg+on+panda+1.5*prior" (see `combine.combined`).
      ceiling: other results of the same transfers, such as those of longer
        training, judged as if they were a metric.
      include_self: whether a source of the target's own name counts.
      ks: how many of a ranking's first NDCG and regret look at.
      resamples: of the bootstrap; 0 for none, and so no intervals of the
        statistics that need it.
      permutations: of the sources, for p; 0 for none.
      confidence: of the intervals.
      seed: of everything drawn.

    Raises:
      UserError: a file or setting is wrong, or nothing is common to scores and
        truth.
    """
    _check(ks, resamples, permutations, confidence)
    groups, lacking = data.match(scores, truth, ceiling)
    settings: dict[str, Any] = {"metrics": metrics, "combine": combine}
    found = data.collect(groups, **settings, include_self=include_self)
    found.left_out[:0] = [
        data.LeftOut((name,), f"backbones: {what}", (name,))
        for name, what in lacking
    ]
    cells = found.cells
    judged = statistics.statistics(ks)
    judge = _Judge(found, judged, resamples, permutations, confidence, seed)
    names = list(found.metrics)
    if any(cell.ceiling is not None for cell in cells):
        names.append(CEILING)
    pairs = [(s, cell) for cell in cells for s in map(int, cell.sources)]
    about = {"sources": len({s for s, _ in pairs}), "cells": len(cells)}
    own = sum(found.sources[s] == cell.target for s, cell in pairs)
    about |= {"pairs": len(pairs), "self_pairs": own}
    about |= {"include_self": include_self, "resamples": resamples}
    about |= {"permutations": permutations, "confidence": confidence}
    about["seed"] = seed
    estimates = [e for n in (*names, CHANCE) for e in judge.estimates(n)]
    return RankingReport(
        metrics=found.metrics,
        backbones=tuple(dict.fromkeys(cell.backbone for cell in cells)),
        targets=tuple(sorted({cell.target for cell in cells})),
        about=about,
        estimates=tuple(estimates),
        comparisons=tuple(judge.comparisons()),
        other_self=_other_self(groups, settings, include_self),
        reliability=statistics.split_half(cells, seed=seed),
        judged=found,
    )


@dataclasses.dataclass
class _Judge:
    """Estimates and comparisons of what was collected."""

    found: data.Cells
    judged: dict[str, statistics.Statistic]
    resamples: int
    permutations: int
    confidence: float
    seed: int

    def __post_init__(self) -> None:
        self.cells, metrics = self.found.cells, self.found.metrics
        count, seed = len(self.found.sources), {"seed": self.seed}
        self.draws = statistics.draw(
            self.cells, sources=count, resamples=self.resamples, **seed
        )
        many = {"sources": count, "permutations": self.permutations, **seed}
        self._shuffled = statistics.shuffled(self.cells, metrics, **many)
        # All, then without each.
        left = np.concatenate([np.ones((1, count)), 1 - np.eye(count)])
        self._left = left.astype(np.int64)
        self._smooth = [i for i, n in enumerate(self.judged) if n in SMOOTH]
        self._values: dict[str, np.ndarray] = {}
        self._parts: dict[str, np.ndarray] = {}

    def estimates(self, metric: str) -> list[Estimate]:
        """Every statistic of a metric at every level."""
        values = self._measured(metric)
        estimates = []
        for backbone, target, own in self._levels():
            cells = [self.cells[c] for c in own]
            ones = np.ones((1, len(own)))
            weights = ones if target else self.draws.targets[:, own]
            means = statistics.average(values[:, own], cells, weights)
            metrics = () if metric == CHANCE else (metric,)
            low, high, _, caution = self._sure(means, own, metrics)
            p = math.nan
            if metric in self.found.metrics:
                place = self.found.metrics.index(metric)
                shuffled = self._shuffled[:, own, place]
                shuffled = statistics.average(shuffled, cells, ones)
                p = float(statistics.chance(means[0, 0], shuffled))
            counts = (~np.isnan(values[0, own])).sum(axis=0)
            for s, name in enumerate(self.judged):
                sure = float(means[0, s]), float(low[s]), float(high[s])
                tested = p if name == "spearman" else math.nan
                place = metric, name, backbone, target
                more = tested, int(counts[s]), caution
                estimates.append(Estimate(*place, *sure, *more))
        return estimates

    def comparisons(self) -> list[Comparison]:
        """Every two metrics, statistic by statistic."""
        pairs = list(itertools.combinations(self.found.metrics, 2))
        rows = []
        every = range(len(self.cells))
        weights = self.draws.targets
        for pair in pairs:
            first, second = map(self._measured, pair)
            means = statistics.average(first - second, self.cells, weights)
            rows.append((means[0], *self._sure(means, every, pair)))
        told = []
        for s, name in enumerate(self.judged):
            corrected = inference.holm([float(row[3][s]) for row in rows])
            for pair, row, p in zip(pairs, rows, corrected, strict=True):
                apart, low, high, raw = (float(part[s]) for part in row[:4])
                more = apart, low, high, raw, p, row[4]
                told.append(Comparison(*pair, name, *more))
        return told

    def _sure(
        self, means: np.ndarray, own: Sequence[int], metrics: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        """Low, high and p of every statistic, and a caution.

        Args:
          means: [R, K], the observed first.
          own: the cells that they are of.
          metrics: whose they are: one's, two's difference, or nobody's.
        """
        cells = [self.cells[c] for c in own]
        drawn = means[1:] if metrics else means[:0]
        low, high = statistics.interval(drawn, self.confidence)
        p = np.full(low.shape, np.nan)
        if not metrics or not self._smooth:
            return low, high, p, ""
        parts = [self._part(metric)[:, own] for metric in metrics]
        apart = parts[0] - parts[1] if len(parts) > 1 else parts[0]
        table, weights = statistics.pseudo(apart, cells)
        smooth = self._smooth
        low[smooth] = high[smooth] = np.nan
        if not weights.any():
            return low, high, p, ""
        seen, confidence = means[0, smooth], self.confidence
        found = inference.infer(
            table, weights, confidence=confidence, estimate=seen
        )
        # A correlation ends at 1, a difference of two at 2.
        end = len(metrics)
        low[smooth] = np.maximum(found.low, -end)
        high[smooth] = np.minimum(found.high, end)
        if len(metrics) > 1:
            p[smooth] = found.p
        counts = [int((weights > 0).any(axis=axis).sum()) for axis in (1, 0)]
        few = inference.few(zip(counts, ("target", "source"), strict=True))
        alone = "" if found.rows else ", and for these targets alone"
        caution = f"only {' and '.join(few)}{alone}" if few else ""
        return low, high, p, caution

    def _part(self, metric: str) -> np.ndarray:
        """[1 + all sources, C, smooth], all and without each source."""
        if metric not in self._parts:
            known = self.judged
            smooth = {name: known[name] for name in SMOOTH if name in known}
            self._parts[metric] = statistics.measured(
                self.cells, self._scores(metric), self._left, smooth
            )
        return self._parts[metric]

    def _levels(self) -> list[tuple[str, str, list[int]]]:
        """(backbone, target, cells) of each mean, "" where it is over all."""
        wanted = [("", "")]
        backbones = list(dict.fromkeys(cell.backbone for cell in self.cells))
        targets = sorted({cell.target for cell in self.cells})
        wanted += [("", target) for target in targets]
        if len(backbones) > 1:
            wanted += [(backbone, "") for backbone in backbones]
            wanted += [(cell.backbone, cell.target) for cell in self.cells]
        levels = []
        for backbone, target in wanted:
            cells = (
                backbone in ("", cell.backbone) and target in ("", cell.target)
                for cell in self.cells
            )
            levels.append((backbone, target, np.flatnonzero([*cells]).tolist()))
        return levels

    def _scores(self, metric: str) -> list[np.ndarray | None]:
        if metric == CEILING:
            return [cell.ceiling for cell in self.cells]
        if metric == CHANCE:
            return [np.zeros(len(cell.truth)) for cell in self.cells]
        return [cell.scores.get(metric) for cell in self.cells]

    def _measured(self, metric: str) -> np.ndarray:
        """[R, C, K], the observed first."""
        if metric not in self._values:
            given = self._scores(metric), self.draws.sources, self.judged
            values = statistics.measured(self.cells, *given)
            if metric == CHANCE:
                # Over all orders the rank correlations average to 0.
                values[:, :, :2] = 0.0
            self._values[metric] = values
        return self._values[metric]


def _other_self(
    groups: Sequence[data.Group], settings: dict[str, Any], include_self: bool
) -> dict[str, float]:
    """Mean Spearman by the other choice, where there are self-pairs."""
    tables = [group.scores for group in groups]
    if not any(set(table.sources) & set(table.targets) for table in tables):
        return {}
    try:
        found = data.collect(groups, **settings, include_self=not include_self)
    except UserError:  # Too few sources are left without them.
        return {}
    spearman = {"spearman": statistics.spearman}
    judge = _Judge(found, spearman, 0, 0, 0.95, 0)
    names = list(found.metrics)
    if any(cell.ceiling is not None for cell in found.cells):
        names.append(CEILING)
    return {name: judge.estimates(name)[0].value for name in names}


def _check(
    ks: Sequence[int], resamples: int, permutations: int, confidence: float
) -> None:
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise UserError(f"ks is {ks}, expected different numbers above 0.")
    if min(resamples, permutations) < 0:
        raise UserError(
            f"resamples is {resamples} and permutations {permutations}, "
            "expected 0 or more."
        )
    if not 0 < confidence < 1:
        raise UserError(
            f"confidence is {confidence}, expected a number between 0 and 1, "
            "such as 0.95."
        )
