"""AdamW with clipping; its hyper-parameters are arrays, not constants.

The learning rate and the length of the schedule are arguments of the update,
so that runs that differ in them share one compiled step.
"""

import jax
import jax.numpy as jnp
import optax

from panda_jax.errors import unknown_name
from panda_jax.types import Array, PyTree

SCHEDULES = ("linear", "constant")


def transform(*, clip: float = 1.0) -> optax.GradientTransformation:
    """Clip by global norm, then Adam's direction (without learning rate).

    Its state is the two moments of what is trained, and a counter.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
    )


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
    params: PyTree, direction: PyTree, *, rate: Array, weight_decay: Array
) -> PyTree:
    """params - rate * (direction + weight_decay * params): AdamW's update.

    Loshchilov and Hutter, 2019 (arXiv 1711.05101), algorithm 2.
    """
    return jax.tree.map(
        lambda p, d: p - rate * (d + weight_decay * p), params, direction
    )
