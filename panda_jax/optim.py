"""AdamW and Adafactor; their hyper-parameters are arrays, not constants.

The learning rate and the length of the schedule are arguments of the update,
so that runs that differ in them share one compiled step.
"""

import jax
import jax.numpy as jnp
import optax

from panda_jax.errors import unknown_name
from panda_jax.types import Array, PyTree

SCHEDULES = ("linear", "constant")


OPTIMIZERS = ("adamw", "adafactor")


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
    peak: Array, step: Array, total: Array, *, schedule: str
) -> Array:
    """The rate of update `step` (from 0) of `total`.

    `"linear"` decays from `peak` to 0, as the paper's GLUE and SuperGLUE
    scripts do; `"constant"` stays.
    """
    if schedule == "linear":
        return peak * jnp.maximum(0.0, 1.0 - step / total)
    if schedule == "constant":
        return peak
    raise unknown_name("schedule", schedule, SCHEDULES)


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
