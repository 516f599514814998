"""How alike two tasks are, from their prompts or what these do to the backbone.

Every metric is [M, ...] x [N, ...] -> [M, N], higher = more transferable,
jitted, fp32, without NaN for finite input.  A prompt that is all zeros has
cosine 0 with every other.  What each one promises, P being the positions:

                          range    m(a, a)  Gram  unchanged by
  activation_similarity   [-1, 1]  1        PSD   scale
  e_avg                   [-1, 1]  1        PSD   scale, order of P
  token_pairs             [-1, 1]  <= 1     PSD   scale (a token's), order of P
  e_concat                [-1, 1]  1        PSD   scale
  distance_concat         [0, 1]   1        PSD   shift of both
  distance_average        [0, 1]   <= 1     PSD   shift of both, order of P
  neuron_overlap          [0, 1]   1        PSD   scale
  gradient_alignment      [-1, 1]  -              scale of the gradient

m(a, b) = m(b, a) throughout but for `gradient_alignment`, which compares things
of two kinds.
"""

import functools

import jax
import jax.numpy as jnp

from panda_jax.errors import unknown_name
from panda_jax.types import Array, ArrayLike

READOUTS = ("pooled", "first", "mean")
# Entries up to this have squares and sums of squares that fp32 can hold.
_SQUARABLE = 1e15


@jax.jit
def cosine(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine of every row of `a` with every row of `b`.

    Args:
      a: [M, D].
      b: [N, D].

    Returns:
      [M, N] in [-1, 1]; 0 where a row is all zeros.
    """
    (a, a_norm), (b, b_norm) = _scaled(a), _scaled(b)
    # Divided last: sums of 0s and 1s, and what they count, are then exact.
    return _clipped(_product(a, b) / (a_norm * b_norm.T))


def activation_similarity(a: ArrayLike, b: ArrayLike) -> Array:
    """The paper's metric: cosine of two task vectors.

    A task vector h_T is the mean, over examples of task T, of the frozen
    backbone's output with T's own tuned prompt (arXiv 2208.10160; the
    published matrices are symmetric with unit diagonal, as this is).

    Args:
      a: [M, D] task vectors.
      b: [N, D] task vectors.

    Returns:
      [M, N] in [-1, 1]; higher = more transferable.
    """
    return cosine(a, b)


@jax.jit
def e_avg(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine of the prompts averaged over their positions.

    cos(mean_i p_i, mean_j q_j): Vu et al., 2022 (SPoT, arXiv 2110.07904),
    section 3.2, "cosine similarity of average tokens".  A deep prompt's
    position is the concatenation of its key and value vectors of all layers.

    Args:
      a: [M, P, D] shallow, or [M, L, 2, P, H, K] deep prompts.
      b: [N, ...] of the same kind and widths; its P may differ.

    Returns:
      [M, N] in [-1, 1]; higher = more transferable.
    """

    def average(x: ArrayLike) -> Array:
        x = _tokens(x)
        # Scaled first, so that the sum stays finite; a cosine has no scale.
        return _within_1(x, axis=(1, 2)).mean(1)

    return cosine(average(a), average(b))


@jax.jit
def token_pairs(a: ArrayLike, b: ArrayLike) -> Array:
    """Mean cosine of all pairs of positions.

    mean_ij cos(p_i, q_j): SPoT's "per-token average cosine similarity" (section
    3.2) and Su et al.'s average cosine (2022, arXiv 2111.06719, section 5).  It
    is the product of the mean unit vectors, so a prompt scores 1 on itself
    only where all its positions point one way.

    Args:
      a: [M, P, D] shallow, or [M, L, 2, P, H, K] deep prompts.
      b: [N, ...] of the same kind and widths; its P may differ.

    Returns:
      [M, N] in [-1, 1]; higher = more transferable.  A position that is all
      zeros counts 0.
    """

    def average(x: ArrayLike) -> Array:
        x, norm = _scaled(_tokens(x))
        return (x / norm).mean(1)

    return _clipped(_product(average(a), average(b)))


@jax.jit
def e_concat(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine of the whole prompts, position beside position.

    cos(vec P, vec Q): Su et al., 2022 (arXiv 2111.06719), section 5, the cosine
    of concatenated tokens.  The order of the positions counts.

    Args:
      a: [M, P, D] shallow, or [M, L, 2, P, H, K] deep prompts.
      b: [N, ...] of the same kind and sizes.

    Returns:
      [M, N] in [-1, 1]; higher = more transferable.
    """
    return cosine(_flat(a), _flat(b))


@jax.jit
def distance_concat(a: ArrayLike, b: ArrayLike) -> Array:
    """Closeness of the whole prompts, position beside position.

    1 / (1 + ||P - Q||_F): Su et al., 2022 (arXiv 2111.06719), section 5, the
    Euclidean similarity of concatenated tokens.  Reads the prompts' scale.

    Args:
      a: [M, P, D] shallow, or [M, L, 2, P, H, K] deep prompts.
      b: [N, ...] of the same kind and sizes.

    Returns:
      [M, N] in [0, 1], 1 for equal prompts, 0 where the distance is past fp32;
      higher = more transferable.
    """
    a, b, scale = _squarable(_flat(a), _flat(b))
    # Differences themselves: |p|^2 + |q|^2 - 2 pq cancels where prompts are
    # near each other.  One row at a time, since [M, N, D] need not fit.
    distance = jax.lax.map(lambda row: _norm(row - b), a)
    return 1 / (1 + scale * distance)


@jax.jit
def distance_average(a: ArrayLike, b: ArrayLike) -> Array:
    """Closeness of the positions of two prompts, on average.

    1 / (1 + mean_ij ||p_i - q_j||): Su et al., 2022 (arXiv 2111.06719), section
    5, the Euclidean similarity of average tokens.  A prompt's positions lie
    apart, so it does not score 1 on itself, and another prompt, whose positions
    lie between, can score more.

    Args:
      a: [M, P, D] shallow, or [M, L, 2, P, H, K] deep prompts.
      b: [N, ...] of the same kind and widths; its P may differ.

    Returns:
      [M, N] in [0, 1], 0 where the distance is past fp32; higher = more
      transferable.
    """
    a, b, scale = _squarable(_tokens(a), _tokens(b))

    def to_all(tokens: Array) -> Array:
        # The mean distance of [P, D] to each prompt of `b`: two loops inside
        # the outer one, so that no more than [P, D] is made at a time.
        def to_one(other: Array) -> Array:
            return jax.lax.map(lambda q: _norm(tokens - q).mean(), other).mean()

        return jax.lax.map(to_one, b)

    return 1 / (1 + scale * jax.lax.map(to_all, a))


@functools.partial(jax.jit, static_argnames=("binarised",))
def neuron_overlap(
    a: ArrayLike, b: ArrayLike, *, binarised: bool = True
) -> Array:
    """ON: cosine of which feed-forward neurons two prompts activate.

    Su et al., 2022 (NAACL, arXiv 2111.06719), section 5: activations of every
    layer at one position, binarised (> 0) and concatenated.  For some layers
    alone give `x[:, layers]`.

    Args:
      a: [M, L, F] activations.
      b: [N, L, F] activations.
      binarised: whether a neuron counts as active or not; else by how much.

    Returns:
      [M, N] in [0, 1], or in [-1, 1] where not binarised; 0 where a prompt
      activates nothing; higher = more transferable.
    """

    def read(x: ArrayLike) -> Array:
        x = _flat(x)
        return (x > 0).astype(jnp.float32) if binarised else x

    return cosine(read(a), read(b))


@jax.jit
def gradient_alignment(
    sources: ArrayLike, *, starts: ArrayLike, gradients: ArrayLike
) -> Array:
    """Whether a target's first step would be towards a source's prompt.

    cos(p_m - s_n, -g_n), with s_n the prompt that target n starts from and g_n
    the gradient of its loss there: the loss is p_m's by about g_n (p_m - s_n)
    less than the start's, to first order.

    Args:
      sources: [M, ...] prompts of any kind.
      starts: [N, ...] prompts of the same kind and sizes.
      gradients: [N, ...] likewise.

    Returns:
      [M, N] in [-1, 1]; 0 where a source is the start or the gradient zero;
      higher = more transferable.
    """
    # Halves, so that no difference leaves fp32; a cosine has no scale.
    halves = _flat(sources) / 2

    def one_target(pair: tuple[Array, Array]) -> Array:
        start, gradient = pair
        return cosine(halves - start / 2, -gradient[None])[:, 0]

    return jax.lax.map(one_target, (_flat(starts), _flat(gradients))).T


def check_readout(name: str) -> str:
    """`name`, if it is a readout.

    Raises:
      UserError: it is none.
    """
    if name not in READOUTS:
        raise unknown_name("readout", name, READOUTS)
    return name


def _flat(x: ArrayLike) -> Array:
    """[M, ...] -> [M, D]."""
    x = jnp.asarray(x, jnp.float32)
    return x.reshape(len(x), -1)


def _tokens(x: ArrayLike) -> Array:
    """Prompts of either kind -> [M, P, D], a vector a position."""
    x = jnp.asarray(x, jnp.float32)
    if x.ndim == 6:
        x = jnp.moveaxis(x, 3, 1)
    return x.reshape(*x.shape[:2], -1)


def _within_1(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """`x` by about its largest magnitude, so that squares are numbers again."""
    # A power of 2 in two halves: fp32 may hold neither the reciprocal of its
    # largest numbers nor that of its smallest.
    _, exponent = jnp.frexp(jnp.abs(x).max(axis, keepdims=True))
    half = exponent // 2
    return x * jnp.ldexp(1.0, -half) * jnp.ldexp(1.0, half - exponent)


def _scaled(x: ArrayLike) -> tuple[Array, Array]:
    """`x` within 1, and its norms [..., 1] to divide by; 1 for zeros."""
    x = _within_1(jnp.asarray(x, jnp.float32))
    norm = _norm(x)[..., None]
    return x, jnp.where(norm > 0, norm, 1.0)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.square(x).sum(-1))


def _product(a: Array, b: Array) -> Array:
    """[M, D] x [N, D] -> [M, N]."""
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _clipped(cosines: Array) -> Array:
    """Without what rounding put past 1."""
    return jnp.clip(cosines, -1.0, 1.0)


def _squarable(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """`a` and `b` divided by what keeps squares finite, and the divisor."""
    largest = jnp.maximum(jnp.abs(a).max(), jnp.abs(b).max())
    scale = jnp.maximum(1.0, largest / _SQUARABLE)
    return a / scale, b / scale, scale
