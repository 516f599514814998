"""Several sources for one target: which of them, and how they become one."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from panda_jax.config.runs import Run
from panda_jax.errors import UserError, unknown_name
from panda_jax.io.files import PathLike
from panda_jax.prompts import Prompt
from panda_jax.store.prompt_folders import PromptBank, StoredPrompt, load_prompt
from panda_jax.transfer.transfer_metrics import METRICS

SourcesLike = (
    PromptBank | PathLike | Mapping[str, StoredPrompt] | Sequence[PathLike]
)

# How a similarity becomes the KD weight's factor.
TRANSFORMS = {
    "clip": lambda s: min(max(s, 0.0), 1.0),
    "square": lambda s: min(max(s, 0.0), 1.0) ** 2,
    "shift": lambda s: min(max((1.0 + s) / 2, 0.0), 1.0),
    "sigmoid": lambda s: 0.5 * (1.0 + math.tanh(s / 2)),
}


def transform_of(run: Run) -> str:
    """The run's, or what its metric's range asks for."""
    bounded = METRICS[run.transfer_metric].bounded
    return run.kd_transform or ("clip" if bounded else "sigmoid")


def factor(similarity: float, transform: str) -> float:
    """The KD weight's factor of a similarity, 0 to 1.

    Args:
      similarity: of any metric, higher = more transferable.
      transform: `clip` to [0, 1], as the paper's cosine asks for; `square` of
        that; `shift` (1 + s) / 2, for cosines whose sign says something;
        `sigmoid`, for metrics without bounds.

    Raises:
      UserError: unknown transform, or a similarity that is no number.
    """
    if transform not in TRANSFORMS:
        raise unknown_name("kd_transform", transform, TRANSFORMS)
    if math.isnan(similarity):
        raise UserError(
            "The metric says nothing of this source and target (NaN): choose "
            "another --transfer_metric, or give --similarity=NUMBER."
        )
    return TRANSFORMS[transform](similarity)


def as_sources(value: SourcesLike, *, task: str) -> dict[str, StoredPrompt]:
    """Prompts by name, those of the target's own task left out.

    Args:
      value: a bank, its folder, a mapping, or several prompt folders.
      task: the target.

    Raises:
      UserError: nothing is left.
    """
    if isinstance(value, str | os.PathLike):
        value = PromptBank(value)
    if isinstance(value, Mapping):
        found = dict(value)
    elif isinstance(value, PromptBank):
        found = {name: value.read(name) for name in value.names}
    else:
        found = {}
        for path in value:
            stored = load_prompt(path)
            name = stored.info.task
            found[name if name not in found else str(path)] = stored
    left = {
        n: stored for n, stored in found.items() if stored.info.task != task
    }
    if not left:
        raise UserError(
            f"The sources hold no prompt of a task other than {task!r}: got "
            f"{', '.join(found) or 'none'}. Train some with: panda-jax train "
            "--task=SOURCE_TASK --method=prompt --model_dir=DIR"
        )
    return left


def top(scores: Mapping[str, float], k: int | None) -> dict[str, float]:
    """The k best, best first; None for all. Those without a score are out."""
    known = {n: s for n, s in scores.items() if math.isfinite(s)}
    best = sorted(known.items(), key=lambda pair: -pair[1])[:k]
    if not best:
        raise UserError(
            "The metric has a score for none of the sources: choose another "
            "--transfer_metric."
        )
    return dict(best)


def shares(scores: Mapping[str, float], transform: str) -> np.ndarray:
    """What each source counts for: its factor's share of the sum, [K]."""
    factors = np.array([factor(s, transform) for s in scores.values()])
    if factors.sum() == 0:
        factors = np.ones(len(factors))
    return factors / factors.sum()


def fused(
    prompts: Sequence[StoredPrompt], weights: Sequence[float]
) -> StoredPrompt:
    """Early fusion: the weighted mean of the sources' vectors, without head.

    The TKDE version names early fusion; no definition of it was found.

    Args:
      prompts: of one backbone, kind and length.
      weights: of each; they sum to 1.

    Raises:
      UserError: prompts of several shapes.
    """
    shapes = {np.shape(stored.prompt.vectors) for stored in prompts}
    if len(shapes) > 1:
        raise UserError(
            f"Sources of the shapes {sorted(shapes)} cannot be fused into one "
            "prompt: give sources of one kind and length, or --fusion=late."
        )
    vectors = sum(
        weight * np.asarray(stored.prompt.vectors, np.float64)
        for weight, stored in zip(weights, prompts, strict=True)
    )
    info = dataclasses.replace(
        prompts[0].info,
        task="+".join(stored.info.task for stored in prompts),
        scores={},
        labels=[],
    )
    return StoredPrompt(Prompt(np.asarray(vectors, np.float32), {}), info)
