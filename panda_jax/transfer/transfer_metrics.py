"""Every transferability metric: what it reads, and whether that is a label.

Higher = more transferable for all of them. None reads an evaluation split.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from panda_jax.config import registry
from panda_jax.config.registry import Registry
from panda_jax.transfer import similarity, transferability


@dataclasses.dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
      name: as users give it.
      reads: `vectors` of both prompts; `output` or `neurons` of the backbone
        under both; `features` of the target's rows under the source's prompt;
        `gradient` of the target's loss at its start; `training`, some steps
        from the source's prompt.
      labels: whether it reads labels, of the target's training rows.
      about: a line for people.
      function: of what was read.
      bounded: whether scores lie in [-1, 1].
    """

    name: str
    reads: str
    labels: bool
    about: str
    function: Callable[..., Any]
    bounded: bool = True

    @property
    def runs_backbone(self) -> bool:
        """Whether it takes more than the prompts' own numbers."""
        return self.reads != "vectors"

    @property
    def reads_encoder(self) -> bool:
        """Whether it reads what a prompt does to the encoder."""
        return self.reads in ("output", "neurons", "features")

    @property
    def needs_target_prompt(self) -> bool:
        """Whether a target is a tuned prompt, or its training rows do."""
        return not self.labels


_ALL = (
    Measure(
        "panda",
        "output",
        False,
        "cosine of mean outputs, each task's rows under its own prompt",
        similarity.activation_similarity,
    ),
    Measure(
        "e_avg",
        "vectors",
        False,
        "cosine of the prompts' mean vectors",
        similarity.e_avg,
    ),
    Measure(
        "on",
        "neurons",
        False,
        "overlap of activated feed-forward neurons",
        similarity.neuron_overlap,
    ),
    Measure(
        "e_pairs",
        "vectors",
        False,
        "mean cosine over all pairs of vectors",
        similarity.token_pairs,
    ),
    Measure(
        "e_concat",
        "vectors",
        False,
        "cosine of the whole prompts",
        similarity.e_concat,
    ),
    Measure(
        "d_concat",
        "vectors",
        False,
        "1 / (1 + distance of the whole prompts)",
        similarity.distance_concat,
    ),
    Measure(
        "d_avg",
        "vectors",
        False,
        "1 / (1 + mean distance over all pairs of vectors)",
        similarity.distance_average,
    ),
    Measure(
        "logme",
        "features",
        True,
        "log evidence of a linear readout of the target's labels",
        transferability.log_me,
        bounded=False,
    ),
    Measure(
        "h_score",
        "features",
        True,
        "between-class share of the features' covariance",
        transferability.h_score,
        bounded=False,
    ),
    Measure(
        "probe",
        "features",
        True,
        "left-out accuracy of a linear readout",
        transferability.linear_probe,
    ),
    Measure(
        "gradient",
        "gradient",
        True,
        "whether the target's first step would be towards the source",
        similarity.gradient_alignment,
    ),
    Measure(
        "first_steps",
        "training",
        True,
        "how well some steps from the source do on left-out training rows",
        lambda losses: -losses,
        bounded=False,
    ),
)

METRICS: Registry[Measure] = registry.METRICS
METRICS.fill({measure.name: measure for measure in _ALL})
# Weighs the distillation, as in the paper.
DEFAULT = "panda"
# Ranks sources: the best on the published figures and on our own, if by less
# than chance could make (docs/results.md).
RANKING = "e_avg+on+panda"
