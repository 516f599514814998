"""Task losses, distillation losses, and their sum.

All take logits [B, C] in fp32 and return a scalar, lower = better.
"""

import jax
import jax.numpy as jnp

from panda_jax.types import Array

# The factor that the released training script multiplies its own weight by.
_RELEASED_FACTOR = 0.1


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over [B] of -log softmax(logits)[label]."""
    log_probabilities = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -picked.mean()


def squared_error(logits: Array, labels: Array) -> Array:
    """Mean over [B] of (logits[:, 0] - label)^2, for regression."""
    return jnp.square(logits[:, 0] - labels).mean()


def task_loss(logits: Array, labels: Array, *, kind: str) -> Array:
    """The loss against the labels; `kind` as in the task's specification."""
    if kind == "regression":
        return squared_error(logits, labels)
    return cross_entropy(logits, labels)


def kd_mse(student: Array, teacher: Array) -> Array:
    """mean((student - teacher)^2) over [B, C]: the released code's KD term.

    The teacher gets no gradient.
    """
    return jnp.square(student - jax.lax.stop_gradient(teacher)).mean()


def kd_kl(student: Array, teacher: Array, *, temperature: float) -> Array:
    """T^2 * mean_B KL(softmax(teacher / T) || softmax(student / T)).

    Hinton et al., 2015 (arXiv 1503.02531), section 2.1; the factor T^2 keeps
    the gradient's size when T changes.  The teacher gets no gradient.
    """
    teacher = jax.lax.stop_gradient(teacher) / temperature
    log_p = jax.nn.log_softmax(teacher)
    log_q = jax.nn.log_softmax(student / temperature)
    divergence = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return temperature**2 * divergence.mean()


def kd_loss(
    student: Array, teacher: Array, *, form: str, temperature: float
) -> Array:
    """The distillation term, `form` one of `"mse"` and `"kl"`.

    One output (regression) has no distribution, so it is always `"mse"`.
    """
    if form == "kl" and student.shape[-1] > 1:
        return kd_kl(student, teacher, temperature=temperature)
    return kd_mse(student, teacher)


def released_weight(beta: float, batch_size: int) -> float:
    """The factor on `kd_mse` in the released code: 0.1 * beta / batch."""
    return _RELEASED_FACTOR * beta / batch_size


def panda_loss(task: Array, kd: Array, weight: Array | float) -> Array:
    """task + weight * kd: the one objective of every method.

    Prompt-tuning and vanilla transfer are weight 0.
    """
    return task + weight * kd
