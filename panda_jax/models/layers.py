"""The layers that every backbone shares, with T5X-style logical axis names.

Softmax and normalisation are computed in fp32 whatever the backbone's dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from panda_jax.models import cpu
from panda_jax.types import Array

# exp(-1e9) is 0 in fp32, and unlike -inf it keeps a fully masked row finite.
MASKED = -1e9

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def scanned(
    layer: type[nn.Module],
    *,
    length: int,
    in_axes: Any,
    remat: bool,
    unroll: bool,
) -> Any:
    """`layer` scanned over a stack's depth.

    Args:
      layer: a module that takes the carried [B, T, D] first.
      length: how many layers.
      in_axes: of the other arguments, as `flax.linen.scan` takes them.
      remat: whether the backward pass computes each layer's inside again.
      unroll: whether layers are compiled one by one.
    """
    if remat:
        # A scan's body is compiled once, so there is nothing to keep apart.
        layer = nn.remat(layer, prevent_cse=False)
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        metadata_params={nn.PARTITION_NAME: "layers"},
        unroll=length if unroll else 1,
    )


def mean_weights(tokens: Array, length: int) -> Array:
    """What averages over the text's real tokens: [B, length] fp32.

    Args:
      tokens: [B, T] ids, 0 where padded.
      length: of the sequence that ends with them; what stands before them (a
        shallow prompt) weighs nothing.
    """
    real = (tokens != 0).astype(jnp.float32)
    real = real / jnp.maximum(real.sum(-1, keepdims=True), 1)
    return jnp.pad(real, ((0, 0), (length - tokens.shape[1], 0)))


def weighted_mean(x: Array, weights: Array) -> Array:
    """[B, T, D] by [B, T] -> [B, D], in fp32; by [B, S, T] -> [B, S, D]."""
    return jnp.einsum("btd,b...t->b...d", x.astype(jnp.float32), weights)


def at_position(x: Array, probe: Array) -> Array:
    """[B, T, F] at a position -> [B, F]; at [B, S, T] one-hot -> [B, S, F]."""
    if probe.ndim:
        return probe.astype(x.dtype) @ x
    return jnp.take(x, probe, axis=1)


def dropout(
    key: Array | None, rate: float, x: Array, *, shared: int | None = None
) -> Array:
    """Inverted dropout: each element of `x` is 0 with probability `rate`.

    Args:
      key: a PRNG key, or None to leave `x` as it is.
      rate: 0 <= rate < 1, static; met to 2^-17.
      x: any shape.
      shared: an axis along which one draw serves all elements, as T5 does
        along positions; None for a draw an element.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    drawn = list(x.shape)
    if shared is not None:
        drawn[shared] = 1
    keep = cpu.random_bits(key, tuple(drawn)) >= threshold
    return jnp.where(keep, x / (1.0 - threshold / 2**16), 0).astype(x.dtype)


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis.

    Attributes:
      features: size of the output axis.
      axes: logical names of the kernel's (input, output) axes.
      dtype: of the computation; parameters are cast to it.
    """

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(0.02), self.axes
            ),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(
                nn.initializers.zeros_init(), (self.axes[1],)
            ),
            (self.features,),
            jnp.float32,
        )
        return x @ jnp.asarray(kernel, self.dtype) + jnp.asarray(
            bias, self.dtype
        )


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, computed in fp32."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def param(name: str, init: nn.initializers.Initializer) -> Array:
            value: Any = self.param(
                name,
                nn.with_logical_partitioning(init, ("embed",)),
                (x.shape[-1],),
                jnp.float32,
            )
            return value

        x = jnp.asarray(x, jnp.float32)
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        scale = param("scale", nn.initializers.ones_init())
        bias = param("bias", nn.initializers.zeros_init())
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return y.astype(self.dtype)


class Embed(nn.Module):
    """A table of [entries, D] embeddings, looked up by integer id."""

    entries: int
    width: int
    axis: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        table = self.param(
            "embedding",
            nn.with_logical_partitioning(
                nn.initializers.normal(0.02), (self.axis, "embed")
            ),
            (self.entries, self.width),
            jnp.float32,
        )
        return jnp.asarray(table, self.dtype)[ids]


class Linear(nn.Module):
    """`x @ kernel` over the last axis: `Dense` without a bias.

    Attributes:
      features: size of the output axis.
      axes: logical names of the kernel's (input, output) axes.
      dtype: of the computation; parameters are cast to it.
      initializer: of the kernel.
    """

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype
    initializer: nn.initializers.Initializer

    @nn.compact
    def weights(self, width: int) -> Array:
        """The kernel [width, features], in the computation's dtype."""
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.initializer, self.axes),
            (width, self.features),
            jnp.float32,
        )
        return jnp.asarray(kernel, self.dtype)

    def __call__(self, x: Array) -> Array:
        return jnp.asarray(x, self.dtype) @ self.weights(x.shape[-1])


class RMSNorm(nn.Module):
    """Division by the root mean square of the last axis, computed in fp32."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale: Any = self.param(
            "scale",
            nn.with_logical_partitioning(
                nn.initializers.ones_init(), ("embed",)
            ),
            (x.shape[-1],),
            jnp.float32,
        )
        x = jnp.asarray(x, jnp.float32)
        mean_square = jnp.square(x).mean(-1, keepdims=True)
        y = x * jax.lax.rsqrt(mean_square + self.epsilon) * scale
        return y.astype(self.dtype)


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array,
    *,
    positions: Array | None = None,
    dropout_key: Array | None,
    dropout_rate: float,
    dropout_shared: int | None = None,
    scale: float | None = None,
) -> Array:
    """Scaled dot-product attention with fp32 softmax.

    `jax.nn.dot_product_attention` computes the same, has no dropout, and was
    slower on CPU in all but one case (`benchmarks/attention.py`).

    Args:
      query: [B, T, H, K].
      key: [B, S, H, K], S = P + T with a deep prompt.
      value: [B, S, H, K].
      bias: fp32, broadcast to [B, H, T, S]; `MASKED` where attention must not
        go.
      positions: a second bias, likewise. A sum of [B, 1, 1, S] and [1, H, T, S]
        made before would be B times as large and held for all layers.
      dropout_key: PRNG key, or None for no dropout of the probabilities.
      dropout_rate: of the probabilities.
      dropout_shared: axis of [B, H, T, S] along which one draw serves all.
      scale: factor on the scores, by default K^-0.5.

    Returns:
      [B, T, H, K].
    """
    scores = jnp.einsum(
        "bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32
    )
    # In fp32: the query in bf16 would be rounded once more.
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if positions is not None:
        scores = scores + positions
    probabilities = jax.nn.softmax(scores + bias, axis=-1)
    probabilities = dropout(
        dropout_key, dropout_rate, probabilities, shared=dropout_shared
    )
    # In this order: XLA on CPU takes up to three times as long for the other.
    return jnp.einsum(
        "bshk,bhts->bthk", value, probabilities.astype(value.dtype)
    )
