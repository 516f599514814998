"""`evaluate_ranking`: how well metrics say which source helps a target."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_jax.errors import UserError
from panda_jax.experiments import resampling, two_way
from panda_jax.experiments.cells import Cells, LeftOut, collect
from panda_jax.experiments.findings import (
    CEILING,
    CHANCE,
    Comparison,
    Estimate,
)
from panda_jax.experiments.ranking_report import RankingReport
from panda_jax.experiments.ranking_stats import (
    Statistic,
    spearman,
    statistics,
)
from panda_jax.experiments.truth import Group, ScoresLike, TruthLike, match

# Statistics that one source more or less moves but little.
SMOOTH = ("spearman", "tau")
# Below this many targets or sources an interval warns.
FEW = 5


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
    how ties are treated, is said in `ranking_stats`. Intervals of spearman and
    tau, and p of two metrics' difference, are of `two_way.infer`, sources and
    targets being crossed, over the jackknife's parts (`resampling.pseudo`).
    The others jump where a source goes, which no jackknife follows: theirs are
    percentiles of a bootstrap over both (`resampling.draw`), without p. With
    fewer than 3 targets an interval is over sources alone. A combination with a
    prior is taken as it is, its prior not learned again in each resampling.

    Args:
      scores: a table of scores, one a backbone by name, or score files (see
        `truth.match`); higher = more transferable.
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
    groups, lacking = match(scores, truth, ceiling)
    settings: dict[str, Any] = {"metrics": metrics, "combine": combine}
    found = collect(groups, **settings, include_self=include_self)
    found.left_out[:0] = [
        LeftOut((name,), f"backbones: {what}", (name,))
        for name, what in lacking
    ]
    judge = _Judge(
        found, statistics(ks), resamples, permutations, confidence, seed
    )
    estimates = [e for metric in found.metrics for e in judge.estimates(metric)]
    if any(cell.ceiling is not None for cell in found.cells):
        estimates += judge.estimates(CEILING)
    estimates += judge.estimates(CHANCE)
    cells = found.cells
    return RankingReport(
        metrics=found.metrics,
        backbones=tuple(dict.fromkeys(cell.backbone for cell in cells)),
        targets=tuple(sorted({cell.target for cell in cells})),
        about={
            "sources": len({int(s) for cell in cells for s in cell.sources}),
            "cells": len(cells),
            "pairs": sum(len(cell.sources) for cell in cells),
            "self_pairs": _self_pairs(found),
            "include_self": include_self,
            "resamples": resamples,
            "permutations": permutations,
            "confidence": confidence,
            "seed": seed,
        },
        estimates=tuple(estimates),
        comparisons=tuple(judge.comparisons()),
        other_self=_other_self(groups, settings, include_self),
        reliability=resampling.split_half(cells, seed=seed),
        judged=found,
    )


class _Judge:
    """Estimates and comparisons of what was collected."""

    def __init__(
        self,
        found: Cells,
        statistics: dict[str, Statistic],
        resamples: int,
        permutations: int,
        confidence: float,
        seed: int,
    ) -> None:
        self.found, self.cells = found, found.cells
        self.statistics, self.confidence = statistics, confidence
        self.permutations, self.seed = permutations, seed
        self.draws = resampling.draw(
            found.cells,
            sources=len(found.sources),
            resamples=resamples,
            seed=seed,
        )
        self._values: dict[str, np.ndarray] = {}
        self._parts: dict[str, np.ndarray] = {}
        count = len(found.sources)
        # All, then without each.
        self._left = np.concatenate([np.ones((1, count)), 1 - np.eye(count)])
        self._smooth = [i for i, n in enumerate(statistics) if n in SMOOTH]
        self._shuffled = resampling.shuffled(
            found.cells,
            found.metrics,
            sources=len(found.sources),
            permutations=permutations,
            seed=seed,
        )

    def estimates(self, metric: str) -> list[Estimate]:
        """Every statistic of a metric at every level."""
        values = self._measured(metric)
        estimates = []
        for backbone, target, own in self._levels():
            cells = [self.cells[c] for c in own]
            weights = self.draws.targets[:, own]
            ones = np.ones((1, len(own)))
            means = resampling.average(
                values[:, own], cells, ones if target else weights
            )
            low, high, _, caution = self._sure(
                means, own, () if metric == CHANCE else (metric,)
            )
            p = math.nan
            if metric in self.found.metrics:
                place = self.found.metrics.index(metric)
                shuffled = self._shuffled[:, own, place]
                p = resampling.chance(
                    means[0, 0], resampling.average(shuffled, cells, ones)
                )
            counts = (~np.isnan(values[0, own])).sum(axis=0)
            for s, name in enumerate(self.statistics):
                tested = p if name == "spearman" else math.nan
                estimates.append(
                    Estimate(
                        metric,
                        name,
                        backbone,
                        target,
                        value=float(means[0, s]),
                        low=float(low[s]),
                        high=float(high[s]),
                        p=float(tested),
                        cells=int(counts[s]),
                        caution=caution,
                    )
                )
        return estimates

    def comparisons(self) -> list[Comparison]:
        """Every two metrics, statistic by statistic."""
        pairs = list(itertools.combinations(self.found.metrics, 2))
        rows = []
        every = range(len(self.cells))
        for first, second in pairs:
            apart = self._measured(first) - self._measured(second)
            means = resampling.average(apart, self.cells, self.draws.targets)
            found = self._sure(means, every, (first, second))
            rows.append((means[0], *found))
        told = []
        for s, name in enumerate(self.statistics):
            corrected = resampling.holm([float(row[3][s]) for row in rows])
            for pair, row, p in zip(pairs, rows, corrected, strict=True):
                difference, low, high, raw = (
                    float(part[s]) for part in row[:4]
                )
                told.append(
                    Comparison(
                        *pair, name, difference, low, high, raw, p, row[4]
                    )
                )
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
        low, high = resampling.interval(drawn, self.confidence)
        p = np.full(low.shape, np.nan)
        if not metrics or not self._smooth:
            return low, high, p, ""
        parts = [self._part(metric)[:, own] for metric in metrics]
        apart = parts[0] - parts[1] if len(parts) > 1 else parts[0]
        table, weights = resampling.pseudo(apart, cells)
        smooth = self._smooth
        low[smooth] = high[smooth] = np.nan
        if not weights.any():
            return low, high, p, ""
        found = two_way.infer(
            table,
            weights,
            confidence=self.confidence,
            estimate=means[0, smooth],
        )
        # A correlation ends at 1, a difference of two at 2.
        end = len(metrics)
        low[smooth] = np.maximum(found.low, -end)
        high[smooth] = np.minimum(found.high, end)
        if len(metrics) > 1:
            p[smooth] = found.p
        return low, high, p, _caution(found, weights)

    def _part(self, metric: str) -> np.ndarray:
        """[1 + all sources, C, smooth], all and without each source."""
        if metric not in self._parts:
            self._parts[metric] = resampling.measured(
                self.cells,
                self._scores(metric),
                self._left.astype(np.int64),
                {
                    name: self.statistics[name]
                    for name in SMOOTH
                    if name in self.statistics
                },
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
        return [
            (
                backbone,
                target,
                [
                    c
                    for c, cell in enumerate(self.cells)
                    if backbone in ("", cell.backbone)
                    and target in ("", cell.target)
                ],
            )
            for backbone, target in wanted
        ]

    def _scores(self, metric: str) -> list[np.ndarray | None]:
        if metric == CEILING:
            return [cell.ceiling for cell in self.cells]
        if metric == CHANCE:
            return [np.zeros(len(cell.truth)) for cell in self.cells]
        return [cell.scores.get(metric) for cell in self.cells]

    def _measured(self, metric: str) -> np.ndarray:
        """[R, C, K], the observed first."""
        if metric not in self._values:
            values = resampling.measured(
                self.cells,
                self._scores(metric),
                self.draws.sources,
                self.statistics,
            )
            if metric == CHANCE:
                # Over all orders the rank correlations average to 0.
                values[:, :, :2] = 0.0
            self._values[metric] = values
        return self._values[metric]


def _caution(found: two_way.Inference, weights: np.ndarray) -> str:
    """What the reader of an interval must know, in the same line."""
    targets, sources = ((weights > 0).any(axis=1 - side) for side in (0, 1))
    few = [
        f"{count} {name}{'s' * (count != 1)}"
        for count, name in (
            (int(targets.sum()), "target"),
            (int(sources.sum()), "source"),
        )
        if count < FEW
    ]
    if not few:
        return ""
    alone = "" if found.rows else ", and for these targets alone"
    return f"only {' and '.join(few)}{alone}"


def _other_self(
    groups: Sequence[Group], settings: dict[str, Any], include_self: bool
) -> dict[str, float]:
    """Mean Spearman by the other choice, where there are self-pairs."""
    if not any(
        set(group.scores.sources) & set(group.scores.targets)
        for group in groups
    ):
        return {}
    try:
        found = collect(groups, **settings, include_self=not include_self)
    except UserError:  # Too few sources are left without them.
        return {}
    judge = _Judge(found, {"spearman": spearman}, 0, 0, 0.95, 0)
    means = {
        metric: judge.estimates(metric)[0].value
        for metric in (*found.metrics, CEILING)
    }
    if all(cell.ceiling is None for cell in found.cells):
        del means[CEILING]
    return means


def _self_pairs(found: Cells) -> int:
    return sum(
        found.sources[int(place)] == cell.target
        for cell in found.cells
        for place in cell.sources
    )


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
