"""How alike two tasks are, from what their prompts do to the backbone.

Every metric is [M, ...] x [N, ...] -> [M, N], higher = more transferable,
jitted, fp32.
"""

import jax
import jax.numpy as jnp

from panda_jax.errors import unknown_name
from panda_jax.types import Array, ArrayLike

READOUTS = ("pooled", "first", "mean")


@jax.jit
def cosine(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine of every row of `a` with every row of `b`.

    Args:
      a: [M, D].
      b: [N, D].

    Returns:
      [M, N] in [-1, 1]; 0 where a row is all zeros.
    """

    def unit(x: ArrayLike) -> Array:
        x = jnp.asarray(x, jnp.float32)
        # Dividing by the largest entry first keeps the squares finite.
        x = x / jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30)
        norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        return x / jnp.maximum(norm, 1e-30)

    product = jnp.matmul(
        unit(a), unit(b).T, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.clip(product, -1.0, 1.0)


def activation_similarity(a: ArrayLike, b: ArrayLike) -> Array:
    """The paper's metric: cosine of two task vectors.

    A task vector h_T is the mean, over examples of task T, of the frozen
    backbone's output with T's own tuned prompt (arXiv 2208.10160; the
    published matrices are symmetric with unit diagonal, as this is).

    Args:
      a: [M, D] task vectors.
      b: [N, D] task vectors.

    Returns:
      [M, N] in [-1, 1].
    """
    return cosine(a, b)


@jax.jit
def e_avg(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine of the prompts averaged over their positions.

    Vu et al., 2022 (SPoT, arXiv 2110.07904), section 3.2, "cosine similarity
    of average tokens".  A deep prompt's position is the concatenation of its
    key and value vectors of all layers.  Invariant to the positions' order.

    Args:
      a: [M, P, D] shallow, or [M, L, 2, P, H, K] deep prompts.
      b: [N, ...] of the same kind and sizes.

    Returns:
      [M, N] in [-1, 1].
    """

    def average(x: ArrayLike) -> Array:
        x = jnp.asarray(x, jnp.float32)
        mean = x.mean(axis=3 if x.ndim == 6 else 1)
        return mean.reshape(len(x), -1)

    return cosine(average(a), average(b))


@jax.jit
def neuron_overlap(a: ArrayLike, b: ArrayLike) -> Array:
    """ON: cosine of which feed-forward neurons two prompts activate.

    Su et al., 2022 (NAACL, arXiv 2111.06719), section 5: activations of every
    layer at one position, binarised (> 0) and concatenated.

    Args:
      a: [M, L, F] activations.
      b: [N, L, F] activations.

    Returns:
      [M, N] in [0, 1].
    """

    def active(x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        return (x > 0).astype(jnp.float32).reshape(len(x), -1)

    return cosine(active(a), active(b))


def check_readout(name: str) -> str:
    """`name`, if it is a readout.

    Raises:
      UserError: it is none.
    """
    if name not in READOUTS:
        raise unknown_name("readout", name, READOUTS)
    return name
