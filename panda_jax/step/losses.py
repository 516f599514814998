"""Task losses, distillation losses, and their sum.

Every kind of task is brought to one form, `Scored`: N distributions over C
alternatives each.  All functions return a fp32 scalar, lower = better.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from panda_jax.types import Array, ArrayLike

# The factor that the released training script multiplies its own weight by.
_RELEASED_FACTOR = 0.1

# exp(-1e9) is 0 in fp32, and unlike -inf it keeps gradients finite.
_NEVER = -1e9


class Scored(NamedTuple):
    """A batch's logits as N rows of C alternatives.

    Attributes:
      logits: [N, C] fp32.
      valid: [N, C] bool, which entries count at all; a row without any counts
        for nothing.
    """

    logits: Array
    valid: Array


def scored(
    logits: Array,
    labels: Array,
    tokens: Array,
    *,
    kind: str,
    real: Array | None = None,
) -> Scored:
    """Logits by the kind of task: what is chosen between lies in one row.

    Args:
      logits: as `models.bert.apply` gives them.
      labels: as in `types.Batch`.
      tokens: [B, T], for what is padding.
      kind: as in the task's specification, or `"text"`.
      real: [B] bool, which rows are any; None for all. Of kinds classification
        and regression alone: the others' labels and tokens say so.

    Returns:
      N x C: B x classes; B x 1 (regression); B x K candidates; B*T x tags;
      2B x T positions: of each text the starts, then the ends; or B*U x V
      pieces of target texts, padding not counted.
    """
    if kind == "choice":
        return Scored(logits.reshape(labels.shape), labels >= 0)
    if kind == "tags":
        logits = logits.reshape(-1, logits.shape[-1])
        valid = labels.reshape(-1, 1) >= 0
    elif kind == "text":
        logits = logits.reshape(-1, logits.shape[-1])
        valid = labels.reshape(-1, 1) != 0
    elif kind == "span":
        valid = jnp.repeat(tokens != 0, 2, axis=0)
        logits = jnp.moveaxis(logits, -1, 1).reshape(valid.shape)
    else:
        valid = jnp.ones((len(logits), 1), bool)
        if real is not None:
            valid = real[:, None]
    return Scored(logits, jnp.broadcast_to(valid, logits.shape))


class Shares(NamedTuple):
    """What the means of a batch's parts weigh in the batch's own mean.

    Attributes:
      rows: a part's rows that count, over their mean over all parts.
      entries: likewise the entries that count.
    """

    rows: Array
    entries: Array


def shares(labels: Array, tokens: Array, *, kind: str) -> Shares:
    """Of each part, so that the mean over parts is that over the batch.

    Args:
      labels: [parts, ...], each part's as in `types.Batch`.
      tokens: [parts, ...], likewise.
      kind: as in `scored`.

    Returns:
      [parts] and [parts] fp32, 1 where parts have equally many.
    """

    def count(labels: Array, tokens: Array) -> tuple[Array, Array]:
        shape = {
            "choice": labels.shape,
            "tags": (*labels.shape, 1),
            "text": (*labels.shape, 1),
            "span": (*tokens.shape, 2),
        }.get(kind, (len(labels), 1))
        valid = scored(jnp.zeros(shape), labels, tokens, kind=kind).valid
        return valid.any(-1).sum(), valid.sum()

    rows, entries = jax.vmap(count)(labels, tokens)
    return Shares(
        *(n * len(n) / jnp.maximum(n.sum(), 1) for n in (rows, entries))
    )


def task_loss(rows: Scored, labels: Array, *, kind: str) -> Array:
    """The loss against the labels; `kind` as in the task's specification.

    Mean over the rows of -log of the probability that the right alternatives
    have together (one right: cross-entropy; several right candidates: the
    marginal likelihood); for regression of the squared error.
    """
    if kind == "regression":
        square = jnp.square(rows.logits[:, 0] - labels)
        return _row_mean(square, rows.valid)
    log_p = _log_softmax(rows.logits, rows.valid)
    if kind == "choice":
        right_log_p = jnp.where(labels == 1, log_p, _NEVER)
        right = jax.nn.logsumexp(right_log_p, axis=-1)
    else:
        # No label (-1) is in a row that does not count.
        at = jnp.maximum(labels.reshape(-1, 1), 0)
        right = jnp.take_along_axis(log_p, at, axis=-1)[:, 0]
    return _row_mean(-right, rows.valid)


def kd_mse(student: Array, teacher: Array, valid: Array) -> Array:
    """Mean of (student - teacher)^2 over the valid entries of [N, C].

    The released code's KD term, where all entries are valid.  The teacher
    gets no gradient.
    """
    square = jnp.square(student - jax.lax.stop_gradient(teacher))
    return jnp.where(valid, square, 0).sum() / jnp.maximum(valid.sum(), 1)


def kd_kl(
    student: Array, teacher: Array, valid: Array, *, temperature: float
) -> Array:
    """T^2 * mean_N KL(softmax(teacher / T) || softmax(student / T)).

    Hinton et al., 2015 (arXiv 1503.02531), section 2.1; the factor T^2 keeps
    the gradient's size when T changes.  The teacher gets no gradient.
    """
    teacher = jax.lax.stop_gradient(teacher)
    log_p = _log_softmax(teacher / temperature, valid)
    log_q = _log_softmax(student / temperature, valid)
    divergence = jnp.where(valid, jnp.exp(log_p) * (log_p - log_q), 0).sum(-1)
    return temperature**2 * _row_mean(divergence, valid)


def kd_loss(
    student: Scored, teacher: Array, *, form: str, temperature: float
) -> Array:
    """The distillation term, `form` one of `"mse"` and `"kl"`.

    One output (regression) has no distribution, so it is always `"mse"`.

    Args:
      student: the student's rows.
      teacher: [N, C] the teacher's logits, in the same rows.
      form: of the loss.
      temperature: of `"kl"`.
    """
    if form == "kl" and student.logits.shape[-1] > 1:
        return kd_kl(
            student.logits, teacher, student.valid, temperature=temperature
        )
    return kd_mse(student.logits, teacher, student.valid)


def agreement(student: Scored, teacher: Array) -> Array:
    """The share of rows where both rank the same alternative first, 0 to 1."""
    a, b = (
        jnp.where(student.valid, x, _NEVER).argmax(-1)
        for x in (student.logits, teacher)
    )
    return _row_mean((a == b).astype(jnp.float32), student.valid)


def released_weight(beta: float, batch_size: int) -> float:
    """The factor on `kd_mse` in the released code: 0.1 * beta / batch."""
    return _RELEASED_FACTOR * beta / batch_size


def panda_loss(task: Array, kd: Array, weight: ArrayLike | float) -> Array:
    """task + weight * kd: the one objective of every method.

    Prompt-tuning and vanilla transfer are weight 0.
    """
    return task + weight * kd


def _log_softmax(logits: Array, valid: Array) -> Array:
    """Over the valid alternatives of each row of [N, C]."""
    return jax.nn.log_softmax(jnp.where(valid, logits, _NEVER), axis=-1)


def _row_mean(values: Array, valid: Array) -> Array:
    """Mean of [N] over the rows that have a valid entry."""
    counts = valid.any(-1)
    return jnp.where(counts, values, 0).sum() / jnp.maximum(counts.sum(), 1)
