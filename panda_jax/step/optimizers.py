"""AdamW and Adafactor; their hyper-parameters are arrays, not constants.

The learning rate and the length of the schedule are arguments of the update,
so that runs that differ in them share one compiled step.
"""

import math

import jax
import jax.numpy as jnp
import optax

from panda_jax.config.registry import OPTIMIZERS, SCHEDULES
from panda_jax.errors import unknown_name
from panda_jax.types import Array, PyTree

# Of schedule `exponential`, as the paper's scripts have it for tags and spans.
EPOCH_DECAY = 0.95


def transform(
    optimizer: str = "adamw", *, clip: float = 1.0
) -> optax.GradientTransformation:
    """Clip by global norm, then the optimizer's direction without its rate.

    `"adamw"`: Adam's. `"adafactor"`: as T5 tunes prompts (Lester et al., 2021):
    not factored, not scaled by the parameters, decay 0.8, blocks clipped to a
    root mean square of 1. States are one or two moments and counters.
    """
    clipped = optax.clip_by_global_norm(clip)
    if optimizer == "adamw":
        return optax.chain(
            clipped, optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
        )
    if optimizer == "adafactor":
        return optax.chain(
            clipped,
            optax.scale_by_factored_rms(factored=False, decay_rate=0.8),
            optax.clip_by_block_rms(1.0),
        )
    raise unknown_name("optimizer", optimizer, OPTIMIZERS)


def learning_rate(
    peak: Array,
    step: Array,
    *,
    total: Array,
    epoch_decay: Array,
    epoch_steps: Array,
) -> Array:
    """peak * max(0, 1 - step / total) * epoch_decay^floor(step / epoch_steps).

    Of update `step` (from 0).  Numbers choose the schedule, so that runs of
    different ones share a compiled step: linear to 0 (a finite `total`, no
    decay), constant (infinite, none), exponential (infinite, 0.95).
    """
    left = jnp.maximum(0.0, 1.0 - step / total)
    return peak * left * epoch_decay ** jnp.floor(step / epoch_steps)


def schedule_numbers(
    schedule: str, *, total: int, epoch_steps: int
) -> dict[str, float]:
    """What `learning_rate` needs for a schedule by name."""
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    return {
        "total_steps": float(total) if schedule == "linear" else math.inf,
        "epoch_decay": EPOCH_DECAY if schedule == "exponential" else 1.0,
        "epoch_steps": float(epoch_steps),
    }


def apply(
    params: PyTree,
    direction: PyTree,
    *,
    rate: Array,
    weight_decay: Array,
    optimizer: str = "adamw",
) -> PyTree:
    """The update of the parameters.

    `"adamw"`: params - rate * (direction + weight_decay * params): Loshchilov
    and Hutter, 2019 (arXiv 1711.05101), algorithm 2.  `"adafactor"`, as in
    T5X: params - rate * direction - weight_decay * params.
    """
    decay = weight_decay if optimizer == "adafactor" else rate * weight_decay
    return jax.tree.map(
        lambda p, d: p - rate * d - decay * p, params, direction
    )
