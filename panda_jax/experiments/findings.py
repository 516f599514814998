"""What a judge of metrics finds, as values."""

import dataclasses
from typing import Any, NamedTuple

from panda_jax.errors import UserError
from panda_jax.experiments.cells import Cells, LeftOut
from panda_jax.experiments.resampling import Reliability

# Rows beside the metrics'; no metric of a file should be spelt so.
CHANCE = "[chance]"
CEILING = "[ceiling]"


class Estimate(NamedTuple):
    """One statistic of one metric.

    Attributes:
      metric: its name, or `[chance]` or `[ceiling]`.
      statistic: spearman, tau, ndcg@K, regret@K or gain@1.
      backbone: its name; "" for the mean over all.
      target: its name; "" for the mean over all.
      value: NaN where undefined. Lower is better for regret, else higher.
      low: of the interval; NaN where nothing can be said.
      high: of the same.
      p: one-sided, of spearman against shuffled sources; else NaN.
      cells: how many targets (of all backbones) have a value.
      caution: what stands beside it where targets or sources are few.
    """

    metric: str
    statistic: str
    backbone: str
    target: str
    value: float
    low: float
    high: float
    p: float
    cells: int
    caution: str


class Comparison(NamedTuple):
    """One metric against another on the targets that both have.

    Attributes:
      first: a metric.
      second: another.
      statistic: which.
      difference: the first's average minus the second's.
      low: of the interval; NaN where nothing can be said.
      high: of the same.
      p: two-sided, of spearman and tau; else NaN.
      holm: p corrected for the number of pairs of metrics.
      caution: what stands beside it where targets or sources are few.
    """

    first: str
    second: str
    statistic: str
    difference: float
    low: float
    high: float
    p: float
    holm: float
    caution: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a judge of metrics found.

    Attributes:
      metrics: their names, combinations last.
      backbones: their names; one "" where they have none.
      targets: their names.
      about: the counts and settings.
      estimates: every statistic: averages, by backbone, by target, by both.
      comparisons: of every two metrics.
      other_self: metric -> mean Spearman by the other choice about self-pairs;
        empty where there are none.
      reliability: of a truth with several seeds, else None.
      judged: the pairs, and what was left out.
    """

    metrics: tuple[str, ...]
    backbones: tuple[str, ...]
    targets: tuple[str, ...]
    about: dict[str, Any]
    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    other_self: dict[str, float]
    reliability: Reliability | None
    judged: Cells

    @property
    def left_out(self) -> list[LeftOut]:
        """What was not judged, by name."""
        return self.judged.left_out

    def get(
        self,
        metric: str,
        statistic: str = "spearman",
        *,
        backbone: str = "",
        target: str = "",
    ) -> Estimate:
        """One estimate; by default the mean over targets and backbones.

        Raises:
          UserError: there is none of these names.
        """
        for estimate in self.estimates:
            if estimate[:4] == (metric, statistic, backbone, target):
                return estimate
        raise UserError(
            f"No {statistic!r} of {metric!r} (backbone {backbone!r}, target "
            f"{target!r}). Metrics: {', '.join(self.metrics)}; backbones: "
            f"{', '.join(self.backbones)}; targets: {', '.join(self.targets)}."
        )
